"""Commands of README and pages: each is taken by its parser; the search of digits runs."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch")

from training import publish, train
from training.__main__ import COMMANDS, main
from training.sagemaker import cli

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]
PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
COMMAND = re.compile(r"python -m training ((?:[^`\n\\]|\\\n)+)")
LINES = sorted({
    line.replace("\\\n", " ").strip()
    for page in PAGES
    for line in COMMAND.findall(page.read_text())
    if not re.search(r"\b(COMMAND|RECIPE|NAME|TASK)\b|--help", line)
})  # fmt: skip
PARSERS = {"publish": publish._parser, "train": train.parser}


def test_the_pages_have_commands() -> None:
    assert len(LINES) > 12


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_pages_is_taken_by_its_parser(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command, *words = shlex.split(line)

    assert command in COMMANDS
    if command == "train" and "--on" in words:
        (tmp_path / "artifacts/churn").mkdir(parents=True)
        (tmp_path / "artifacts/churn/run.yaml").write_text("recipe: churn\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(cli, "_submit", lambda options, environ: 0)
        assert cli.main(words) == 0
    elif command in PARSERS:
        options, unknown = PARSERS[command]().parse_known_args(words)
        assert not unknown
        assert vars(options)


@pytest.mark.slow
def test_the_search_of_digits_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in LINES if "--search optuna" in line]
    words = line.replace("--tune 20", "--tune 2").split()

    status = main([*words, "--set", "epochs=1", "--model-dir", str(tmp_path), "--device", "cpu"])

    assert status == 0, capsys.readouterr().err
    assert (tmp_path / "model.onnx").exists()
