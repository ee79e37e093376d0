"""The first process of a training container, and of a local job: the container contract in, the user's script out.

    python3 bootstrap.py -m training.train digits
    MAYFLY_RECIPE=digits python3 bootstrap.py

The second is for the older contract, sagemaker_program and sagemaker_submit_directory among the hyperparameters, which
tuning jobs still use: there a script is given no arguments of ours. With several GPUs or hosts, torchrun starts the
script, once for each GPU, or MAYFLY_PROCESSES times on each host; the hosts meet at the first of them.

Standard library only: it runs before anything is installed. It reads the files that SageMaker puts under /opt/ml (or
under $SAGEMAKER_BASE_DIR), sets the SM_* variables that training scripts expect, runs Python with its own arguments in
the code channel, hands SIGTERM on so that the script has its 120 s to save its state, and leaves the end of a traceback
in /opt/ml/output/failure, which becomes the job's FailureReason. The SDK's own drivers do neither (field notes 1.5).
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
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

FAILURE_LIMIT = 1024  # characters of the failure file that SageMaker shows
RESERVED = ("sagemaker_", "_tuning_")  # how hyperparameters begin that are SageMaker's own
TORCHRUN_SAYS = re.compile(
    r"^[EW]\d{4} .*torch/distributed/elastic/", re.MULTILINE
)  # after the first failure
CHILD_FAILED = re.compile(TORCHRUN_SAYS.pattern + r".* failed \(exitcode: (-?\d+)\)", re.MULTILINE)
STOPPED = 128 + int(signal.SIGTERM)


def main(arguments: list[str]) -> int:
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    environment = contract(base, os.environ)
    for name in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR", "SM_CHECKPOINT_DIR"):
        Path(environment[name]).mkdir(parents=True, exist_ok=True)
    code = Path(environment.get("SM_CHANNEL_CODE") or Path(__file__).resolve().parents[2])
    if recipe := environment.get("MAYFLY_RECIPE"):
        arguments = ["-m", "training.train", recipe]
    missing = list(missing_requirements(code / "training" / "requirements.txt"))
    status, tail = 0, ""
    if missing:
        print(f"installing {', '.join(missing)}", flush=True)
        wheels = code / "wheels"  # brought along, by a job that has no way to the package index
        source = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
        status, tail = run([*PIP, *source, *missing], environment, code)
    if status == 0:
        status, tail = run([sys.executable, *torchrun(environment), *arguments], environment, code)
    if status not in (0, STOPPED):
        leave_reason(Path(environment["SM_OUTPUT_FAILURE"]), status, tail)
    return status


TORCHRUN = "torch.distributed.run"
PORT = 29500  # where the hosts of a job meet
GRACE_S = 110  # of the 120 that SageMaker leaves, for torchrun's children
PIP = [
    sys.executable,
    "-m",
    "pip",
    "install",
    "--quiet",
    "--no-input",
    "--disable-pip-version-check",
]


def contract(base: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` and the SM_* variables that say what the files under `base` say.

    SM_HPS holds the hyperparameters as they came, all text: decoding "007" or "1e5" here would change a text for good.
    Those that SageMaker adds for itself are left out.
    """
    config = base / "input" / "config"
    resources = _read(config / "resourceconfig.json")
    channels = _read(config / "inputdataconfig.json")
    hosts = sorted(resources.get("hosts", ["algo-1"]))
    network = resources.get("network_interface_name", "")
    job = environ.get(
        "TRAINING_JOB_NAME", ""
    )  # the jobs of one tuning job may share a folder for checkpoints
    hyperparameters = _read(config / "hyperparameters.json")
    variables = {
        "SM_MODEL_DIR": base / "model",
        "SM_INPUT_DIR": base / "input",
        "SM_INPUT_CONFIG_DIR": config,
        "SM_OUTPUT_DIR": base / "output",
        "SM_OUTPUT_DATA_DIR": base / "output" / "data",
        "SM_OUTPUT_FAILURE": base / "output" / "failure",
        "SM_CHECKPOINT_DIR": base / "checkpoints" / (job if "MAYFLY_RECIPE" in environ else ""),
        "SM_HPS": _dumps(
            {
                name: value
                for name, value in hyperparameters.items()
                if not name.startswith(RESERVED)
            }
        ),
        "SM_CHANNELS": _dumps(sorted(channels)),
        "SM_INPUT_DATA_CONFIG": _dumps(channels),
        "SM_RESOURCE_CONFIG": _dumps(resources),
        "SM_HOSTS": _dumps(hosts),
        "SM_CURRENT_HOST": resources.get("current_host", hosts[0]),
        "SM_CURRENT_INSTANCE_TYPE": resources.get("current_instance_type", ""),
        "SM_NETWORK_INTERFACE_NAME": network,
        "SM_NUM_CPUS": os.cpu_count() or 1,
        "SM_NUM_GPUS": gpus(environ),
    }
    for name in channels:
        variables[f"SM_CHANNEL_{name.upper()}"] = base / "input" / "data" / name
    if (
        network and len(hosts) > 1
    ):  # gloo and NCCL would otherwise guess how the hosts reach each other
        variables |= {
            name: environ.get(name, network)
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        }
    told = {name: str(value) for name, value in variables.items() if value != ""}
    return {**environ, "PYTHONUNBUFFERED": "1", **told}


