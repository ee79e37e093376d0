"""Model signature: input and output tensors in the Open Inference Protocol's terms."""

from collections.abc import Mapping, Sequence
from typing import Any

from functions.core.records import record

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


@record
class TensorSpec:
    """Name, datatype and shape of a model's input or output tensor.

    Example: TensorSpec("image", "FP32", (-1, 1, 28, 28)). `labels` name the classes along the last
    dimension, if the manifest or the model gives them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Convert a tensor declaration to a JSON dict, without empty labels."""
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
        """Build a tensor declaration from the JSON dict of `to_record`."""
        return cls(
            record["name"],
            record["datatype"],
            tuple(record["shape"]),
            tuple(record.get("labels", ())),
        )


@record
class Signature:
    """Input and output tensors of a model, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batches(self) -> bool:
        """True if the model takes batches: every tensor's first dimension is dynamic."""
        return all(spec.shape[:1] == (DYNAMIC,) for spec in (*self.inputs, *self.outputs))

    def to_record(self) -> dict[str, Any]:
        """Convert a model's signature to a JSON dict of inputs and outputs."""
        return {
            "inputs": [spec.to_record() for spec in self.inputs],
            "outputs": [spec.to_record() for spec in self.outputs],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Signature":
        """Build a model's signature from the JSON dict of `to_record`."""
        return cls(_specs(record["inputs"]), _specs(record["outputs"]))


def _specs(records: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.from_record(record) for record in records)
