"""Keras models in recipes, in an environment that has Keras.

    make .venv-keras/.done

The environment is no part of `make test`: without it, these tests are skipped.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.platform import Platform
from tests.stress.binary_requests import infer

PYTHON, TENSORFLOW = Path(".venv-keras/bin/python"), Path(".venv-tensorflow/bin/python")
SCRIPT = Path("tests/integration/training/users/keras_models.py")
PAGE = Path("docs/training.md").read_text()
EXAMPLES = dict(re.findall(r"^```python\n# (keras_\w+\.py)\n(.*?)^```$", PAGE, re.M | re.S))
CASES = [
    "binary", "fit", "free-text", "keras-digits", "keras-perceptron", "loop", "lstm", "multilabel",
    "photos", "pixels", "subclassed", "two-in-two-out", "without-input",
]  # fmt: skip
TOLERANCE = 1e-5
pytestmark = [
    pytest.mark.train,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs Keras: make .venv-keras/.done"),
]


def run(
    *arguments: str, folder: Path, python: Path = PYTHON, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python.absolute(), "-W", "ignore", *arguments],
        capture_output=True, text=True, timeout=1800, check=False, cwd=folder,
        env={"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
             "HOME": str(folder), **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train every model of the script; return its folder and what it found."""
    folder = tmp_path_factory.mktemp("keras")
    for name, text in EXAMPLES.items():
        (folder / name).write_text(text)
    done = run(str(SCRIPT.absolute()), str(folder), folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    sandbox = ProcessSandbox()
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("case", CASES)
def test_a_keras_model_is_served_as_keras_answers(
    trained: tuple[Path, dict[str, Any]], sandbox: ProcessSandbox, tmp_path: Path, case: str
) -> None:
    folder = trained[0] / case
    arrays = np.load(folder / "expected.npz")
    inputs, expected = (
        {name[len(kind) :]: arrays[name] for name in arrays.files if name.startswith(kind)}
        for kind in ("in:", "out:")
    )

    platform = Platform(tmp_path, sandbox)
    version = platform.upload((folder / "model.onnx").read_bytes())

    assert version.state is State.READY, version.reason
    for rows in (slice(0, 1), slice(None)):
        outputs = infer(platform, version, {name: inputs[name][rows] for name in inputs})
        assert set(outputs) == set(expected)
        for name, values in outputs.items():
            np.testing.assert_allclose(values, expected[name][rows], TOLERANCE, TOLERANCE)


def test_train_and_eval_reach_every_layer(trained: tuple[Path, dict[str, Any]]) -> None:
    modes = trained[1]["modes"]

    assert modes.pop("penalty") == pytest.approx(modes.pop("expected_penalty"), rel=1e-4)
    assert len(modes) == 5
    assert all(modes.values()), modes
    assert trained[1]["frozen"] == {"loop": True, "fit": True}


def test_a_stopped_run_ends_as_one_that_was_not(trained: tuple[Path, dict[str, Any]]) -> None:
    for name, found in trained[1]["resume"].items():
        assert found["stopped"].startswith("stopped "), name
        assert found["same"], name
        assert not found["other_seed"], name
        assert found["epochs"] == [1, 2, 3]
        assert {"loss", "validation_loss", "validation_accuracy"} <= set(found["columns"])
    within = trained[1]["in an epoch"]
    assert within["stopped"] == "stopped in epoch 2 of 3; resumes after epoch 1"
    assert within["same"]


def test_fit_stops_early_and_weighs_classes(trained: tuple[Path, dict[str, Any]]) -> None:
    early = trained[1]["early"]

    assert early["epochs"] < 40
    assert early["kept"] == pytest.approx(early["best"], rel=1e-4)
    assert early["all_yes"]


def test_what_cannot_work_is_refused_in_a_sentence(trained: tuple[Path, dict[str, Any]]) -> None:
    refusals = trained[1]["refusals"]

    parts = {
        "shape": "takes image as [9, 9, 1], and the data have [1, 8, 8]",
        "width": "the model answers 5 numbers a row, and there are 2 labels",
        "width of fit": "the model answers 5 numbers a row, and there are 2 labels",
        "one-hot loss": "class numbers take the loss sparse_categorical_crossentropy",
        "settings": "its hyperparameters extend FitHyperparameters",
        "not compiled": "extend NetworkHyperparameters",
        "augment": "leave augment out: put layers such as",
        "names": "the Keras model takes the inputs first, second, and the data have one, two",
        "free length": "exports the GRU 'gru",
        "hidden sigmoid": "answers numbers from 0 to 1 by an activation inside it",
        "prune": "a Keras model is not pruned: compress it by int8, int4, fp16 or distil",
    }
    assert set(refusals) == set(parts)
    for name, part in parts.items():
        assert part in refusals[name], refusals[name]


def test_a_keras_model_is_compressed(trained: tuple[Path, dict[str, Any]]) -> None:
    compressed = trained[1]["compressed"]

    assert "Conv" not in compressed["operators"]["distil"]  # the student is taken
    assert any("Integer" in name or "Quantize" in name for name in compressed["operators"]["int8"])
    assert re.fullmatch(r"3\.\d+\.\d+", compressed["libraries"]["keras"])


def test_the_examples_of_the_page_learn_digits(trained: tuple[Path, dict[str, Any]]) -> None:
    assert set(EXAMPLES) == {"keras_digits.py", "keras_perceptron.py"}
    assert min(trained[1]["pages"].values()) > 0.85


def test_another_backend_in_the_environment_is_overruled(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLES["keras_perceptron.py"])

    done = run("-m", "training", "show", "mine.py", folder=tmp_path, KERAS_BACKEND="tensorflow")

    assert done.returncode == 0, done.stderr
    assert "epochs=20" in done.stdout


@pytest.mark.skipif(not TENSORFLOW.exists(), reason="needs TensorFlow: make .venv-tensorflow/.done")
def test_another_backend_that_was_imported_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLES["keras_perceptron.py"])
    code = (
        "import os, torch; os.environ['KERAS_BACKEND'] = 'tensorflow'; import keras\n"
        "from training.train import main\n"
        "raise SystemExit(main(['mine.py', '--device', 'cpu']))"
    )

    done = run("-c", code, folder=tmp_path, python=TENSORFLOW)

    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "error: Keras was imported with its tensorflow backend, and only a model of its torch "
        "backend is trained and exported here: set KERAS_BACKEND=torch before the first "
        "`import keras`"
    )
