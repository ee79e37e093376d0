"""Source code of a job: addressed by its content, with wheels and as an archive."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from training.errors import InvalidJob
from training.sagemaker import source_code
from training.sagemaker.cli import main
from training.sagemaker.source_code import SourceCode, collect_code


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


def own_files(code: SourceCode) -> set[str]:
    return {name for name in code.files if not name.startswith("training/")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Folder of a user's code: a recipe, a module, a package, a file, and a secret."""
    files = {
        "recipes/own.py": "import layers\nfrom parts.head import Head\nimport torch\n",
        "recipes/layers.py": "",
        "recipes/parts/__init__.py": "",
        "recipes/parts/head.py": "def f():\n    from . import tail\n",
        "recipes/parts/tail.py": "",
        "recipes/unused.py": "",
        "recipes/training/train.py": "raise SystemExit('not ours')",
        "words.txt": "a b c",
        "requirements.txt": "humanize\n",
        ".env": "SECRET=1",
        "recipes/__pycache__/own.pyc": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_modules_that_a_recipe_imports_are_sent_with_it(project: Path) -> None:
    code = collect_code(str(project / "recipes" / "own.py"))

    assert code.entry == "own.py"
    assert own_files(code) == {
        "own.py", "layers.py", "parts/__init__.py", "parts/head.py", "parts/tail.py"}  # fmt: skip


def test_a_source_folder_is_sent_without_hidden_files(project: Path) -> None:
    code = collect_code(str(project / "recipes" / "own.py"), source_dir=project)

    assert code.entry == "recipes/own.py"
    assert {"words.txt", "requirements.txt", "recipes/unused.py"} <= own_files(code)
    assert not {name for name in code.files if ".env" in name or "__pycache__" in name}


def test_a_users_files_never_replace_the_package(project: Path) -> None:
    code = collect_code("digits", source_dir=project / "recipes")

    assert b"not ours" not in code.files["training/train.py"]


def test_requirements_of_a_user_are_sent(project: Path) -> None:
    code = collect_code("digits", requirements=project / "requirements.txt")

    assert code.files["requirements.txt"] == b"humanize\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--requirements", "nowhere.txt"], "--requirements nowhere.txt: there is no such file"),
        (["--source-dir", "nowhere"], "--source-dir nowhere: there is no such folder"),
        (["--source-dir", "recipes/parts"], "is not in --source-dir recipes/parts"),
    ],
)
def test_a_missing_source_is_named(
    project: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project)

    assert main(["recipes/own.py", "--dry-run", *options], {}) == 1
    assert message in capsys.readouterr().err


def test_a_source_folder_with_data_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_code, "SOURCE_MB", 1e-6)

    with pytest.raises(InvalidJob, match="upload data to S3, and pass them with --data"):
        collect_code("digits", source_dir=project)
