"""The exported file describes itself: tensors, metrics, data, samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from training import manifest, train
from training.export import graphs

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    environ = {
        "SM_HPS": json.dumps({"batch_size": "128", "epochs": "7"}),
        "SM_OUTPUT_DATA_DIR": str(folder / "data"),
    }
    options = ["--set", "epochs=2", "--model-dir", str(folder / "model"), "--device", "cpu"]
    assert train.main(["digits", *options], environ) == 0
    return folder


@pytest.fixture(scope="module")
def session(trained: Path) -> Any:
    return graphs.open_session((trained / "model" / "model.onnx").read_bytes())


@pytest.fixture(scope="module")
def card(session: Any) -> Any:
    return json.loads(session.get_modelmeta().custom_metadata_map[manifest.KEY])


def test_a_training_writes_the_model_and_its_report(trained: Path, card: Any) -> None:
    names = {path.name for path in (trained / "model").iterdir()}
    report = json.loads((trained / "data" / "report.json").read_text())

    assert names == {"model.onnx", "report.json", "confusion.png", "learning.png"}
    assert report["metrics"] == card["metrics"]
    assert len(report["history"]) == 2


def test_the_card_has_tensors_metrics_and_split(card: Any) -> None:
    assert card["schema"] == 1
    assert card["inputs"][0]["name"] == "image"
    assert card["inputs"][0]["shape"] == [-1, 1, 28, 28]
    assert card["outputs"][0]["labels"] == list("0123456789")
    assert card["metrics"]["accuracy"] > card["baselines"]["majority class"]["accuracy"] + 0.3
    assert sum(card["data"]["split"][part] for part in ("train", "validation", "test")) == 1797


def test_the_command_line_overrides_the_environment(card: Any) -> None:
    assert card["hyperparameters"]["epochs"] == 2  # the command line over SM_HPS
    assert card["hyperparameters"]["batch_size"] == 128  # SM_HPS over the recipe


def test_the_card_has_no_path_of_the_machine(trained: Path, card: Any) -> None:
    assert str(trained) not in json.dumps(card)


def test_the_samples_are_reproduced(session: Any, card: Any) -> None:
    assert len(card["samples"]) >= 2
    for sample in card["samples"]:
        tensor, response = sample["request"]["inputs"][0], sample["response"]["outputs"][0]
        image = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        answer = session.run([response["name"]], {tensor["name"]: image})[0]

        expected = np.array(response["data"], np.float32).reshape(response["shape"])
        assert np.allclose(answer, expected, **card["tolerance"])
        assert np.allclose(answer.sum(axis=1), 1, atol=1e-5)


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["digits", "--set", "lr=fast"], {}) == 1
    assert capsys.readouterr().err == "error: lr: 'fast' is not a number\n"
