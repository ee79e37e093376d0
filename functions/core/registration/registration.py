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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from functions.core.errors import InvalidModel, Unavailable, shown
from functions.core.registration.digests import hash_files, open_regular
from functions.core.registration.manifest import Manifest, check_listing, label_outputs
from functions.core.registration.sandbox_answers import BAD_ANSWER, bad_answer
from functions.core.registration.sandbox_protocol import (
    MANIFEST_BYTES,
    Brief,
    Built,
    Sandbox,
    Unpacked,
    check_room,
)
from functions.core.registration.side_weights import (
    RECEIVES,
    WeightsMissing,
    model_key,
    replaced,
)
from functions.core.registration.uploaded_files import (
    ObjectGone,
    PinnedObject,
    Uploads,
    fetch_listed,
    fetch_weights,
    key_beside,
)
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Reason, ReleaseRule, Source, State, Version
from functions.core.uploads import Form, Upload, model_and_form

RECORD_BYTES = 300 * 1024  # DynamoDB holds items up to 400 KB
FOLDERS = ("upload", "package", "assets", "serving")  # the sandbox writes to these


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
    language_memory_mb: int = 3008  # memory of the function that will serve language models
    threads: int = 1  # processors of the function that will serve the models
    run_all: Callable[..., Iterable[None]] = map  # an executor's `map` stores blobs in parallel
    release: ReleaseRule | None = None  # applies the models' policies

    def register(self, upload: Upload) -> Version | None:
        """Register an upload as a READY or REJECTED version of its model.

        Return None if the key is no model's, or if the object is gone and no version of it
        was named.

        Raises:
            InvalidModel: the key looks like a model's and can become no version.
            Unavailable: storage or registry failed; the same upload may be registered later.
        """
        weighted = model_key(upload.key)
        if weighted is not None:
            return self._resume(upload, weighted)
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
            return self.registry.finish(
                result, is_newer=self.uploads.is_newer, release=self.release
            )

    def _resume(self, weights: Upload, key: str) -> Version | None:
        """Register the model at an S3 key after its weights file arrived.

        Return None if there is no such model yet, or its registration has ended.

        Raises:
            InvalidModel: it ended with other weights; the code is `WEIGHTS_AMBIGUOUS`.
        """
        target, pinned = model_and_form(key), self._pin(Upload(weights.bucket, key))
        if target is None or pinned is None:
            return None
        [(number, _)] = self.registry.lookup_uploads([(target[0], pinned.source)])
        version = self.registry.version(target[0], number) if number else None
        if version is None or version.state is State.PENDING:
            return self.register(Upload(weights.bucket, key, pinned.version_id))
        if len(self.uploads.history(weights.bucket, weights.key)) > 1:
            raise replaced(weights.key.rpartition("/")[2])
        return None

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
            return self._build(version, form, pinned, directory)
        except ObjectGone:
            text = "the object was deleted before it could be read; upload it again"
            reason = Reason("OBJECT_GONE", text)
        except InvalidModel as error:
            reason = Reason(error.instance_code, str(error))
            self.sandbox.suspect |= reason.code == BAD_ANSWER
        return replace(version, state=State.REJECTED, reason=reason)

    def _build(
        self, version: Version, form: Form, pinned: PinnedObject, directory: Path
    ) -> Version:
        """Unpack, build and store an uploaded model; return its READY version."""
        unpacked = self.sandbox.unpack(form, directory)
        if unpacked.outside:
            return self._build_with_weights(version, form, pinned, unpacked.outside)
        return self._build_unpacked(version, unpacked, directory)

    def _build_with_weights(
        self, version: Version, form: Form, pinned: PinnedObject, paths: Sequence[str]
    ) -> Version:
        """Download a model's weight files into a fresh directory and build it."""
        with tempfile.TemporaryDirectory(prefix="register-") as name:
            directory = Path(name)
            self._fetch(form, pinned, directory)
            notes = self._fetch_weights(version, pinned, paths, directory / "upload")
            unpacked = self.sandbox.unpack(form, directory)
            if unpacked.outside:
                raise bad_answer("it asked for weights twice")
            return self._build_unpacked(replace(version, notes=notes), unpacked, directory)

    def _build_unpacked(self, version: Version, unpacked: Unpacked, directory: Path) -> Version:
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
            assets=unpacked.assets,
            threads=self.threads,
            memory_mb=self.memory_mb,
            language_memory_mb=self.language_memory_mb,
        )
        if manifest is None:
            return brief
        return replace(
            brief,
            samples=manifest.samples,
            rtol=manifest.rtol,
            atol=manifest.atol,
            variants=manifest.variants,
            language=manifest.language,
        )

    def _store(self, version: Version, directory: Path) -> None:
        paths = {blob: directory / "serving" / blob.name for blob in version.files}
        paths |= {blob: directory / "assets" / blob.name for blob in version.assets}
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

    def _fetch_weights(
        self, version: Version, model: PinnedObject, paths: Sequence[str], upload: Path
    ) -> tuple[str, ...]:
        """Download a model's weight files from S3; return messages for the uploader.

        Raises:
            InvalidModel: they may not belong to the model, or did not arrive in time.
            Unavailable: they may still arrive; the version's reason names them.
        """
        try:
            return fetch_weights(self.uploads, model, paths, upload)
        except WeightsMissing as error:
            if version.attempts >= RECEIVES:
                raise
            reason = Reason(error.instance_code, str(error))
            self.registry.postpone(version, reason)
            raise Unavailable(reason.message, code=reason.code) from error

    def _fetch_manifest_package(self, pinned: PinnedObject, upload: Path) -> None:
        _check_manifest_size(pinned.size_bytes)
        path = upload / "manifest.json"
        self.uploads.fetch(pinned, path)
        files = self.read_manifest(path.read_bytes()).files
        check_listing(files)
        self.registry.unlist_ignored([key_beside(pinned.source.key, file.path) for file in files])
        for file in files:
            fetch_listed(self.uploads, file, pinned.source, upload)


