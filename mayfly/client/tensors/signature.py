"""Model signature: names, datatypes and shapes of inputs and outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mayfly.client.errors import InvalidInput, ServerError
from mayfly.client.tensors.datatypes import BY_NAME, Datatype

DYNAMIC = -1  # a dimension whose size each request chooses


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Input or output, e.g. image FP32 [-1, 1, 28, 28]."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"

    @property
    def kind(self) -> Datatype:
        """Datatype, with its size and its names."""
        return BY_NAME[self.datatype]

    def fit(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape with leading dimensions of 1 added.

        >>> TensorSpec("image", "FP32", (-1, 1, 28, 28)).fit((28, 28))
        (1, 1, 28, 28)

        Raises:
            InvalidInput: the shape is not the input's, also with such dimensions.
        """
        full = (1,) * (len(self.shape) - len(shape)) + tuple(shape)
        fits = len(full) == len(self.shape) and all(
            declared in (DYNAMIC, size) for declared, size in zip(self.shape, full, strict=True)
        )
        if not fits:
            raise InvalidInput(
                f"input {self.name!r}: shape {list(shape)} does not fit {list(self.shape)}",
                input=self.name,
            )
        return full


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of one version of a model."""

    model: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<Signature {self.model}:{self.version} {inputs} → {outputs}>"

    def arrange(self, inputs: Any) -> list[tuple[TensorSpec, Any]]:
        """Pair the inputs' values with their declarations, in the model's order.

        `inputs` maps names to values; the only input of a model needs no name.

        Raises:
            InvalidInput: a name is missing, or the model has no such input.
        """
        names = [spec.name for spec in self.inputs]
        if not isinstance(inputs, Mapping):
            if len(names) == 1:
                return [(self.inputs[0], inputs)]
            raise InvalidInput(
                f"{self.model} has {len(names)} inputs: pass a dict with {_listed(names)}"
            )
        for name in inputs:
            if name not in names:
                raise InvalidInput(
                    f"unknown input {name!r}: {self.model} has {_listed(names)}", input=str(name)
                )
        for name in names:
            if name not in inputs:
                raise InvalidInput(
                    f"input {name!r} is missing: {self.model} needs {_listed(names)}", input=name
                )
        return [(spec, inputs[spec.name]) for spec in self.inputs]


def read_signature(document: Mapping[str, Any]) -> Signature:
    """Read a signature from a model's metadata document.

    Raises:
        ServerError: it is not such a document.
    """
    try:
        properties = dict(document.get("properties") or {})
        number = properties.get("version") or document["versions"][-1]
        return Signature(
            str(document["name"]),
            int(number),
            tuple(_spec(tensor) for tensor in document["inputs"]),
            tuple(_spec(tensor) for tensor in document["outputs"]),
            properties,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ServerError(f"the model's metadata cannot be read: {error!r}") from error


def count(shape: Sequence[int]) -> int:
    """Return the number of values of a shape."""
    return math.prod(shape)


def _spec(tensor: Mapping[str, Any]) -> TensorSpec:
    datatype = tensor["datatype"]
    if datatype not in BY_NAME:
        raise ValueError(f"datatype {datatype!r} is none of {', '.join(BY_NAME)}")
    return TensorSpec(str(tensor["name"]), datatype, tuple(map(int, tensor["shape"])))


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
