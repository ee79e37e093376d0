"""Hourly reconciler of lost uploads, dead workers, damaged and unreferenced blobs.

It repairs what no event repairs: lost events, workers that died, blobs without a reference, and
blobs that are missing or altered. Each run does a bounded part of every task and leaves a
bookmark; the next run continues there, and starts over after the end. The reconciler makes no
decision that belongs to a registration: a lost upload is sent to the queue that S3's events go
to, where the same rules make one version of it however often it is delivered.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import quote_plus

from functions.core.errors import MESSAGE_LIMIT, InvalidModel, Unavailable
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Failure, Reason, Source, State, Version
from functions.core.uploads import model_and_form

ACTOR = "reconcile"
CHUNK = 50  # versions between two checks of the remaining time
_BLOB_KEY = re.compile(r"blobs/[0-9a-f]{2}/([0-9a-f]{64})", re.ASCII)
# An ETag stands for the object version in a bucket without versioning.
_ETAG = re.compile(r"[0-9a-f]{32}(-[0-9]{1,5})?", re.ASCII)

T = TypeVar("T")
TimeLeft = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """S3 object version in a bucket listing: key, version, time stored.

    `object_version` is S3's VersionId, or the ETag in a bucket without versioning.
    """

    bucket: str
    key: str
    object_version: str
    stored_at: str

    @property
    def source(self) -> Source:
        """S3 address by which the registry identifies the upload."""
        return Source(self.bucket, self.key, self.object_version)


class ObjectListing(Protocol):
    """Interface that lists an S3 bucket's object versions page by page.

    See `adapters/aws/s3_listing.py`.
    """

    def page(self, after: str) -> tuple[list[StoredObject], str]: ...


class BlobListing(ObjectListing, Protocol):
    """Interface that lists, checks and removes blobs of the serving bucket."""

    def remove(self, stored: StoredObject) -> None: ...
    def size(self, blob: Blob) -> int | None: ...
    def digest(self, blob: Blob) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the reconciler: grace periods, retries and work per run."""

    upload_grace_s: float = 3600  # events arrive within minutes; the queue may have a backlog
    pending_grace_s: float = 7200  # 5 deliveries take an hour, and the last may still be running
    blob_grace_s: float = 86400  # twice the age up to which `S3Blobs.store` reuses a blob
    deaths: int = 10  # workers that one upload may kill before it is rejected
    tries: int = 25  # failures of an unclaimed upload, after which only a redrive retries it
    upload_pages: int = 10  # listing pages per run, each of 1,000 object versions
    resumes: int = 500  # PENDING versions per run
    blob_pages: int = 10  # listing pages per run, each of 1,000 object versions
    versions: int = 1000  # versions listed per run, to check the sizes of their blobs
    digest_bytes: int = 2 * 1024**3  # bytes per run, read to check the content of blobs


@dataclass(slots=True)
class Findings:
    """Findings of one reconciliation run: repaired, rejected, stuck and damaged items.

    `failed` names the tasks that could not be completed.
    """

    lost_uploads: int = 0  # uploads sent to the queue, as their event was lost
    resumed_versions: int = 0  # PENDING versions whose upload was sent to the queue
    given_up_versions: int = 0  # versions rejected because every worker that claimed them died
    stuck_uploads: int = 0  # uploads that failed too often and wait for a redrive
    listed_models: int = 0  # models of an earlier release that lists can show now
    collected_blobs: int = 0  # blobs removed, as no version refers to them
    checked: set[str] = field(default_factory=set)  # versions, by their key `listed`
    damaged: set[str] = field(default_factory=set)  # checked versions that are flagged now
    failed: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return each finding of the reconciliation as a number, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: value if isinstance(value, int) else len(value) for name, value in values.items()
        }


