"""Sampled settings: inside their ranges, reproducible, and near the floor of a known valley."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("optuna")

import itertools
from dataclasses import replace

from optuna.trial import TrialState

from tests.unit.training.tuning.searches import EVERYTHING, VALLEY, Knobs, make_search
from training.hyperparameters import Range, override
from training.tuning.study import Study

STRATEGIES = ("grid", "random", "optuna")


def valley(settings: Mapping[str, Any]) -> float:
    """Return 0 at lr=3e-3 and width=25, and more everywhere else."""
    return math.log10(settings["lr"] / 3e-3) ** 2 + ((settings["width"] - 25) / 20) ** 2


def sampled(strategy: str, limit: int, *, seed: int = 0, **search: Any) -> list[dict[str, Any]]:
    """Return the settings of a search whose trials complete one after the other."""
    study = Study(make_search(strategy, limit, seed=seed, **search))
    while (trial := study.next()) is not None:
        study.finish(trial, TrialState.COMPLETE, valley(study.settings(trial)))
    return [study.settings(trial) for trial in study.trials]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_settings_are_inside_their_ranges_and_of_their_types(strategy: str) -> None:
    trials = sampled(strategy, 12, seed=1, **EVERYTHING)

    assert len(trials) == 12 + (strategy == "grid")  # and the recipe's own settings
    for trial in trials:
        settings = override(Knobs(), trial)
        assert 1e-4 <= settings.lr <= 1e-1
        assert 2 <= settings.width <= 64
        assert 0 <= settings.clip <= 2
        assert settings.shape in ((4,), (8, 8))
        assert {name: getattr(settings, name) for name in trial} == trial


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_reproduces_the_search(strategy: str) -> None:
    first, again, different = (sampled(strategy, 8, seed=seed, **EVERYTHING) for seed in (1, 1, 2))

    assert first == again
    assert first != different


@pytest.mark.parametrize("seed", [-1, 2**40])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_seeds_of_any_size_are_taken(strategy: str, seed: int) -> None:
    assert len(sampled(strategy, 3, seed=seed, **VALLEY)) == 3 + (strategy == "grid")


@pytest.mark.parametrize(("strategy", "near"), [("grid", 0.1), ("random", 0.2), ("optuna", 0.05)])
def test_searches_come_near_the_optimum(strategy: str, near: float) -> None:
    best = [min(map(valley, sampled(strategy, 40, seed=seed, **VALLEY))) for seed in range(3)]

    assert statistics.median(best) < near


def test_a_grid_covers_all_combinations_that_fit_and_ends() -> None:
    own, *trials = sampled("grid", 30, **VALLEY)

    assert own == {"lr": 1e-3, "width": 8}
    assert len(trials) == 25  # five by five; six by six would be 36
    assert {trial["lr"] for trial in trials} == {1e-4, 0.0005623, 0.003162, 0.01778, 1e-1}
    assert {trial["width"] for trial in trials} == {1, 11, 20, 30, 40}
    assert len({str(trial) for trial in trials}) == 25


def test_a_grid_larger_than_its_limit_is_cut() -> None:
    _, *trials = sampled("grid", 3, **VALLEY)

    assert len({str(trial) for trial in trials}) == 3
    assert all(trial["lr"] in (1e-4, 1e-1) and trial["width"] in (1, 40) for trial in trials)


def test_running_trials_are_not_suggested_again() -> None:
    study = Study(make_search("optuna", 17, lr=Range(1e-3, 1.0)))
    while len(study.ended) < 10:
        trial = study.next()
        assert trial is not None
        study.finish(trial, TrialState.COMPLETE, (study.settings(trial)["lr"] - 0.5) ** 2)
    running: list[int] = []
    while (trial := study.next(running)) is not None:
        running.append(trial.number)

    values = sorted(study.settings(study.trials[number])["lr"] for number in running)
    assert len(values) == 7
    assert all(high - low > 1e-3 for low, high in itertools.pairwise(values))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_trial_has_the_recipes_own_settings(strategy: str) -> None:
    for defaults in (Knobs(lr=0.0123456), Knobs(lr=5.0, shape=(7, 7, 7))):  # outside the space
        search = replace(make_search(strategy, 3, **EVERYTHING), settings=defaults)
        study = Study(search)
        first, second = study.next(), study.next(running=[0])
        assert first is not None
        assert second is not None

        assert override(Knobs(), study.settings(first)) == defaults
        assert study.settings(second) != study.settings(first)


def test_a_grid_with_the_recipes_own_settings_tries_them_once() -> None:
    trials = sampled("grid", 9, width=(4, 8, 16), lr=(1e-3, 1e-2))

    assert trials[0] == {"width": 8, "lr": 1e-3}
    assert len({str(trial) for trial in trials}) == len(trials) == 6
