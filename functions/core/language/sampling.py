"""Choice of the next token from a model's logits.

The runtime finds the likeliest tokens and the normaliser, so that a few hundred numbers reach
Python instead of the vocabulary (docs/decisions/0051-the-decode-loop.md). The choice is exact all
the same: where the likeliest tokens do not decide it, more are asked for.
"""

import math
import random
from collections.abc import Mapping, MutableSequence, Sequence
from itertools import accumulate
from typing import Protocol

from functions.core.language.ports import Options, TokenScore
from functions.core.records import record

CANDIDATES = 256  # likeliest tokens that are looked at first
MORE = 16  # times as many are asked for where these do not decide
LOGPROB_MIN = -9999.0  # OpenAI's for a token that cannot come; JSON has no infinity
TEMPERATURE_MIN = 1e-4  # below, logits would overflow: the likeliest token is chosen


@record
class Candidates:
    """Likeliest tokens, likeliest first.

    The probability of a token is exp(logit - normaliser). Logits are divided by the temperature.
    """

    tokens: Sequence[int]
    logits: Sequence[float]
    normaliser: float


class Logits(Protocol):
    """Logits of the next token, valid until the model's next run."""

    values: MutableSequence[float]

    def best(self) -> int:
        """Return the token with the highest logit."""

    def top(self, count: int, scale: float = 1.0) -> Candidates:
        """Return the `count` likeliest tokens, of logits times `scale`."""

    def restrict(self, mask: bytes) -> None:
        """Let `best` and `top` choose tokens of the mask alone.

        It has the lowest bit first."""


class Sampler:
    """Chooser of one reply's tokens; with a seed, always the same ones.

    Temperature, top_k, top_p and min_p apply in this order. Log probabilities are the model's own,
    before all of these, penalties and biases.
    """

    def __init__(self, options: Options) -> None:
        seed = options.seed
        self._options = options
        # Python keeps this generator's numbers the same in all releases; it drops a seed's sign.
        self._random = random.Random(None if seed is None else seed % 2**64)  # noqa: S311
        self._counts: dict[int, int] = {}
        self._penalised = bool(options.presence_penalty or options.frequency_penalty)

    def choose(self, logits: Logits, mask: bytes | None = None) -> TokenScore:
        """Choose the next token; change the logits by biases and penalties.

        A score without `logprobs` in the options has a log probability of 0.
        """
        count = self._options.logprobs
        model = None if count is None else logits.top(max(1, count))
        before = self._adjust(logits.values)
        if mask is not None:
            logits.restrict(mask)
        token = self._draw(logits)
        if self._penalised:
            self._counts[token] = self._counts.get(token, 0) + 1
        if model is None:
            return TokenScore(token, 0.0)
        likeliest = list(zip(model.tokens, model.logits, strict=True))[:count]
        return TokenScore(
            token,
            _logprob(before.get(token, logits.values[token]), model.normaliser),
            tuple((each, _logprob(logit, model.normaliser)) for each, logit in likeliest),
        )

    def _adjust(self, values: MutableSequence[float]) -> Mapping[int, float]:
        """Apply biases and penalties; return the logits before, by token."""
        options, size = self._options, len(values)
        changes = {token: bias for token, bias in options.logit_bias.items() if 0 <= token < size}
        for token, count in self._counts.items():
            penalty = options.presence_penalty + options.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
        before = {token: values[token] for token in changes}
        for token, change in changes.items():
            values[token] += change
        return before

    def _draw(self, logits: Logits) -> int:
        options = self._options
        if options.temperature < TEMPERATURE_MIN:
            return logits.best()
        number = self._random.random()
        size = len(logits.values)
        count = min(size, max(CANDIDATES, options.top_k))
        while True:
            candidates = logits.top(count, 1 / options.temperature)
            token = pick(candidates, options, number, whole=count == size)
            if token is not None:
                return token
            count = min(size, count * MORE)


def pick(candidates: Candidates, options: Options, number: float, *, whole: bool) -> int | None:
    """Return the token that a number from 0 to 1 falls on.

    None if the candidates do not decide it and are not the `whole` vocabulary.

    >>> candidates = Candidates((7, 3), (math.log(0.5), math.log(0.25)), 0.0)
    >>> [pick(candidates, Options(1), number, whole=False) for number in (0.4, 0.6, 0.8)]
    [7, 3, None]
    >>> [pick(candidates, Options(1, top_p=0.6), number, whole=False) for number in (0.6, 0.7)]
    [7, 3]
    """
    normaliser = candidates.normaliser
    chances = [math.exp(min(logit - normaliser, 0.0)) for logit in candidates.logits]
    if not math.isfinite(sum(chances)):  # the model gave no numbers
        return candidates.tokens[0]
    possible = [chance for chance in chances if chance > 0]
    decided = whole or len(possible) < len(chances)
    chances, mass = possible, 1.0
    if options.top_k:
        if options.top_k > len(chances) and not decided:
            return None
        chances, decided = chances[: options.top_k], True
        mass = sum(chances)
    if options.top_p < 1 and (nucleus := _nucleus(chances, options.top_p * mass)):
        chances, decided = chances[:nucleus], True
    if options.min_p > 0:
        likely = [chance for chance in chances if chance >= options.min_p * chances[0]]
        decided = decided or len(likely) < len(chances)
        chances = likely
    sums = list(accumulate(chances))
    if decided:
        number *= sums[-1]
    elif options.top_p < 1 or options.min_p > 0:
        return None
    for token, limit in zip(candidates.tokens, sums, strict=False):
        if number < limit:
            return token
    return candidates.tokens[len(sums) - 1] if decided else None


def _nucleus(chances: Sequence[float], mass: float) -> int:
    """Return how many tokens have a mass together, 0 if none."""
    for count, total in enumerate(accumulate(chances), 1):
        if total >= mass:
            return count
    return 0


def _logprob(logit: float, normaliser: float) -> float:
    logprob = logit - normaliser
    return max(LOGPROB_MIN, min(0.0, logprob)) if math.isfinite(logprob) else LOGPROB_MIN
