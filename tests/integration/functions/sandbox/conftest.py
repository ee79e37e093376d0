"""Fixture that runs the sandbox's build step in the test process."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from functions.core.registration.sandbox_answers import read_built
from functions.core.registration.sandbox_protocol import Brief, Built, report
from functions.sandbox.build import build


@pytest.fixture
def build_model(tmp_path: Path) -> Callable[..., Built]:
    """Function that builds a model and reads the answer as the parent does."""

    def run(
        model: Any,
        weights: Mapping[str, bytes] | None = None,
        assets: Mapping[str, bytes] | None = None,
        **brief: Any,
    ) -> Built:
        for folder in ("package", "assets", "serving"):
            (tmp_path / folder).mkdir()
        for name, content in (assets or {}).items():
            (tmp_path / "assets" / name).write_bytes(content)
        raw = model if isinstance(model, bytes) else model.SerializeToString()
        for name, content in {"model.onnx": raw, **(weights or {})}.items():
            (tmp_path / "package" / name).write_bytes(content)
        (tmp_path / "uploaded.onnx").write_bytes(raw)
        files = {"weights": tuple(weights or ()), "assets": tuple(assets or ())}
        built = build(Brief("model.onnx", **files, **brief), tmp_path)
        assert {path.name for path in (tmp_path / "assets").iterdir()} == set(built.assets)
        assert {path.name for path in (tmp_path / "serving").iterdir()} == set(built.files)
        return read_built(json.loads(json.dumps(report(built), allow_nan=False)))

    return run
