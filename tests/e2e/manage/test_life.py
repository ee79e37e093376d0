"""Whole life of a model by curl alone: the lines of docs/http-api.md."""

import os
import subprocess
from pathlib import Path

from local.client import RunningStack
from tests.e2e.conftest import connect
from tests.models import scale_model

HEADING = "### A model's whole life\n"


def test_the_lines_of_the_page_take_a_model_through_its_life(
    stack: RunningStack, tmp_path: Path
) -> None:
    code = Path("docs/http-api.md").read_text().partition(HEADING)[2].partition("```bash\n")[2]
    for number, factor in (("1", 2.0), ("2", 3.0)):
        (tmp_path / f"{number}.onnx").write_bytes(scale_model(factor))
    environment = {
        "API": stack.api_url,
        "MAYFLY_KEY": stack.create_key("admin"),
        "NO_PROXY": "127.0.0.1",
        "PATH": os.environ["PATH"],
    }

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code.partition("```")[0]],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    replies = done.stdout.replace(" ", "")
    for part in (
        '"data":[2.0,4.0,6.0]',
        '"to_version":2',
        '"weights":[{"version":1,"weight":90',
        '"state":"promoted"',
        '"action":"rollback"',
        '"state":"archived"',
    ):
        assert part in replies, f"{part} is missing: {done.stdout[-3000:]}"
    assert connect(stack).infer("life", [1.0, 2.0, 3.0], 1).status == 409
