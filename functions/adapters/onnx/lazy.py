"""ONNX Runtime, loaded when it is needed first: a function's first event does not wait for it."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from functions.core.registry.load_plan import Plan

if TYPE_CHECKING:
    from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession


class LateRuntime:
    """`core.serving.Runtime`; `threads` are those that this process may use."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._runtime: OnnxRuntime | None = None

    def load(self, path: Path, plan: Plan | None = None) -> "OnnxSession":
        return self.real().load(path, plan)

    def real(self) -> "OnnxRuntime":
        """The runtime itself, loaded now if it was not before."""
        with self._lock:
            if self._runtime is None:
                from functions.adapters.onnx.sessions import OnnxRuntime

                self._runtime = OnnxRuntime(self._threads)
            return self._runtime
