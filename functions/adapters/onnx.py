"""ONNX Runtime: sessions for serving, and the signature of a model for its registration."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded, so it is set before the import

import ctypes
import math
import re
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from functions.adapters.limits import pages_of_their_own
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut, shown
from functions.core.plan import Plan
from functions.core.signature import DYNAMIC, Signature, TensorSpec

FLOOR = (1, 31, 1)  # below it, crafted models crash the process (field notes on security, section 1.1)
SECONDS_MAX = 3600.0
THREADS_MAX = 768  # of this process, after which sessions get none of their own; Lambda allows 1,024

if tuple(int(part) for part in ort.__version__.split(".")[:3]) < FLOOR:
    raise ImportError(f"onnxruntime {ort.__version__} is older than {'.'.join(map(str, FLOOR))}, which fixes crashes")

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_MAPPED_BYTES = 1024  # weights below stay in the graph, as the runtime advises: shape inference reads them
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(kind for kind in vars(states).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


def inspect_signature(path: Path) -> Signature:
    """What the model at `path` takes and gives. Its weights, if outside, lie beside it.

    Raises:
        InvalidModel: `NOT_LOADABLE`, `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
    """
    try:
        return OnnxRuntime().load(path).signature(path)
    except MemoryError as error:
        raise InvalidModel("the model does not fit into the memory that checks it", code="NOT_LOADABLE") from error


class OnnxRuntime:
    """`core.serving.Runtime`. `threads` are those that this process may use."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._watchdog = _Watchdog()

    def load(self, path: Path, plan: Plan | None = None) -> "OnnxSession":
        """Without a plan, the graph is optimised for this processor, and weights are packed for its kernels."""
        plan = plan or Plan(threads=self._threads)
        options = self._options(plan)
        if plan.optimised != "none":
            levels = ort.GraphOptimizationLevel
            options.graph_optimization_level = levels.ORT_ENABLE_LAYOUT if plan.layout else levels.ORT_DISABLE_ALL
        return OnnxSession(_open(path, options), self._watchdog)

    def compile(self, path: Path, target: Path, weights: str | None) -> "OnnxSession":
        """A session that is optimised as far as any processor of this architecture allows, and `target`, that graph.

        `weights` is the name of the file beside `target` for its larger weights, which are then mapped, not read.

        Raises:
            InvalidModel: the runtime refuses the model, or cannot write it.
            MemoryError: it does not fit.
        """
        options = self._options(Plan(prepacking=False, threads=self._threads))
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        if weights is not None:
            prefix = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{prefix}_file_name", weights)
            options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(_MAPPED_BYTES))
        return OnnxSession(_open(path, options), self._watchdog)

    def _threads_for(self, plan: Plan) -> int:
        """One, where this process has about as many as Lambda allows: each session keeps its own."""
        wanted = max(1, min(plan.threads, self._threads))
        return wanted if wanted == 1 or Path("/proc/self/task").stat().st_nlink - 2 < THREADS_MAX else 1

    def _options(self, plan: Plan) -> Any:
        """Arena and memory patterns are off: see docs/decisions/0007-memory-of-an-environment.md."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads_for(plan)
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # fatal: errors come as exceptions, and ORT's own lines may hold values
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "0" if plan.prepacking else "1")
        return options


class OnnxSession:
    """`core.serving.Session`."""

    def __init__(self, session: Any, watchdog: "_Watchdog") -> None:
        self._session = session
        self._watchdog = watchdog
        self._strings_in = {node.name for node in session.get_inputs() if node.type == "tensor(string)"}
        self._bfloats_in = {node.name for node in session.get_inputs() if node.type == "tensor(bfloat16)"}
        self._bfloats_out = {node.name for node in session.get_outputs() if node.type == "tensor(bfloat16)"}
        self._plain = not any(  # the runtime takes and gives every tensor as numpy has it
            node.type in ("tensor(string)", "tensor(bfloat16)")
            for node in (*session.get_inputs(), *session.get_outputs())
        )

    def signature(self, path: Path) -> Signature:
        """What it takes and gives. `path` is what it was loaded from.

        Raises:
            InvalidModel: `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
        """
        from functions.core.onnx_file import read_onnx  # for registration alone

        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        # The runtime shows no dimensions for a scalar and for a tensor that declares none alike.
        unclear = any(not node.shape for node in (*inputs, *outputs))
        unranked = read_onnx(path).unranked if unclear else frozenset()
        signature = Signature(
            tuple(_spec("input", node, unranked) for node in inputs),
            tuple(_spec("output", node, unranked) for node in outputs),
        )
        if _has(signature.outputs, "BF16") and _has(signature.inputs, "BYTES"):
            raise InvalidModel(
                "a model with BF16 outputs cannot take strings in this runtime; cast its outputs to FP32",
                code="UNSUPPORTED_TYPE",
            )
        return signature

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout_s: float) -> dict[str, np.ndarray]:
        options = ort.RunOptions()
        feeds = inputs if self._plain else {name: self._feed(name, array) for name, array in inputs.items()}
        self._watchdog.watch(options, timeout_s)
        try:
            if self._plain:
                return dict(zip(outputs, self._session.run(outputs, feeds, options), strict=True))
            results = self._results(feeds, outputs, options)
        except MemoryError:
            raise MemoryError from None
        except UnicodeDecodeError:
            raise ExecutionFailed("the model gave a string that is not UTF-8") from None
        except _ERRORS as error:
            if options.terminate:
                raise TimedOut(f"the model was stopped after {math.ceil(timeout_s * 1000)} ms") from None
            if _is_out_of_memory(error):
                raise MemoryError from None
            raise ExecutionFailed(f"the model failed on these values: {_clean(error)}") from None
        finally:
            self._watchdog.forget(options)
        return {name: _encoded(array) for name, array in zip(outputs, results, strict=True)}

    def _feed(self, name: str, array: np.ndarray) -> Any:
        if name in self._strings_in:
            return _decoded(name, array)
        if name in self._bfloats_in:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
        return array

    def _results(self, feeds: Mapping[str, Any], outputs: Sequence[str], options: Any) -> list[np.ndarray]:
        if not self._bfloats_out.intersection(outputs):
            results: list[np.ndarray] = self._session.run(outputs, feeds, options)
            return results
        values = {
            name: feed if isinstance(feed, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(feed)
            for name, feed in feeds.items()
        }
        found = self._session.run_with_ort_values(outputs, values, options)
        return [
            _bits(value) if name in self._bfloats_out else value.numpy()
            for name, value in zip(outputs, found, strict=True)
        ]


class _Watchdog:
    """Stops runs that take too long: one thread for all, asleep until the first of them may be over.

    A run takes the lock only where the thread would wake too late for it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._until: dict[Any, float] = {}
        self._wakes_at = math.inf  # also while the thread looks for the first: who comes then has to tell it
        self._running = False

    def watch(self, options: Any, timeout_s: float) -> None:
        """Stop the run that has `options` after `timeout_s`, unless it is forgotten before."""
        until = self._until[options] = time.monotonic() + timeout_s
        if until < self._wakes_at:
            with self._changed:
                if self._running:
                    self._changed.notify()
                else:
                    self._running = True
                    threading.Thread(target=self._work, name="watchdog", daemon=True).start()

    def forget(self, options: Any) -> None:
        self._until.pop(options, None)

    def _work(self) -> None:
        with self._changed:
            while True:
                self._wakes_at = math.inf
                now = time.monotonic()
                watched = self._until.copy()
                for options, until in watched.items():
                    if until <= now:
                        options.terminate = True
                        self.forget(options)
                first = min((until for until in watched.values() if until > now), default=math.inf)
                self._wakes_at = min(first, now + SECONDS_MAX)
                self._changed.wait(self._wakes_at - now)


