"""What lies in the two buckets, for the reconciler: page by page, however much it is."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from functions.adapters.aws.s3 import CHUNK, translated
from functions.core.registration.registration import ObjectGone
from functions.core.registry.reconciler import StoredBlob, StoredUpload
from functions.core.registry.version import Blob
from functions.core.uploads import PREFIX


class S3UploadShelf:
    """`core.reconciliation.UploadShelf`: the artifacts bucket."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def page(self, after: str) -> tuple[list[StoredUpload], str]:
        """Up to 1,000 object versions under models/ that nobody has deleted, and where to go on; "" at the end.

        Raises:
            Unavailable: S3 failed; try again.
        """
        place = json.loads(after) if after else {"deleted": None, "markers": {}}
        with translated(self._bucket):
            reply = self._client.list_object_versions(
                Bucket=self._bucket, Prefix=PREFIX, **place["markers"]
            )
        deleted = {marker["Key"] for marker in reply.get("DeleteMarkers", ()) if marker["IsLatest"]}
        deleted.add(place["deleted"])  # the page may begin in the middle of a key's versions
        found = [
            StoredUpload(one["Key"], _identity(one), _moment(one["LastModified"]))
            for one in reply.get("Versions", ())
            if one["Key"] not in deleted
        ]
        if not reply["IsTruncated"]:
            return found, ""
        markers = {"KeyMarker": reply["NextKeyMarker"]}
        if reply.get("NextVersionIdMarker"):
            markers["VersionIdMarker"] = reply["NextVersionIdMarker"]
        last = reply["NextKeyMarker"]
        return found, json.dumps({"deleted": last if last in deleted else None, "markers": markers})


class S3BlobShelf:
    """`core.reconciliation.BlobShelf`: the serving bucket, which has to be versioned."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def page(self, after: str) -> tuple[list[StoredBlob], str]:
        """Up to 1,000 object versions, the current ones among them returned, and where to go on; "" at the end.

        Raises:
            Unavailable: S3 failed; try again.
        """
        markers = json.loads(after) if after else {}
        with translated(self._bucket):
            reply = self._client.list_object_versions(
                Bucket=self._bucket, Prefix="blobs/", **markers
            )
        found = [
            StoredBlob(one["Key"], _moment(one["LastModified"]), one["VersionId"])
            for one in reply.get("Versions", ())
            if one["IsLatest"]
        ]
        if not reply["IsTruncated"]:
            return found, ""
        markers = {"KeyMarker": reply["NextKeyMarker"]}
        if reply.get("NextVersionIdMarker"):
            markers["VersionIdMarker"] = reply["NextVersionIdMarker"]
        return found, json.dumps(markers)

    def remove(self, stored: StoredBlob) -> None:
        """Remove exactly this object version for good; one that was put meanwhile stays.

        Raises:
            Unavailable: S3 failed; try again.
        """
        with translated(self._bucket):
            self._client.delete_object(Bucket=self._bucket, Key=stored.key, VersionId=stored.handle)

    def size(self, blob: Blob) -> int | None:
        """The size of what is stored; None where nothing is.

        Raises:
            Unavailable: S3 failed; try again.
        """
        try:
            with translated(self._bucket):
                return int(
                    self._client.head_object(Bucket=self._bucket, Key=blob.key)["ContentLength"]
                )
        except ObjectGone:
            return None

    def digest(self, blob: Blob) -> str | None:
        """The SHA-256 of what is stored, read to its end; None where nothing is.

        Raises:
            Unavailable: S3 failed; try again.
        """
        digest = hashlib.sha256()
        try:
            with translated(self._bucket):
                reply = self._client.get_object(Bucket=self._bucket, Key=blob.key)
                for chunk in reply["Body"].iter_chunks(CHUNK):
                    digest.update(chunk)
        except ObjectGone:
            return None
        return digest.hexdigest()


def _identity(listed: Any) -> str:
    """What `Pinned.object_version` is of a listed object version."""
    version_id = listed.get("VersionId")
    return str(version_id if version_id and version_id != "null" else listed["ETag"].strip('"'))


def _moment(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
