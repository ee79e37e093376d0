"""Search spaces: ranges and choices of a recipe, checked against its hyperparameters."""

import sys
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("optuna")

from tests.unit.training.tuning.searches import EVERYTHING, make_recipe
from training.errors import InvalidRecipe, TrainingError
from training.hyperparameters import Range
from training.tuning.options import require_optuna
from training.tuning.space import make_space


def test_fixed_hyperparameters_are_not_searched() -> None:
    space = make_space(make_recipe(**EVERYTHING), fixed=["lr", "kind"])

    assert set(space) == {"width", "clip", "shape", "flag"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "nothing to search: add search="),
        ({"depth": Range(1, 2)}, "depth is no hyperparameter; there are"),
        ({"lr": Range(1, 1)}, "1 is not below 1"),
        ({"lr": Range(0, 1, log=True)}, "starts above 0"),
        ({"kind": Range(0, 1)}, "kind is no number: give a list of choices"),
        ({"kind": ("a", "c")}, "'c' is none of a, b"),
        ({"kind": ()}, "kind has no choices"),
        ({"epochs": Range(0, 10)}, "epochs: 0 is below 1"),
    ],
)
def test_impossible_spaces_are_refused_with_the_reason(
    declared: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRecipe, match="recipe toy.*") as caught:
        make_space(make_recipe(**declared))

    assert message in str(caught.value)


def test_everything_fixed_leaves_nothing_to_search() -> None:
    with pytest.raises(InvalidRecipe, match="all of it is set"):
        make_space(make_recipe(kind=("a", "b")), fixed=["kind"])


def test_missing_optuna_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    require_optuna()
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(TrainingError, match="--tune needs the package optuna"):
        require_optuna()
