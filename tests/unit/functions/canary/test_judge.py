"""Sequential tests of canaries: known values, scipy's, and simulated canaries with fixed seeds."""

import math
import random
from collections.abc import Iterator

import pytest

from functions.core.canary import judge
from functions.core.canary.judge import Arm, Harm, Limits, find_harm, find_loss
from functions.core.usage.histogram import bucket_of

STEPS = (10, 50)  # percent, as in `Settings`
LOOK = 200  # requests between two looks
SAMPLES = 500  # requests of the candidate that end a step
CANARIES = 200  # of equal versions


def simulate(
    seed: int,
    errors: tuple[float, float],
    slowness: float = 1.0,
    spread: float = 0.3,
    lost: float = 0.0,
) -> tuple[Harm | None, int]:
    """Run a canary; return the harm found, and the requests that its candidate had.

    `errors` are the stable and the candidate version's error rates, `lost` the share of the
    candidate's requests that are never counted. Latencies are log-normal.
    """
    rng = random.Random(seed)  # noqa: S311 (a simulation)
    before = 0
    for percent in STEPS:
        for arms in looks(rng, percent / 100, errors, slowness, spread, lost):
            candidate = arms[1]
            tests = {"weight": percent / 100, "steps": len(STEPS), "limits": Limits()}
            if harm := find_harm(*arms, **tests) or find_loss(*arms, **tests):  # type: ignore[arg-type]
                return harm, before + candidate.requests
        before += candidate.requests
    return None, before


def looks(
    rng: random.Random,
    weight: float,
    errors: tuple[float, float],
    slowness: float,
    spread: float,
    lost: float,
) -> Iterator[tuple[Arm, Arm]]:
    """Yield both arms' counters after every LOOK requests of a step."""
    requests, failed = [0, 0], [0, 0]
    latency: tuple[dict[int, int], dict[int, int]] = ({}, {})
    while requests[1] < SAMPLES:
        for _ in range(LOOK):
            arm = int(rng.random() < weight)
            if arm and lost and rng.random() < lost:
                continue
            requests[arm] += 1
            failed[arm] += rng.random() < errors[arm]
            us = 10_000 * rng.lognormvariate(0, spread) * (slowness if arm else 1)
            bucket = bucket_of(int(us))
            latency[arm][bucket] = latency[arm].get(bucket, 0) + 1
        stable, candidate = (
            Arm(requests[arm], failed[arm], dict(latency[arm]), drawn=requests[arm])
            for arm in (0, 1)
        )
        yield stable, candidate


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.2])
def test_at_most_a_twentieth_of_equal_versions_is_rolled_back(rate: float) -> None:
    harms = [simulate(seed, (rate, rate))[0] for seed in range(CANARIES)]

    assert sum(harm is not None for harm in harms) <= CANARIES // 20


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_five_points_more_errors_are_found_within_600_requests(rate: float) -> None:
    ends = [simulate(seed, (rate, rate + 0.05)) for seed in range(50)]

    assert [harm.test for harm, _ in ends if harm] == ["errors"] * len(ends)
    assert max(requests for _, requests in ends) <= 600


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_a_version_twice_as_slow_is_found_within_300_requests(spread: float) -> None:
    ends = [simulate(seed, (0.0, 0.0), slowness=2.0, spread=spread) for seed in range(50)]

    assert [harm.test for harm, _ in ends if harm] == ["latency"] * len(ends)
    assert max(requests for _, requests in ends) <= 300


@pytest.mark.parametrize("lost", [0.25, 0.5, 0.9])
def test_a_version_that_loses_a_quarter_of_its_requests_is_found(lost: float) -> None:
    ends = [simulate(seed, (0.0, 0.0), lost=lost) for seed in range(50)]

    assert [harm.test for harm, _ in ends if harm] == ["lost"] * len(ends)
    assert max(requests for _, requests in ends) <= 1000


def test_a_version_without_any_counted_request_is_found() -> None:
    stable = Arm(200, drawn=200)
    loss = find_loss(stable, Arm(), weight=0.1, steps=2, limits=Limits())

    assert loss
    assert loss.text == (
        "requests of the candidate are lost, as if they ended their environments: chance sent it"
        " 10 % of all requests, but 0 of the 200 that ended (0 %) are its own"
    )


def test_users_who_stay_on_one_side_are_no_evidence_of_loss() -> None:
    assert find_loss(Arm(5000), Arm(5), weight=0.5, steps=1, limits=Limits()) is None


def test_a_loss_within_the_margin_is_accepted() -> None:
    stable, candidate = Arm(drawn=5_000_000), Arm(drawn=4_500_000)
    limits = [Limits(error_margin=margin) for margin in (0.001, 0.06)]

    found = [find_loss(stable, candidate, weight=0.5, steps=1, limits=each) for each in limits]
    assert [harm is not None for harm in found] == [True, False]


def test_a_version_within_the_factor_is_accepted() -> None:
    harms = [simulate(seed, (0.0, 0.0), slowness=1.4)[0] for seed in range(50)]

    assert not any(harms)


