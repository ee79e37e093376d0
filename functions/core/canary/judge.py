"""Sequential tests that compare a canary's candidate with the stable version.

Both arms' counters grow while a canary runs, and the judge looks at them again and again. A usual
test at 5 % would then fail far more often than in 5 % of equal versions. These tests bound the
chance over all looks together (docs/decisions/0045-canary.md):

*Errors, slow requests.* If the versions are equal, each bad request falls on the candidate with the
probability w, its share of the traffic. The likelihood ratio of "w, with the odds times k" to
"w" is then a martingale, so the chance that it ever exceeds 1 / alpha is at most alpha (Ville); the
average over several k is one, too. That holds although the rate of errors changes over the day.
Lindon, Malek: Anytime-valid inference for multinomial count data, NeurIPS 2022.

*Lost requests.* A request that ends its environment, by a crash or for want of memory, is never
counted. Chance sends each request that no caller is tied to to the candidate with its weight, so
the same ratio, with odds below 1, tells that requests of the candidate are missing.

*Shares*, shown with their bounds: confidence sequences of the Beta-Binomial mixture, for the mean
of the shares so far. Robbins, Annals of Mathematical Statistics 1970; Howard, Ramdas, McAuliffe,
Sekhon, Annals of Statistics 2021.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from functions.core.usage.histogram import (
    LAST_BUCKET,
    Histogram,
    bucket_of,
    lower_us,
    quantile_us,
)

ALPHA = 0.05  # chance that an equal version is rolled back, over all steps and looks of a canary
ODDS = (1.5, 3, 10, 50)  # odds ratios averaged over; less than about 1.25 is no harm
LOSS_PART = 0.2  # part of ALPHA for lost requests
LOSSES = (0.9, 0.7, 0.4, 0.1)  # odds of a request of the candidate that are averaged over
SLOW_SHARE = 0.05  # durations that fewer of the candidate's requests exceed are not compared
PRIOR = 0.5  # Jeffreys' prior of the confidence sequences: narrow for shares near 0
EDGES = LAST_BUCKET + 1  # lower ends of buckets, each with the same part of the latency test
BISECTIONS = 50  # halvings of the interval that holds a bound: to within 1e-15


@dataclass(frozen=True, slots=True)
class Arm:
    """Counters of one version since a step of the canary began.

    `errors` are requests with a status of 400 and above, the caller's mistakes included: they hit
    both versions alike, unless the candidate takes other inputs. `cold` are those that waited for
    the version to be loaded, `drawn` those whose version chance chose.
    """

    requests: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=dict)
    cold: int = 0
    compared: int = 0  # shadow runs, and those that disagreed with the stable version
    disagreed: int = 0
    drawn: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Differences between the versions that count as harm."""

    latency_factor: float = 1.5  # a candidate up to this many times as slow is accepted
    error_margin: float = 0.001  # so much more of all requests may fail
    max_disagreement: float | None = None  # share of shadow runs; None for any


@dataclass(frozen=True, slots=True)
class Harm:
    """Difference that the tests found, in words and numbers."""

    test: str  # errors, latency, disagreement or lost
    text: str
    numbers: Mapping[str, float]


def find_harm(
    stable: Arm, candidate: Arm, *, weight: float, steps: int, limits: Limits
) -> Harm | None:
    """Return the harm that a canary's candidate does, None without proof.

    The arms' counters are those of the present step of `steps`, in which the candidate has the
    share `weight` of the traffic. Over all steps and looks, an equal candidate is found harmful,
    here or by `find_loss`, with a chance of at most ALPHA.
    """
    tests = 2 if limits.max_disagreement is None else 3
    alpha = ALPHA * (1 - LOSS_PART) / tests / steps
    return (
        _more_errors(stable, candidate, weight, alpha, limits.error_margin)
        or _slower(stable, candidate, weight, alpha, limits.latency_factor)
        or _disagrees(candidate, alpha, limits.max_disagreement)
    )


