"""Unpack an upload: model, weights and manifest under flat names in package/."""

import posixpath
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from functions.core.errors import InvalidModel, one_line, shown
from functions.core.language import assets
from functions.core.language.detection.detect import check_complete
from functions.core.names import is_onnx_file, is_plain_path, overlapping
from functions.core.package.archive import Member, read_archive
from functions.core.package.gzip_stream import bad_archive
from functions.core.package.model_choice import choose_model, chosen
from functions.core.package.onnx_reader import MANIFEST_KEY, OnnxFile, read_onnx
from functions.core.package.onnx_rewrite import Rewrite, apply
from functions.core.package.weight_files import (
    bad_location,
    flat_names,
    normal,
    relocate,
    weight_path,
)
from functions.core.registration.sandbox_protocol import (
    IGNORED,
    MANIFEST_BYTES,
    SIDE_FILES,
    WEIGHT_FILES,
    Unpacked,
    check_room,
)
from functions.core.uploads import Form

MODEL = "model.onnx"
MANIFEST = "manifest.json"
TEXT = 256  # characters kept of a producer or an ignored file's name


class _Files(Protocol):
    """Interface to the files uploaded with an ONNX model."""

    model: str  # its path in the upload
    models: int  # number of .onnx files
    model_file: Path

    def has(self, path: str) -> bool: ...
    def size(self, path: str) -> int | None: ...
    def take(self, targets: Mapping[str, Path]) -> None: ...
    def rest(self, opened: set[str]) -> list[str]: ...


def unpack(form: Form, directory: Path) -> Unpacked:
    """Unpack an upload into package/ and describe the model's files.

    Raises:
        InvalidModel: why this upload can never be served.
    """
    upload, package = directory / "upload", directory / "package"
    files: _Files
    if form is Form.ARCHIVE:
        files = _ArchiveFiles(upload / "archive", package)
    else:
        files = _FolderFiles(upload, package)
    graph = read_onnx(files.model_file)
    outside = _outside(graph, files) if form is Form.ONNX else ()
    if outside:
        return Unpacked(MODEL, (), manifest=False, graph={}, outside=outside)
    folder = posixpath.dirname(files.model)
    manifest = MANIFEST if form is Form.MANIFEST else posixpath.join(folder, MANIFEST)
    weights = _weights(graph, files, manifest)
    targets = {posixpath.join(folder, path): package / name for path, name in weights.items()}
    if _has_manifest(files, manifest):
        targets[manifest] = package / MANIFEST
    language = {path: name for path, name in _assets(files, folder).items() if path not in targets}
    targets |= {path: directory / "assets" / name for path, name in language.items()}
    files.take(targets)
    relocate(package / MODEL, graph.locations, weights)
    _rewrite(package / MODEL, graph.rewrite)
    ignored = files.rest({files.model, *targets})
    unpacked = _unpacked(tuple(weights.values()), graph, package, ignored)
    notes = (chosen(files.model, files.models),) if files.models > 1 else ()
    names = tuple(sorted(language.values()))
    return replace(unpacked, assets=names, notes=(*notes, *unpacked.notes))


def _assets(files: _Files, folder: str) -> dict[str, str]:
    """Return a language model's files as {path: name to store}.

    Each is in the model's folder or the nearest one above: exporters put the graph into onnx/. A
    package without a tokenizer holds no language model, and none of the others is opened.

    Raises:
        InvalidModel: one is too large, a link, or in the package twice; or the tokenizer is
            missing beside a chat template.
    """
    folders = [folder]
    while folders[-1]:
        folders.append(posixpath.dirname(folders[-1]))
    paths: dict[str, str] = {}
    for path, name in assets.PATHS.items():
        places = (posixpath.join(place, path) for place in folders)
        place = next((place for place in places if files.has(place)), None)
        if place is not None:
            paths[place] = name
    if not check_complete(frozenset(paths.values())):
        return {}
    for path, name in paths.items():
        assets.check_size(name, files.size(path) or 0)
    return paths


