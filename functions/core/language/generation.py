"""Generation of a reply, token by token, with a decoder."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol

from functions.core.errors import InvalidRequest, TimedOut
from functions.core.language.ports import Grammar, Options, Piece, Tokenizer, TokenScore
from functions.core.language.prefix_cache import E, Memory, PrefixCache
from functions.core.language.sampling import Logits, Sampler
from functions.core.language.spec import LanguageSpec
from functions.core.language.text_stream import TextStream
from functions.core.records import replace


class Decoder(Memory[E], Protocol[E]):
    """Decoder of a language model, and maker of its keys and values."""

    chunk: int  # tokens of a prompt in one run

    def run(self, cache: E, tokens: Sequence[int], timeout_s: float) -> Logits:
        """Add tokens to a sequence; return the next token's logits.

        `tokens` has 1 to `chunk` ids. The logits have the shape (vocabulary,).

        Raises:
            TimedOut: the run was stopped.
            ExecutionFailed: the model failed on these tokens.
            MemoryError: it asked for more memory than there is.
        """


class Generator(Generic[E]):
    """Replies of a decoder, with a cache of prefixes.

    `clock` is that of deadlines.
    """

    def __init__(
        self,
        decoder: Decoder[E],
        tokenizer: Tokenizer,
        spec: LanguageSpec,
        cache_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prefixes: PrefixCache[E] = PrefixCache(decoder, cache_bytes)
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._spec = spec
        self._clock = clock

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
        """Check a prompt; yield a reply to it as TextModel.generate says."""
        spec = self._spec
        prompt = list(prompt) or ([] if spec.bos is None else [spec.bos])
        check_prompt(prompt, spec)
        room = spec.context - len(prompt)
        options = replace(options, max_tokens=min(options.max_tokens, room))
        return self._generate(prompt, options, deadline, cancelled, grammar, owner)

    def _generate(
        self,
        prompt: list[int],
        options: Options,
        deadline: float,
        cancelled: Callable[[], bool],
        grammar: Grammar | None,
        owner: str,
    ) -> Iterator[Piece]:
        if options.max_tokens < 1:
            yield Piece("", finish="length")
            return
        # The last token of a reply is not run.
        cache = self.prefixes.acquire(prompt, len(prompt) + options.max_tokens - 1, owner)
        try:
            reply = _Reply(self._tokenizer, self._spec, options, grammar)
            tokens = prompt[len(cache.tokens) :]
            while True:
                try:
                    logits = self._run(cache, tokens, deadline, cancelled)
                except TimedOut:
                    yield reply.end("timeout")
                    return
                if logits is None:
                    return
                piece = reply.add(logits)
                if piece.text or piece.finish:
                    yield piece
                if piece.finish:
                    return
                tokens = [reply.last]
        finally:
            self.prefixes.release(cache)

    def _run(
        self, cache: E, tokens: Sequence[int], deadline: float, cancelled: Callable[[], bool]
    ) -> Logits | None:
        """Run tokens in chunks; return the last logits, None if cancelled.

        Raises:
            TimedOut: the deadline passed.
        """
        logits = None
        for start in range(0, len(tokens), self._decoder.chunk):
            if cancelled():
                return None
            timeout_s = deadline - self._clock()
            if timeout_s <= 0:
                raise TimedOut("the time for the reply is over")
            chunk = tokens[start : start + self._decoder.chunk]
            logits = self._decoder.run(cache, chunk, timeout_s)
        return logits


class _Reply:
    """Reply in the making: sampled tokens, their text, and its end."""

    def __init__(
        self, tokenizer: Tokenizer, spec: LanguageSpec, options: Options, grammar: Grammar | None
    ) -> None:
        self.last = -1
        self._tokenizer = tokenizer
        self._options = options
        self._grammar = grammar
        self._eos = frozenset() if options.ignore_eos else frozenset(spec.eos)
        self._sampler = Sampler(options)
        self._text = TextStream(options.stop)
        self._count = 0
        self._scores: list[TokenScore] = []  # since the last piece

    def add(self, logits: Logits) -> Piece:
        """Sample the next token; return a piece, which may be empty."""
        grammar = self._grammar
        mask = None if grammar is None else grammar.mask()
        if mask is not None and not any(mask):  # nothing may follow
            return self.end("stop")
        score = self._sampler.choose(logits, mask)
        self.last = score.token
        self._scores.append(score)
        self._count += 1
        if score.token in self._eos:
            return self.end("stop")
        if grammar is not None:
            grammar.accept(score.token)
        text = self._text.feed(self._tokenizer.token_bytes(score.token))
        if self._text.stopped or (grammar is not None and grammar.complete):
            return self.end("stop", text)
        if self._count == self._options.max_tokens:
            return self.end("length", text)
        return self._piece(text) if text else Piece("")

    def end(self, finish: str, text: str = "") -> Piece:
        """Return the last piece, with what was held back."""
        return self._piece(text + self._text.end(), finish)

    def _piece(self, text: str, finish: str | None = None) -> Piece:
        scores, self._scores = tuple(self._scores), []
        tokens = tuple(score.token for score in scores)
        return Piece(text, tokens, () if self._options.logprobs is None else scores, finish)


def check_prompt(prompt: Sequence[int], spec: LanguageSpec) -> None:
    """Check that tokens are the model's and leave room for a reply.

    Raises:
        InvalidRequest: they are none, too many, or not in the vocabulary.
    """
    if not prompt:
        raise InvalidRequest("the prompt has no tokens: send at least one character")
    if len(prompt) >= spec.context:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens, and this model's context length is "
            f"{spec.context} tokens for prompt and reply together: send a shorter prompt",
            code="CONTEXT_LENGTH_EXCEEDED",
        )
    check_tokens(prompt, spec)


def check_tokens(tokens: Sequence[int], spec: LanguageSpec) -> None:
    """Check that tokens are in a model's vocabulary.

    Raises:
        InvalidRequest: one is not.
    """
    if min(tokens) < 0 or max(tokens) >= spec.vocabulary:
        wrong = next(token for token in tokens if not 0 <= token < spec.vocabulary)
        raise InvalidRequest(
            f"token {wrong} is not in this model's vocabulary of {spec.vocabulary} tokens"
        )
