"""Evaluation in an uploaded manifest: which is accepted, and what is said of others."""

import json
from typing import Any

import numpy as np
import pytest

from functions.core.errors import InvalidModel
from functions.register.manifest import read_manifest
from training.evaluation import figures
from training.evaluation.calibration import reliability

HISTORY = [
    {"epoch": epoch, "loss": 1.0, "validation_loss": float("nan"), "validation_accuracy": 0.5}
    for epoch in range(3)
]


def read(**fields: Any) -> dict[str, Any]:
    return dict(read_manifest(json.dumps({"schema": 1, **fields}).encode()).card)


@pytest.mark.train
def test_what_training_writes_is_accepted() -> None:
    probabilities, target = np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([0, 1])
    classes = figures.collect("classification", probabilities, target, ["no", "yes"], HISTORY)
    numbers = figures.collect("regression", np.arange(9.0), np.zeros(9), [], [])
    evaluation = {
        "calibration": reliability(probabilities, target) | {"temperature": 1.5},
        "figures": classes | numbers,
        "classes": [{"label": "no", "rows": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}],
        "groups": {"by": "shop", "count": 1, "worst": [{"group": "a", "rows": 1, "f1": 0.5}]},
    }

    assert set(evaluation["figures"]) == {"learning", "confusion", "residuals"}
    assert read(evaluation=evaluation)["evaluation"] == evaluation


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        ({"figures": {"learning": "x"}}, "figures.learning: "),
        ({"figures": {"learning": {}}}, "figures.learning.epoch: Field required"),
        ({"figures": {"learning": {"epoch": [1], "loss": 5}}}, "figures.learning.loss: "),
        ({"figures": {"learning": {"epoch": [1, 2], "loss": [1]}}}, "loss has 1 values, and there"),
        ({"figures": {"confusion": {}}}, "figures.confusion.labels: Field required"),
        ({"figures": {"confusion": {"labels": ["a"], "counts": [[1, 2]]}}}, "1 rows of 1, as many"),
        ({"figures": {"residuals": {}}}, "figures.residuals.edges: Field required"),
        ({"figures": {"residuals": {"edges": [], "counts": []}}}, "0 counts, and edges of 0 bins"),
        ({"calibration": {"bins": 5}}, "calibration.bins: "),
        ({"calibration": {"bins": [{}]}}, "calibration.bins.0.confidence: Field required"),
        ({"groups": {"worst": 5}}, "groups.worst: "),
        ({"classes": "x"}, "classes: "),
    ],
)
def test_a_wrong_evaluation_is_named(evaluation: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidModel, match=reason) as refused:
        read(evaluation=evaluation)

    assert refused.value.instance_code == "BAD_MANIFEST"
    assert "manifest's evaluation." in str(refused.value)


def test_columns_are_labels() -> None:
    assert read(inputs=[{"name": "x", "columns": ["age"]}])["inputs"][0]["columns"] == ["age"]
    with pytest.raises(InvalidModel, match=r"inputs\.0\.columns: "):
        read(inputs=[{"name": "x", "columns": 5}])
