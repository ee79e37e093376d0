"""Grammars of JSON schemas and of calls, compiled by llguidance.

A schema comes from a caller, so its size and its regular expressions are limited: the intersection
of a dozen takes half a second, and of more, hours. A compilation that takes too long all the same
is given up; it cannot be stopped, so the environment has to end. llguidance is imported by the
first schema, as most requests have none (docs/decisions/0053-the-generate-function.md).
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from functions.adapters.language.call_grammar import write_grammar
from functions.core.errors import InvalidRequest, copy_error
from functions.core.language.ports import SCHEMA_OVERTIME, Calls, Grammar, Tokenizer
from functions.core.threads import start_thread

SCHEMA_BYTES_MAX = 65536  # longest schema as JSON
EXPRESSIONS_MAX = 10  # distinct regular expressions in a schema; its formats are such, too
MULTIPLE_MAX = 1000  # largest multipleOf, and its digits: states of its automaton
COMPILE_SECONDS = 2.0  # twenty times what the slowest schema within the limits took
# A chain of references is compiled by recursion: the longest within SCHEMA_BYTES_MAX took 16 to 32
# MB, and a stack that overflows ends the process.
STACK_BYTES = 64 * 1024 * 1024
SCHEMAS = 32  # compiled or refused schemas in the cache
CACHE_CHARACTERS = 1 << 18  # cached schemas in all: 60,000 compiled take up to 9 MB of memory
# A tenth of llguidance's own limit, which allows seconds.
GRAMMAR_SIZE_MAX = 50_000
LEXER_FUEL_MAX = 1_000_000
# A model that is free to write white space may never write anything else.
_OPTIONS: Any = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
_COERCE = "Enable 'coerce_one_of' option to approximate oneOf with anyOf"


class ReplyGrammar:
    """Constraint on one reply, which any of the tokens `eos` may end."""

    def __init__(self, matcher: Any, eos: Sequence[int]) -> None:
        self._matcher = matcher
        self._eos = eos

    def mask(self) -> bytes:
        """Return the tokens that may come next, as bits, lowest first.

        Raises:
            InvalidRequest: the schema needs too much work at this place.
        """
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise InvalidRequest("the JSON schema is too complex for this reply: simplify it")
        if len(self._eos) > 1 and mask[self._eos[0] >> 3] >> (self._eos[0] & 7) & 1:
            bits = bytearray(mask)
            for token in self._eos[1:]:  # llguidance knows one
                bits[token >> 3] |= 1 << (token & 7)
            return bytes(bits)
        return mask

    def accept(self, token: int) -> None:
        """Continue after a token of the reply.

        Raises:
            ValueError: `mask` does not allow the token.
        """
        if token in self._eos:
            token = self._eos[0]
        if not self._matcher.consume_token(token):
            raise ValueError(f"the grammar does not allow token {token}")

    @property
    def complete(self) -> bool:
        """True if nothing may follow."""
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Compiler of grammars for one tokenizer, with a cache.

    `vocabulary` counts the model's tokens, which may be more than the tokenizer's. `eos` are the
    tokens that end a reply. A schema is cached for its owner alone: a shorter time would tell one
    caller which schemas another one sends.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._eos = list(eos)
        # Matcher or refusal by owner and schema, oldest use first
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def compile(self, schema: Mapping[str, Any], owner: str = "") -> Grammar:
        """Return a grammar of the replies that a JSON schema allows.

        `owner` is the caller whose request it is.

        Raises:
            InvalidRequest: the schema is invalid, unsupported, too large, or allows nothing.
            MemoryError: there is none for the compilation.
        """
        text = json.dumps(schema)
        return self._compile(text, text, owner, lambda: self._matcher(_json_grammar(text)))

    def compile_calls(
        self, calls: Calls, schema: Mapping[str, Any] | None, owner: str = ""
    ) -> Grammar:
        """Return a grammar of text with calls of functions.

        With a schema, the reply is JSON that it allows, or calls.

        Raises:
            InvalidRequest: a schema cannot be used, as `compile` says, or all together.
            MemoryError: there is none for the compilation.
        """
        source = write_grammar(calls, schema, _OPTIONS)

        def compile_all() -> Any:
            self._check_alone(calls)
            return self._matcher(_lark_grammar(source))

        return self._compile(source, json.dumps(calls.functions), owner, compile_all)

    def _compile(
        self, source: str, schemas: str, owner: str, compile_source: Callable[[], Any]
    ) -> Grammar:
        result = self._compiled.pop((owner, source), None)
        if result is None:
            _check_size(schemas)
            try:
                result = compile_source()
            except InvalidRequest as error:
                if error.instance_code == SCHEMA_OVERTIME:  # on a quieter machine it may succeed
                    raise
                result = error
        self._compiled[owner, source] = result
        while (
            len(self._compiled) > SCHEMAS
            or sum(len(text) for _, text in self._compiled) > CACHE_CHARACTERS
        ):
            self._compiled.popitem(last=False)
        if isinstance(result, InvalidRequest):
            raise copy_error(result)
        return ReplyGrammar(result.deep_copy(), self._eos)

    def _check_alone(self, calls: Calls) -> None:
        """Check the functions' schemas one by one.

        Their parts of the grammar may come late in a reply, where it would be too late to refuse.

        Raises:
            InvalidRequest: one cannot be used, or all of them take too long.
        """
        end = time.monotonic() + COMPILE_SECONDS
        names = {json.dumps(parameters): name for name, parameters in calls.functions}
        for text, name in names.items():
            if time.monotonic() > end:
                raise InvalidRequest(
                    "the JSON schemas of all functions take too long to compile: send fewer, or "
                    "simplify them"
                )
            try:
                self._matcher(_json_grammar(text))
            except InvalidRequest as error:
                raise InvalidRequest(f"{name}: {error}", code=error.instance_code) from error

    def _matcher(self, grammar: str) -> Any:
        trie = self._trie
        compiled: list[Any] = []
        thread = threading.Thread(
            target=lambda: compiled.append(_compiled(trie, grammar)), name="grammar", daemon=True
        )
        try:
            start_thread(thread, STACK_BYTES)
        except RuntimeError as error:
            raise MemoryError("there is none for the thread that compiles a schema") from error
        thread.join(COMPILE_SECONDS)
        if thread.is_alive():
            raise InvalidRequest(
                "the JSON schema takes too long to compile: simplify its patterns and numbers",
                code=SCHEMA_OVERTIME,
            )
        [(matcher, refusal)] = compiled
        if refusal:
            raise InvalidRequest(refusal)
        return matcher

    @cached_property
    def _trie(self) -> Any:
        """Tokenizer in llguidance's form."""
        from llguidance import LLTokenizer, TokenizerWrapper

        tokens = _Tokens(self._tokenizer, self._vocabulary, self._eos)
        return LLTokenizer(
            TokenizerWrapper(tokens),
            n_vocab=self._vocabulary,
            eos_token=self._eos[0] if self._eos else None,
        )


