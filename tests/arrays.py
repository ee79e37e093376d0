"""Conversion between tensors and numpy arrays.

BYTES is an object array of `bytes`, BF16 a uint16 array of bit patterns.
"""

from typing import Any

import numpy as np

from functions.core.protocol.tensors import Tensor

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items() if datatype != "BF16"}


def to_tensor(values: Any, datatype: str = "") -> Tensor:
    """Convert values to a tensor; `datatype` is needed if the dtype is ambiguous."""
    array = np.asarray(values)
    datatype = datatype or _DATATYPES[array.dtype]
    if array.dtype != DTYPES[datatype]:
        raise TypeError(f"{datatype} is {DTYPES[datatype]}, not {array.dtype}")
    return Tensor(
        datatype, array.shape, array.ravel().tolist() if datatype == "BYTES" else array.tobytes()
    )


def to_array(tensor: Tensor) -> np.ndarray:
    """Convert a tensor to a writable array."""
    if tensor.datatype == "BYTES":
        array = np.empty(len(tensor.data), np.object_)
        array[:] = tensor.data
    else:
        array = np.frombuffer(tensor.data, DTYPES[tensor.datatype]).copy()
    return array.reshape(tensor.shape)
