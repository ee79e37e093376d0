"""Sandbox in a child process: any upload ends in an answer or a rejection, in bounded time.

A process has an empty environment, no descriptors but its pipes, resource limits and one
directory, and is used once. It needs no /dev/shm, namespaces or root, which Lambda does not have.
"""

import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from functions.core.errors import InvalidModel, Unavailable
from functions.core.registration.sandbox_protocol import (
    REPORT_BYTES,
    Brief,
    Built,
    Unpacked,
    bad_answer,
    build_task,
    read_built,
    read_unpacked,
    unpack_task,
)
from functions.core.uploads import Form

ROOT = Path(__file__).parents[2]  # folder of the package `functions`
START_S = 30  # s to start Python and load onnxruntime from a cold disk
ADDRESS_MB = 8 * 1024
EXIT_POLL_S = 0.002
# -I: no PYTHON* variables, no current directory; -S: no site-packages hooks; -B: no .pyc files
_FLAGS = ("-I", "-S", "-B")
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from functions.sandbox import __main__ as m; "
    "m.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))"
)
_PR_SET_DUMPABLE = 4  # linux/prctl.h

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of a process. Linux does not apply RLIMIT_NPROC, i.e. `threads`, to root."""

    memory_mb: int = 2048
    address_mb: int = ADDRESS_MB  # beyond memory_mb: mapped files, stacks, reserved heaps
    cpu_s: int = 90
    file_mb: int = 10 * 1024
    files: int = 128
    threads: int = 64


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources that a process used.

    `peak_mb` is at least the parent's own size at the start, because Linux inherits the counter.
    """

    step: str
    wall_s: float
    cpu_s: float
    peak_mb: float


class ChildEnded(Exception):
    """Child process that ended, or was killed, without an answer.

    The message is "timeout", "memory", a signal's name or an exit status. `ready`: the child had
    started, so its task is at fault.
    """

    def __init__(self, message: str, *, ready: bool) -> None:
        super().__init__(message)
        self.ready = ready


class Child:
    """Child process that runs tasks of one step."""

    usage: Usage  # set when the process has ended

    def __init__(self, step: str, limits: Limits, environment: Mapping[str, str]) -> None:
        """Start the process.

        Raises:
            Unavailable: it could not be started.
        """
        self.step = step
        self.ready = False
        self._buffer = bytearray()
        self._started = time.monotonic()
        self._answers, write_end = os.pipe()
        paths = [str(ROOT), *(path for path in sys.path if Path(path).is_absolute())]
        arguments = [json.dumps(paths), step, str(write_end), str(os.getpid())]
        command = [sys.executable, *_FLAGS, "-c", _START, *arguments, json.dumps(asdict(limits))]
        try:
            self._process = subprocess.Popen(
                command,
                env=dict(environment), cwd="/", start_new_session=True, pass_fds=(write_end,),
                bufsize=0, stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            os.close(self._answers)
            raise Unavailable(
                f"no process could be started to check the upload: {error.strerror}"
            ) from error
        finally:
            os.close(write_end)

    def ask(self, task: Mapping[str, Any], timeout_s: float) -> object:
        """Send a task and return its answer, parsed from JSON.

        Raises:
            ChildEnded: there is no answer.
            InvalidModel: the answer is no line of JSON of a bounded length; the code is
                `SANDBOX_BAD_ANSWER`.
        """
        if not self.ready:
            if self._read_line(time.monotonic() + START_S) != b"ready":
                raise ChildEnded("it did not start", ready=False)
            self.ready = True
        deadline = time.monotonic() + timeout_s
        self._write(json.dumps(task).encode() + b"\n", deadline)
        try:
            return json.loads(self._read_line(deadline), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise bad_answer("its answer is no JSON") from error

    def kill(self) -> Usage:
        """Kill the process and its session; return what it used."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._reap()
        if self._process.stdin:
            self._process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
        return self.usage

    def _reap(self) -> int:
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        wall, cpu = time.monotonic() - self._started, used.ru_utime + used.ru_stime
        self.usage = Usage(self.step, wall, cpu, peak_mb=used.ru_maxrss / 1024)
        return self._process.returncode

    def _read_line(self, deadline: float) -> bytes:
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > REPORT_BYTES:
                raise bad_answer("its answer is too long")
            if not poll.poll(_milliseconds_until(deadline)):
                raise ChildEnded("timeout", ready=self.ready)
            chunk = os.read(self._answers, 1024 * 1024)
            if not chunk:
                self._raise_ended(deadline)
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _write(self, data: bytes, deadline: float) -> None:
        assert self._process.stdin  # noqa: S101 (it is a pipe)
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        rest = memoryview(data)
        try:
            while rest:
                if not poll.poll(_milliseconds_until(deadline)):
                    raise ChildEnded("timeout", ready=self.ready)
                rest = rest[os.write(descriptor, rest) :]
        except BrokenPipeError:
            self._raise_ended(deadline)

    def _raise_ended(self, deadline: float) -> NoReturn:
        """Wait for the exit after the pipe was closed, and raise its cause.

        Freeing gigabytes of memory may take the kernel a moment.
        """
        while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                raise ChildEnded("timeout", ready=self.ready)
            time.sleep(EXIT_POLL_S)
        raise ChildEnded(_cause(self._reap()), ready=self.ready)


@dataclass(slots=True)
class ProcessSandbox:
    """Sandbox that runs each step in a child process of its own.

    With `spare`, the next child of each step is started in advance, its imports done.
    """

    limits: Limits = field(default_factory=Limits)
    unpack_s: float = 20
    build_s: float = 60
    library_path: str = ""  # LD_LIBRARY_PATH of this process: Lambda's Python needs it to start
    spare: bool = False
    used: deque[Usage] = field(default_factory=lambda: deque(maxlen=16))
    _spares: dict[str, deque[Child]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hide_environment()
        self.refill()

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        """Unpack an upload in a child process."""
        return read_unpacked(self._run("unpack", unpack_task(form, directory), self.unpack_s))

    def build(self, brief: Brief, directory: Path) -> Built:
        """Build a model in a child process."""
        return read_built(self._run("build", build_task(brief, directory), self.build_s))

    def refill(self) -> None:
        """Start missing spare processes. Call it after an upload, which then has all processors."""
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
        """Kill the spare processes."""
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
            self.used.append(child.kill())

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
    """Keep other processes of this user from reading this one's environment and memory."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _milliseconds_until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic()) * 1000


def _cause(exit_code: int) -> str:
    if exit_code == -signal.SIGXCPU:
        return "timeout"
    if exit_code == -signal.SIGKILL:  # sent by the kernel when memory runs out
        return "memory"
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit {exit_code}"


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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
