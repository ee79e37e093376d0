"""The directory of a process, and what killed processes have left of theirs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from functions.adapters.scratch import Scratch

LIVES = """
import sys
from pathlib import Path
from functions.adapters.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]), "models-")
(scratch.path / "half a download").write_text("x")
print(scratch.path, flush=True)
sys.stdin.read()
"""


def start(parent: Path) -> tuple["subprocess.Popen[str]", Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path,
) -> None:
    (living, its), (killed, left) = start(tmp_path), start(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    (tmp_path / "models-is-a-file").write_text("x")
    assert left.is_dir()

    scratch = Scratch(tmp_path, "models-")

    assert {path.name for path in tmp_path.iterdir()} == {
        its.name,
        scratch.path.name,
        "models-is-a-file",
    }
    assert list(scratch.path.iterdir()) == []
    scratch.close()
    living.communicate(timeout=10)  # its input ends, and it does
    assert not its.exists()


def test_a_directory_ends_with_its_owner(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, "models-")
    (scratch.path / "x").write_text("x")
    scratch.close()

    assert list(tmp_path.iterdir()) == []
