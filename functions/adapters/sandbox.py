"""Sandbox that checks uploaded models in child processes with resource limits.

Every upload, hostile ones included, ends with a result, with a rejection if it used up its CPU time
or memory, or with `Unavailable` if the machine was too busy to decide. A process is used once and
works in one directory.
"""

import ctypes
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from functions.adapters.child_process import REST_S, Child, ChildEnded, Limits, Usage
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
# Codes of failures after which code of the upload may have run in the child.
SUSPECT = {"SANDBOX_CRASHED", "SANDBOX_TIMEOUT", "SANDBOX_BAD_ANSWER", "SANDBOX_BUSY"}
WAIT_S = 900  # s to wait for a step if nobody says how long: Lambda's longest timeout
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProcessSandbox:
    """Sandbox that unpacks and builds uploads, each in a new child process.

    A step may use as much processor time as its limit says, `unpack_cpu_s` for unpacking. How long
    the caller waits for it is no limit of the upload's: `wait_at_most`.

    With `spare`, the next child of each step is started in advance, its imports done.

    After a crash, a bad answer or a timeout the sandbox is `suspect`: code of the upload may have
    run in the child, and the process that uses the sandbox should end itself.
    """

    limits: Limits = field(default_factory=Limits)
    unpack_cpu_s: int = 30  # with the 90 of `Limits` and the transfers less than RegisterTimeout
    library_path: str = ""  # LD_LIBRARY_PATH of this process: Lambda's Python needs it to start
    spare: bool = False
    used: deque[Usage] = field(default_factory=lambda: deque(maxlen=16))
    suspect: bool = False
    _deadline: float = math.inf
    _spares: dict[str, deque[Child]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hide_environment()
        self.refill()

    def wait_at_most(self, seconds: float) -> None:
        """Set the total time limit, in seconds, for checking the next upload."""
        self._deadline = time.monotonic() + seconds

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        """Unpack an uploaded model in a sandboxed child process."""
        with self._suspicion():
            return _read(read_unpacked, self._run("unpack", unpack_task(form, directory)))

    def build(self, brief: Brief, directory: Path) -> Built:
        """Compile, check and measure a model in a sandboxed child process."""
        with self._suspicion():
            return _read(read_built, self._run("build", build_task(brief, directory)))

    @contextmanager
    def _suspicion(self) -> Iterator[None]:
        """Flag the sandbox as suspect if a child process crashed or misbehaved."""
        try:
            yield
        except (InvalidModel, Unavailable) as error:
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

    def _run(self, step: str, task: Mapping[str, Any]) -> object:
        """Run a task in a child process and return its answer.

        Raises:
            InvalidModel: the upload made the child fail.
            Unavailable: no child could be started, or the machine was too busy to say.
        """
        try:
            answer = self._ask_once(self._take(step), task)
        except ChildEnded as ended:
            if ended.ready:
                raise self._verdict(step, str(ended)) from ended
            answer = self._ask_new_child(step, task)  # the spare died while it waited
        if isinstance(answer, dict) and "crashed" in answer:
            log.error("the sandbox failed on an upload: %s", json.dumps(str(answer["crashed"])))
            raise self._verdict(step, "an error")
        if isinstance(answer, dict) and "memory" in answer:
            raise self._verdict(step, ChildEnded.MEMORY)
        return answer

    def _ask_new_child(self, step: str, task: Mapping[str, Any]) -> object:
        try:
            return self._ask_once(self._start(step), task)
        except ChildEnded as ended:
            if ended.ready:
                raise self._verdict(step, str(ended)) from ended
            raise Unavailable(f"the process that checks uploads did not start: {ended}") from ended

    def _ask_once(self, child: Child, task: Mapping[str, Any]) -> object:
        try:
            return child.ask(task, min(self._deadline, time.monotonic() + WAIT_S))
        finally:
            self._end(child)

    def _end(self, child: Child) -> None:
        """Kill a sandboxed child process with its descendants; record its resource usage.

        Raises:
            InvalidModel: it had started processes of its own, so its output cannot be trusted.
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
        return Child(step, self._limits_of(step), environment)

    def _limits_of(self, step: str) -> Limits:
        if step == "build":
            return self.limits
        return replace(self.limits, cpu_s=min(self.unpack_cpu_s, self.limits.cpu_s))

    def _verdict(self, step: str, cause: str) -> InvalidModel | Unavailable:
        """Translate a child process's failure to `InvalidModel` or `Unavailable`."""
        if cause in (ChildEnded.LATE, ChildEnded.KILLED):
            return self._busy(step, cause)
        return _rejection(cause, self._limits_of(step).cpu_s)

    def _busy(self, step: str, cause: str) -> Unavailable:
        used, limit_s = self.used[-1], self._limits_of(step).cpu_s
        end = "was ended from outside" if cause == ChildEnded.KILLED else "is not done"
        return Unavailable(
            f"the check of the model {end} after {used.wall_s:.0f} s in which it got "
            f"{used.cpu_s:.1f} of {limit_s} s of processor time; the queue delivers it again",
            code="SANDBOX_BUSY",
        )

    def _take(self, step: str) -> Child:
        spares = self._spares.get(step)
        try:
            return spares.pop() if spares else self._start(step)
        except IndexError:  # another thread took the last one
            return self._start(step)


def _read(read: Callable[[object], T], answer: object) -> T:
    """Parse a child's answer; treat values of impossible types as malformed."""
    try:
        return read(answer)
    except (TypeError, ValueError, OverflowError, RecursionError, LookupError) as error:
        raise bad_answer("a value in its answer has an impossible type or size") from error


def hide_environment() -> None:
    """Hide this process's environment and memory from the same user's processes."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _rejection(cause: str, cpu_s: int) -> InvalidModel:
    if cause == ChildEnded.CPU:
        return InvalidModel(
            f"the model was not checked within {cpu_s} s of processor time: it is too large or "
            "never ends; make it smaller, or give it fewer or shorter samples",
            code="SANDBOX_TIMEOUT",
        )
    if cause == ChildEnded.HANGS:
        return InvalidModel(
            f"the model makes the process that runs it wait for ever: no thread ran for {REST_S} s",
            code="SANDBOX_TIMEOUT",
        )
    if cause == ChildEnded.MEMORY:
        return InvalidModel(
            "the model needs more memory than the function that checks it has; "
            "raise the parameter RegisterMemory",
            code="SANDBOX_MEMORY",
        )
    return InvalidModel(
        f"the model ends the process that runs it ({cause}): it would do so at every request",
        code="SANDBOX_CRASHED",
    )
