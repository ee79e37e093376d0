"""Safe ranges of ONNX node attributes; values outside crash ONNX Runtime.

Registration may never run an operator, if no request that it generates gets that far: so its
attributes are checked in the file. The decision: docs/decisions/0033-values-that-crash.md.
"""

from collections.abc import Sequence

from functions.core.errors import InvalidModel, shown
from functions.core.package import onnx_limits as limits
from functions.core.package import onnx_wire as wire
from functions.core.package.onnx_graph import Node
from functions.core.package.onnx_wire import WireReader

_HEADS = 2**16  # far above any model's; from 2**32 on, the runtime takes the low bits
# Attribute, of any operator -> least and largest value
_RANGES = {
    "batch_dims": (0, limits.RANK),
    "kv_num_heads": (0, _HEADS),
    "max_skip_count": (0, 2**16),  # the runtime counts up to it for each row
    "num_heads": (0, _HEADS),
    "q_num_heads": (0, _HEADS),
}
_LISTS = {
    "FeatureVectorizer": {"inputdimensions"},
    "TfIdfVectorizer": {"ngram_counts", "ngram_indexes", "pool_int64s", "pool_strings"},
}


def check_attributes(reader: WireReader, node: Node, places: Sequence[tuple[int, int]]) -> None:
    """Refuse an ONNX node whose attributes could crash ONNX Runtime.

    `places` has start and end of each of its AttributeProtos.

    Raises:
        InvalidModel: `UNSAFE_OPERATOR`.
    """
    for name, (least, most) in _RANGES.items():
        integer = node.attributes.get(name, least)
        if not least <= integer <= most:
            raise _unsafe(node, name, f"is {shown(integer)}", f"make it {least} to {most}")
    checked = _LISTS.get(node.op)
    if checked:
        lists = dict(_read(reader, *place, checked) for place in places)
        _check_lists(node, lists)


def _check_lists(node: Node, lists: dict[str, list[int]]) -> None:
    for size in lists.get("inputdimensions", []):
        if not 0 <= size <= limits.DIMENSION:
            reason, cure = f"has {shown(size)}", f"make each 0 to {limits.DIMENSION}"
            raise _unsafe(node, "inputdimensions", reason, cure)
    grams, indexes = _grams(lists), len(lists.get("ngram_indexes", []))
    if indexes < grams:
        reason = f"has {indexes} numbers, and the pool {grams} n-grams"
        raise _unsafe(node, "ngram_indexes", reason, "give each n-gram an index")


def _grams(lists: dict[str, list[int]]) -> int:
    """Return the number of n-grams in the pool of a TfIdfVectorizer."""
    pool = len(lists.get("pool_int64s") or lists.get("pool_strings") or [])
    starts = lists.get("ngram_counts", [])  # single words, then pairs, and so on
    pairs = enumerate(zip(starts, [*starts[1:], pool], strict=False), 1)
    return sum(max(0, end - start) // length for length, (start, end) in pairs)


def _read(reader: WireReader, start: int, end: int, checked: set[str]) -> tuple[str, list[int]]:
    """Return an attribute's name and integers, zeros for strings.

    The values stay out if the name is not in `checked`.
    """
    name, integers = "", list[int]()
    again = WireReader(reader.data)  # a second look counts for no limit
    for number, kind, first, last in again.fields(start, end):
        match number, kind:
            case 1, wire.BYTES:
                name = reader.text(first, last)
            case 8, wire.VARINT:
                integers.append(wire.signed(first))
            case 8, wire.BYTES:
                integers += reader.packed(first, last, last - first)
            case 9, wire.BYTES:
                integers.append(0)
    return name, integers if name in checked else []


def _unsafe(node: Node, name: str, reason: str, cure: str) -> InvalidModel:
    label = shown(node.name or next(iter(node.outputs), node.op))
    return InvalidModel(
        f"attribute {name} of node {label} ({node.op}) {reason}, which could end the process; "
        f"{cure}",
        code="UNSAFE_OPERATOR",
    )
