"""Model runs in ONNX Runtime: tensors to native values and back.

A value is the runtime's handle of a tensor (OrtValue). A large numeric input is not copied: its
value points to the packed bytes of the `Tensor`. Outputs are copied, because the runtime frees
them.
"""

import math
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    addressof,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_void_p,
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
KEPT_BYTES = 4096  # a numeric input up to this size is copied into a value that stays


@lru_cache(maxsize=SHAPES)
def _c_shape(shape: tuple[int, ...]) -> Any:
    """Return a shape as a C array, which the library only reads."""
    return (c_int64 * len(shape))(*shape)


def _pointer(array: Any, offset: int = 0) -> c_void_p:
    """Return a pointer into a ctypes array, which has to stay alive."""
    return c_void_p(addressof(array) + offset)


class Names:
    """Names as a C array of C strings."""

    def __init__(self, names: Sequence[str]) -> None:
        self.texts = tuple(names)
        self._array = (c_char_p * len(names))(*(name.encode() for name in names))
        self.pointer = _pointer(self._array)

    def __len__(self) -> int:
        return len(self.texts)


class _ValueInfo(Structure):
    """C struct that ONNX Runtime fills with a tensor's type, shape, data."""

    _fields_ = (
        ("element", c_int),
        ("sizes", POINTER(c_int64)),
        ("rank", c_size_t),
        ("data", c_void_p),
    )


class _Input:
    """Input of a model run, with a buffer for small tensors.

    Making and freeing a value takes longer than copying a small tensor. So its value points to the
    buffer and stays for the next tensor of the same type and shape.
    """

    def __init__(self, library: Library, values: Any, at: int) -> None:
        self._library = library
        self._values = values
        self._at = at
        self._place = _pointer(values, at * sizeof(c_void_p))
        self._kept: tuple[str, tuple[int, ...]] | None = None  # type and shape of the value
        self._buffer: Any = None  # made for the first small tensor
        self._view = memoryview(b"")

    def set(self, tensor: Tensor) -> None:
        """Set the input's value to a tensor of numbers."""
        data, kept = tensor.data, (tensor.datatype, tensor.shape)
        if kept == self._kept:
            self._view[: len(data)] = data
            return
        self.release()
        if len(data) > KEPT_BYTES:
            self._create(tensor, data)
            return
        if self._buffer is None:
            self._buffer = (c_char * KEPT_BYTES)()
            self._view = memoryview(self._buffer).cast("B")
        self._view[: len(data)] = data
        self._create(tensor, _pointer(self._buffer))
        self._kept = kept

    def _create(self, tensor: Tensor, data: Any) -> None:
        shape, rank, element = _c_shape(tensor.shape), len(tensor.shape), ELEMENTS[tensor.datatype]
        create, memory = self._library.api.CreateTensorWithDataAsOrtValue, self._library.memory
        create(memory, data, len(tensor.data), shape, rank, element, self._place)

    def set_strings(self, tensor: Tensor, run: "Run") -> None:
        """Set the input's value to a tensor of strings."""
        self.release()
        api, shape = self._library.api, _c_shape(tensor.shape)
        allocator, rank = self._library.allocator, len(tensor.shape)
        api.CreateTensorAsOrtValue(allocator, shape, rank, _STRING, self._place)
        value, buffer = self._values[self._at], c_void_p()
        for at, element in enumerate(tensor.data):
            if run.terminated:
                raise OrtError("the time was over before the run", FAIL)
            api.GetResizedStringTensorElementBuffer(value, at, len(element), byref(buffer))
            memmove(buffer, element, len(element))

    def end(self) -> None:
        """Free the value after a run, unless it points to the buffer."""
        if self._kept is None:
            self.release()

    def release(self) -> None:
        """Free the value."""
        self._kept = None
        value = self._values[self._at]
        if value:
            self._library.api.ReleaseValue(value)
            self._values[self._at] = None


