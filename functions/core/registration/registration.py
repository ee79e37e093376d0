"""Registration of uploaded models: claim version, fetch, unpack, build, store, commit.

Each step can be interrupted and repeated: the claim returns the same version for the same object,
blobs are stored under their digest, and the version is committed once. An upload at fault becomes
a REJECTED version with its reason; any other failure is raised, and the queue delivers the upload
again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from functions.core.errors import InvalidModel, shown
from functions.core.names import is_onnx_file
from functions.core.registration.digests import hash_file, open_regular
from functions.core.registration.manifest import ListedFile, Manifest, label_outputs
from functions.core.registration.sandbox_answers import bad_answer
from functions.core.registration.sandbox_protocol import (
    MANIFEST_BYTES,
    Brief,
    Built,
    Sandbox,
    Unpacked,
    check_room,
)
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Reason, Source, State, Version
from functions.core.uploads import Form, Upload, model_and_form

RECORD_BYTES = 300 * 1024  # DynamoDB holds items up to 400 KB
FOLDERS = ("upload", "package", "serving", "documents")


class ObjectGone(Exception):
    """Error for a missing S3 object: deleted, overwritten or never stored."""


@dataclass(frozen=True, slots=True)
class PinnedObject:
    """Exact version of an S3 object, unaffected by later writes."""

    source: Source
    version_id: str | None  # None in a bucket without versions: reads are conditional on the ETag
    size_bytes: int
    written_at: str = ""  # S3's LastModified, in ISO 8601; empty if the object is gone


class Uploads(Protocol):
    """Interface to the S3 bucket of uploads: pin, download and order objects.

    `adapters/aws/s3.py` documents the methods.
    """

    def pin(self, bucket: str, key: str, version_id: str | None) -> PinnedObject: ...
    def fetch(self, pinned: PinnedObject, path: Path) -> None: ...
    def is_newer(self, source: Source, rival: Source) -> bool | None: ...


class BlobStore(Protocol):
    """Interface that stores blobs in the S3 bucket of served models.

    `adapters/aws/s3.py` documents the method.
    """

    def store(self, blob: Blob, path: Path) -> None: ...


@dataclass(slots=True)
class Registration:
    """Service that registers uploads as READY or REJECTED model versions."""

    registry: Registry
    uploads: Uploads
    blobs: BlobStore
    sandbox: Sandbox
    read_manifest: Callable[[bytes], Manifest]  # raises InvalidModel
    memory_mb: int = 3008  # memory of the function that will serve the models
    threads: int = 1  # processors of the function that will serve the models
    run_all: Callable[..., Iterable[None]] = map  # an executor's `map` stores blobs in parallel

    def register(self, upload: Upload) -> Version | None:
        """Register an upload as a READY or REJECTED version of its model.

        Return None if the key is no model's, or if the object is gone and no version of it
        was named.

        Raises:
            InvalidModel: the key looks like a model's and can become no version.
            Unavailable: storage or registry failed; the same upload may be registered later.
        """
        target = model_and_form(upload.key)
        if target is None:
            return None
        model, form = target
        pinned = self._pin(upload)
        if pinned is None:
            return None
        version = self.registry.claim(model, pinned.source)
        if version.state is not State.PENDING:
            return version
        version = replace(version, written_at=pinned.written_at, sequencer=upload.sequencer)
        with tempfile.TemporaryDirectory(prefix="register-") as name:
            result = self._build_or_reject(version, form, pinned, Path(name))
            return self.registry.finish(result, is_newer=self.uploads.is_newer)

    def _pin(self, upload: Upload) -> PinnedObject | None:
        try:
            return self.uploads.pin(upload.bucket, upload.key, upload.version_id)
        except ObjectGone:
            if upload.version_id is None:
                return None
            source = Source(upload.bucket, upload.key, upload.version_id)
            return PinnedObject(source, upload.version_id, size_bytes=0)  # `_fetch` rejects it

    def _build_or_reject(
        self, version: Version, form: Form, pinned: PinnedObject, directory: Path
    ) -> Version:
        try:
            self._fetch(form, pinned, directory)
            return self._build(version, form, directory)
        except ObjectGone:
            text = "the object was deleted before it could be read; upload it again"
            reason = Reason("OBJECT_GONE", text)
        except InvalidModel as error:
            reason = Reason(error.instance_code, str(error))
        return replace(version, state=State.REJECTED, reason=reason)

    def _build(self, version: Version, form: Form, directory: Path) -> Version:
        """Unpack, build and store an uploaded model; return its READY version."""
        unpacked = self.sandbox.unpack(form, directory)
        manifest = self._manifest_of_package(directory / "package") if unpacked.manifest else None
        built = self.sandbox.build(self._brief(unpacked, manifest), directory)
        ready = _ready(version, unpacked, manifest, built, directory)
        _check_record_size(ready)
        self._store(ready, directory)
        return ready

    def _manifest_of_package(self, package: Path) -> Manifest:
        with open_regular(package / "manifest.json") as file:
            raw = file.read(MANIFEST_BYTES + 1)
        _check_manifest_size(len(raw))
        return self.read_manifest(raw)

    def _brief(self, unpacked: Unpacked, manifest: Manifest | None) -> Brief:
        brief = Brief(
            model=unpacked.model,
            weights=unpacked.weights,
            threads=self.threads,
            memory_mb=self.memory_mb,
        )
        if manifest is None:
            return brief
        return replace(
            brief,
            samples=manifest.samples,
            rtol=manifest.rtol,
            atol=manifest.atol,
            variants=manifest.variants,
        )

    def _store(self, version: Version, directory: Path) -> None:
        paths = {blob: directory / "serving" / blob.name for blob in version.files}
        for document in (version.manifest, version.sample):
            if document:
                paths[document] = directory / "documents" / document.name
        list(self.run_all(self.blobs.store, paths.keys(), paths.values()))

    def _fetch(self, form: Form, pinned: PinnedObject, directory: Path) -> None:
        """Download an upload: .onnx file, archive, or manifest.json with listed files.

        They are written to upload/ in `directory`.
        """
        for folder in FOLDERS:
            (directory / folder).mkdir()
        upload = directory / "upload"
        if form is Form.MANIFEST:
            self._fetch_manifest_package(pinned, upload)
        else:
            check_room(pinned.size_bytes, upload)
            name = "model.onnx" if form is Form.ONNX else "archive"
            self.uploads.fetch(pinned, upload / name)

    def _fetch_manifest_package(self, pinned: PinnedObject, upload: Path) -> None:
        _check_manifest_size(pinned.size_bytes)
        path = upload / "manifest.json"
        self.uploads.fetch(pinned, path)
        files = self.read_manifest(path.read_bytes()).files
        _check_listing(files)
        folder = pinned.source.key.rpartition("/")[0]
        keys = [f"{folder}/{file.path}" for file in files]
        self.registry.unlist_ignored(keys)
        for file, key in zip(files, keys, strict=True):
            check_room(file.size_bytes, upload)
            target = upload / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fetch_listed(file, pinned.source.bucket, key, target)

    def _fetch_listed(self, file: ListedFile, bucket: str, key: str, target: Path) -> None:
        name = shown(file.path)
        try:
            pinned = self.uploads.pin(bucket, key, None)
            if pinned.size_bytes != file.size_bytes:
                sizes = f"{pinned.size_bytes} bytes, and manifest.json says {file.size_bytes}"
                raise InvalidModel(f"{name} has {sizes}", code="SIZE_MISMATCH")
            self.uploads.fetch(pinned, target)
        except ObjectGone as error:
            raise InvalidModel(
                f"{name} is listed in manifest.json and not there; upload manifest.json last",
                code="FILE_MISSING",
            ) from error
        sha256 = _sha256(target)
        if sha256 != file.sha256:
            digests = f"{sha256[:16]}…, and manifest.json says {file.sha256[:16]}…"
            raise InvalidModel(f"the sha256 of {name} is {digests}", code="DIGEST_MISMATCH")


def _ready(
    version: Version, unpacked: Unpacked, manifest: Manifest | None, built: Built, directory: Path
) -> Version:
    serving, documents = directory / "serving", directory / "documents"
    _check_no_extra_file(built.files, serving)
    sample = json.dumps(built.sample).encode() if built.sample else None
    return replace(
        version,
        state=State.READY,
        files=tuple(hash_file(serving / name) for name in built.files),
        manifest=_write(documents / "manifest.json", manifest.raw) if manifest else None,
        signature=label_outputs(built.signature, manifest, unpacked.labels),
        graph=unpacked.graph,
        card=manifest.card if manifest else {},
        ignored=unpacked.ignored,
        plan=asdict(built.plan),
        measured=built.measured,
        memory_mb=built.memory_mb,
        notes=(*unpacked.notes, *built.notes),
        sample=_write(documents / "sample.json", sample) if sample else None,
    )


def _check_no_extra_file(names: tuple[str, ...], serving: Path) -> None:
    extra = {entry.name for entry in os.scandir(serving)} - set(names)
    if extra:
        raise bad_answer(f"there is {shown(min(extra))} beside the files it named")


def _write(path: Path, content: bytes) -> Blob:
    path.write_bytes(content)
    return Blob(path.name, hashlib.sha256(content).hexdigest(), len(content))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_manifest_size(size_bytes: int) -> None:
    if size_bytes > MANIFEST_BYTES:
        message = f"manifest.json is over {MANIFEST_BYTES} bytes"
        raise InvalidModel(message, code="MANIFEST_TOO_LARGE")


def _check_listing(files: tuple[ListedFile, ...]) -> None:
    """Check a manifest's file list: one model, relative paths, no duplicates.

    Raises:
        InvalidModel: `NO_MODEL` or `BAD_FILE_NAME`.
    """
    models = [shown(file.path) for file in files if is_onnx_file(file.path)]
    if len(models) != 1:
        names = " and ".join(models[:2]) or "none"
        raise InvalidModel(
            f"manifest.json has to list one .onnx file under `files`, and it lists {names}",
            code="NO_MODEL",
        )
    paths, folders = {"manifest.json"}, set[str]()
    for path in (file.path for file in files):
        if not _is_plain_path(path):
            raise InvalidModel(
                f"{shown(path)} in manifest.json is no relative path of printable names",
                code="BAD_FILE_NAME",
            )
        parents = {str(parent) for parent in PurePosixPath(path).parents} - {"."}
        if path in paths | folders or parents & paths:
            raise InvalidModel(
                f"manifest.json lists itself, or two files, as {shown(path)}", code="BAD_FILE_NAME"
            )
        paths.add(path)
        folders |= parents


def _is_plain_path(path: str) -> bool:
    parts = path.split("/")
    is_plain = all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    return is_plain and path.isprintable() and "\\" not in path


def _check_record_size(version: Version) -> None:
    signature = version.signature.to_record() if version.signature else None
    parts = [version.card, signature, version.ignored, version.notes, dict(version.measured)]
    size = len(json.dumps(parts))
    if size > RECORD_BYTES:
        raise InvalidModel(
            f"signature, labels and manifest take {size} of {RECORD_BYTES} bytes: "
            "shorten labels or descriptions",
            code="RECORD_TOO_LARGE",
        )
