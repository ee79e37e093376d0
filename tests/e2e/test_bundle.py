"""Bundle of `make build`, run as in Lambda: python3.13, code and layer, nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.client import RunningStack, start_stack
from tests.e2e.conftest import connect
from tests.models import dense_model, scale_model

BUILD = Path(".aws-sam/build")
PYTHON = Path(".venv-lambda/bin/python")
MB = 1_000_000
WIDTH = 600
LIMIT_MB = 250  # Lambda's limit for the unzipped code and layers of a function
# At most, code and layer together.
SIZE_MB = {"InferFunction": 35, "RegisterFunction": 160, "ReconcileFunction": 160}

pytestmark = pytest.mark.skipif(
    not (BUILD / "template.yaml").exists() or not PYTHON.exists(),
    reason="no bundle: python3.13 was not found, so `make build` did not run",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[RunningStack]:
    with start_stack(
        state_dir=tmp_path, arguments=("--built", str(BUILD), "--python", str(PYTHON))
    ) as running:
        yield running


def test_the_bundle_registers_and_serves_a_model(bundle: RunningStack, model: str) -> None:
    api = connect(bundle)

    api.upload(f"models/{model}/x.onnx", scale_model(2.0, {"schema": 1}))
    api.wait_ready(model)

    assert api.infer(model, [1, 2, 3]).json["outputs"][0]["data"] == [2, 4, 6]
    assert "Traceback" not in "".join(
        bundle.log(name) for name in ("RegisterFunction", "InferFunction", "ManageFunction")
    )


def test_the_bundle_builds_the_variant_that_a_manifest_requests(
    bundle: RunningStack, model: str
) -> None:
    api = connect(bundle)
    row = {"datatype": "FP32", "shape": [1, WIDTH]}
    x = {"name": "x", "data": [0.5] * WIDTH, **row}
    y = {"name": "y", "data": [WIDTH * 0.5 * 0.01] * WIDTH, **row}
    sample = {"request": {"inputs": [x]}, "response": {"outputs": [y]}}
    manifest = {
        "schema": 1,
        "variants": ["int8"],
        "tolerance": {"rtol": 0.1},
        "samples": [sample],
    }
    api.upload(f"models/{model}/x.onnx", dense_model(WIDTH, 0.01, manifest))
    api.wait_ready(model)

    rows = bundle.client("dynamodb").get_item(
        TableName=bundle.outputs["RegistryTableName"],
        Key={"pk": {"S": f"MODEL#{model}"}, "sk": {"S": "VERSION#0000000001"}},
    )
    notes = [note["S"] for note in rows["Item"]["notes"]["L"]]
    assert any(note.startswith("The int8 variant was used") for note in notes), notes


@pytest.mark.parametrize(
    ("function", "layer"), [("InferFunction", "InferLayer"), ("RegisterFunction", "RegisterLayer")]
)
def test_the_bundle_is_small(function: str, layer: str) -> None:
    files = [
        path
        for folder in (function, layer)
        for path in (BUILD / folder).rglob("*")
        if path.is_file()
    ]

    size_mb = sum(path.stat().st_size for path in files) / MB

    assert size_mb <= SIZE_MB[function] < LIMIT_MB


def test_every_module_has_byte_code_that_is_not_checked() -> None:
    sources = [path for path in BUILD.rglob("*.py") if "__pycache__" not in path.parts]

    for source in sources:
        [compiled] = source.parent.glob(f"__pycache__/{source.stem}.cpython-313.pyc")
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == 0b01, source  # PEP 552: hash-based, unchecked