def _has_manifest(files: _Files, path: str) -> bool:
    size = files.size(path)
    if size is not None and size > MANIFEST_BYTES:
        message = f"manifest.json is over {MANIFEST_BYTES} bytes"
        raise InvalidModel(message, code="MANIFEST_TOO_LARGE")
    return size is not None


def _rewrite(model: Path, rewrite: Rewrite) -> None:
    if rewrite.edits:
        check_room(model.stat().st_size, model.parent)
        apply(model, rewrite.edits)


class _FolderFiles:
    """Upload of separate files: one model, or files listed in a manifest."""

    def __init__(self, upload: Path, package: Path) -> None:
        self._package = package
        files = sorted(path for path in upload.rglob("*") if path.is_file())
        self._paths = {normal(path.relative_to(upload).as_posix()): path for path in files}
        models = [path for path in self._paths if is_onnx_file(path)]
        self.model, self.models = choose_model(models) or models[0], len(models)
        self.model_file = self._paths[self.model]

    def has(self, path: str) -> bool:
        return path in self._paths

    def size(self, path: str) -> int | None:
        return self._paths[path].stat().st_size if path in self._paths else None

    def take(self, targets: Mapping[str, Path]) -> None:
        for path, target in {**targets, self.model: self._package / MODEL}.items():
            self._paths[path].rename(target)

    def rest(self, opened: set[str]) -> list[str]:
        return [path for path in self._paths if path not in opened]


class _ArchiveFiles:
    """Uploaded files inside a model archive (.tar.gz).

    It is read once for the list and the model, and again for weights and manifest, if any.
    """

    def __init__(self, archive: Path, package: Path) -> None:
        self._archive = archive
        self._package = package
        self.model_file = package / MODEL
        self._members: dict[str, Member] = {}
        self._repeated: set[str] = set()
        models: dict[str, None] = {}  # paths, in order
        for member in read_archive(archive):
            path = normal(member.name)
            if path in self._members:
                self._repeated.add(path)
            self._members[path] = member
            if is_onnx_file(path) and not member.problem:
                if not models:
                    check_room(member.size_bytes, package)
                    member.write(self.model_file)
                models[path] = None
        self.model, self.models = self._model([*models]), len(models)
        if self.model != next(iter(models)):
            self.model_file.unlink()
            self.take({self.model: self.model_file})

    def _model(self, models: list[str]) -> str:
        """Return the path of the archive's ONNX model.

        Raises:
            InvalidModel: `NO_MODEL`; `BAD_ARCHIVE` if it is a link, or twice in the archive.
        """
        links = [path for path in self._members if is_onnx_file(path)]
        paths = models or links
        model = choose_model(paths)
        if model is not None:
            self.size(model)
            return model
        if paths:
            names = " and ".join(shown(path) for path in paths[:2])
            problem = (
                f"{len(paths)} .onnx files, {names}, and one is needed: upload each by itself, or "
                "call the one to serve model.onnx"
            )
        else:
            problem = f"no .onnx file among {len(self._members)} files: export the model to ONNX"
        raise InvalidModel(f"the archive holds {problem}", code="NO_MODEL")

    def has(self, path: str) -> bool:
        return path in self._members

    def size(self, path: str) -> int | None:
        """Return an archive member's size in bytes, or None if absent.

        Raises:
            InvalidModel: `BAD_ARCHIVE`: it cannot be opened.
        """
        member = self._members.get(path)
        if member is None:
            return None
        if path in self._repeated:
            raise bad_archive(f"{shown(path)} is in it twice")
        if member.problem:
            raise bad_archive(f"{shown(path)} is {member.problem}")
        if ".." in path.split("/"):
            raise bad_archive(f"{shown(path)} lies outside of it; pack it with a path inside")
        return member.size_bytes

    def take(self, targets: Mapping[str, Path]) -> None:
        left = dict(targets)
        check_room(sum(self._members[path].size_bytes for path in left), self._package)
        for member in read_archive(self._archive) if left else ():
            target = left.pop(normal(member.name), None)
            if target is not None:
                member.write(target)
            if not left:
                break

    def rest(self, opened: set[str]) -> list[str]:
        return [path for path in self._members if path not in opened]


