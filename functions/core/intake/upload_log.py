"""Log of recent uploads, through the API or by S3 alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from functions.core.errors import StateConflict, UploadNotFound, shown
from functions.core.intake.announcement import Announcement
from functions.core.intake.status import UploadStatus, status_of
from functions.core.registry.items import model_pk, version_from_item, version_sk
from functions.core.registry.registry import Registry
from functions.core.registry.table import Conflict, Item, Put, Table
from functions.core.registry.version import Source
from functions.core.upload_record import (
    KIND,
    UploadRecord,
    listed_model,
    record_from_item,
    record_to_item,
    upload_id,
    upload_key,
)

ID_LENGTH = 64  # SHA-256 in hexadecimal digits
ROWS_READ = 1000  # index entries that are looked through for one page; they take 200 kB


@dataclass(frozen=True, slots=True)
class UploadLog:
    """Uploads of one bucket, newest first, each with its state.

    Every method raises `Unavailable` if the table or the bucket fails.
    """

    table: Table
    registry: Registry
    bucket: str
    now: Callable[[], str]
    is_stored: Callable[[str], bool]  # argument: an S3 key

    def announce(self, announcement: Announcement, actor: str, expires_at: str) -> UploadRecord:
        """Store the record of an announced upload.

        The same file of the same package is the same upload, with another end.

        Raises:
            StateConflict: the package has this file already.
        """
        upload = upload_id(self.bucket, announcement.key, "")
        stored = self._record(upload)
        if stored and (stored.received_at or self.is_stored(stored.key)):
            raise StateConflict(
                f"file: the package has {shown(announcement.file)} already; leave package out "
                "to begin another"
            )
        record = UploadRecord(
            id=upload,
            model=announcement.model,
            bucket=self.bucket,
            key=announcement.key,
            created_at=stored.created_at if stored else self.now(),
            created_by=actor,
            size_bytes=announcement.size_bytes,
            sha256=announcement.sha256,
            expires_at=expires_at,
        )
        self.table.transact([Put(record_to_item(record), {})])
        return record

    def prolong(self, upload: str, size_bytes: int, sha256: str, expires_at: str) -> UploadRecord:
        """Give an upload of this size and SHA-256 another end.

        Raises:
            UploadNotFound: there is no such upload.
            StateConflict: its file is stored already, or was announced again with other content.
        """
        item, record = self._awaited(upload, size_bytes, sha256)
        later = record_to_item(replace(record, expires_at=expires_at))
        try:
            self.table.transact([Put(later, {"upload": item["upload"]})])
        except Conflict:  # registration has met it meanwhile, or it was announced or prolonged
            _, record = self._awaited(upload, size_bytes, sha256)
        return record

    def read(self, upload: str, sees: Callable[[str], bool]) -> UploadStatus:
        """Return an upload's status.

        Raises:
            UploadNotFound: there is none of a model that `sees` accepts.
        """
        record = self._record(upload) if len(upload) <= ID_LENGTH else None
        if record is None or not sees(record.model):
            raise _unknown(upload)
        [status] = self._statuses([record])
        if status.record.received_at or status.version is not None:
            return status
        is_stored = self.is_stored(record.key)
        return status_of(record, None, None, self.now(), is_stored=is_stored)

    def page(
        self, before: str, limit: int, sees: Callable[[str], bool]
    ) -> tuple[list[UploadStatus], str]:
        """Return a page of visible uploads and the next position.

        `sees` accepts the models of visible uploads.

        A page begins before the position `before`, "" for the newest upload. It may be shorter than
        `limit` although there are more. The next position is "" at the end.
        """
        rows = list(self.table.newest(KIND, before, ROWS_READ))
        ids, position = _visible(rows, limit, sees)
        items = self.table.get([upload_key(upload) for upload in ids]) if ids else []
        records = [record_from_item(item) for item in items if item]
        return self._statuses(records), position

    def _awaited(self, upload: str, size_bytes: int, sha256: str) -> tuple[Item, UploadRecord]:
        """Return item and record of an upload that is not stored yet."""
        [item] = self.table.get([upload_key(upload)])
        if item is None:
            raise _unknown(upload)
        record = record_from_item(item)
        if (record.size_bytes, record.sha256) != (size_bytes, sha256):
            raise StateConflict(
                "the file was announced again with another size or SHA-256: use the URL of that "
                "announcement, or leave package out to begin another"
            )
        if record.received_at or self.is_stored(record.key):
            raise StateConflict(f"the file is stored already: read /uploads/{record.id}")
        return item, record

    def _record(self, upload: str) -> UploadRecord | None:
        [item] = self.table.get([upload_key(upload)])
        return record_from_item(item) if item else None

    def _statuses(self, records: Sequence[UploadRecord]) -> list[UploadStatus]:
        now = self.now()
        uploads = [(record.model, _source(record)) for record in records]
        outcomes = self.registry.lookup_uploads(uploads)
        keys = {
            (model_pk(record.model), version_sk(number))
            for record, (number, _) in zip(records, outcomes, strict=True)
            if number is not None
        }
        items = self.table.get(sorted(keys)) if keys else []
        versions = {
            (item["model"], item["version"]): version_from_item(item) for item in items if item
        }
        return [
            status_of(record, versions.get((record.model, number)), failure, now)
            for record, (number, failure) in zip(records, outcomes, strict=True)
        ]


def _unknown(upload: str) -> UploadNotFound:
    return UploadNotFound(f"there is no upload {shown(upload)} of the last 30 days")


def _source(record: UploadRecord) -> Source:
    return Source(record.bucket, record.key, record.object_version)


def _visible(
    rows: Sequence[Item], limit: int, sees: Callable[[str], bool]
) -> tuple[list[str], str]:
    """Return the ids of visible index entries, and the next position."""
    ids = []
    for row in rows:
        if sees(listed_model(row["listed"])):
            ids.append(row["pk"].partition("#")[2])
            if len(ids) == limit:
                return ids, "" if row is rows[-1] and len(rows) < ROWS_READ else row["listed"]
    return ids, rows[-1]["listed"] if len(rows) == ROWS_READ else ""
