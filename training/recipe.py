"""What a recipe is: one short file that names the data, the model and its hyperparameters.

A file of your own, `churn.py`, anywhere:

    from dataclasses import dataclass
    from training import networks
    from training.data import files
    from training.recipe import NetworkHyperparameters, Recipe

    @dataclass(frozen=True)
    class Knobs(NetworkHyperparameters):
        hidden: int = 64

    recipe = Recipe(
        name="churn",
        description="Whether a customer leaves within the month.",
        task="classification",
        preprocessing="calls a day, minutes a call, months as a customer, as they are",
        hyperparameters=Knobs,
        data=lambda channels: files.table(channels["train"], target="leaves", groups="customer"),
        model=lambda knobs, data: networks.mlp(len(data.columns["numbers"]), (knobs.hidden,), 2),
    )

    python -m training train churn.py --data train=my/folder --set hidden=128

`model` may return a scikit-learn estimator instead, a pipeline or a grid search included; then `Knobs` extends
`Hyperparameters`, for there are no epochs. No torch here: jobs are submitted where there is none.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from numpy.typing import NDArray

from training.data import Dataset, Examples
from training.errors import InvalidHyperparameter, InvalidRecipe, TrainingError

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?")  # what the registry accepts as a model's name
RECIPES = Path(__file__).parent / "recipes"

Task = Literal["classification", "regression", "ranking", "generation", "embedding"]
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]  # a model asked: inputs (n, ...) by name → outputs by name
OUTPUTS: Mapping[str, Mapping[str, str]] = {  # what a task's graph answers: name → kind
    "classification": {"probabilities": "probabilities"},
    "regression": {"value": "value"},
    "ranking": {"items": "ids", "scores": "scores"},
    "generation": {"logits": "logits"},
    "embedding": {"embedding": "embedding"},
}


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
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # how the rate falls to zero, or stays
    warm_up: float = 0.1  # share of all steps in which the rate rises to `lr`
    weight_decay: float = 0.01  # L2: an update shrinks weights by lr * weight_decay; biases and norms are left alone
    l1: float = 0.0  # L1: the loss grows by l1 * sum(|weights|); weights that it makes zero stay there
    clip: float = 0.0  # the gradient's norm is cut to this; 0: as it is
    patience: int = 0  # early stopping: epochs without a lower validation loss, then the best weights; 0: never
    accumulate: int = 1  # parts of a batch whose gradients are added up, to fit into memory
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # bf16 is autocast; auto: bf16 on a GPU, fp32 on a CPU
    engine: Literal["auto", "eager", "graph", "compile"] = "auto"  # auto: a CUDA graph of the step on a GPU, else eager

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


class Front(Protocol):
    """What turns a caller's raw inputs into the network's: the same twice, for training and inside the graph."""

    def encode(self, inputs: Arrays) -> Arrays:
        """Inputs of the network, by name, for raw ones."""

    def attach(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """`graph` with nodes before it that do what `encode` does."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[H]):
    """How one model is made. Functions take as many of the arguments named here as they need, from the left.

    A torch `model` is called with the inputs in the data's order, first axis the batch. The exported graph is
    `serve(model)`: for a classifier with a softmax behind its (batch, labels) logits, at the temperature at which it is
    as sure as it is right (calibrate.py); one with a `serve` of its own goes out as that makes it.
    """

    name: str
    description: str
    task: Task
    hyperparameters: type[H]
    data: Callable[..., Dataset]  # (channels: folder by name, hyperparameters)
    model: Callable[..., Any]  # (hyperparameters, data set) → torch module or scikit-learn estimator
    labels: tuple[str, ...] = ()  # of the classes; or the data set brings them
    preprocessing: str | Mapping[str, str] = ""  # what a caller has to do to raw data: one sentence, or one an input
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # input → axis → name of a free dimension
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # its smallest and largest size [1 to 257]
    outputs: Mapping[str, str] = field(default_factory=dict)  # name → kind, in order [the task's]
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None = None  # (*inputs), training only; torch's generator
    loss: str | Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor] | None = None  # (model, inputs, target), mean
    serve: Callable[..., nn.Module] | None = None  # (model): what is exported of the trained one
    front: Callable[..., Front] | None = None  # (hyperparameters, data set); raw inputs such as text in the graph
    request: Callable[[Examples], Arrays] | None = None  # what the graph is asked for examples [their own inputs]
    infer: Callable[[Run, Examples], NDArray[Any]] | None = None  # what evaluate.metrics takes [run's first output]
    metric: Callable[[NDArray[Any], Examples], dict[str, float]] | None = None  # of the same, beside the task's own
    sample: Callable[..., tuple[Tensor, ...]] | None = None  # (sizes, served module): inputs of its own, for the proof
    tolerance: tuple[float, float] = (1e-3, 1e-5)  # relative, absolute: of runtimes and machines
    student: Callable[..., nn.Module] | None = None  # (hyperparameters, data set): a smaller one, for --compress distil
    search: Mapping[str, Sequence[Any] | Range] = field(default_factory=dict)  # what --tune may try, by hyperparameter

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InvalidRecipe(f"recipe name {self.name!r} is no model name: use a-z, 0-9, '.', '_', '-'")
        if self.task not in OUTPUTS:
            raise InvalidRecipe(f"recipe {self.name}: task {self.task!r} is none of {', '.join(OUTPUTS)}")

    def load_data(self, channels: Mapping[str, Path], settings: H) -> Dataset:
        """The data set.

        Raises:
            InvalidRecipe: it needs a channel that was not given.
        """
        try:
            data = _call(self.data, _Channels(channels), settings)
        except _NoChannel as missing:
            raise InvalidRecipe(
                f"recipe {self.name} reads the channel {missing.args[0]!r}: add --data {missing.args[0]}=FOLDER"
            ) from None
        if not isinstance(data, Dataset):
            raise InvalidRecipe(f"recipe {self.name}: data() returns a {type(data).__name__}, not a Dataset")
        return data

    def make_model(self, settings: H, data: Dataset) -> Any:
        return _call(self.model, settings, data)

    def make_front(self, settings: H, data: Dataset) -> Front | None:
        return _call(self.front, settings, data) if self.front else None

    def labels_of(self, data: Dataset) -> tuple[str, ...]:
        """Names of the classes.

        Raises:
            InvalidRecipe: nobody names them, or there is a class without a name.
        """
        labels = self.labels or data.labels
        if self.task != "classification":
            return labels
        if not labels:
            raise InvalidRecipe(f"recipe {self.name}: a classifier needs labels, from the recipe or from its data")
        for part in (data.train, data.validation, data.test):
            low, high = (int(part.target.min()), int(part.target.max())) if len(part) else (0, 0)
            if low < 0 or high >= len(labels):
                wrong = low if low < 0 else high
                raise InvalidRecipe(f"{data.source}: class {wrong} has no name; labels are {', '.join(labels)[:80]}")
        return labels

    def make_sample(self, sizes: Mapping[str, int], served: nn.Module) -> tuple[Tensor, ...]:
        """Inputs of the served module, in order.

        Raises:
            InvalidRecipe: nothing says what goes into inputs that the data do not have.
        """
        if self.sample is None:
            raise InvalidRecipe(f"recipe {self.name}: its graph has inputs that its data lack, so it needs a `sample`")
        made: tuple[Tensor, ...] = _call(self.sample, sizes, served)
        return made

    def make_student(self, settings: H, data: Dataset) -> Any:
        return _call(self.student, settings, data) if self.student else None

    @property
    def answers(self) -> Mapping[str, str]:
        """Kinds of the graph's outputs by name."""
        return self.outputs or OUTPUTS[self.task]


