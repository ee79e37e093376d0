"""Sandbox that checks uploads in child processes with time and resource limits.

Any upload, also a hostile one, ends in an answer or a rejection within a time limit. A process
is used once and works in one directory.
"""

import ctypes
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from functions.adapters.child_process import Child, ChildEnded, Limits, Usage
from functions.adapters.descendants import StillRunning
from functions.core.errors import InvalidModel, Unavailable
from functions.core.registration.sandbox_answers import bad_answer, read_built, read_unpacked
from functions.core.registration.sandbox_protocol import (
    Brief,
    Built,
    Unpacked,
    build_task,
    unpack_task,
)
from functions.core.uploads import Form

_PR_SET_DUMPABLE = 4  # linux/prctl.h
# Codes of rejections after which code of the upload may have run in the child.
SUSPECT = {"SANDBOX_CRASHED", "SANDBOX_TIMEOUT", "SANDBOX_BAD_ANSWER"}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProcessSandbox:
    """Sandbox that unpacks and builds uploads, each in a new child process.

    With `spare`, the next child of each step is started in advance, its imports done.

    After a crash, a bad answer or a timeout the sandbox is `suspect`: code of the upload may have
    run in the child, and the process that uses the sandbox should end itself.
    """

    limits: Limits = field(default_factory=Limits)
    unpack_s: float = 20
    build_s: float = 60
    library_path: str = ""  # LD_LIBRARY_PATH of this process: Lambda's Python needs it to start
    spare: bool = False
    used: deque[Usage] = field(default_factory=lambda: deque(maxlen=16))
    suspect: bool = False
    _spares: dict[str, deque[Child]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hide_environment()
        self.refill()

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        """Unpack an uploaded model in a sandboxed child process."""
        with self._suspicion():
            return read_unpacked(self._run("unpack", unpack_task(form, directory), self.unpack_s))

    def build(self, brief: Brief, directory: Path) -> Built:
        """Compile, check and measure a model in a sandboxed child process."""
        with self._suspicion():
            return read_built(self._run("build", build_task(brief, directory), self.build_s))

    @contextmanager
    def _suspicion(self) -> Iterator[None]:
        """Mark the sandbox as suspect if a child crashed, lied or hung."""
        try:
            yield
        except InvalidModel as error:
            self.suspect |= error.instance_code in SUSPECT
            raise

    def refill(self) -> None:
        """Start missing spare child processes for the next upload.

        To be called after an upload, which then has all processors to itself.
        """
        if not self.spare:
            return
        try:
            for step in ("unpack", "build"):
                spares = self._spares.setdefault(step, deque())
                if not spares:
                    spares.append(self._start(step))
        except Unavailable as error:
            log.warning("no process was started ahead: %s", error)

    def close(self) -> None:
        """Kill the spare child processes."""
        for spares in self._spares.values():
            while spares:
                spares.pop().kill()

    def _run(self, step: str, task: Mapping[str, Any], timeout_s: float) -> object:
        """Run a task in a child process and return its answer.

        Raises:
            InvalidModel: the upload made the child fail.
            Unavailable: no child could be started.
        """
        try:
            answer = self._ask_once(self._take(step), task, timeout_s)
        except ChildEnded as ended:
            if ended.ready:
                raise _rejection(str(ended), timeout_s) from ended
            answer = self._ask_new_child(step, task, timeout_s)  # the spare died while it waited
        if isinstance(answer, dict) and "crashed" in answer:
            log.error("the sandbox failed on an upload: %s", json.dumps(str(answer["crashed"])))
            raise _rejection("an error", timeout_s)
        if isinstance(answer, dict) and "memory" in answer:
            raise _rejection("memory", timeout_s)
        return answer

    def _ask_new_child(self, step: str, task: Mapping[str, Any], timeout_s: float) -> object:
        try:
            return self._ask_once(self._start(step), task, timeout_s)
        except ChildEnded as ended:
            if ended.ready:
                raise _rejection(str(ended), timeout_s) from ended
            raise Unavailable(f"the process that checks uploads did not start: {ended}") from ended

    def _ask_once(self, child: Child, task: Mapping[str, Any], timeout_s: float) -> object:
        try:
            return child.ask(task, timeout_s)
        finally:
            self._end(child)

    def _end(self, child: Child) -> None:
        """End a child process with its descendants, before anything else runs.

        Raises:
            InvalidModel: it had started processes of its own, so its answer is not to be trusted.
            Unavailable: they do not end.
        """
        try:
            self.used.append(child.kill())
        except StillRunning as error:
            self.suspect = True
            raise Unavailable(f"a process that an upload started does not end: {error}") from error
        if child.orphans:
            log.error("an upload left %d processes behind; they were ended", child.orphans)
            raise bad_answer("it started processes of its own")

    def _start(self, step: str) -> Child:
        environment = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
        if self.library_path:
            environment["LD_LIBRARY_PATH"] = self.library_path
        return Child(step, self.limits, environment)

    def _take(self, step: str) -> Child:
        spares = self._spares.get(step)
        try:
            return spares.pop() if spares else self._start(step)
        except IndexError:  # another thread took the last one
            return self._start(step)


def hide_environment() -> None:
    """Hide this process's environment and memory from the same user's processes."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _rejection(cause: str, timeout_s: float) -> InvalidModel:
    if cause == "timeout":
        return InvalidModel(
            f"the model was not checked within {timeout_s:.0f} s: it is too large or never ends",
            code="SANDBOX_TIMEOUT",
        )
    if cause == "memory":
        return InvalidModel(
            "the model needs more memory than the function that checks it has; "
            "raise the parameter RegisterMemory",
            code="SANDBOX_MEMORY",
        )
    return InvalidModel(
        f"the model ends the process that runs it ({cause}): it would do so at every request",
        code="SANDBOX_CRASHED",
    )
