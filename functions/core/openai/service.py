"""Service of language models: one public method for each route.

A method takes a `LanguageCall` and returns a JSON document or a `Stream` of documents, whose first
one is there: until then an error has an HTTP status of its own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

from functions.core.errors import InvalidRequest, TimedOut, shown
from functions.core.language.ports import SCHEMA_OVERTIME, Grammar, Options, TextModel
from functions.core.language.spec import LanguageSpec
from functions.core.names import is_model_name, parse_reference
from functions.core.openai.call import LanguageCall
from functions.core.openai.encoding import check_text
from functions.core.openai.errors import InvalidParameter
from functions.core.openai.fields import Fields, parse_body
from functions.core.openai.replies import (
    ChatWriter,
    CompletionWriter,
    Document,
    Facts,
    TritonWriter,
    Usage,
    Writer,
    models_document,
)
from functions.core.openai.requests import (
    TextRequest,
    chat_prompt,
    parse_chat,
    parse_completion,
    parse_triton,
    require_decoder,
)
from functions.core.openai.sampling import tokens_of_reply
from functions.core.openai.vectors import (
    embeddings_document,
    parse_form,
    parse_inputs,
    parse_rank,
    rank_document,
    rank_scores,
    rank_tokens,
    require_encoder,
)
from functions.core.records import record, replace
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.registry.transactions import unknown_model
from functions.core.registry.version import State, Version
from functions.core.serving.model_cache import FileCache
from functions.core.serving.service import resolve_call

OWNER = "mayfly"  # owner of models in OpenAI's documents

MakeWriter = Callable[[Facts, TextRequest, Any], Writer]


@record
class Stream:
    """Documents of a streamed reply; close them to stop it.

    After the last one comes [DONE], if `done`.
    """

    documents: Iterator[Document]
    done: bool = True


class LanguageService:
    """Service that answers requests to registered language models."""

    def __init__(
        self, registry: Registry, resolver: Resolver, models: FileCache[TextModel]
    ) -> None:
        self._registry = registry
        self._resolver = resolver
        self._models = models

    # --- models

    def list_models(self, call: LanguageCall) -> Document:
        """List the language models that can be called by name alone."""
        names = dict.fromkeys(
            model
            for model, _, state, _ in self._registry.listing()
            if state is State.READY and call.grant.sees(model)
        )
        unloaded = self._registry.unloaded_models(names)
        versions = self._registry.default_versions(name for name in names if name not in unloaded)
        ready = [v for v in versions if v.state is State.READY and v.language is not None]
        return models_document([_model_document(v.model, v) for v in ready])

    def read_model(self, call: LanguageCall) -> Document:
        """Return a language model's document.

        Raises:
            ModelNotFound: there is none of this name, version or alias.
            InvalidParameter: it is no language model.
        """
        name = call.model
        version, _ = self._resolve(call, name)
        return _model_document(name, version)

    # --- text

    def chat(self, call: LanguageCall) -> Document | Stream:
        """Write the next message of a chat.

        Raises:
            InvalidRequest: the body is wrong, the model has no chat template, or it fails on it.
            ModelNotFound, NotServable, Unavailable: the model cannot be called, or not now.
        """
        fields = parse_body(call.body)
        version, spec = self._decoder(call, fields)
        return self._text(call, version, parse_chat(fields, spec), ChatWriter)

    def complete(self, call: LanguageCall) -> Document | Stream:
        """Continue texts.

        Raises:
            InvalidRequest: the body is wrong, the model makes vectors, or it fails on this input.
            ModelNotFound, NotServable, Unavailable: the model cannot be called, or not now.
        """
        fields = parse_body(call.body)
        version, spec = self._decoder(call, fields)
        return self._text(call, version, parse_completion(fields, spec), CompletionWriter)

    def generate(self, call: LanguageCall) -> Document | Stream:
        """Continue a text, by Triton's extension of the protocol.

        Raises:
            InvalidRequest, ModelNotFound, NotServable, Unavailable: as `complete`.
        """
        return self._generate(call, stream=False)

    def generate_stream(self, call: LanguageCall) -> Document | Stream:
        """Continue a text in a stream, by Triton's extension of the protocol.

        Raises:
            InvalidRequest, ModelNotFound, NotServable, Unavailable: as `complete`.
        """
        return self._generate(call, stream=True)

    def _generate(self, call: LanguageCall, stream: bool) -> Document | Stream:
        fields = parse_body(call.body)
        version, spec = self._resolve(call, call.model, call.reference)
        require_decoder(spec, call.model)
        reply = self._text(call, version, parse_triton(fields, spec, stream), TritonWriter)
        return Stream(reply.documents, done=False) if isinstance(reply, Stream) else reply

    # --- vectors

    def embed(self, call: LanguageCall) -> Document:
        """Return a vector for each text.

        Raises:
            InvalidRequest: the body is wrong, or the model makes no vectors.
            ModelNotFound, NotServable, Unavailable: the model cannot be called, or not now.
            TimedOut: the deadline passed.
        """
        fields = parse_body(call.body)
        version, spec = self._resolve(call, _model_of(fields), user=fields.text("user"))
        require_encoder(spec, call.model)
        base64, dimensions = parse_form(fields, spec)
        with _loaded(self._models, call, version) as model:
            inputs = parse_inputs(fields, spec, model.tokenizer, call.deadline)
            vectors = self._embed(call, model, inputs)
        return embeddings_document(
            _concrete(version), vectors, call.tokens_in, base64=base64, dimensions=dimensions
        )

    def rerank(self, call: LanguageCall) -> Document:
        """Sort texts by their relevance to a query.

        Raises:
            InvalidRequest: the body is wrong, or the model writes text.
            ModelNotFound, NotServable, Unavailable, TimedOut: as `embed`.
        """
        fields = parse_body(call.body)
        version, spec = self._resolve(call, _model_of(fields), user=fields.text("user"))
        require_encoder(spec, call.model, reranker=True)
        request = parse_rank(fields)
        with _loaded(self._models, call, version) as model:
            inputs = rank_tokens(request, spec, model.tokenizer, call.deadline)
            vectors = self._embed(call, model, inputs)
        scores = rank_scores(spec, vectors)
        return rank_document(_concrete(version), call.request_id, request, scores, call.tokens_in)

    def _embed(
        self, call: LanguageCall, model: TextModel, inputs: Sequence[Sequence[int]]
    ) -> list[Sequence[float]]:
        call.tokens_in = sum(map(len, inputs))
        call.lap("encode")
        vectors = model.embed(inputs, deadline=call.deadline)
        call.lap("compute")
        call.inferences = len(inputs)
        return vectors

    # --- shared

    def _decoder(self, call: LanguageCall, fields: Fields) -> tuple[Version, LanguageSpec]:
        version, spec = self._resolve(call, _model_of(fields), user=fields.text("user"))
        require_decoder(spec, call.model)
        return version, spec

    def _resolve(
        self,
        call: LanguageCall,
        name: str,
        reference: int | str | None = None,
        user: str | None = None,
    ) -> tuple[Version, LanguageSpec]:
        """Resolve a model's name, with an alias or version after a colon.

        Raises:
            ModelNotFound: there is none of this name, version or alias.
            NotServable, Unavailable: it cannot be called, or not now.
            InvalidParameter: it is no language model.
        """
        model, colon, text = name.partition(":")
        call.model, call.reference = model, reference
        call.user = call.user or user
        if not is_model_name(model):
            raise unknown_model(name)
        if colon:
            call.reference = _reference(name, text)
        version = resolve_call(self._resolver, call).version
        if version.language is None:
            raise InvalidParameter(
                "model",
                f"{shown(model)} is no language model, as its package has no tokenizer: call it "
                f"at /v2/models/{model}/infer",
            )
        call.lap("resolve")
        return version, LanguageSpec.from_record(version.language)

    def _text(
        self, call: LanguageCall, version: Version, request: TextRequest, make: MakeWriter
    ) -> Document | Stream:
        work = _TextWork(call, version, request, make)
        events = work.events(self._models)
        if request.stream:
            first = [event for event in (next(events, None),) if event is not None]
            return Stream(_resumed(first, events))
        for _ in events:
            pass
        return work.document()


class _TextWork:
    """Work on one request for text."""

    def __init__(
        self, call: LanguageCall, version: Version, request: TextRequest, make: MakeWriter
    ) -> None:
        self._call = call
        self._version = version
        self._request = request
        self._make = make
        self._cached = 0
        self._writer: Writer

    def events(self, models: FileCache[TextModel]) -> Iterator[Document]:
        """Yield the documents of a stream; close to stop.

        Raises:
            PlatformError: the request is wrong, the model fails, or the deadline passes before the
                first token.
        """
        call, request = self._call, self._request
        with _loaded(models, call, self._version) as model:
            facts = Facts(
                call.request_id,
                int(time.time()),
                _concrete(self._version) if request.source != "text_input" else call.model,
                self._version.number,
                f"fp_{self._version.digest[:12]}",
            )
            self._writer = self._make(facts, request, model.tokenizer)
            prompts: list[Sequence[int]] = []
            limits = []
            for prompt in self._prompts(model):
                limits.append(self._limit(prompt, model.spec))
                prompts.append(prompt)
            call.tokens_in = sum(map(len, prompts))
            call.lap("encode")
            for at, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
                # Other replies to this prompt find all of it cached; it is counted once.
                self._cached += min(model.cached_tokens(prompt, call.grant.key_id), len(prompt))
                for reply in range(request.replies):
                    choice = at * request.replies + reply
                    yield from self._choice(model, choice, prompt, self._options(limit, reply))
            call.lap("compute")
            call.inferences = len(prompts) * request.replies
        yield from self._writer.end(self._usage())

    def document(self) -> Document:
        """Return the whole reply, after all events."""
        return self._writer.document(self._usage())

    def _choice(
        self, model: TextModel, choice: int, prompt: Sequence[int], options: Options
    ) -> Iterator[Document]:
        call, grammar = self._call, self._grammar(model)
        pieces = model.generate(
            prompt, options, deadline=call.deadline, grammar=grammar, owner=call.grant.key_id
        )
        begun = False
        with closing(pieces):  # type: ignore[type-var]
            for piece in pieces:
                if piece.finish == "timeout" and not (call.tokens_out or piece.tokens):
                    raise TimedOut(
                        "the time was over before the first token: send a shorter prompt, or raise "
                        "GenerateTimeout"
                    )
                call.mark_first()
                call.tokens_out += len(piece.tokens)
                if piece.finish is not None:
                    call.finish = piece.finish
                if not begun:
                    begun = True
                    yield from self._writer.begin(choice)
                yield from self._writer.add(choice, piece)

    def _prompts(self, model: TextModel) -> Iterator[Sequence[int]]:
        request = self._request
        if request.messages:
            if model.template is None:
                raise InvalidParameter("model", "its package has no chat template")
            # A template writes the special tokens itself.
            yield self._encode(model, chat_prompt(model.template, request), special=False)
        for prompt in request.prompts:
            yield self._encode(model, prompt) if isinstance(prompt, str) else prompt

    def _encode(self, model: TextModel, text: str, *, special: bool = True) -> Sequence[int]:
        check_text(text, model.spec, self._request.source)
        return model.tokenizer.encode(text, special=special)

    def _limit(self, prompt: Sequence[int], spec: LanguageSpec) -> int:
        request = self._request
        if not prompt:
            raise InvalidParameter(request.source, "is empty")
        return tokens_of_reply(
            request.requested,
            request.usual,
            len(prompt),
            spec.context,
            self._call.grant.max_tokens,
            param=request.limit,
            source=request.source,
        )

    def _options(self, limit: int, reply: int) -> Options:
        options = replace(self._request.options, max_tokens=limit)
        if reply and options.seed is not None:
            options = replace(options, seed=options.seed + reply)  # replies differ
        return options

    def _grammar(self, model: TextModel) -> Grammar | None:
        request, param = self._request, "response_format"
        owner = self._call.grant.key_id
        try:
            grammar = None
            if request.schema is not None:
                grammar = model.json_grammar(request.schema, owner)
            param = "tools"
            return _call_grammar(model, request, owner) if request.calls else grammar
        except InvalidRequest as error:
            raise InvalidParameter(param, str(error), code=error.instance_code) from error

    def _usage(self) -> Usage:
        call = self._call
        return Usage(call.tokens_in, call.tokens_out, self._cached)


def _call_grammar(model: TextModel, request: TextRequest, owner: str) -> Grammar:
    """Return the grammar of the first calls that the model supports.

    Raises:
        InvalidRequest: it supports none.
    """
    *stricter, loosest = request.calls
    for calls in stricter:
        try:
            return model.call_grammar(calls, request.schema, owner)
        except InvalidRequest as error:
            if error.instance_code == SCHEMA_OVERTIME:  # another try would take longer
                raise
    return model.call_grammar(loosest, request.schema, owner)


@contextmanager
def _loaded(
    models: FileCache[TextModel], call: LanguageCall, version: Version
) -> Iterator[TextModel]:
    """Keep a version's model loaded during a `with` block."""
    lease = models.session(version, call.deadline)
    call.loaded = lease.waits
    with lease as model:
        call.lap("load")
        yield model


