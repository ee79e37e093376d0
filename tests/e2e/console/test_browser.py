"""Console in a real browser, over HTTP on the local stack."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import language_models
from tests.e2e.conftest import Api
from tests.models import lookup_model, make_model, outside_weights_model, scale_model

BROWSER_PYTHON = os.environ.get("MAYFLY_BROWSER_PYTHON", ".venv-browser/bin/python")
SCENARIOS = (
    *("sign_in", "first_paint", "find_a_model", "draw_a_digit", "run_a_table"),
    *("chat_with_a_model", "stop_a_reply", "compare_two_texts"),
    *("upload_a_broken_file", "drop_a_model_and_try_it", "upload_a_model_in_several_files"),
    *("promote_and_roll_back", "start_and_stop_a_canary", "watch_a_canary_roll_back"),
    *("read_a_chart", "read_an_odd_card", "sum_hours", "make_and_revoke_a_key", "work_by_keyboard"),
    *("light_wide", "dark_wide", "light_narrow", "dark_narrow"),
)
LIMIT_S = 1200


def image_model(seed: int) -> bytes:
    """Return a model of probabilities FP32 [-1, 10] of images FP32 [-1, 1, 28, 28]."""
    weights = np.random.default_rng(seed).normal(size=(784, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    model = make_model(
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights, "w")],
    )
    return bytes(model.SerializeToString())


def write_files(folder: Path) -> Path:
    """Write a broken model, a good one, and one in several files."""
    (folder / "broken.onnx").write_bytes(scale_model()[:60])
    (folder / "doubler.onnx").write_bytes(scale_model(2.0))
    (folder / "parts").mkdir()
    outside_weights_model(folder / "parts", "weights.bin")
    return folder


@pytest.fixture(scope="module")
def results(api: Api, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Result of each scenario: "" or what went wrong."""
    if not Path(BROWSER_PYTHON).exists() or shutil.which("chromium") is None:
        pytest.skip("needs Debian's chromium and `make .venv-browser/.done`")
    for version, seed in ((1, 0), (2, 1)):
        api.upload("models/drawn/model.onnx", image_model(seed))
        api.wait_ready("drawn", version)
        api.upload("models/tabular/model.onnx", scale_model(version + 1.0))
        api.wait_ready("tabular", version)
        api.upload("models/lookup/model.onnx", lookup_model(100 if version == 1 else 50))
        api.wait_ready("lookup", version)
    for name, content in (
        ("talker", language_models.decoder_package()),
        ("vectors", language_models.encoder_package()),
    ):
        api.upload(f"models/{name}/model.tar.gz", content)
        api.wait_ready(name, 1)
    files = write_files(tmp_path_factory.mktemp("console"))
    arguments = [f"{api.url}/console/", api.key, "drawn", "tabular", "lookup", str(files)]
    run = subprocess.run(
        [BROWSER_PYTHON, "tests/e2e/console/browse.py", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    return dict(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_person_can(results: dict[str, str], scenario: str) -> None:
    assert results[scenario] == ""


def test_every_scenario_is_checked(results: dict[str, str]) -> None:
    assert set(results) == set(SCENARIOS)
