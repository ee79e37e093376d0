"""Temporary directories of living, finished and killed processes."""

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
        [sys.executable, "-c", LIVES, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_directories_of_killed_processes_are_removed_and_of_living_kept(
    tmp_path: Path,
) -> None:
    (living, kept), (killed, abandoned) = start(tmp_path), start(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    (tmp_path / "models-is-a-file").write_text("x")
    assert abandoned.is_dir()

    scratch = Scratch(tmp_path, "models-")

    assert {path.name for path in tmp_path.iterdir()} == {
        kept.name,
        scratch.path.name,
        "models-is-a-file",
    }
    assert list(scratch.path.iterdir()) == []
    scratch.close()
    living.communicate(timeout=10)  # end of input ends the process
    assert not kept.exists()


def test_close_removes_the_directory(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, "models-")
    (scratch.path / "x").write_text("x")
    scratch.close()

    assert list(tmp_path.iterdir()) == []
