"""Traffic objects: what callers may send, and which callers a version gets."""

import itertools
from typing import Any

import pytest

from functions.core.errors import InvalidRequest
from functions.core.traffic.buckets import BUCKETS, bucket_of
from functions.core.traffic.traffic import Traffic, Weight, read_traffic, split


def weights(*shares: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"version": version, "weight": weight} for version, weight in shares]


def buckets(traffic: Traffic) -> dict[int, set[int]]:
    """Return the buckets of each version."""
    callers: dict[int, set[int]] = {}
    for bucket in range(BUCKETS):
        callers.setdefault(traffic.version_for(bucket), set()).add(bucket)
    return callers


def test_a_document_comes_back_as_it_was_sent() -> None:
    document = {
        "weights": weights((7, 89.75), (8, 10), (9, 0.25)),
        "shadow": {"version": 10, "percent": 5},
        "sticky": "request",
    }

    traffic = read_traffic(document)

    assert traffic.to_document() == {**document, "id": "", "canary": None}
    assert traffic.versions == (7, 8, 9, 10)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weights": None}, "^weights: send a list such as"),
        ({"weights": []}, "^weights: send a list such as"),
        ({"weights": "7"}, "^weights: send a list such as"),
        ({"weights": [7]}, '^weights.0: send an object such as {"version": 7, "weight": 10}'),
        ({"weights": [{"version": 7}]}, "^weights.0: send an object such as"),
        ({"weights": weights((7, 90), (8, 9))}, "^weights: their sum is 99; it has to be 100"),
        ({"weights": weights((7, 90), (8, 9.99))}, "^weights: their sum is 99.99"),
        ({"weights": weights((7, 50), (7, 50))}, "^weights: version 7 comes twice"),
        ({"weights": weights((7, 97), (8, 1), (9, 1), (10, 1))}, "^weights: 4 versions; .* most 3"),
        ({"weights": weights((7, 101), (8, -1))}, "^weights.0.weight: 101 is no number from 0"),
        ({"weights": weights((7, 100), (8, -1))}, "^weights.1.weight: -1 is no number from 0"),
        ({"weights": weights((7, float("nan")))}, "^weights.0.weight: nan is no number"),
        ({"weights": weights((7, True))}, "^weights.0.weight: True is no number"),
        ({"weights": weights((7, 99.995), (8, 0.005))}, "^weights.0.weight: .* steps below 0.01"),
        ({"weights": weights((0, 100))}, "^weights.0.version: 0 is no version number"),
        ({"weights": [{"version": "7", "weight": 100}]}, "^weights.0.version: '7' is no version"),
        ({"weights": weights((10**400, 100))}, "^weights.0.version: 10.* is no version number"),
        ({"shadow": 9}, "^shadow: send an object such as"),
        ({"shadow": {"version": 9, "percent": 0}}, "^shadow.percent: 0; send 0.01 to 100"),
        ({"shadow": {"version": 9, "percent": 101}}, "^shadow.percent: 101 is no number"),
        ({"sticky": "key"}, "^sticky: 'key' is not offered; send auto, user or request"),
        ({"sticky": []}, "^sticky: .* is not offered"),
        ({"wieghts": 1}, "^'wieghts': no such field; send weights, shadow, sticky"),
        ({"canary": {}}, "^'canary': no such field"),
    ],
    ids=str,
)
def test_a_document_at_fault_is_refused_by_field(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        read_traffic({"weights": weights((7, 100)), **change})


def test_the_version_of_the_alias_needs_a_weight_and_no_shadow() -> None:
    with pytest.raises(InvalidRequest, match=r"^weights: version 6, which the alias points at"):
        split(7, 8, 10).arranged(6, None)
    with pytest.raises(InvalidRequest, match=r"^shadow.version: 7 is the version that the alias"):
        split(7, 8, 10, shadow=Weight(7, 500)).arranged(7, None)


@pytest.mark.parametrize("percent", [0, 0.01, 1, 12.5, 99.99, 100])
def test_a_version_has_exactly_its_share_of_the_buckets(percent: float) -> None:
    shares = {number: len(part) for number, part in buckets(split(7, 8, percent)).items()}

    assert shares.get(8, 0) == round(percent * 100)
    assert sum(shares.values()) == BUCKETS


def test_a_growing_candidate_only_gains_callers() -> None:
    steps = [
        [(7, 100), (8, 0)],
        [(7, 99), (8, 1)],
        [(9, 4), (7, 90), (8, 6)],
        [(7, 50), (8, 6), (9, 44)],
        [(7, 0), (8, 56), (9, 44)],
    ]
    standing: Traffic | None = None
    objects = []
    for step in steps:
        standing = read_traffic({"weights": weights(*step)}).arranged(7, standing)
        objects.append(buckets(standing))

    for before, after in itertools.pairwise(objects):
        for candidate in (8, 9):
            assert before.get(candidate, set()) <= after.get(candidate, set())


def test_a_second_candidate_keeps_its_callers_without_the_first() -> None:
    three = read_traffic({"weights": weights((7, 80), (8, 10), (9, 10))}).arranged(7, None)
    two = read_traffic({"weights": weights((7, 90), (9, 10))}).arranged(7, three)
    again = read_traffic({"weights": weights((6, 10), (7, 70), (9, 20))}).arranged(7, two)

    assert buckets(two)[9] == buckets(three)[9]
    assert buckets(again)[9] > buckets(two)[9]
    assert two.to_document()["weights"] == weights((7, 90), (9, 10))
    for traffic in (three, two, again):
        assert Traffic.from_record(traffic.to_record()) == traffic


def test_callers_are_spread_evenly_and_apart_for_each_alias() -> None:
    counts = {"prod": [0] * 10, "beta": [0] * 10}
    both = 0
    for caller in range(20_000):
        places = [bucket_of("m", alias, f"user-{caller}") // 1_000 for alias in counts]
        for alias, place in zip(counts, places, strict=True):
            counts[alias][place] += 1
        both += places == [0, 0]

    # Three standard deviations of 20,000 draws with chances of a tenth and of a hundredth
    assert all(abs(count - 2_000) < 3 * 42.4 for part in counts.values() for count in part)
    assert abs(both - 200) < 3 * 14.1
