"""Interfaces between the generate function and a loaded language model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from functions.core.language.spec import LanguageSpec
from functions.core.records import field, record


class Tokenizer(Protocol):
    """Tokenizer of a language model; `adapters/language/tokenizer.py` implements it."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text; `special` adds bos and the like.

        Raises:
            InvalidRequest: the text is not Unicode, or the tokenizer fails on it.
        """

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Return the tokens of two texts with separators, as rerankers take them.

        Raises:
            InvalidRequest: as `encode`.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special and unknown ones.

        Raises:
            InvalidRequest: a token is not of 32 bits, or the tokenizer fails on them.
        """

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token adds to a text.

        A token may hold a part of a character. A special or unknown one adds none.
        """


class Template(Protocol):
    """Chat template of a language model; `adapters/language/template.py` implements it."""

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Return a chat's prompt, up to the place where the reply begins.

        Messages have `role` and `content`; tools are in OpenAI's form.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them, takes too long or
                writes too much.
        """


SCHEMA_OVERTIME = "SCHEMA_OVERTIME"  # code of a compilation that goes on, using a processor


@record
class Calls:
    """Functions that a reply may call, by name and arguments in JSON.

    `functions` are names with the JSON schema of their arguments. A call stands in lines of its own
    between `begin` and `end`. If `demanded`, the reply is one call, whose `begin` the prompt has.
    If not `several`, it ends after the first.
    """

    functions: tuple[tuple[str, Mapping[str, Any]], ...]
    begin: str
    end: str
    demanded: bool = False
    several: bool = True


class Grammar(Protocol):
    """Constraint on one reply, e.g. a JSON schema.

    The reply ends once the grammar is `complete`, or at an end token that the mask allows.
    """

    def mask(self) -> bytes:
        """Return the tokens that may come next, as bits.

        It has a bit for each token of the vocabulary, the lowest of a byte first. Tokens beyond its
        end may not come.

        Raises:
            InvalidRequest: finding them takes too much work.
        """

    def accept(self, token: int) -> None:
        """Continue after the next token of the reply.

        Raises:
            ValueError: the mask does not allow it.
        """

    @property
    def complete(self) -> bool:
        """True if no token may follow."""


@record
class Options:
    """Sampling options of one reply, already validated.

    Temperature 0 is greedy. `top_p` and `min_p` are probabilities from 0 to 1. `logit_bias` has
    token ids as keys and numbers to add to their logits as values.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # number of alternatives to report; 0: the chosen token alone
    ignore_eos: bool = False


@record
class TokenScore:
    """Token of a reply with log probabilities (natural, at most 0).

    `logprob` is that of the token, `top` has (token id, log probability) of the likeliest tokens,
    the likeliest first: as many as `Options.logprobs`.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@record
class Piece:
    """Part of a reply: whole characters, no part of a stop string.

    `tokens` are the ids sampled since the piece before, and `scores` one for each of them with
    `logprobs`, else empty. A text may lag behind its tokens: it is held back while it may be part
    of a stop string or has half a character.

    The last piece has a `finish`: "stop", "length", or "timeout" at the deadline. Its tokens
    include the one that ended the reply, which has no text.
    """

    text: str
    tokens: tuple[int, ...] = ()  # tokens sampled since the last piece
    scores: tuple[TokenScore, ...] = ()  # with `logprobs`, one for each of `tokens`
    finish: str | None = None


class TextModel(Protocol):
    """Loaded language model.

    `generate` and `embed` take `deadline`, a time of `time.monotonic`. `cancelled` is asked
    between tokens.
    """

    spec: LanguageSpec
    tokenizer: Tokenizer
    template: Template | None

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
        """Check a prompt; yield a reply to it piece by piece.

        A reply that is cancelled ends without a last piece. One that is left early has to be
        closed, which gives its memory back. Several replies may take turns. Only prompts of the
        same `owner` share what the prefix cache holds; "" is that of callers without a key.

        Raises:
            InvalidRequest: the prompt does not fit the context, or has tokens that do not exist.
            MemoryError: its cache does not fit into memory; with the first piece.
        """

    def cached_tokens(self, prompt: Sequence[int], owner: str = "") -> int:
        """Return how many tokens of a prompt are cached for its owner."""

    def embed(self, texts: Sequence[Sequence[int]], *, deadline: float) -> list[Sequence[float]]:
        """Return one vector for the tokens of each text, in order.

        A reranker returns one score: log-odds, from minus to plus infinity.

        Raises:
            InvalidRequest: a text does not fit the context.
            TimedOut: the deadline passed.
        """

    def json_grammar(self, schema: Mapping[str, Any], owner: str = "") -> Grammar:
        """Return a grammar of the replies that a JSON schema allows.

        Compiled schemas are cached by owner.

        Raises:
            InvalidRequest: the schema is invalid, unsupported or too large; SCHEMA_OVERTIME if it
                takes too long.
        """

    def call_grammar(
        self, calls: Calls, schema: Mapping[str, Any] | None, owner: str = ""
    ) -> Grammar:
        """Return a grammar of text with calls of functions.

        With a schema, the reply is JSON that it allows, or calls.

        Raises:
            InvalidRequest: a schema is invalid, unsupported or too large, as `json_grammar` says.
        """
