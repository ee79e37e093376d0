"""Hyperparameter search: its specification, and its space as Optuna distributions."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from training.errors import InvalidJob, InvalidRecipe, TrainingError
from training.evaluation import metrics
from training.hyperparameters import Hyperparameters, Range, encode, override, pairs
from training.recipe import Recipe
from training.recipe_loading import load

Axis = FloatDistribution | IntDistribution | CategoricalDistribution
Space = Mapping[str, Axis]  # by hyperparameter; choices are encoded as text


@dataclass(frozen=True)
class Search:
    """Hyperparameter search specification: recipe, search space, strategy, number of trials."""

    recipe: Recipe[Any]
    settings: Hyperparameters  # values of the hyperparameters outside the space
    space: Space
    strategy: str  # random, grid, optuna or sagemaker
    limit: int  # largest number of trials
    data: str = ""  # digest or addresses of the data: a resumed search has the same

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of the searched hyperparameters without a search, by name."""
        return {name: getattr(self.settings, name) for name in self.space}

    @property
    def metric(self) -> str:
        """Name of the primary metric of the recipe's task."""
        return metrics.PRIMARY[self.recipe.task].metric

    @property
    def higher_is_better(self) -> bool:
        """True if higher values of the primary metric are better."""
        return metrics.PRIMARY[self.recipe.task].higher_is_better

    def score(self, row: Mapping[str, float]) -> float:
        """Return an epoch's score: primary validation metric, or else validation loss.

        A loss is negated where a higher score is better.
        """
        if (value := row.get(f"validation_{self.metric}")) is not None:
            return value
        return -row["validation_loss"] if self.higher_is_better else row["validation_loss"]


def load_search(options: argparse.Namespace, data: str) -> Search:
    """Load a recipe and return its hyperparameter search for training jobs.

    The recipe's data are not loaded: `data` names them.

    Raises:
        InvalidJob: the recipe imports a package that is not installed here.
        InvalidRecipe: nothing is left to search, or the recipe's ranges are wrong.
    """
    try:
        recipe = load(options.recipe)
    except ModuleNotFoundError as error:
        raise InvalidJob(
            f"to search, the recipe is loaded here, and {error.name} is not installed"
        ) from error
    fixed = pairs(options.set)
    settings = override(recipe.hyperparameters(), fixed)
    space = make_space(recipe, fixed)
    return Search(recipe, settings, space, options.search, options.tune, data)


def make_space(recipe: Recipe[Any], fixed: Iterable[str] = ()) -> Space:
    """Return a recipe's search space as Optuna distributions, without `fixed` hyperparameters.

    Raises:
        InvalidRecipe: nothing is left to search, or a dimension does not fit its hyperparameter.
    """
    hints = get_type_hints(recipe.hyperparameters)
    space: dict[str, Axis] = {}
    for name, declared in recipe.search.items():
        label = f"recipe {recipe.name}, search: {name}"
        if name not in hints:
            raise InvalidRecipe(f"{label} is no hyperparameter; there are {', '.join(hints)}")
        if name not in fixed:
            space[name] = _distribution(label, declared, hints[name])
            _check_values(label, recipe, name, declared)
    if not space:
        example = "add search={'lr': Range(1e-4, 1e-2, log=True)}"
        hint = "all of it is set" if recipe.search else example
        raise InvalidRecipe(f"recipe {recipe.name} has nothing to search: {hint}")
    return space


def _distribution(label: str, declared: Sequence[Any] | Range, kind: Any) -> Axis:
    if not isinstance(declared, Range):
        if not declared:
            raise InvalidRecipe(f"{label} has no choices")
        return CategoricalDistribution([encode(choice) for choice in declared])
    if kind not in (int, float):
        raise InvalidRecipe(f"{label} is no number: give a list of choices")
    if not declared.low < declared.high:
        raise InvalidRecipe(f"{label}: {declared.low} is not below {declared.high}")
    if declared.log and declared.low <= 0:
        raise InvalidRecipe(f"{label}: a logarithmic range starts above 0")
    if kind is int:
        return IntDistribution(int(declared.low), int(declared.high), log=declared.log)
    return FloatDistribution(declared.low, declared.high, log=declared.log)


def _check_values(
    label: str, recipe: Recipe[Any], name: str, declared: Sequence[Any] | Range
) -> None:
    """Check that a recipe accepts a hyperparameter's search choices or range ends."""
    values = (declared.low, declared.high) if isinstance(declared, Range) else declared
    for value in values:
        try:
            override(recipe.hyperparameters(), {name: value})
        except TrainingError as error:
            raise InvalidRecipe(f"{label}: {error}") from error
