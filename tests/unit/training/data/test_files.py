"""Users' files on the command line: folders by channel, errors in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.training.data.user_files import HEADER, changed, csv_file, npz
from training.errors import (
    TrainingError,
)

pytestmark = pytest.mark.train

OWN = """
import torch
from training.data import files
from training.recipe import NetworkHyperparameters, Recipe

recipe = Recipe(
    name="own",
    description="",
    task="classification",
    hyperparameters=NetworkHyperparameters,
    data=lambda channels: files.{loader},
    model=lambda h, data: torch.nn.Linear(1, len(data.labels)),
)
"""
TABLE = "table(channels, target='churn', numbers=['age'])"
ARRAYS = "arrays(channels, target='y', inputs=['image'])"


def test_local_training_reads_folders_and_expands_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pytest.importorskip("training.pipeline", reason="training needs torch")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert pipeline._command_line_channels(["train=~/rows", "test=/data"]) == {
        "train": tmp_path / "rows",
        "test": Path("/data"),
    }
    with pytest.raises(
        TrainingError,
        match="^--data train=s3://b/rows/: training here reads folders; copy it .* --on sagemaker$",
    ):
        pipeline._command_line_channels(["train=s3://b/rows/"])


@pytest.mark.parametrize(
    ("loader", "train", "test", "message"),
    [
        (
            TABLE,
            {"header": HEADER.replace("age", "years")},
            {},
            "train.csv has no column 'age'; it has 'years', ",
        ),
        (
            TABLE,
            {"rows": changed(3, "23,", ",")},
            {},
            "train.csv, row 5: column 'age' is empty; fill it, or ",
        ),
        (
            TABLE,
            {},
            {"rows": changed(3, "stays", "x")},
            "test.csv, row 5, column 'churn': 'x' is none of the labels ",
        ),
        (TABLE, {}, {"rows": [], "header": ""}, "test.csv has no header"),
        (
            TABLE,
            {"rows": changed(3, "23,", "")},
            {},
            "train.csv, row 5 has 6 values; there are 7 columns",
        ),
        (
            ARRAYS,
            {"image": np.zeros((60, 1))},
            {"image": np.zeros((60, 2))},
            "test.npz: a row of 'image' has shape [2], ",
        ),
        (
            ARRAYS,
            {"image": np.full((60, 1), np.nan)},
            {},
            "train.npz, row 1: 'image' holds a NaN or an infinity",
        ),
    ],
    ids=[
        "missing column",
        "nan",
        "label never seen",
        "empty",
        "ragged",
        "wrong shape",
        "nan in an array",
    ],
)
def test_wrong_data_end_the_command_in_one_sentence(
    loader: str,
    train: Any,
    test: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = pytest.importorskip("training.train", reason="training needs torch")
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the process is pytest's
    (tmp_path / "own.py").write_text(OWN.format(loader=loader))
    for name, changes in (("train", train), ("test", test)):
        if loader == TABLE:
            csv_file(tmp_path / name, name=f"{name}.csv", **changes)
        else:
            npz(tmp_path / name, name=f"{name}.npz", **changes)
    data = [part for name in ("train", "test") for part in ("--data", f"{name}={tmp_path / name}")]

    assert script.main([str(tmp_path / "own.py"), *data, "--device", "cpu"], {}) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert str(tmp_path) not in line
