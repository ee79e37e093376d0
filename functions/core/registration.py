"""The way of an upload: claim a version, fetch that exact object, unpack, inspect, store, commit.

Every step can be interrupted and done again: the claim gives the same version to the same object, blobs are stored
under their digest, and the commit happens once. A fault of the upload becomes a REJECTED version that says why; a fault
of anything else is raised, and the upload comes again.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from functions.core.archive import Member, extract
from functions.core.errors import InvalidModel, shown
from functions.core.names import is_file_name
from functions.core.onnx_file import MANIFEST_KEY, OnnxFile, read_onnx
from functions.core.registry import Blob, Reason, Registry, Source, State, Version
from functions.core.signature import DYNAMIC, Signature
from functions.core.uploads import Form, Upload, model_and_form

MANIFEST_BYTES = 8 * 1024 * 1024
RECORD_BYTES = 300 * 1024  # DynamoDB holds items up to 400 KB
ROOM = 16 * 1024 * 1024  # left free in the working directory


class ObjectGone(Exception):
    """When the object that an event names is not there (any more)."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """One exact object: later writes to the key do not change what is read through this."""

    bucket: str
    key: str
    version_id: str | None
    object_version: str
    size_bytes: int


class Uploads(Protocol):
    """The artifacts bucket. `adapters/s3.py` documents the methods."""

    def pin(self, bucket: str, key: str, version_id: str | None) -> Pinned: ...
    def fetch(self, pinned: Pinned, path: Path) -> str: ...


class BlobStore(Protocol):
    """The serving bucket, as a registration sees it."""

    def store(self, blob: Blob, path: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that a manifest names: `path` is relative to the manifest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a registration needs of a manifest. `card` is kept in the record, `raw` whole in a blob."""

    raw: bytes
    card: Mapping[str, Any]
    outputs: Mapping[str, "DeclaredTensor"] = field(default_factory=dict)
    inputs: Mapping[str, "DeclaredTensor"] = field(default_factory=dict)
    files: tuple[ListedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """A tensor as the manifest describes it; the graph has the last word."""

    datatype: str | None = None
    shape: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Package:
    """An unpacked upload: `files` are (name, path) with the model first."""

    files: list[tuple[str, Path]]
    manifest: bytes | None = None
    ignored: tuple[str, ...] = ()


@dataclass(slots=True)
class Registration:
    """Turns uploads into versions."""

    registry: Registry
    uploads: Uploads
    blobs: BlobStore
    inspect: Callable[[Path], Signature]  # makes a session; raises InvalidModel
    read_manifest: Callable[[bytes], Manifest]  # raises InvalidModel

    def register(self, upload: Upload) -> Version | None:
        """The version that `upload` became, READY or REJECTED; None where there is nothing to register.

        Raises:
            InvalidModel: the key names no possible model.
            Unavailable: storage or registry failed; the same upload may be registered later.
        """
        found = model_and_form(upload.key)
        if found is None:
            return None
        model, form = found
        try:
            pinned = self.uploads.pin(upload.bucket, upload.key, upload.version_id)
        except ObjectGone:
            if upload.version_id is None:
                return None  # nothing was pinned, so there is nothing that could become a version
            pinned = Pinned(upload.bucket, upload.key, upload.version_id, upload.version_id, 0)
        version = self.registry.claim(model, Source(pinned.bucket, pinned.key, pinned.object_version))
        if version.state is not State.PENDING:
            return version
        with tempfile.TemporaryDirectory(prefix="register-") as directory:
            try:
                done = self._build(version, form, pinned, Path(directory))
            except ObjectGone:
                reason = Reason("OBJECT_GONE", "the object was deleted before it could be read; upload it again")
                done = replace(version, state=State.REJECTED, reason=reason)
            except InvalidModel as error:
                done = replace(version, state=State.REJECTED, reason=Reason(error.instance_code, str(error)))
        return self.registry.finish(done)

    def _build(self, version: Version, form: Form, pinned: Pinned, directory: Path) -> Version:
        package = self._unpack(form, pinned, directory)
        [(_, model), *weights] = package.files
        graph = read_onnx(model)
        _check_weights(graph, {file for file, _ in weights}, form)
        raw = package.manifest
        if raw is None and MANIFEST_KEY in graph.metadata:
            raw = graph.metadata[MANIFEST_KEY].encode()
        manifest = self.read_manifest(raw) if raw is not None else None
        # Issue 3 puts the sandbox around what follows, and compilation and the golden samples after it.
        signature = self.inspect(model)
        if manifest:
            signature = _described(signature, manifest)
        blobs = tuple(_blob(file, path) for file, path in package.files)
        for blob, (_, path) in zip(blobs, package.files, strict=True):
            self.blobs.store(blob, path)
        ready = replace(
            version,
            state=State.READY,
            files=blobs,
            manifest=self._store_manifest(manifest, directory) if manifest else None,
            signature=signature,
            graph={"opset": graph.opset, "ir_version": graph.ir_version, "producer": graph.producer[:256]},
            card=manifest.card if manifest else {},
            ignored=package.ignored,
        )
        _check_record(ready)
        return ready

    def _unpack(self, form: Form, pinned: Pinned, directory: Path) -> Package:
        _check_room(pinned.size_bytes, directory)
        if form is Form.ONNX:
            model = directory / "model.onnx"
            self.uploads.fetch(pinned, model)
            return Package([("model.onnx", model)])
        if form is Form.ARCHIVE:
            archive = directory / "archive"
            self.uploads.fetch(pinned, archive)
            return _unpack_archive(archive, directory)
        return self._unpack_listed(pinned, directory)

    def _unpack_listed(self, pinned: Pinned, directory: Path) -> Package:
        if pinned.size_bytes > MANIFEST_BYTES:
            raise InvalidModel(f"manifest.json is over {MANIFEST_BYTES} bytes", code="MANIFEST_TOO_LARGE")
        path = directory / "manifest.json"
        self.uploads.fetch(pinned, path)
        raw = path.read_bytes()
        listed = self.read_manifest(raw).files
        names = [file.path.rpartition("/")[2] for file in listed]
        models = [name for name in names if name.endswith(".onnx")]
        if len(models) != 1:
            raise InvalidModel(
                f"manifest.json has to list one .onnx file under `files`; it lists {len(models)}", code="NO_MODEL"
            )
        folder = pinned.key.rpartition("/")[0]
        files = []
        for file, name in zip(listed, names, strict=True):
            _check_listed(file, name, names)
            _check_room(file.size_bytes, directory)
            target = directory / name
            files.append((name, target))
            self._fetch_listed(file, pinned.bucket, f"{folder}/{file.path}", target)
        files.sort(key=lambda pair: pair[0] != models[0])
        return Package(files, raw)

    def _fetch_listed(self, file: ListedFile, bucket: str, key: str, target: Path) -> None:
        try:
            member = self.uploads.pin(bucket, key, None)
            if member.size_bytes != file.size_bytes:
                raise InvalidModel(
                    f"{shown(file.path)} has {member.size_bytes} bytes, and manifest.json says {file.size_bytes}",
                    code="SIZE_MISMATCH",
                )
            digest = self.uploads.fetch(member, target)
        except ObjectGone as error:
            raise InvalidModel(
                f"{shown(file.path)} is listed in manifest.json and not there; upload manifest.json last",
                code="FILE_MISSING",
            ) from error
        if digest != file.sha256:
            raise InvalidModel(
                f"the sha256 of {shown(file.path)} is {digest[:16]}…, and manifest.json says {file.sha256[:16]}…",
                code="DIGEST_MISMATCH",
            )

    def _store_manifest(self, manifest: Manifest, directory: Path) -> Blob:
        path = directory / "stored-manifest"
        path.write_bytes(manifest.raw)
        blob = _blob("manifest.json", path)
        self.blobs.store(blob, path)
        return blob


def _unpack_archive(archive: Path, directory: Path) -> Package:
    """Two passes: find the model and the manifest, then the weight files that the model names."""
    inside = directory / "inside"
    inside.mkdir()
    members = extract(archive, lambda _: None)
    models = [member for member in members if member.name.endswith(".onnx")]
    if len(models) != 1:
        raise InvalidModel(
            f"the archive holds {len(models)} .onnx files and has to hold one; export the model to ONNX",
            code="NO_MODEL",
        )
    folder = models[0].name.rpartition("/")[0]
    beside = {_beside(member, folder): member for member in members if _beside(member, folder)}
    first = {models[0].name: "model.onnx"}
    if "manifest.json" in beside:
        if beside["manifest.json"].size_bytes > MANIFEST_BYTES:
            raise InvalidModel(f"manifest.json is over {MANIFEST_BYTES} bytes", code="MANIFEST_TOO_LARGE")
        first[beside["manifest.json"].name] = "manifest.json"
    _extract_some(archive, first, members, inside)
    external = read_onnx(inside / "model.onnx").external
    weights = {beside[name].name: name for name in external if name in beside and is_file_name(name)}
    weights = {member: name for member, name in weights.items() if member not in first}  # a model may name itself
    if "model.onnx" in weights.values():
        raise InvalidModel("a weight file may not be called model.onnx", code="BAD_FILE_NAME")
    _extract_some(archive, weights, members, inside)
    opened = first.keys() | weights.keys()
    manifest = inside / "manifest.json"
    return Package(
        files=[("model.onnx", inside / "model.onnx"), *((name, inside / name) for name in weights.values())],
        manifest=manifest.read_bytes() if manifest.exists() else None,
        ignored=tuple(member.name[:256] for member in members if member.name not in opened),
    )


def _extract_some(archive: Path, wanted: Mapping[str, str], members: list[Member], inside: Path) -> None:
    """Write the members of `wanted` (name in the archive -> name of ours)."""
    if wanted:
        _check_room(sum(member.size_bytes for member in members if member.name in wanted), inside)
        extract(archive, lambda member: inside / wanted[member.name] if member.name in wanted else None)


def _beside(member: Member, folder: str) -> str:
    """The flat name of a member in the folder of the model; empty for the others."""
    parent, _, name = member.name.rpartition("/")
    return name if parent == folder else ""


def _check_listed(file: ListedFile, name: str, names: list[str]) -> None:
    if not all(is_file_name(part) for part in file.path.split("/")):
        raise InvalidModel(
            f"{shown(file.path)} in manifest.json is no relative path of plain names", code="BAD_FILE_NAME"
        )
    if names.count(name) > 1:
        raise InvalidModel(f"manifest.json lists two files called {shown(name)}", code="BAD_FILE_NAME")


def _check_weights(graph: OnnxFile, present: set[str], form: Form) -> None:
    missing = [name for name in graph.external if name not in present]
    if not missing:
        return
    if form is Form.ONNX:
        raise InvalidModel(
            f"the weights are in another file ({shown(missing[0])}): save the model in one file "
            "(save_as_external_data=False), or upload model.tar.gz or parts/ with manifest.json",
            code="WEIGHTS_OUTSIDE",
        )
    raise InvalidModel(
        f"the model's weights {shown(missing[0])} are not in the package beside it", code="WEIGHTS_MISSING"
    )


def _described(signature: Signature, manifest: Manifest) -> Signature:
    """The graph's signature with the manifest's labels.

    Raises:
        InvalidModel: the manifest describes another model; the code is `MANIFEST_MISMATCH`.
    """
    for kind, specs, declared in (
        ("input", signature.inputs, manifest.inputs),
        ("output", signature.outputs, manifest.outputs),
    ):
        names = [spec.name for spec in specs]
        for name, tensor in declared.items():
            if name not in names:
                raise _mismatch(f"{kind} {shown(name)}, and the model has {shown(', '.join(names))}")
            spec = specs[names.index(name)]
            if tensor.datatype not in (None, spec.datatype):
                raise _mismatch(f"{kind} {shown(name)} as {shown(tensor.datatype)}, and the model has {spec.datatype}")
            if tensor.shape is not None and not _agree(tensor.shape, spec.shape):
                raise _mismatch(
                    f"{kind} {shown(name)} with shape {list(tensor.shape)}, and the model has {list(spec.shape)}"
                )
            width = spec.shape[-1] if spec.shape else 1
            if tensor.labels and width not in (DYNAMIC, len(tensor.labels)):
                raise _mismatch(
                    f"{len(tensor.labels)} labels for {kind} {shown(name)}, whose last dimension is {width}"
                )
    labelled = tuple(replace(spec, labels=_labels(manifest, spec.name)) for spec in signature.outputs)
    return replace(signature, outputs=labelled)


def _labels(manifest: Manifest, output: str) -> tuple[str, ...]:
    declared = manifest.outputs.get(output)
    return declared.labels if declared else ()


def _agree(declared: tuple[int, ...], actual: tuple[int, ...]) -> bool:
    return len(declared) == len(actual) and all(
        one == other or DYNAMIC in (one, other) for one, other in zip(declared, actual, strict=True)
    )


def _mismatch(what: str) -> InvalidModel:
    return InvalidModel(f"the manifest describes {what}", code="MANIFEST_MISMATCH")


def _check_room(size_bytes: int, directory: Path) -> None:
    free = shutil.disk_usage(directory).free - ROOM
    if size_bytes > free:
        raise InvalidModel(
            f"the package needs {size_bytes} bytes of temporary storage and {max(free, 0)} are free: "
            "raise the parameter EphemeralStorage",
            code="TOO_LARGE",
        )


def _check_record(version: Version) -> None:
    size = len(
        json.dumps([version.card, version.signature.to_record() if version.signature else None, version.ignored])
    )
    if size > RECORD_BYTES:
        raise InvalidModel(
            f"signature, labels and manifest take {size} of {RECORD_BYTES} bytes: shorten labels or descriptions",
            code="RECORD_TOO_LARGE",
        )


def _blob(name: str, path: Path) -> Blob:
    with path.open("rb") as file:
        return Blob(name, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
