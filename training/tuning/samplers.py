"""Optuna samplers of hyperparameters: grid, random, TPE (tree-structured Parzen estimator)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import Trial

from training.tuning.space import Axis, Search, Space

DIGITS = 4  # significant digits of a float, so that the printed value can be set again
STARTUP_TRIALS = 5  # random trials before TPE models them

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the study prints its own lines


class Grid(GridSampler):
    """Optuna grid sampler for use through study.ask() and study.tell()."""

    def after_trial(self, *_: object) -> None:
        """Do nothing: the overridden method stops `optimize()`, which is not used."""


def make_sampler(search: Search, number: int) -> BaseSampler:
    """Return the Optuna sampler that draws the hyperparameters of trial `number`.

    It depends on the search's seed, the number and the earlier trials alone, so that a resumed
    search draws what an uninterrupted one would have drawn.
    """
    seed = search.settings.seed
    if search.strategy == "grid":
        return Grid(grid_axes(search.space, search.limit), seed=_hash(seed))
    if search.strategy == "random":
        return RandomSampler(seed=_hash(seed, number))
    return TPESampler(seed=_hash(seed, number), n_startup_trials=STARTUP_TRIALS)


def _hash(*numbers: int) -> int:
    """Hash integers to 32 bits, the size of a NumPy seed."""
    return zlib.crc32(repr(numbers).encode())


def trial_count(search: Search) -> int:
    """Return the number of trials that a search runs.

    It is the limit, or the size of a grid that is smaller.
    """
    if search.strategy != "grid":
        return search.limit
    axes = grid_axes(search.space, search.limit).values()
    return min(search.limit, math.prod(map(len, axes)))


def grid_axes(space: Space, limit: int) -> dict[str, Sequence[Any]]:
    """Return the values that a grid search tries, by hyperparameter.

    Ranges are cut as finely as `limit` combinations allow, and at least into their two ends.
    """
    choices = [axis.choices for axis in space.values() if isinstance(axis, CategoricalDistribution)]
    ranges, count = len(space) - len(choices), 2
    while ranges and math.prod(map(len, choices)) * (count + 1) ** ranges <= limit:
        count += 1
    return {name: _values(axis, count) for name, axis in space.items()}


def _values(axis: Axis, count: int) -> Sequence[Any]:
    """Return a hyperparameter's grid values: its choices or `count` evenly spaced numbers.

    There are no duplicates.
    """
    if isinstance(axis, CategoricalDistribution):
        return axis.choices
    spaced = (np.geomspace if axis.log else np.linspace)(axis.low, axis.high, count)
    return list(dict.fromkeys(rounded(axis, value) for value in spaced.tolist()))


def rounded(axis: Axis, value: Any) -> Any:
    """Round a sampled hyperparameter to four digits or to an integer.

    Choices are returned as they are.
    """
    if isinstance(axis, IntDistribution):
        return round(value)
    if isinstance(axis, FloatDistribution):
        return min(max(float(f"{value:.{DIGITS}g}"), axis.low), axis.high)
    return value


def suggest(trial: Trial, space: Space) -> None:
    """Draw the hyperparameters that an Optuna trial does not have yet."""
    for name, axis in space.items():
        if isinstance(axis, CategoricalDistribution):
            trial.suggest_categorical(name, axis.choices)
        elif isinstance(axis, IntDistribution):
            trial.suggest_int(name, axis.low, axis.high, log=axis.log)
        else:
            trial.suggest_float(name, axis.low, axis.high, log=axis.log)
