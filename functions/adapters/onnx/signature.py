"""Model signature (input and output types and shapes) from ONNX Runtime."""

from collections.abc import Collection
from ctypes import byref, c_int, c_int64, c_size_t
from pathlib import Path

from functions.adapters.onnx.capi import ELEMENT_DATATYPES, ELEMENT_TYPES, Api, Library
from functions.core.errors import InvalidModel, shown
from functions.core.package.onnx_reader import read_onnx
from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec

_TENSOR, _SEQUENCE, _MAP, _SPARSE, _OPTIONAL = 1, 2, 3, 5, 6  # ONNXType of onnxruntime_c_api.h


def read_signature(library: Library, session: int, path: Path) -> Signature:
    """Return a loaded model's declared inputs and outputs as a signature.

    `session` is the runtime's handle, `path` the model file.

    Raises:
        InvalidModel: `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
    """
    inputs, outputs = _nodes(library, session, "Input"), _nodes(library, session, "Output")
    # The runtime reports no dimensions both for a scalar and for a tensor of unknown rank; the
    # file tells them apart.
    ambiguous = any(not node.shape for node in (*inputs, *outputs))
    unranked = read_onnx(path).unranked if ambiguous else frozenset()
    return Signature(
        tuple(_spec("input", node, unranked) for node in inputs),
        tuple(_spec("output", node, unranked) for node in outputs),
    )


class _Node:
    """Model input or output, as ONNX Runtime reports it.

    `element` is the number of its element type, None if it is not a tensor; `type` is ONNX's name
    of the type, e.g. `seq(map(int64,tensor(float)))`; sizes in `shape` are below 0 if dynamic.
    """

    def __init__(self, api: Api, name: str, info: int) -> None:
        self.name = name
        self.element, self.shape, self.type = _read_type(api, info)


def _nodes(library: Library, session: int, kind: str) -> list[_Node]:
    """Return a model's inputs or outputs; `kind` is "Input" or "Output"."""
    api = library.api
    get_type = getattr(api, f"SessionGet{kind}TypeInfo")
    nodes = []
    for at, name in enumerate(library.node_names(session, kind)):
        info = api.new(get_type, session, at)
        try:
            nodes.append(_Node(api, name, info))
        finally:
            api.ReleaseTypeInfo(info)
    return nodes


def _read_type(api: Api, info: int) -> tuple[int | None, tuple[int, ...], str]:
    """Return (element type, shape, type name) of a model input or output."""
    kind = c_int()
    api.GetOnnxTypeFromTypeInfo(info, byref(kind))
    if kind.value != _TENSOR:
        return None, (), _container_name(api, info, kind.value)
    tensor = api.new(api.CastTypeInfoToTensorInfo, info)  # part of `info`: not to be released
    element = c_int()
    api.GetTensorElementType(tensor, byref(element))
    return element.value, _read_shape(api, tensor), f"tensor({_element_name(element.value)})"


def _container_name(api: Api, info: int, kind: int) -> str:
    inner = 0
    try:
        if kind == _SEQUENCE:
            sequence = api.new(api.CastTypeInfoToSequenceTypeInfo, info)
            inner = api.new(api.GetSequenceElementType, sequence)
            return f"seq({_read_type(api, inner)[2]})"
        if kind == _MAP:
            mapping, key = api.new(api.CastTypeInfoToMapTypeInfo, info), c_int()
            api.GetMapKeyType(mapping, byref(key))
            inner = api.new(api.GetMapValueType, mapping)
            return f"map({_element_name(key.value)},{_read_type(api, inner)[2]})"
    finally:
        api.ReleaseTypeInfo(inner)
    return {_SPARSE: "sparse tensor", _OPTIONAL: "optional"}.get(kind, "type of its own")


def _element_name(element: int) -> str:
    return ELEMENT_TYPES[element][0] if element < len(ELEMENT_TYPES) else f"type {element}"


def _read_shape(api: Api, tensor: int) -> tuple[int, ...]:
    rank = c_size_t()
    api.GetDimensionsCount(tensor, byref(rank))
    sizes = (c_int64 * rank.value)()
    api.GetDimensions(tensor, sizes, rank.value)
    return tuple(sizes)


def _spec(kind: str, node: _Node, unranked: Collection[str]) -> TensorSpec:
    """Convert a model input or output to an Open Inference Protocol declaration.

    Outputs without a declared rank are reported as `[-1]`.
    """
    datatype = None if node.element is None else ELEMENT_DATATYPES.get(node.element)
    if datatype is None:
        supported = "tensors of booleans, integers, floats or strings"
        raise InvalidModel(
            f"{kind} {shown(node.name)} is a {node.type}, only {supported} are served; "
            f"{_next_step(node.type)}",
            code="UNSUPPORTED_TYPE",
        )
    if node.shape or node.name not in unranked:
        shape = tuple(size if size >= 0 else DYNAMIC for size in node.shape)
        return TensorSpec(node.name, datatype, shape)
    if kind == "output":
        return TensorSpec(node.name, datatype, (DYNAMIC,))
    raise InvalidModel(
        f"input {shown(node.name)} does not say how many dimensions it has; export it with a shape",
        code="UNKNOWN_RANK",
    )


def _next_step(container: str) -> str:
    """Return advice for exporting a model input or output as a tensor."""
    if container.startswith("seq(map("):
        return "export the classifier with options={'zipmap': False}"
    if container.startswith("seq("):
        return "join it to a tensor (ConcatFromSequence), or export a model for each element"
    return "export the model with such tensors in its place"
