"""Files of an upload: a model with its weights, or a folder."""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from mayfly.client.errors import InvalidInput

PIECE_BYTES = 1 << 20
FILES_MAX = 256  # files that a manifest may list
ARCHIVES = (".tar.gz", ".tgz")
WEIGHTS = (".data", "_data")  # beside a single .onnx: torch's and Optimum's names
# Names of the model beside its variants, the preferred first; the same as registration's.
PREFERRED = ("decoder_model_merged.onnx", "model.onnx", "decoder_with_past_model.onnx")
MANIFEST, PARTS = "manifest.json", "parts"
ACCEPTED = "name an .onnx, a model.tar.gz, a .tgz, or a folder with one .onnx"
# Files of a folder that no service of models reads: other frameworks' weights, code, texts
OTHERS = {
    *(".safetensors", ".gguf", ".pt", ".pth", ".pt2", ".ckpt", ".h5", ".keras", ".tflite"),
    *(".msgpack", ".pkl", ".pickle", ".joblib", ".py", ".ipynb", ".md", ".png", ".csv", ".npz"),
}


@dataclass(frozen=True)
class PackageFile:
    """File of an upload: name in the package, and path or content."""

    name: str
    path: Path | None = None
    content: bytes = b""

    @property
    def size_bytes(self) -> int:
        """Size in bytes."""
        return self.path.stat().st_size if self.path else len(self.content)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 in hexadecimal digits."""
        digest = hashlib.sha256()
        with self.open() as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def open(self) -> BinaryIO:
        """Open the file for reading."""
        return self.path.open("rb") if self.path else io.BytesIO(self.content)

    def describe(self) -> dict[str, Any]:
        """Return the fields by which the file is announced."""
        return {"file": self.name, "size_bytes": self.size_bytes, "sha256": self.sha256}


def read_package(path: Path) -> list[PackageFile]:
    """Return the files to upload for a path; the last registers.

    A model is sent with weights of its name beside it. A folder, or its manifest.json, is sent in
    parts, with a manifest that lists them.

    Raises:
        InvalidInput: there is no such file, it has another kind, or the folder holds no package.
    """
    files = _files_of(path)
    for file in files:
        if not file.size_bytes:
            raise InvalidInput(f"{file.path} is empty: write it again")
        _ = file.sha256  # read here, where a thread may wait for the disk
    return files


def _files_of(path: Path) -> list[PackageFile]:
    name = path.name.lower()
    if path.is_dir() or (name == MANIFEST and path.is_file()):
        return _read_folder(path if path.is_dir() else path.parent)
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}: {ACCEPTED}")
    if name.endswith(ARCHIVES):
        return [PackageFile("model.tar.gz", path)]
    if not name.endswith(".onnx"):
        raise InvalidInput(f"{path.name} is no model: {ACCEPTED}")
    return _with_weights(path)


def _with_weights(model: Path) -> list[PackageFile]:
    """Return a model after its weights, which its registration needs."""
    beside = (model.with_name(model.name + ending) for ending in WEIGHTS)
    files = [*(path for path in beside if path.is_file()), model]
    return [PackageFile(path.name, path) for path in files]


def _read_folder(folder: Path) -> list[PackageFile]:
    """Return a folder's files as parts, and their manifest."""
    manifest = _read_manifest(folder)
    names = _listed(folder, manifest) if manifest.get("files") else _present(folder)
    models = [name for name in names if name.lower().endswith(".onnx")]
    model = _choose(models)
    if model is None:
        listed = f"{len(models)} .onnx files ({', '.join(models[:3])})" if models else "no .onnx"
        raise InvalidInput(f"{folder} has {listed}: a package has one; name it, or list the files")
    names = [name for name in names if not _is_of(name, {*models} - {model})]
    if not manifest and set(names) <= {model, *(model + ending for ending in WEIGHTS)}:
        return _with_weights(folder / model)  # the model may hold a manifest of its own
    if len(names) > FILES_MAX:
        raise InvalidInput(f"{folder} has {len(names)} files: a package has at most {FILES_MAX}")
    parts = [_as_part(folder, name) for name in names]
    files = [{"path": part.name, "size": part.size_bytes, "sha256": part.sha256} for part in parts]
    text = json.dumps({"schema": 1, **manifest, "files": files})
    return [*parts, PackageFile(MANIFEST, content=text.encode())]


def _choose(models: list[str]) -> str | None:
    """Return the .onnx file that registration would take of several."""
    if len(models) == 1:
        return models[0]
    if any(Path(name).name.lower().startswith("encoder") for name in models):
        return None
    for preferred in PREFERRED:
        namesakes = [name for name in models if Path(name).name.lower() == preferred]
        if namesakes:
            return namesakes[0] if len(namesakes) == 1 else None
    return None


def _is_of(name: str, models: set[str]) -> bool:
    """Tell whether a file is a model or its weights."""
    return any(name in (model, *(model + ending for ending in WEIGHTS)) for model in models)


def _as_part(folder: Path, name: str) -> PackageFile:
    return PackageFile(f"{PARTS}/{name.removeprefix(f'{PARTS}/')}", folder / name)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's manifest.json, empty without one."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise InvalidInput(f"{path} is no JSON object")
    return manifest


def _listed(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Return the files that a manifest lists; they must be there."""
    try:
        names = [str(entry["path"]) for entry in manifest["files"]]
    except (TypeError, KeyError) as error:
        raise InvalidInput(
            f"{folder / MANIFEST}: files is no list of objects with a path"
        ) from error
    for name in names:
        if not (folder / name).is_file():
            raise InvalidInput(f"{folder / MANIFEST} lists {name}, which is not there")
    return names


def _present(folder: Path) -> list[str]:
    """Return a folder's files, without hidden ones and those in OTHERS."""
    return sorted(_relative(folder, (path for path in folder.rglob("*") if path.is_file())))


def _relative(folder: Path, paths: Iterable[Path]) -> Iterable[str]:
    for path in paths:
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not (hidden or name == MANIFEST or path.suffix.lower() in OTHERS):
            yield name
