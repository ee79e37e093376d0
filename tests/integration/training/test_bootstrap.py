"""bootstrap.py runs a user's recipe: settings, SIGTERM, resumption, two hosts."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from training.sagemaker import bootstrap
from training.sagemaker.training_job import Job, build

pytestmark = pytest.mark.train
ROOT = Path(__file__).parents[3]
SCRIPT = Path(bootstrap.__file__)
NOTE = "o'brien's \"grün\" 数 🪰 $(x)"
STEPS = 8  # in an epoch
HALF = 3 * STEPS + 5  # in the middle of the fourth epoch
DEADLINE_S = 240  # generous for a machine under load, below the timeout of a test

OWN = f"""
import os, signal, time
from dataclasses import dataclass
import numpy as np
import torch
from training.data import Examples, split
from training.recipe import NetworkHyperparameters, Recipe

@dataclass(frozen=True)
class Knobs(NetworkHyperparameters):
    epochs: int = 6
    note: str = ""
    flag: bool = False
    widths: tuple[int, ...] = (4,)

def data():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((160, 5)).astype(np.float32)
    examples = Examples({{"x": x}}, (x[:, 0] > x[:, 1]).astype(np.int64))
    return split(examples, source="made", sha256="0", validation=0.1, test=0.1)

def model(h):
    return torch.nn.Sequential(torch.nn.Linear(5, h.widths[0]), torch.nn.Dropout(0.3),
                               torch.nn.Linear(h.widths[0], 2))

steps = 0

def augment(x):
    global steps
    steps += 1
    if steps == {HALF} and "WAIT" in os.environ:
        print("half way", flush=True)
        stop, deadline = signal.getsignal(signal.SIGTERM).__self__, time.monotonic() + {DEADLINE_S}
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
    return x + 0.1 * torch.randn_like(x)

recipe = Recipe(name="own", description="", task="classification", labels=("no", "yes"),
                hyperparameters=Knobs, data=data, model=model, augment=augment)
"""


def make_base(folder: Path, hosts: Mapping[str, Any] | None = None, **settings: object) -> Path:
    """Fill `folder` as a job's request fills /opt/ml."""
    hyperparameters = {"batch_size": 16, "note": NOTE, "flag": True, "widths": [12], **settings}
    request = build(
        Job("name", "own.py", "own", "bucket", "role", "s3://-/-/", hyperparameters=hyperparameters)
    )
    files = {"hyperparameters": request["HyperParameters"], "inputdataconfig": {"code": {}}}
    for name, content in (files | ({"resourceconfig": hosts} if hosts else {})).items():
        path = folder / "input" / "config" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "input" / "data" / "code").mkdir(parents=True, exist_ok=True)
    (folder / "input" / "data" / "code" / "own.py").write_text(OWN)
    return folder


@contextmanager
def started(base: Path, *before: str, **more: str) -> Iterator["subprocess.Popen[str]"]:
    """Run bootstrap.py as a container's first process, without an export."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(base),
        "PYTHONPATH": str(ROOT),
        "SAGEMAKER_BASE_DIR": str(base),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
        "MAYFLY_TRIAL": "1",
        **more,
    }
    command = [*before, sys.executable, str(SCRIPT), "-m", "training.train", "own.py"]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return output
    errors = process.stderr.read() if process.stderr else ""
    pytest.fail(f"{text!r} was never printed: {output}{errors}")


def weights(base: Path) -> Any:
    state = torch.load(base / "checkpoints" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (6, 0)
    return state["model"]


@pytest.mark.slow
def test_a_stopped_job_resumes_to_bit_identical_weights(tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, with dropout and random augmentation."""
    base = make_base(tmp_path / "stopped")
    with started(base, WAIT="1") as first:
        before = until(first, "half way")
        first.terminate()
        _, errors = first.communicate(timeout=DEADLINE_S)
        assert first.returncode == 143, errors
    assert "stopped in epoch 4 after step 5 of 8" in errors
    assert not (base / "output" / "failure").exists()
    with started(base) as second:
        out, errors = second.communicate(timeout=DEADLINE_S)
        assert second.returncode == 0, errors
    with started(make_base(tmp_path / "whole")) as whole:
        uninterrupted, errors = whole.communicate(timeout=DEADLINE_S)
        assert whole.returncode == 0, errors

    assert f"note={NOTE!r}, flag=True, widths=(12,)" in before  # the job's values, with their types
    assert "resumed after 3 epochs and 5 steps" in out
    assert "resumed" not in uninterrupted
    resumed, expected = weights(base), weights(tmp_path / "whole")
    assert set(resumed) == set(expected)
    assert all(torch.equal(resumed[name], expected[name]) for name in resumed)
    metric = out.splitlines()[-1]
    assert metric == uninterrupted.splitlines()[-1]
    assert metric.startswith("validation_accuracy=")


UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
os.execv(sys.argv[1], sys.argv[1:])
"""
ALONE = ("unshare", "--map-root-user", "--net")  # torchrun listens on every interface
HOSTS = ("127.0.0.1", "127.0.0.2")


@pytest.fixture
def network() -> Iterator[tuple[str, ...]]:
    """Yield a command prefix that runs commands in a private network."""
    command = [*ALONE, sys.executable, "-c", UP, "/bin/sh", "-c", "echo up; read _"]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run([*ALONE, "true"], check=False).returncode
    ):
        pytest.skip("this machine allows no network namespaces")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        yield ("nsenter", "--preserve-credentials", "--user", "--net", f"--target={holder.pid}")
        holder.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    "attempts", [1, pytest.param(2, marks=pytest.mark.stress)]
)  # the second takes as long again
def test_two_hosts_meet_stop_and_resume_together(
    attempts: int, tmp_path: Path, network: tuple[str, ...]
) -> None:
    def host(name: str) -> Path:
        hosts = {
            "current_host": name,
            "hosts": sorted(HOSTS, reverse=True),
            "network_interface_name": "lo",
        }
        return make_base(tmp_path / name, hosts)

    leader, follower = map(host, HOSTS)
    with (
        started(leader, *network, WAIT="1") as first,
        started(follower, *network, WAIT="1") as second,
    ):
        assert "2 processes" in until(first, "half way")
        until(second, "half way")
        first.terminate()
        second.terminate()
        outputs = [process.communicate(timeout=DEADLINE_S) for process in (first, second)]
        assert [first.returncode, second.returncode] == [143, 143], outputs
    assert not any((base / "output" / "failure").exists() for base in (leader, follower))
    assert not (follower / "checkpoints" / "checkpoint.pt").exists()  # only the leader saves
    saved = torch.load(leader / "checkpoints" / "checkpoint.pt", weights_only=True)
    assert (saved["run"]["processes"], len(saved["generators"])) == (2, 2)
    # The hosts agree to stop at the end of an epoch, if it is as short as this one.
    assert (saved["epoch"], saved["step"]) == (4, 0)
    if attempts == 1:
        return
    with started(leader, *network) as first, started(follower, *network) as second:
        outputs = [process.communicate(timeout=DEADLINE_S) for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], outputs

    assert "resumed after" in outputs[0][0]
    assert "validation_accuracy=" in outputs[0][0].splitlines()[-1]
    assert outputs[1][0] == ""
    assert weights(leader)


@pytest.mark.slow
def test_the_failure_of_several_processes_is_reported_once(
    tmp_path: Path, network: tuple[str, ...]
) -> None:
    base = make_base(tmp_path, epochs="many")
    with started(base, *network, MAYFLY_PROCESSES="2") as process:
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1, errors

    assert "torch.distributed.elastic" in errors
    reason = (base / "output" / "failure").read_text()
    assert reason.splitlines()[-1] == "error: epochs: 'many' is not a whole number"
    assert "torch" not in reason
