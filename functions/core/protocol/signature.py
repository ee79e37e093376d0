"""Model signature: input and output tensors in the Open Inference Protocol's terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DYNAMIC = -1  # a dimension whose size each request chooses

# Bytes of one element on the wire, by datatype; None: each element carries its own length.
DATATYPES: Mapping[str, int | None] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": None,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Declared input or output, e.g. TensorSpec("image", "FP32", (-1, 1, 28, 28)).

    `labels` name the classes along the last dimension, if the manifest gives them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return the tensor as JSON members, without empty labels."""
        record: dict[str, Any] = {
            "name": self.name,
            "datatype": self.datatype,
            "shape": list(self.shape),
        }
        if self.labels:
            record["labels"] = list(self.labels)
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "TensorSpec":
        """Build a tensor's declaration from the members `to_record` returns."""
        return cls(
            record["name"],
            record["datatype"],
            tuple(record["shape"]),
            tuple(record.get("labels", ())),
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """Declared inputs and outputs of a model, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batches(self) -> bool:
        """True if the first dimension of every input and output is dynamic."""
        return all(spec.shape[:1] == (DYNAMIC,) for spec in (*self.inputs, *self.outputs))

    def to_record(self) -> dict[str, Any]:
        """Return the signature as JSON members."""
        return {
            "inputs": [spec.to_record() for spec in self.inputs],
            "outputs": [spec.to_record() for spec in self.outputs],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Signature":
        """Build a signature from the members `to_record` returns."""
        return cls(_specs(record["inputs"]), _specs(record["outputs"]))


def _specs(records: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.from_record(record) for record in records)
