"""ONNX Runtime: sessions for serving, and the signature of a model for its registration."""

import math
import re
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from ctypes import (
    POINTER,
    Structure,
    byref,
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
from itertools import pairwise
from pathlib import Path
from typing import Any

from functions.adapters.memory import pages_of_their_own
from functions.adapters.onnx.capi import FATAL, Api, Library, OrtError, library
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut, shown
from functions.core.protocol.signature import DATATYPES, DYNAMIC, Signature, TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.core.registry.load_plan import Plan

SECONDS_MAX = 3600.0
ASKED = 32  # choices of outputs that a session remembers; a caller may make any number
THREADS_MAX = (
    768  # of this process, after which sessions get none of their own; Lambda allows 1,024
)

# ONNXTensorElementDataType of onnxruntime_c_api.h
ELEMENTS = {
    "FP32": 1,
    "UINT8": 2,
    "INT8": 3,
    "UINT16": 4,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BYTES": 8,
    "BOOL": 9,
    "FP16": 10,
    "FP64": 11,
    "UINT32": 12,
    "UINT64": 13,
    "BF16": 16,
}
_STRING = ELEMENTS["BYTES"]
_DATATYPES = {element: datatype for datatype, element in ELEMENTS.items()}
_TYPES = (
    "undefined", "float", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "double",
    "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2",
    "float8e5m2fnuz", "uint4", "int4", "float4e2m1",
)  # fmt: skip
_TENSOR, _SEQUENCE, _MAP, _SPARSE, _OPTIONAL = 1, 2, 3, 5, 6  # ONNXType
_DISABLE_ALL, _EXTENDED, _LAYOUT = 0, 2, 3  # GraphOptimizationLevel
_MAPPED_BYTES = (
    1024  # weights below stay in the graph, as the runtime advises: shape inference reads them
)
_SIZES = [c_int64 * rank for rank in range(9)]  # shapes of usual ranks, at hand


def inspect_signature(path: Path) -> Signature:
    """What the model at `path` takes and gives. Its weights, if outside, lie beside it.

    Raises:
        InvalidModel: `NOT_LOADABLE`, `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
    """
    try:
        return OnnxRuntime().load(path).signature(path)
    except MemoryError as error:
        raise InvalidModel(
            "the model does not fit into the memory that checks it", code="NOT_LOADABLE"
        ) from error


class OnnxRuntime:
    """`core.serving.Runtime`. `threads` are those that this process may use."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._library = library()
        self._watchdog = _Watchdog()

    def load(self, path: Path, plan: Plan | None = None) -> "OnnxSession":
        """Without a plan, the graph is optimised for this processor, and weights are packed for its kernels."""
        plan = plan or Plan(threads=self._threads)
        with _Options(
            self._library.api, self._threads_for(plan), prepacking=plan.prepacking
        ) as options:
            if plan.optimised != "none":
                options.optimise(_LAYOUT if plan.layout else _DISABLE_ALL)
            return self._open(path, options)

    def compile(self, path: Path, target: Path, weights: str | None) -> "OnnxSession":
        """A session that is optimised as far as any processor of this architecture allows, and `target`, that graph.

        `weights` is the name of the file beside `target` for its larger weights, which are then mapped, not read.

        Raises:
            InvalidModel: the runtime refuses the model, or cannot write it.
            MemoryError: it does not fit.
        """
        threads = self._threads_for(Plan(threads=self._threads))
        with _Options(self._library.api, threads, prepacking=False) as options:
            options.optimise(_EXTENDED, target)
            if weights is not None:
                prefix = "session.optimized_model_external_initializers"
                options.set(f"{prefix}_file_name", weights)
                options.set(f"{prefix}_min_size_in_bytes", str(_MAPPED_BYTES))
            return self._open(path, options)

    def _threads_for(self, plan: Plan) -> int:
        """One, where this process has about as many as Lambda allows: each session keeps its own."""
        wanted = max(1, min(plan.threads, self._threads))
        return (
            wanted
            if wanted == 1 or Path("/proc/self/task").stat().st_nlink - 2 < THREADS_MAX
            else 1
        )

    def _open(self, path: Path, options: "_Options") -> "OnnxSession":
        library = self._library
        try:
            with pages_of_their_own():
                create = library.api.CreateSession
                handle = library.api.new(create, library.environment, bytes(path), options.handle)
        except OrtError as error:
            raise InvalidModel(
                f"onnxruntime cannot load the model: {_clean(error)}", code="NOT_LOADABLE"
            ) from None
        return OnnxSession(library, handle, self._watchdog)


class _Options:
    """How a session is made. Arena and memory patterns are off: docs/decisions/0007-memory-of-an-environment.md."""

    def __init__(self, api: Api, threads: int, *, prepacking: bool) -> None:
        self._api = api
        self.handle = api.new(api.CreateSessionOptions)
        api.SetIntraOpNumThreads(self.handle, threads)
        api.SetInterOpNumThreads(self.handle, 1)
        api.SetSessionLogSeverityLevel(self.handle, FATAL)
        api.DisableCpuMemArena(self.handle)
        api.DisableMemPattern(self.handle)
        self.set("session.load_model_format", "ONNX")
        self.set("session.intra_op.allow_spinning", "0")
        self.set("session.inter_op.allow_spinning", "0")
        self.set("session.disable_prepacking", "0" if prepacking else "1")

    def __enter__(self) -> "_Options":
        return self

    def __exit__(self, *_: object) -> None:
        self._api.ReleaseSessionOptions(self.handle)

    def set(self, key: str, value: str) -> None:
        self._api.AddSessionConfigEntry(self.handle, key.encode(), value.encode())

    def optimise(self, level: int, target: Path | None = None) -> None:
        """`level` of optimisation; the graph that comes of it is written to `target`."""
        self._api.SetSessionGraphOptimizationLevel(self.handle, level)
        if target is not None:
            self._api.SetOptimizedModelFilePath(self.handle, bytes(target))


class _Node:
    """An input or output of a session as the runtime shows it. `element` is None where it is no tensor."""

    def __init__(self, library: Library, name: str, info: int) -> None:
        self.name = name
        self.element, self.shape, self.type = _read_type(library.api, info)


def _nodes(library: Library, session: int, kind: str) -> list[_Node]:
    """`kind` is "Input" or "Output"."""
    api = library.api
    count = c_size_t()
    getattr(api, f"SessionGet{kind}Count")(session, byref(count))
    get_name, get_type = (
        getattr(api, f"SessionGet{kind}Name"),
        getattr(api, f"SessionGet{kind}TypeInfo"),
    )
    nodes = []
    for at in range(count.value):
        text = api.new(get_name, session, at, library.allocator)
        name = string_at(text).decode()
        api.AllocatorFree(library.allocator, text)
        info = api.new(get_type, session, at)
        try:
            nodes.append(_Node(library, name, info))
        finally:
            api.ReleaseTypeInfo(info)
    return nodes


def _read_type(api: Api, info: int) -> tuple[int | None, tuple[int, ...], str]:
    """Element type and shape of a tensor, and how ONNX spells the type, e.g. `seq(map(int64,tensor(float)))`."""
    kind = c_int()
    api.GetOnnxTypeFromTypeInfo(info, byref(kind))
    if kind.value == _TENSOR:
        tensor = api.new(api.CastTypeInfoToTensorInfo, info)  # a view: not to be released
        element = c_int()
        api.GetTensorElementType(tensor, byref(element))
        return element.value, _read_shape(api, tensor), f"tensor({_type_name(element.value)})"
    return None, (), _spelled_type(api, info, kind.value)


def _spelled_type(api: Api, info: int, kind: int) -> str:
    inner = 0
    try:
        if kind == _SEQUENCE:
            inner = api.new(
                api.GetSequenceElementType, api.new(api.CastTypeInfoToSequenceTypeInfo, info)
            )
            return f"seq({_read_type(api, inner)[2]})"
        if kind == _MAP:
            view, key = api.new(api.CastTypeInfoToMapTypeInfo, info), c_int()
            api.GetMapKeyType(view, byref(key))
            inner = api.new(api.GetMapValueType, view)
            return f"map({_type_name(key.value)},{_read_type(api, inner)[2]})"
    finally:
        api.ReleaseTypeInfo(inner)
    return {_SPARSE: "sparse tensor", _OPTIONAL: "optional"}.get(kind, "type of its own")


def _type_name(element: int) -> str:
    return _TYPES[element] if element < len(_TYPES) else f"type {element}"


def _read_shape(api: Api, info: int) -> tuple[int, ...]:
    """Sizes; below 0 where a request chooses."""
    count = c_size_t()
    api.GetDimensionsCount(info, byref(count))
    sizes = (c_int64 * count.value)()
    api.GetDimensions(info, sizes, count.value)
    return tuple(sizes)


class OnnxSession:
    """`core.serving.Session`."""

    def __init__(self, library: Library, handle: int, watchdog: "_Watchdog") -> None:
        self._library = library
        self._handle = handle
        self._release = library.api.ReleaseSession  # at hand also when the interpreter ends
        self._watchdog = watchdog
        self._inputs = _nodes(library, handle, "Input")
        self._names_in = _names([node.name for node in self._inputs])
        # What was asked for: its names as the library takes them, and what runs for it have left for the next ones.
        self._asked: dict[tuple[str, ...], tuple[Any, list[_Run]]] = {}

    def __del__(self) -> None:
        self._release(self._handle)

    def signature(self, path: Path) -> Signature:
        """What it takes and gives. `path` is what it was loaded from.

        Raises:
            InvalidModel: `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
        """
        from functions.core.package.onnx_reader import read_onnx  # for registration alone

        # The runtime shows no dimensions for a scalar and for a tensor that declares none alike.
        outputs = _nodes(self._library, self._handle, "Output")
        unclear = any(not node.shape for node in (*self._inputs, *outputs))
        unranked = read_onnx(path).unranked if unclear else frozenset()
        return Signature(
            tuple(_spec("input", node, unranked) for node in self._inputs),
            tuple(_spec("output", node, unranked) for node in outputs),
        )

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Sequence[str], timeout_s: float
    ) -> dict[str, Tensor]:
        """`inputs` are all that the model declares."""
        wanted = tuple(outputs)
        names_out, idle = self._asked.get(wanted) or self._ask(wanted)
        run = idle.pop() if idle else _Run(self._library, len(self._inputs), len(wanted))
        self._watchdog.watch(run, timeout_s)
        try:
            for node, place in zip(self._inputs, run.places, strict=True):
                run.feed(place, node.name, inputs[node.name])
            run.start(self._handle, self._names_in, names_out)
            return dict(zip(wanted, map(run.read, run.results), strict=True))
        except OrtError as error:
            if run.terminated:
                raise TimedOut(
                    f"the model was stopped after {math.ceil(timeout_s * 1000)} ms"
                ) from None
            raise ExecutionFailed(f"the model failed on these values: {_clean(error)}") from None
        finally:
            unstopped = self._watchdog.forget(run)
            run.clear()
            if unstopped:
                idle.append(run)

    def _ask(self, wanted: tuple[str, ...]) -> tuple[Any, list["_Run"]]:
        if len(self._asked) >= ASKED:
            self._asked.clear()
        found = self._asked[wanted] = _names(wanted), []
        return found


def _names(names: Sequence[str]) -> Any:
    return (c_char_p * len(names))(*(name.encode() for name in names))


def _is_text(element: bytes) -> bool:
    try:
        str(element, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _Seen(Structure):
    """What the runtime says of a value."""

    _fields_ = (
        ("element", c_int),
        ("sizes", POINTER(c_int64)),
        ("rank", c_size_t),
        ("data", c_void_p),
    )


class _Run:
    """What one run of a session needs of the library: its values, and options by which another thread can end it.

    Made once and used again, as is all that is handed to the library. Whoever holds it keeps it alive.
    """

    def __init__(self, library: Library, inputs: int, outputs: int) -> None:
        self._library = library
        self._api = api = library.api
        self._release = api.ReleaseRunOptions  # at hand also when the interpreter ends
        self._handle = api.new(api.CreateRunOptions)
        self.terminated = False
        self._given = (c_void_p * inputs)()
        self.places = [byref(self._given, at * sizeof(c_void_p)) for at in range(inputs)]
        self.results = (c_void_p * outputs)()
        self._seen = seen = _Seen()
        self._told = byref(seen), byref(seen, _Seen.sizes.offset), byref(seen, _Seen.rank.offset)
        self._data = byref(seen, _Seen.data.offset)

    def __del__(self) -> None:
        self._release(self._handle)

    def terminate(self) -> None:
        self.terminated = True
        self._api.RunOptionsSetTerminate(self._handle)

    def feed(self, place: Any, name: str, tensor: Tensor) -> None:
        """Put a value of the runtime for `tensor` at `place`. Its numbers stay where they are."""
        rank = len(tensor.shape)
        sizes = (_SIZES[rank] if rank < len(_SIZES) else c_int64 * rank)(*tensor.shape)
        if tensor.datatype == "BYTES":
            self._feed_strings(place, name, tensor, sizes)
            return
        data, element = tensor.data, ELEMENTS[tensor.datatype]
        self._api.CreateTensorWithDataAsOrtValue(
            self._library.memory, data, len(data), sizes, rank, element, place
        )

    def _feed_strings(self, place: Any, name: str, tensor: Tensor, sizes: Any) -> None:
        api = self._api
        api.CreateTensorAsOrtValue(self._library.allocator, sizes, len(sizes), _STRING, place)
        value, room = cast(place, POINTER(c_void_p))[0], c_void_p()
        for at, element in enumerate(tensor.data):
            if not _is_text(element):
                raise InvalidRequest(
                    f"input {shown(name)}: strings of an ONNX model are UTF-8, one of these is not"
                )
            api.GetResizedStringTensorElementBuffer(value, at, len(element), byref(room))
            memmove(room, element, len(element))

    def start(self, session: int, names_in: Any, names_out: Any) -> None:
        """Returns when the results are there."""
        given, results = self._given, self.results
        self._api.Run(
            session, self._handle, names_in, given, len(given), names_out, len(results), results
        )

    def read(self, value: int | None) -> Tensor:
        """What is in a value of the runtime, copied."""
        if not value:
            raise ExecutionFailed("the model gave no value for an output")
        api, seen = self._api, self._seen
        api.GetTensorElementTypeAndShapeDataReference(value, *self._told)
        shape = tuple(seen.sizes[: seen.rank]) if seen.rank else ()
        datatype = _DATATYPES[seen.element]
        if datatype == "BYTES":
            return Tensor(datatype, shape, self._read_strings(value, math.prod(shape)))
        size = math.prod(shape) * (DATATYPES[datatype] or 0)
        api.GetTensorMutableData(value, self._data)
        return Tensor(datatype, shape, string_at(seen.data, size) if size else b"")

    def _read_strings(self, value: int, count: int) -> list[bytes]:
        if not count:
            return []
        size = c_size_t()
        self._api.GetStringTensorDataLength(value, byref(size))
        room, starts = create_string_buffer(max(1, size.value)), (c_size_t * count)()
        self._api.GetStringTensorContent(value, room, size.value, starts, count)
        text, at = room.raw[: size.value], [*starts, size.value]
        elements = [text[begin:end] for begin, end in pairwise(at)]
        if not all(map(_is_text, elements)):
            raise ExecutionFailed("the model gave a string that is not UTF-8")
        return elements

    def clear(self) -> None:
        """Give the values back."""
        for values in (self._given, self.results):
            for at, value in enumerate(values):
                if value:
                    self._api.ReleaseValue(value)
                    values[at] = None


class _Watchdog:
    """Stops runs that take too long: one thread for all, asleep until the first of them may be over.

    A run takes the lock only where the thread would wake too late for it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._until: dict[_Run, float] = {}
        self._wakes_at = (
            math.inf
        )  # also while the thread looks for the first: who comes then has to tell it
        self._running = False

    def watch(self, run: _Run, timeout_s: float) -> None:
        """Stop `run` after `timeout_s`, unless it is forgotten before."""
        until = self._until[run] = time.monotonic() + timeout_s
        if until < self._wakes_at:
            with self._changed:
                if self._running:
                    self._changed.notify()
                else:
                    self._running = True
                    threading.Thread(target=self._work, name="watchdog", daemon=True).start()

    def forget(self, run: _Run) -> bool:
        """Whether it was not stopped, and never will be."""
        return self._until.pop(run, None) is not None

    def _work(self) -> None:
        with self._changed:
            while True:
                self._changed.wait(self._stop_overdue())

    def _stop_overdue(self) -> float:
        """Returns the seconds until the next run may be over."""
        self._wakes_at = math.inf
        now = time.monotonic()
        watched = self._until.copy()
        for run, until in watched.items():
            if until > now:
                continue
            found = self._until.pop(run, None)  # whoever takes it out decides
            if found == until:
                run.terminate()
            elif found is not None:  # used again meanwhile
                self._until[run] = found
        first = min((until for until in watched.values() if until > now), default=math.inf)
        self._wakes_at = min(first, now + SECONDS_MAX)
        return self._wakes_at - now


def _spec(kind: str, node: _Node, unranked: Collection[str]) -> TensorSpec:
    """An input or output. An output that declares no dimensions is said to have one, of any size; its values tell."""
    datatype = None if node.element is None else _DATATYPES.get(node.element)
    if datatype is None:
        hint = (
            "; export the classifier with zipmap=False" if node.type.startswith("seq(map(") else ""
        )
        wanted = "tensors of booleans, integers, floats or strings"
        raise InvalidModel(
            f"{kind} {shown(node.name)} is a {node.type}, only {wanted} are served{hint}",
            code="UNSUPPORTED_TYPE",
        )
    if not node.shape and node.name in unranked:
        if kind == "output":
            return TensorSpec(node.name, datatype, (DYNAMIC,))
        raise InvalidModel(
            f"input {shown(node.name)} does not say how many dimensions it has; export it with a shape",
            code="UNKNOWN_RANK",
        )
    return TensorSpec(
        node.name, datatype, tuple(size if size >= 0 else DYNAMIC for size in node.shape)
    )


def _clean(error: Exception) -> str:
    r"""What the runtime says, without its prefix, our file names and its source code.

    >>> _clean(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/m.onnx failed:No graph."))
    'No graph.'
    >>> _clean(RuntimeError("Non-zero status code returned while running Add node. Name:'a' Status Message: "
    ...     "/src/core/ops.h:56 void onnxruntime::Init(int) axis == 1 was false. 2 by 3"))
    'Add: axis == 1 was false. 2 by 3'
    >>> _clean(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Pad node. "
    ...     "Name:'' Status Message: /src/op_kernel.cc:87 virtual int ort::F(int) [ONNXRuntimeError] : 1 : FAIL : "
    ...     "tensor.cc:57 StorageSize Tensor shape.Size() must be >= 0"))
    'Pad: Tensor shape.Size() must be >= 0'
    """
    node = re.search(r"while running (\w+) node", str(error))
    text = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", str(error))[-1].rpartition(
        "Status Message: "
    )[2]
    text = re.sub(r"Load model (from )?\S+ failed[:.]\s*", "", text)
    text = re.sub(
        r"\S+\.(?:cc|h|cpp|hpp|cu):\d+ (?:[^().]*?\([^()]*\)(?: const)?(?: \[[^\]]*\])?|\w+) ",
        "",
        text,
    )
    text = re.sub(r"\"?\S*(?:/\S*|\.(?:onnx|data|ort|cc|h|so)\b)\S*", "", text)
    text = " ".join(text.split())
    return f"{node[1]}: {text}" if node else text
