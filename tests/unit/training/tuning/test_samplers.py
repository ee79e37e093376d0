"""What is tried: inside its ranges, the same for the same seed, near the optimum of a valley whose floor is known."""

import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from training.errors import InvalidRecipe, TrainingError
from training.hyperparameters import NetworkHyperparameters, Range, override
from training.recipe import Recipe
from training.tuning import samplers
from training.tuning.samplers import Draws, Grid, Numbers, Optuna, Space, Trial


@dataclass(frozen=True)
class Knobs(NetworkHyperparameters):
    width: int = 8
    shape: tuple[int, ...] = (4,)
    kind: Literal["a", "b"] = "a"
    flag: bool = False


def make_recipe(**wanted: Any) -> Recipe[Any]:
    return Recipe(name="toy", description="", task="regression", hyperparameters=Knobs, data=lambda: None,  # type: ignore[arg-type, return-value]
                  model=lambda: None, search=wanted)  # fmt: skip


EVERYTHING = {
    "lr": Range(1e-4, 1e-1, log=True),
    "width": Range(2, 64, log=True),
    "clip": Range(0, 2),
    "shape": ((4,), (8, 8)),
    "kind": ("a", "b"),
    "flag": (False, True),
}
SPACE = samplers.space(make_recipe(**EVERYTHING))
VALLEY: Space = {
    "lr": Numbers(1e-4, 1e-1, log=True, whole=False),
    "width": Numbers(1, 40, log=False, whole=True),
}


def valley(settings: Mapping[str, Any]) -> float:
    """Lowest, and 0, at lr=3e-3 and width=25."""
    return math.log10(settings["lr"] / 3e-3) ** 2 + ((settings["width"] - 25) / 20) ** 2


def made(source: samplers.Search, count: int) -> list[Trial]:
    """Trials that are told one by one."""
    trials: list[Trial] = []
    for number in range(count):
        settings = source.ask(number, trials)
        if settings is None:
            break
        trials.append(
            Trial(number, settings, "complete", valley(settings) if "lr" in settings else 0.0)
        )
    return trials


SOURCES = {
    "grid": lambda space, seed: Grid(space, 40, seed),
    "random": lambda space, seed: Draws(space, seed),
    "optuna": lambda space, seed: Optuna(space, seed, higher_is_better=False),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_setting_is_inside_its_range_and_of_its_type(kind: str) -> None:
    trials = made(SOURCES[kind](SPACE, 1), 12)

    assert len(trials) == 12
    for trial in trials:
        settings = override(Knobs(), trial.settings)  # refuses what is none
        assert 1e-4 <= settings.lr <= 1e-1
        assert 2 <= settings.width <= 64
        assert 0 <= settings.clip <= 2
        assert settings.shape in ((4,), (8, 8))
        assert {name: getattr(settings, name) for name in trial.settings} == trial.settings


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_seed_tries_the_same(kind: str) -> None:
    first, again, other = (made(SOURCES[kind](SPACE, seed), 8) for seed in (1, 1, 2))

    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", SOURCES)
def test_what_comes_next_does_not_depend_on_who_asked_before(kind: str) -> None:
    """So a search goes on after an interruption as if there had been none."""
    whole = made(SOURCES[kind](VALLEY, 1), 10)
    fresh = SOURCES[kind](VALLEY, 1)

    assert fresh.ask(9, whole[:9]) == whole[9].settings


@pytest.mark.parametrize(("kind", "near"), [("grid", 0.1), ("random", 0.2), ("optuna", 0.05)])
def test_the_optimum_is_found(kind: str, near: float) -> None:
    best = [
        min(trial.value or 9.0 for trial in made(SOURCES[kind](VALLEY, seed), 40))
        for seed in range(3)
    ]

    assert statistics.median(best) < near


def test_optuna_gets_nearer_than_chance() -> None:
    """Where later trials are, not only the best: the last ten of thirty, against ten random ones."""
    later = [
        trial.value or 0.0
        for seed in range(3)
        for trial in made(SOURCES["optuna"](VALLEY, seed), 30)[20:]
    ]
    chance = [
        trial.value or 0.0
        for seed in range(3)
        for trial in made(SOURCES["random"](VALLEY, seed), 30)[20:]
    ]

    assert statistics.median(later) < statistics.median(chance) / 2


def test_a_grid_is_as_fine_as_its_trials_allow_and_ends() -> None:
    grid = Grid(VALLEY, 30, 0)

    assert len(grid.points) == 25  # five by five
    assert {point["lr"] for point in grid.points} == {1e-4, 0.0005623, 0.003162, 0.01778, 1e-1}
    assert {point["width"] for point in grid.points} == {1, 11, 20, 30, 40}
    assert len({str(sorted(point.items())) for point in grid.points}) == 25
    assert grid.ask(25, []) is None


def test_running_trials_are_not_suggested_again() -> None:
    space: Space = {"lr": Numbers(0, 1, log=False, whole=False)}
    done = [Trial(n, {"lr": n / 10}, "complete", (n / 10 - 0.5) ** 2) for n in range(10)]
    source = Optuna(space, 0, higher_is_better=False)
    flying = [Trial(10, {"lr": 0.5})]

    asked = {source.ask(number, [*done, *flying])["lr"] for number in range(11, 17)}  # type: ignore[index]

    assert all(abs(value - 0.5) > 1e-3 for value in asked)


def test_what_is_set_is_not_searched() -> None:
    assert set(samplers.space(make_recipe(**EVERYTHING), fixed=["lr", "kind"])) == {
        "width",
        "clip",
        "shape",
        "flag",
    }


@pytest.mark.parametrize(
    ("wanted", "message"),
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
def test_a_space_that_cannot_be_is_refused(wanted: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecipe, match="recipe toy.*") as caught:
        samplers.space(make_recipe(**wanted))

    assert message in str(caught.value)


def test_everything_set_leaves_nothing_to_search() -> None:
    with pytest.raises(InvalidRecipe, match="all of it is set"):
        samplers.space(make_recipe(kind=("a", "b")), fixed=["kind"])


def test_without_optuna_the_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(TrainingError, match="needs the package optuna; or take --search random"):
        Optuna(VALLEY, 0, higher_is_better=True)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_trials_are_given_up_where_optunas_median_rule_does(higher_is_better: bool) -> None:
    """The same decisions on curves by chance."""
    import optuna

    chance = random.Random(3)  # noqa: S311  # no secret
    study = optuna.create_study(direction="maximize" if higher_is_better else "minimize")
    pruner = optuna.pruners.MedianPruner(
        samplers.WARM_TRIALS, n_warmup_steps=samplers.WARM_EPOCHS + 1
    )
    trials: list[Trial] = []
    decisions = []
    for number in range(30):
        trial = Trial(number, {})
        level = chance.random()
        asked = study.ask()
        trials.append(trial)
        for epoch in range(1, 7):
            trial.values[epoch] = level + 0.3 * chance.random()
            asked.report(trial.values[epoch], epoch)
            theirs = pruner.prune(study, study._storage.get_trial(asked._trial_id))
            ours = samplers.hopeless(trial, trials, higher_is_better)
            decisions.append((ours, theirs))
            if theirs:
                break
        trial.state = "pruned" if theirs else "complete"
        study.tell(
            asked,
            None if theirs else level,
            state=None if not theirs else optuna.trial.TrialState.PRUNED,
        )

    assert all(ours == theirs for ours, theirs in decisions)
    assert 5 < sum(ours for ours, _ in decisions) < 25
