"""Download of uploaded files from S3, with size and digest checks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from functions.core.errors import InvalidModel, shown
from functions.core.names import PATH_BYTES
from functions.core.registration.manifest import ListedFile
from functions.core.registration.sandbox_protocol import check_room
from functions.core.registration.side_weights import WeightsMissing, only_version
from functions.core.registry.version import Source


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
    """Interface to the S3 upload bucket: pin, download and order object versions.

    `adapters/aws/s3.py` documents the methods.
    """

    def pin(self, bucket: str, key: str, version_id: str | None) -> PinnedObject: ...
    def fetch(self, pinned: PinnedObject, path: Path) -> None: ...
    def is_newer(self, source: Source, rival: Source) -> bool | None: ...
    def history(self, bucket: str, key: str) -> list[PinnedObject | None]: ...


def key_beside(key: str, path: str) -> str:
    """Resolve a path relative to an S3 key's folder.

    >>> key_beside("models/a/1/manifest.json", "parts/w.bin")
    'models/a/1/parts/w.bin'
    """
    return f"{key.rpartition('/')[0]}/{path}"


def fetch_listed(uploads: Uploads, file: ListedFile, manifest: Source, upload: Path) -> None:
    """Download a file that manifest.json lists; check its size and SHA-256.

    Raises:
        InvalidModel: `FILE_MISSING`, `SIZE_MISMATCH`, `DIGEST_MISMATCH` or `TOO_LARGE`.
    """
    check_room(file.size_bytes, upload)
    name, key, target = shown(file.path), key_beside(manifest.key, file.path), upload / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if len(key.encode()) > PATH_BYTES:
            raise ObjectGone
        pinned = uploads.pin(manifest.bucket, key, None)
        if pinned.size_bytes != file.size_bytes:
            sizes = f"{pinned.size_bytes} bytes, and manifest.json says {file.size_bytes}"
            raise InvalidModel(f"{name} has {sizes}", code="SIZE_MISMATCH")
        uploads.fetch(pinned, target)
    except ObjectGone as error:
        raise InvalidModel(
            f"{name} is listed in manifest.json and not there; upload manifest.json last",
            code="FILE_MISSING",
        ) from error
    sha256 = _sha256(target)
    if sha256 != file.sha256:
        digests = f"{sha256[:16]}…, and manifest.json says {file.sha256[:16]}…"
        raise InvalidModel(f"the sha256 of {name} is {digests}", code="DIGEST_MISMATCH")


def fetch_weights(
    uploads: Uploads, model: PinnedObject, paths: Sequence[str], upload: Path
) -> tuple[str, ...]:
    """Download a model's weight files from its S3 folder; describe each one.

    Raises:
        WeightsMissing: they may still arrive.
        InvalidModel: `WEIGHTS_AMBIGUOUS` or `TOO_LARGE`.
    """
    bucket, key = model.source.bucket, model.source.key
    model_history = uploads.history(bucket, key)
    if model.version_id is None:  # without versioning, an earlier upload leaves no trace
        model_history *= 2
    notes = []
    for path in paths:
        weights_key, target = key_beside(key, path), upload / path
        is_possible = len(weights_key.encode()) <= PATH_BYTES
        history = uploads.history(bucket, weights_key) if is_possible else []
        weights = only_version(path, model_history, history)
        if weights is None:
            raise WeightsMissing(path)
        check_room(weights.size_bytes, upload)
        target.parent.mkdir(parents=True, exist_ok=True)
        uploads.fetch(weights, target)
        notes.append(f"Weights: {path}, object version {weights.source.object_version}.")
    return tuple(notes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
