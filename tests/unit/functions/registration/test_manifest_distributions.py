"""Distributions in an uploaded manifest: which are accepted, and what is said of others."""

import json
from typing import Any

import pytest

from functions.core.errors import InvalidModel
from functions.register.manifest import read_manifest


def read(feature: dict[str, Any]) -> Any:
    document = {"schema": 1, "distributions": {"inputs": {"rows": 3, "features": [feature]}}}
    return read_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    "feature",
    [
        {"name": "x", "counts": [3], "edges": []},
        {"name": "x", "feature": "age", "of": "value", "edges": [1, 2.5], "counts": [1, 0, 2]},
        {"name": "x", "of": "category", "values": ["a", "b"], "counts": [1, 2], "missing": 4},
        {"name": "x", "edges": [0.5], "counts": [1, 2], "unknown": "is kept"},
    ],
)
def test_a_histogram_is_accepted(feature: dict[str, Any]) -> None:
    assert read(feature).raw


@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        ({"name": "x", "counts": [3]}, "give either edges or values"),
        ({"name": "x", "counts": [3], "edges": [], "values": ["a"]}, "give either edges or values"),
        ({"name": "x", "edges": [1.0], "counts": [3]}, "1 counts, and there are 2 bins"),
        ({"name": "x", "edges": [2, 1], "counts": [3, 1, 1]}, "edges have to ascend"),
        ({"name": "x", "edges": [1, 1], "counts": [3, 1, 1]}, "edges have to ascend"),
        ({"name": "x", "edges": [float("nan")], "counts": [1, 1]}, "finite"),
        ({"name": "x", "values": ["a"], "counts": [-1]}, "greater than or equal to 0"),
        ({"name": "x", "values": ["a"] * 1025, "counts": [1] * 1025}, "at most 1024"),
        ({"counts": [1], "edges": []}, "Field required"),
    ],
)
def test_a_wrong_histogram_is_named(feature: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidModel, match=reason) as refused:
        read(feature)

    assert refused.value.instance_code == "BAD_MANIFEST"
    assert "distributions.inputs.features.0" in str(refused.value)


def test_a_share_of_a_class_is_at_most_one() -> None:
    document = {"schema": 1, "distributions": {"priors": {"yes": 1.5}}}

    with pytest.raises(InvalidModel, match=r"distributions\.priors\.yes"):
        read_manifest(json.dumps(document).encode())
