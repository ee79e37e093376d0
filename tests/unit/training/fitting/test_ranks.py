"""Two processes that share every batch learn the weights of one process.

Within 1e-5: they add up in another order.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from tests.unit.training.fitting import ranks as script
from training.errors import InvalidCheckpoint

pytestmark = pytest.mark.train
ROOT = Path(__file__).parents[4]
ATOL = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two processes with torchrun's variables; return their output folder.

    They meet in a file and communicate over the loopback interface.
    """
    folder = tmp_path_factory.mktemp("ranks")
    shared = {
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
        "MAYFLY_RENDEZVOUS": f"file://{folder}/meeting",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.training.fitting.ranks", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        printed = [child.communicate(timeout=200) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], printed
    assert "epoch 4/4" in printed[0][0]
    assert printed[1][0] == ""  # rank 0 alone prints
    return folder


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_two_processes_learn_the_weights_of_one(folder: Path) -> None:
    alone = script.make_model()
    history = script.fit(alone)
    together = load(folder / "plain.pt")

    for name, weights in alone.state_dict().items():
        assert torch.allclose(weights, together["model"][name], atol=ATOL, rtol=0), name
    for ours, theirs in zip(history, together["history"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=ATOL)
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=ATOL)
    moved = [not torch.allclose(a, b, atol=0.05) for a, b in
             zip(alone.parameters(), script.make_model().parameters(), strict=True)]  # fmt: skip
    assert any(moved)


def test_both_processes_have_bitwise_equal_weights(folder: Path) -> None:
    first, second = load(folder / "plain.pt")["others"]

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sigterm_to_one_process_stops_both_and_they_resume_bit_for_bit(folder: Path) -> None:
    """Each process draws its own dropout: its random state has to come back to it."""
    saved = load(folder / "resumed.pt")

    assert saved["stops"] == [True, True]
    for name, weights in saved["whole"].items():
        assert torch.equal(weights, saved["resumed"][name]), name


def test_one_process_refuses_the_checkpoint_of_two(folder: Path) -> None:
    settings = script.replace(script.SETTINGS, accumulate=1, epochs=3)

    with pytest.raises(InvalidCheckpoint, match="belongs to a run with other processes"):
        script.fit(script.make_model(0.3), settings=settings, checkpoints=folder / "state")


@pytest.mark.parametrize(
    ("processes", "main", "status", "out", "error"),
    [
        ("2", "lambda: print('said') or 3", 3, "said\n", ""),
        ("2", "lambda: 1 / 0", 1, "", "ZeroDivisionError"),
        ("1", "lambda: 3", 3, "ended by Python\n", ""),
    ],
)
def test_several_processes_exit_without_finalizing_the_interpreter(
    processes: str, main: str, status: int, out: str, error: str
) -> None:
    """During finalization, a gloo thread that releases a tensor would abort the process."""
    code = f"""import atexit
from training.fitting import distributed
atexit.register(print, "ended by Python")
distributed.run_and_exit({main})"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "WORLD_SIZE": processes},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (status, out)
    assert error in done.stderr


UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_torchrun_starts_the_command_and_one_process_writes_the_model(tmp_path: Path) -> None:
    """Runs in a network namespace of its own, because torchrun listens on every interface."""
    alone = ["unshare", "--map-root-user", "--net"]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run([*alone, "true"], check=False).returncode
    ):
        pytest.skip("this machine allows no network namespaces")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    train = [
        "-m",
        "training.train",
        "mlp",
        "--set",
        "epochs=2",
        "--device",
        "cpu",
        "--model-dir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*alone, sys.executable, "-c", UP, *torchrun, *train],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )

    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert len(re.findall(r"^epoch 2/2 ", done.stdout, re.MULTILINE)) == 1
    assert (tmp_path / "model.onnx").exists()
