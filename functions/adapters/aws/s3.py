"""S3 access with boto3: download of uploaded models, storage of served files."""

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from functions.adapters.aws_errors import ErrorKind, classify_response
from functions.adapters.clock import iso, utc_now
from functions.core.errors import Unavailable
from functions.core.registration.uploaded_files import ObjectGone, PinnedObject
from functions.core.registry.version import Blob, Source

CHUNK = 1024 * 1024  # bytes
PART = 8 * CHUNK  # bytes of one request; larger objects take several
CONNECTIONS = 16  # one connection gets about 90 MB/s from S3; boto3's pool needs the same size
OWNER = "ExpectedBucketOwner"
FRESH = timedelta(hours=12)  # half of the reconciler's grace period for unreferenced blobs


def part_bytes(size_bytes: int) -> int:
    """Return the size in bytes of a multipart upload's parts.

    There is one part for each connection, and none is smaller than `PART`.

    >>> part_bytes(20 * PART) / PART, part_bytes(PART + 1) / PART
    (1.25, 1.0)
    """
    return max(PART, -(-size_bytes // CONNECTIONS))


def expect_owner(client: Any, account: str) -> Any:
    """Add the expected bucket owner to every request of an S3 client.

    S3 denies a request whose bucket belongs to another account, e.g. after ours was deleted and
    somebody else took its name. Returns the client.
    """

    def add_owner(params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
        if OWNER in model.input_shape.members:
            params = {OWNER: account, **params}
        return params

    client.meta.events.register("provide-client-params.s3", add_owner)
    return client


class S3Uploads:
    """S3 bucket to which people and training jobs upload models."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def pin(self, bucket: str, key: str, version_id: str | None) -> PinnedObject:
        """Return an S3 object's version and size without downloading it.

        Without `version_id`, of its current version.

        Raises:
            ObjectGone: there is no such object (any more).
            Unavailable: S3 failed; try again.
        """
        selector = {"VersionId": version_id} if version_id else {}
        with translate_errors(bucket):
            head = self._client.head_object(Bucket=bucket, Key=key, **selector)
        source = Source(bucket, key, object_version(head))
        written_at = iso_of(head["LastModified"])
        return PinnedObject(source, _version_id(head), head["ContentLength"], written_at)

    def is_newer(self, source: Source, rival: Source) -> bool | None:
        """Return True if S3 stored version `source` of an object after `rival`.

        Both are versions of one key, of which S3 lists the newest first. A version that is gone
        counts as older: in a bucket without versioning, another has replaced it. Return None if
        both are gone.

        Raises:
            Unavailable: S3 failed; try again.
        """
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=source.bucket, Prefix=source.key
        )
        with translate_errors(source.bucket):
            for listed in (listed for page in pages for listed in page.get("Versions", ())):
                if listed["Key"] != source.key:  # S3 lists `source.key` before longer keys
                    return None
                version = object_version(listed)
                if version in (source.object_version, rival.object_version):
                    return version == source.object_version
        return None

    def history(self, bucket: str, key: str) -> list[PinnedObject | None]:
        """Return an S3 object's two newest versions; None marks a deletion.

        Raises:
            Unavailable: S3 failed; try again.
        """
        with translate_errors(bucket):
            reply = self._client.list_object_versions(Bucket=bucket, Prefix=key, MaxKeys=2)
        versions = [
            PinnedObject(
                Source(bucket, key, object_version(entry)),
                _version_id(entry),
                entry["Size"],
                iso_of(entry["LastModified"]),
            )
            for entry in reply.get("Versions", ())
            if entry["Key"] == key
        ]
        deleted = [entry for entry in reply.get("DeleteMarkers", ()) if entry["Key"] == key]
        return [*versions, *(None for _ in deleted)]

    def fetch(self, pinned: PinnedObject, path: Path) -> None:
        """Download one exact version of an S3 object to a file.

        Raises:
            ObjectGone: it was deleted or, in an unversioned bucket, overwritten meanwhile.
            Unavailable: S3 failed or sent too little; try again.
        """
        with translate_errors(pinned.source.bucket), path.open("wb") as file:
            if pinned.size_bytes > PART:
                self._fetch_parts(pinned, file.fileno())
            else:
                self._fetch_part(pinned, file.fileno(), 0)

    def _fetch_parts(self, pinned: PinnedObject, file: int) -> None:
        """Download a large S3 object in parts, several at a time."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            starts = range(0, pinned.size_bytes, PART)
            parts = [pool.submit(self._fetch_part, pinned, file, start) for start in starts]
            try:
                for part in parts:
                    part.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _fetch_part(self, pinned: PinnedObject, file: int, start: int) -> None:
        reply = self._client.get_object(**self._read_request(pinned, start))
        size = min(PART, pinned.size_bytes - start)
        written = 0
        for chunk in reply["Body"].iter_chunks(CHUNK):
            written += os.pwrite(file, chunk, start + written)
        if written != size:
            raise Unavailable(f"{written} of {size} bytes arrived from storage")

    def _read_request(self, pinned: PinnedObject, start: int) -> dict[str, str]:
        """Return GetObject's parameters for one part of an object's version."""
        request = {"Bucket": pinned.source.bucket, "Key": pinned.source.key}
        if pinned.version_id:
            request["VersionId"] = pinned.version_id
        else:
            request["IfMatch"] = pinned.source.object_version
        if pinned.size_bytes > PART:
            end = min(start + PART, pinned.size_bytes)
            request["Range"] = f"bytes={start}-{end - 1}"
        return request


class S3Blobs:
    """S3 bucket of the files to serve, keyed by their SHA-256.

    Keys are `blobs/<aa>/<sha256>`; the content of a key never changes.
    """

    def __init__(self, client: Any, bucket: str, now: Callable[[], str] = utc_now) -> None:
        self._client = client
        self._bucket = bucket
        self._now = now

    def store(self, blob: Blob, path: Path) -> None:
        """Upload a file to S3 under its SHA-256, unless stored recently.

        Recently means in the last 12 hours. The reconciler (`core/registry/reconciler.py`) may be
        about to delete an older upload. A new upload survives, because the reconciler deletes the
        object version that it has listed.

        Raises:
            Unavailable: S3 failed; try again.
        """
        try:
            with translate_errors(self._bucket):
                if not self._put_new(blob, path) and not self._is_fresh(blob):
                    self._put(blob, path)
        except ObjectGone as error:  # the bucket itself is missing: not the upload's fault
            raise Unavailable(
                f"the bucket {self._bucket} is not there", code="NOT_WRITTEN"
            ) from error

    def _is_fresh(self, blob: Blob) -> bool:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=blob.key)
        except ClientError as error:
            if classify_response(error.response) is not ErrorKind.GONE:
                raise
            return False
        age = datetime.fromisoformat(self._now()) - head["LastModified"]
        return bool(head["ContentLength"] == blob.size_bytes and age < FRESH)

    def _put_new(self, blob: Blob, path: Path) -> bool:
        """Upload a small file unless its key exists; return True if uploaded.

        A HEAD request in advance would take as long.
        """
        if blob.size_bytes > PART:
            return False
        try:
            self._put(blob, path, IfNoneMatch="*")
        except ClientError as error:
            if classify_response(error.response) is not ErrorKind.CHANGED:
                raise
            return False
        return True

    def _put(self, blob: Blob, path: Path, **condition: str) -> None:
        """Upload a file to S3, which verifies its checksum.

        SHA-256 of the file or, in parts, a CRC32 of each part.
        """
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

    def _put_parts(self, blob: Blob, path: Path, options: dict[str, Any]) -> None:
        """Upload a large file to S3 in parallel parts.

        S3 checks a CRC32 of each part; a reader of the blob checks its digest.
        Not with `upload_file`, which wraps S3's errors in one without their code.
        """
        config = TransferConfig(PART, CONNECTIONS, part_bytes(blob.size_bytes))
        with create_transfer_manager(self._client, config) as manager:
            manager.upload(str(path), self._bucket, blob.key, options).result()


def object_version(reply: Mapping[str, Any]) -> str:
    """Return an S3 object's VersionId, or its ETag without versioning.

    `reply` is a HEAD reply or an entry of a listing.
    """
    return _version_id(reply) or str(reply["ETag"]).strip('"')


def iso_of(time: datetime) -> str:
    """Format a boto3 datetime as an ISO 8601 UTC timestamp."""
    return iso(round(time.timestamp() * 1000))


def _version_id(reply: Mapping[str, Any]) -> str | None:
    version_id = reply.get("VersionId")
    return version_id if version_id != "null" else None  # "null": stored before versioning


@contextmanager
def translate_errors(bucket: str) -> Iterator[None]:
    """Convert boto3's S3 errors in a `with` block to Mayfly's exceptions.

    Raises:
        ObjectGone: there is no such object, or it has changed.
        Unavailable: S3 failed or denied access; try again.
    """
    try:
        yield
    except ClientError as error:
        match classify_response(error.response):
            case ErrorKind.GONE | ErrorKind.CHANGED:
                raise ObjectGone from error
            case ErrorKind.DENIED:  # once the policy is corrected, the same upload registers
                raise Unavailable(
                    f"access to the bucket {bucket} is denied", code="ACCESS_DENIED"
                ) from error
            case ErrorKind.TRANSIENT:
                raise Unavailable("storage does not answer; try again") from error
        raise
    except ParamValidationError:  # a bug, which no repetition mends
        raise
    except BotoCoreError as error:  # connection, timeout, broken stream
        raise Unavailable("storage cannot be reached; try again") from error
