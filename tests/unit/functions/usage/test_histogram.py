"""Histograms of durations."""

import random

import pytest

from functions.core.usage.histogram import LAST_BUCKET, bucket_of, lower_us, quantile_us


def test_every_duration_lies_in_its_bucket() -> None:
    durations = [*range(5000), *(2**n + k for n in range(12, 27) for k in (-1, 0, 1))]

    for us in durations:
        bucket = bucket_of(us)
        assert lower_us(bucket) <= us < lower_us(bucket + 1)


def test_buckets_are_at_most_a_quarter_wide() -> None:
    for bucket in range(4, LAST_BUCKET):
        assert lower_us(bucket + 1) <= 1.25 * lower_us(bucket)


def test_a_duration_beyond_the_last_bucket_is_in_the_last() -> None:
    assert bucket_of(10**15) == bucket_of(2**27) == LAST_BUCKET
    assert bucket_of(-1) == 0


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles_are_near_those_of_the_durations(share: float) -> None:
    chance = random.Random(42)  # noqa: S311 (reproducible, no secret)
    durations = [round(chance.lognormvariate(8, 1)) for _ in range(20_000)]
    histogram: dict[int, int] = {}
    for us in durations:
        histogram[bucket_of(us)] = histogram.get(bucket_of(us), 0) + 1

    quantile = quantile_us(histogram, share)

    exact = sorted(durations)[int(share * len(durations))]
    assert quantile == pytest.approx(exact, rel=0.05)


def test_there_is_no_quantile_of_nothing() -> None:
    assert quantile_us({}, 0.5) is None
    assert quantile_us({0: 1}, 1.0) == 1.0
