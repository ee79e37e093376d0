"""Parser of ONNX constants (TensorProto): checks sizes, leaves values undecoded."""

import math
import re
from array import array
from dataclasses import dataclass, field

from functions.core.errors import InvalidModel, shown
from functions.core.package import onnx_limits as limits
from functions.core.package import onnx_wire as wire
from functions.core.package.onnx_graph import Constant, decode
from functions.core.package.onnx_wire import WireReader

EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}

_INT32_DATA, _INT64_DATA = 5, 7  # field numbers of TensorProto
# Field with values -> the types whose values it holds
_HOLDS = {
    4: {1, 14},  # float, complex64
    _INT32_DATA: {2, 3, 4, 5, 6, 9, 10, *range(16, 27)},  # up to 32 bits, but uint32
    6: {limits.STRING},
    _INT64_DATA: {7},
    10: {11, 15},  # double, complex128
    11: {12, 13},  # uint32, uint64
}
_EXTERNAL = 1  # TensorProto.DataLocation: in another file
_REPEATED = {
    **wire.runs(wire.FIXED32, 4),  # float_data
    **wire.runs(wire.VARINT, _INT32_DATA, _INT64_DATA, 11),  # uint64_data: 11
    **wire.runs(wire.FIXED64, 10),  # double_data
    **wire.runs(wire.BYTES, 6),  # string_data
}


@dataclass(slots=True)
class Tensor:
    """ONNX constant without its values: type, dimensions, byte ranges of its data."""

    name: str = ""
    datatype: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None  # start, end of raw_data
    typed: tuple[int, int, int] | None = None  # field number, start, end of packed values
    typed_most: int = 0  # upper bound of the number of elements in typed fields
    filled: dict[int, int] = field(default_factory=dict)  # field with values -> times it came
    strings: int = 0
    external: dict[str, str] = field(default_factory=dict)
    location_at: int = 0  # position of external["location"] in the file
    is_external: bool = False

    def size_bytes(self) -> int:
        """Return the size in bytes that a constant's type and dimensions imply.

        Raises:
            InvalidModel: `BAD_CONSTANT`: a dimension or the type is not allowed.
        """
        if any(not 0 <= size <= limits.DIMENSION for size in self.dims):
            dims, most = shown(self.dims), limits.DIMENSION
            raise self.bad(f"its dimensions are {dims}, and each has to be 0 to {most}")
        bits = limits.BITS.get(self.datatype)
        if bits is None and self.datatype != limits.STRING:
            raise self.bad(f"its type {shown(self.datatype)} does not exist")
        return (self.elements * (bits or 8) + 7) // 8

    def check_values(self, size: int) -> None:
        """Check that a constant has as many values as its dimensions declare.

        `size` is the result of `size_bytes()`.

        Raises:
            InvalidModel: `BAD_CONSTANT`: there are more or fewer, or some of another type.
        """
        if any(self.datatype not in _HOLDS[number] for number in self.filled):
            raise self.bad("it holds values of another type than its own")
        if self.raw and self.filled:
            raise self.bad("it holds its values twice, as bytes and as numbers")
        bits = limits.BITS.get(self.datatype)
        if bits is None:
            if self.raw or self.strings != self.elements:
                raise self.bad(
                    f"it holds {self.strings} strings, and its dimensions say {self.elements}"
                )
        elif self.raw:
            raw_bytes = self.raw[1] - self.raw[0]
            if raw_bytes != size:
                raise self.bad(f"it holds {raw_bytes} bytes, and its dimensions say {size}")
        elif self.elements > self.typed_most * 8 // min(bits, 8):
            raise self.bad(
                f"it holds fewer values than the {self.elements} that its dimensions say"
            )

    def external_end(self, size: int) -> tuple[str, int]:
        """Return a constant's external weight file and its data's end offset.

        Raises:
            InvalidModel: `BAD_CONSTANT`: no file is named, the place is malformed, or this file
                holds data, too.
        """
        location = self.external.get("location")
        holds_data = self.raw or self.typed_most or self.strings
        if not location or holds_data or self.datatype == limits.STRING:
            raise self.bad(
                "it is said to lie in another file, and does not say in which, or lies here, too"
            )
        numbers = [self.external.get("offset", "0"), self.external.get("length", str(size))]
        if not all(re.fullmatch(r"[0-9]{1,15}", number, re.ASCII) for number in numbers):
            place = shown(", ".join(numbers))
            raise self.bad(f"its place in another file is {place}, which are no numbers")
        offset, length = map(int, numbers)
        if length != size:
            raise self.bad(f"it has {length} bytes in another file, and its dimensions say {size}")
        return location, offset + length

    def bad(self, reason: str) -> InvalidModel:
        """Return the BAD_CONSTANT error that names this constant and the reason."""
        return InvalidModel(
            f"the constant {shown(self.name)} cannot be read: {reason}", code="BAD_CONSTANT"
        )

    @property
    def elements(self) -> int:
        return math.prod(self.dims)