def _open(path: Path, options: Any) -> Any:
    try:
        with pages_of_their_own():
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except MemoryError:
        raise MemoryError from None
    except _ERRORS as error:
        if _is_out_of_memory(error):
            raise MemoryError from None
        raise InvalidModel(f"onnxruntime cannot load the model: {_clean(error)}", code="NOT_LOADABLE") from None


def _spec(kind: str, node: Any, unranked: Collection[str]) -> TensorSpec:
    """An input or output. An output that declares no dimensions is said to have one, of any size; its values tell."""
    datatype = DATATYPES.get(node.type)
    if datatype is None:
        hint = "; export the classifier with zipmap=False" if node.type.startswith("seq(map(") else ""
        wanted = "tensors of booleans, integers, floats or strings"
        raise InvalidModel(
            f"{kind} {shown(node.name)} is a {node.type}, only {wanted} are served{hint}", code="UNSUPPORTED_TYPE"
        )
    if not node.shape and node.name in unranked:
        if kind == "output":
            return TensorSpec(node.name, datatype, (DYNAMIC,))
        raise InvalidModel(
            f"input {shown(node.name)} does not say how many dimensions it has; export it with a shape",
            code="UNKNOWN_RANK",
        )
    shape = (size if isinstance(size, int) and size >= 0 else DYNAMIC for size in node.shape)
    return TensorSpec(node.name, datatype, tuple(shape))


def _has(specs: Sequence[TensorSpec], datatype: str) -> bool:
    return any(spec.datatype == datatype for spec in specs)


def _decoded(name: str, array: np.ndarray) -> np.ndarray:
    """BYTES as the `str` objects that the runtime takes."""
    decoded = np.empty(array.shape, np.object_)
    try:
        decoded.ravel()[:] = [element.decode() for element in array.ravel()]
    except UnicodeDecodeError:
        raise InvalidRequest(f"input {shown(name)}: strings of an ONNX model are UTF-8, one of these is not") from None
    return decoded


def _encoded(array: np.ndarray) -> np.ndarray:
    """An output; strings as `bytes`."""
    if array.dtype != np.object_:
        return array
    encoded = np.empty(array.shape, np.object_)
    encoded.ravel()[:] = [element.encode() for element in array.ravel()]
    return encoded


def _bits(value: Any) -> np.ndarray:
    """A copy of a bfloat16 tensor as bit patterns, for which numpy has no type."""
    array = np.empty(value.shape(), np.uint16)
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def _is_out_of_memory(error: Exception) -> bool:
    """The runtime has no class for it."""
    return any(words in str(error) for words in ("bad_alloc", "allocate memory", "pthread_create failed"))


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
    text = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", str(error))[-1].rpartition("Status Message: ")[2]
    text = re.sub(r"Load model (from )?\S+ failed[:.]\s*", "", text)
    text = re.sub(r"\S+\.(?:cc|h|cpp|hpp|cu):\d+ (?:[^().]*?\([^()]*\)(?: const)?(?: \[[^\]]*\])?|\w+) ", "", text)
    text = re.sub(r"\"?\S*(?:/\S*|\.(?:onnx|data|ort|cc|h|so)\b)\S*", "", text)
    text = " ".join(text.split())
    return f"{node[1]}: {text}" if node else text
