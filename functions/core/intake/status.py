"""State of an upload on its way to a version."""

from dataclasses import dataclass
from enum import StrEnum

from functions.core.intake.announcement import is_part
from functions.core.registry.version import Failure, Reason, State, Version
from functions.core.upload_record import UploadRecord, package_of

RECEIVES_MAX = 5  # receives until a message is a dead letter: maxReceiveCount in template.yaml


class UploadState(StrEnum):
    """States of an upload. READY and REJECTED are those of its version."""

    WAITING = "waiting"  # announced, and not in S3 yet
    EXPIRED = "expired"  # announced, and not in S3 by the end of the URL
    RECEIVED = "received"  # in S3; for a part of a package this is the end
    REGISTERING = "registering"
    READY = "READY"
    REJECTED = "REJECTED"
    IGNORED = "ignored"  # it becomes no version
    FAILED = "failed"  # registration failed too often: a dead letter


ENDS = {
    UploadState.EXPIRED,
    UploadState.READY,
    UploadState.REJECTED,
    UploadState.IGNORED,
    UploadState.FAILED,
}
NEXT_STEPS = {
    UploadState.WAITING: "PUT the file to the URL, with the headers that came with it",
    UploadState.EXPIRED: "announce the upload again, and PUT the file before expires_at",
    UploadState.RECEIVED: "wait: registration begins within seconds",
    UploadState.REGISTERING: "wait: poll until done is true",
    UploadState.READY: "call the version, or move an alias to it",
    UploadState.REJECTED: "mend the model as the reason says, and upload it again",
    UploadState.IGNORED: "mend the file as the reason says, and upload it again",
    UploadState.FAILED: "ask an administrator to look at the dead letters and redrive them",
}
LAST_PART = "upload the package's other files, a manifest.json last"


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """Upload with its state; `attempts` counts the registrations that were begun."""

    record: UploadRecord
    state: UploadState
    done: bool  # nothing more happens by itself
    next_step: str
    version: int | None = None
    attempts: int = 0
    reason: Reason | None = None


def status_of(
    record: UploadRecord,
    version: Version | None,
    failure: Failure | None,
    now: str,
    *,
    is_stored: bool = False,
) -> UploadStatus:
    """Return an upload's status from its record, version and failure note.

    `is_stored` says that its object is in S3, although registration has not met it yet.
    """
    attempts = max(version.attempts if version else 0, failure.attempts if failure else 0)
    state, reason = _state(record, version, failure, now, is_stored)
    done, step = state in ENDS, NEXT_STEPS[state]
    if state is UploadState.RECEIVED and is_part(record.key):
        done, step = True, LAST_PART
    number = version.number if version else None
    return UploadStatus(record, state, done, step, number, attempts, reason)


def _state(
    record: UploadRecord,
    version: Version | None,
    failure: Failure | None,
    now: str,
    is_stored: bool,
) -> tuple[UploadState, Reason | None]:
    if version is not None and version.state is not State.PENDING:
        return _ended(version), version.reason
    if failure is not None:
        gave_up = failure.attempts % RECEIVES_MAX == 0 and _is_latest(failure, version)
        return UploadState.FAILED if gave_up else UploadState.REGISTERING, failure.reason
    if version is not None:
        return UploadState.REGISTERING, version.reason
    if record.ignored_code:
        return UploadState.IGNORED, Reason(record.ignored_code, record.ignored_reason)
    if record.received_at or is_stored:
        return UploadState.RECEIVED, None
    is_late = bool(package_of(record.key)) and record.expires_at < now
    return UploadState.EXPIRED if is_late else UploadState.WAITING, None


def _ended(version: Version) -> UploadState:
    """Return the state of an ended registration, also of an archived version."""
    return UploadState.READY if version.files else UploadState.REJECTED


def _is_latest(failure: Failure, version: Version | None) -> bool:
    """Return True if no worker has begun after the failure."""
    return version is None or failure.at >= version.claimed_at
