"""SageMaker container entry point: install packages, run training script, forward signals.

    python3 bootstrap.py -m training.train digits
    MAYFLY_RECIPE=digits python3 bootstrap.py

It reads the files that SageMaker puts under /opt/ml (or $SAGEMAKER_BASE_DIR), sets the SM_*
variables that training scripts expect, and runs Python with its own arguments in the code channel.
With several GPUs or hosts, torchrun starts the script once for each GPU, or MAYFLY_PROCESSES times
on each host; the hosts meet at the first of them.

The second form is for tuning jobs, which still use an older contract: sagemaker_program and
sagemaker_submit_directory are hyperparameters, and the arguments are not ours.

SageMaker's own launchers are not used because they lose SIGTERM, so that a script cannot save its
state in its last 120 s, and because they write hyperparameters into a shell script, which an
apostrophe breaks (decision 0023). Here SIGTERM is forwarded, hyperparameters stay JSON, and the end
of a traceback is left in /opt/ml/output/failure, which becomes the job's FailureReason.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FAILURE_LIMIT = 1024  # characters of the failure file that SageMaker shows
STDERR_LINES = 200  # last lines of stderr that are kept for the failure file
RESERVED = ("sagemaker_", "_tuning_")  # prefixes of SageMaker's own hyperparameters
STOPPED = 128 + int(signal.SIGTERM)  # exit status after SIGTERM

TORCHRUN = "torch.distributed.run"
PORT = 29500  # TCP port of the first host, at which all hosts of a job meet
GRACE_S = 110  # seconds that torchrun gives its children after SIGTERM; SageMaker leaves 120 s
# torchrun's own log lines, which follow the traceback of the process that failed first.
TORCHRUN_LOG = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic/", re.MULTILINE)
CHILD_FAILED = re.compile(TORCHRUN_LOG.pattern + r".* failed \(exitcode: (-?\d+)\)", re.MULTILINE)

PIP = (
    sys.executable,
    "-m",
    "pip",
    "install",
    "--quiet",
    "--no-input",
    "--disable-pip-version-check",
)


def main(arguments: list[str]) -> int:
    """Install missing packages, run the training script; return its exit status."""
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    environment = contract(base, os.environ | {"MAYFLY_STARTED_AT": str(time.time())})
    for name in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR", "SM_CHECKPOINT_DIR"):
        Path(environment[name]).mkdir(parents=True, exist_ok=True)
    code = Path(environment.get("SM_CHANNEL_CODE") or Path(__file__).resolve().parents[2])
    if recipe := environment.get("MAYFLY_RECIPE"):
        arguments = ["-m", "training.train", recipe]
    status, tail = _install(code, environment)
    if status == 0:
        command = [sys.executable, *torchrun(environment), *arguments]
        status, tail = run(command, environment, code)
    if status not in (0, STOPPED):
        write_failure(Path(environment["SM_OUTPUT_FAILURE"]), status, tail)
    return status


def _install(code: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Install missing requirements with pip; return its exit status and stderr.

    Of this package's own requirements any installed version counts; the user's file goes to pip.
    """
    packages = list(missing_requirements(code / "training" / "requirements.txt"))
    own = code / "requirements.txt"
    if own.is_file():
        packages += ["-r", str(own)]
    if not packages:
        return 0, ""
    print(f"installing {' '.join(packages)}", flush=True)
    wheels = code / "wheels"  # uploaded with a job that cannot reach the package index
    source = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
    return run([*PIP, *source, *packages], environment, code)


def missing_requirements(path: Path) -> Iterator[str]:
    """Yield a requirements file's entries whose package is not installed.

    Any installed version counts.
    """
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        try:
            importlib.metadata.distribution(re.split(r"[^A-Za-z0-9._-]", requirement)[0])
        except importlib.metadata.PackageNotFoundError:
            yield requirement


# --- the container's contract as variables


