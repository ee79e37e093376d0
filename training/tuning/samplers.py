"""What a search tries: the points of a grid, random draws or Optuna's suggestions, and when a trial is given up.

What comes next follows from the seed, the trial's number and the trials before it, and from nothing else: a search that
was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import importlib
import itertools
import math
import random
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_type_hints

from training.errors import InvalidRecipe, TrainingError
from training.hyperparameters import Range, encode, override
from training.recipe import Recipe

Settings = dict[str, Any]
State = Literal["running", "complete", "pruned", "failed"]
WARM_TRIALS = 4  # complete ones before any trial is given up
WARM_EPOCHS = 2  # of a trial before it is given up
RANDOM_FIRST = 5  # trials before Optuna has seen enough
DIGITS = 4  # of a number that is tried: what is shown can be set again


@dataclass
class Trial:
    """One training with settings of its own."""

    number: int
    settings: Settings
    state: State = "running"
    value: float | None = None  # the primary metric on the validation part, once it is complete
    values: dict[int, float] = field(
        default_factory=dict
    )  # the same after each epoch, as far as it is known
    reason: str = ""
    duration_s: float = 0.0
    job: str | None = None


@dataclass(frozen=True)
class Numbers:
    """A range of a float or an int hyperparameter."""

    low: float
    high: float
    log: bool
    whole: bool

    def at(self, share: float) -> float | int:
        """The number that lies at `share` of the way, 0 to 1.

        >>> Numbers(1, 100, log=True, whole=True).at(0.5)
        10
        """
        if self.log:
            value = math.exp(
                math.log(self.low) + share * (math.log(self.high) - math.log(self.low))
            )
        else:
            value = self.low + share * (self.high - self.low)
        return self.near(value)

    def near(self, value: float) -> float | int:
        """`value` with few digits, and inside."""
        value = min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)
        return round(value) if self.whole else value

    def points(self, count: int) -> list[Any]:
        return list(
            dict.fromkeys(
                self.at(step / (count - 1) if count > 1 else 0.5) for step in range(count)
            )
        )


Space = Mapping[str, Numbers | tuple[Any, ...]]  # by hyperparameter: a range, or choices


def space(recipe: Recipe[Any], fixed: Iterable[str] = ()) -> Space:
    """What may be tried of `recipe`, without the hyperparameters that are `fixed`.

    Raises:
        InvalidRecipe: there is nothing to try, or it is no setting of the recipe.
    """
    defaults = recipe.hyperparameters()
    hints = get_type_hints(recipe.hyperparameters)
    found: dict[str, Numbers | tuple[Any, ...]] = {}
    for name, wanted in recipe.search.items():
        about = f"recipe {recipe.name}, search: {name}"
        if name not in hints:
            raise InvalidRecipe(f"{about} is no hyperparameter; there are {', '.join(hints)}")
        if name in fixed:
            continue
        found[name] = (
            _numbers(about, wanted, hints[name]) if isinstance(wanted, Range) else tuple(wanted)
        )
        if not found[name]:
            raise InvalidRecipe(f"{about} has no choices")
        for value in _ends(found[name]):
            try:
                override(defaults, {name: value})
            except TrainingError as error:
                raise InvalidRecipe(f"{about}: {error}") from error
    if not found:
        hint = (
            "all of it is set"
            if recipe.search
            else "add search={'lr': Range(1e-4, 1e-2, log=True)}"
        )
        raise InvalidRecipe(f"recipe {recipe.name} has nothing to search: {hint}")
    return found


def _numbers(about: str, wanted: Range, kind: Any) -> Numbers:
    if kind not in (int, float):
        raise InvalidRecipe(f"{about} is no number: give a list of choices")
    if not wanted.low < wanted.high:
        raise InvalidRecipe(f"{about}: {wanted.low} is not below {wanted.high}")
    if wanted.log and wanted.low <= 0:
        raise InvalidRecipe(f"{about}: a range in orders of magnitude starts above 0")
    return Numbers(wanted.low, wanted.high, wanted.log, whole=kind is int)


def _ends(dimension: Numbers | tuple[Any, ...]) -> Sequence[Any]:
    return (dimension.at(0), dimension.at(1)) if isinstance(dimension, Numbers) else dimension


class Search(Protocol):
    """Where settings come from."""

    def ask(self, number: int, trials: Sequence[Trial], /) -> Settings | None:
        """The settings of trial `number`, the earlier `trials` known; None at the end of a grid."""


class Grid:
    """Every combination, in an order that spreads. Ranges are cut as finely as `limit` trials allow."""

    def __init__(self, space: Space, limit: int, seed: int) -> None:
        choices = math.prod(len(one) for one in space.values() if not isinstance(one, Numbers))
        ranges = sum(isinstance(one, Numbers) for one in space.values())
        count = 2
        while ranges and choices * (count + 1) ** ranges <= limit:
            count += 1
        axes = [one.points(count) if isinstance(one, Numbers) else one for one in space.values()]
        self.points = [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]
        random.Random(seed).shuffle(self.points)  # noqa: S311  # no secret

    def ask(self, number: int, _trials: Sequence[Trial]) -> Settings | None:
        return dict(self.points[number]) if number < len(self.points) else None


class Draws:
    """Each setting by chance, evenly over its range or its choices."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def ask(self, number: int, _trials: Sequence[Trial]) -> Settings | None:
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311  # no secret
        return {
            name: one.at(chance.random()) if isinstance(one, Numbers) else chance.choice(one)
            for name, one in self._space.items()
        }


