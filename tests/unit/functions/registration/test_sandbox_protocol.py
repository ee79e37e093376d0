"""Checks on the sandbox: its answers and its output files."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import InvalidModel
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.registration.registration import Registration
from functions.core.registration.sandbox_answers import read_built, read_unpacked
from functions.core.registration.sandbox_protocol import (
    Brief,
    Built,
    Plan,
    Unpacked,
    build_task,
    read_brief,
    report,
)
from functions.core.registry.registry import Registry
from functions.core.registry.version import State
from functions.core.uploads import Upload
from functions.register.manifest import read_manifest
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.models import scale_model
from tests.sandbox import SIGNATURE, MemorySandbox

SPEC = LanguageSpec(
    Kind.DECODER,
    300,
    1024,
    eos=(2,),
    special_tokens={"bos_token": "<s>\n"},
    defaults={"top_p": 0.5},
    shared_cache=True,
    golden={"prompt": [1], "reply": [2, 3]},
)
UNPACKED = Unpacked(
    "model.onnx",
    ("w.bin",),
    True,
    {"opset": 20, "ir_version": 10, "producer": "p", "nodes": 1},
    ("a.txt",),
    assets=("config.json", "tokenizer.json"),
)
BUILT = Built(
    ("model.onnx",),
    SIGNATURE,
    Plan(),
    {"load_ms": 1.5},
    200,
    {"request": {}, "response": {}, "synthetic": True},
    ("Fits.",),
    json.loads(json.dumps(SPEC.to_record())),
    ("tokenizer.json",),
)


def sent(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_valid_answer_is_read_unchanged() -> None:
    assert read_unpacked(sent(report(UNPACKED))) == UNPACKED
    assert read_built(sent(report(BUILT))) == BUILT


def test_every_fact_of_a_language_model_is_read() -> None:
    language = read_built(sent(report(BUILT))).language
    assert language is not None
    assert LanguageSpec.from_record(language) == SPEC


def test_a_brief_is_read_unchanged() -> None:
    brief = Brief(
        "m.onnx",
        weights=("w",),
        samples=({"request": {}, "response": {}},),
        rtol=0.1,
        atol=0.2,
        variants=("int8",),
        assets=("tokenizer.json",),
        language={"context": 2048},
        threads=2,
        memory_mb=512,
    )

    assert read_brief(sent(build_task(brief, Path("/d")))) == brief


def test_a_rejection_is_one_printable_line() -> None:
    with pytest.raises(InvalidModel) as caught:
        read_unpacked({"rejected": {"code": "NOT_ONNX", "message": "a\nb\x1b[31m" + "c" * 1000}})

    assert caught.value.instance_code == "NOT_ONNX"
    assert str(caught.value).startswith("a b?[31m")
    assert len(str(caught.value)) <= 300


BAD_FIELDS: list[tuple[str, Any]] = [
    ("model", "../model.onnx"),
    ("model", "/etc/passwd"),
    ("model", ""),
    ("model", None),
    ("model", ["model.onnx"]),
    ("model", "manifest.json"),
    ("weights", ["a/b"]),
    ("weights", ["w", "w"]),
    ("weights", ["model.onnx"]),
    ("weights", "w"),
    ("weights", [f"w{n}" for n in range(4097)]),
    ("files", [f"w{n}" for n in range(66)]),
    ("manifest", 1),
    ("manifest", "yes"),
    ("graph", []),
    ("graph", {"opset": "20"}),
    ("graph", {"opset": True}),
    ("graph", {"opset": -1}),
    ("graph", {"secret": 1}),
    ("graph", {"producer": "p" * 10_000}),
    ("ignored", ["x" * 10_000]),
    ("ignored", [1]),
    ("ignored", ["x"] * 1000),
    ("files", []),
    ("files", ["a", "a"]),
    ("files", [".."]),
    ("signature", {}),
    ("signature", {"inputs": [], "outputs": {}}),
    ("signature", {"inputs": [{"name": "x", "datatype": "PICKLE", "shape": []}], "outputs": []}),
    ("signature", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-5]}], "outputs": []}),
    (
        "signature",
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 99}], "outputs": []},
    ),
    (
        "signature",
        {"inputs": [{"name": "x" * 9999, "datatype": "FP32", "shape": []}], "outputs": []},
    ),
    ("signature", {"inputs": [{"name": "x", "datatype": "FP32", "shape": []}] * 2, "outputs": []}),
    ("plan", {}),
    ("plan", {"optimised": "all"}),
    ("measured", []),
    ("measured", {"ms": float("nan")}),
    ("measured", {"ms": "1"}),
    ("measured", {"ms": True}),
    ("measured", {"m" * 100: 1}),
    ("measured", {f"m{n}": 1 for n in range(1000)}),
    ("memory_mb", -1),
    ("memory_mb", 1.5),
    ("memory_mb", 10**12),
    ("sample", []),
    ("sample", {"code": 1}),
    ("assets", ["../tokenizer.json"]),
    ("assets", ["passwd"]),
    ("assets", ["tokenizer.json"] * 2),
    ("assets", "tokenizer.json"),
    ("language", []),
    ("language", {}),
    *(
        ("language", {**SPEC.to_record(), **change})
        for change in (
            {"more": 1},
            {"kind": "robot"},
            {"kind": ["decoder"]},
            {"vocabulary": -1},
            {"vocabulary": "300"},
            {"context": 2**40},
            {"eos": [1.5]},
            {"eos": [1] * 5000},
            {"bos": "1"},
            {"special_tokens": {"bos_token": "x" * 1000}},
            {"special_tokens": {"bos_token": "\ud800"}},
            {"special_tokens": {f"token_{n}": "x" for n in range(17)}},
            {"layout": None},
            {"cache_datatype": "FP32" * 100},
            {"chat": 1},
            {"shared_cache": "yes"},
            {"defaults": {"top_p": float("nan")}},
            {"defaults": [0.5]},
            {"pooling": "max"},
            {"golden": {"prompt": ["a"]}},
            {"prefill_rate": float("inf")},
        )
    ),
    ("notes", ["n" * 10_000]),
    ("notes", "all is well"),
    ("notes", ["n"] * 1000),
    ("more", 1),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD_FIELDS, ids=[f"{name}={str(value)[:40]}" for name, value in BAD_FIELDS]
)
def test_a_malformed_field_rejects_the_upload(name: str, value: Any) -> None:
    answers: list[tuple[Callable[[object], object], dict[str, Any]]] = [
        (read_unpacked, asdict(UNPACKED)),
        (read_built, asdict(BUILT)),
    ]
    for read, answer in answers:
        if name in answer or name == "more":
            with pytest.raises(InvalidModel) as caught:
                read(answer | {name: value})
            assert caught.value.instance_code == "SANDBOX_BAD_ANSWER"
            assert len(str(caught.value)) <= 300
            assert str(caught.value).isprintable()


def test_a_missing_field_rejects_the_upload() -> None:
    for read, answer in ((read_unpacked, asdict(UNPACKED)), (read_built, asdict(BUILT))):
        for name in answer:
            with pytest.raises(InvalidModel, match="its answer has"):
                read({key: value for key, value in answer.items() if key != name})  # type: ignore[operator]


def linked(serving: Path) -> None:
    (serving / "model.onnx").unlink()
    (serving / "model.onnx").symlink_to("/etc/passwd")


def two_names(serving: Path) -> None:
    os.link(serving / "model.onnx", serving.parent / "other")


def a_folder(serving: Path) -> None:
    (serving / "model.onnx").unlink()
    (serving / "model.onnx").mkdir()


def a_fifo(serving: Path) -> None:
    (serving / "model.onnx").unlink()
    os.mkfifo(serving / "model.onnx")


@pytest.mark.parametrize(
    "tamper",
    [
        linked,
        two_names,
        a_folder,
        a_fifo,
        lambda s: (s / "model.onnx").unlink(),
        lambda s: (s / "more").write_bytes(b"x"),
    ],
    ids=["a link", "two names", "a folder", "a fifo", "nothing", "a file more"],
)
def test_output_files_have_to_be_plain_files(tamper: Callable[[Path], None]) -> None:
    class HostileSandbox(MemorySandbox):
        def build(self, brief: Brief, directory: Path) -> Built:
            built = super().build(brief, directory)
            tamper(directory / "serving")
            return built

    uploads, blobs = MemoryUploads(), MemoryBlobs()
    registry = Registry(MemoryTable(), lambda: "2026-11-22T08:00:00.000Z")
    pinned = uploads.put("up", "models/m/x.onnx", scale_model())

    version = Registration(registry, uploads, blobs, HostileSandbox(), read_manifest).register(
        Upload("up", "models/m/x.onnx", pinned)
    )

    assert version is not None
    assert (version.state, version.reason and version.reason.code) == (
        State.REJECTED,
        "SANDBOX_BAD_ANSWER",
    )
    assert not blobs.content


def test_the_unpacked_manifest_has_to_be_a_plain_file() -> None:
    class HostileSandbox(MemorySandbox):
        def unpack(self, form: Any, directory: Path) -> Unpacked:
            (directory / "package/manifest.json").symlink_to("/proc/self/environ")
            return replace(super().unpack(form, directory), manifest=True)

    uploads = MemoryUploads()
    registry = Registry(MemoryTable(), lambda: "2026-11-22T08:00:00.000Z")
    pinned = uploads.put("up", "models/m/x.onnx", scale_model())

    version = Registration(
        registry, uploads, MemoryBlobs(), HostileSandbox(), read_manifest
    ).register(Upload("up", "models/m/x.onnx", pinned))

    assert version is not None
    assert version.reason is not None
    assert version.reason.code == "SANDBOX_BAD_ANSWER"
