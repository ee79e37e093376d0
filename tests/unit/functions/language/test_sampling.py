"""Sampling against numpy: options, distribution, seeds, penalties, log probabilities."""

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core.language.ports import Options
from functions.core.language.sampling import LOGPROB_MIN, Candidates, Sampler, pick


class NumpyLogits:
    """Logits in an array; `asked` lists how many of the likeliest were asked for."""

    def __init__(self, values: Any) -> None:
        self.values = array("f", values)
        self.asked: list[int] = []
        self._allowed = np.ones(len(self.values), bool)

    def _masked(self) -> Any:
        return np.where(self._allowed, np.array(self.values), -np.inf)

    def best(self) -> int:
        return int(np.argmax(self._masked()))

    def top(self, count: int, scale: float = 1.0) -> Candidates:
        self.asked.append(count)
        logits = self._masked() * scale
        order = np.argsort(-logits, kind="stable")[:count]
        with np.errstate(invalid="ignore"):
            normaliser = float(np.logaddexp.reduce(logits.astype(np.float64)))
        return Candidates(order.tolist(), logits[order].tolist(), normaliser)

    def restrict(self, mask: bytes) -> None:
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        self._allowed = bits[: len(self.values)].astype(bool)


def expected(values: Any, options: Options) -> Mapping[int, float]:
    """Return each token's probability, computed over the whole vocabulary."""
    scaled = np.asarray(values, np.float64) / options.temperature
    chances = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    order = np.argsort(-chances, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    kept = chances[order]
    if options.top_p < 1:
        order = order[: int(np.searchsorted(kept.cumsum(), options.top_p * kept.sum())) + 1]
    order = order[chances[order] >= options.min_p * chances[order[0]]]
    return dict(zip(order.tolist(), (chances[order] / chances[order].sum()).tolist(), strict=True))


CHOICES = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 2.0, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_tokens_come_with_the_probabilities_that_numpy_computes(choice: dict[str, Any]) -> None:
    values = np.random.default_rng(1).normal(0, 2, 40)
    options = Options(1, **choice)
    top = NumpyLogits(values).top(40, 1 / options.temperature)
    draws = 20_000

    counts = Counter(pick(top, options, (at + 0.5) / draws, whole=True) for at in range(draws))

    chances = expected(values, options)
    assert set(counts) <= set(chances)
    for token, chance in chances.items():
        assert abs(counts[token] / draws - chance) < 2 / draws


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spread=st.floats(0.0, 8.0),
    number=st.floats(0, 1, exclude_max=True),
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 700),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
def test_few_candidates_give_the_same_token_as_all(
    seed: int,
    spread: float,
    number: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    values = np.random.default_rng(seed).normal(0, spread, 600)
    options = Options(1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = NumpyLogits(values)
    whole = pick(logits.top(600, 1 / temperature), options, number, whole=True)

    for count in (1, 16, 256):
        token = pick(logits.top(count, 1 / temperature), options, number, whole=False)
        if token is not None and token != whole:  # apart by rounding alone
            chances = expected(values, options)
            sums = np.cumsum(list(chances.values()))
            assert np.abs(sums - number).min() < 1e-9


def test_more_tokens_are_asked_for_where_few_do_not_decide() -> None:
    logits = NumpyLogits(np.zeros(5000))

    chosen = {Sampler(Options(1, seed=seed)).choose(logits).token for seed in range(50)}

    assert len(chosen) > 40
    assert set(logits.asked) == {256, 4096, 5000}


def test_a_seed_gives_the_same_tokens_in_every_release() -> None:
    values = np.random.default_rng(2).normal(0, 1, 1000)

    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(Options(1, seed=seed))
        return [sampler.choose(NumpyLogits(values)).token for _ in range(8)]

    assert tokens(7) == tokens(7) == [667, 934, 600, 441, 867, 218, 625, 174]
    assert tokens(-7) != tokens(7)
    assert tokens(None) != tokens(None)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    values = np.random.default_rng(3).normal(0, 1, 100)

    for temperature in (0.0, 1e-9):
        score = Sampler(Options(1, temperature=temperature)).choose(NumpyLogits(values))
        assert score.token == values.argmax()


def test_penalties_count_the_tokens_of_the_reply() -> None:
    options = Options(9, temperature=0, presence_penalty=1.0, frequency_penalty=0.5)
    sampler = Sampler(options)

    tokens = [sampler.choose(NumpyLogits([3.0, 2.0, 0.0])).token for _ in range(4)]

    # 3 against 2; then 1.5 against 2; 1.5 against 0.5; 1.0 against 0.5
    assert tokens == [0, 1, 0, 0]


def test_biases_allow_and_forbid_tokens() -> None:
    banned = Options(1, temperature=0, logit_bias={0: -100.0, 99: 5.0, -1: 5.0})
    chosen = Options(1, logit_bias={2: 100.0})

    assert Sampler(banned).choose(NumpyLogits([3.0, 2.0, 0.0])).token == 1
    assert Sampler(chosen).choose(NumpyLogits([3.0, 2.0, 0.0])).token == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_leaves_its_tokens_alone(temperature: float) -> None:
    options = Options(1, temperature=temperature, seed=1)
    sampler = Sampler(options)

    tokens = {sampler.choose(NumpyLogits(range(20)), b"\x00\x81\x00").token for _ in range(50)}

    assert tokens <= {8, 15}


def test_log_probabilities_are_the_models_own() -> None:
    values = np.random.default_rng(4).normal(0, 2, 50)
    options = Options(
        1, temperature=0.3, top_k=1, logit_bias={5: 50.0}, presence_penalty=1.0, logprobs=3
    )
    logprobs = values - np.logaddexp.reduce(values)
    order = np.argsort(-values)[:3]

    score = Sampler(options).choose(NumpyLogits(values))

    assert score.token == 5
    assert score.logprob == pytest.approx(logprobs[5], abs=1e-5)
    assert [token for token, _ in score.top] == order.tolist()
    assert [each for _, each in score.top] == pytest.approx(logprobs[order], abs=1e-5)


def test_zero_alternatives_report_the_chosen_token_alone() -> None:
    score = Sampler(Options(1, logprobs=0, temperature=0)).choose(NumpyLogits([1.0, 1.0]))

    assert score.top == ()
    assert score.logprob == pytest.approx(-math.log(2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_that_gives_no_numbers_still_ends(value: float) -> None:
    for options in (Options(1), Options(1, temperature=0), Options(1, top_p=0.5, logprobs=2)):
        score = Sampler(options).choose(NumpyLogits([value] * 10))
        assert 0 <= score.token < 10
        assert LOGPROB_MIN <= score.logprob <= 0
