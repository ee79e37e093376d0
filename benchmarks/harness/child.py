"""Run measured child processes, which answer with one marked output line."""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import ROOT

CHILDREN = ROOT / "benchmarks" / "children"
MARK = b"ANSWER "
LIMIT_S = 120.0
PLAN_LIMIT_S = 3600.0  # limit for a process that measures many rounds


def spawn(
    arguments: Sequence[str | Path], environment: Callable[[Path], Mapping[str, str]], folder: Path
) -> tuple[float, Any]:
    """Run a new Python process; return (milliseconds until its answer, answer).

    `environment` returns the variables of a process, given its temporary directory, which lies
    in `folder` and is removed afterwards.

    Raises:
        RuntimeError: the process failed or ended without an answer.
    """
    tmp = Path(tempfile.mkdtemp(dir=folder))
    variables = dict(environment(tmp))
    try:
        with tempfile.TemporaryFile() as errors:
            started = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=tmp,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as process:
                answer, answered = _read_answer(process)
            if answer is None or process.returncode:
                errors.seek(0)
                output = errors.read().decode(errors="replace").strip()[-1000:]
                script = Path(arguments[0]).name
                raise RuntimeError(f"{script} ended with {process.returncode}: {output}")
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return (answered - started) * 1000, json.loads(answer)


def run_plan(
    script: str,
    plan: Mapping[str, Any],
    folder: Path,
    environment: Callable[[Path], Mapping[str, str]],
) -> dict[str, Any]:
    """Run a script of `children` on a plan; return its result.

    `environment` returns the variables of the process, given its temporary directory.

    Raises:
        SystemExit: the process failed.
    """
    tmp, result = folder / "tmp", folder / "result.json"
    tmp.mkdir()
    done = subprocess.run(
        [sys.executable, str(CHILDREN / script), write_json(folder / "plan.json", plan), result],
        env=dict(environment(tmp)),
        cwd=tmp,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=PLAN_LIMIT_S,
        check=False,
    )
    if done.returncode or not result.exists():
        raise SystemExit(f"the measured process ended with {done.returncode}")
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return measured


def _read_answer(process: "subprocess.Popen[bytes]") -> tuple[bytes | None, float]:
    """Return a child process's marked output line and its arrival time.

    The output is read to its end; the time does not include that.
    """
    watchdog = threading.Timer(LIMIT_S, process.kill)
    watchdog.start()
    try:
        answer, answered = None, 0.0
        for line in process.stdout or ():
            if answer is None and line.startswith(MARK):
                answer, answered = line[len(MARK) :], time.perf_counter()
        process.wait()
        return answer, answered
    finally:
        watchdog.cancel()


def write_json(path: Path, document: object) -> str:
    """Write a JSON file for a child process; return its path."""
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)