def _ready(
    version: Version, unpacked: Unpacked, manifest: Manifest | None, built: Built, directory: Path
) -> Version:
    serving, documents = directory / "serving", directory / "documents"
    assets = directory / "assets"
    _check_no_extra_file(built.files, serving)
    _check_no_extra_file(built.assets, assets)
    _make_folder(documents)
    sample = json.dumps(built.sample).encode() if built.sample else None
    return replace(
        version,
        state=State.READY,
        files=hash_files([serving / name for name in built.files]),
        manifest=_write(documents / "manifest.json", manifest.raw) if manifest else None,
        signature=label_outputs(built.signature, manifest, unpacked.labels),
        graph=unpacked.graph,
        card=manifest.card if manifest else {},
        ignored=unpacked.ignored,
        plan=asdict(built.plan),
        measured=built.measured,
        memory_mb=built.memory_mb,
        language=built.language,
        assets=hash_files([assets / name for name in built.assets]),
        reason=None,
        notes=(*unpacked.notes, *built.notes, *version.notes),
        sample=_write(documents / "sample.json", sample) if sample else None,
    )


def _check_no_extra_file(names: tuple[str, ...], folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise bad_answer(f"{folder.name}/ is no directory any more")
    extra = {entry.name for entry in os.scandir(folder)} - set(names)
    if extra:
        raise bad_answer(f"there is {shown(min(extra))} beside the files it named")


def _make_folder(folder: Path) -> None:
    """Create a folder; refuse the upload if the sandbox made it.

    Raises:
        InvalidModel: the sandbox left something of that name.
    """
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise bad_answer(f"it made {folder.name}/ itself") from error


def _write(path: Path, content: bytes) -> Blob:
    path.write_bytes(content)
    return Blob(path.name, hashlib.sha256(content).hexdigest(), len(content))


def _check_manifest_size(size_bytes: int) -> None:
    if size_bytes > MANIFEST_BYTES:
        message = f"manifest.json is over {MANIFEST_BYTES} bytes"
        raise InvalidModel(message, code="MANIFEST_TOO_LARGE")


def _check_record_size(version: Version) -> None:
    signature = version.signature.to_record() if version.signature else None
    facts = [dict(version.measured), version.language]
    parts = [version.card, signature, version.ignored, version.notes, *facts]
    size = len(json.dumps(parts))
    if size > RECORD_BYTES:
        raise InvalidModel(
            f"signature, labels and manifest take {size} of {RECORD_BYTES} bytes: "
            "shorten labels or descriptions",
            code="RECORD_TOO_LARGE",
        )
