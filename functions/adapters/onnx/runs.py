"""Model runs in ONNX Runtime: tensors to native values and back.

A value is the runtime's handle of a tensor (OrtValue). A numeric input is not copied: its value
points to the packed bytes of the `Tensor`. Outputs are copied, because the runtime frees them.
"""

import math
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_void_p,
    cast,
    create_string_buffer,
    memmove,
    sizeof,
    string_at,
)
from functools import lru_cache
from itertools import pairwise
from typing import Any

from functions.adapters.onnx.capi import ELEMENT_DATATYPES, FAIL, Library, OrtError
from functions.core.errors import ExecutionFailed, PayloadTooLarge, shown
from functions.core.protocol.signature import DATATYPES
from functions.core.protocol.tensors import Tensor

# Number of a datatype in ONNXTensorElementDataType.
ELEMENTS = {datatype: number for number, datatype in ELEMENT_DATATYPES.items()}
_STRING = ELEMENTS["BYTES"]
# Bytes of an output for one byte of a reply, at most: an INT64 is 8 bytes, or 2 in JSON ("0,").
SHRINKAGE = 4
_C_INT_MAX = 2**31 - 1
SHAPES = 256  # cached C arrays


@lru_cache(maxsize=SHAPES)
def _c_shape(shape: tuple[int, ...]) -> Any:
    """Return a shape as a C array, which the library only reads."""
    return (c_int64 * len(shape))(*shape)


def c_strings(names: Sequence[str]) -> Any:
    """Convert names to a C string array that the caller keeps alive."""
    return (c_char_p * len(names))(*(name.encode() for name in names))


class _ValueInfo(Structure):
    """C struct that ONNX Runtime fills with a tensor's type, shape, data."""

    _fields_ = (
        ("element", c_int),
        ("sizes", POINTER(c_int64)),
        ("rank", c_size_t),
        ("data", c_void_p),
    )


class Run:
    """Values and options of a model run, reused by later runs.

    Every buffer and pointer the library gets is made once, here, and lives as long as this object.
    """

    def __init__(self, library: Library, inputs: int, outputs: int) -> None:
        self._library = library
        self._api = api = library.api
        self._release = api.ReleaseRunOptions  # for __del__, when modules may be cleared
        self._options = api.new(api.CreateRunOptions)
        self.terminated = False
        self._inputs = (c_void_p * inputs)()
        self.input_slots = [byref(self._inputs, at * sizeof(c_void_p)) for at in range(inputs)]
        self.outputs = (c_void_p * outputs)()
        self._info = info = _ValueInfo()
        self._info_pointers = (
            byref(info),
            byref(info, _ValueInfo.sizes.offset),
            byref(info, _ValueInfo.rank.offset),
        )
        self._data_pointer = byref(info, _ValueInfo.data.offset)

    def __del__(self) -> None:
        self._release(self._options)

    def terminate(self) -> None:
        """Abort the model run in progress; called from another thread."""
        self.terminated = True
        self._api.RunOptionsSetTerminate(self._options)

    def set_input(self, slot: Any, tensor: Tensor) -> None:
        """Set one input of the model run to a tensor.

        `slot` is one of `input_slots`. ONNX Runtime carries any bytes in its strings; the operators
        that read text check it themselves.
        """
        shape, rank = _c_shape(tensor.shape), len(tensor.shape)
        if tensor.datatype == "BYTES":
            self._set_strings(slot, tensor, shape)
            return
        data, element = tensor.data, ELEMENTS[tensor.datatype]
        create = self._api.CreateTensorWithDataAsOrtValue
        status = create(self._library.memory, data, len(data), shape, rank, element, slot)
        if status is not None:
            self._api.fail(status)

    def _set_strings(self, slot: Any, tensor: Tensor, shape: Any) -> None:
        api = self._api
        api.CreateTensorAsOrtValue(self._library.allocator, shape, len(shape), _STRING, slot)
        value, buffer = cast(slot, POINTER(c_void_p))[0], c_void_p()
        for at, element in enumerate(tensor.data):
            if self.terminated:
                raise OrtError("the time was over before the run", FAIL)
            api.GetResizedStringTensorElementBuffer(value, at, len(element), byref(buffer))
            memmove(buffer, element, len(element))

    def execute(self, session: int, input_names: Any, output_names: Any) -> None:
        """Run a loaded model to its end, filling the output values.

        Raises:
            OrtError: the model failed, or the run was terminated.
            MemoryError: it asked for more memory than there is.
        """
        inputs, outputs = self._inputs, self.outputs
        self._api.Run(
            session,
            self._options,
            input_names,
            inputs,
            len(inputs),
            output_names,
            len(outputs),
            outputs,
        )

    def read_output(self, name: str, value: int | None, reply_bytes_max: int | None) -> Tensor:
        """Copy a model output from ONNX Runtime's memory to a tensor.

        Raises:
            ExecutionFailed: there is no value.
            PayloadTooLarge: a reply of `reply_bytes_max` cannot hold it; it is not copied.
        """
        if not value:
            raise ExecutionFailed("the model gave no value for an output")
        api, info = self._api, self._info
        status = api.GetTensorElementTypeAndShapeDataReference(value, *self._info_pointers)
        if status is not None:
            api.fail(status)
        shape = tuple(info.sizes[: info.rank]) if info.rank else ()
        datatype = ELEMENT_DATATYPES[info.element]
        if datatype == "BYTES":
            count, size = math.prod(shape), c_size_t()
            api.GetStringTensorDataLength(value, byref(size))
            if reply_bytes_max is not None and 3 * count + size.value > reply_bytes_max:
                raise _too_large(name, shape, 3 * count + size.value, reply_bytes_max)
            return Tensor(datatype, shape, self._read_strings(value, count, size))
        size_bytes = math.prod(shape) * (DATATYPES[datatype] or 0)
        if reply_bytes_max is not None and size_bytes > SHRINKAGE * reply_bytes_max:
            raise _too_large(name, shape, size_bytes, reply_bytes_max)
        status = api.GetTensorMutableData(value, self._data_pointer)
        if status is not None:
            api.fail(status)
        return Tensor(datatype, shape, _copy(info.data, size_bytes) if size_bytes else b"")

    def _read_strings(self, value: int, count: int, size: c_size_t) -> list[bytes]:
        """Return the strings of an ONNX Runtime string tensor as bytes.

        All are copied into one buffer, which is cut at their offsets.
        """
        if not count:
            return []
        buffer, offsets = create_string_buffer(max(1, size.value)), (c_size_t * count)()
        self._api.GetStringTensorContent(value, buffer, size.value, offsets, count)
        text, bounds = buffer.raw[: size.value], [*offsets, size.value]
        return [text[start:end] for start, end in pairwise(bounds)]

    def release_values(self) -> None:
        """Free ONNX Runtime's values of all inputs and outputs."""
        for values in (self._inputs, self.outputs):
            for at, value in enumerate(values):
                if value:
                    self._api.ReleaseValue(value)
                    values[at] = None


def _copy(address: int, size_bytes: int) -> bytes:
    """Copy native memory into bytes, including blocks of 2 GB and more."""
    if size_bytes <= _C_INT_MAX:
        return string_at(address, size_bytes)
    return bytes((c_char * size_bytes).from_address(address))


def _too_large(name: str, shape: tuple[int, ...], size_bytes: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"output {shown(name)} of shape {shown(list(shape))} takes {size_bytes} bytes and a reply "
        f"at most {limit}: send fewer rows or other sizes, or ask for fewer outputs"
    )
