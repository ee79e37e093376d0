"""Numbers behind the pictures of a run, as the manifest holds them."""

import json

import numpy as np
import pytest

from training.evaluation import figures

pytestmark = pytest.mark.train
EPOCHS = [
    {"epoch": n, "loss": 1 / n, "validation_accuracy": 1 - 1 / n, "examples_per_s": 7.0}
    for n in range(1, 200)
]


def test_curves_are_thinned_and_end_with_the_last_epoch() -> None:
    outputs, target = np.eye(2)[[0, 1, 1]], np.array([0, 1, 0])
    learning = figures.collect("classification", outputs, target, [], EPOCHS)["learning"]

    assert set(learning) == {"epoch", "loss", "validation_accuracy"}
    assert len(learning["epoch"]) <= figures.MOST_EPOCHS + 1
    assert (learning["epoch"][-1], learning["loss"][-1]) == (199, 0.0050251)


def test_confusion_counts_actual_by_predicted_classes() -> None:
    outputs, target = np.eye(2)[[0, 1, 1]], np.array([0, 1, 0])
    confusion = figures.collect("classification", outputs, target, ["no", "yes"], [])["confusion"]

    assert confusion == {"labels": ["no", "yes"], "counts": [[1, 1], [0, 1]], "classes": 2}


def test_many_classes_are_cut_to_the_most_confused() -> None:
    classes = 50
    target = np.arange(classes)
    predicted = target.copy()
    predicted[[3, 40]] = [40, 3]
    confusion = figures.collect("classification", np.eye(classes)[predicted], target, [], [])[
        "confusion"
    ]

    assert (len(confusion["labels"]), confusion["classes"]) == (figures.MOST_CLASSES, classes)
    assert {"3", "40"} <= set(confusion["labels"])


def test_residuals_are_a_histogram() -> None:
    values = np.linspace(-1, 1, 1001)
    residuals = figures.collect("regression", values, np.zeros(1001), [], [])["residuals"]

    assert len(residuals["edges"]) == figures.BINS + 1 == len(residuals["counts"]) + 1
    assert sum(residuals["counts"]) > 980


def test_numbers_that_json_cannot_hold_are_left_out() -> None:
    history = [{"epoch": 1, "loss": float("inf")}, {"epoch": 2, "loss": 0.5}]
    drawn = figures.collect("regression", np.array([np.nan]), np.zeros(1), [], history)

    assert json.loads(json.dumps(drawn, allow_nan=False)) == {
        "learning": {"epoch": [1, 2], "loss": [None, 0.5]}
    }
