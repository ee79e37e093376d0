"""Optuna samplers of hyperparameters: grid, random, TPE (tree-structured Parzen estimator).

The first trial of each has the recipe's own values.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial

from training.hyperparameters import encode
from training.tuning.space import Axis, Search, Space

Settings = Mapping[str, Any]  # Optuna's values: numbers, or choices encoded as text

DIGITS = 4  # significant digits of a float, so that the printed value can be set again
STARTUP_TRIALS = 5  # random trials before TPE models them

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the study prints its own lines


class Fixed(RandomSampler):
    """Optuna sampler that draws known hyperparameters, and the rest at random."""

    def __init__(self, values: Settings, seed: int) -> None:
        super().__init__(seed)
        self._values = values

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the known value of a hyperparameter, or a random one."""
        if param_name in self._values:
            return self._values[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)


def make_sampler(search: Search, number: int) -> BaseSampler:
    """Return the Optuna sampler that draws the hyperparameters of trial `number`.

    It depends on the search's seed, the number and the earlier trials alone, so that a resumed
    search draws what an uninterrupted one would have drawn. Trial 0 has the recipe's own values: a
    search never ends with worse ones, as the validation part judges them.
    """
    seed = search.settings.seed
    if number == 0:
        return Fixed(_inside(search.space, search.defaults), _hash(seed, number))
    if search.strategy == "grid":
        return Fixed(grid_points(search)[number - 1], _hash(seed, number))
    if search.strategy == "random":
        return RandomSampler(seed=_hash(seed, number))
    return TPESampler(seed=_hash(seed, number), n_startup_trials=STARTUP_TRIALS)


def _inside(space: Space, settings: Settings) -> Settings:
    """Return settings as Optuna's parameters: numbers in their ranges, only listed choices."""
    values: dict[str, Any] = {}
    for name, axis in space.items():
        if not isinstance(axis, CategoricalDistribution):
            values[name] = min(max(settings[name], axis.low), axis.high)
        elif (choice := encode(settings[name])) in axis.choices:
            values[name] = choice
    return values


def _hash(*numbers: int) -> int:
    """Hash integers to 32 bits, the size of a NumPy seed."""
    return zlib.crc32(repr(numbers).encode())


def trial_count(search: Search) -> int:
    """Return the number of trials that a search runs.

    It is the limit; or the size of a grid, with the recipe's own values if they are not in it.
    """
    return 1 + len(grid_points(search)) if search.strategy == "grid" else search.limit


def grid_points(search: Search) -> list[Settings]:
    """Return the combinations that a grid search tries after trial 0."""
    axes = grid_axes(search.space, search.limit)
    sizes = [len(values) for values in axes.values()]
    count, own = math.prod(sizes), _inside(search.space, search.defaults)
    generator = random.Random(_hash(search.settings.seed))  # noqa: S311  # no secret
    points = [
        _grid_point(axes, sizes, number)
        for number in generator.sample(range(count), min(count, search.limit))
    ]
    return [point for point in points if point != own]


def _grid_point(
    axes: Mapping[str, Sequence[Any]], sizes: Sequence[int], number: int
) -> dict[str, Any]:
    indices = np.unravel_index(number, sizes)
    return {
        name: values[int(index)]
        for (name, values), index in zip(axes.items(), indices, strict=True)
    }


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
