"""Training recipe: Python file that defines a model's data, network and hyperparameters.

A recipe of your own is a file `churn.py`, anywhere:

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

`model` may return a scikit-learn estimator instead, also a pipeline or a grid search. `Knobs` then
extends `Hyperparameters`, because an estimator has no epochs. A Keras model is trained as a torch
module; a compiled one by its own `fit`, and `Knobs` extends `FitHyperparameters`.

This module does not import torch: jobs are submitted from machines that have none.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol

from numpy.typing import NDArray

from training.data import Dataset, Examples
from training.errors import InvalidRecipe
from training.hyperparameters import (
    FitHyperparameters,
    H,
    Hyperparameters,
    NetworkHyperparameters,
    Range,
)

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

# Re-exported, so that a recipe file needs this one import.
__all__ = [
    "Arrays", "FitHyperparameters", "Hyperparameters", "NAME", "NetworkHyperparameters", "OUTPUTS",
    "Preprocessor", "Range", "Recipe", "Run", "Task",
]  # fmt: skip

# Pattern of the model names that the registry accepts.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
IGNORED = -1  # class of a pixel that does not count
JOB_CHANNELS = {"code", "weights"}  # channels of a job that hold no data
LABELS_SHOWN = 80  # characters of the list of labels in an error

Task = Literal[
    "classification", "multilabel", "segmentation", "regression", "ranking", "generation",
    "embedding",
]  # fmt: skip
# Tasks whose outputs are probabilities of classes with names.
LABELLED = ("classification", "multilabel", "segmentation")
Arrays = Mapping[str, NDArray[Any]]  # by input or output name; axis 0 is the batch
Run = Callable[[Arrays], Arrays]  # runs a model: its inputs → its outputs

# Outputs of each task's graph: name → kind, as the model card shows them.
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "classification": {"probabilities": "probabilities"},
    "multilabel": {"probabilities": "probabilities"},
    "segmentation": {"probabilities": "probabilities"},
    "regression": {"value": "value"},
    "ranking": {"items": "ids", "scores": "scores"},
    "generation": {"logits": "logits"},
    "embedding": {"embedding": "embedding"},
}


class Preprocessor(Protocol):
    """Preprocessing that runs in Python during training and inside exported ONNX graphs.

    Both have to give identical results; training.export has one for text and one for categories.
    One whose outputs differ in size between requests also has `dynamic` and `sizes`, as a recipe.
    """

    def encode(self, inputs: Arrays) -> Arrays:
        """Convert raw inputs to the inputs of the network."""

    def attach(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """Return the ONNX graph extended to preprocess raw inputs itself."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[H]):
    """Definition of one model: data, network or estimator, training, export, evaluation.

    Callbacks may take fewer arguments than listed here; they get the first ones. `settings` are the
    hyperparameters, an instance of `hyperparameters`. Comments give defaults in brackets.
    """

    # Registry name and one sentence for callers of the model.
    name: str
    description: str
    # Decides the loss, the metrics, the baselines and the outputs.
    task: Task
    # Class whose fields --set overrides.
    hyperparameters: type[H]

    # --- data
    # (channels: folder by name, settings) → data set.
    data: Callable[..., Dataset]
    # Class names in the order of the class numbers. [from the data set]
    labels: tuple[str, ...] = ()
    # Sentence for callers: how to turn raw data into inputs. One for all inputs, or one by input.
    preprocessing: str | Mapping[str, str] = ""
    # (settings, data set) → preprocessing inside the graph, e.g. a tokenizer. [none]
    preprocessor: Callable[..., Preprocessor] | None = None
    # Changes training inputs at random: (*inputs) → inputs. Draws from torch's generator. [none]
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None = None

    # --- model
    # (settings, data set) → torch module, Keras model or scikit-learn estimator. The data set has
    # the inputs that the preprocessor makes, in place of raw ones (`tokens`, not texts). A module
    # takes the inputs in order, first axis the batch; a classifier answers logits (batch, labels),
    # also of several labels a row (multilabel); segmentation (batch, labels, height, width).
    model: Callable[..., Any]
    # Name in fitting/losses.py, or (model, inputs, target) → mean of the batch. [the task's]
    loss: str | Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor] | None = None
    # Weights of classes by label, or "balanced": inversely to their rows. Rows have weights in
    # their data (`weights=` of the readers). Both change training alone, and no metric. [all 1]
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None
    # (settings, data set) → callbacks for the `fit` of a compiled Keras model. [none]
    callbacks: Callable[..., Sequence[Any]] | None = None
    # (settings, data set) → smaller module, for --compress distil. [none]
    student: Callable[..., nn.Module] | None = None
    # Values that --tune tries, by hyperparameter: a sequence or a Range.
    search: Mapping[str, Sequence[Any] | Range] = field(default_factory=dict)

    # --- exported graph
    # (trained module) → module to export. [a calibrated softmax after a classifier, else itself]
    serve: Callable[..., nn.Module] | None = None
    # Output name → kind, in order. [the task's]
    outputs: Mapping[str, str] = field(default_factory=dict)
    # Free dimensions: input → axis → name. The batch (axis 0) is always free. [the preprocessor's]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    # Smallest and largest size of a free dimension, by its name. [1 to 257]
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    # (size by dimension, exported module) → its inputs, where the data do not have them.
    sample: Callable[..., tuple[Tensor, ...]] | None = None
    # Relative and absolute difference allowed between runtimes and machines.
    tolerance: tuple[float, float] = (1e-3, 1e-5)

    # --- provenance
    # File that defines the recipe, as the loader sets it; a checkpoint belongs to its code. [none]
    file: Path | None = None

    # --- evaluation
    # Examples → inputs that a caller would send. [the examples' inputs]
    request: Callable[[Examples], Arrays] | None = None
    # (run, examples) → answers as evaluation/metrics.py takes them. [the first output]
    infer: Callable[[Run, Examples], NDArray[Any]] | None = None
    # (answers, examples) → further metrics by name, beside the task's own. [none]
    metric: Callable[[NDArray[Any], Examples], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InvalidRecipe(
                f"recipe name {self.name!r} is no model name: use A-Z, a-z, 0-9, '.', '_', '-'"
            )
        if self.task not in OUTPUTS:
            raise InvalidRecipe(
                f"recipe {self.name}: task {self.task!r} is none of {', '.join(OUTPUTS)}"
            )
        kind: object = self.hyperparameters
        if not (isinstance(kind, type) and issubclass(kind, Hyperparameters)):
            raise InvalidRecipe(
                f"recipe {self.name}: hyperparameters is {getattr(kind, '__name__', repr(kind))}, "
                "not a class that extends NetworkHyperparameters (estimators: Hyperparameters)"
            )

    @property
    def output_kinds(self) -> Mapping[str, str]:
        """Return the kind (probabilities, value, …) of each model output by name."""
        return self.outputs or OUTPUTS[self.task]

    def load_data(self, channels: Mapping[str, Path], settings: H) -> Dataset:
        """Load the recipe's data set from its channels (input folders).

        Raises:
            InvalidRecipe: it needs a channel that was not given, or does not read one that was.
        """
        folders = _Channels(channels)
        try:
            data = _call(self.data, folders, settings)
        except _MissingChannel as missing:
            channel = missing.args[0]
            raise InvalidRecipe(
                f"recipe {self.name} reads the channel {channel!r}: add --data {channel}=FOLDER"
            ) from None
        if not isinstance(data, Dataset):
            raise InvalidRecipe(
                f"recipe {self.name}: data() returns a {type(data).__name__}, not a Dataset"
            )
        for channel in sorted({*channels} - folders.read - JOB_CHANNELS):
            raise InvalidRecipe(
                f"recipe {self.name} does not read the channel {channel!r}: leave out its --data, "
                "or read it in the recipe's data(channels); files.table(channels, …) and the other "
                "readers take train, validation and test together"
            )
        return data

    def label_names(self, data: Dataset) -> tuple[str, ...]:
        """Return the class names from recipe or data, after checking them.

        Raises:
            InvalidRecipe: a classifier without labels, or a class number without a name.
        """
        labels = self.labels or data.labels
        if self.task not in LABELLED:
            return labels
        if not labels:
            raise InvalidRecipe(
                f"recipe {self.name}: a classifier needs labels, from the recipe or from its data"
            )
        for part in (data.train, data.validation, data.test):
            if len(part):
                self._check_target(part.target, labels, data.source)
        return labels

    def _check_target(self, target: NDArray[Any], labels: Sequence[str], source: str) -> None:
        """Raise InvalidRecipe if a labelled task's target does not fit its labels."""
        shown = ", ".join(labels)[:LABELS_SHOWN]
        low, high = target.min(), target.max()
        if self.task == "multilabel":
            if target.shape[1:] != (len(labels),) or not {low, high} <= {0, 1}:
                raise InvalidRecipe(
                    f"{source}: the target of multilabel is 0 or 1 for each label (n, "
                    f"{len(labels)}), and has shape {list(target.shape)}; labels are {shown}"
                )
            return
        rank, lowest = (3, IGNORED) if self.task == "segmentation" else (1, 0)
        if target.ndim != rank or target.dtype.kind not in "iu":
            form = "(n, height, width)" if rank == 3 else "(n,)"
            raise InvalidRecipe(
                f"{source}: the target of {self.task} is class numbers {form}, and has shape "
                f"{list(target.shape)}"
            )
        if low < lowest or high >= len(labels):
            number = low if low < lowest else high
            raise InvalidRecipe(f"{source}: class {number} has no name; labels are {shown}")

    def make_model(self, settings: H, data: Dataset) -> Any:
        """Create the recipe's untrained model for given hyperparameters and data."""
        return _call(self.model, settings, data)

    def make_callbacks(self, settings: H, data: Dataset) -> Sequence[Any]:
        """Create the callbacks of a compiled Keras model's `fit`."""
        return _call(self.callbacks, settings, data) if self.callbacks else ()

    def make_student(self, settings: H, data: Dataset) -> Any:
        """Create the untrained student model for distillation, or return None."""
        return _call(self.student, settings, data) if self.student else None

    def make_preprocessor(self, settings: H, data: Dataset) -> Preprocessor | None:
        """Create the recipe's preprocessor, or return None if inputs stay raw."""
        return _call(self.preprocessor, settings, data) if self.preprocessor else None

    def make_sample(self, sizes: Mapping[str, int], served: nn.Module) -> tuple[Tensor, ...]:
        """Return sample inputs of the exported network at given dimension sizes.

        They are in the order of the network's arguments.

        Raises:
            InvalidRecipe: the data lack these inputs and the recipe has no `sample`.
        """
        if self.sample is None:
            raise InvalidRecipe(
                f"recipe {self.name}: its graph has inputs that its data lack, "
                "so it needs a `sample`"
            )
        inputs: tuple[Tensor, ...] = _call(self.sample, sizes, served)
        return inputs


class _MissingChannel(KeyError):
    """Error for a data channel that a recipe needs but lacks."""


class _Channels(Mapping[str, Path]):
    """Folders by channel, with the set of names that were `read`."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Path:
        self.read.add(name)
        if name not in self._folders:
            raise _MissingChannel(name)
        return self._folders[name]

    def __contains__(self, name: object) -> bool:
        return name in self._folders

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


def _call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function with as many leading arguments as it accepts."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return function(*arguments)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return function(*arguments[: sum(kind in positional for kind in kinds)])
