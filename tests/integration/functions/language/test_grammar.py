"""Grammars of JSON schemas: valid replies, limits on hostile schemas, cache."""

import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from functions.adapters.language import grammar as grammars
from functions.adapters.language.grammar import GrammarCompiler, ReplyGrammar
from functions.core.errors import InvalidRequest
from functions.core.language.ports import SCHEMA_OVERTIME, Calls
from functions.core.openai.tool_calls import ANY_OBJECT

EOS, OTHER_SPECIAL = 256, 257
WORDS = [b'{"', b'": ', b"true", b"null", b"}}", "é".encode()]
VOCABULARY = 258 + len(WORDS) + 10  # the model's is larger than the tokenizer's


class Bytes:
    """Tokenizer of bytes, two special tokens and a few words."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def encode_pair(self, first: str, second: str) -> list[int]:
        return self.encode(first + second)

    def decode(self, tokens: Any) -> str:
        return b"".join(map(self.token_bytes, tokens)).decode()

    def token_bytes(self, token: int) -> bytes:
        if token < EOS:
            return bytes([token])
        at = token - 258
        return WORDS[at] if 0 <= at < len(WORDS) else b""


def walk(grammar: ReplyGrammar, seed: int, most: int = 400, end: float = 0.3) -> str | None:
    """Return a random reply that the grammar allows, None if it does not end.

    Where it may end, it does so with the probability `end`.
    """
    chance, tokens = random.Random(seed), []  # noqa: S311
    while len(tokens) < most:
        mask = grammar.mask()
        allowed = [token for token in range(VOCABULARY) if mask[token >> 3] >> (token & 7) & 1]
        assert not {OTHER_SPECIAL, *range(258 + len(WORDS), VOCABULARY)} & {*allowed}
        if grammar.complete or allowed == [EOS] or (EOS in allowed and chance.random() < end):
            return Bytes().decode(tokens)
        token = chance.choice([token for token in allowed if token != EOS])
        grammar.accept(token)
        tokens.append(token)
    return None


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(Bytes(), VOCABULARY, [EOS])


def schemas() -> list[dict[str, Any]]:
    """Return a hundred schemas of objects."""
    chance = random.Random(7)  # noqa: S311

    def value(depth: int) -> dict[str, Any]:
        kinds = ["integer", "boolean", "null", "enum", "const", "string", "number"]
        kind = chance.choice([*kinds, "object", "array"] if depth else kinds)
        if kind == "enum":
            return {"enum": [chance.randrange(9), "a", "é", None][: chance.randrange(1, 5)]}
        if kind == "const":
            return {"const": chance.choice([True, "yes", 3])}
        if kind == "string":
            return {"type": "string", "maxLength": chance.randrange(1, 9)}
        if kind in ("integer", "number"):
            return {"type": kind, "minimum": -5, "maximum": chance.randrange(100)}
        if kind == "array":
            return {"type": "array", "items": value(depth - 1), "maxItems": chance.randrange(1, 4)}
        return fields(depth - 1) if kind == "object" else {"type": kind}

    def fields(depth: int) -> dict[str, Any]:
        names = [f"field{at}" for at in range(chance.randrange(1, 4))]
        properties = {name: value(depth) for name in names}
        required = [name for name in names if chance.random() < 0.7]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    return [fields(2) for _ in range(100)]


def test_replies_that_end_are_valid_by_a_hundred_schemas(compiler: GrammarCompiler) -> None:
    ended = 0
    for seed, schema in enumerate(schemas()):
        reply = walk(compiler.compile(schema), seed)
        if reply is not None:
            Draft202012Validator(schema).validate(json.loads(reply))
            ended += 1

    assert ended > 90


def test_any_object_is_a_schema(compiler: GrammarCompiler) -> None:
    replies = [walk(compiler.compile(ANY_OBJECT), seed) for seed in range(20)]

    assert {type(json.loads(reply)) for reply in replies if reply} == {dict}


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "é"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("several", [True, False])
def test_every_call_in_a_random_text_is_valid(compiler: GrammarCompiler, several: bool) -> None:
    calls = Calls((("weather", CITY), ("é_2", CITY)), "[", "]", several=several)
    names, most = set(), 0
    for seed in range(100):
        reply = walk(compiler.compile_calls(calls, None), seed, 3000, end=0.005)
        if reply is None or reply.lstrip().startswith('{"name'):
            continue
        _, *marked = reply.split("[")
        for part in marked:
            call, end = json.JSONDecoder().raw_decode(part.removeprefix("\n"))
            assert part[0] == "\n"
            assert part[1 + end :].startswith("\n]")
            assert several or part.endswith("\n]")
            Draft202012Validator(CITY).validate(call["arguments"])
            names.add(call["name"])
        most = max(most, len(marked))

    assert names == {"weather", "é_2"}
    assert (most > 1) == several


def test_any_token_that_ends_a_reply_may_end_a_text() -> None:
    compiler = GrammarCompiler(Bytes(), VOCABULARY, [EOS, OTHER_SPECIAL])
    calls = Calls((("weather", CITY),), "[", "]")
    for end in (EOS, OTHER_SPECIAL):
        grammar = compiler.compile_calls(calls, None)
        grammar.accept(ord("a"))
        assert grammar.mask()[end >> 3] >> (end & 7) & 1
        grammar.accept(end)
        assert grammar.complete
    grammar = compiler.compile_calls(calls, None)
    grammar.accept(ord("["))
    assert not grammar.mask()[EOS >> 3] & 3  # neither within a call


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"not": {}}])
def test_a_function_whose_schema_cannot_be_followed_is_named(
    compiler: GrammarCompiler, schema: Any
) -> None:
    with pytest.raises(InvalidRequest, match="odd: the JSON schema"):
        compiler.compile_calls(Calls((("weather", CITY), ("odd", schema)), "[", "]"), None)


def test_a_reply_is_complete_when_nothing_may_follow(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile({"const": 1})
    assert not grammar.complete
    grammar.accept(ord("1"))
    assert grammar.complete


def test_a_token_that_the_mask_forbids_is_an_error(compiler: GrammarCompiler) -> None:
    with pytest.raises(ValueError, match="token 120"):
        compiler.compile(ANY_OBJECT).accept(ord("x"))


def test_a_recursive_schema_makes_nested_replies(compiler: GrammarCompiler) -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
        "required": ["next"],
        "additionalProperties": False,
    }
    schema = {"$defs": {"node": node}, "$ref": "#/$defs/node"}
    replies = [
        json.loads(reply) for seed in range(30) if (reply := walk(compiler.compile(schema), seed))
    ]

    assert any(reply["next"] for reply in replies)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "#"}, "refers to itself for ever"),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "refers to itself for ever"),
        ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "circular references"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"type": "foo"}, "Invalid type: foo"),
        ({"not": {}}, "not"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use anyOf"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "http://example.org/x.json"}, "does not fetch"),
        ({"enum": ["x" * 100] * 1000}, "limit is 65536"),
        ({"allOf": [{"pattern": f"a{{{n}}}"} for n in range(1, 101)]}, "100 different patterns"),
        ({"patternProperties": {f"^a{n}.*b": {} for n in range(1000)}}, "1000 different patterns"),
        ({"type": "integer", "multipleOf": 1_000_003}, "at most 1000"),
        ({"type": "number", "multipleOf": 1_000_003.0}, "at most 1000"),
        ({"type": "number", "multipleOf": 999.999}, "at most 1000, also without its decimal point"),
        (
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(4)]}
                    for i in range(12)
                ]
            },
            "too large",
        ),
        (["object"], "schema"),
        ({"type": "object", "x-guidance": {"lenient": True}, "not": {}}, "not"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    compiler: GrammarCompiler, schema: Any, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        compiler.compile(schema)


@pytest.mark.parametrize("multiple", [0.25, 1000.0, 7e-07, 99.9])
def test_multiples_of_few_digits_are_followed(compiler: GrammarCompiler, multiple: float) -> None:
    assert compiler.compile({"type": "number", "multipleOf": multiple}).mask()


def test_a_compilation_that_takes_too_long_is_given_up(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.compile(ANY_OBJECT)
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 0.05)
    monkeypatch.setattr(grammars, "_compiled", lambda *_: time.sleep(1))

    with pytest.raises(InvalidRequest, match="too long to compile") as raised:
        compiler.compile({"const": "slow"})
    assert raised.value.instance_code == SCHEMA_OVERTIME


def test_a_schema_is_compiled_once(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"const": "once"}
    first = compiler.compile(schema)
    first.accept(ord('"'))
    monkeypatch.setattr(grammars, "_compiled", None)

    assert walk(compiler.compile(schema), 1) == '"once"'


def test_a_schema_is_compiled_for_each_owner(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"const": "once"}
    compiled: list[str] = []
    compile_grammar = grammars._compiled

    def count(trie: Any, grammar: str) -> tuple[Any, str]:
        compiled.append(grammar)
        return compile_grammar(trie, grammar)

    monkeypatch.setattr(grammars, "_compiled", count)
    for owner in ("anna", "bob", "anna"):
        assert walk(compiler.compile(schema, owner), 1) == '"once"'
    assert len(compiled) == 2


def chain(step: Callable[[dict[str, Any]], dict[str, Any]], length: int) -> dict[str, Any]:
    """Return a schema that refers to a definition, which refers to the next one."""
    links = [step({"$ref": f"#/_{at}"}) for at in range(length)]
    schema = {f"_{at - 1}": link for at, link in enumerate(links) if at}
    return {**links[0], **schema, f"_{length - 1}": {"type": "null"}}


@pytest.mark.parametrize(
    ("step", "length"),
    [
        (lambda next_: next_, 2200),
        (lambda next_: {"properties": {"a": next_}}, 1250),
        (lambda next_: {"items": {"anyOf": [{"items": {"anyOf": [next_]}}]}}, 800),
    ],
)
def test_a_long_chain_of_references_does_not_overflow_the_stack(
    compiler: GrammarCompiler, step: Any, length: int
) -> None:
    schema = chain(step, length)
    assert 50_000 < len(json.dumps(schema)) < grammars.SCHEMA_BYTES_MAX
    refusal = ""
    try:
        compiler.compile(schema)
    except InvalidRequest as error:
        refusal = str(error)

    assert refusal == "" or "stack level exceeded" in refusal  # and the process has not ended


def test_a_schema_without_memory_for_its_compilation_is_a_memory_error(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread, stack_bytes: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(grammars, "start_thread", refuse)
    with pytest.raises(MemoryError):
        compiler.compile({"const": "no memory"})


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the grammars that are compiled."""
    grammars_compiled: list[str] = []
    compile_grammar = grammars._compiled

    def count(trie: Any, grammar: str) -> tuple[Any, str]:
        grammars_compiled.append(grammar)
        return compile_grammar(trie, grammar)

    monkeypatch.setattr(grammars, "_compiled", count)
    return grammars_compiled


