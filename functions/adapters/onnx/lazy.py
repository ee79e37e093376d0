"""Lazy import of ONNX Runtime, to keep it out of cold starts."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from functions.core.registry.load_plan import Plan
from functions.core.watchdog import PROCESS_WATCHDOG

if TYPE_CHECKING:
    from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession


class LazyRuntime:
    """Model loader that imports ONNX Runtime on its first use.

    Implements `Runtime` of core.serving.model_cache.

    `threads` is the number of threads this process may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._runtime: OnnxRuntime | None = None

    def load(self, path: Path, plan: Plan | None = None) -> "OnnxSession":
        """Load an ONNX model as `OnnxRuntime.load` does; return its session."""
        return self.import_runtime().load(path, plan)

    def import_runtime(self) -> "OnnxRuntime":
        """Return ONNX Runtime's wrapper, imported and initialised on the first call."""
        with self._lock:
            if self._runtime is None:
                from functions.adapters.onnx.sessions import (
                    OnnxRuntime,
                )  # not at the top, because importing takes time

                self._runtime = OnnxRuntime(self._threads, PROCESS_WATCHDOG)
            return self._runtime
