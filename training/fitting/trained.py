"""Trained model with its recipe, ready to measure and export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training import networks
from training.data import Dataset, Examples, lazy
from training.errors import Diverged
from training.evaluation import calibration
from training.evaluation.metrics import compute
from training.fitting import estimators, loop
from training.fitting.checkpoint import Row
from training.hyperparameters import Hyperparameters
from training.recipe import Arrays, Preprocessor, Recipe, Run


@dataclass(frozen=True)
class Trained:
    """Trained torch module or scikit-learn estimator, with its recipe, settings and data."""

    recipe: Recipe[Any]
    settings: Hyperparameters
    data: Dataset  # raw, as the recipe loaded it
    encoded: Dataset  # preprocessed, as the model takes it
    labels: tuple[str, ...]
    preprocessor: Preprocessor | None
    model: Any
    history: list[Row]
    device: torch.device
    temperature: float = 1.0  # divides a classifier's logits before the softmax (calibration.py)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters, with those that a scikit-learn search chose."""
        return asdict(self.settings) | estimators.chosen_parameters(self.model)

    @property
    def dynamic(self) -> Mapping[str, Mapping[int, str]]:
        """Return the inputs' free axes: the recipe's, or the preprocessor's."""
        return self.recipe.dynamic or getattr(self.preprocessor, "dynamic", {})

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return the smallest and largest size of free axes, by their names."""
        return {**getattr(self.preprocessor, "sizes", {}), **self.recipe.sizes}

    @property
    def served_model(self) -> nn.Module:
        """Return the torch module to export, e.g. with a classifier's softmax.

        It shares its weights with `model`. A classifier gets a softmax at its temperature, unless
        the recipe has a `serve` of its own.
        """
        model: nn.Module = self.model
        if self.recipe.serve is not None:
            return self.recipe.serve(model)
        if self.recipe.task == "classification":
            return networks.After(model, networks.softmax(self.temperature))
        if self.recipe.task == "multilabel":
            return networks.After(model, torch.sigmoid)
        if self.recipe.task == "segmentation":
            return networks.After(model, networks.pixel_softmax)
        return model

    def encode(self, inputs: Arrays) -> Arrays:
        """Preprocess a caller's raw inputs into the model's inputs."""
        return self.preprocessor.encode(inputs) if self.preprocessor else inputs

    def request(self, examples: Examples) -> Arrays:
        """Convert examples to the raw inputs that a caller would send."""
        return self.recipe.request(examples) if self.recipe.request else examples.inputs

    def run(self, inputs: Arrays) -> Arrays:
        """Predict on raw inputs in Python, as the exported graph would."""
        encoded, outputs = self.encode(inputs), self.recipe.output_kinds
        if isinstance(self.model, nn.Module):
            served = self.served_model.to(self.device)
            return dict(zip(outputs, loop.predict(served, encoded, self.device), strict=True))
        answer = estimators.predict(self.model, encoded)
        if self.temperature != 1:
            answer = calibration.scaled(answer, self.temperature)
        return {next(iter(outputs)): answer}

    def measure(
        self, examples: Examples, run: Run | None = None
    ) -> tuple[dict[str, float], NDArray[Any]]:
        """Compute the model's metrics on examples, and return its outputs, too.

        `run` stands in for the model, e.g. the graph that was exported from it.

        Raises:
            Diverged: an output is no number.
        """
        recipe = self.recipe
        outcome = (recipe.infer or self._first_output)(run or self.run, examples)
        if any(_has_nan(outcome[part]) for part in lazy.chunks(outcome)):
            raise Diverged("diverged: the model's outputs are NaN: lower lr, or set clip=1")
        metrics = compute(recipe.task, outcome, examples, self.labels)
        return metrics | (recipe.metric(outcome, examples) if recipe.metric else {}), outcome

    def _first_output(self, run: Run, examples: Examples) -> NDArray[Any]:
        return run(examples.inputs)[next(iter(self.recipe.output_kinds))]


def _has_nan(values: NDArray[Any]) -> bool:
    return bool(np.issubdtype(values.dtype, np.floating) and np.isnan(values).any())
