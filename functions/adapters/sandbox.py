"""The workbench in a throw-away process: whatever an upload does there, the answer is a reason, in bounded time.

The process has an empty environment, no descriptors but its pipes, limits on everything that can be limited, and one
directory. It is used once. It needs neither /dev/shm nor namespaces nor root, which Lambda does not have.
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
    Written,
    bad_answer,
    build_task,
    is_written,
    read_built,
    read_unpacked,
    read_written,
    unpack_task,
)
from functions.core.uploads import Form

ROOT = Path(__file__).parents[2]  # what holds `functions`
START_S = 30  # to load onnxruntime, on a cold disk
ADDRESS_MB = 8 * 1024
# -I: no environment, no current directory; -S: no site, whose .pth files run code; -B: writes nothing beside the code
_FLAGS = ("-I", "-S", "-B")
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); from functions.sandbox import __main__ as m; \
m.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))"
)
_PR_SET_DUMPABLE = 4  # linux/prctl.h

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may take. RLIMIT_NPROC, and so `threads`, does not bind root."""

    memory_mb: int = 2048
    address_mb: int = (
        ADDRESS_MB  # beyond memory: maps of files, stacks, heaps that are reserved and not used
    )
    cpu_s: int = 90
    file_mb: int = 10 * 1024
    files: int = 128
    threads: int = 64


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took. `peak_mb` is never below the parent's own at the start: Linux hands it down."""

    step: str
    wall_s: float
    cpu_s: float
    peak_mb: float


class Ended(Exception):
    """When a process ended, or was ended, instead of answering. `ready`: after it was given its task."""

    def __init__(self, how: str, *, ready: bool) -> None:
        super().__init__(how)
        self.ready = ready


