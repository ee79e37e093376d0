"""Generate function in memory: fake table and blobs, and a model that writes a script."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from functions.adapters.language.grammar import GrammarCompiler
from functions.core.errors import InvalidRequest
from functions.core.language.ports import Calls, Grammar, Options, Piece, TokenScore
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.openai.service import LanguageService
from functions.core.registry.version import State, Version
from functions.generate.handler import GenerateHandler
from functions.generate.text_models import TextModels
from functions.runtime.replies import StreamedReply
from tests.data_plane import PATIENCE_S, Context, DataPlane

EOS = 256
VOCABULARY = 258
DECODER = LanguageSpec(Kind.DECODER, VOCABULARY, 200, eos=(EOS,), layers=1, kv_heads=1, chat=True)
ENCODER = LanguageSpec(Kind.ENCODER, VOCABULARY, 64, dimensions=4)
RERANKER = LanguageSpec(Kind.ENCODER, VOCABULARY, 64, dimensions=1, reranker=True)


class ByteTokenizer:
    """Tokenizer of one token a byte, and of two special tokens."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def encode_pair(self, first: str, second: str) -> list[int]:
        return [*first.encode(), EOS, *second.encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        texts = [bytes([token]) if token < EOS else b"<eos>" for token in tokens]
        return b"".join(texts).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < EOS else b""


class RoleTemplate:
    """Template of a line for each message; `knows_tools` writes their names."""

    def __init__(self, knows_tools: bool = False) -> None:
        self.knows_tools = knows_tools

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        if any(message["content"] == "refuse" for message in messages):
            raise InvalidRequest("messages: the model's chat template refuses them: no")
        names = [tool["function"]["name"] for tool in tools] if self.knows_tools else []
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        return "\n".join([*(f"tool {name}" for name in names), *lines, "assistant: "])


class ScriptedModel:
    """Text model that writes `script`, a token a character, as far as a grammar allows it.

    Records prompts, options and owners. `failure` is raised after `fails_after` pieces. A token's
    score is that of its own number.
    """

    def __init__(self, spec: LanguageSpec) -> None:
        self.spec = spec
        self.tokenizer = ByteTokenizer()
        self.template: RoleTemplate | None = RoleTemplate() if spec.chat else None
        self.script = "Hello, world"
        self.prompts: list[str] = []
        self.options: list[Options] = []
        self.owners: list[str] = []
        self.deadlines: list[float] = []
        self.embedded: list[list[int]] = []
        self.cached = 0
        self.failure: BaseException | None = None
        self.fails_after = 0
        self.late_after: int | None = None  # tokens until the deadline passes
        self.made = 0  # tokens
        self.closed = 0  # generators that have ended
        self.compiler = GrammarCompiler(self.tokenizer, VOCABULARY, [EOS])

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
        self.prompts.append(self.tokenizer.decode(prompt))
        self.options.append(options)
        self.owners.append(owner)
        self.deadlines.append(deadline)
        text = self.script if grammar is None else allowed_reply(grammar, self.script)
        try:
            for at, character in enumerate(text[: options.max_tokens]):
                if self.failure is not None and at >= self.fails_after:
                    raise self.failure
                if at == self.late_after:
                    yield Piece("", finish="timeout")
                    return
                self.made += 1
                yield self._piece(character, options)
            yield Piece("", finish="length" if options.max_tokens < len(text) else "stop")
        finally:
            self.closed += 1

    def _piece(self, character: str, options: Options) -> Piece:
        token = character.encode()[0]
        scores: tuple[TokenScore, ...] = ()
        if options.logprobs is not None:
            top = tuple((token + at, -0.5 - at) for at in range(options.logprobs))
            scores = (TokenScore(token, -0.5, top),)
        return Piece(character, (token,), scores)

    def cached_tokens(self, prompt: Sequence[int], owner: str = "") -> int:
        return self.cached if owner in self.owners else 0

    def embed(self, texts: Sequence[Sequence[int]], *, deadline: float) -> list[Sequence[float]]:
        self.embedded += [list(text) for text in texts]
        if self.spec.reranker:
            return [[float(len(set(text)))] for text in texts]
        return [[3.0, 4.0, 0.0, float(len(text))] for text in texts]

    def json_grammar(self, schema: Mapping[str, Any], owner: str = "") -> Grammar:
        return self.compiler.compile(schema, owner)

    def call_grammar(
        self, calls: Calls, schema: Mapping[str, Any] | None, owner: str = ""
    ) -> Grammar:
        return self.compiler.compile_calls(calls, schema, owner)


def allowed_reply(grammar: Grammar, script: str) -> str:
    """Return a script as far as a grammar allows it, then the first tokens that it allows."""
    tokens: list[int] = []
    for byte in script.encode():
        if byte not in allowed_tokens(grammar):
            break
        grammar.accept(byte)
        tokens.append(byte)
    while not grammar.complete and len(tokens) < 200:
        allowed = allowed_tokens(grammar)
        if EOS in allowed:
            break
        quote = ord('"') in allowed and tokens[-1:] != [ord("{")]  # ends a string at once
        token = ord('"') if quote else next(t for t in reversed(allowed) if t < 128)
        grammar.accept(token)
        tokens.append(token)
    return bytes(tokens).decode()


def allowed_tokens(grammar: Grammar) -> list[int]:
    mask = grammar.mask()
    return [token for token in range(VOCABULARY) if mask[token >> 3] >> (token & 7) & 1]


@dataclass(frozen=True)
class Reply:
    """Streamed reply as a client sees it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Documents of the events; "[DONE]" as text."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == ""
        assert all(part.startswith("data: ") for part in parts)
        texts = [part.removeprefix("data: ") for part in parts]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    @property
    def error(self) -> Any:
        """OpenAI's error."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class LanguagePlane(DataPlane):
    """Execution environment of the generate function."""

    def __init__(self, directory: Path, **handler: Any) -> None:
        super().__init__(directory)
        self.loaded: list[ScriptedModel] = []
        self.text_models = TextModels(
            self.blobs, self._load, threads=1, memory_bytes=1 << 30, directory=directory
        )
        self.language = LanguageService(self.registry, self.resolver, self.text_models)
        options = {"meter": self.meter, "write": self._read, **handler}
        self.generate = GenerateHandler(self.language, **options)

    @property
    def model(self) -> ScriptedModel:
        """Model that was loaded last."""
        return self.loaded[-1]

    def add(self, name: str, spec: LanguageSpec = DECODER, tokenizer: str = "{}") -> Version:
        """Record a READY version of a language model, and load it."""
        claimed = self.claim(name)
        ready = replace(
            claimed,
            state=State.READY,
            files=(self.blobs.add("model.onnx", f"{name} {claimed.number}".encode()),),
            language=spec.to_record(),
            assets=(self.blobs.add("tokenizer.json", tokenizer.encode()),),
        )
        version = self.registry.finish(ready)
        with self.text_models.session(version, time.monotonic() + PATIENCE_S):
            pass
        return version

    def send(
        self,
        method: str,
        path: str,
        body: bytes | object = b"",
        headers: Mapping[str, str] | None = None,
        context: Any = None,
    ) -> Reply:
        """Send a request and read the whole reply."""
        reply = self.open(method, path, body, headers, context)
        return Reply(reply.status, reply.headers, b"".join(reply.chunks))

    def open(
        self,
        method: str,
        path: str,
        body: bytes | object = b"",
        headers: Mapping[str, str] | None = None,
        context: Any = None,
    ) -> StreamedReply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        event = {
            "httpMethod": method,
            "path": path,
            "headers": dict(headers or {}),
            "requestContext": {"requestId": "the-request"},
            "body": base64.b64encode(raw).decode() if raw else None,
            "isBase64Encoded": bool(raw),
        }
        return self.generate(json.dumps(event).encode(), context or Context())

    def chat(self, text: str = "Hi", **fields: Any) -> Reply:
        """Send a chat of one message to the model `tiny`."""
        messages = [{"role": "user", "content": text}]
        body = {"model": "tiny", "messages": messages, **fields}
        return self.send("POST", "/v1/chat/completions", body)

    def complete(self, prompt: Any = "Hi", **fields: Any) -> Reply:
        """Send a completion to the model `tiny`."""
        return self.send("POST", "/v1/completions", {"model": "tiny", "prompt": prompt, **fields})

    def _load(self, paths: Mapping[str, Path], spec: LanguageSpec, *_: Any) -> ScriptedModel:
        assert {"model.onnx", "tokenizer.json"} <= set(paths)
        assert all(path.is_file() for path in paths.values())
        self.loaded.append(ScriptedModel(spec))
        return self.loaded[-1]
