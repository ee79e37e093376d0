"""Source code that a training job runs: `training` package and recipe.

It is stored under its digest, so that the same code is uploaded once.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.errors import InvalidJob, InvalidRecipe

PACKAGE = Path(__file__).parents[1]  # training/
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


def collect_code(recipe: str, wheels: Path | None = None) -> SourceCode:
    """Collect the source files that a training job of `recipe` needs.

    These are this package, the recipe's own file, and the packages in the folder `wheels`.

    Raises:
        InvalidRecipe: there is no such file.
        InvalidJob: there is no wheel in that folder.
    """
    sources = [*PACKAGE.rglob("*.py"), PACKAGE / "requirements.txt"]
    files = {
        f"training/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in sources
    }
    if wheels is not None:
        packages = sorted(wheels.glob("*.whl"))
        if not packages:
            raise InvalidJob(f"--wheels {wheels}: there is no .whl file in it")
        files |= {f"wheels/{path.name}": path.read_bytes() for path in packages}
    if not recipe.endswith(".py"):
        return SourceCode(files, recipe)
    path = Path(recipe)
    if not path.is_file():
        raise InvalidRecipe(f"there is no recipe file {recipe}")
    return SourceCode(files | {path.name: path.read_bytes()}, path.name)