def find_loss(
    stable: Arm, candidate: Arm, *, weight: float, steps: int, limits: Limits
) -> Harm | None:
    """Return the harm of lost requests, None without proof.

    The arguments are those of `find_harm`. Requests in progress are not counted yet, more of a
    version that is still being loaded: the proof holds once that is over.
    """
    if loss_evidence(stable, candidate, weight) < math.log(steps / (ALPHA * LOSS_PART)):
        return None
    total = stable.drawn + candidate.drawn
    expected = stable.drawn * weight / (1 - weight)
    lost = (expected - candidate.drawn) / (stable.drawn + expected)
    if lost <= limits.error_margin:
        return None
    text = (
        f"requests of the candidate are lost, as if they ended their environments: chance sent it"
        f" {_percent(weight)} of all requests, but {candidate.drawn:,} of the {total:,} that ended"
        f" ({_percent(candidate.drawn / total)}) are its own"
    )
    return Harm("lost", text, {"stable_drawn": stable.drawn, "candidate_drawn": candidate.drawn})


def loss_evidence(stable: Arm, candidate: Arm, weight: float) -> float:
    """Return the log e-value that requests of the candidate are lost."""
    terms = [
        candidate.drawn * more + stable.drawn * less for more, less in _log_ratios(weight, LOSSES)
    ]
    return _log_sum(terms) - math.log(len(terms))


def error_evidence(stable: Arm, candidate: Arm, weight: float) -> float:
    """Return the log e-value that the candidate fails more often."""
    ratios = _log_ratios(candidate_share(stable.requests, candidate.requests, weight))
    terms = [candidate.errors * more + stable.errors * less for more, less in ratios]
    return _log_sum(terms) - math.log(len(terms))


def latency_evidence(stable: Arm, candidate: Arm, weight: float, factor: float) -> float:
    """Return the log e-value that the candidate is `factor` times as slow.

    Compares, for each duration t of the histogram, the stable requests of at least t with the
    candidate's of at least `factor` * t. The candidate's longest durations, as many as its cold
    requests, do not count: a new version has to be loaded by each environment. Whatever is left out
    makes the evidence smaller, and so keeps the bound.
    """
    total, usual = sum(candidate.latency.values()), _exceeding(stable.latency)
    slow = [count - candidate.cold for count in _exceeding(candidate.latency)]
    ratios = _log_ratios(candidate_share(usual[0], total, weight))
    terms = [-math.inf]
    for edge in range(1, EDGES):
        count = slow[_edge_from(factor * lower_us(edge))]
        if count < SLOW_SHARE * total or count <= 0:
            break
        terms += [count * more + usual[edge] * less for more, less in ratios]
    return _log_sum(terms) - math.log(EDGES * len(ODDS))


def candidate_share(stable: int, candidate: int, weight: float) -> float:
    """Return the share of bad requests that an equal candidate would have.

    That is its weight, or its share of the requests if that is larger: users who stay on one side
    need not be alike. The evidence falls with the share, so that the larger one keeps the bound.
    """
    requests = stable + candidate
    return max(weight, candidate / requests) if requests else weight