class Optuna:
    """Where the trials so far make a better one most likely (a tree of Parzen estimators)."""

    def __init__(self, space: Space, seed: int, higher_is_better: bool) -> None:
        try:
            optuna: Any = importlib.import_module("optuna")
        except ModuleNotFoundError as error:
            raise TrainingError(
                "--search optuna needs the package optuna; or take --search random"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        self._direction = "maximize" if higher_is_better else "minimize"
        self._choices = {
            name: {encode(choice): choice for choice in one}
            for name, one in space.items()
            if not isinstance(one, Numbers)
        }
        self._distributions: dict[str, Any] = {}
        for name, one in space.items():
            if isinstance(one, Numbers):
                make = optuna.distributions
                low, high = (int(one.low), int(one.high)) if one.whole else (one.low, one.high)
                kind = make.IntDistribution if one.whole else make.FloatDistribution
                self._distributions[name] = kind(low, high, log=one.log)
            else:
                self._distributions[name] = optuna.distributions.CategoricalDistribution(
                    list(self._choices[name])
                )

    def ask(self, number: int, trials: Sequence[Trial]) -> Settings | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar is called experimental
            sampler = self._optuna.samplers.TPESampler(
                seed=self._seed * 100_003 + number,
                n_startup_trials=RANDOM_FIRST,
                constant_liar=True,  # what is running is not suggested again
            )
            study = self._optuna.create_study(direction=self._direction, sampler=sampler)
            for trial in trials:
                study.add_trial(self._told(trial))
            asked = study.ask(self._distributions).params
        return {
            name: one.near(asked[name])
            if isinstance(one, Numbers)
            else self._choices[name][asked[name]]
            for name, one in self._space.items()
        }

    def _told(self, trial: Trial) -> Any:
        states = self._optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "running": states.RUNNING}
        params = {name: encode(trial.settings[name]) if name in self._choices else trial.settings[name]
                  for name in self._distributions}  # fmt: skip
        return self._optuna.trial.create_trial(
            state=state.get(trial.state, states.FAIL),
            value=trial.value if trial.state == "complete" else None,
            params=params,
            distributions=self._distributions,
            intermediate_values=trial.values,
        )


def hopeless(trial: Trial, trials: Sequence[Trial], higher_is_better: bool) -> bool:
    """Whether the best that `trial` reached is worse than the median of the complete ones after as many epochs."""
    if not trial.values or max(trial.values) <= WARM_EPOCHS:
        return False
    epoch = max(trial.values)
    others = [one for one in trials if one.state == "complete" and one is not trial]
    reached = [one.values[epoch] for one in others if epoch in one.values]
    if len(others) < WARM_TRIALS or not reached:
        return False
    if higher_is_better:
        return max(trial.values.values()) < statistics.median(reached)
    return min(trial.values.values()) > statistics.median(reached)
