"""What a model declares: its inputs and outputs in the words of the Open Inference Protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DYNAMIC = -1  # a dimension whose size each request chooses

# Open Inference Protocol datatype -> bytes an element on the wire (None: length-prefixed)
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
    """One declared input or output, e.g. TensorSpec("image", "FP32", (-1, 1, 28, 28)).

    `labels`, where the manifest gives them, name the classes along the last dimension.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
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
        return cls(
            record["name"],
            record["datatype"],
            tuple(record["shape"]),
            tuple(record.get("labels", ())),
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """The declared inputs and outputs of a model, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batches(self) -> bool:
        """Whether the first dimension of every input and output is the request's to choose."""
        return all(spec.shape[:1] == (DYNAMIC,) for spec in (*self.inputs, *self.outputs))

    def to_record(self) -> dict[str, Any]:
        return {
            "inputs": [i.to_record() for i in self.inputs],
            "outputs": [o.to_record() for o in self.outputs],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Signature":
        def specs(items: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec.from_record(item) for item in items)

        return cls(specs(record["inputs"]), specs(record["outputs"]))