class Child:
    """One process for tasks of one step."""

    def __init__(self, step: str, limits: Limits, environment: Mapping[str, str]) -> None:
        """Raises:
        Unavailable: no process could be started.
        """
        self.step = step
        self.ready = False
        self._buffer = bytearray()
        self._started = time.monotonic()
        self._answers, out = os.pipe()
        paths = [str(ROOT), *(path for path in sys.path if Path(path).is_absolute())]
        arguments = [
            json.dumps(paths),
            step,
            str(out),
            str(os.getpid()),
            json.dumps(asdict(limits)),
        ]
        try:
            self._process = subprocess.Popen(
                [sys.executable, *_FLAGS, "-c", _START, *arguments],
                env=dict(environment), cwd="/", start_new_session=True, pass_fds=(out,), bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            os.close(self._answers)
            raise Unavailable(
                f"no process could be started to check the upload: {error.strerror}"
            ) from error
        finally:
            os.close(out)

    def ask(
        self, task: Mapping[str, Any], timeout_s: float, written: Written = lambda _: None
    ) -> object:
        """The answer to `task`. `written` is called with what is told before, which may happen once.

        Raises:
            Ended: there is none; the message says why.
            InvalidModel: it is no line of JSON of a bounded length; the code is `SANDBOX_BAD_ANSWER`.
        """
        if not self.ready:
            if self._line(time.monotonic() + START_S) != b"ready":
                raise Ended("it did not start", ready=False)
            self.ready = True
        deadline = time.monotonic() + timeout_s
        self._write(json.dumps(task).encode() + b"\n", deadline)
        told = self._told(deadline)
        if is_written(told):
            written(read_written(told))
            told = self._told(deadline)
        return told

    def end(self) -> Usage:
        """Kill the process and whatever it started, and see what it took."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._reap()
        if self._process.stdin:
            self._process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
        return self.usage

    usage: Usage

    def _reap(self) -> int:
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        wall, cpu = time.monotonic() - self._started, used.ru_utime + used.ru_stime
        self.usage = Usage(self.step, wall, cpu, used.ru_maxrss / 1024)
        return self._process.returncode

    def _told(self, deadline: float) -> object:
        try:
            return json.loads(self._line(deadline), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise bad_answer("its answer is no JSON") from error

    def _line(self, deadline: float) -> bytes:
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > REPORT_BYTES:
                raise bad_answer("its answer is too long")
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise Ended("timeout", ready=self.ready)
            chunk = os.read(self._answers, 1024 * 1024)
            if not chunk:
                self._died(deadline)
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
        left = memoryview(data)
        try:
            while left:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise Ended("timeout", ready=self.ready)
                left = left[os.write(descriptor, left) :]
        except BrokenPipeError:
            self._died(deadline)

    def _died(self, deadline: float) -> NoReturn:
        """The pipe is closed: wait for the end, which may take a moment for gigabytes of memory."""
        while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                raise Ended("timeout", ready=self.ready)
            time.sleep(0.002)
        code = self._reap()
        if code == -signal.SIGXCPU:
            raise Ended("timeout", ready=self.ready)
        if code == -signal.SIGKILL:  # by the kernel: nobody else does
            raise Ended("memory", ready=self.ready)
        raise Ended(signal.Signals(-code).name if code < 0 else f"exit {code}", ready=self.ready)


@dataclass(slots=True)
class ProcessSandbox:
    """`core.workbench.Workbench`. With `spare`, the next processes are started ahead, with their imports done."""

    limits: Limits = field(default_factory=Limits)
    unpack_s: float = 20
    build_s: float = 60
    library_path: str = ""  # LD_LIBRARY_PATH of this process: Lambda's Python is found through it
    spare: bool = False
    used: deque[Usage] = field(default_factory=lambda: deque(maxlen=16))
    _spares: dict[str, deque[Child]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hide_environment()
        self.refill()

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        return read_unpacked(self._ask("unpack", unpack_task(form, directory), self.unpack_s))

    def build(self, brief: Brief, directory: Path, written: Written = lambda _: None) -> Built:
        return read_built(self._ask("build", build_task(brief, directory), self.build_s, written))

    def refill(self) -> None:
        """Start what the last upload used up: after it, so that nothing is taken from it."""
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
        """End the processes that were started ahead."""
        for spares in self._spares.values():
            while spares:
                spares.pop().end()

    def _ask(
        self,
        step: str,
        task: Mapping[str, Any],
        timeout_s: float,
        written: Written = lambda _: None,
    ) -> object:
        try:
            told = self._asked(self._take(step), task, timeout_s, written)
        except Ended as ended:
            if ended.ready:
                raise _reason(str(ended), timeout_s) from ended
            try:  # it never began: one that was started ahead may have been ended since
                told = self._asked(self._start(step), task, timeout_s, written)
            except Ended as again:
                if again.ready:
                    raise _reason(str(again), timeout_s) from again
                raise Unavailable(
                    f"the process that checks uploads did not start: {again}"
                ) from again
        if isinstance(told, dict) and "crashed" in told:
            log.error("the workbench failed on an upload: %s", json.dumps(str(told["crashed"])))
            raise _reason("an error", timeout_s)
        if isinstance(told, dict) and "memory" in told:
            raise _reason("memory", timeout_s)
        return told

    def _asked(
        self, child: Child, task: Mapping[str, Any], timeout_s: float, written: Written
    ) -> object:
        try:
            return child.ask(task, timeout_s, written)
        finally:
            self.used.append(child.end())

    def _start(self, step: str) -> Child:
        environment = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
        if self.library_path:
            environment["LD_LIBRARY_PATH"] = self.library_path
        return Child(step, self.limits, environment)

    def _take(self, step: str) -> Child:
        spares = self._spares.get(step)
        try:
            return spares.pop() if spares else self._start(step)
        except IndexError:  # another thread took it
            return self._start(step)


def hide_environment() -> None:
    """Keep other processes of this user, the sandbox above all, from reading this one's environment and memory."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _reason(how: str, timeout_s: float) -> InvalidModel:
    if how == "timeout":
        return InvalidModel(
            f"the model was not checked within {timeout_s:.0f} s: it is too large or never ends",
            code="SANDBOX_TIMEOUT",
        )
    if how == "memory":
        return InvalidModel(
            "the model needs more memory than the function that checks it has; raise the parameter RegisterMemory",
            code="SANDBOX_MEMORY",
        )
    return InvalidModel(
        f"the model ends the process that runs it ({how}): it would do so at every request",
        code="SANDBOX_CRASHED",
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
