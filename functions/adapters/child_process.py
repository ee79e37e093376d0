"""Child process with resource limits that answers tasks in JSON lines.

It has an empty environment, no descriptors but its pipes, and a session of its own. It needs no
/dev/shm, namespaces or root, which Lambda does not have. When it is killed, so is every process
that it started.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from functions.adapters.descendants import adopt_orphans, end_orphans, now_ticks
from functions.core.errors import InvalidModel, Unavailable
from functions.core.records import record

ROOT = Path(__file__).parents[2]  # folder of the package `functions`
REPORT_BYTES = 8 * 1024 * 1024  # one JSON answer; its largest field is the sample
START_S = 30  # s to start Python and load onnxruntime from a cold disk
POLL_S = 1.0  # s between two looks at a child that has not answered
REST_S = 30  # s; a child that neither used nor waited for a processor or disk so long hangs
ADDRESS_MB = 8 * 1024
EXIT_POLL_S = 0.002
# -I: no PYTHON* variables, no current directory; -S: no site-packages hooks; -B: no .pyc files
_FLAGS = ("-I", "-S", "-B")
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from functions.sandbox import __main__ as m; "
    "m.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))"
)


@record
class Limits:
    """Resource limits of a child process: memory, CPU, files and threads.

    There is no limit in seconds of the clock: how long a task takes by it depends on what else the
    machine does. Linux does not apply RLIMIT_NPROC, i.e. `threads`, to root.
    """

    memory_mb: int = 2048
    address_mb: int = ADDRESS_MB  # address space beyond memory_mb: maps, stacks, heaps
    cpu_s: int = 90  # then SIGXCPU
    kill_s: int = 2  # s of CPU time later: SIGKILL
    file_mb: int = 10 * 1024
    files: int = 128
    threads: int = 64


@record
class Usage:
    """Time and peak memory that a finished child process used.

    `peak_mb` is at least the parent's own size at the start, because Linux inherits the counter.
    """

    step: str
    wall_s: float
    cpu_s: float
    peak_mb: float


class ChildEnded(Exception):
    """Error: a child process ended, or was killed, without an answer.

    The message is one of the causes below, a signal's name or an exit status. `ready`: the child
    had started, so its task is at fault, unless the cause is `LATE` or `KILLED`.
    """

    CPU = "processor time"  # it used up its limit
    HANGS = "hangs"  # all its threads slept for `REST_S`
    LATE = "late"  # the caller's deadline passed while it worked, or waited for its turn
    MEMORY = "memory"  # the kernel killed it: memory ran out
    KILLED = "killed"  # somebody else killed it, it was far from its limits

    def __init__(self, message: str, *, ready: bool) -> None:
        super().__init__(message)
        self.ready = ready


class Child:
    """Child process that runs one step: unpack, build, or template."""

    usage: Usage  # set when the process has ended
    orphans = 0  # processes that it left behind; set when it is killed
    _pids: ClassVar[set[int]] = set()  # children in use, of all threads

    def __init__(self, step: str, limits: Limits, environment: Mapping[str, str]) -> None:
        """Start the child process under its resource limits.

        Raises:
            Unavailable: it could not be started.
        """
        adopt_orphans()
        self.step = step
        self.ready = False
        self._limits = limits
        self._buffer = bytearray()
        self._started = time.monotonic()
        self._asked_ticks = now_ticks()  # before it, no code of an upload ran in the child
        self._answers, write_end = os.pipe()
        paths = [str(ROOT), *(path for path in sys.path if Path(path).is_absolute())]
        arguments = [json.dumps(paths), step, str(write_end), str(os.getpid())]
        command = [sys.executable, *_FLAGS, "-c", _START, *arguments, json.dumps(_fields(limits))]
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
        self._pids.add(self._process.pid)

    def ask(self, task: Mapping[str, Any], deadline: float) -> object:
        """Send a task to the child process; return its JSON answer.

        `deadline` is a time of `time.monotonic`.

        Raises:
            ChildEnded: there is no answer.
            InvalidModel: the answer is no line of JSON of a bounded length; the code is
                `SANDBOX_BAD_ANSWER`.
        """
        if not self.ready:
            if self._read_line(time.monotonic() + START_S) != b"ready":
                raise ChildEnded("it did not start", ready=False)
            if self._has_exited():
                raise ChildEnded("it ended while it waited for a task", ready=False)
            self.ready = True
        self._asked_ticks = now_ticks()
        self._write(json.dumps(task).encode() + b"\n", deadline)
        try:
            return json.loads(self._read_line(deadline), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise _bad_answer("its answer is no JSON") from error

    def has_ended(self) -> bool:
        """Tell whether the child process is no longer there."""
        return self._process.returncode is not None or self._has_exited()

    def kill(self) -> Usage:
        """Kill the child process and its descendants; return its resource usage.

        Raises:
            StillRunning: a descendant does not end.
        """
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._reap()
        self._pids.discard(self._process.pid)
        if self._process.stdin:
            self._process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
        cpu_s = self._limits.cpu_s + self._limits.kill_s
        self.orphans += end_orphans(self._pids, cpu_s, self._asked_ticks)
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
        wait = _Wait(self._process.pid, deadline)
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > REPORT_BYTES:
                raise _bad_answer("its answer is too long")
            if not poll.poll(_milliseconds_until(deadline)):
                self._check(wait)
                continue
            chunk = os.read(self._answers, 1024 * 1024)
            if not chunk:
                self._raise_ended(wait)
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
        rest, wait = memoryview(data), _Wait(self._process.pid, deadline)
        try:
            while rest:
                if poll.poll(_milliseconds_until(deadline)):
                    rest = rest[os.write(descriptor, rest) :]
                else:
                    self._check(wait)
        except BrokenPipeError:
            self._raise_ended(wait)

    def _check(self, wait: "_Wait") -> None:
        """Raise `ChildEnded` if the child process hangs or its deadline passed."""
        cause = wait.cause_to_end()
        if cause is not None:
            raise ChildEnded(cause, ready=self.ready)

    def _raise_ended(self, wait: "_Wait") -> NoReturn:
        """Wait for the child to exit, and raise `ChildEnded` with the cause.

        Freeing gigabytes of memory may take the kernel a moment.
        """
        while not self._has_exited():
            self._check(wait)
            time.sleep(EXIT_POLL_S)
        exit_code = self._reap()
        raise ChildEnded(_cause(exit_code, self.usage, self._limits), ready=self.ready)

    def _has_exited(self) -> bool:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None


def _milliseconds_until(deadline: float) -> float:
    """Return milliseconds until the deadline, at most one polling interval."""
    return min(max(0.0, deadline - time.monotonic()), POLL_S) * 1000


def _cause(exit_code: int, usage: Usage, limits: Limits) -> str:
    """Return why a child process ended: resource limit, signal or exit code.

    SIGKILL comes from the kernel when the processor time or the memory runs out. A process far from
    both limits was ended by somebody else, and its upload is not at fault.
    """
    if exit_code == -signal.SIGXCPU:
        return ChildEnded.CPU
    if exit_code == -signal.SIGKILL:
        if usage.cpu_s >= limits.cpu_s:
            return ChildEnded.CPU
        return ChildEnded.MEMORY if usage.peak_mb >= limits.memory_mb / 2 else ChildEnded.KILLED
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit {exit_code}"


class _Wait:
    """Deadline and hang detection for a child process.

    On a busy machine, threads that wait for a processor or a disk do not hang: Linux reports them
    in state R or D. A process hangs if all its threads sleep for `REST_S` without using CPU time.
    """

    def __init__(self, pid: int, deadline: float) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._deadline = deadline
        self._ticks = -1
        self._active_at = time.monotonic()

    def cause_to_end(self) -> str | None:
        """Return the reason to kill the child process, None to keep waiting."""
        now, threads = time.monotonic(), self._threads()
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in threads)  # utime and stime
        is_active = any(fields[0] in "RD" for fields in threads)  # runnable, or disk
        if is_active or ticks != self._ticks:
            self._ticks, self._active_at = ticks, now
        if now - self._active_at > REST_S:
            return ChildEnded.HANGS
        return ChildEnded.LATE if now > self._deadline else None

    def _threads(self) -> list[list[str]]:
        """Return each thread's /proc/PID/task/TID/stat fields, from the state field on."""
        threads = []
        with suppress(OSError):  # a thread, or the process, ended
            for task in self._tasks.iterdir():
                threads.append((task / "stat").read_text("utf-8").rpartition(")")[2].split())
        return threads


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _fields(limits: Limits) -> dict[str, int]:
    return {name: getattr(limits, name) for name in Limits.__match_args__}


def _bad_answer(detail: str) -> InvalidModel:
    # Not at the top: generate, which renders chat templates in a child, needs 30 ms fewer imports.
    from functions.core.registration.sandbox_answers import bad_answer

    return bad_answer(detail)
