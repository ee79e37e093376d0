"""Source code of a job: addressed by its content, with wheels and as an archive."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from training.sagemaker.cli import main
from training.sagemaker.source_code import collect_code


def test_code_is_addressed_by_its_content_and_holds_the_entry_point() -> None:
    code = collect_code("digits")

    assert {
        "training/sagemaker/bootstrap.py",
        "training/train.py",
        "training/requirements.txt",
    } <= set(code.files)
    assert code.uri("b") == collect_code("digits").uri("b")
    assert replace(code, files={**code.files, "more.py": b""}).digest != code.digest


def test_wheels_are_uploaded_with_the_code(tmp_path: Path) -> None:
    (tmp_path / "a-1.0-py3-none-any.whl").write_bytes(b"a wheel")
    (tmp_path / "notes.txt").touch()
    code = collect_code("digits", tmp_path)

    assert {name for name in code.files if not name.startswith("training/")} == {
        "wheels/a-1.0-py3-none-any.whl"
    }
    assert code.digest != collect_code("digits").digest
    assert main(["digits", "--dry-run", "--wheels", str(tmp_path)], {}) == 0


def test_a_folder_without_wheels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", "--dry-run", "--wheels", str(tmp_path)], {}) == 1
    assert "there is no .whl file in it" in capsys.readouterr().err


def test_the_archive_holds_the_same_files_and_is_reproducible() -> None:
    code = collect_code("digits")
    with tarfile.open(fileobj=io.BytesIO(code.archive())) as archive:
        names = archive.getnames()
        bootstrap = archive.extractfile("training/sagemaker/bootstrap.py")
        assert bootstrap is not None
        assert bootstrap.read() == code.files["training/sagemaker/bootstrap.py"]

    assert names == sorted(code.files)
    assert code.archive() == code.archive()
