"""Language model, loaded to generate or to embed."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from functions.adapters.language.decoder import Decoder
from functions.adapters.language.encoder import Encoder
from functions.adapters.language.grammar import GrammarCompiler
from functions.adapters.language.key_values import KeyValues
from functions.adapters.language.template_process import TemplateProcess
from functions.adapters.language.tokenizer import load_tokenizer
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.errors import InvalidRequest
from functions.core.language.generation import Generator
from functions.core.language.ports import Calls, Grammar, Options, Piece, Template, Tokenizer
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.records import replace
from functions.core.registry.load_plan import Plan
from functions.core.serving.model_cache import LOADING_STACK_BYTES
from functions.core.threads import start_thread
from functions.core.watchdog import PROCESS_WATCHDOG


class LanguageModel:
    """Language model with tokenizer and template; implements `core.language.ports.TextModel`.

    One thread uses it at a time. `spec` says, for a decoder, if its cache is shared.
    """

    def __init__(
        self,
        spec: LanguageSpec,
        tokenizer: Tokenizer,
        template: Template | None,
        model: "Decoder | Encoder",
        cache_bytes: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._encoder = model if isinstance(model, Encoder) else None
        self._generator: Generator[KeyValues] | None = None
        if isinstance(model, Decoder):
            spec = replace(spec, shared_cache=model.shared)
            self._generator = Generator(model, tokenizer, spec, cache_bytes)
        self.spec = spec

    @classmethod
    def load(
        cls,
        paths: Mapping[str, Path],
        spec: LanguageSpec,
        plan: Plan | None = None,
        threads: int = 1,
        cache_bytes: int = 0,
    ) -> Self:
        """Load a version's files, by the names they have in a package.

        Weights lie beside model.onnx. `cache_bytes` limits the keys and values of the replies in
        the making and of earlier ones.

        Raises:
            InvalidModel: the runtime refuses the model, or an asset is invalid.
            MemoryError: it does not fit.
        """
        template = load_template(paths, spec)
        tokenizer_load = _TokenizerLoad(paths["tokenizer.json"])
        runtime = OnnxRuntime(threads, PROCESS_WATCHDOG)
        session = runtime.load(paths["model.onnx"], plan)
        tokenizer = tokenizer_load.result()
        if spec.kind is Kind.ENCODER:
            return cls(spec, tokenizer, None, Encoder(runtime, session, spec), cache_bytes)
        decoder = Decoder(runtime, session, spec)
        return cls(spec, tokenizer, template, decoder, cache_bytes)

    def generate(
        self,
        prompt: Sequence[int],
        options: Options,
        *,
        deadline: float,
        cancelled: Callable[[], bool] = lambda: False,
        grammar: Grammar | None = None,
        owner: str = "",
    ) -> Iterator[Piece]:
        """Yield a reply to a prompt piece by piece, as `TextModel.generate` says."""
        return self._decoding.generate(
            prompt,
            options,
            deadline=deadline,
            cancelled=cancelled,
            grammar=grammar,
            owner=owner,
        )

    def cached_tokens(self, prompt: Sequence[int], owner: str = "") -> int:
        """Return how many tokens of a prompt are cached for its owner."""
        return self._decoding.prefixes.match(prompt, owner)

    def embed(self, texts: Sequence[Sequence[int]], *, deadline: float) -> "list[Sequence[float]]":
        """Return one vector for the tokens of each text, as `TextModel.embed` says."""
        if self._encoder is None:
            raise InvalidRequest("this model generates text: call one that embeds")
        return self._encoder.embed(texts, deadline=deadline)

    def json_grammar(self, schema: Mapping[str, Any], owner: str = "") -> Grammar:
        """Return a grammar of the replies that a JSON schema allows."""
        return self._grammars.compile(schema, owner)

    def call_grammar(
        self, calls: Calls, schema: Mapping[str, Any] | None, owner: str = ""
    ) -> Grammar:
        """Return a grammar of text with calls of functions."""
        return self._grammars.compile_calls(calls, schema, owner)

    @property
    def _decoding(self) -> Generator[KeyValues]:
        if self._generator is None:
            raise InvalidRequest("this model gives vectors, no text: call its embeddings")
        return self._generator

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.spec.vocabulary, self.spec.eos)


class _TokenizerLoad:
    """Load of a tokenizer in a thread, beside that of a session.

    The runtime's calls leave the interpreter free. Without memory for a thread's stack, `result`
    loads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokenizer: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._load, name="tokenizer", daemon=True)
        with suppress(RuntimeError):
            start_thread(self._thread, LOADING_STACK_BYTES)

    def result(self) -> Tokenizer:
        """Wait for the tokenizer and return it.

        Raises:
            InvalidModel: `TOKENIZER_TOO_LARGE` or `TOKENIZER_INVALID`.
            MemoryError: it does not fit.
        """
        if self._thread.ident is None:
            return load_tokenizer(self._path)
        self._thread.join()
        if self._tokenizer is None:
            raise self._error or LookupError("no tokenizer was loaded")
        return self._tokenizer

    def _load(self) -> None:
        try:
            self._tokenizer = load_tokenizer(self._path)
        except BaseException as error:  # raised by `result`
            self._error = error


def load_template(paths: Mapping[str, Path], spec: LanguageSpec) -> TemplateProcess | None:
    """Return a version's chat template, with its special tokens.

    Registration writes the file, also where the package had it in tokenizer_config.json.

    Raises:
        Unavailable: its process could not be started.
    """
    path = paths.get("chat_template.jinja") if spec.kind is Kind.DECODER else None
    return TemplateProcess(path.read_text("utf-8"), spec.special_tokens) if path else None