@dataclass(slots=True)
class Reconciler:
    """Hourly job that repairs differences between uploads, registry and stored blobs."""

    registry: Registry
    uploads: ObjectListing
    blobs: BlobListing
    send: Callable[[Sequence[dict[str, Any]]], None]  # sends events to the registration queue
    ago: Callable[[float], str]  # time of day so many seconds ago, as ISO 8601
    limits: Limits = Limits()

    def run(self, time_left: TimeLeft = lambda: True) -> Findings:
        """Run a bounded part of each reconciliation task; return the findings.

        Tasks stop when `time_left` returns False. If storage or registry fail, the task is
        abandoned and the next one begins.
        """
        findings = Findings()
        tasks: tuple[Callable[[Findings, TimeLeft], None], ...] = (
            self._resend_lost_uploads,
            self._resume_pending,
            self._list_models,
            self._check_sizes,
            self._check_digests,
            self._collect_blobs,
        )
        for task in tasks:
            try:
                if time_left():
                    task(findings, time_left)
            except Unavailable as error:
                findings.failed.append(f"{task.__name__.strip('_')}: {error}")
        return findings

    def _walk(
        self, name: str, read: Callable[[str], tuple[T, str]], pages: int, time_left: TimeLeft
    ) -> Iterator[T]:
        """Yield pages of a listing from a stored bookmark, updating the bookmark."""
        position = self.registry.bookmark(name)
        for _ in range(pages):
            page, position = read(position)
            yield page
            self.registry.set_bookmark(name, position)
            if not position or not time_left():
                return

    # --- uploads whose event was lost

    def _resend_lost_uploads(self, findings: Findings, time_left: TimeLeft) -> None:
        before = self.ago(self.limits.upload_grace_s)
        limit = self.limits.upload_pages
        for page in self._walk("uploads", self.uploads.page, limit, time_left):
            # S3 lists a key's newest version first, and the sort keeps the order of equal times.
            oldest_first = page[::-1]
            oldest_first.sort(key=lambda stored: stored.stored_at)
            uploads = [
                (model, stored.source)
                for stored in oldest_first
                if stored.stored_at < before and (model := _model(stored.key))
            ]
            lost = []
            records = self.registry.lookup_uploads(uploads)
            for (_, source), (version, failure) in zip(uploads, records, strict=True):
                if version is None and failure and failure.attempts >= self.limits.tries:
                    findings.stuck_uploads += 1
                elif version is None:
                    lost.append(upload_event(source))
            self.send(lost)
            findings.lost_uploads += len(lost)

    # --- versions whose worker died

    def _resume_pending(self, findings: Findings, _: TimeLeft) -> None:
        before = self.ago(self.limits.pending_grace_s)
        versions = self.registry.pending(before, self.limits.resumes)
        uploads = [(version.model, version.source) for version in versions]
        records = self.registry.lookup_uploads(uploads)
        events = []
        for version, (_number, failure) in zip(versions, records, strict=True):
            deaths = version.attempts - (failure.attempts if failure else 0)
            if deaths >= self.limits.deaths:
                self._give_up(version, failure)
                findings.given_up_versions += 1
            else:
                events.append(upload_event(version.source))
        self.send(events)
        findings.resumed_versions += len(events)

    def _give_up(self, version: Version, failure: Failure | None) -> None:
        reason = died_reason(version.attempts, failure)
        self.registry.finish(replace(version, state=State.REJECTED, reason=reason), actor=ACTOR)

    # --- models that lists cannot show

    def _list_models(self, findings: Findings, time_left: TimeLeft) -> None:
        chunks = -(-self.limits.versions // CHUNK)  # rounded up
        for models in self._walk("models", self._unlisted_chunk, chunks, time_left):
            for model in models:
                self.registry.list_model(model)
            findings.listed_models += len(models)

    def _unlisted_chunk(self, after: str) -> tuple[list[str], str]:
        return self.registry.unlisted_models(after, CHUNK)

    # --- blobs that are missing or altered

    def _check_sizes(self, findings: Findings, time_left: TimeLeft) -> None:
        chunks = -(-self.limits.versions // CHUNK)  # rounded up
        for versions in self._walk("sizes", self._ready_chunk, chunks, time_left):
            for version in versions:
                # A right size does not clear a flag that a wrong digest has set.
                self._flag(version, self._wrong_size(version) or version.damaged, findings)

    def _check_digests(self, findings: Findings, time_left: TimeLeft) -> None:
        position = self.registry.bookmark("digests")
        bytes_left = self.limits.digest_bytes
        while bytes_left > 0 and time_left():
            versions, end = self._ready_chunk(position)
            for version in versions:
                damage = self._wrong_size(version) or self._wrong_content(version)
                self._flag(version, damage, findings)
                bytes_left -= sum(blob.size_bytes for blob in version.blobs)
                position = version.listed
                if bytes_left <= 0 or not time_left():
                    break
            else:
                position = end
            self.registry.set_bookmark("digests", position)
            if not position:
                return

    def _ready_chunk(self, after: str) -> tuple[list[Version], str]:
        return self.registry.ready_after(after, CHUNK)

    def _wrong_size(self, version: Version) -> str | None:
        for blob in version.blobs:
            size = self.blobs.size(blob)
            if size is None:
                return f"{blob.name} is missing in storage"
            if size != blob.size_bytes:
                return f"{blob.name} has {size} bytes in storage instead of {blob.size_bytes}"
        return None

    def _wrong_content(self, version: Version) -> str | None:
        for blob in version.blobs:
            digest = self.blobs.digest(blob)
            if digest is None:
                return f"{blob.name} is missing in storage"
            if digest != blob.sha256:
                return f"{blob.name} is not what was registered: its sha256 is {digest[:16]}…"
        return None

    def _flag(self, version: Version, damage: str | None, findings: Findings) -> None:
        findings.checked.add(version.listed)
        if damage != version.damaged:
            self.registry.mark_damaged(version.model, version.number, damage, actor=ACTOR)
        if damage:
            findings.damaged.add(version.listed)
        else:
            findings.damaged.discard(version.listed)

    # --- blobs without a reference

    def _collect_blobs(self, findings: Findings, time_left: TimeLeft) -> None:
        """Remove stored blobs past the grace period that no version refers to.

        ARCHIVED versions keep their blobs. A registration under way may need a blob without a
        reference, but it stores anew any that is older than half the grace period
        (`S3Blobs.store`), and no worker lives for the other half. So the blob it relies on is
        either younger than the grace period, or another object version than the one removed here.
        """
        before = self.ago(self.limits.blob_grace_s)
        for page in self._walk("blobs", self.blobs.page, self.limits.blob_pages, time_left):
            old = [stored for stored in page if stored.stored_at < before]
            digests = {stored: key[1] for stored in old if (key := _BLOB_KEY.fullmatch(stored.key))}
            recorded = self.registry.recorded_blobs(list(digests.values()))
            for stored, digest in digests.items():
                if digest not in recorded:
                    self.blobs.remove(stored)
                    findings.collected_blobs += 1


def died_reason(attempts: int, failure: Failure | None = None) -> Reason:
    """Return the rejection reason for an upload whose registration workers all died."""
    message = (
        f"{attempts} workers began this upload and none came to its end: too much memory or time"
    )
    if failure:
        message += f"; the last error that was noted: {failure.reason.message}"
    return Reason("REGISTRATION_DIED", message[:MESSAGE_LIMIT])


def upload_event(source: Source) -> dict[str, Any]:
    """Return an S3-style ObjectCreated event that announces an upload again.

    >>> from functions.core.uploads import uploads_in
    >>> list(uploads_in(upload_event(Source("b", "models/m/a b+c.onnx", "v7"))))
    [Upload(bucket='b', key='models/m/a b+c.onnx', version_id='v7', sequencer='')]
    """
    uploaded = {"key": quote_plus(source.key, safe="/")}
    if not _ETAG.fullmatch(source.object_version):
        uploaded["versionId"] = source.object_version
    record = {
        "eventVersion": "2.1",
        "eventSource": "mayfly:reconcile",
        "eventName": "ObjectCreated:Reconciled",
        "s3": {"bucket": {"name": source.bucket}, "object": uploaded},
    }
    return {"Records": [record]}


def _model(key: str) -> str | None:
    try:
        model_form = model_and_form(key)
    except InvalidModel:  # such an upload is ignored when its event arrives, too
        return None
    return model_form[0] if model_form else None
