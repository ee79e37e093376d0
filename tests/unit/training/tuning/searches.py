"""Recipes and searches of the tests of tuning."""

from dataclasses import dataclass
from typing import Any, Literal

from training.hyperparameters import NetworkHyperparameters, Range
from training.recipe import Recipe
from training.tuning.space import Search, make_space


@dataclass(frozen=True)
class Knobs(NetworkHyperparameters):
    width: int = 8
    shape: tuple[int, ...] = (4,)
    kind: Literal["a", "b"] = "a"
    flag: bool = False


EVERYTHING = {
    "lr": Range(1e-4, 1e-1, log=True),
    "width": Range(2, 64, log=True),
    "clip": Range(0, 2),
    "shape": ((4,), (8, 8)),
    "kind": ("a", "b"),
    "flag": (False, True),
}
VALLEY = {"lr": Range(1e-4, 1e-1, log=True), "width": Range(1, 40)}


def make_recipe(**search: Any) -> Recipe[Any]:
    return Recipe(
        name="toy",
        description="",
        task="regression",
        hyperparameters=Knobs,
        data=lambda: None,  # type: ignore[arg-type, return-value]
        model=lambda: None,
        search=search,
    )


def make_search(strategy: str, limit: int, *, seed: int = 0, **search: Any) -> Search:
    recipe = make_recipe(**search)
    return Search(recipe, Knobs(seed=seed), make_space(recipe), strategy, limit)
