"""Requests that schemathesis makes of the served OpenAPI documents, with all its checks.

    make .venv-schemathesis/.done
    python -m tests.stress.documents [--examples 50] [--phases examples,coverage,fuzzing]
        [--seed 1] [--documents /docs/v1.json]

A local stack with models of each kind serves the documents and answers. The run fails if a reply
has an undocumented status or shape, a wrong request passes, or a right one is refused.
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
from tests.language_models import decoder_package, encoder_package
from tests.models import scale_model

DOCUMENTS = ("/api/v1/openapi.json", "/docs/v2.json", "/docs/v1.json")
COMMAND = Path(".venv-schemathesis/bin/st")
SETTINGS = Path("tests/stress/documents.toml")
UPLOADS = {  # the last two are the models of the language models' examples
    "digits": ("model.onnx", scale_model),
    "spare": ("model.onnx", scale_model),
    "minilm": ("model.tar.gz", encoder_package),
    "smollm": ("model.tar.gz", decoder_package),
}
HOOKS = Path("tests/stress/document_hooks.py")
PATIENCE_S = 120.0  # for a registration; only a broken stack takes so long
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def upload_models(stack: RunningStack, key: str) -> None:
    """Upload the models that requests name, and wait until they can be called."""
    bucket, s3 = stack.outputs["ArtifactsBucketName"], stack.client("s3")
    for model, (name, make) in UPLOADS.items():
        s3.put_object(Bucket=bucket, Key=f"models/{model}/{name}", Body=make())
    for model in UPLOADS:
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
    hooks = {"SCHEMATHESIS_HOOKS": str(HOOKS.resolve())}
    environment = {**os.environ, **keys, **hooks, "NO_PROXY": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as folder:  # it keeps a history in its folder
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


def main() -> int:
    """Check the documents on a stack of their own; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--phases", default="examples,coverage,fuzzing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", nargs="+", default=DOCUMENTS)
    arguments = vars(parser.parse_args())
    status = 0
    with tempfile.TemporaryDirectory() as folder, start_stack(state_dir=Path(folder)) as stack:
        key = stack.create_key("admin")
        upload_models(stack, key)
        for document in arguments.pop("documents"):
            done = check(stack, document, key=key, **arguments)
            print(done.stdout + done.stderr)
            status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
