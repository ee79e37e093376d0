"""Short recipes from data to answers over HTTP.

Each is trained in seconds, beats its baselines, is registered by the real sandbox, and reproduces
its samples.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.platform import Platform
from training import manifest, train
from training.evaluation import metrics
from training.export import graphs
from training.fitting import trainer
from training.recipe import Arrays
from training.recipe_loading import load

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # the exporters' own

# Settings of each recipe, and by how much it must beat the best baseline.
QUICK: dict[str, tuple[dict[str, Any], float]] = {
    "topics": ({"epochs": 2, "width": 32}, 0.05),
    "textures": ({"epochs": 6}, 0.3),
    "speech": ({"epochs": 6, "width": 32}, 0.2),
    "churn": ({"epochs": 8}, 0.07),
    "recommender": ({"epochs": 12}, 0.1),
    "logistic": ({}, 0.03),
    "linear": ({}, 15.0),
}
BY = {"topics": "module", "textures": "region", "speech": "speaker", "recommender": "user"}
COLUMNS = {"churn": [4, 4], "logistic": [30], "linear": [10]}  # named columns of each input


@dataclass(frozen=True)
class Made:
    """Exported model with its card."""

    content: bytes
    card: dict[str, Any]
    ask: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Made:
        folder = tmp_path_factory.mktemp(name)
        words = [
            word
            for setting in QUICK[name][0].items()
            for word in ("--set", "{}={}".format(*setting))
        ]
        assert train.main([name, *words, "--device", "cpu", "--model-dir", str(folder)], {}) == 0
        graph = onnx.load(folder / "model.onnx")
        card = json.loads(
            next(prop.value for prop in graph.metadata_props if prop.key == manifest.KEY)
        )
        return Made((folder / "model.onnx").read_bytes(), card, graphs.runner(graph))

    return make


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path_factory.mktemp("models"), sandbox)
    sandbox.close()


def assert_evaluation_is_complete(card: Mapping[str, Any], name: str) -> None:
    """Check the intervals, groups and calibration in the registry's record."""
    evaluation = card["evaluation"]
    primary = evaluation["primary"]["metric"]
    low, high = evaluation["intervals"][primary]
    assert low <= card["metrics"][primary] <= high
    assert evaluation["lead"]["interval"][0] <= evaluation["lead"]["by"]
    assert evaluation["bootstrap"]["by"] == BY.get(name, "row")
    if name in BY:
        assert evaluation["groups"]["by"] == BY[name]
        assert primary in evaluation["groups"]["worst"][0]
    if card["task"] == "classification":
        assert 0 <= evaluation["calibration"]["expected_error"] < 0.25
        if "temperature" in evaluation["calibration"]:
            assert evaluation["calibration"]["log_loss_before"] > 0
    counts = [len(tensor.get("columns", ())) for tensor in card["inputs"]]
    assert counts == COLUMNS.get(name, [0] * len(counts))


@pytest.mark.parametrize("name", QUICK)
def test_a_recipe_beats_its_baselines_and_answers(name: str, made: Any, world: Platform) -> None:
    model = made(name)
    primary = metrics.PRIMARY[model.card["task"]]
    ours = model.card["metrics"][primary.metric]
    rivals = [
        scores[primary.metric]
        for rival, scores in model.card["baselines"].items()
        if rival != "best possible"
    ]
    better = ours - max(rivals) if primary.higher_is_better else min(rivals) - ours
    assert better > QUICK[name][1], (ours, rivals)
    assert model.card["data"]["split"]["by"] == BY.get(name, "row")

    version = world.upload(model.content)

    assert version.state is State.READY, version.reason
    samples, tolerance = model.card["samples"], model.card["tolerance"]
    assert version.measured["samples_checked"] == len(samples) >= 1
    assert_evaluation_is_complete(version.card, name)
    for sample in samples:
        reply = world.client.post(
            f"/v2/models/demo/versions/{version.number}/infer", sample["request"]
        )
        assert reply.status == 200, reply.json
        for got, expected in zip(reply.json["outputs"], sample["response"]["outputs"], strict=True):
            assert {key: got[key] for key in ("name", "datatype", "shape")} == {
                key: expected[key] for key in ("name", "datatype", "shape")
            }
            np.testing.assert_allclose(got["data"], expected["data"], **tolerance)