class _NoChannel(KeyError):
    """When a recipe asks for a channel that is not there."""


class _Channels(dict[str, Path]):
    def __missing__(self, name: str) -> Path:
        raise _NoChannel(name)


def _call(function: Callable[..., Any], *offered: object) -> Any:
    """`function` of as many of `offered` as it takes."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return function(*offered)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return function(*offered[: sum(kind in positional for kind in kinds)])


def built_in() -> list[str]:
    """Names of the recipes that come with this package."""
    return sorted(path.stem for path in RECIPES.glob("[a-z]*.py"))


def load(reference: str) -> Recipe[Any]:
    """The recipe called `reference`, or the one in the file at that path.

    Raises:
        InvalidRecipe: no such recipe, or the file cannot be run or defines no usable `recipe`.
    """
    if reference.endswith(".py"):
        path = Path(reference)
        if not path.is_file():
            raise InvalidRecipe(f"there is no recipe file {reference}")
        module = _module(path)
    else:
        known = built_in()
        if reference not in known:
            raise InvalidRecipe(f"there is no recipe {reference!r}; built in: {', '.join(known)}, or give a .py file")
        module = importlib.import_module(f"training.recipes.{reference}")
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise InvalidRecipe(f"{reference} defines no `recipe = Recipe(...)`")
    return recipe


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidRecipe(f"{path.name} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except TrainingError:
        raise
    except Exception as error:  # it is the user's code: whatever it raises is theirs to mend
        raise mistake(str(path), error) or InvalidRecipe(f"{path.name}: {type(error).__name__}: {error}") from error
    return module


def mistake(reference: str, error: Exception) -> InvalidRecipe | None:
    """`error` in one line, if the user's file `reference` raised it or called what did."""
    path = Path(reference).resolve()
    lines = [error.lineno] if isinstance(error, SyntaxError) and error.lineno else []
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    if not reference.endswith(".py") or not lines:
        return None
    said = " ".join(str(error).split())[:500]
    return InvalidRecipe(f"{path.name}, line {lines[-1]}: {type(error).__name__}: {said}")


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
    number = isinstance(parsed, int | float) and not isinstance(parsed, bool) and math.isfinite(parsed)
    if kind is float and number:
        return float(parsed)  # type: ignore[arg-type]
    if kind is int and number and int(parsed) == parsed:  # type: ignore[call-overload]
        return int(parsed)  # type: ignore[call-overload]
    if kind in (list, dict) and isinstance(parsed, kind):
        return parsed
    expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, f"a JSON {kind.__name__}")
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
