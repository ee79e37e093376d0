"""Commands of the README: blocks marked `run` are run, in order, against a running stack."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from local.client import RunningStack

README = Path("README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)( run)?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.train
def test_the_readmes_blocks_run_and_print_the_answer(stack: RunningStack, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("AWS_")
    } | {
        "API": stack.api_url,
        "MAYFLY_URL": stack.api_url,
        "MAYFLY_KEY": stack.create_key("admin"),
        "BUCKET": stack.outputs["ArtifactsBucketName"],
        "AWS_ENDPOINT_URL": stack.endpoint_url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path.cwd()),
        "NO_PROXY": "127.0.0.1",
    }
    said = ""
    runnable = [(language, code) for language, run, code in BLOCKS if run]
    assert len(runnable) >= 5
    for language, code in runnable:
        command = (
            [sys.executable, "-c", code]
            if language == "python"
            else ["bash", "-euo", "pipefail", "-c", code]
        )
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        said += done.stdout

    assert '"data":[2.0,4.0,6.0]' in said.replace(" ", "")
    assert said.count("[[2. 4. 6.]]") == 1
    assert (tmp_path / "artifacts/digits/model.onnx").exists()
    assert '"TrainingJobName"' in said


def test_the_readmes_lines_after_a_deployment_find_the_local_stack(stack: RunningStack) -> None:
    """Run them without `make build` and `make deploy`, with the exports of the local stack."""
    section = README.partition("## Deploy\n")[2]
    block = section.partition("```bash\n")[2].partition("```")[0]
    lines = "".join(line for line in block.splitlines(True) if not line.startswith("make "))
    environment = {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": stack.endpoint_url,
        "AWS_ENDPOINT_URL_LAMBDA": stack.lambda_url,
        "AWS_SECRET_ACCESS_KEY": "local",
        "NO_PROXY": "127.0.0.1",
        "PATH": os.environ["PATH"],
    }
    script = f'{lines}\necho "$API $BUCKET ${{#MAYFLY_KEY}}"'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment, capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip

    url, bucket, length = done.stdout.split()
    assert (url, bucket) == (stack.api_url, stack.outputs["ArtifactsBucketName"])
    assert int(length) > 60  # a key
    with pytest.raises(ClientError, match="Stack with id nobody does not exist"):
        stack.client("cloudformation").describe_stacks(StackName="nobody")


def test_every_make_target_and_file_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", Path("Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)\b", README, re.MULTILINE)) <= targets
    for event in re.findall(r"-e (events/\S+)", README):
        assert Path(event).is_file(), event
