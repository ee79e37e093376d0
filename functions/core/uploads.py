"""Parsers of S3 upload events and of object keys under models/.

Notifications arrive at least once, late and in any order. S3 URL-encodes keys in notifications;
EventBridge does not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote_plus

from functions.core.errors import InvalidModel, shown
from functions.core.names import is_model_name

PREFIX = "models/"
PARTS = "parts"  # files in a folder parts/ are registered only through their manifest.json


class Form(StrEnum):
    """Package form of an uploaded model: .onnx file, archive or manifest."""

    ONNX = "one self-describing .onnx"
    ARCHIVE = "model.tar.gz"
    MANIFEST = "manifest.json, written last, that lists the files beside it"


@dataclass(frozen=True, slots=True)
class Upload:
    """Uploaded S3 object (bucket, key, version id) that an event announces.

    `version_id` is None if the event has none.
    """

    bucket: str
    key: str
    version_id: str | None = None


def uploads_in(event: Mapping[str, Any]) -> Iterator[Upload]:
    """Yield the uploaded objects that an S3 notification or EventBridge event announces.

    S3's test event has none, and neither have events of other types than "Object Created".

    Raises:
        InvalidModel: `event` is neither; the code is `NOT_AN_UPLOAD_EVENT`.
    """
    if event.get("Event") == "s3:TestEvent":
        return
    try:
        if event.get("source") == "aws.s3":
            yield from _uploads_in_eventbridge(event)
        else:
            yield from _uploads_in_notification(event)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"this is no S3 or EventBridge event: {shown(str(error))} is missing or malformed",
            code="NOT_AN_UPLOAD_EVENT",
        ) from error


def _uploads_in_eventbridge(event: Mapping[str, Any]) -> Iterator[Upload]:
    if event["detail-type"] == "Object Created":
        bucket, stored = event["detail"]["bucket"], event["detail"]["object"]
        yield Upload(bucket["name"], stored["key"], stored.get("version-id") or None)


def _uploads_in_notification(event: Mapping[str, Any]) -> Iterator[Upload]:
    for record in event["Records"]:
        if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
            bucket, stored = record["s3"]["bucket"], record["s3"]["object"]
            key = unquote_plus(stored["key"])
            yield Upload(bucket["name"], key, stored.get("versionId") or None)


def model_and_form(key: str) -> tuple[str, Form] | None:
    """Parse the model name and package form from an S3 object key.

    Returns None if there is nothing to register at this key.

    >>> model_and_form("models/digits/job-1/output/model/model.onnx")
    ('digits', <Form.ONNX: 'one self-describing .onnx'>)
    >>> model_and_form("models/digits/output.tar.gz") is None
    True
    >>> model_and_form("models/big/1/parts/model.onnx") is None
    True

    Raises:
        InvalidModel: the model's name in the key is not allowed; the code is `BAD_MODEL_NAME`.
    """
    if not key.startswith(PREFIX):
        return None
    model, _, rest = key.removeprefix(PREFIX).partition("/")
    *folders, name = rest.split("/")
    form = _form(name)
    if PARTS in folders or form is None:
        return None
    if not is_model_name(model):
        raise InvalidModel(
            f"{shown(model)} cannot name a model: upload to models/<model>/ "
            "with 1 to 128 of a-z 0-9 . _ - in <model>",
            code="BAD_MODEL_NAME",
        )
    return model, form


def lacks_folder(key: str) -> bool:
    """Return True if an S3 key puts a model directly under models/.

    Such a key lacks the folder that would name the model.

    >>> lacks_folder("models/digits.onnx"), lacks_folder("models/digits/model.onnx")
    (True, False)
    >>> lacks_folder("models/readme.md")
    False
    """
    name = key.removeprefix(PREFIX)
    return key.startswith(PREFIX) and "/" not in name and _form(name) is not None


def _form(name: str) -> Form | None:
    if name.endswith(".onnx"):
        return Form.ONNX
    if name.endswith("model.tar.gz"):
        return Form.ARCHIVE
    return Form.MANIFEST if name == "manifest.json" else None
