"""Decoders of all forms answer as a plain loop does, and keep their cache in place."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from functions.adapters.language.decoder import Decoder
from functions.adapters.language.key_values import KeyValues
from functions.adapters.language.tokenizer import HfTokenizer, load_tokenizer
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.errors import InvalidModel, InvalidRequest, TimedOut
from functions.core.language.generation import Generator
from functions.core.language.ports import Options, Piece
from functions.core.language.spec import Kind, LanguageSpec, Layout
from functions.core.records import replace
from functions.core.watchdog import Run, Watchdog
from tests.language_models import (
    CONTEXT,
    DECODERS,
    HEAD_SIZE,
    KV_HEADS,
    LAYERS,
    decoder_model,
    decoder_tokenizer,
    encoder_model,
    reference_greedy,
)

SPEC = LanguageSpec(
    kind=Kind.DECODER,
    vocabulary=300,
    context=CONTEXT,
    layers=LAYERS,
    kv_heads=KV_HEADS,
    head_size=HEAD_SIZE,
)
TOKEN_BYTES = SPEC.cache_bytes_per_token
MANY = 64 * 1024 * 1024
RUNTIME = OnnxRuntime()
PROMPT = [299, 290, 289, 223, 276, 265, 69, 71, 274] * 8  # longer than a chunk


class Model:
    """Decoder of one form, with its file's bytes and the reference's reply to PROMPT."""

    def __init__(self, name: str, folder: Path) -> None:
        self.data = decoder_model(**DECODERS[name])
        self.path = folder / f"{name}.onnx"
        self.path.write_bytes(self.data)
        layout = Layout.STACKED if "stacked" in name else Layout.NAMED
        self.spec = replace(SPEC, layout=layout)
        self.reply = reference_greedy(self.data, PROMPT, 200)

    def decoder(self, **changes: Any) -> Decoder:
        spec = replace(self.spec, **changes)
        decoder = Decoder(RUNTIME, RUNTIME.load(self.path), spec)
        decoder.chunk = 32
        return decoder


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def gqa(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model("gqa", tmp_path_factory.mktemp("gqa"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(decoder_tokenizer())
    return load_tokenizer(path)


def generator(
    decoder: Decoder, tokenizer: HfTokenizer, cache_bytes: int = MANY, **changes: Any
) -> Generator[KeyValues]:
    return Generator(decoder, tokenizer, replace(SPEC, **changes), cache_bytes)


def soon() -> float:
    return time.monotonic() + 300


def tokens(pieces: Iterator[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.tokens]


def greedy(replies: Generator[KeyValues], prompt: list[int], count: int) -> list[int]:
    return tokens(replies.generate(prompt, Options(count, temperature=0), deadline=soon()))


def test_greedy_tokens_are_the_references_with_and_without_cached_prefixes(
    model: Model, tokenizer: HfTokenizer
) -> None:
    replies = generator(model.decoder(), tokenizer)

    assert greedy(replies, PROMPT, 200) == model.reply
    # the conversation's next turn, an equal prompt, one that diverges in the middle
    turn = PROMPT + model.reply[:100]
    assert replies.prefixes.match(turn) == len(turn) - 1
    assert greedy(replies, turn, 100) == model.reply[100:]
    assert greedy(replies, PROMPT, 50) == model.reply[:50]
    other = [*turn[:120], *([7, 8, 9] * 20)]
    assert replies.prefixes.match(other) == 120
    assert greedy(replies, other, 100) == reference_greedy(model.data, other, 100)
    assert greedy(replies, turn, 100) == model.reply[100:]


def test_the_cache_is_shared_where_the_graph_allows_it(model: Model) -> None:
    decoder = model.decoder()

    assert decoder.shared == model.path.name.startswith("gqa")
    assert decoder.size_bytes(64) == 64 * TOKEN_BYTES * (1 if decoder.shared else 2)


def test_a_shared_cache_stays_where_it_is(gqa: Model) -> None:
    decoder = gqa.decoder()
    cache = decoder.make(300)
    address, values = cache._current.address, list(cache.inputs())

    for token in PROMPT:
        decoder.run(cache, [token], 10)

    assert (cache._current.address, list(cache.inputs())) == (address, values)
    assert cache._spare is None


def test_graphs_that_join_caches_answer_the_same_unshared(
    gqa: Model, tokenizer: HfTokenizer
) -> None:
    decoder = gqa.decoder(shared_cache=False)

    assert not decoder.shared
    assert greedy(generator(decoder, tokenizer), PROMPT, 200) == gqa.reply


def test_one_seed_gives_one_text_in_every_model_and_after_a_reload(
    gqa: Model, tokenizer: HfTokenizer
) -> None:
    options = Options(100, seed=11, top_p=0.95)
    texts = set()
    for _ in range(2):
        replies = generator(gqa.decoder(), tokenizer)
        for _ in range(2):  # the second time with a cached prefix
            pieces = replies.generate(PROMPT, options, deadline=soon())
            texts.add("".join(piece.text for piece in pieces))

    assert len(texts) == 1


def test_pieces_join_to_the_text_of_their_tokens(gqa: Model, tokenizer: HfTokenizer) -> None:
    replies = generator(gqa.decoder(), tokenizer)

    pieces = list(replies.generate(PROMPT, Options(200, temperature=0), deadline=soon()))

    whole = tokenizer.decode(gqa.reply)
    text = "".join(piece.text for piece in pieces)
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}  # half a character
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert len(pieces) > 50


def test_a_reply_ends_at_a_token_that_ends_replies(gqa: Model, tokenizer: HfTokenizer) -> None:
    eos = gqa.reply[30]
    at = gqa.reply.index(eos)
    replies = generator(gqa.decoder(), tokenizer, eos=(eos,))

    pieces = list(replies.generate(PROMPT, Options(200, temperature=0), deadline=soon()))
    ignoring = Options(200, temperature=0, ignore_eos=True)

    assert pieces[-1].finish == "stop"
    assert tokens(iter(pieces)) == gqa.reply[: at + 1]
    text = "".join(piece.text for piece in pieces)
    assert tokenizer.decode(gqa.reply[:at]).startswith(text)
    assert tokens(replies.generate(PROMPT, ignoring, deadline=soon())) == gqa.reply


def test_a_reply_ends_before_a_stop_string(gqa: Model, tokenizer: HfTokenizer) -> None:
    whole = tokenizer.decode(gqa.reply[:150])
    stop = whole[60:64]
    options = Options(200, temperature=0, stop=("not there", stop))
    replies = generator(gqa.decoder(), tokenizer)

    pieces = list(replies.generate(PROMPT, options, deadline=soon()))

    assert pieces[-1].finish == "stop"
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]


def test_log_probabilities_come_with_each_token(gqa: Model, tokenizer: HfTokenizer) -> None:
    options = Options(20, temperature=0, logprobs=2)
    replies = generator(gqa.decoder(), tokenizer)

    pieces = list(replies.generate(PROMPT, options, deadline=soon()))

    scores = [score for piece in pieces for score in piece.scores]
    assert [score.token for score in scores] == gqa.reply[:20]
    assert all(score.top[0] == (score.token, score.logprob) for score in scores)


class Vowels:
    """Grammar of one vowel after another, up to three."""

    def __init__(self, allowed: list[int]) -> None:
        self._mask = bytearray(38)
        for token in allowed:
            self._mask[token // 8] |= 1 << token % 8
        self.accepted: list[int] = []

    def mask(self) -> bytes:
        return bytes(self._mask)

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def complete(self) -> bool:
        return len(self.accepted) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_limits_and_ends_a_reply(
    gqa: Model, tokenizer: HfTokenizer, temperature: float
) -> None:
    grammar = Vowels(allowed := [token for vowel in "aeiou" for token in tokenizer.encode(vowel)])
    replies = generator(gqa.decoder(), tokenizer)

    pieces = list(
        replies.generate(
            PROMPT, Options(50, temperature=temperature), deadline=soon(), grammar=grammar
        )
    )

    assert pieces[-1].finish == "stop"
    assert tokens(iter(pieces)) == grammar.accepted
    assert set(grammar.accepted) <= set(allowed)
    assert len("".join(piece.text for piece in pieces)) == 3


def test_the_context_limits_prompt_and_reply(gqa: Model, tokenizer: HfTokenizer) -> None:
    replies = generator(gqa.decoder(), tokenizer)
    prompt = (PROMPT * 20)[: CONTEXT - 5]

    assert len(greedy(replies, prompt, 100)) == 5
    with pytest.raises(InvalidRequest, match="1024 tokens, and this .* length is 1024 tokens"):
        replies.generate((PROMPT * 20)[:CONTEXT], Options(1), deadline=soon())
    with pytest.raises(InvalidRequest, match="token 300 is not in .* vocabulary of 300"):
        replies.generate([1, 300], Options(1), deadline=soon())
    with pytest.raises(InvalidRequest, match="no tokens"):
        replies.generate([], Options(1), deadline=soon())


def test_a_deadline_ends_a_reply_between_tokens(gqa: Model, tokenizer: HfTokenizer) -> None:
    times = iter(range(1000))
    replies = Generator(gqa.decoder(), tokenizer, SPEC, MANY, clock=lambda: float(next(times)))

    # three chunks of the prompt, then a token a second
    pieces = list(replies.generate(PROMPT, Options(200, temperature=0), deadline=12.0))

    assert pieces[-1].finish == "timeout"
    assert tokens(iter(pieces)) == gqa.reply[:10]


def test_a_caller_who_is_gone_ends_a_reply_and_its_tokens_stay_cached(
    gqa: Model, tokenizer: HfTokenizer
) -> None:
    replies = generator(gqa.decoder(), tokenizer)
    pieces: list[Piece] = []

    for piece in replies.generate(
        PROMPT, Options(200, temperature=0), deadline=soon(), cancelled=lambda: len(pieces) > 9
    ):
        pieces.append(piece)

    assert 9 < len(pieces) < 12
    assert replies.prefixes.match(PROMPT + gqa.reply) >= len(PROMPT) + 9
    assert greedy(replies, PROMPT, 200) == gqa.reply


def test_a_closed_reply_gives_its_memory_back(gqa: Model, tokenizer: HfTokenizer) -> None:
    replies = generator(gqa.decoder(), tokenizer, cache_bytes=512 * TOKEN_BYTES)
    pieces = replies.generate(PROMPT, Options(400, temperature=0), deadline=soon())
    next(pieces)
    with pytest.raises(MemoryError, match="do not fit"):
        next(replies.generate(PROMPT, Options(400, temperature=0), deadline=soon()))

    pieces.close()  # type: ignore[attr-defined]

    assert len(greedy(replies, PROMPT, 400)) == 400


def test_replies_take_turns(gqa: Model, tokenizer: HfTokenizer) -> None:
    replies = generator(gqa.decoder(), tokenizer)
    other = PROMPT[::-1]
    both = [
        replies.generate(prompt, Options(60, temperature=0), deadline=soon())
        for prompt in (PROMPT, other)
    ]
    mixed: list[list[int]] = [[], []]

    for pieces in zip(*both, strict=False):
        for at, piece in enumerate(pieces):
            mixed[at].extend(piece.tokens)

    assert len(mixed[0]) > 20
    assert mixed[0] == gqa.reply[: len(mixed[0])]
    assert mixed[1] == reference_greedy(gqa.data, other, 60)[: len(mixed[1])]


class Impatient(Watchdog):
    """Watchdog that stops runs without time as they start."""

    def watch(self, run: Run, timeout_s: float) -> None:
        super().watch(run, timeout_s)
        if timeout_s <= 0:
            run.terminate()


def test_a_stopped_run_leaves_the_sequence_as_it_was(model: Model) -> None:
    runtime = OnnxRuntime(1, Impatient())
    decoder = Decoder(runtime, runtime.load(model.path), model.spec)
    cache = decoder.make(200)
    decoder.run(cache, PROMPT[:40], 10)

    with pytest.raises(TimedOut):
        decoder.run(cache, PROMPT[40:], 0.0)

    assert cache.tokens == PROMPT[:40]
    logits = decoder.run(cache, PROMPT[40:], 10)
    assert logits.best() == model.reply[0]


def test_a_run_without_memory_fails_alone(
    gqa: Model, tokenizer: HfTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = gqa.decoder()
    replies = generator(decoder, tokenizer)
    pieces = replies.generate(PROMPT, Options(200, temperature=0), deadline=soon())
    first = next(pieces)

    def starve(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as starved:
        starved.setattr(decoder._runs, "run", starve)
        with pytest.raises(MemoryError):
            list(pieces)

    assert replies.prefixes.match([*PROMPT, *first.tokens, 1]) >= len(PROMPT)
    assert greedy(replies, PROMPT, 200) == gqa.reply


def test_memory_that_the_system_refuses_is_a_memory_error(gqa: Model) -> None:
    with pytest.raises(MemoryError):
        gqa.decoder().make(2**50)


def changed(change: Callable[[Any], object]) -> bytes:
    model = onnx.load_from_string(decoder_model())
    change(model.graph)
    data: bytes = model.SerializeToString()
    return data


def rename_mask(graph: Any) -> None:
    graph.input[1].name = "strange"
    for node in graph.node:
        node.input[:] = ["strange" if name == "attention_mask" else name for name in node.input]


WRONG: Mapping[str, tuple[bytes, str]] = {
    "an encoder": (encoder_model(), "no inputs past"),
    "no logits": (changed(lambda graph: graph.output.pop(0)), "no output logits"),
    "half a cache": (changed(lambda graph: graph.output.pop()), "past_key_values.1.value"),
    "an unknown input": (changed(rename_mask), "strange"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_models_are_refused(name: str, tmp_path: Path) -> None:
    data, message = WRONG[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)

    with pytest.raises(InvalidModel, match=message):
        Decoder(RUNTIME, RUNTIME.load(path), SPEC)
