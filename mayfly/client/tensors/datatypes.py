"""Datatypes of the Open Inference Protocol, numpy and `struct`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Datatype:
    """Datatype: name, bytes per value, dtype of numpy, code of `struct`, kind.

    Kinds are b (boolean), i (integer), f (float) and s (bytes). BF16 has no dtype: numpy reads it
    as float32, which holds each of its values.
    """

    name: str
    size: int
    dtype: str
    code: str
    kind: str


ALL = (
    Datatype("BOOL", 1, "?", "?", "b"),
    Datatype("INT8", 1, "i1", "b", "i"),
    Datatype("INT16", 2, "<i2", "h", "i"),
    Datatype("INT32", 4, "<i4", "i", "i"),
    Datatype("INT64", 8, "<i8", "q", "i"),
    Datatype("UINT8", 1, "u1", "B", "i"),
    Datatype("UINT16", 2, "<u2", "H", "i"),
    Datatype("UINT32", 4, "<u4", "I", "i"),
    Datatype("UINT64", 8, "<u8", "Q", "i"),
    Datatype("FP16", 2, "<f2", "e", "f"),
    Datatype("BF16", 2, "<f4", "", "f"),
    Datatype("FP32", 4, "<f4", "f", "f"),
    Datatype("FP64", 8, "<f8", "d", "f"),
    Datatype("BYTES", 0, "O", "", "s"),
)
BY_NAME = {datatype.name: datatype for datatype in ALL}
