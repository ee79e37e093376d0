"""Objects in S3: uploads, read by their exact version, and blobs, stored once under their digest."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError

from functions.core.errors import Unavailable
from functions.core.registration import ObjectGone, Pinned
from functions.core.registry import Blob

CHUNK = 1024 * 1024
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
        with _translated(bucket):
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
        with _translated(pinned.bucket):
            reply = self._client.get_object(Bucket=pinned.bucket, Key=pinned.key, **wanted)
            return _write(reply["Body"], path, pinned.size_bytes)


class S3Blobs:
    """The serving bucket: `blobs/<aa>/<sha256>`, written once and never changed."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def store(self, blob: Blob, path: Path) -> None:
        """Put the file at `path` under its digest, unless it is there.

        Raises:
            Unavailable: S3 failed; try again.
        """
        with _translated(self._bucket):
            try:
                head = self._client.head_object(Bucket=self._bucket, Key=blob.key)
            except ClientError as error:
                if _code(error) not in _GONE:
                    raise
            else:
                if head["ContentLength"] == blob.size_bytes:
                    return
            self._client.upload_file(
                str(path),
                self._bucket,
                blob.key,
                ExtraArgs={"ChecksumAlgorithm": "SHA256", "Metadata": {"name": blob.name}},
            )

    def fetch(self, blob: Blob, path: Path) -> None:
        """Write the blob to `path`, complete and verified or not at all.

        Raises:
            Unavailable: it could not be read, or what came is not what its digest says; try again.
        """
        part = path.with_name(path.name + ".part")
        try:
            with _translated(self._bucket):
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
def _translated(bucket: str) -> Iterator[None]:
    """S3's words into ours."""
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
    except S3UploadFailedError as error:  # boto3's wrapping of whatever S3 refused
        raise Unavailable(f"the bucket {bucket} cannot be written", code="NOT_WRITTEN") from error
    except BotoCoreError as error:  # connections, timeouts, broken streams
        raise Unavailable("storage cannot be reached; try again") from error


def _code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])
