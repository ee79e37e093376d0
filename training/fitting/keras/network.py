"""Torch module around a Keras model: the data's inputs to logits."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import InvalidRecipe
from training.fitting.keras import backend
from training.fitting.steps import feed
from training.recipe import LABELLED, Arrays

Shape = tuple[int | None, ...]  # without the batch; None is a free size
ENDINGS = ("softmax", "sigmoid")  # activations that make probabilities of logits
TINY = 1e-7  # smallest probability whose logarithm is taken, as in Keras's own losses
TRIED = 64  # rows on which a model's answers are looked at before training


@dataclass(frozen=True)
class Wiring:
    """Order and layout of a Keras model's inputs, and steps after it."""

    names: tuple[str, ...]  # the data's inputs, in their order
    order: tuple[int, ...]  # of the data's inputs, as the model takes them
    layouts: tuple[Shape | None, ...]  # shape that the model declares for each; None: as it comes
    finish: tuple[Callable[[Tensor], Tensor], ...] = ()  # steps from the first answer to logits


class KerasNetwork(nn.Module):
    """Torch module around a Keras model, which shares its weights.

    `train()` and `eval()` reach every layer as Keras's argument `training`. A softmax or sigmoid at
    the end of a classifier is left out, so that answers are logits. `state_dict` holds each weight
    once, by its position: Keras numbers the names of layers over the whole process.
    """

    def __init__(self, model: Any, wiring: Wiring, ending: Any = None) -> None:
        super().__init__()
        # No submodules: they would double every weight. `_ending` is the layer whose activation is
        # left out.
        for name, value in (("keras", model), ("_ending", ending)):
            object.__setattr__(self, name, value)
        self.keras: Any
        self._ending: Any
        self.wiring = wiring
        self.weights = nn.ParameterList(variable.value for variable in model.variables)
        self.forward = _named(self._answer, wiring.names)

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasNetwork:
        try:
            model = copy.deepcopy(self.keras, memo)
        except Exception as error:  # Keras raises errors of many kinds
            raise InvalidRecipe(
                f"Keras cannot copy {type(self.keras).__name__}: decorate its class with "
                "@keras.saving.register_keras_serializable() and give it a get_config()"
            ) from error
        ending = self._ending and _last_layer(model)
        return KerasNetwork(model, self.wiring, ending).train(self.training)

    def arrange(self, inputs: Sequence[Tensor]) -> Any:
        """Return inputs (batch, ...) in the model's order, layout and structure."""
        return _arranged(self.keras, self.wiring, inputs)

    @property
    def is_compiled(self) -> bool:
        """Return whether the model was compiled, for its own `fit`."""
        return bool(self.keras.compiled)

    def check_free_lengths(self) -> None:
        """Raise InvalidRecipe if a recurrent layer keeps the model to one length."""
        recurrent = backend.load().layers.RNN
        for layer in self.keras._flatten_layers():  # also those inside Bidirectional
            if isinstance(layer, recurrent):
                raise InvalidRecipe(
                    f"Keras's torch backend exports the {type(layer).__name__} {layer.name!r} for "
                    "one length: give the inputs one length (pad them, and leave the free axis "
                    "out), or use a convolution and GlobalAveragePooling1D"
                )

    def penalties(self) -> Tensor | float:
        """Return the sum of the layers' regularization losses, after a forward pass."""
        return sum(self.keras.losses, 0.0)

    def _answer(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        keras = backend.load()
        arranged = self.arrange(inputs)
        with keras.device(str(inputs[0].device)), _without_activation(self._ending, keras):
            first, *rest = keras.tree.flatten(self.keras(arranged, training=self.training))
        for step in self.wiring.finish:
            first = step(first)
        return (first, *rest) if rest else first


def adapt(model: Any, inputs: Arrays, task: str, labels: Sequence[str]) -> KerasNetwork:
    """Return the torch module of a Keras model; build the model.

    `inputs` are rows of the data (n, ...) by name.

    Raises:
        InvalidRecipe: the model does not take them, or was made by another backend.
    """
    keras = backend.load()
    nn.ParameterList(variable.value for variable in model.variables).cpu()  # Keras prefers a GPU
    names = tuple(inputs)
    first = {name: values[:TRIED] for name, values in inputs.items()}
    feed.check_numbers(first)
    rows = [feed.to_device(values, torch.device("cpu")) for values in first.values()]
    declared = _declared(model)
    order = _order(names, declared)
    shapes: list[Shape | None] = [shape for _, shape in declared] or [None] * len(names)
    layouts = tuple(
        _layout(names[at], tuple(rows[at].shape[1:]), shape)
        for at, shape in zip(order, shapes, strict=True)
    )
    wiring = Wiring(names, order, layouts)
    answers = _try(keras, model, wiring, rows)  # also builds a model whose inputs are not declared
    if task not in LABELLED:
        return KerasNetwork(model, wiring)
    ending = _ending(model, keras)
    with _without_activation(ending, keras):
        logits = _try(keras, model, wiring, rows) if ending is not None else answers
    finish = _finish(task, logits, len(labels), ending is not None)
    return KerasNetwork(model, Wiring(names, order, layouts, finish), ending)


# --- inputs


def _declared(model: Any) -> list[tuple[str, Shape]]:
    """Return names and shapes of the inputs that a model declares."""
    try:
        tensors = model.inputs or []
    except (AttributeError, ValueError):  # subclassed, or a Sequential without an Input
        return []
    return [(tensor.name, tuple(tensor.shape[1:])) for tensor in tensors]


def _order(names: Sequence[str], declared: Sequence[tuple[str, Shape]]) -> tuple[int, ...]:
    """Return the positions of the data's inputs, as the model takes them."""
    if not declared:
        return tuple(range(len(names)))
    own = [name for name, _ in declared]
    if set(own) == set(names):
        return tuple(names.index(name) for name in own)
    if len(own) != len(names) or len(own) > 1:
        raise InvalidRecipe(
            f"the Keras model takes the inputs {', '.join(own)}, and the data have "
            f"{', '.join(names)}: name them alike, e.g. keras.Input(..., name={names[0]!r})"
        )
    return (0,)


def _layout(name: str, have: Shape, want: Shape | None) -> Shape | None:
    """Return the shape of a rearranged input, None to leave it.

    Raises:
        InvalidRecipe: it does not fit in any order of the axes.
    """
    if want is None or _fits(have, want):
        return None
    channels_last = have[1:] + have[:1]
    flat = (math.prod(size or 0 for size in have),)
    if not (len(have) == 3 and (_fits(channels_last, want) or _is_grey(have, want))) and not _fits(
        flat, want
    ):
        raise InvalidRecipe(
            f"the Keras model takes {name} as {_spelled(want)}, and the data have {_spelled(have)}"
        )
    print(f"{name} {_spelled(have)} goes into the Keras model as {_spelled(want)}", flush=True)
    return want


def _is_grey(have: Shape, want: Shape) -> bool:
    """Return whether grey images (1, ...) fit a model without channels."""
    return have[0] == 1 and _fits(have[1:], want)


def _fits(have: Shape, want: Shape) -> bool:
    return len(have) == len(want) and all(
        size in (None, actual) for size, actual in zip(want, have, strict=True)
    )


def _spelled(shape: Shape) -> str:
    return str(["any" if size is None else size for size in shape]).replace("'", "")


def _laid_out(values: Tensor, layout: Shape | None) -> Tensor:
    """Return an input (batch, ...) flat, without its channel, or channels last."""
    if layout is None:
        return values
    if len(layout) == 1:
        return values.flatten(1)
    return values.squeeze(1) if len(layout) == 2 else values.movedim(1, -1)


def _arranged(model: Any, wiring: Wiring, inputs: Sequence[Tensor]) -> Any:
    """Return inputs as the model takes them, e.g. as a dictionary."""
    tensors = [
        _laid_out(inputs[at], layout)
        for at, layout in zip(wiring.order, wiring.layouts, strict=True)
    ]
    if len(tensors) > 1 and _declared(model):
        return backend.load().tree.pack_sequence_as(model.input, tensors)
    return tensors[0] if len(tensors) == 1 else tensors


# --- answers


@torch.no_grad()
def _try(keras: Any, model: Any, wiring: Wiring, rows: Sequence[Tensor]) -> Tensor:
    """Return a model's first answer to rows.

    Raises:
        InvalidRecipe: it does not take them; the message is Keras's.
    """
    try:
        with keras.device("cpu"):
            answers = keras.tree.flatten(model(_arranged(model, wiring, rows), training=False))
    except Exception as error:  # a layer may raise anything
        shapes = ", ".join(
            f"{name} {list(values.shape)}" for name, values in zip(wiring.names, rows, strict=True)
        )
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidRecipe(
            f"the data do not go through the Keras model ({shapes}): {reason}"
        ) from error
    first: Tensor = answers[0]
    return first


def _last_layer(model: Any) -> Any:
    """Return the layer of a model's first output, if declared."""
    sequential = backend.load().Sequential
    while hasattr(model, "layers"):
        names = getattr(model, "output_names", None)
        if isinstance(model, sequential):
            model = model.layers[-1]
        elif names:
            model = model.get_layer(names[0])
        else:
            return None
    return model


def _ending(model: Any, keras: Any) -> Any:
    """Return the layer that ends in a softmax or sigmoid, or None."""
    layer = _last_layer(model)
    activation = getattr(layer, "activation", None)
    probabilistic = [getattr(keras.activations, name) for name in ENDINGS]
    return layer if activation in probabilistic else None


@contextlib.contextmanager
def _without_activation(layer: Any, keras: Any) -> Iterator[None]:
    """Leave out a layer's activation during the block."""
    if layer is None:
        yield
        return
    activation = layer.activation
    layer.activation = keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def _finish(
    task: str, answer: Tensor, labels: int, is_logits: bool
) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Return the steps from a model's answer (n, ...) to logits.

    Raises:
        InvalidRecipe: it ends in a sigmoid that cannot be left out.
    """
    steps: list[Callable[[Tensor], Tensor]] = []
    within = bool(((answer >= 0) & (answer <= 1)).all())
    if not is_logits and within and answer.ndim > 1:
        if answer.shape[-1] > 1 and torch.allclose(answer.sum(-1), torch.ones(()), atol=1e-3):
            steps.append(_log)
        elif answer.numel() >= TRIED:
            raise InvalidRecipe(
                "the Keras model answers numbers from 0 to 1 by an activation inside it: end it in "
                "a Dense layer with the activation, or without one"
            )
    if task == "classification" and labels == 2 and answer.shape[1:] == (1,):
        steps.append(_two_classes)
    if task == "segmentation" and answer.ndim == 4 and answer.shape[-1] == labels:
        steps.append(_channels_first)
    return tuple(steps)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=TINY).log()


def _two_classes(logit: Tensor) -> Tensor:
    """Return logits (batch, 2) of the second class's logit (batch, 1)."""
    return torch.cat([torch.zeros_like(logit), logit], dim=-1)


def _channels_first(logits: Tensor) -> Tensor:
    return logits.movedim(-1, 1)


def _named(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return a function whose parameters have names, as exporters read them."""

    def forward(*inputs: Tensor) -> Any:
        return function(*inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    plain: Mapping[str, str] = {
        name: name if name.isidentifier() else f"input_{at}" for at, name in enumerate(names)
    }
    parameters = [inspect.Parameter(plain[name], kind) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward
