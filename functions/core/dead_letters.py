"""Uploads that were given up by the queue: why, and once more."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from functions.core.errors import InvalidModel
from functions.core.registry import Reason, Registry, Source, State
from functions.core.uploads import Upload, model_and_form, uploads_in

UNKNOWN = "register was never begun, or could not reach the registry to say why: see its logs and alarms"


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
    """The dead-letter queue. `adapters/sqs.py` documents the methods."""

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
        registry.note_failure(found[0], Source(upload.bucket, upload.key, upload.version_id or ""), reason)


def dead_letters(queue: DeadLetterQueue, registry: Registry, limit: int = 100) -> list[DeadLetter]:
    """Up to `limit` messages of the queue, each with the reason it is there. They stay.

    Raises:
        Unavailable: the queue or the registry failed.
    """
    return [letter for message in queue.peek(limit) for letter in _explained(message, registry)]


def _explained(message: Message, registry: Registry) -> Sequence[DeadLetter]:
    try:
        uploads = list(uploads_in(json.loads(message.body)))
        models = [found[0] if (found := model_and_form(upload.key)) else None for upload in uploads]
    except (ValueError, AttributeError, InvalidModel) as error:
        reason = str(error) if isinstance(error, InvalidModel) else "this is no JSON object"
        return [DeadLetter(message.id, message.sent_at, "", None, None, None, "NOT_AN_UPLOAD_EVENT", reason)]
    letters = []
    for upload, model in zip(uploads, models, strict=True):
        version, state, reason_ = None, None, Reason("NOT_A_MODEL", "there is nothing to register")
        if model:
            source = Source(upload.bucket, upload.key, upload.version_id or "")
            [(number, failure)] = registry.known([(model, source)])
            known = registry.version(model, number) if number else None
            if known and known.state is not State.PENDING:
                reason_ = known.reason or Reason("REGISTERED", "it was registered after all")
            elif failure:
                reason_ = failure.reason
            elif known:
                died = f"{known.attempts} workers began it and none came to its end: too much memory or time"
                reason_ = Reason("REGISTRATION_DIED", died)
            else:
                reason_ = Reason("UNKNOWN", UNKNOWN)
            version, state = number, known.state if known else None
        letters.append(
            DeadLetter(message.id, message.sent_at, upload.key, model, version, state, reason_.code, reason_.message)
        )
    return letters