def test_a_text_gets_the_same_answer_alone_and_in_a_batch(made: Any) -> None:
    model = made("topics")
    (tensor,) = model.card["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("text", "BYTES", [-1])
    texts = np.array(
        ["Open a socket and wait.", "", "word " * 3000, "Return the square root.\n\nOf x."], object
    )

    together = model.ask({"text": texts})["probabilities"]

    alone = [
        model.ask({"text": texts[at : at + 1]})["probabilities"][0] for at in range(len(texts))
    ]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_loudness_does_not_change_a_words_answer(made: Any) -> None:
    recipe = load("speech")
    audio = recipe.load_data({}, recipe.hyperparameters()).test.inputs["audio"][:16]
    ask = made("speech").ask
    loud, soft = (
        ask({"audio": factor * audio})["probabilities"]
        for factor in (np.float32(1), np.float32(0.5))
    )

    np.testing.assert_allclose(loud, soft, atol=0.02)
    padded = ask({"audio": np.pad(audio, ((0, 0), (0, 800)))})["probabilities"]
    assert padded.shape == loud.shape


def customers(ask: Any, **changed: Any) -> Any:
    """Predict one customer, with some values changed."""
    customer = {
        "tenure": 5.0,
        "fee": 60.0,
        "calls": 3.0,
        "used": 2.0,
        "contract": "monthly",
        "payment": "card",
        "region": "north",
        "unit": "GB",
    } | changed
    values = list(customer.values())
    inputs = {
        "numbers": np.array([values[:4]], np.float32),
        "categories": np.array([values[4:]], object),
    }
    return ask(inputs)["probabilities"][0]


def test_a_table_is_cleaned_inside_the_graph(made: Any) -> None:
    ask = made("churn").ask
    plain = customers(ask)

    for same in (
        {"contract": "  Monthly "},
        {"region": "NORTH", "payment": " CARD"},
        {"used": 2048.0, "unit": "mb"},
    ):
        np.testing.assert_allclose(customers(ask, **same), plain, atol=1e-5)
    np.testing.assert_allclose(customers(ask, calls=999), customers(ask, calls=np.nan), atol=1e-6)
    np.testing.assert_allclose(
        customers(ask, unit="litres"), customers(ask, used=np.nan, unit="litres"), atol=1e-6
    )
    for change in (
        {"contract": "two years"},
        {"calls": 0.0},
        {"used": 2000.0},
        {"contract": ""},
        {"calls": np.nan},
    ):
        answer = customers(ask, **change)
        assert np.isfinite(answer).all()
        assert abs(answer - plain).max() > 0.003, change


def test_items_of_the_history_are_never_recommended(made: Any) -> None:
    recipe = load("recommender")
    rows = recipe.load_data({}, recipe.hyperparameters()).test.take(slice(0, 100))
    ask = made("recommender").ask

    def best(history: Any, ratings: Any) -> Arrays:
        return ask({"history": history, "ratings": ratings})

    history, ratings = rows.inputs["history"], rows.inputs["ratings"]
    answer = best(history, ratings)
    assert answer["items"].shape == answer["scores"].shape == (100, 10)
    assert (np.diff(answer["scores"], axis=1) <= 0).all()
    for items, past in zip(answer["items"], history, strict=True):
        assert len(set(items)) == 10
        assert not set(items) & {0, *past}
    nothing = np.full((100, 3), -5), np.full((100, 3), 4, np.float32)
    more = best(np.concatenate([history, nothing[0]], 1), np.concatenate([ratings, nothing[1]], 1))
    np.testing.assert_allclose(more["scores"], answer["scores"], atol=1e-4)
    assert best(*nothing)["items"].min() > 0


def test_augmented_patches_are_still_images() -> None:
    torch.manual_seed(0)
    images = torch.rand(32, 3, 32, 32)

    changed = load("textures").augment(images)

    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert (abs(changed - images).mean((1, 2, 3)) > 0.05).all()


def test_augmentation_makes_a_model_robust_to_it() -> None:
    """From few images, moved digits are recognized only with augmentation."""
    recipe = load("digits")
    settings = recipe.hyperparameters(epochs=6)
    data = recipe.load_data({}, settings)
    data = replace(data, train=data.train.take(slice(0, 400)))
    torch.manual_seed(0)
    moved = recipe.augment(torch.from_numpy(data.test.inputs["image"])).numpy()
    test = replace(data.test, inputs={"image": moved})

    reached = {}
    for shown in (True, False):
        trained_with = recipe if shown else replace(recipe, augment=None)
        run = trainer.fit(trained_with, settings, data, device=torch.device("cpu"))
        reached[shown] = run.measure(test)[0]["accuracy"]

    assert reached[True] > reached[False] + 0.05, reached


def test_a_preprocessor_beside_other_inputs_is_compressed_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compression = ["--compress", "int8", "--budget", "0.05"]
    options = ["--set", "epochs=4", *compression, "--device", "cpu", "--model-dir", str(tmp_path)]

    assert train.main(["churn", *options], {}) == 0

    lines = capsys.readouterr().out.splitlines()
    assert "latency x" in next(line for line in lines if line.startswith("int8"))