def test_errors_in_an_hour_of_trouble_for_both_are_no_harm() -> None:
    stable, candidate = Arm(9000, 450), Arm(1000, 50)  # the callers' or the table's fault

    assert find_harm(stable, candidate, weight=0.1, steps=1, limits=Limits()) is None


def test_the_reason_has_both_versions_numbers() -> None:
    stable, candidate = Arm(2000, 4), Arm(200, 12)
    harm = find_harm(stable, candidate, weight=0.1, steps=2, limits=Limits())

    assert harm
    assert harm.text == (
        "12 of 200 requests failed (6 %), of the stable version's 4 of 2,000 (0.2 %)"
    )


def test_loading_the_new_version_is_not_slowness() -> None:
    stable = Arm(900, 0, {bucket_of(10_000): 900})
    cold = {bucket_of(10_000): 70, bucket_of(2_000_000): 30}

    def is_harm(cold_requests: int) -> bool:
        candidate = Arm(100, 0, cold, cold_requests)
        return bool(find_harm(stable, candidate, weight=0.1, steps=1, limits=Limits()))

    assert (is_harm(30), is_harm(0)) == (False, True)


def test_a_slow_tail_is_harm_from_a_twentieth_of_the_requests() -> None:
    stable = Arm(9000, 0, {bucket_of(10_000): 9000})

    def is_harm(slow: int) -> bool:
        latency = {bucket_of(10_000): 1000 - slow, bucket_of(2_000_000): slow}
        candidate = Arm(1000, 0, latency)
        return bool(find_harm(stable, candidate, weight=0.1, steps=1, limits=Limits()))

    assert (is_harm(49), is_harm(50)) == (False, True)


def test_one_user_with_most_requests_is_no_harm() -> None:
    # Users stay on one side: 10 % of them sent half of all requests, and half of the errors.
    stable, candidate = Arm(500, 25), Arm(500, 25)

    assert find_harm(stable, candidate, weight=0.1, steps=1, limits=Limits()) is None


def test_without_stable_requests_there_is_no_evidence() -> None:
    assert judge.error_evidence(Arm(), Arm(50, 50), 0.1) == pytest.approx(0)
    assert find_harm(Arm(), Arm(50, 50), weight=0.1, steps=1, limits=Limits()) is None


def test_disagreement_is_judged_by_its_lower_bound() -> None:
    limits = Limits(max_disagreement=0.1)

    def is_harm(disagreed: int) -> bool:
        candidate = Arm(compared=200, disagreed=disagreed)
        return bool(find_harm(Arm(), candidate, weight=0.1, steps=1, limits=limits))

    assert (is_harm(20), is_harm(30), is_harm(60)) == (False, False, True)
    unjudged = Arm(compared=200, disagreed=200)
    assert find_harm(Arm(), unjudged, weight=0.1, steps=1, limits=Limits()) is None


@pytest.mark.parametrize(("count", "total"), [(0, 40), (3, 40), (40, 40), (700, 1000)])
def test_bounds_of_a_share_agree_with_scipy(count: int, total: int) -> None:
    special = pytest.importorskip("scipy.special")
    stats = pytest.importorskip("scipy.stats")
    low, high = judge.share_bounds(count, total, 0.05)

    def evidence(share: float) -> float:
        prior = special.betaln(0.5, 0.5)
        mixture = special.betaln(count + 0.5, total - count + 0.5) - prior
        return float(mixture - stats.binom.logpmf(count, total, share) + _log_ways(count, total))

    for bound in (low, high):
        if 0 < bound < 1:
            assert evidence(bound) == pytest.approx(math.log(20), abs=1e-6)
    exact = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    assert low <= exact.low  # bounds for all times are wider than for one
    assert high >= exact.high


def _log_ways(count: int, total: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)


@pytest.mark.parametrize(
    ("stable", "candidate", "weight"), [(10, 5, 0.1), (0, 4, 0.5), (30, 9, 0.2)]
)
def test_evidence_of_errors_agrees_with_scipy(stable: int, candidate: int, weight: float) -> None:
    binom = pytest.importorskip("scipy.stats").binom
    bad = stable + candidate
    shares = [odds * weight / (odds * weight + 1 - weight) for odds in judge.ODDS]
    ratios = [binom.pmf(candidate, bad, k) / binom.pmf(candidate, bad, weight) for k in shares]

    arms = Arm(round(10_000 * (1 - weight)), stable), Arm(round(10_000 * weight), candidate)

    evidence = judge.error_evidence(*arms, weight)
    assert evidence == pytest.approx(math.log(sum(ratios) / len(ratios)), abs=1e-9)


def test_bounds_of_a_quantile_hold_the_quantile_at_all_looks() -> None:
    misses = 0
    for seed in range(CANARIES):
        rng = random.Random(seed)  # noqa: S311 (a simulation)
        histogram: dict[int, int] = {}
        missed = False
        for look in range(1, 400):
            bucket = bucket_of(int(10_000 * rng.random()))
            histogram[bucket] = histogram.get(bucket, 0) + 1
            if look % 20 == 0:
                bounds = judge.quantile_bounds(histogram, 0.95)
                assert bounds
                missed |= not bounds[0] <= 9500 <= bounds[1]
        misses += missed

    assert misses <= CANARIES // 20