class _Tokens:
    """Tokens as llguidance reads them: bytes, and numbers of special ones."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        texts = [tokenizer.token_bytes(token) for token in range(vocabulary)]
        self.eos_token_id = eos[0] if eos else 0
        self.special_token_ids = [token for token, text in enumerate(texts) if not text]
        self.tokens = [text or b"<special %d>" % token for token, text in enumerate(texts)]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), special=False)


def _check_size(text: str) -> None:
    """Check a JSON schema against the limits on what it may cost.

    Raises:
        InvalidRequest: it exceeds one.
    """
    if len(text) > SCHEMA_BYTES_MAX:
        raise InvalidRequest(
            f"the JSON schema has {len(text)} characters, and the limit is {SCHEMA_BYTES_MAX}"
        )
    expressions = set()
    for keyword, value in _keywords(json.loads(text)):
        if keyword in ("pattern", "format", "multipleOf"):
            expressions.add(f"{keyword} {value}")
        elif keyword == "patternProperties" and isinstance(value, dict):
            expressions |= value.keys()
        is_number = keyword == "multipleOf" and isinstance(value, int | float)
        if is_number and max(value, _digits(value)) > MULTIPLE_MAX:
            raise InvalidRequest(
                f"multipleOf in the JSON schema is at most {MULTIPLE_MAX}, also without its "
                "decimal point"
            )
    if len(expressions) > EXPRESSIONS_MAX:
        raise InvalidRequest(
            f"the JSON schema has {len(expressions)} different patterns, formats and multiples, "
            f"and the limit is {EXPRESSIONS_MAX}"
        )


def _digits(number: float) -> int:
    """Return a number's significant digits, as an integer.

    >>> [_digits(each) for each in (2.5, 1000.0, 7e-07, 999.999)]
    [25, 1, 7, 999999]
    """
    from decimal import Decimal  # only schemas with multipleOf need it

    digits = "".join(map(str, Decimal(str(number)).as_tuple().digits))
    return int(digits.rstrip("0") or "0")


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys with their values, at any depth."""
    remaining = [schema]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            yield from value.items()
            remaining += value.values()
        elif isinstance(value, list):
            remaining += value


def _lark_grammar(text: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_lark(text)


def _json_grammar(text: str) -> str:
    from llguidance import LLMatcher  # 60 ms of CPU, only for replies in JSON

    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
    except ValueError as error:
        raise InvalidRequest(f"the JSON schema is invalid: {error}") from error


def _compiled(trie: Any, grammar: str) -> tuple[Any, str]:
    """Return a grammar's matcher and the reason to refuse it, or ""."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_grammar_size=GRAMMAR_SIZE_MAX, initial_lexer_fuel=LEXER_FUEL_MAX, verbose_errors=False
    )
    matcher = LLMatcher(trie, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        reason = str(matcher.get_error()).partition("\n")[0].replace(_COERCE, "use anyOf")
        return matcher, f"the JSON schema is invalid or unsupported: {reason}"
    matcher.compute_bitmask()
    if matcher.is_error():
        return matcher, "the JSON schema allows no reply, or refers to itself for ever"
    return matcher, ""