def _unpacked(
    weights: tuple[str, ...], graph: OnnxFile, package: Path, ignored: list[str]
) -> Unpacked:
    """Describe the unpacked model; take a missing manifest from its metadata."""
    manifest = package / MANIFEST
    if not manifest.exists() and MANIFEST_KEY in graph.metadata:
        manifest.write_text(graph.metadata[MANIFEST_KEY])
    described: dict[str, Any] = {
        "opset": graph.opset,
        "ir_version": graph.ir_version,
        "producer": one_line(graph.producer, TEXT),
        "nodes": graph.nodes,
    }
    if len(ignored) > IGNORED:
        ignored = [*ignored[: IGNORED - 1], f"and {len(ignored) - IGNORED + 1} more"]
    names = tuple(one_line(name, TEXT) for name in ignored)
    return Unpacked(
        MODEL,
        weights,
        manifest.exists(),
        described,
        names,
        labels=graph.rewrite.labels,
        notes=tuple(graph.rewrite.notes),
    )


def _outside(graph: OnnxFile, files: _Files) -> tuple[str, ...]:
    """Return paths of external weight files that the upload lacks.

    Raises:
        InvalidModel: `BAD_FILE_NAME` or `TOO_COMPLEX`.
    """
    paths = {weight_path(location): location for location in graph.external}
    for path, location in paths.items():
        if not is_plain_path(path) or is_onnx_file(path) or path == MANIFEST:
            raise bad_location(location)
    twice = overlapping(paths)
    if twice is not None:
        raise bad_location(twice)
    outside = tuple(path for path in paths if files.size(path) is None)
    if len(outside) > SIDE_FILES:
        raise InvalidModel(
            f"the model's weights are in {len(outside)} other files, too many to look for beside "
            "it: upload model.tar.gz with all files, or save it with all_tensors_to_one_file=True",
            code="TOO_COMPLEX",
        )
    return outside


def _weights(graph: OnnxFile, files: _Files, manifest: str) -> dict[str, str]:
    """Validate external weight files; return their new file names by path.

    Paths are relative to the model.

    Raises:
        InvalidModel: `WEIGHTS_MISSING`, `WEIGHTS_TRUNCATED`, `BAD_FILE_NAME` or `TOO_COMPLEX`.
    """
    for location, size_bytes in graph.external.items():
        _check_weights(location, size_bytes, files, manifest)
    names = flat_names(graph.external, reserved=(MODEL, MANIFEST))
    if len(names) > WEIGHT_FILES:
        raise InvalidModel(
            f"the model's weights are in {len(names)} files, and {WEIGHT_FILES} are allowed: "
            "save it with all_tensors_to_one_file=True",
            code="TOO_COMPLEX",
        )
    return names


def _check_weights(location: str, size_bytes: int, files: _Files, manifest: str) -> None:
    path = posixpath.join(posixpath.dirname(files.model), weight_path(location))
    if path in (files.model, manifest):
        raise bad_location(location)
    actual_bytes = files.size(path)
    if actual_bytes is None:
        raise InvalidModel(
            f"the model's weights {shown(path)} are not in the package: add the file that the "
            "exporter wrote beside the model",
            code="WEIGHTS_MISSING",
        )
    if actual_bytes < size_bytes:
        raise InvalidModel(
            f"{shown(path)} has {actual_bytes} bytes, and the model's weights in it {size_bytes}",
            code="WEIGHTS_TRUNCATED",
        )
