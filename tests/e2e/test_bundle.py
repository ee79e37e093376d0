"""What `sam build` made, run as Lambda runs it: python3.13, the code, the layer, and nothing else of ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.client import RunningStack, start_stack
from tests.e2e.conftest import Api
from tests.models import scale_model

BUILD = Path(".aws-sam/build")
PYTHON = Path(".venv-lambda/bin/python")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[RunningStack]:
    if not (BUILD / "template.yaml").exists() or not PYTHON.exists():
        pytest.skip("no bundle: python3.13 was not found, so `make build` did not run")
    arguments = (
        *("--code-root", str(BUILD / "InferFunction")),
        *("--layer", str(BUILD / "DependenciesLayer")),
        *("--python", str(PYTHON)),
    )
    with start_stack(state_dir=tmp_path, arguments=arguments) as running:
        yield running


def test_the_bundle_registers_and_answers(bundle: RunningStack, model: str) -> None:
    api = Api(bundle.api_url, None, bundle.outputs["ArtifactsBucketName"], bundle.client("s3"))

    api.upload(f"models/{model}/x.onnx", scale_model(2.0, {"schema": 1}))
    api.wait_ready(model)

    assert api.infer(model, [1, 2, 3]).json["outputs"][0]["data"] == [2, 4, 6]
    assert "Traceback" not in bundle.log("RegisterFunction") + bundle.log("InferFunction")


def test_the_bundle_fits_lambda() -> None:
    if not BUILD.exists():
        pytest.skip("no bundle: python3.13 was not found, so `make build` did not run")
    size = sum(path.stat().st_size for path in BUILD.rglob("*") if path.is_file())

    assert size < 250_000_000  # Lambda's limit for code and layers, unzipped
