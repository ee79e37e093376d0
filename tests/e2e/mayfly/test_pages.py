"""Blocks of docs/python-client.md run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Api
from tests.models import scale_model

PAGE = Path("docs/python-client.md").read_text()
BLOCKS = re.findall(r"^```python run\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PRINTED = [
    "[[2. 4. 6.]]",
    "[[0. 2. 4.]] ['10.000000:1']",
    "720.0",
    "prod: 100 % 1",
    "x | input 'x': shape [1, 2]",
]


@pytest.mark.parametrize("number", range(len(PRINTED)))
def test_a_block_prints_what_the_page_says(api: Api, scaled_doubler: str, number: int) -> None:
    assert len(BLOCKS) == len(PRINTED)
    code = BLOCKS[number].replace('"doubler', f'"{scaled_doubler}')
    environment = os.environ | {"MAYFLY_URL": api.url, "MAYFLY_KEY": api.key}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert PRINTED[number] in done.stdout


@pytest.fixture(scope="module")
def scaled_doubler(api: Api) -> str:
    """Upload the README's model y = 2x under a name of its own."""
    name = f"doubler-of-{os.getpid()}"
    api.upload(f"models/{name}/model.onnx", scale_model(2.0))
    api.wait_ready(name)
    return name
