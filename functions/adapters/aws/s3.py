"""Objects in S3: uploads, read by their exact version, and blobs, stored once under their digest."""

import base64
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
from functions.core.registration.registration import Digest, ObjectGone, Pinned
from functions.core.registry.version import Blob

CHUNK = 1024 * 1024
PART = 8 * CHUNK  # of what is larger; one request each
CONNECTIONS = 16  # at a time: one gets about 90 MB/s from S3. The client's pool has to hold them
FRESH = timedelta(hours=12)  # half of the reconciler's grace for blobs that no version has
_DELETED = {"405", "MethodNotAllowed"}  # a delete marker
_GONE = {"404", "NoSuchBucket", "NoSuchKey", "NoSuchVersion", "NotFound"} | _DELETED
_KEPT_AWAY = {"403", "AccessDenied"}
_BUSY = {"SlowDown", "Throttling", "RequestTimeout"}
_CHANGED = {"PreconditionFailed", "412"}
_TAKEN = _CHANGED | {
    "ConditionalRequestConflict"
}  # somebody put it already, or does at this moment


def part_bytes(size_bytes: int) -> int:
    """How large the parts of a large blob are.

    >>> part_bytes(20 * PART) / PART, part_bytes(PART + 1) / PART
    (1.25, 1.0)
    """
    return max(PART, -(-size_bytes // CONNECTIONS))


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
        return Pinned(
            bucket, key, versioned, versioned or head["ETag"].strip('"'), head["ContentLength"]
        )

    def fetch(self, pinned: Pinned, path: Path, digest: Digest | None = None) -> None:
        """Write exactly that object to `path`, and tell its bytes to `digest`.

        Raises:
            ObjectGone: it was deleted or, in an unversioned bucket, overwritten meanwhile.
            Unavailable: S3 failed or sent too little; try again.
        """
        wanted = (
            {"VersionId": pinned.version_id}
            if pinned.version_id
            else {"IfMatch": pinned.object_version}
        )
        with translated(pinned.bucket):
            if pinned.size_bytes > PART:
                self._fetch_parts(pinned, wanted, path, digest)
                return
            reply = self._client.get_object(Bucket=pinned.bucket, Key=pinned.key, **wanted)
            _write(reply["Body"], path, pinned.size_bytes, digest)

    def _fetch_parts(
        self, pinned: Pinned, wanted: Mapping[str, str], path: Path, digest: Digest | None
    ) -> None:
        """As many parts at a time as there are connections. `digest` gets them as they come."""
        with path.open("w+b") as file, ThreadPoolExecutor(CONNECTIONS) as pool:
            parts = [
                (start, pool.submit(self._fetch_part, pinned, wanted, file.fileno(), start))
                for start in range(0, pinned.size_bytes, PART)
            ]
            try:
                for start, part in parts:
                    size = part.result()
                    if digest is not None:
                        digest.update(os.pread(file.fileno(), size, start))
            finally:
                pool.shutdown(cancel_futures=True)

    def _fetch_part(self, pinned: Pinned, wanted: Mapping[str, str], file: int, start: int) -> int:
        size = min(PART, pinned.size_bytes - start)
        reply = self._client.get_object(
            Bucket=pinned.bucket,
            Key=pinned.key,
            Range=f"bytes={start}-{start + size - 1}",
            **wanted,
        )
        written = 0
        for chunk in reply["Body"].iter_chunks(CHUNK):
            written += os.pwrite(file, chunk, start + written)
        if written != size:
            raise Unavailable(f"{written} of {size} bytes arrived from storage")
        return size


class S3Blobs:
    """The serving bucket: `blobs/<aa>/<sha256>`, content that never changes."""

    def __init__(self, client: Any, bucket: str, now: Callable[[], str] = utc_now) -> None:
        self._client = client
        self._bucket = bucket
        self._now = now

    def store(self, blob: Blob, path: Path) -> None:
        """Put the file at `path` under its digest, unless it has been there for less than half a day.

        An older one may be about to be collected (`core/registry/reconciler.py`), and what is put anew is not: the bucket is
        versioned, and the reconciler removes the object version that it saw.

        Raises:
            Unavailable: S3 failed; try again.
        """
        try:
            with translated(self._bucket):
                if not self._put_new(blob, path) and not self._is_fresh(blob):
                    self._put(blob, path)
        except ObjectGone as error:  # not the upload's fault: the bucket itself is missing
            raise Unavailable(
                f"the bucket {self._bucket} is not there", code="NOT_WRITTEN"
            ) from error

    def _is_fresh(self, blob: Blob) -> bool:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=blob.key)
        except ClientError as error:
            if _code(error) not in _GONE:
                raise
            return False
        age = datetime.fromisoformat(self._now()) - head["LastModified"]
        return bool(head["ContentLength"] == blob.size_bytes and age < FRESH)

    def _put_new(self, blob: Blob, path: Path) -> bool:
        """Put a small blob unless it is there: a question before would take as long."""
        if blob.size_bytes > PART:
            return False
        try:
            self._put(blob, path, IfNoneMatch="*")
        except ClientError as error:
            if _code(error) not in _TAKEN:
                raise
            return False
        return True

    def _put(self, blob: Blob, path: Path, **condition: str) -> None:
        """S3 compares what arrives with the digest or, where it comes in parts, with a checksum of each."""
        metadata = {"name": blob.name}
        if blob.size_bytes > PART:
            self._put_parts(blob, path, {"ChecksumAlgorithm": "CRC32", "Metadata": metadata})
            return
        sha256 = base64.b64encode(bytes.fromhex(blob.sha256)).decode()
        with path.open("rb") as file:
            self._client.put_object(
                Bucket=self._bucket,
                Key=blob.key,
                Body=file,
                ChecksumSHA256=sha256,
                Metadata=metadata,
                **condition,
            )

    def _put_parts(self, blob: Blob, path: Path, extra: Mapping[str, Any]) -> None:
        """As many parts as connections, so that none has to wait. Whoever fetches the blob compares the digest."""
        from boto3.s3.transfer import (  # `infer` puts nothing
            TransferConfig,
            create_transfer_manager,
        )

        config = TransferConfig(PART, CONNECTIONS, part_bytes(blob.size_bytes))
        # not `upload_file`, which wraps S3's errors in one without their code
        with create_transfer_manager(self._client, config) as manager:
            manager.upload(str(path), self._bucket, blob.key, extra).result()

    def fetch(self, blob: Blob, path: Path) -> None:
        """Write the blob to `path`, complete and verified or not at all.

        Raises:
            Unavailable: it could not be read, or what came is not what its digest says; try again.
        """
        part = path.with_name(path.name + ".part")
        try:
            with translated(self._bucket):
                reply = self._client.get_object(Bucket=self._bucket, Key=blob.key)
                digest = hashlib.sha256()
                _write(reply["Body"], part, blob.size_bytes, digest)
            if digest.hexdigest() != blob.sha256:
                raise Unavailable(
                    "a model file arrived corrupted from storage", code="BLOB_CORRUPTED"
                )
            part.replace(path)
        except ObjectGone as error:
            raise Unavailable("a model file is missing in storage", code="BLOB_MISSING") from error
        finally:
            part.unlink(missing_ok=True)


def _write(body: Any, path: Path, size_bytes: int, digest: Digest | None) -> None:
    written = 0
    with path.open("wb") as file:
        for chunk in body.iter_chunks(CHUNK):
            if digest is not None:
                digest.update(chunk)
            written += file.write(chunk)
    if written != size_bytes:
        raise Unavailable(f"{written} of {size_bytes} bytes arrived from storage")


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
            raise Unavailable(
                f"access to the bucket {bucket} is denied", code="ACCESS_DENIED"
            ) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        if status >= 500 or code in _BUSY:
            raise Unavailable("storage does not answer; try again") from error
        raise
    except BotoCoreError as error:  # connections, timeouts, broken streams
        raise Unavailable("storage cannot be reached; try again") from error


def _code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])
