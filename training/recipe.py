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

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol

from numpy.typing import NDArray

from training.data import Dataset, Examples
from training.errors import InvalidRecipe
from training.hyperparameters import H, Hyperparameters, NetworkHyperparameters, Range

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

# A recipe file needs one import: the hyperparameter classes are part of this module's interface.
__all__ = [
    "Arrays", "Hyperparameters", "NAME", "NetworkHyperparameters", "OUTPUTS", "Front", "Range", "Recipe", "Run", "Task",
]  # fmt: skip

NAME = re.compile(
    r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?"
)  # what the registry accepts as a model's name

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
    model: Callable[
        ..., Any
    ]  # (hyperparameters, data set) → torch module or scikit-learn estimator
    labels: tuple[str, ...] = ()  # of the classes; or the data set brings them
    preprocessing: str | Mapping[str, str] = (
        ""  # what a caller has to do to raw data: one sentence, or one an input
    )
    dynamic: Mapping[str, Mapping[int, str]] = field(
        default_factory=dict
    )  # input → axis → name of a free dimension
    sizes: Mapping[str, tuple[int, int]] = field(
        default_factory=dict
    )  # its smallest and largest size [1 to 257]
    outputs: Mapping[str, str] = field(default_factory=dict)  # name → kind, in order [the task's]
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None = (
        None  # (*inputs), training only; torch's generator
    )
    loss: str | Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor] | None = (
        None  # (model, inputs, target), mean
    )
    serve: Callable[..., nn.Module] | None = None  # (model): what is exported of the trained one
    front: Callable[..., Front] | None = (
        None  # (hyperparameters, data set); raw inputs such as text in the graph
    )
    request: Callable[[Examples], Arrays] | None = (
        None  # what the graph is asked for examples [their own inputs]
    )
    infer: Callable[[Run, Examples], NDArray[Any]] | None = (
        None  # what evaluate.metrics takes [run's first output]
    )
    metric: Callable[[NDArray[Any], Examples], dict[str, float]] | None = (
        None  # of the same, beside the task's own
    )
    sample: Callable[..., tuple[Tensor, ...]] | None = (
        None  # (sizes, served module): inputs of its own, for the proof
    )
    tolerance: tuple[float, float] = (1e-3, 1e-5)  # relative, absolute: of runtimes and machines
    student: Callable[..., nn.Module] | None = (
        None  # (hyperparameters, data set): a smaller one, for --compress distil
    )
    search: Mapping[str, Sequence[Any] | Range] = field(
        default_factory=dict
    )  # what --tune may try, by hyperparameter

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InvalidRecipe(
                f"recipe name {self.name!r} is no model name: use a-z, 0-9, '.', '_', '-'"
            )
        if self.task not in OUTPUTS:
            raise InvalidRecipe(
                f"recipe {self.name}: task {self.task!r} is none of {', '.join(OUTPUTS)}"
            )

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
            raise InvalidRecipe(
                f"recipe {self.name}: data() returns a {type(data).__name__}, not a Dataset"
            )
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
            raise InvalidRecipe(
                f"recipe {self.name}: a classifier needs labels, from the recipe or from its data"
            )
        for part in (data.train, data.validation, data.test):
            low, high = (int(part.target.min()), int(part.target.max())) if len(part) else (0, 0)
            if low < 0 or high >= len(labels):
                wrong = low if low < 0 else high
                raise InvalidRecipe(
                    f"{data.source}: class {wrong} has no name; labels are {', '.join(labels)[:80]}"
                )
        return labels

    def make_sample(self, sizes: Mapping[str, int], served: nn.Module) -> tuple[Tensor, ...]:
        """Inputs of the served module, in order.

        Raises:
            InvalidRecipe: nothing says what goes into inputs that the data do not have.
        """
        if self.sample is None:
            raise InvalidRecipe(
                f"recipe {self.name}: its graph has inputs that its data lack, so it needs a `sample`"
            )
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
