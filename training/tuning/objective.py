"""Objective of a hyperparameter search: the primary metric on validation data.

A trial imports this module, and no Optuna: the containers of training jobs have none.
"""

from __future__ import annotations

from dataclasses import replace

from training.data import Dataset
from training.evaluation import metrics
from training.fitting.trained import Trained


def without_test(data: Dataset) -> Dataset:
    """Return a data set with the test part replaced by validation data.

    No trial of a search may see the test part.
    """
    return replace(data, test=data.validation)


def judge(trained: Trained) -> float | None:
    """Return the primary metric of a trained model on validation data."""
    scores, _ = trained.measure(trained.data.validation)
    return scores.get(metrics.PRIMARY[trained.recipe.task].metric)
