"""Hyperparameters: their types, defaults, ranges and textual form."""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from training.errors import InvalidHyperparameter


@dataclass(frozen=True)
class Hyperparameters:
    """What every recipe has. It changes defaults and adds fields: int, float, bool, str, a Literal, tuples of them."""

    seed: int = 0


@dataclass(frozen=True)
class NetworkHyperparameters(Hyperparameters):
    """The knobs of the torch loop."""

    epochs: int = 10
    lr: float = 1e-3  # the highest learning rate
    batch_size: int = 64  # examples an update, over all processes
    schedule: Literal["cosine", "linear", "constant"] = (
        "cosine"  # how the rate falls to zero, or stays
    )
    warm_up: float = 0.1  # share of all steps in which the rate rises to `lr`
    weight_decay: float = (
        0.01  # L2: an update shrinks weights by lr * weight_decay; biases and norms are left alone
    )
    l1: float = (
        0.0  # L1: the loss grows by l1 * sum(|weights|); weights that it makes zero stay there
    )
    clip: float = 0.0  # the gradient's norm is cut to this; 0: as it is
    patience: int = (
        0  # early stopping: epochs without a lower validation loss, then the best weights; 0: never
    )
    accumulate: int = 1  # parts of a batch whose gradients are added up, to fit into memory
    precision: Literal["auto", "fp32", "bf16"] = (
        "auto"  # bf16 is autocast; auto: bf16 on a GPU, fp32 on a CPU
    )
    engine: Literal["auto", "eager", "graph", "compile"] = (
        "auto"  # auto: a CUDA graph of the step on a GPU, else eager
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _at_least(name, getattr(self, name), 1)
        for name in ("weight_decay", "l1", "clip", "patience", "warm_up"):
            _at_least(name, getattr(self, name), 0)
        if self.lr <= 0:
            raise InvalidHyperparameter(f"lr: {self.lr} is not above 0")
        if self.warm_up > 1:
            raise InvalidHyperparameter(f"warm_up: {self.warm_up} is no share of the steps, 0 to 1")


def _at_least(name: str, value: float, low: int) -> None:
    if value < low:
        raise InvalidHyperparameter(f"{name}: {value} is below {low}")


H = TypeVar("H", bound=Hyperparameters)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a search may try, both ends included; `log` where their order of magnitude is what counts."""

    low: float
    high: float
    log: bool = False


def override(defaults: H, values: Mapping[str, object]) -> H:
    """`defaults` with `values` in place, each converted to its field's type.

    Values are JSON, or text as SageMaker and the command line deliver it.

    >>> override(NetworkHyperparameters(), {"epochs": "3", "lr": 0.01}).epochs
    3

    Raises:
        InvalidHyperparameter: the name is unknown or the value has another type.
    """
    hints = get_type_hints(type(defaults))
    names = [field.name for field in fields(defaults)]
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise InvalidHyperparameter(f"unknown hyperparameter {name!r}: {hint}")
        changes[name] = _convert(name, value, hints[name])
    return replace(defaults, **changes)


def _convert(name: str, value: object, kind: Any) -> object:
    parsed = _parse(value)
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        if parsed is None:
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if choice in (parsed, value):
                return choice
        choices = ", ".join(str(choice) for choice in get_args(kind))
        raise InvalidHyperparameter(f"{name}: {str(value)[:80]!r} is none of {choices}")
    if get_origin(kind) is tuple:
        if not isinstance(parsed, list | tuple):
            raise InvalidHyperparameter(f"{name}: {str(value)[:80]!r} is not a JSON list")
        return tuple(_convert(name, part, get_args(kind)[0]) for part in parsed)
    if kind is str:
        return parsed if isinstance(parsed, str) else str(value)
    if kind is bool and isinstance(parsed, bool):
        return parsed
    number = (
        isinstance(parsed, int | float) and not isinstance(parsed, bool) and math.isfinite(parsed)
    )
    if kind is float and number:
        return float(parsed)  # type: ignore[arg-type]
    if kind is int and number and int(parsed) == parsed:  # type: ignore[call-overload]
        return int(parsed)  # type: ignore[call-overload]
    if kind in (list, dict) and isinstance(parsed, kind):
        return parsed
    expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(
        kind, f"a JSON {kind.__name__}"
    )
    raise InvalidHyperparameter(f"{name}: {str(value)[:80]!r} is not {expected}")


def _parse(value: object) -> object:
    """Text read as JSON where it is JSON; Python's spelling of booleans counts too (the older toolkit writes it)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads({"True": "true", "False": "false"}.get(value, value))
    except ValueError:
        return value


def encode(value: object) -> str:
    """A hyperparameter as the text that SageMaker carries and `override` reads back to the same value.

    >>> encode(True), encode("o'brien"), encode('"quoted"')
    ('true', "o'brien", '"\\\\"quoted\\\\""')
    """
    if isinstance(value, str):
        parsed = _parse(value)
        if not isinstance(parsed, str) or parsed == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def pairs(settings: Sequence[str], option: str = "--set") -> dict[str, str]:
    """`NAME=VALUE` of the command line, by name.

    Raises:
        InvalidHyperparameter: there is no `=` in one of them.
    """
    for setting in settings:
        if "=" not in setting:
            raise InvalidHyperparameter(f"{option} {setting}: write NAME=VALUE")
    return dict(setting.split("=", 1) for setting in settings)
