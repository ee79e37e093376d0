"""Objects in S3: uploads, read by their exact version, and blobs, stored once under their digest."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from functions.adapters.clock import utc_now
from functions.core.errors import Unavailable
from functions.core.registration import ObjectGone, Pinned
from functions.core.registry import Blob

CHUNK = 1024 * 1024
PART = 8 * CHUNK  # of a large upload, fetched
CONNECTIONS = 8  # at a time
FRESH = timedelta(hours=12)  # half of the reconciler's grace for blobs that no version has
_DELETED = {"405", "MethodNotAllowed"}  # a delete marker
_GONE = {"404", "NoSuchBucket", "NoSuchKey", "NoSuchVersion", "NotFound"} | _DELETED
_KEPT_AWAY = {"403", "AccessDenied"}
_BUSY = {"SlowDown", "Throttling", "RequestTimeout"}
_CHANGED = {"PreconditionFailed", "412"}


class S3Uploads:
    """`core.registration.Uploads`: what people and training jobs put into the artifacts bucket."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def pin(self, bucket: str, key: str, version_id: str | None) -> Pinned:
        """The version, size and identity of an object: of `version_id`, or of the current one.

        Raises:
            ObjectGone: there is no such object (any more).
            Unavailable: S3 failed; try again.
        """
        wanted = {"VersionId": version_id} if version_id else {}
        with translated(bucket):
            head = self._client.head_object(Bucket=bucket, Key=key, **wanted)
        found = head.get("VersionId")
        versioned = found if found and found != "null" else None
        return Pinned(bucket, key, versioned, versioned or head["ETag"].strip('"'), head["ContentLength"])

    def fetch(self, pinned: Pinned, path: Path) -> str:
        """Write exactly that object to `path`. Returns its SHA-256.

        Raises:
            ObjectGone: it was deleted or, in an unversioned bucket, overwritten meanwhile.
            Unavailable: S3 failed or sent too little; try again.
        """
        wanted = {"VersionId": pinned.version_id} if pinned.version_id else {"IfMatch": pinned.object_version}
        with translated(pinned.bucket):
            if pinned.size_bytes > PART:
                return self._fetch_parts(pinned, wanted, path)
            reply = self._client.get_object(Bucket=pinned.bucket, Key=pinned.key, **wanted)
            return _write(reply["Body"], path, pinned.size_bytes)

    def _fetch_parts(self, pinned: Pinned, wanted: Mapping[str, str], path: Path) -> str:
        """As many parts at a time as there are connections: one gets about 90 MB/s from S3. Hashed as they come."""
        digest = hashlib.sha256()
        with path.open("w+b") as file, ThreadPoolExecutor(CONNECTIONS) as pool:
            parts = [
                (start, pool.submit(self._fetch_part, pinned, wanted, file.fileno(), start))
                for start in range(0, pinned.size_bytes, PART)
            ]
            try:
                for start, part in parts:
                    digest.update(os.pread(file.fileno(), part.result(), start))
            finally:
                pool.shutdown(cancel_futures=True)
        return digest.hexdigest()

    def _fetch_part(self, pinned: Pinned, wanted: Mapping[str, str], file: int, start: int) -> int:
        size = min(PART, pinned.size_bytes - start)
        reply = self._client.get_object(
            Bucket=pinned.bucket, Key=pinned.key, Range=f"bytes={start}-{start + size - 1}", **wanted
        )
        content = reply["Body"].read()
        if len(content) != size:
            raise Unavailable(f"{len(content)} of {size} bytes arrived from storage")
        os.pwrite(file, content, start)
        return size


class S3Blobs:
    """The serving bucket: `blobs/<aa>/<sha256>`, content that never changes."""

    def __init__(self, client: Any, bucket: str, now: Callable[[], str] = utc_now) -> None:
        self._client = client
        self._bucket = bucket
        self._now = now

    def store(self, blob: Blob, path: Path) -> None:
        """Put the file at `path` under its digest, unless it has been there for less than half a day.

        An older one may be about to be collected (`core/reconciliation.py`), and what is put anew is not: the bucket is
        versioned, and the reconciler removes the object version that it saw.

        Raises:
            Unavailable: S3 failed; try again.
        """
        try:
            with translated(self._bucket):
                if not self._is_fresh(blob):
                    self._put(blob, path)
        except ObjectGone as error:  # not the upload's fault: the bucket itself is missing
            raise Unavailable(f"the bucket {self._bucket} is not there", code="NOT_WRITTEN") from error

    def _is_fresh(self, blob: Blob) -> bool:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=blob.key)
        except ClientError as error:
            if _code(error) not in _GONE:
                raise
            return False
        age = datetime.fromisoformat(self._now()) - head["LastModified"]
        return bool(head["ContentLength"] == blob.size_bytes and age < FRESH)

    def _put(self, blob: Blob, path: Path) -> None:
        extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {"name": blob.name}}
        with path.open("rb") as file:  # upload_file would wrap S3's errors in one without their code
            self._client.upload_fileobj(file, self._bucket, blob.key, ExtraArgs=extra)

    def fetch(self, blob: Blob, path: Path) -> None:
        """Write the blob to `path`, complete and verified or not at all.

        Raises:
            Unavailable: it could not be read, or what came is not what its digest says; try again.
        """
        part = path.with_name(path.name + ".part")
        try:
            with translated(self._bucket):
                reply = self._client.get_object(Bucket=self._bucket, Key=blob.key)
                digest = _write(reply["Body"], part, blob.size_bytes)
            if digest != blob.sha256:
                raise Unavailable("a model file arrived corrupted from storage", code="BLOB_CORRUPTED")
            part.replace(path)
        except ObjectGone as error:
            raise Unavailable("a model file is missing in storage", code="BLOB_MISSING") from error
        finally:
            part.unlink(missing_ok=True)


def _write(body: Any, path: Path, size_bytes: int) -> str:
    digest = hashlib.sha256()
    written = 0
    with path.open("wb") as file:
        for chunk in body.iter_chunks(CHUNK):
            digest.update(chunk)
            written += file.write(chunk)
    if written != size_bytes:
        raise Unavailable(f"{written} of {size_bytes} bytes arrived from storage")
    return digest.hexdigest()


@contextmanager
def translated(bucket: str) -> Iterator[None]:
    """S3's words into ours.

    Raises:
        ObjectGone: there is no such object, or it has changed.
        Unavailable: S3 failed, or lets nobody in; try again.
    """
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in _GONE | _CHANGED:
            raise ObjectGone from error
        if code in _KEPT_AWAY:  # a policy to mend, then the same upload registers
            raise Unavailable(f"access to the bucket {bucket} is denied", code="ACCESS_DENIED") from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        if status >= 500 or code in _BUSY:
            raise Unavailable("storage does not answer; try again") from error
        raise
    except BotoCoreError as error:  # connections, timeouts, broken streams
        raise Unavailable("storage cannot be reached; try again") from error


def _code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])