def test_more_functions_than_cached_schemas_are_compiled_once(
    compiler: GrammarCompiler, compiled: list[str]
) -> None:
    functions = tuple((f"f{at}", {"const": at}) for at in range(2 * grammars.SCHEMAS))
    for _ in range(2):
        assert compiler.compile_calls(Calls(functions, "[", "]"), None).mask()

    assert len(compiled) == len(functions) + 1


def test_few_large_schemas_are_cached_and_many_small_ones(
    compiler: GrammarCompiler, compiled: list[str]
) -> None:
    large = [{"enum": [f"{at:060000}"]} for at in range(6)]
    small = [{"const": f"small {at}"} for at in range(grammars.SCHEMAS)]
    for schemas, kept in ((large, 4), (small, len(small))):
        for schema in schemas:
            compiler.compile(schema, "cache")
        compiled.clear()
        for schema in schemas[-kept:]:
            compiler.compile(schema, "cache")
        assert not compiled
        if kept < len(schemas):
            compiler.compile(schemas[0], "cache")
            assert len(compiled) == 1


def test_a_refused_schema_is_refused_again_without_a_compilation(
    compiler: GrammarCompiler, compiled: list[str]
) -> None:
    calls = Calls((("odd", {"type": "object", "not": {"const": 1}}),), "[", "]")
    refusals = []
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="odd: the JSON schema") as raised:
            compiler.compile_calls(calls, None, "anna")
        refusals.append(raised.value)

    assert len(compiled) == 1
    assert str(refusals[0]) == str(refusals[1])
    assert refusals[0] is not refusals[1]  # its traceback would keep the request


def test_schemas_that_are_too_large_together_are_not_compiled(
    compiler: GrammarCompiler, compiled: list[str]
) -> None:
    half = {"enum": ["x" * 100] * 400}
    functions = (("first", half), ("second", half))

    with pytest.raises(InvalidRequest, match="limit is 65536"):
        compiler.compile_calls(Calls(functions, "[", "]"), None)
    assert not compiled


def test_schemas_of_functions_share_the_time_of_one(
    compiler: GrammarCompiler, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", -1)  # over before the first

    with pytest.raises(InvalidRequest, match="all functions take too long") as raised:
        compiler.compile_calls(Calls((("weather", CITY),), "[", "]"), None, "bob")
    assert raised.value.instance_code != SCHEMA_OVERTIME  # nothing goes on
    assert not compiled
