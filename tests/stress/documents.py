"""Requests that schemathesis makes of the served OpenAPI documents, with all its checks.

    make .venv-schemathesis/.done
    python -m tests.stress.documents [--examples 50] [--phases examples,coverage,fuzzing] [--seed 1]

A local stack with two models serves both documents and answers. The run fails if a reply has an
undocumented status or shape, a wrong request passes, or a right one is refused.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from local.client import RunningStack, start_stack
from tests.models import scale_model

DOCUMENTS = ("/api/v1/openapi.json", "/docs/v2.json")
COMMAND = Path(".venv-schemathesis/bin/st")
SETTINGS = Path("tests/stress/documents.toml")
MODELS = ("digits", "spare")
PATIENCE_S = 120.0  # for a registration; only a broken stack takes so long
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def upload_models(stack: RunningStack, key: str) -> None:
    """Upload the models that requests name, and wait until they can be called."""
    bucket, s3 = stack.outputs["ArtifactsBucketName"], stack.client("s3")
    for model in MODELS:
        s3.put_object(Bucket=bucket, Key=f"models/{model}/model.onnx", Body=scale_model())
    for model in MODELS:
        url = f"{stack.api_url}/v2/models/{model}/ready"
        request = urllib.request.Request(url, headers={"x-api-key": key})
        end = time.monotonic() + PATIENCE_S
        while not _is_ready(request):
            assert time.monotonic() < end, f"{model} is not ready"
            time.sleep(0.1)


def _is_ready(request: urllib.request.Request) -> bool:
    try:
        return int(_direct.open(request, timeout=60).status) == 200
    except urllib.error.HTTPError:
        return False


def spare_key_id(stack: RunningStack) -> str:
    """Return the id of a key that requests may change, rotate and revoke."""
    return stack.create_key("read").split("_")[1]


def check(
    stack: RunningStack, document: str, *, key: str, phases: str, examples: int, seed: int
) -> subprocess.CompletedProcess[str]:
    """Run schemathesis over one document of a stack; its output has the failures."""
    command = [
        str(COMMAND.resolve()), "--config-file", str(SETTINGS.resolve()), "run",
        stack.api_url + document, "--url", stack.api_url, "--phases", phases,
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    keys = {"MAYFLY_KEY": key, "SPARE_KEY_ID": spare_key_id(stack)}
    environment = {**os.environ, **keys, "NO_PROXY": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as folder:  # it keeps a history in its folder
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


def main() -> int:
    """Check both documents on a stack of their own; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--phases", default="examples,coverage,fuzzing")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory() as folder, start_stack(state_dir=Path(folder)) as stack:
        key = stack.create_key("admin")
        upload_models(stack, key)
        for document in DOCUMENTS:
            done = check(stack, document, key=key, **vars(arguments))
            print(done.stdout + done.stderr)
            status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
