"""Parsers of S3 upload events and of object keys under models/.

Notifications arrive at least once, late and in any order. S3 URL-encodes keys in notifications;
EventBridge does not.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote_plus

from functions.core.errors import InvalidModel, shown
from functions.core.foreign_formats import check_not_foreign
from functions.core.names import is_model_name, is_onnx_file

PREFIX = "models/"
_SEQUENCER = re.compile(r"[0-9A-Fa-f]{1,64}", re.ASCII)
PARTS = "parts"  # files in a folder parts/ are registered only through their manifest.json
# Archives that SageMaker's jobs write beside the model
BYSTANDERS = ("output.tar.gz", "sourcedir.tar.gz")


class Form(StrEnum):
    """Package form of an uploaded model: .onnx file, archive or manifest."""

    ONNX = "one self-describing .onnx"
    ARCHIVE = ".tar.gz or .tgz"
    MANIFEST = "manifest.json, written last, that lists the files beside it"


@dataclass(frozen=True, slots=True)
class Upload:
    """Uploaded S3 object (bucket, key, version id) that an event announces.

    `version_id` is None if the event has none. `sequencer` orders the versions of one key by
    `Version.is_written_after`; it is empty if the event has none.
    """

    bucket: str
    key: str
    version_id: str | None = None
    sequencer: str = ""


def single_events(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Split an S3 notification into notifications of one record each.

    Other events are returned unchanged.

    >>> single_events({"Records": [1, 2]})
    [{'Records': [1]}, {'Records': [2]}]
    """
    records = event.get("Records")
    if not isinstance(records, list) or not records:
        return [event]
    return [{**event, "Records": [record]} for record in records]


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
        yield _upload(bucket["name"], stored["key"], stored.get("version-id"), stored)


def _uploads_in_notification(event: Mapping[str, Any]) -> Iterator[Upload]:
    for record in event["Records"]:
        if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
            bucket, stored = record["s3"]["bucket"], record["s3"]["object"]
            key = unquote_plus(stored["key"])
            yield _upload(bucket["name"], key, stored.get("versionId"), stored)


def _upload(bucket: str, key: str, version_id: str | None, stored: Mapping[str, Any]) -> Upload:
    """Return the upload that an S3 event announces, with its sequencer.

    Without a version id, the sequencer is dropped: the object may have been overwritten since.
    """
    sequencer = str(stored.get("sequencer") or "")
    is_exact = version_id not in (None, "", "null")  # "null": stored without versioning
    if not (is_exact and _SEQUENCER.fullmatch(sequencer)):
        sequencer = ""
    return Upload(bucket, key, version_id or None, sequencer)


def model_and_form(key: str) -> tuple[str, Form] | None:
    """Parse the model name and package form from an S3 object key.

    File endings may have capitals. Returns None if the key is not a model's, but e.g. that of a
    readme, of weights, or of a file in a folder parts/.

    >>> model_and_form("models/ResNet50/job-1/output/model/Model.ONNX")
    ('ResNet50', <Form.ONNX: 'one self-describing .onnx'>)
    >>> model_and_form("models/digits/output.tar.gz") is None
    True
    >>> model_and_form("models/big/1/parts/model.onnx") is None
    True

    Raises:
        InvalidModel: the key looks like a model's and can become no version. The code is
            `BAD_MODEL_NAME`, `NO_MODEL_FOLDER` or `FOREIGN_FORMAT`.
    """
    if not key.startswith(PREFIX):
        return None
    *folders, name = key.removeprefix(PREFIX).split("/")
    if PARTS in folders[1:] or name.startswith("._"):  # ._model.onnx: macOS' note on model.onnx
        return None
    form = _form(name)
    if form is None:
        check_not_foreign(name)
        return None
    return _model(folders, name), form


def _model(folders: list[str], name: str) -> str:
    """Return the model name: the first folder of an S3 key.

    Raises:
        InvalidModel: `NO_MODEL_FOLDER` or `BAD_MODEL_NAME`.
    """
    if not folders:
        raise InvalidModel(
            f"{shown(name)} is in no model's folder: upload it to models/<model>/",
            code="NO_MODEL_FOLDER",
        )
    if not is_model_name(folders[0]):
        raise InvalidModel(
            f"{shown(folders[0])} cannot name a model: upload to models/<model>/ with 1 to 128 of "
            "A-Z a-z 0-9 . _ - in <model>, a letter or digit at both ends",
            code="BAD_MODEL_NAME",
        )
    return folders[0]


def _form(name: str) -> Form | None:
    lower = name.lower()
    if is_onnx_file(name):
        return Form.ONNX
    if lower.endswith((".tar.gz", ".tgz")) and lower not in BYSTANDERS:
        return Form.ARCHIVE
    return Form.MANIFEST if lower == "manifest.json" else None
