"""Bundle of `make build`, run as in Lambda: python3.13, code and layer, nothing else."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.client import RunningStack, start_stack
from tests.e2e.conftest import connect
from tests.models import dense_model, scale_model
from tests.runtime_api import MAYFLY, Event, FakeRuntimeApi, environment, running

BUILD = Path(".aws-sam/build")
PYTHON = Path(".venv-lambda/bin/python")
MB = 1_000_000
WIDTH = 600
LIMIT_MB = 250  # Lambda's limit for the unzipped code and layers of a function
# At most, code and layer together.
SIZE_MB = {"InferFunction": 38, "GenerateFunction": 61, "RegisterFunction": 180}

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


# Lambda's file system: the bundle where it is deployed, nothing but /tmp can be written.
SANDBOX = """
mount --make-rprivate / && mount -t tmpfs none /mnt && mkdir /mnt/task /mnt/opt /mnt/lang
mount --bind "$BUILD/InferFunction" /mnt/task && mount --bind "$BUILD/InferLayer" /mnt/opt
mount --bind "$LANG_ROOT" /mnt/lang
mount -t tmpfs none /var && mkdir /var/task /var/lang && mount --rbind /mnt/task /var/task
mount --rbind /mnt/lang /var/lang && mount --rbind /mnt/opt /opt
mount -t tmpfs -o mode=1777 none /tmp && mount -o remount,ro,bind / && cd /var/task
exec setpriv --reuid 993 --regid 990 --clear-groups --bounding-set=-all --no-new-privs \
  /var/task/functions/runtime/start /var/lang/bin/python3.13 /var/runtime/bootstrap.py
"""
HEALTH = {"httpMethod": "GET", "path": "/v2/health/live", "headers": {}, "body": None}


def can_mount() -> bool:
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        return False
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="mounting needs root and util-linux")
def test_the_function_starts_as_another_user_on_a_read_only_root() -> None:
    api = FakeRuntimeApi([Event(json.dumps(HEALTH).encode())])
    variables = environment(MAYFLY, api.address, "functions.infer.main.lambda_handler", BUILD) | {
        "BUILD": str(BUILD.absolute()),
        "LANG_ROOT": subprocess.check_output(
            [PYTHON, "-c", "import sys; print(sys.base_prefix)"], text=True
        ).strip(),
        "LD_LIBRARY_PATH": "/var/lang/lib",
        "LAMBDA_TASK_ROOT": "/var/task",
        "PYTHONPATH": "/var/runtime",
        "SERVING_BUCKET": "bucket",
        "REGISTRY_TABLE": "table",
        "AUTH": "none",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    with running(["unshare", "--mount", "sh", "-ec", SANDBOX], variables, api) as function:
        ended = function.has_ended(api.idle)
        status = Path(f"/proc/{function.process.pid}/status").read_text() if not ended else ""

        assert not ended, function.output()
    [post] = api.posts
    reply = json.loads(post.body)
    assert (reply["statusCode"], json.loads(reply["body"])) == (200, {"live": True})
    assert "Uid:\t993\t993" in status
    assert all(agent.startswith("mayfly-runtime/") for agent in api.user_agents)


@pytest.mark.parametrize(
    ("function", "layer"),
    [
        ("InferFunction", "InferLayer"),
        ("GenerateFunction", "GenerateLayer"),
        ("RegisterFunction", "RegisterLayer"),
    ],
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
