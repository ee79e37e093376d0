"""Source code that a training job runs: `training` package and recipe.

It is stored under its digest, so that the same code is uploaded once.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.errors import InvalidJob, InvalidRecipe
from training.recipe_loading import source_files

PACKAGE = Path(__file__).parents[1]  # training/
REQUIREMENTS = "requirements.txt"  # the user's; the toolkit of tuning jobs installs it, too
SOURCE_MB = 100  # largest folder of a user's code
ARCHIVE = "sourcedir.tar.gz"  # file name that SageMaker's toolkit uses


@dataclass(frozen=True)
class SourceCode:
    """Source files of a training job, and the recipe to run.

    The job gets the files in its input channel `code`.
    """

    files: Mapping[str, bytes]  # content by path in the channel
    entry: str  # argument of training.train: a built-in recipe, or the recipe's file

    @property
    def digest(self) -> str:
        """SHA-256 digest of all source file names and contents."""
        lines = (
            f"{name} {hashlib.sha256(content).hexdigest()}\n"
            for name, content in sorted(self.files.items())
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def uri(self, bucket: str) -> str:
        """Return the S3 URI prefix of the source files in `bucket`."""
        return f"s3://{bucket}/code/{self.digest}/"

    def archive(self) -> bytes:
        """Pack the source files as a reproducible .tar.gz archive.

        The same files give the same bytes.
        """
        packed = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file,
            tarfile.open(fileobj=file, mode="w") as archive,
        ):
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return packed.getvalue()


def archive_uri(code_uri: str) -> str:
    """Return the S3 address of a job's source code archive."""
    return f"{code_uri}{ARCHIVE}"


def collect_code(
    recipe: str,
    wheels: Path | None = None,
    requirements: Path | None = None,
    source_dir: Path | None = None,
) -> SourceCode:
    """Collect the source files that a training job of `recipe` needs.

    These are this package, the recipe's own file and the modules that it imports from beside it, or
    the whole folder `source_dir`; the file `requirements`, and the packages in the folder `wheels`.

    Raises:
        InvalidRecipe: there is no such file, or it is not in `source_dir`.
        InvalidJob: a file or folder of the other options is missing, empty or too large.
    """
    sources = [*PACKAGE.rglob("*.py"), PACKAGE / "requirements.txt"]
    package = {
        f"training/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in sources
    }
    entry, files = _own_code(recipe, source_dir)
    if requirements is not None:
        if not requirements.is_file():
            raise InvalidJob(f"--requirements {requirements}: there is no such file")
        files[REQUIREMENTS] = requirements.read_bytes()
    if wheels is not None:
        packages = sorted(wheels.glob("*.whl"))
        if not packages:
            raise InvalidJob(f"--wheels {wheels}: there is no .whl file in it")
        files |= {f"wheels/{path.name}": path.read_bytes() for path in packages}
    return SourceCode(files | package, entry)


def _own_code(recipe: str, source_dir: Path | None) -> tuple[str, dict[str, bytes]]:
    """Return a recipe's entry point and the user's files by path."""
    path = Path(recipe).resolve()
    is_file = recipe.endswith(".py")
    if is_file and not path.is_file():
        raise InvalidRecipe(f"there is no recipe file {recipe}")
    if source_dir is None:
        paths = source_files([path], [path.parent]) if is_file else []
        return (path.name if is_file else recipe), _read(paths, path.parent)
    folder = source_dir.resolve()
    if not folder.is_dir():
        raise InvalidJob(f"--source-dir {source_dir}: there is no such folder")
    if is_file and not path.is_relative_to(folder):
        raise InvalidRecipe(f"the recipe {recipe} is not in --source-dir {source_dir}")
    paths = [file for file in folder.rglob("*") if _is_source(file, folder)]
    size_mb = sum(file.stat().st_size for file in paths) / 1e6
    if size_mb > SOURCE_MB:
        raise InvalidJob(
            f"--source-dir {source_dir} has {size_mb:.0f} MB, and {SOURCE_MB} MB at most are code: "
            "upload data to S3, and pass them with --data"
        )
    entry = path.relative_to(folder).as_posix() if is_file else recipe
    return entry, _read(paths, folder)


def _is_source(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return path.is_file() and not hidden


def _read(paths: Iterable[Path], folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.is_relative_to(folder)
    }
