"""Paged S3 listings of uploads and served files, for hourly reconciliation."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from functions.adapters.aws.s3 import CHUNK, iso_of, object_version, translate_errors
from functions.core.registration.uploaded_files import ObjectGone
from functions.core.registry.reconciler import StoredObject
from functions.core.registry.version import Blob
from functions.core.uploads import PREFIX


class S3UploadListing:
    """Paged listing of the S3 bucket to which models are uploaded."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def page(self, after: str) -> tuple[list[StoredObject], str]:
        """Return up to 1,000 uploaded object versions and a bookmark for more.

        Those are the versions under models/ that are not deleted. `after` is "" or
        the bookmark of the page before; the new bookmark is "" at the end.

        Raises:
            Unavailable: S3 failed; try again.
        """
        bookmark = json.loads(after) if after else {"deleted": None, "markers": {}}
        with translate_errors(self._bucket):
            reply = self._client.list_object_versions(
                Bucket=self._bucket, Prefix=PREFIX, **bookmark["markers"]
            )
        deleted = {marker["Key"] for marker in reply.get("DeleteMarkers", ()) if marker["IsLatest"]}
        deleted.add(bookmark["deleted"])  # a page may begin in the middle of a key's versions
        uploads = [
            _stored_object(self._bucket, listed)
            for listed in reply.get("Versions", ())
            if listed["Key"] not in deleted
        ]
        if not reply["IsTruncated"]:
            return uploads, ""
        last = reply["NextKeyMarker"]
        following = {"deleted": last if last in deleted else None, "markers": _markers(reply)}
        return uploads, json.dumps(following)


class S3BlobListing:
    """Listing, checking and deletion of served files in a versioned S3 bucket."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def page(self, after: str) -> tuple[list[StoredObject], str]:
        """Return current blobs among 1,000 object versions, and a bookmark for more.

        `after` is "" or the bookmark of the page before; the new bookmark is "" at the end.

        Raises:
            Unavailable: S3 failed; try again.
        """
        markers = json.loads(after) if after else {}
        with translate_errors(self._bucket):
            reply = self._client.list_object_versions(
                Bucket=self._bucket, Prefix="blobs/", **markers
            )
        blobs = [
            _stored_object(self._bucket, listed)
            for listed in reply.get("Versions", ())
            if listed["IsLatest"]
        ]
        return blobs, json.dumps(_markers(reply)) if reply["IsTruncated"] else ""

    def remove(self, stored: StoredObject) -> None:
        """Delete one version of an S3 object; a newer version stays.

        Raises:
            Unavailable: S3 failed; try again.
        """
        with translate_errors(self._bucket):
            self._client.delete_object(
                Bucket=self._bucket, Key=stored.key, VersionId=stored.object_version
            )

    def size(self, blob: Blob) -> int | None:
        """Return a stored blob's size in bytes; None if missing.

        Raises:
            Unavailable: S3 failed; try again.
        """
        try:
            with translate_errors(self._bucket):
                head = self._client.head_object(Bucket=self._bucket, Key=blob.key)
        except ObjectGone:
            return None
        return int(head["ContentLength"])

    def digest(self, blob: Blob) -> str | None:
        """Return the SHA-256 of a blob's stored content; None if missing.

        Raises:
            Unavailable: S3 failed; try again.
        """
        digest = hashlib.sha256()
        try:
            with translate_errors(self._bucket):
                reply = self._client.get_object(Bucket=self._bucket, Key=blob.key)
                for chunk in reply["Body"].iter_chunks(CHUNK):
                    digest.update(chunk)
        except ObjectGone:
            return None
        return digest.hexdigest()


def _markers(reply: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters for the next page of an S3 listing."""
    markers = {"KeyMarker": reply["NextKeyMarker"]}
    if reply.get("NextVersionIdMarker"):
        markers["VersionIdMarker"] = reply["NextVersionIdMarker"]
    return markers


def _stored_object(bucket: str, listed: Mapping[str, Any]) -> StoredObject:
    stored_at = iso_of(listed["LastModified"])
    return StoredObject(bucket, listed["Key"], object_version(listed), stored_at)
