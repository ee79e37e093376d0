"""The way of an upload: claim a version, fetch that exact object, let the workbench unpack and build it, store, commit.

Every step can be interrupted and done again: the claim gives the same version to the same object, blobs are stored
under their digest, and the commit happens once. A fault of the upload becomes a REJECTED version that says why; a fault
of anything else is raised, and the upload comes again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from functions.core.errors import InvalidModel, shown
from functions.core.names import is_file_name
from functions.core.protocol.signature import DYNAMIC, Signature
from functions.core.registration.digests import Seals, opened
from functions.core.registration.executor import Background, Task
from functions.core.registration.sandbox_protocol import (
    MANIFEST_BYTES,
    Brief,
    Sandbox,
    Unpacked,
    bad_answer,
    check_room,
)
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Reason, Source, State, Version
from functions.core.uploads import Form, Upload, model_and_form

RECORD_BYTES = 300 * 1024  # DynamoDB holds items up to 400 KB
SMALL_BYTES = 8 * 1024 * 1024  # an upload up to this size is fetched while its version is claimed


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


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


class Uploads(Protocol):
    """The artifacts bucket. `adapters/aws/s3.py` documents the methods."""

    def pin(self, bucket: str, key: str, version_id: str | None) -> Pinned: ...
    def fetch(self, pinned: Pinned, path: Path, digest: Digest | None = None) -> None: ...


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
    samples: tuple[Mapping[str, Any], ...] = ()
    rtol: float = 1e-3
    atol: float = 1e-5
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """A tensor as the manifest describes it; the graph has the last word."""

    datatype: str | None = None
    shape: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()


@dataclass(slots=True)
class Registration:
    """Turns uploads into versions."""

    registry: Registry
    uploads: Uploads
    blobs: BlobStore
    sandbox: Sandbox
    read_manifest: Callable[[bytes], Manifest]  # raises InvalidModel
    memory_mb: int = 3008  # of the function that will serve the models
    threads: int = 1  # its processors
    background: Background = field(
        default_factory=Background
    )  # with threads, what can be done at once is

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
        with tempfile.TemporaryDirectory(prefix="register-") as name:
            directory = Path(name)
            fetch = partial(self._fetch, form, pinned, directory)
            early = form is not Form.MANIFEST and pinned.size_bytes <= SMALL_BYTES
            with self.background.start(fetch) if early else Task(fetch) as fetched:
                version = self.registry.claim(
                    model, Source(pinned.bucket, pinned.key, pinned.object_version)
                )
                if version.state is not State.PENDING:
                    return version
                try:
                    fetched.result()
                    done = self._build(version, form, directory)
                except ObjectGone:
                    reason = Reason(
                        "OBJECT_GONE",
                        "the object was deleted before it could be read; upload it again",
                    )
                    done = replace(version, state=State.REJECTED, reason=reason)
                except InvalidModel as error:
                    done = replace(
                        version,
                        state=State.REJECTED,
                        reason=Reason(error.instance_code, str(error)),
                    )
                return self.registry.finish(done)

    def _build(self, version: Version, form: Form, directory: Path) -> Version:
        unpacked = self.sandbox.unpack(form, directory)
        manifest = (
            self.read_manifest(_manifest_in(directory / "package")) if unpacked.manifest else None
        )
        with Seals(directory / "serving", self.background) as seals:
            built = self.sandbox.build(self._brief(unpacked, manifest), directory, seals.begin)
            _check_all_named(built.files, directory / "serving")
            files = tuple(map(seals.blob, built.files))
        stored = [(blob, directory / "serving" / blob.name) for blob in files]
        if manifest:
            stored.append(_written("manifest.json", manifest.raw, directory))
        if built.sample:
            stored.append(_written("sample.json", json.dumps(built.sample).encode(), directory))
        blobs = {blob.name: blob for blob, _ in stored[len(files) :]}
        ready = replace(
            version,
            state=State.READY,
            files=files,
            manifest=blobs.get("manifest.json"),
            signature=_described(built.signature, manifest) if manifest else built.signature,
            graph=unpacked.graph,
            card=manifest.card if manifest else {},
            ignored=unpacked.ignored,
            plan=asdict(built.plan),
            measured=built.measured,
            memory_mb=built.memory_mb,
            notes=built.notes,
            sample=blobs.get("sample.json"),
        )
        _check_record(ready)
        self.background.all(partial(self.blobs.store, blob, path) for blob, path in stored)
        return ready

    def _brief(self, unpacked: Unpacked, manifest: Manifest | None) -> Brief:
        asked = manifest or Manifest(b"", {})
        return Brief(
            unpacked.model,
            unpacked.weights,
            asked.samples,
            asked.rtol,
            asked.atol,
            asked.variants,
            self.threads,
            self.memory_mb,
        )

    def _fetch(self, form: Form, pinned: Pinned, directory: Path) -> None:
        """Write what was uploaded into upload/, unopened: model.onnx, archive, or manifest.json and what it lists."""
        for folder in ("upload", "package", "serving"):
            (directory / folder).mkdir()
        upload = directory / "upload"
        if form is Form.MANIFEST:
            self._fetch_all_listed(pinned, upload)
        else:
            check_room(pinned.size_bytes, upload)
            self.uploads.fetch(pinned, upload / ("model.onnx" if form is Form.ONNX else "archive"))

    def _fetch_all_listed(self, pinned: Pinned, upload: Path) -> None:
        if pinned.size_bytes > MANIFEST_BYTES:
            raise InvalidModel(
                f"manifest.json is over {MANIFEST_BYTES} bytes", code="MANIFEST_TOO_LARGE"
            )
        path = upload / "manifest.json"
        self.uploads.fetch(pinned, path)
        listed = self.read_manifest(path.read_bytes()).files
        names = [file.path.rpartition("/")[2] for file in listed]
        models = [name for name in names if name.endswith(".onnx")]
        if len(models) != 1:
            raise InvalidModel(
                f"manifest.json has to list one .onnx file under `files`; it lists {len(models)}",
                code="NO_MODEL",
            )
        folder = pinned.key.rpartition("/")[0]
        for file, name in zip(listed, names, strict=True):
            _check_listed(file, name, names)
            check_room(file.size_bytes, upload)
            self._fetch_listed(file, pinned.bucket, f"{folder}/{file.path}", upload / name)

    def _fetch_listed(self, file: ListedFile, bucket: str, key: str, target: Path) -> None:
        try:
            member = self.uploads.pin(bucket, key, None)
            if member.size_bytes != file.size_bytes:
                raise InvalidModel(
                    f"{shown(file.path)} has {member.size_bytes} bytes, and manifest.json says {file.size_bytes}",
                    code="SIZE_MISMATCH",
                )
            digest = hashlib.sha256()
            self.uploads.fetch(member, target, digest)
        except ObjectGone as error:
            raise InvalidModel(
                f"{shown(file.path)} is listed in manifest.json and not there; upload manifest.json last",
                code="FILE_MISSING",
            ) from error
        if (found := digest.hexdigest()) != file.sha256:
            raise InvalidModel(
                f"the sha256 of {shown(file.path)} is {found[:16]}…, and manifest.json says {file.sha256[:16]}…",
                code="DIGEST_MISMATCH",
            )


def _check_all_named(names: tuple[str, ...], serving: Path) -> None:
    extra = {entry.name for entry in os.scandir(serving)} - set(names)
    if extra:
        raise bad_answer(f"there is {shown(min(extra))} beside the files it named")


def _written(name: str, content: bytes, directory: Path) -> tuple[Blob, Path]:
    path = directory / f"stored-{name}"
    path.write_bytes(content)
    return Blob(name, hashlib.sha256(content).hexdigest(), len(content)), path


def _manifest_in(package: Path) -> bytes:
    with opened(package / "manifest.json") as file:
        raw = file.read(MANIFEST_BYTES + 1)
    if len(raw) > MANIFEST_BYTES:
        raise InvalidModel(
            f"manifest.json is over {MANIFEST_BYTES} bytes", code="MANIFEST_TOO_LARGE"
        )
    return raw


def _check_listed(file: ListedFile, name: str, names: list[str]) -> None:
    if not all(is_file_name(part) for part in file.path.split("/")):
        raise InvalidModel(
            f"{shown(file.path)} in manifest.json is no relative path of plain names",
            code="BAD_FILE_NAME",
        )
    if names.count(name) > 1 or name == "manifest.json":
        raise InvalidModel(
            f"manifest.json lists itself, or two files, as {shown(name)}", code="BAD_FILE_NAME"
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
                raise _mismatch(
                    f"{kind} {shown(name)}, and the model has {shown(', '.join(names))}"
                )
            spec = specs[names.index(name)]
            if tensor.datatype not in (None, spec.datatype):
                raise _mismatch(
                    f"{kind} {shown(name)} as {shown(tensor.datatype)}, and the model has {spec.datatype}"
                )
            if tensor.shape is not None and not _agree(tensor.shape, spec.shape):
                raise _mismatch(
                    f"{kind} {shown(name)} with shape {list(tensor.shape)}, and the model has {list(spec.shape)}"
                )
            width = spec.shape[-1] if spec.shape else 1
            if tensor.labels and width not in (DYNAMIC, len(tensor.labels)):
                raise _mismatch(
                    f"{len(tensor.labels)} labels for {kind} {shown(name)}, whose last dimension is {width}"
                )
    labelled = tuple(
        replace(spec, labels=_labels(manifest, spec.name)) for spec in signature.outputs
    )
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


def _check_record(version: Version) -> None:
    signature = version.signature.to_record() if version.signature else None
    size = len(
        json.dumps(
            [version.card, signature, version.ignored, version.notes, dict(version.measured)]
        )
    )
    if size > RECORD_BYTES:
        raise InvalidModel(
            f"signature, labels and manifest take {size} of {RECORD_BYTES} bytes: shorten labels or descriptions",
            code="RECORD_TOO_LARGE",
        )
