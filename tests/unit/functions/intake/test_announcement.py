"""Announced uploads: files that registration takes, and errors that name the field."""

from dataclasses import replace
from typing import Any

import pytest

from functions.core.errors import InvalidModel, InvalidRequest
from functions.core.intake.announcement import PUT_BYTES, Announcement, check, is_part
from functions.core.registration.side_weights import model_key
from functions.core.upload_record import package_of, upload_id
from functions.core.uploads import model_and_form

PACKAGE = "up-0123456789abcdef0123"
GOOD = Announcement("digits", "model.onnx", 10, "ab" * 32, PACKAGE)


@pytest.mark.parametrize(
    "file",
    [
        "model.onnx",
        "Model.ONNX",
        "model.tar.gz",
        "resnet.tgz",
        "model.onnx.data",
        "model.onnx_data",
        "parts/model.onnx",
        "parts/weights/w é.bin",
        "parts/model.pt",
    ],
)
def test_files_of_every_form_are_accepted_in_a_new_package(file: str) -> None:
    check(replace(GOOD, file=file), is_new=True)


def test_a_manifest_needs_the_package_of_its_parts() -> None:
    manifest = replace(GOOD, file="manifest.json")

    check(manifest, is_new=False)
    with pytest.raises(InvalidRequest, match=r"^package: 'manifest.json' is the last file"):
        check(manifest, is_new=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file", ""),
        ("file", "readme.md"),
        ("file", "output.tar.gz"),
        ("file", "._model.onnx"),
        ("file", "model.pt"),
        ("file", "model.zip"),
        ("file", "weights.bin"),
        ("file", "/model.onnx"),
        ("file", "../model.onnx"),
        ("file", "parts/../model.onnx"),
        ("file", "parts//w.bin"),
        ("file", "a/model.onnx"),
        ("file", "model\n.onnx"),
        ("file", "x" * 251 + ".onnx"),
        ("file", "parts/" + "x" * 200 + ("/" + "y" * 200) * 4),
        ("size_bytes", 0),
        ("size_bytes", -1),
        ("size_bytes", PUT_BYTES + 1),
        ("sha256", ""),
        ("sha256", "ab" * 31),
        ("sha256", "xy" * 32),
        ("package", "1"),
        ("package", "up-../../../../../../.."),
    ],
)
def test_an_error_names_the_field_at_fault(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        check(replace(GOOD, **{field: value}), is_new=False)


def test_every_accepted_file_is_one_that_registration_takes() -> None:
    """And every refused one is one that it ignores, or an upload of several files."""
    names = [
        *("model.onnx", "m.tar.gz", "m.tgz", "manifest.json", "m.onnx.data", "m.data", "m.json"),
        *("m.pt", "m.zip", "m.tar", "output.tar.gz", "sourcedir.tar.gz", "M.ONNX", "readme", "m"),
    ]
    for name in names:
        entry = replace(GOOD, file=name)
        try:
            taken = model_and_form(entry.key) is not None or model_key(entry.key) is not None
        except InvalidModel:
            taken = False
        try:
            check(entry, is_new=False)
            accepted = True
        except InvalidRequest:
            accepted = False
        assert accepted == taken, name


def test_an_announced_upload_is_its_key_and_another_its_object_version() -> None:
    assert upload_id("b", GOOD.key, "v1") == upload_id("b", GOOD.key, "")
    direct = "models/digits/model.onnx"
    assert upload_id("b", direct, "v1") != upload_id("b", direct, "v2")
    assert (package_of(GOOD.key), package_of(direct)) == (PACKAGE, "")
    assert package_of(f"models/{PACKAGE}/model.onnx") == ""


def test_a_key_that_registration_ignores_with_a_reason_is_no_part() -> None:
    assert not is_part("models/digits/up-0123456789abcdef0123/model.pt")
