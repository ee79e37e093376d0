"""JSON documents about uploads, dead letters and the reconciler."""

from typing import Any

from pydantic import Field

from functions.core.intake.announcement import PUT_BYTES
from functions.core.intake.status import UploadState, UploadStatus
from functions.core.upload_record import UploadRecord, package_of
from functions.core.uploads import PREFIX
from functions.manage.documents.base import NextCursor, ReplyDocument, RequestDocument

MODEL_PATTERN = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$"
PACKAGE_PATTERN = "^up-[0-9a-f]{20}$"


class CreateUpload(RequestDocument):
    """Request for a signed URL for one file of a model."""

    model: str = Field(pattern=MODEL_PATTERN, description="Name of the model; it may be new.")
    file: str = Field(
        min_length=1,
        max_length=512,
        description="model.onnx, model.tar.gz, a path in parts/, or manifest.json; "
        "also model.onnx.data beside model.onnx.",
        examples=["model.onnx"],
    )
    size_bytes: int = Field(
        ge=1, le=PUT_BYTES, description="Size of the file; one PUT takes 5 GiB."
    )
    sha256: str = Field(
        pattern="^[0-9A-Fa-f]{64}$",
        description="SHA-256 of the file as hexadecimal digits.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    package: str | None = Field(
        default=None,
        pattern=PACKAGE_PATTERN,
        description="Package of an earlier upload whose files belong together with this one.",
    )


class NewUpload(ReplyDocument):
    """Announced upload: send the file to `url` with all `headers`."""

    id: str
    package: str = Field(description="Send it with further files that belong together.")
    key: str = Field(description="Key of the file in the artifacts bucket.")
    method: str
    url: str = Field(description="Signed URL; whoever has it can upload this one file.")
    headers: dict[str, str] = Field(description="Headers that are part of the signature.")
    expires_at: str = Field(description="Time by which the upload has to begin.")


class ReasonDocument(ReplyDocument):
    """Stable code and sentence that say why an upload failed."""

    code: str
    message: str


class UploadDocument(ReplyDocument):
    """Upload with its state."""

    id: str
    model: str = Field(description="Empty if the key names no model.")
    file: str
    package: str | None
    key: str
    object_version: str | None = Field(description="Version of the S3 object, once it is known.")
    state: UploadState
    done: bool = Field(description="Nothing more happens by itself: stop polling.")
    next_step: str
    version: int | None = Field(description="Version that the upload became.")
    attempts: int = Field(description="Registrations that were begun.")
    reason: ReasonDocument | None
    size_bytes: int | None
    sha256: str | None
    created_at: str
    created_by: str | None = Field(description="Caller, or null for an upload by S3 alone.")
    received_at: str | None = Field(description="Time at which registration met the upload.")
    expires_at: str | None = Field(description="End of the signed URL.")


class UploadPage(ReplyDocument):
    """Page of uploads, newest first; it may be short."""

    uploads: list[UploadDocument]
    next_cursor: NextCursor


class DeadLetterDocument(ReplyDocument):
    """Upload event that failed five times."""

    id: str
    sent_at: str
    key: str
    model: str | None
    version: int | None
    state: str | None
    code: str
    reason: str


class DeadLetters(ReplyDocument):
    """Dead letters, at most 100."""

    dead_letters: list[DeadLetterDocument]


class Redrive(RequestDocument):
    """Request to register the uploads of all dead letters once more."""

    per_second: int | None = Field(
        default=None, ge=1, le=500, description="Uploads per second; null for as many as SQS likes."
    )


class RedriveStarted(ReplyDocument):
    """Begun redrive; `task` is the handle of its SQS message move task."""

    task: str


class ReconcileStarted(ReplyDocument):
    """Begun run of the reconciler; its log and metrics have the findings."""

    started: bool


def describe_upload(status: UploadStatus) -> dict[str, Any]:
    """Return the fields of an `UploadDocument`."""
    record, reason = status.record, status.reason
    return {
        "id": record.id,
        "model": record.model,
        "file": _file(record),
        "package": package_of(record.key) or None,
        "key": record.key,
        "object_version": record.object_version or None,
        "state": status.state,
        "done": status.done,
        "next_step": status.next_step,
        "version": status.version,
        "attempts": status.attempts,
        "reason": {"code": reason.code, "message": reason.message} if reason else None,
        "size_bytes": record.size_bytes,
        "sha256": record.sha256 or None,
        "created_at": record.created_at,
        "created_by": record.created_by or None,
        "received_at": record.received_at or None,
        "expires_at": record.expires_at or None,
    }


def _file(record: UploadRecord) -> str:
    """Return the path of an upload's file below its model and package."""
    path = record.key.removeprefix(PREFIX).partition("/")[2]
    package = package_of(record.key)
    return path.removeprefix(f"{package}/") if package else path