def gpus(environ: Mapping[str, str]) -> int:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return len(
        list(
            Path("/dev").glob("nvidia[0-9]*")
            if visible is None
            else filter(None, visible.split(","))
        )
    )


def torchrun(environment: Mapping[str, str]) -> list[str]:
    """What comes before the script and starts it as several processes; nothing where there is to be one."""
    hosts = json.loads(environment["SM_HOSTS"])
    each = int(environment.get("MAYFLY_PROCESSES") or environment["SM_NUM_GPUS"]) or 1
    if len(hosts) * each == 1:
        return []
    options = {
        "nnodes": len(hosts),
        "node-rank": hosts.index(environment["SM_CURRENT_HOST"]),
        "nproc-per-node": each,
        "master-addr": hosts[0] if len(hosts) > 1 else "127.0.0.1",
        "master-port": PORT,
        "shutdown-timeout": GRACE_S,
    }
    return ["-m", TORCHRUN, *(f"--{name}={value}" for name, value in options.items())]


def missing_requirements(path: Path) -> Iterator[str]:
    """Lines of a requirements file whose package is not installed; versions that are there are left alone."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        try:
            importlib.metadata.distribution(re.split(r"[^A-Za-z0-9._-]", requirement)[0])
        except importlib.metadata.PackageNotFoundError:
            yield requirement


def run(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str]:
    """Exit status of `command` as a shell would give it, and the end of what it wrote to stderr.

    Of torchrun, both are those of the process that it started and that failed first.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: received.append(number))
    child = subprocess.Popen(
        command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True, errors="replace"
    )

    def hand_on(number: int, _frame: object = None) -> None:
        received.append(number)
        child.send_signal(number)

    missed = list(received)  # they came before there was a child
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    for early in missed:
        hand_on(early)
    lines: deque[str] = deque(maxlen=200)
    assert child.stderr is not None  # noqa: S101  PIPE was asked for
    reader = threading.Thread(target=_copy, args=(child.stderr, lines), daemon=True)
    reader.start()
    status = child.wait()
    reader.join(timeout=5)  # a grandchild may hold the pipe open
    tail = "".join(lines)
    if TORCHRUN in command and status:
        failed = CHILD_FAILED.search(tail)
        status = int(failed[1]) if failed else status
        status = STOPPED if signal.SIGTERM in received else status
        tail = TORCHRUN_SAYS.split(tail, maxsplit=1)[0] if failed else tail
    return (128 - status if status < 0 else status), tail


def _copy(stream: IO[str], lines: deque[str]) -> None:
    for line in stream:
        lines.append(line)
        sys.stderr.write(line)
        sys.stderr.flush()


def leave_reason(path: Path, status: int, stderr: str) -> None:
    """The failure file, unless the script wrote one: the last lines that fit, which name the error."""
    if path.exists():
        return
    if status > 128:
        name = (
            signal.Signals(status - 128).name
            if status - 128 in set(signal.Signals)
            else f"signal {status - 128}"
        )
        hint = "; out of memory?" if status == 128 + signal.SIGKILL else ""
        stderr += f"killed by {name}{hint}\n"
    text = (
        stderr.rpartition("Traceback (most recent call last):\n")[2].strip()
        or f"exit status {status}"
    )
    kept: list[str] = []
    for line in reversed(text.splitlines()):
        if kept and sum(map(len, kept)) + len(kept) + len(line) > FAILURE_LIMIT:
            break
        kept.insert(0, line)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(kept)[:FAILURE_LIMIT], encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