def contract(base: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables with SM_* added from SageMaker's configuration files.

    The files are in `base`/input/config. SM_HPS holds the hyperparameters as text, as they came:
    decoding "007" or "1e5" here would change a text for good. SageMaker's own hyperparameters are
    left out.
    """
    config = base / "input" / "config"
    resources = _read_json(config / "resourceconfig.json")
    channels = _read_json(config / "inputdataconfig.json")
    hosts = sorted(resources.get("hosts", ["algo-1"]))
    hyperparameters = {
        name: value
        for name, value in _read_json(config / "hyperparameters.json").items()
        if not name.startswith(RESERVED)
    }
    # The jobs of one tuning job may share a folder for checkpoints: each job gets a subfolder.
    job = environ.get("TRAINING_JOB_NAME", "") if "MAYFLY_RECIPE" in environ else ""
    variables = {
        "SM_MODEL_DIR": base / "model",
        "SM_INPUT_DIR": base / "input",
        "SM_INPUT_CONFIG_DIR": config,
        "SM_OUTPUT_DIR": base / "output",
        "SM_OUTPUT_DATA_DIR": base / "output" / "data",
        "SM_OUTPUT_FAILURE": base / "output" / "failure",
        "SM_CHECKPOINT_DIR": base / "checkpoints" / job,
        "SM_HPS": _dumps(hyperparameters),
        "SM_CHANNELS": _dumps(sorted(channels)),
        "SM_INPUT_DATA_CONFIG": _dumps(channels),
        "SM_RESOURCE_CONFIG": _dumps(resources),
        "SM_HOSTS": _dumps(hosts),
        "SM_CURRENT_HOST": resources.get("current_host", hosts[0]),
        "SM_CURRENT_INSTANCE_TYPE": resources.get("current_instance_type", ""),
        "SM_NETWORK_INTERFACE_NAME": resources.get("network_interface_name", ""),
        "SM_NUM_CPUS": os.cpu_count() or 1,
        "SM_NUM_GPUS": gpu_count(environ),
    }
    for name in channels:
        variables[f"SM_CHANNEL_{name.upper()}"] = base / "input" / "data" / name
    if len(hosts) > 1:
        variables |= _network(resources.get("network_interface_name", ""), environ)
    texts = {name: str(value) for name, value in variables.items() if value != ""}
    return {**environ, "PYTHONUNBUFFERED": "1", **texts}


def _network(interface: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables that select gloo's and NCCL's network interface."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: environ.get(name, interface) for name in names} if interface else {}


def gpu_count(environ: Mapping[str, str]) -> int:
    """Count the GPUs in CUDA_VISIBLE_DEVICES, or else those of the machine."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    return len([device for device in visible.split(",") if device])


def torchrun(environment: Mapping[str, str]) -> list[str]:
    """Return torchrun's command-line arguments, or none for a single process."""
    hosts = json.loads(environment["SM_HOSTS"])
    processes = int(environment.get("MAYFLY_PROCESSES") or environment["SM_NUM_GPUS"]) or 1
    if len(hosts) * processes == 1:
        return []
    options = {
        "nnodes": len(hosts),
        "node-rank": hosts.index(environment["SM_CURRENT_HOST"]),
        "nproc-per-node": processes,
        "master-addr": hosts[0] if len(hosts) > 1 else "127.0.0.1",
        "master-port": PORT,
        "shutdown-timeout": GRACE_S,
    }
    return ["-m", TORCHRUN, *(f"--{name}={value}" for name, value in options.items())]


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- the script as a child process


def run(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str]:
    """Run a command, forwarding signals; return exit status and last stderr lines.

    The status is a shell's: 128 and the signal's number for a killed process.

    SIGTERM and SIGINT are forwarded to it. Under torchrun, status and stderr are those of the
    process that failed first.
    """
    signals = Signals()
    child = subprocess.Popen(
        command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    signals.forward_to(child)
    lines: deque[str] = deque(maxlen=STDERR_LINES)
    reader = threading.Thread(target=_copy_stderr, args=(child, lines), daemon=True)
    reader.start()
    status = child.wait()
    reader.join(timeout=5)  # a grandchild may hold the pipe open
    tail = "".join(lines)
    if TORCHRUN in command and status:
        failure = CHILD_FAILED.search(tail)
        if failure:
            status, tail = int(failure[1]), TORCHRUN_LOG.split(tail, maxsplit=1)[0]
        if signal.SIGTERM in signals.received:
            status = STOPPED
    return (128 - status if status < 0 else status), tail


class Signals:
    """Signal handler that forwards SIGTERM and SIGINT to a child process."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._early: list[int] = []  # received before there was a child
        self._child: subprocess.Popen[str] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.received.append(number)
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)

    def forward_to(self, child: subprocess.Popen[str]) -> None:
        """Forward signals received so far and later to a child process."""
        self._child = child  # set first, so that the handler forwards a signal that comes now
        for number in self._early:
            child.send_signal(number)


def _copy_stderr(child: subprocess.Popen[str], lines: deque[str]) -> None:
    for line in child.stderr or ():
        lines.append(line)
        sys.stderr.write(line)
        sys.stderr.flush()


def write_failure(path: Path, status: int, stderr: str) -> None:
    """Write the end of a traceback to SageMaker's failure file.

    A failure file of the script's own is left alone.
    """
    if path.exists():
        return
    if status > 128:
        stderr += _killed(status - 128)
    traceback = stderr.rpartition("Traceback (most recent call last):\n")[2].strip()
    lines = (traceback or f"exit status {status}").splitlines()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_last_lines(lines)[:FAILURE_LIMIT], encoding="utf-8")


def _killed(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = "; out of memory?" if number == signal.SIGKILL else ""
    return f"killed by {name}{hint}\n"


def _last_lines(lines: list[str]) -> str:
    """Join as many last traceback lines as fit into FAILURE_LIMIT.

    The last line names the error and is always among them.
    """
    kept = lines[-1:]
    for line in reversed(lines[:-1]):
        if sum(map(len, kept)) + len(kept) + len(line) > FAILURE_LIMIT:
            break
        kept.insert(0, line)
    return "\n".join(kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
