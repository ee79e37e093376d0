"""Versions in a registry in memory, for tests of its rules."""

from dataclasses import replace

from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.registry.version import Blob, Reason, Source, State, Version
from tests.fakes import MemoryTable

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2), ("no", "yes")),)
)


NOW = "2026-11-22T08:00:00.000Z"


def make_registry(table: MemoryTable) -> Registry:
    return Registry(table, lambda: NOW, pause=lambda _: None)


def make_releases(table: MemoryTable) -> Releases:
    return Releases(table, lambda: NOW, pause=lambda _: None)


def source(key: str, version: str = "v1") -> Source:
    return Source("uploads", key, version)


def ready(version: Version) -> Version:
    files = (Blob("model.onnx", "ab" * 32, 10),)
    return replace(
        version,
        state=State.READY,
        files=files,
        signature=SIGNATURE,
        card={"task": "regression", "metrics": {"r2": 0.5}},
        graph={"opset": 20},
    )


def rejected(version: Version) -> Version:
    return replace(
        version, state=State.REJECTED, reason=Reason("NOT_ONNX", "the file is no ONNX model")
    )
