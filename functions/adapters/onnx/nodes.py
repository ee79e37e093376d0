"""Inputs and outputs of a loaded model, as ONNX Runtime reports them."""

from ctypes import byref, c_int, c_int64, c_size_t

from functions.adapters.onnx.capi import ELEMENT_TYPES, Api, Library

_TENSOR, _SEQUENCE, _MAP, _SPARSE, _OPTIONAL = 1, 2, 3, 5, 6  # ONNXType of onnxruntime_c_api.h


class Node:
    """Model input or output, as ONNX Runtime reports it.

    `element` is the number of its element type, None if it is not a tensor; `type` is ONNX's name
    of the type, e.g. `seq(map(int64,tensor(float)))`; sizes in `shape` are below 0 if dynamic.
    """

    def __init__(self, api: Api, name: str, info: int) -> None:
        self.name = name
        self.element, self.shape, self.type = _read_type(api, info)


def read_nodes(library: Library, session: int, kind: str) -> list[Node]:
    """Return a model's inputs or outputs; `kind` is "Input" or "Output"."""
    api = library.api
    get_type = getattr(api, f"SessionGet{kind}TypeInfo")
    nodes = []
    for at, name in enumerate(library.node_names(session, kind)):
        info = api.new(get_type, session, at)
        try:
            nodes.append(Node(api, name, info))
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
