"""Fixtures of the command line's tests: settings of their own, and a runner."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the settings of the machine."""
    for name in [name for name in os.environ if name.startswith("MAYFLY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAYFLY_CONFIG", str(tmp_path / "config.json"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