def read_tensor(reader: WireReader, start: int, end: int) -> Tensor:
    """Parse a TensorProto's type, dimensions and data location, not its values.

    Raises:
        InvalidModel: `TOO_COMPLEX`, `BAD_CONSTANT`, `BAD_NAME`, `TRUNCATED` or `NOT_ONNX`.
    """
    tensor = Tensor()
    for number, kind, first, last in reader.fields(start, end, _REPEATED):
        if number in _HOLDS and (number == 6 or kind != wire.BYTES or last > first):
            tensor.filled[number] = tensor.filled.get(number, 0) + 1
        match number, kind:
            case 1, wire.VARINT:  # dims
                tensor.dims.append(wire.signed(first))
            case 1, wire.BYTES:
                tensor.dims += reader.packed(first, last, limits.RANK)
            case 2, wire.VARINT:  # data_type
                tensor.datatype = first & 0xFFFFFFFF
            case 6, wire.BYTES:  # string_data
                tensor.strings += 1
            case 6, wire.RUN:
                tensor.strings += reader.count_texts(first, last)
            case 8, wire.BYTES:  # name
                tensor.name = reader.text(first, last)
            case 9, wire.BYTES:  # raw_data
                tensor.raw = first, last
            case ((4 | 5 | 7 | 10 | 11), wire.BYTES):  # values of one type, packed
                tensor.typed = number, first, last
                tensor.typed_most += last - first  # each element takes at least a byte
            case ((4 | 5 | 7 | 10 | 11), _):
                tensor.typed_most += last - first if kind == wire.RUN else 1
            case 13, wire.BYTES:  # external_data
                _add_external(tensor, *reader.entry(first, last))
            case 14, wire.VARINT:  # data_location
                tensor.is_external = first & 0xFFFFFFFF == _EXTERNAL
        if len(tensor.dims) > limits.RANK:
            raise wire.too_complex(f"a constant has over {limits.RANK} dimensions")
    return tensor


def _add_external(tensor: Tensor, key: str, value: str, at: int) -> None:
    if key not in EXTERNAL_KEYS or key in tensor.external:
        raise tensor.bad(f"its place in another file is described by {shown(key)}")
    tensor.external[key] = value
    if key == "location":
        tensor.location_at = at


def constant(reader: WireReader, tensor: Tensor) -> Constant:
    """Wrap a TensorProto as a constant whose integers are decoded on demand."""
    return Constant(tensor.datatype, lambda: _values(reader, tensor))


def _values(reader: WireReader, tensor: Tensor) -> "array[int] | None":
    """Decode a constant's integers; None if too many or in another file."""
    elements = tensor.elements
    if elements > limits.DIVISOR_ELEMENTS or tensor.external:
        return None
    if tensor.raw:
        return decode(tensor.datatype, bytes(reader.data[slice(*tensor.raw)]))
    if tensor.typed and tensor.typed[0] in (_INT32_DATA, _INT64_DATA):
        number, start, end = tensor.typed
        values = reader.packed(start, end, limits.DIVISOR_ELEMENTS)
        if tensor.filled.get(number) != 1 or len(values) != elements:
            return None  # some were unpacked, or packed elsewhere
        if number == _INT32_DATA:  # the runtime takes the low bits of longer numbers
            values = [(value + 2**31) % 2**32 - 2**31 for value in values]
        return array("q", values)
    return None
