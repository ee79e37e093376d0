"""Dead letters of the registration queue, each with its failure reason."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from functions.core.errors import InvalidModel
from functions.core.registry.reconciler import died_reason
from functions.core.registry.registry import Registry
from functions.core.registry.version import Failure, Reason, Source, State, Version
from functions.core.uploads import Upload, model_and_form, uploads_in

UNKNOWN = (
    "register was never begun, or could not reach the registry to say why: see its logs and alarms"
)


@dataclass(frozen=True, slots=True)
class Message:
    """Message of the registration dead-letter queue: id, body, time sent."""

    id: str
    body: str
    sent_at: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Dead letter with its upload's model, version, state and failure reason.

    A message that announces no upload is a dead letter, too. `version` and `state` are None for an
    upload that was never claimed, `model` for a message without a model; `key` is then empty or the
    key of another object.
    """

    id: str
    sent_at: str
    key: str
    model: str | None
    version: int | None
    state: State | None
    code: str
    reason: str


def note_failure(registry: Registry, upload: Upload, reason: Reason) -> None:
    """Store why an upload's registration failed, to explain a later dead letter.

    Raises:
        Unavailable: the registry failed.
    """
    try:
        model_form = model_and_form(upload.key)
    except InvalidModel:
        return
    if model_form:
        registry.note_failure(model_form[0], _source(upload), reason)


def explain(messages: Iterable[Message], registry: Registry) -> list[DeadLetter]:
    """Return dead letters with failure reasons for the uploads in queue messages.

    Each says why its upload failed. S3 announces one upload in a message; others may announce more.

    Raises:
        Unavailable: the registry failed.
    """
    return [letter for message in messages for letter in _letters(message, registry)]


def _letters(message: Message, registry: Registry) -> list[DeadLetter]:
    try:
        uploads = list(uploads_in(json.loads(message.body)))
        letters = [_letter(message, upload, registry) for upload in uploads]
    except InvalidModel as error:
        return [_no_upload(message, "", Reason("NOT_AN_UPLOAD_EVENT", str(error)))]
    except (ValueError, AttributeError):
        reason = Reason("NOT_AN_UPLOAD_EVENT", "the message is no JSON object")
        return [_no_upload(message, "", reason)]
    return letters or [_no_upload(message, "", Reason("NO_UPLOAD", "the message names no upload"))]


def _letter(message: Message, upload: Upload, registry: Registry) -> DeadLetter:
    try:
        model_form = model_and_form(upload.key)
    except InvalidModel as error:
        return _no_upload(message, upload.key, Reason(error.instance_code, str(error)))
    if model_form is None:
        reason = Reason("NO_UPLOAD", "there is nothing to register at this key")
        return _no_upload(message, upload.key, reason)
    model, source = model_form[0], _source(upload)
    [(number, failure)] = registry.lookup_uploads([(model, source)])
    version = registry.version(model, number) if number else None
    reason = _reason(version, failure)
    state = version.state if version else None
    return DeadLetter(
        message.id,
        message.sent_at,
        upload.key,
        model,
        number,
        state,
        reason.code,
        reason.message,
    )


def _reason(version: Version | None, failure: Failure | None) -> Reason:
    if version and version.state is not State.PENDING:
        return version.reason or Reason("REGISTERED", "it was registered after all")
    if failure:
        return failure.reason
    return died_reason(version.attempts) if version else Reason("UNKNOWN", UNKNOWN)


def _no_upload(message: Message, key: str, reason: Reason) -> DeadLetter:
    return DeadLetter(
        message.id,
        message.sent_at,
        key,
        model=None,
        version=None,
        state=None,
        code=reason.code,
        reason=reason.message,
    )


def _source(upload: Upload) -> Source:
    return Source(upload.bucket, upload.key, upload.version_id or "")
