"""What no event will mend: lost events, dead workers, blobs that nobody has, blobs that are gone or spoilt.

A run does a bounded piece of each and leaves a bookmark; the next one goes on there, and after the end begins again. It
decides nothing that a registration decides: what was lost is sent to the same queue as S3's events, where the same
rules make one version of it however often it comes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, Protocol
from urllib.parse import quote_plus

from functions.core.errors import InvalidModel, Unavailable
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Failure, Reason, Source, State, Version
from functions.core.uploads import model_and_form

ACTOR = "reconcile"
CHUNK = 50  # versions between two looks at the clock
_BLOB_KEY = re.compile(r"blobs/[0-9a-f]{2}/([0-9a-f]{64})", re.ASCII)
_ETAG = re.compile(
    r"[0-9a-f]{32}(-[0-9]{1,5})?", re.ASCII
)  # the identity of an object in a bucket without versions


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """A version of an object in the artifacts bucket that nobody has deleted."""

    key: str
    object_version: str  # as in `Source`
    stored_at: str


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """The current version of an object in the serving bucket. `handle` names exactly this one, for its removal."""

    key: str
    stored_at: str
    handle: str


class UploadShelf(Protocol):
    """The artifacts bucket, page by page. `adapters/aws/s3_listing.py` documents the methods."""

    def page(self, after: str) -> tuple[list[StoredUpload], str]: ...


class BlobShelf(Protocol):
    """The serving bucket, page by page and blob by blob. `adapters/aws/s3_listing.py` documents the methods."""

    def page(self, after: str) -> tuple[list[StoredBlob], str]: ...
    def remove(self, stored: StoredBlob) -> None: ...
    def size(self, blob: Blob) -> int | None: ...
    def digest(self, blob: Blob) -> str | None: ...


class Queue(Protocol):
    """The registration queue."""

    def send(self, events: Sequence[dict[str, Any]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait before something counts as lost, and how much one run does."""

    upload_grace_s: float = 3600  # events come within minutes; a queue may be behind
    pending_grace_s: float = (
        7200  # the queue's own five tries take an hour, and their last may still run
    )
    blob_grace_s: float = 86400  # see `_collect`: twice what `S3Blobs` takes for fresh
    deaths: int = 10  # workers that one upload may cost
    tries: int = 25  # of an upload that was always put off, until only a redrive tries it again
    upload_pages: int = 10  # of 1,000 object versions
    resumes: int = 500
    blob_pages: int = 10  # of 1,000 objects
    versions: int = 1000  # whose blobs are looked for
    digest_bytes: int = 2 * 1024**3  # of blobs that are read again


@dataclass(slots=True)
class Findings:
    """What one run found and did. `failed` says which parts could not be done this time."""

    lost_uploads: int = 0  # sent to the queue
    resumed_versions: int = 0  # sent to the queue
    given_up_versions: int = 0  # rejected: every worker that took them died
    stuck_uploads: int = 0  # put off too often; they wait for a redrive
    collected_blobs: int = 0
    checked: set[str] = field(default_factory=set)  # versions, as the listing names them
    damaged: set[str] = field(default_factory=set)  # flagged now or before
    failed: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: value if isinstance(value, int) else len(value) for name, value in values.items()
        }


