"""The process itself: limits first, then what it needs, then one task a line. `adapters/sandbox.py` starts it."""

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from functions.core.errors import InvalidModel
from functions.core.registration.sandbox_protocol import read_brief, rejection, report
from functions.core.uploads import Form

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_TRACE_CHARACTERS = 4000
MB = 1024 * 1024


def main(step: str, out: int, parent: int, limits: Mapping[str, int]) -> None:
    """Answer the tasks on stdin, on the descriptor `out`: `ready` once, then a line of JSON each, until stdin ends."""
    _limit(parent, limits)
    work = _step(step)
    _say(out, "ready")
    for line in sys.stdin.buffer:
        _say(out, _answer(work, json.loads(line)))


def _limit(parent: int, limits: Mapping[str, int]) -> None:
    """End with the parent, and give this process and its children no more than `limits`."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before it was heard
        os._exit(0)
    os.umask(0o077)
    address = (limits["memory_mb"] + limits["address_mb"]) * MB
    for name, soft, hard in (
        ("CORE", 0, 0),
        (
            "DATA",
            limits["memory_mb"] * MB,
            limits["memory_mb"] * MB,
        ),  # private and writable: what really costs
        ("AS", address, address),  # and maps of files, reserved addresses
        ("CPU", limits["cpu_s"], limits["cpu_s"] + 2),  # SIGXCPU, then SIGKILL
        ("FSIZE", limits["file_mb"] * MB, limits["file_mb"] * MB),
        ("NOFILE", limits["files"], limits["files"]),
        ("NPROC", _threads_of_this_user() + limits["threads"], 0),
    ):
        kind = getattr(resource, f"RLIMIT_{name}")
        _, allowed = resource.getrlimit(kind)
        most = (
            max(soft, hard) if allowed == resource.RLIM_INFINITY else min(max(soft, hard), allowed)
        )
        resource.setrlimit(kind, (min(soft, most), most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is an OSError


def _threads_of_this_user() -> int:
    """What RLIMIT_NPROC counts: it is a limit of the user, not of the process."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.getuid():
                found += sum(1 for _ in (process / "task").iterdir())
        except OSError:
            continue
    return found


def _step(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Import and return the function that runs a step."""
    if name == "unpack":
        from functions.sandbox.unpack import unpack

        return lambda task: report(unpack(Form[task["form"]], Path(task["directory"])))
    from functions.adapters.memory import keep_stacks_small
    from functions.adapters.onnx.capi import library
    from functions.sandbox.build import build

    keep_stacks_small()  # as in the function that will serve it
    library()  # before there is a task, which would wait for it
    return lambda task: report(build(read_brief(task), Path(task["directory"])))


def _answer(work: Callable[[Mapping[str, Any]], dict[str, Any]], task: Mapping[str, Any]) -> str:
    try:
        os.chdir(task["directory"])
        return json.dumps(work(task), allow_nan=False)
    except InvalidModel as error:
        return json.dumps(rejection(error))
    except MemoryError:
        return json.dumps({"memory": True})
    except (
        Exception
    ):  # whatever a crafted file brought about: told to the log, and a reason to refuse the file
        return json.dumps({"crashed": traceback.format_exc()[-_TRACE_CHARACTERS:]})


def _say(out: int, line: str) -> None:
    left = memoryview(line.encode() + b"\n")
    while left:
        left = left[os.write(out, left) :]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
