"""ONNX Runtime sessions: models loaded for serving, or compiled at registration."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from functions.adapters.memory import mmap_large_allocations
from functions.adapters.onnx.capi import (
    FAIL,
    FATAL,
    INVALID_ARGUMENT,
    NOT_IMPLEMENTED,
    RUNTIME_EXCEPTION,
    Api,
    Library,
    OrtError,
    library,
)
from functions.adapters.onnx.runs import Names, Run
from functions.core.errors import ExecutionFailed, InvalidModel, TimedOut
from functions.core.protocol.signature import Signature
from functions.core.protocol.tensors import Tensor
from functions.core.registry.load_plan import Plan
from functions.core.watchdog import Watchdog

SELECTIONS_MAX = 32  # sets of outputs a session caches; callers may request any number of them
# Threads of this process, beyond which new sessions get none of their own. Lambda allows 1,024.
THREADS_MAX = 768

# Status codes of a run whose cause is the caller's values: types and shapes were checked before.
_VALUES_AT_FAULT = frozenset({FAIL, INVALID_ARGUMENT, RUNTIME_EXCEPTION, NOT_IMPLEMENTED})
_DISABLE_ALL, _EXTENDED, _LAYOUT = 0, 2, 3  # GraphOptimizationLevel of onnxruntime_c_api.h
_EXTERNAL_BYTES_MIN = 1024  # smaller weights stay in the graph, where shape inference reads them


class OnnxRuntime:
    """Loader and compiler of ONNX models with ONNX Runtime.

    Implements `Runtime` of core.serving.model_cache.

    `threads` is the number of threads this process may use. `watchdog` limits the time of runs.
    """

    def __init__(self, threads: int = 1, watchdog: Watchdog | None = None) -> None:
        self._threads = threads
        self._library = library()
        self._watchdog = watchdog or Watchdog()

    def load(self, path: Path, plan: Plan | None = None) -> "OnnxSession":
        """Load a model file into a session, as its load plan says.

        Without a plan, the runtime optimises the graph for this processor and packs weights for
        its kernels, with all threads.

        Raises:
            InvalidModel: `NOT_LOADABLE`, the runtime refuses the model.
            MemoryError: it does not fit.
        """
        plan = plan or Plan(threads=self._threads)
        threads = self._threads_for(plan)
        with _Options(self._library.api, threads, prepacking=plan.prepacking) as options:
            if plan.optimised != "none":
                options.optimise(_LAYOUT if plan.layout else _DISABLE_ALL)
            return self._open(path, options)

    def load_bytes(self, model: bytes) -> "OnnxSession":
        """Load a small model of our own, with one thread."""
        api = self._library.api
        with _Options(api, 1, prepacking=True) as options:
            create, environment = api.CreateSessionFromArray, self._library.environment
            handle = api.new(create, environment, model, len(model), options.handle)
        return OnnxSession(self._library, handle, self._watchdog)

    def compile(
        self, path: Path, target: Path, weights: str | None, *, prepacking: bool = False
    ) -> "OnnxSession":
        """Optimise a model's graph, save it to a file, return its session.

        The graph suits any processor of this architecture and is written to `target`. `weights`
        names a file beside it for the larger weights, which a load then maps and does not read.
        `prepacking` concerns the session alone.

        Raises:
            InvalidModel: the runtime refuses the model, or cannot write it.
            MemoryError: it does not fit.
        """
        threads = self._threads_for(Plan(threads=self._threads))
        with _Options(self._library.api, threads, prepacking=prepacking) as options:
            options.optimise(_EXTENDED, target)
            if weights is not None:
                prefix = "session.optimized_model_external_initializers"
                options.set(f"{prefix}_file_name", weights)
                options.set(f"{prefix}_min_size_in_bytes", str(_EXTERNAL_BYTES_MIN))
            return self._open(path, options)

    def _threads_for(self, plan: Plan) -> int:
        """Return the number of threads a newly loaded model may use.

        It is 1, the caller's, if this process is near Lambda's limit: a session keeps its threads.
        """
        threads = max(1, min(plan.threads, self._threads))
        if threads == 1:
            return 1
        running = Path("/proc/self/task").stat().st_nlink - 2  # a directory per thread
        return threads if running < THREADS_MAX else 1

    def _open(self, path: Path, options: "_Options") -> "OnnxSession":
        library = self._library
        try:
            with mmap_large_allocations():
                create = library.api.CreateSession
                handle = library.api.new(create, library.environment, bytes(path), options.handle)
        except OrtError as error:
            raise InvalidModel(
                f"onnxruntime cannot load the model: {_clean(error)}", code="NOT_LOADABLE"
            ) from None
        return OnnxSession(library, handle, self._watchdog)


class _Options:
    """ONNX Runtime session options, freed at the end of a `with` block.

    Memory arena and memory patterns are off: docs/decisions/0007-memory-of-an-environment.md.
    """

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
        """Set ONNX Runtime's graph optimisation level and the optimised model's file."""
        self._api.SetSessionGraphOptimizationLevel(self.handle, level)
        if target is not None:
            self._api.SetOptimizedModelFilePath(self.handle, bytes(target))


class OnnxSession:
    """Model loaded in ONNX Runtime, ready to run.

    Implements `Session` of core.serving.model_cache. `handle` is the library's.
    """

    def __init__(self, library: Library, handle: int, watchdog: Watchdog) -> None:
        self.library = library
        self.handle = handle
        self._release = library.api.ReleaseSession  # for __del__, when modules may be cleared
        self.watchdog = watchdog
        self._inputs = Names(library.node_names(handle, "Input"))
        # Requested outputs, and idle runs for them.
        self._selections: dict[tuple[str, ...], tuple[Names, list[Run]]] = {}

    def __del__(self) -> None:
        self._release(self.handle)

    def signature(self, path: Path) -> Signature:
        """Return the model's declared inputs and outputs as a signature.

        `path` is the file it was loaded from.

        Raises:
            InvalidModel: `UNSUPPORTED_TYPE` or `UNKNOWN_RANK`.
        """
        from functions.adapters.onnx.signature import read_signature  # only at registration

        return read_signature(self.library, self.handle, path)

    def run(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        timeout_s: float,
        reply_bytes_max: int | None = None,
    ) -> dict[str, Tensor]:
        """Run the model within a time limit and return its outputs.

        `inputs` has a tensor for every declared input. An output that a reply of `reply_bytes_max`
        cannot hold is not copied.

        Raises:
            ExecutionFailed: the model failed on these values.
            PayloadTooLarge: an output exceeds `reply_bytes_max`.
            OrtError: it failed, and not because of them.
            TimedOut: it was stopped after `timeout_s`.
            MemoryError: it asked for more memory than there is.
        """
        names = tuple(outputs)
        requested, idle = self._selections.get(names) or self._select(names)
        run = idle.pop() if idle else Run(self.library, self.handle, self._inputs, requested)
        self.watchdog.watch(run, timeout_s)
        try:
            run.set_inputs([inputs[name] for name in self._inputs.texts])
            run.execute()
            return run.outputs(reply_bytes_max)
        except OrtError as error:
            raise run_failure(error, terminated=run.terminated, timeout_s=timeout_s) from None
        finally:
            in_time = self.watchdog.unwatch(run)
            run.end()
            # Reuse of a terminated run's options would end the next run, too.
            if in_time and not run.terminated:
                idle.append(run)

    def _select(self, names: tuple[str, ...]) -> tuple[Names, list[Run]]:
        if len(self._selections) >= SELECTIONS_MAX:
            self._selections.clear()
        selection = self._selections[names] = Names(names), []
        return selection


def run_failure(error: OrtError, *, terminated: bool, timeout_s: float) -> Exception:
    """Return the error to raise for a run that failed."""
    if terminated:
        return TimedOut(f"the model was stopped after {math.ceil(timeout_s * 1000)} ms")
    if error.status not in _VALUES_AT_FAULT:
        return error
    return ExecutionFailed(f"the model failed on these values: {_clean(error)}")


_REASON_CHARS = 2000  # read of a message, which may hold a shape of 100,000 dimensions
# Compiled when a message has to be read, which no cold start does.
# A line of C++ and its function: "ops.h:56 void onnxruntime::Init(int) const [with T = int] ".
_NESTED = r"\((?:[^()]|\([^()]*\))*\)"
_SIGNATURE = (
    rf"[^().]{{0,200}}?::[^()]{{0,400}}?(?:operator\(\))?{_NESTED}"
    r"(?:::<[^>]*>)?(?: const)?(?: \[[^\]]*\])?"
)
_SOURCE_LINE = rf"\S+\.(?:cc|h|cpp|hpp|cu):\d+ (?:{_SIGNATURE}|\w+) "
_PATH = r"\"?(?:[.~]{0,2}/\S+|\S*/\S*/\S*|\S+\.(?:onnx|data|ort|cc|h|so)\b\S*)"
_MANGLED = r"N\d+onnxruntime\w+"  # a type of C++, as its compiler names it
_NO_NUMBER = r"sto(?:[dfil]|ld|ll|ul|ull)"  # functions of C++ that fail with their name


def _clean(error: Exception) -> str:
    r"""Return ONNX Runtime's message without its prefix, file names and source code.

    >>> prefix = "[ONNXRuntimeError] : 1 : FAIL : "
    >>> _clean(RuntimeError(prefix + "Load model from /tmp/m.onnx failed:No graph."))
    'No graph.'
    >>> running = "Non-zero status code returned while running "
    >>> _clean(RuntimeError(running + "Add node. Name:'a' Status Message: "
    ...     "/src/core/ops.h:56 void onnxruntime::Init(int) axis == 1 was false. 2 by 3"))
    'Add: 2 by 3'
    >>> _clean(RuntimeError(running + "If node. Name:'' Status Message: " + running +
    ...     "Pad node. Name:'' Status Message: /src/op_kernel.cc:87 virtual int ort::F(int) " +
    ...     prefix + "tensor.cc:57 StorageSize Tensor shape.Size() must be >= 0"))
    'Pad: Tensor shape.Size() must be >= 0'
    >>> _clean(RuntimeError(running + "Div node. Name:'mayfly_guard_1: GRU: x is empty' Status"))
    'GRU: x is empty'
    """
    message = str(error)
    # The names of nodes from core/package/safety/guards.py say what is wrong.
    if guards := re.findall(r"Name:'mayfly_guard\w+: ([^']+)'", message):
        return str(guards[-1])
    nodes = re.findall(r"while running (\w+) node", message)
    text = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", message)[-1]
    text = text.rpartition("Status Message: ")[2][:_REASON_CHARS]
    text = re.sub(r"Load model (from )?\S+ failed[:.]\s*", "", text)
    for pattern in (_SOURCE_LINE, _PATH, _MANGLED):
        text = re.sub(pattern, "", text)
    condition, _, reason = text.partition(" was false. ")  # a condition in C++ and its explanation
    text = " ".join((reason or condition).split())
    if re.fullmatch(_NO_NUMBER, text):
        text = "a string is not a number, or too large a one"
    return f"{nodes[-1]}: {text or 'it gives no reason'}" if nodes else text