@dataclass(slots=True)
class Reconciler:
    """Compares uploads, registry and blobs."""

    registry: Registry
    uploads: UploadShelf
    blobs: BlobShelf
    queue: Queue
    artifacts: str  # bucket
    now: Callable[[], str]
    limits: Limits = Limits()

    def run(self, time_left: Callable[[], bool] = lambda: True) -> Findings:
        """One piece of everything, while `time_left`. A part that storage or registry fails ends, the others go on."""
        found = Findings()
        parts: tuple[Callable[[Findings, Callable[[], bool]], None], ...] = (
            self._find_uploads,
            self._resume,
            self._check_sizes,
            self._check_digests,
            self._collect,
        )
        for part in parts:
            try:
                if time_left():
                    part(found, time_left)
            except Unavailable as error:
                found.failed.append(f"{part.__name__.strip('_')}: {error}")
        return found

    # --- uploads whose event never came -----------------------------------------------------------------------------

    def _find_uploads(self, found: Findings, time_left: Callable[[], bool]) -> None:
        before = self._ago(self.limits.upload_grace_s)
        at = self.registry.bookmark("uploads")
        for _ in range(self.limits.upload_pages):
            page, at = self.uploads.page(at)
            old = [
                (stored, model)
                for stored in reversed(page)
                if stored.stored_at < before and (model := _model(stored.key))
            ]
            sources = [
                (model, Source(self.artifacts, stored.key, stored.object_version))
                for stored, model in old
            ]
            lost = []
            for (stored, _), (_, source), (version, failure) in zip(
                old, sources, self.registry.known(sources), strict=True
            ):
                if version is None and failure and failure.attempts >= self.limits.tries:
                    found.stuck_uploads += 1
                elif version is None:
                    lost.append((stored.stored_at, source))
            lost.sort(
                key=lambda pair: pair[0]
            )  # and reversed before: S3 lists a key's newest version first
            self.queue.send([upload_event(source) for _, source in lost])
            found.lost_uploads += len(lost)
            self.registry.set_bookmark("uploads", at)
            if not at or not time_left():
                return

    # --- versions whose worker died ---------------------------------------------------------------------------------

    def _resume(self, found: Findings, _: Callable[[], bool]) -> None:
        waiting = self.registry.pending(self._ago(self.limits.pending_grace_s), self.limits.resumes)
        notes = self.registry.known([(version.model, version.source) for version in waiting])
        events = []
        for version, (_number, failure) in zip(waiting, notes, strict=True):
            if version.attempts - (failure.attempts if failure else 0) >= self.limits.deaths:
                self._give_up(version, failure)
                found.given_up_versions += 1
            else:
                events.append(upload_event(version.source))
        self.queue.send(events)
        found.resumed_versions += len(events)

    def _give_up(self, version: Version, failure: Failure | None) -> None:
        last = f"; the last error that was noted: {failure.reason.message}" if failure else ""
        message = f"{version.attempts} workers began this upload and none came to its end: too much memory or time{last}"
        reason = Reason("REGISTRATION_DIED", message[:300])
        self.registry.finish(replace(version, state=State.REJECTED, reason=reason), actor=ACTOR)

    # --- blobs that are gone or spoilt ------------------------------------------------------------------------------

    def _check_sizes(self, found: Findings, time_left: Callable[[], bool]) -> None:
        at = self.registry.bookmark("sizes")
        for _ in range(0, self.limits.versions, CHUNK):
            versions, at = self.registry.ready_after(at, CHUNK)
            for version in versions:  # a size that fits does not clear what a digest has shown
                self._flag(version, self._wrong_size(version) or version.damaged, found)
            self.registry.set_bookmark("sizes", at)
            if not at or not time_left():
                return

    def _check_digests(self, found: Findings, time_left: Callable[[], bool]) -> None:
        at = self.registry.bookmark("digests")
        room = self.limits.digest_bytes
        while room > 0 and time_left():
            versions, end = self.registry.ready_after(at, CHUNK)
            for version in versions:
                self._flag(
                    version, self._wrong_size(version) or self._wrong_content(version), found
                )
                room -= sum(blob.size_bytes for blob in version.blobs)
                at = version.listed
                if room <= 0 or not time_left():
                    self.registry.set_bookmark("digests", at)
                    return
            at = end
            self.registry.set_bookmark("digests", at)
            if not at:
                return

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

    def _flag(self, version: Version, wrong: str | None, found: Findings) -> None:
        found.checked.add(version.listed)
        if wrong != version.damaged:
            self.registry.mark_damaged(version.model, version.number, wrong, actor=ACTOR)
        (found.damaged.add if wrong else found.damaged.discard)(version.listed)

    # --- blobs that nobody has --------------------------------------------------------------------------------------

    def _collect(self, found: Findings, time_left: Callable[[], bool]) -> None:
        """Remove blobs that were stored a day ago and that no version has, ARCHIVED ones included.

        A registration that is under way may still need one. But it stores anew what it finds older than half a day
        (`S3Blobs.store`), and no worker lives that long: so whatever it counts on is either younger than the grace
        period, or another object version than the one that is removed here.
        """
        before = self._ago(self.limits.blob_grace_s)
        at = self.registry.bookmark("blobs")
        for _ in range(self.limits.blob_pages):
            page, at = self.blobs.page(at)
            old = [(stored, key[1]) for stored in page if (key := _BLOB_KEY.fullmatch(stored.key))]
            old = [(stored, digest) for stored, digest in old if stored.stored_at < before]
            recorded = self.registry.recorded([digest for _, digest in old])
            for stored, digest in old:
                if digest not in recorded:
                    self.blobs.remove(stored)
                    found.collected_blobs += 1
            self.registry.set_bookmark("blobs", at)
            if not at or not time_left():
                return

    def _ago(self, seconds: float) -> str:
        then = datetime.fromisoformat(self.now()) - timedelta(seconds=seconds)
        return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def upload_event(source: Source) -> dict[str, Any]:
    """What S3 would have said of this upload.

    >>> from functions.core.uploads import uploads_in
    >>> list(uploads_in(upload_event(Source("b", "models/m/a b+c.onnx", "v7"))))
    [Upload(bucket='b', key='models/m/a b+c.onnx', version_id='v7')]
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
        found = model_and_form(key)
    except InvalidModel:  # the event was answered so, too
        return None
    return found[0] if found else None
