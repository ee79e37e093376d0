"""Hyperparameter classes: types, defaults, search ranges, conversion from and to text."""

from __future__ import annotations

import difflib
import inspect
import io
import json
import math
import tokenize
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from training.errors import InvalidHyperparameter

VALUE_SHOWN = 80  # characters of a wrong value in an error


@dataclass(frozen=True)
class Hyperparameters:
    """Base class for the hyperparameters of a training recipe.

    A subclass changes defaults and adds fields of type int, float, bool, str or Literal, and tuples
    of these.
    """

    seed: int = 0  # draws first weights, order of rows, and every other chance


@dataclass(frozen=True)
class FitHyperparameters(Hyperparameters):
    """Hyperparameters of Keras's own `fit`; a recipe adds its own."""

    epochs: int = 10  # passes over the training rows
    batch_size: int = 64  # examples an update
    # Early stopping: epochs without a lower validation loss, then the best weights; 0: never.
    patience: int = 0

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("patience", self.patience, 0)


@dataclass(frozen=True)
class NetworkHyperparameters(Hyperparameters):
    """Hyperparameters of the PyTorch training loop: epochs, learning rate, early stopping."""

    epochs: int = 10  # passes over the training rows
    lr: float = 1e-3  # highest learning rate
    batch_size: int = 64  # examples an update, over all processes
    # Rule by which gradients change weights; each has its own good lr (sgd: 0.01 to 0.1).
    optimizer: Literal["adamw", "sgd", "rmsprop", "adagrad"] = "adamw"
    momentum: float = 0.9  # share of the last step that sgd (Nesterov's) and rmsprop repeat
    # Learning rate after the warm-up: falls to zero, or stays (fitting/steps/schedule.py).
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warm_up: float = 0.1  # share of all steps in which the learning rate rises to `lr`
    # L2: each update shrinks weights by lr * weight_decay (adamw) or adds weight_decay * weight to
    # the gradient (others); biases and norms are left alone.
    weight_decay: float = 0.01
    # L1: the loss grows by l1 * sum(|weights|); weights that it makes zero stay zero.
    l1: float = 0.0
    clip: float = 0.0  # largest norm of the gradient; 0: not clipped
    # Early stopping: epochs without a lower validation loss, then the best weights; 0: never.
    patience: int = 0
    accumulate: int = 1  # parts of a batch whose gradients are summed, to fit into memory
    # bf16 is autocast; auto: bf16 on a GPU, fp32 on a CPU.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # auto: a CUDA graph of the step on a GPU, eager on a CPU (fitting/steps/engines.py).
    engine: Literal["auto", "eager", "graph", "compile"] = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _at_least(name, getattr(self, name), 1)
        for name in ("weight_decay", "l1", "clip", "patience", "warm_up", "momentum"):
            _at_least(name, getattr(self, name), 0)
        if self.lr <= 0:
            raise InvalidHyperparameter(f"lr: {self.lr} is not above 0")
        if self.momentum >= 1:
            raise InvalidHyperparameter(f"momentum: {self.momentum} is not below 1")
        if self.warm_up > 1:
            raise InvalidHyperparameter(f"warm_up: {self.warm_up} is no share of the steps, 0 to 1")


def _at_least(name: str, value: float, low: int) -> None:
    if value < low:
        raise InvalidHyperparameter(f"{name}: {value} is below {low}")


H = TypeVar("H", bound=Hyperparameters)


@dataclass(frozen=True, slots=True)
class Range:
    """Interval of hyperparameter values for a search, both ends included.

    With `log`, trials are spread evenly over orders of magnitude.
    """

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        spread = ", evenly over orders of magnitude" if self.log else ""
        return f"{self.low} to {self.high}{spread}"