def share_bounds(count: int, total: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return a share's bounds for all times, with chance 1 - alpha.

    >>> low, high = share_bounds(5, 100)
    >>> f"{low:.3f} {high:.3f}"
    '0.007 0.156'
    """
    if total == 0:
        return 0.0, 1.0
    middle, limit = count / total, math.log(1 / alpha)

    def bound(outside: float) -> float:
        inside = middle
        for _ in range(BISECTIONS):
            share = (inside + outside) / 2
            if _log_against(count, total, share) >= limit:
                outside = share
            else:
                inside = share
        return outside

    return (bound(0.0) if count else 0.0), (bound(1.0) if count < total else 1.0)


def quantile_bounds(
    histogram: Histogram, share: float, alpha: float = ALPHA
) -> tuple[float, float] | None:
    """Return the bounds of a quantile in microseconds, None without durations.

    They are edges of buckets, and hold at all times together with chance 1 - alpha.
    """
    total, limit = sum(histogram.values()), math.log(1 / alpha)
    if not total:
        return None
    below = [total - count for count in _exceeding(histogram)[:EDGES]]
    excluded = [_log_against(count, total, share) >= limit for count in below]
    low = [edge for edge in range(EDGES) if excluded[edge] and below[edge] < share * total]
    high = [edge for edge in range(EDGES) if excluded[edge] and below[edge] > share * total]
    return (float(lower_us(max(low, default=0))), float(lower_us(min(high, default=EDGES))))


def _more_errors(
    stable: Arm, candidate: Arm, weight: float, alpha: float, margin: float
) -> Harm | None:
    if error_evidence(stable, candidate, weight) < math.log(1 / alpha):
        return None
    rates = [arm.errors / max(arm.requests, 1) for arm in (stable, candidate)]
    if rates[1] <= rates[0] + margin:
        return None
    text = (
        f"{candidate.errors:,} of {candidate.requests:,} requests failed ({_percent(rates[1])}),"
        f" of the stable version's {stable.errors:,} of {stable.requests:,} ({_percent(rates[0])})"
    )
    return Harm("errors", text, {"stable_error_rate": rates[0], "candidate_error_rate": rates[1]})


def _slower(stable: Arm, candidate: Arm, weight: float, alpha: float, factor: float) -> Harm | None:
    if latency_evidence(stable, candidate, weight, factor) < math.log(1 / alpha):
        return None
    numbers: dict[str, float] = {}
    texts: list[str] = []
    for name, share in (("median", 0.5), ("p95", 0.95)):
        slow, usual = (
            (quantile_us(arm.latency, share) or 0.0) / 1000 for arm in (candidate, stable)
        )
        numbers |= {f"stable_{name}_ms": usual, f"candidate_{name}_ms": slow}
        texts.append(f"{name} {slow:,.1f} ms beside {usual:,.1f} ms")
    text = (
        f"answers take more than {factor:g} times as long: {', '.join(texts)},"
        f" after {candidate.requests:,} requests"
    )
    return Harm("latency", text, numbers)


def _disagrees(candidate: Arm, alpha: float, limit: float | None) -> Harm | None:
    low, high = share_bounds(candidate.disagreed, candidate.compared, alpha)
    if limit is None or low <= limit:
        return None
    text = (
        f"{candidate.disagreed:,} of {candidate.compared:,} compared answers differ from the stable"
        f" version's, at least {_percent(low)}; {_percent(limit)} may"
    )
    return Harm("disagreement", text, {"disagreement_low": low, "disagreement_high": high})


def _log_ratios(share: float, odds: Sequence[float] = ODDS) -> list[tuple[float, float]]:
    """Return log likelihood ratios of a request on either side.

    There is a pair for each of the odds; its first is the candidate's, whose share of the
    requests would be `share` if the versions were equal.
    """
    if share >= 1:
        return [(0.0, 0.0)]  # no stable requests to compare with
    harmed = [times * share / (times * share + 1 - share) for times in odds]
    return [(math.log(more / share), math.log((1 - more) / (1 - share))) for more in harmed]


def _log_against(count: int, total: int, share: float) -> float:
    """Return the log of the Beta-Binomial mixture's e-value against a share."""
    mixture = _log_beta(PRIOR + count, PRIOR + total - count) - _log_beta(PRIOR, PRIOR)
    if share <= 0 or share >= 1:
        impossible = count if share <= 0 else total - count
        return math.inf if impossible else mixture
    return mixture - count * math.log(share) - (total - count) * math.log1p(-share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_sum(logs: Sequence[float]) -> float:
    highest = max(logs)
    if math.isinf(highest):
        return highest
    return highest + math.log(sum(math.exp(value - highest) for value in logs))


def _exceeding(histogram: Histogram) -> list[int]:
    """Count the durations from each bucket on, with 0 at the end."""
    counts = [histogram.get(edge, 0) for edge in reversed(range(EDGES))]
    return [*reversed(list(accumulate(counts))), 0]


def _edge_from(us: float) -> int:
    """Return the first bucket whose durations are all at least `us`."""
    bucket = bucket_of(math.ceil(us))
    return bucket if lower_us(bucket) >= us else bucket + 1  # EDGES, if there is none


def _percent(share: float) -> str:
    """Return a share as text.

    >>> _percent(0.0512)
    '5.1 %'
    """
    return f"{100 * share:.2g} %" if share < 1 else "100 %"
