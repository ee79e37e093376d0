"""Metrics of several labels a row and of pixels equal scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    jaccard_score,
    log_loss,
)

from training.data import Dataset, Examples
from training.errors import InvalidData, InvalidRecipe
from training.evaluation.evaluate import evaluate, evaluate_baselines
from training.evaluation.metrics import compute
from training.hyperparameters import Hyperparameters
from training.recipe import Recipe

pytestmark = pytest.mark.train
GENERATOR = np.random.default_rng(4)


def whole(examples: Examples, labels: tuple[str, ...]) -> Dataset:
    return Dataset(examples, examples, examples, source="made", sha256="0", split={}, labels=labels)


def test_multilabel_metrics_equal_scikit_learns() -> None:
    target = GENERATOR.integers(0, 2, (80, 4))
    scores = np.clip(target * 0.4 + GENERATOR.random((80, 4)) * 0.6, 0.01, 0.99)
    predicted = scores >= 0.5

    metrics = compute("multilabel", scores, Examples({}, target), list("abcd"))

    flat = np.stack([1 - scores.ravel(), scores.ravel()], axis=1)
    assert metrics == pytest.approx(
        {
            "macro_f1": f1_score(target, predicted, average="macro"),
            "micro_f1": f1_score(target, predicted, average="micro"),
            "exact_match": accuracy_score(target, predicted),
            "log_loss": log_loss(target.ravel(), flat),
            "mean_average_precision": average_precision_score(target, scores),
        },
        abs=1e-6,
    )


def test_segmentation_metrics_equal_scikit_learns_without_ignored_pixels() -> None:
    target = GENERATOR.integers(-1, 3, (6, 5, 7))
    scores = GENERATOR.random((6, 5, 7, 3)) + np.eye(3)[np.maximum(target, 0)]
    scores /= scores.sum(axis=-1, keepdims=True)
    real = target >= 0
    actual, predicted = target[real], scores.argmax(axis=-1)[real]

    metrics = compute("segmentation", scores, Examples({}, target), list("abc"))

    assert metrics == pytest.approx(
        {
            "mean_iou": jaccard_score(actual, predicted, average="macro"),
            "pixel_accuracy": accuracy_score(actual, predicted),
            "log_loss": log_loss(actual, scores[real], labels=[0, 1, 2]),
        },
        abs=1e-6,
    )


def test_baselines_have_an_interval_and_a_lead() -> None:
    target = (GENERATOR.random((60, 3)) < [0.9, 0.2, 0.5]).astype(np.int64)
    data = whole(Examples({"x": target.astype(np.float32)}, target), ("a", "b", "c"))
    perfect = target * 0.98 + 0.01

    baselines = evaluate_baselines("multilabel", data)
    evaluation = evaluate("multilabel", perfect, data)

    assert baselines["every label"]["macro_f1"] > baselines["label frequency"]["macro_f1"]
    assert evaluation["lead"]["over"] == "every label"
    assert evaluation["intervals"]["macro_f1"] == [1.0, 1.0]


def test_the_class_by_place_finds_what_stays_where_it_is() -> None:
    target = np.zeros((20, 4, 4), np.int64)
    target[:, :2] = 1
    data = whole(Examples({"x": target.astype(np.float32)}, target), ("sky", "sea"))

    baselines = evaluate_baselines("segmentation", data)

    assert baselines["class by place"]["mean_iou"] == 1.0
    assert baselines["majority class"]["pixel_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("task", "target", "reason"),
    [
        ("multilabel", np.ones((9, 3), np.int64), r"0 or 1 for each label \(n, 2\)"),
        ("multilabel", np.full((9, 2), 2), "0 or 1 for each label"),
        ("segmentation", np.zeros(9, np.int64), r"class numbers \(n, height, width\)"),
        ("segmentation", np.full((9, 2, 2), 2), "class 2 has no name"),
        ("segmentation", np.full((9, 2, 2), -2), "class -2 has no name"),
        ("classification", np.zeros((9, 2), np.int64), r"class numbers \(n,\)"),
    ],
)
def test_a_target_of_another_task_is_refused(task: str, target: np.ndarray, reason: str) -> None:
    recipe = Recipe(
        name="own", description="", task=task, hyperparameters=Hyperparameters,
        data=lambda: None, model=lambda: None,
    )  # fmt: skip
    data = whole(Examples({}, target), ("a", "b"))

    with pytest.raises(InvalidRecipe, match=reason):
        recipe.label_names(data)


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidData, match="outputs of shape"):
        compute("segmentation", np.ones((2, 3, 4, 4)), Examples({}, np.zeros((2, 4, 4), int)))