def override(defaults: H, values: Mapping[str, object]) -> H:
    """Return hyperparameters with `values` set, each converted to its field's type.

    Fields that `values` does not name come from `defaults`. Values are JSON, or text as SageMaker
    and the command line pass it.

    >>> override(NetworkHyperparameters(), {"epochs": "3", "lr": 0.01}).epochs
    3

    Raises:
        InvalidHyperparameter: a name is unknown, or a value has another type.
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


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """Name, type, default and meaning of a hyperparameter, as texts."""

    name: str
    kind: str
    default: str
    meaning: str  # its comment in the source, or ""


def listed(kind: type[Hyperparameters]) -> list[Hyperparameter]:
    """List a class's hyperparameters, inherited ones last.

    >>> first = listed(NetworkHyperparameters)[1]
    >>> first.name, first.kind, first.default, first.meaning
    ('lr', 'float', '0.001', 'highest learning rate')
    """
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        meanings |= _comments(base)
    hints, defaults = get_type_hints(kind), kind()
    own = [name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})]
    return [
        Hyperparameter(
            name, _kind(hints[name]), encode(getattr(defaults, name)), meanings.get(name, "")
        )
        for name in dict.fromkeys(own)
    ]


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _comments(kind: type) -> dict[str, str]:
    """Return the comments beside or above a class's fields, by field."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # a class made in a notebook's cell or by a program
        return {}
    texts: dict[str, str] = {}
    above: list[str] = []
    code = ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if code:
                above = [*above, text] if code.isidentifier() else []
                texts[code] = " ".join(above)
            else:
                above.append(text)
        elif token.type == tokenize.NAME and not code:
            code = token.string
            if above:
                texts[code] = " ".join(above)
        elif token.type in (tokenize.NEWLINE, tokenize.INDENT):
            code, above = "", []
    return texts


def _convert(name: str, value: object, kind: Any) -> object:
    parsed = _parse(value)
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        if parsed is None:
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return _choice(name, value, parsed, get_args(kind))
    if get_origin(kind) is tuple:
        if not isinstance(parsed, list | tuple):
            raise InvalidHyperparameter(f"{name}: {_shown(value)} is not a JSON list")
        return tuple(_convert(name, part, get_args(kind)[0]) for part in parsed)
    if kind is str:
        return parsed if isinstance(parsed, str) else str(value)
    if kind in (bool, list, dict) and isinstance(parsed, kind):
        return parsed
    if isinstance(parsed, int | float) and not isinstance(parsed, bool) and math.isfinite(parsed):
        if kind is float:
            return float(parsed)
        if kind is int and int(parsed) == parsed:
            return int(parsed)
    expected = {int: "a whole number", float: "a number", bool: "true or false"}
    type_name = expected.get(kind, f"a JSON {kind.__name__}")
    raise InvalidHyperparameter(f"{name}: {_shown(value)} is not {type_name}")


def _choice(name: str, value: object, parsed: object, choices: tuple[object, ...]) -> object:
    for choice in choices:
        if choice in (parsed, value):
            return choice
    allowed = ", ".join(str(choice) for choice in choices)
    raise InvalidHyperparameter(f"{name}: {_shown(value)} is none of {allowed}")


def _shown(value: object) -> str:
    return repr(str(value)[:VALUE_SHOWN])


def _parse(value: object) -> object:
    """Parse text as JSON; return text that is not JSON unchanged.

    Booleans may be spelled as in Python: SageMaker's training toolkit writes them so.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads({"True": "true", "False": "false"}.get(value, value))
    except ValueError:
        return value


def encode(value: object) -> str:
    """Encode a hyperparameter value as text for SageMaker or the command line.

    `override` reads the text back. SageMaker passes hyperparameters as text only.

    >>> encode(True), encode("o'brien"), encode('"quoted"')
    ('true', "o'brien", '"\\\\"quoted\\\\""')
    """
    if isinstance(value, str):
        parsed = _parse(value)
        if not isinstance(parsed, str) or parsed == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def pairs(settings: Sequence[str], option: str = "--set") -> dict[str, str]:
    """Parse command-line `NAME=VALUE` options into a dictionary of texts.

    >>> pairs(["lr=0.1", "note=a=b"])
    {'lr': '0.1', 'note': 'a=b'}

    Raises:
        InvalidHyperparameter: an option has no `=`.
    """
    for setting in settings:
        if "=" not in setting:
            raise InvalidHyperparameter(f"{option} {setting}: write NAME=VALUE")
    return dict(setting.split("=", 1) for setting in settings)
