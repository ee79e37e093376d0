"""The whole life of a model in the terminal: people's text in a pseudo-terminal, and JSON."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Api, wait
from tests.models import outside_weights_model, scale_model

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="pseudo-terminals are those of Unix"
)


class Terminal:
    """Runs commands of `mayfly` for one stack."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "MAYFLY_CONFIG": str(folder / "config.json"),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(Path.cwd()),
            "TERM": "xterm-256color",
            "PAGER": "cat",
        }
        for name in ("MAYFLY_URL", "MAYFLY_KEY", "NO_COLOR"):
            self.environment.pop(name, None)

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Return the document that a command prints."""
        done = subprocess.run(
            [sys.executable, "-m", "mayfly", *arguments, "--json"],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    def text(self, *arguments: str, code: int = 0) -> str:
        """Return what a command writes to a terminal, colours included."""
        process, terminal = pty.fork()
        if process == 0:
            os.chdir(self.folder)
            command = [sys.executable, "-m", "mayfly", *arguments]
            os.execve(sys.executable, command, self.environment)  # noqa: S606
        output = b""
        while True:
            try:
                data = os.read(terminal, 65_536)
            except OSError:  # Linux ends a closed terminal so
                break
            if not data:
                break
            output += data
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        text = output.decode().replace("\r\n", "\n")
        assert status == code, text
        return text


@pytest.fixture
def terminal(api: Api, tmp_path: Path) -> Terminal:
    terminal = Terminal(api, tmp_path)
    terminal.text("login", api.url, "--key", api.key)
    for number, factor in ((1, 2.0), (2, 3.0)):
        (tmp_path / f"v{number}.onnx").write_bytes(scale_model(factor))
    (tmp_path / "broken.onnx").write_bytes(scale_model(2.0)[:50])
    return terminal


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_models_life_as_text(terminal: Terminal, model: str) -> None:
    text = plain(terminal.text("upload", "v1.onnx", "--model", model))
    assert re.search(rf"{model} 1   ready ✓   \d+\.\d s", text), text
    assert f"Try: mayfly call {model}:1 --sample" in text
    terminal.text("upload", "v2.onnx", "--model", model)
    text = plain(terminal.text("upload", "broken.onnx", "--model", model, code=4))
    assert "truncated" in text

    rows = plain(terminal.text("versions", model)).splitlines()
    assert [row.split()[:2] for row in rows[1:4]] == [
        ["3", "REJECTED"], ["2", "READY"], ["1", "READY"],
    ]  # fmt: skip
    assert "y  [2, 4, 6]" in terminal.text("call", f"{model}:1", "[1, 2, 3]")
    assert f"{model} prod: 1 → 2" in terminal.text("promote", model, "2")
    assert "y  [3, 6, 9]" in terminal.text("call", f"{model}:prod", "[1, 2, 3]", "--timeout", "30")
    assert f"{model} prod: 2 → 1" in terminal.text("rollback", model)
    split = terminal.text("canary", model, "2", "--steps", "10,50", "--bake", "10m")
    assert f"{model} prod: 90 % 1, 10 % 2" in split
    assert "no difference found" in terminal.text("canary", model)
    assert "█" in terminal.text("traffic", model)
    assert "stopped" in terminal.text("canary", model, "--stop")

    def counted() -> bool:  # an environment's counts follow with its next request
        terminal.text("call", model, "[1, 2, 3]")
        return "REQUESTS" in terminal.text("usage", model, "--by", "version")

    wait(counted, "the first counts")
    assert "rollback" in terminal.text("audit", model)
    missing = plain(terminal.text("show", model[:-1], code=3))
    assert missing == f'mayfly: no model "{model[:-1]}". Did you mean "{model}"?\n'
    assert "✗" not in terminal.text("doctor")
    decided = terminal.text("describe", model, "Doubles or trebles", "--policy", "if_better")
    assert "Doubles or trebles (if_better)" in decided
    terminal.text("reject", model, "2", "--note", "wrong factor")
    assert "rejected" in terminal.text("versions", model).lower()
    assert "is archived" in terminal.text("archive", model)
    assert "is active" in terminal.text("restore", model)


def test_a_folder_is_uploaded_in_parts(terminal: Terminal, model: str) -> None:
    """Weights of any name, and a manifest that the folder may have."""
    folder = terminal.folder / "exported"
    folder.mkdir()
    outside_weights_model(folder, "weights.bin")
    (folder / "manifest.json").write_text('{"schema": 1, "description": "adds 0, 1, 2"}')
    text = plain(terminal.text("upload", "exported", "--model", model))
    assert re.search(rf"{model} 1   ready ✓", text), text
    assert "uploading  ██████████████████████" in text

    assert terminal.json("call", model, "[[1, 1, 1]]")["outputs"] == {"y": [[1, 2, 3]]}


def test_weights_beside_a_model_are_uploaded_with_it(terminal: Terminal, model: str) -> None:
    outside_weights_model(terminal.folder, "outside.onnx.data")

    assert terminal.json("upload", "outside.onnx", "--model", model)["state"] == "READY"
    assert terminal.json("call", model, "[[0, 0, 0]]")["outputs"] == {"y": [[0, 1, 2]]}


def test_a_models_life_as_json(terminal: Terminal, model: str) -> None:
    assert terminal.json("upload", "v1.onnx", "--model", model)["version"] == 1
    assert terminal.json("upload", "v2.onnx", "--model", model)["state"] == "READY"
    error = terminal.json("upload", "broken.onnx", "--model", model, code=4)
    assert error.startswith("mayfly: ")

    assert [row["state"] for row in terminal.json("versions", model)] == [
        "REJECTED", "READY", "READY",
    ]  # fmt: skip
    assert terminal.json("models", "--search", model)[0]["aliases"] == {"latest": 2, "prod": 1}
    assert terminal.json("call", model, "[[1, 2, 3]]")["outputs"] == {"y": [[2, 4, 6]]}
    assert terminal.json("show", f"{model}:2")["inputs"][0]["shape"] == [-1, 3]
    assert terminal.json("promote", model, "2")["version"] == 2
    assert terminal.json("promote", model, "3", code=6).startswith("mayfly: version 3")
    assert terminal.json("rollback", model)["version"] == 1
    shares = terminal.json("traffic", model, "1=80", "2=20")["weights"]
    assert [row["weight"] for row in shares] == [80, 20]
    assert terminal.json("shadow", model, "2", "--percent", "5")["shadow"]["percent"] == 5
    assert len(terminal.json("traffic", model, "--clear")["weights"]) == 1
    assert terminal.json("diff", model, "1", "2")["to_version"] == 2
    assert terminal.json("usage", model)["by"] == "version"
    assert len(terminal.json("audit", model, "-n", "3")) == 3
    assert model not in str(terminal.json("dead-letters"))  # others may have some
    assert terminal.json("approve", model, "2", "--note", "seen")["approval"]["note"] == "seen"
    assert "for good" in terminal.json("archive", model, "3", code=2)
    assert terminal.json("archive", model, "3", "--yes")["state"] == "ARCHIVED"
    assert terminal.json("archive", model)["state"] == "archived"
    assert terminal.json("restore", model)["state"] == "active"
    key = terminal.json("keys", "create", "--name", "cli", "--model", model)
    assert terminal.json("keys", "revoke", key["id"])["state"] == "revoked"
