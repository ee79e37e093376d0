"""Uploads that were given up by the queue: why, and once more."""

import json
from dataclasses import dataclass
from typing import Protocol

from functions.core.errors import InvalidModel
from functions.core.registry.registry import Registry
from functions.core.registry.version import Reason, Source, State
from functions.core.uploads import Upload, model_and_form, uploads_in

UNKNOWN = (
    "register was never begun, or could not reach the registry to say why: see its logs and alarms"
)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the dead-letter queue."""

    id: str
    body: str
    sent_at: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `state` is None for an upload that is no version."""

    id: str
    sent_at: str
    key: str
    model: str | None
    version: int | None
    state: State | None
    code: str
    reason: str


class DeadLetterQueue(Protocol):
    """The dead-letter queue. `adapters/aws/sqs.py` documents the methods."""

    def peek(self, limit: int) -> list[Message]: ...
    def redrive(self, per_second: int | None = None) -> str: ...


def note_failure(registry: Registry, upload: Upload, reason: Reason) -> None:
    """Remember why `upload` was put off, so that its dead letter has a reason.

    Raises:
        Unavailable: the registry failed.
    """
    try:
        found = model_and_form(upload.key)
    except InvalidModel:
        return
    if found:
        registry.note_failure(
            found[0], Source(upload.bucket, upload.key, upload.version_id or ""), reason
        )


def dead_letters(queue: DeadLetterQueue, registry: Registry, limit: int = 100) -> list[DeadLetter]:
    """Up to `limit` messages of the queue, each with the reason it is there. They stay.

    Raises:
        Unavailable: the queue or the registry failed.
    """
    return [letter for message in queue.peek(limit) for letter in _explained(message, registry)]


def _explained(message: Message, registry: Registry) -> list[DeadLetter]:
    """One letter an upload: S3 puts one into a message, others may put more."""
    try:
        uploads = list(uploads_in(json.loads(message.body)))
        letters = [_letter(message, upload, registry) for upload in uploads]
    except (ValueError, AttributeError, InvalidModel) as error:
        why = str(error) if isinstance(error, InvalidModel) else "the message is no JSON object"
        letters = [
            DeadLetter(
                message.id, message.sent_at, "", None, None, None, "NOT_AN_UPLOAD_EVENT", why
            )
        ]
    return letters or [
        DeadLetter(
            message.id,
            message.sent_at,
            "",
            None,
            None,
            None,
            "NO_UPLOAD",
            "the message tells of no upload",
        )
    ]


def _letter(message: Message, upload: Upload, registry: Registry) -> DeadLetter:
    found = model_and_form(upload.key)
    if found is None:
        nothing = "there is nothing to register at this key"
        return DeadLetter(
            message.id, message.sent_at, upload.key, None, None, None, "NO_UPLOAD", nothing
        )
    model, source = found[0], Source(upload.bucket, upload.key, upload.version_id or "")
    [(number, failure)] = registry.known([(model, source)])
    version = registry.version(model, number) if number else None
    if version and version.state is not State.PENDING:
        reason = version.reason or Reason("REGISTERED", "it was registered after all")
    elif failure:
        reason = failure.reason
    elif version:
        died = (
            f"{version.attempts} workers began it and none came to its end: too much memory or time"
        )
        reason = Reason("REGISTRATION_DIED", died)
    else:
        reason = Reason("UNKNOWN", UNKNOWN)
    state = version.state if version else None
    return DeadLetter(
        message.id, message.sent_at, upload.key, model, number, state, reason.code, reason.message
    )