def _resumed(first: Sequence[Document], events: Iterator[Document]) -> Iterator[Document]:
    """Yield the first events and the rest; close the rest."""
    with closing(events):  # type: ignore[type-var]
        yield from first
        yield from events


def _model_of(fields: Fields) -> str:
    """Return the name of the model in a request's body.

    Raises:
        InvalidParameter: it is missing, or no string.
    """
    fields.required("model")
    return fields.text("model") or ""


def _reference(name: str, text: str) -> int | str:
    """Return the alias or version of a model's name.

    Raises:
        ModelNotFound: it is neither, so no model has the name.
    """
    try:
        return parse_reference(text)
    except InvalidRequest:
        raise unknown_model(name) from None


def _concrete(version: Version) -> str:
    """Return the name by which this version can be called."""
    return f"{version.model}:{version.number}"


def _model_document(name: str, version: Version) -> Document:
    spec = LanguageSpec.from_record(version.language or {})
    created = datetime.fromisoformat(version.finished_at or version.created_at)
    return {
        "id": name,
        "object": "model",
        "created": int(created.timestamp()),
        "owned_by": OWNER,
        "version": str(version.number),
        "kind": "reranker" if spec.reranker else spec.kind.value,
        "max_model_len": spec.context,  # as vLLM names it
    }
