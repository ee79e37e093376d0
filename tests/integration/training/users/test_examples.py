"""Six examples of docs/training.md: each trains on a newcomer's data, right at the first try."""

import re
import subprocess
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="training needs torch")

from training.__main__ import main
from training.export import graphs
from training.publish import main as publish

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PAGE = Path("docs/training.md").read_text()
BLOCKS = re.findall(r"^```python\n# (\w+\.py)(?:: \S+)?\n(.*?)^```$", PAGE, re.M | re.S)
EXAMPLES = dict(BLOCKS)
BOOSTING = Path(".venv-boosting/bin/python")
GENERATOR = np.random.default_rng(8)


def customers(path: Path) -> Path:
    """Write customers who leave if they came in summer, or on the basic plan and call often."""
    lines = ["signup,plan,calls,leaves"]
    for _ in range(400):
        day = date(2024, 1, 1) + timedelta(int(GENERATOR.integers(0, 720)))
        plan, calls = GENERATOR.choice(["basic", "pro", ""]), GENERATOR.integers(0, 40)
        leaves = day.month in (6, 7, 8) or (plan == "basic" and calls > 20)
        shown = "" if GENERATOR.random() < 0.05 else calls
        lines.append(f"{day},{plan},{shown},{'yes' if leaves else 'no'}")
    (path / "customers.csv").write_text("\n".join(lines))
    return path / "customers.csv"


def photos(path: Path) -> Path:
    """Write pictures of upright and of lying stripes, at random places."""
    from PIL import Image

    for label, axis in (("fence", 1), ("stairs", 0)):
        (path / "photos" / label).mkdir(parents=True)
        for number in range(60):
            pixels = GENERATOR.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            stripes = (np.arange(32) + GENERATOR.integers(0, 8)) % 8 < 4
            pixels += np.expand_dims(stripes * 150, (1 - axis, 2)).astype(np.uint8)
            Image.fromarray(pixels).save(path / "photos" / label / f"{number}.png")
    return path / "photos"


def roads(path: Path) -> Path:
    """Write photos with a lighter stripe, and masks whose lowest row does not count."""
    from PIL import Image

    for name in ("images", "masks"):
        (path / "roads" / name).mkdir(parents=True)
    for number in range(60):
        mask = np.zeros((32, 48), np.uint8)
        left = int(GENERATOR.integers(0, 32))
        mask[:, left : left + 14] = 1
        pixels = GENERATOR.integers(0, 80, (32, 48, 3)).astype(np.uint8) + 110 * mask[..., None]
        mask[-2:] = 255
        Image.fromarray(pixels).save(path / "roads" / "images" / f"{number}.jpg", quality=90)
        Image.fromarray(mask).save(path / "roads" / "masks" / f"{number}.png")
    return path / "roads"


def reviews(path: Path) -> Path:
    """Write reviews of one to ten words whose last word is the mood."""
    words = ["film", "food", "day", "the", "was"]
    moods = {"good": ["great", "lovely"], "bad": ["poor", "awful"]}
    lines = ["text,mood"]
    for row in range(240):
        mood = ("good", "bad")[row % 2]
        text = [*GENERATOR.choice(words, 1 + row % 9), str(GENERATOR.choice(moods[mood]))]
        lines.append(f'"{" ".join([str(row), *text])}",{mood}')
    (path / "reviews.csv").write_text("\n".join(lines))
    return path / "reviews.csv"


def forecast(path: Path) -> Path:
    """Write sine waves of random period and phase."""
    steps = np.arange(36)
    period, phase = GENERATOR.uniform(8, 16, (500, 1)), GENERATOR.uniform(0, 6, (500, 1))
    waves = np.sin(steps / period * 2 * np.pi + phase).astype(np.float32)
    np.savez(
        path / "waves.npz", series=waves[:, :24, None], next=waves[:, 24:], time=np.arange(500)
    )
    return path / "waves.npz"


def card_of(path: Path) -> Any:
    import json

    (prop,) = [each for each in onnx.load(path).metadata_props if each.key == "mayfly.manifest"]
    return json.loads(prop.value)


@pytest.mark.parametrize(
    ("name", "write", "metric", "goal"),
    [
        ("customers", customers, "accuracy", 0.85),
        ("photos", photos, "accuracy", 0.9),
        ("roads", roads, "mean_iou", 0.8),
        ("reviews", reviews, "accuracy", 0.9),
        ("forecast", forecast, "rmse", 0.4),
    ],
)
def test_an_example_of_the_page_trains_and_beats_its_baselines(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    write: Callable[[Path], Path],
    metric: str,
    goal: float,
) -> None:
    recipe = tmp_path / f"{name}.py"
    recipe.write_text(EXAMPLES[recipe.name])
    data, out = write(tmp_path), tmp_path / "out"

    command = ["train", str(recipe), "--data", f"train={data}", "--model-dir", str(out)]
    status = main([*command, "--device", "cpu"])

    assert status == 0, capsys.readouterr().err
    card = card_of(out / "model.onnx")
    value, lead = card["metrics"][metric], card["evaluation"]["lead"]
    assert value < goal if metric == "rmse" else value > goal
    assert lead["interval"][0] >= 0
    columns = card["inputs"][0].get("columns", [])
    if name == "customers":
        assert columns == ["calls", "signup days since 1970", "signup weekday", "signup month"]
    if name == "forecast":
        assert card["outputs"][0]["shape"] == [-1, 12]
        assert card["data"]["split"]["by"] == "time"
    if name == "reviews":
        run = graphs.runner(onnx.load(out / "model.onnx"))
        texts = np.array(["great", "the film was awful"], object)
        assert run({"text": texts})["probabilities"].argmax(1).tolist() == [1, 0]


@pytest.mark.skipif(
    not BOOSTING.exists(), reason="needs xgboost and onnxmltools: make .venv-boosting/.done"
)
def test_the_foreign_model_of_the_page_is_published_with_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign.py").write_text(EXAMPLES["foreign.py"])
    subprocess.run([BOOSTING.absolute(), "foreign.py"], cwd=tmp_path, check=True, timeout=300)
    (command,) = re.findall(r"^python -m training publish (foreign.*?)\n```", PAGE, re.M | re.S)
    monkeypatch.chdir(tmp_path)

    assert publish(command.replace("\\\n", " ").split()) == 0

    card = card_of(tmp_path / "artifacts" / "iris" / "model.onnx")
    kinds = {output["name"]: output["kind"] for output in card["outputs"]}
    assert kinds == {"label": "label", "probabilities": "probabilities"}
    assert card["distributions"]["priors"] == pytest.approx(
        dict.fromkeys(["setosa", "versicolor", "virginica"], 1 / 3), abs=1e-5
    )


def test_every_example_is_tested() -> None:
    names = {"customers.py", "photos.py", "roads.py", "reviews.py", "forecast.py", "foreign.py"}
    names |= {"keras_digits.py", "keras_perceptron.py"}  # test_keras.py

    assert set(EXAMPLES) == names