class Run:
    """Values and options of a model run, reused by later runs.

    Every buffer and pointer the library gets is made once, here, and lives as long as this object.
    ctypes passes a `c_void_p` on, and looks longer at anything else.
    """

    def __init__(self, library: Library, session: int, inputs: Names, outputs: Names) -> None:
        self._api = api = library.api
        self._release = api.ReleaseRunOptions  # for __del__, when modules may be cleared
        self._options = c_void_p(api.new(api.CreateRunOptions))
        self.terminated = False
        self._names = inputs, outputs  # keeps their memory
        input_values, output_values = (c_void_p * len(inputs))(), (c_void_p * len(outputs))()
        self._inputs = [_Input(library, input_values, at) for at in range(len(inputs))]
        self._outputs = output_values
        self._arguments = (
            *(c_void_p(session), self._options),
            *(inputs.pointer, _pointer(input_values), c_size_t(len(inputs))),
            *(outputs.pointer, c_size_t(len(outputs)), _pointer(output_values)),
        )
        self._info = info = _ValueInfo()
        self._type_and_shape = [
            _pointer(info, field.offset)
            for field in (_ValueInfo.element, _ValueInfo.sizes, _ValueInfo.rank)
        ]
        self._data = _pointer(info, _ValueInfo.data.offset)

    def __del__(self) -> None:
        for each in self._inputs:
            each.release()
        self._release(self._options)

    def terminate(self) -> None:
        """Abort the model run in progress; called from another thread."""
        self.terminated = True
        self._api.RunOptionsSetTerminate(self._options)

    def set_inputs(self, tensors: Sequence[Tensor]) -> None:
        """Set the inputs of the model run, in the model's order.

        ONNX Runtime carries any bytes in its strings; the operators that read text check it
        themselves.
        """
        for each, tensor in zip(self._inputs, tensors, strict=True):
            if tensor.datatype == "BYTES":
                each.set_strings(tensor, self)
            else:
                each.set(tensor)

    def execute(self) -> None:
        """Run the loaded model to its end, filling the output values.

        Raises:
            OrtError: the model failed, or the run was terminated.
            MemoryError: it asked for more memory than there is.
        """
        self._api.Run(*self._arguments)

    def outputs(self, reply_bytes_max: int | None) -> dict[str, Tensor]:
        """Copy the model's outputs from ONNX Runtime's memory to tensors.

        Raises:
            ExecutionFailed: there is no value.
            PayloadTooLarge: a reply of `reply_bytes_max` cannot hold one; it is not copied.
        """
        names, values = self._names[1].texts, self._outputs[:]
        return {
            name: self._read(name, value, reply_bytes_max)
            for name, value in zip(names, values, strict=True)
        }

    def _read(self, name: str, handle: int | None, reply_bytes_max: int | None) -> Tensor:
        if not handle:
            raise ExecutionFailed("the model gave no value for an output")
        api, info, value = self._api, self._info, c_void_p(handle)
        api.GetTensorElementTypeAndShapeDataReference(value, *self._type_and_shape)
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
        api.GetTensorMutableData(value, self._data)
        return Tensor(datatype, shape, _copy(info.data, size_bytes) if size_bytes else b"")

    def _read_strings(self, value: c_void_p, count: int, size: c_size_t) -> list[bytes]:
        """Return the strings of an ONNX Runtime string tensor as bytes.

        All are copied into one buffer, which is cut at their offsets.
        """
        if not count:
            return []
        buffer, offsets = create_string_buffer(max(1, size.value)), (c_size_t * count)()
        self._api.GetStringTensorContent(value, buffer, size.value, offsets, count)
        text, bounds = buffer.raw[: size.value], [*offsets, size.value]
        return [text[start:end] for start, end in pairwise(bounds)]

    def end(self) -> None:
        """Free ONNX Runtime's values, except those of small inputs."""
        for each in self._inputs:
            each.end()
        for at, value in enumerate(self._outputs[:]):
            if value:
                self._api.ReleaseValue(value)
                self._outputs[at] = None


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
