"""Entry point of the sandbox process: restricts itself, then runs tasks.

`adapters/sandbox.py` starts it.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from functions.adapters.seccomp import restrict_system_calls
from functions.core.errors import InvalidModel
from functions.core.registration.sandbox_protocol import read_brief, rejection, report
from functions.core.uploads import Form

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_TRACE_CHARACTERS = 4000
MB = 1024 * 1024

Task = Mapping[str, Any]
Step = Callable[[Task], dict[str, Any]]


def main(step: str, out: int, parent: int, limits: Mapping[str, int]) -> None:
    """Read tasks from stdin and write answers to file descriptor `out`.

    Writes the line `ready` once, then a line of JSON for each task, until stdin ends.
    """
    _end_with(parent)
    _limit(limits)
    run = _step(step)
    restrict_system_calls()
    _write_line(out, "ready")
    for line in sys.stdin.buffer:
        _write_line(out, _answer(run, json.loads(line)))


def _end_with(parent: int) -> None:
    """Make this process die with its parent and never gain privileges."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before prctl could notice
        os._exit(0)


def _limit(limits: Mapping[str, int]) -> None:
    """Apply resource limits to this process and its children."""
    os.umask(0o077)
    for name, soft, hard in _resource_limits(limits):
        kind = getattr(resource, f"RLIMIT_{name}")
        _, allowed = resource.getrlimit(kind)
        most = max(soft, hard)
        if allowed != resource.RLIM_INFINITY:
            most = min(most, allowed)
        resource.setrlimit(kind, (min(soft, most), most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file beyond FSIZE raises OSError instead


def _resource_limits(limits: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, soft value, hard value) of each resource limit."""
    memory = limits["memory_mb"] * MB
    address = memory + limits["address_mb"] * MB
    yield "CORE", 0, 0
    yield "DATA", memory, memory  # private writable memory
    yield "AS", address, address  # also maps of files and reserved addresses
    yield "CPU", limits["cpu_s"], limits["cpu_s"] + limits["kill_s"]
    yield "FSIZE", limits["file_mb"] * MB, limits["file_mb"] * MB
    yield "NOFILE", limits["files"], limits["files"]
    yield "NPROC", _threads_of_this_user() + limits["threads"], 0


def _threads_of_this_user() -> int:
    """Count this user's threads, as RLIMIT_NPROC does."""
    threads = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.getuid():
                threads += sum(1 for _ in (process / "task").iterdir())
        except OSError:  # the process ended
            continue
    return threads


def _step(name: str) -> Step:
    """Import and return the function for step "unpack", "build" or "template"."""
    if name == "unpack":
        from functions.sandbox.unpack import unpack

        return lambda task: report(unpack(Form[task["form"]], Path(task["directory"])))
    if name == "template":
        from functions.sandbox.language.rendering import Renderer

        return Renderer()
    from functions.adapters.memory import keep_stacks_small
    from functions.adapters.onnx.capi import library
    from functions.sandbox.build import build

    keep_stacks_small()  # as in the function that will serve the model
    library()  # loaded before a task arrives, which would wait for it
    return lambda task: report(build(read_brief(task), Path(task["directory"])))


def _answer(run: Step, task: Task) -> str:
    try:
        os.chdir(task["directory"])
        return json.dumps(run(task), allow_nan=False)
    except InvalidModel as error:
        return json.dumps(rejection(error))
    except MemoryError:
        return json.dumps({"memory": True})
    except Exception:  # a crafted file may raise anything; the parent logs it and refuses the file
        return json.dumps({"crashed": traceback.format_exc()[-_TRACE_CHARACTERS:]})


def _write_line(out: int, line: str) -> None:
    remaining = memoryview(line.encode() + b"\n")
    while remaining:
        remaining = remaining[os.write(out, remaining) :]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
