"""S3's events: which object was uploaded, and which model in which form it is.

Notifications arrive at least once, late, in any order, with URL-encoded keys; EventBridge sends the key as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote_plus

from functions.core.errors import InvalidModel, shown
from functions.core.names import is_model_name

PREFIX = "models/"
PARTS = "parts"  # a folder that only a manifest speaks for


class Form(StrEnum):
    """How a model was packed. See DESIGN: the package is the contract between training and serving."""

    ONNX = "one self-describing .onnx"
    ARCHIVE = "model.tar.gz"
    MANIFEST = "manifest.json, written last, that lists the files beside it"


@dataclass(frozen=True, slots=True)
class Upload:
    """An object that was created. `version_id` is None where the event names none."""

    bucket: str
    key: str
    version_id: str | None = None


def uploads_in(event: Mapping[str, Any]) -> Iterator[Upload]:
    """The uploads that an S3 notification or an EventBridge event tells of. S3's test event tells of none.

    Raises:
        InvalidModel: it is neither; the code is `NOT_AN_UPLOAD_EVENT`.
    """
    if event.get("Event") == "s3:TestEvent":
        return
    try:
        if event.get("source") == "aws.s3":
            if event["detail-type"] == "Object Created":
                found = event["detail"]["object"]
                yield Upload(
                    event["detail"]["bucket"]["name"], found["key"], found.get("version-id") or None
                )
            return
        for record in event["Records"]:
            if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
                found = record["s3"]["object"]
                yield Upload(
                    record["s3"]["bucket"]["name"],
                    unquote_plus(found["key"]),
                    found.get("versionId") or None,
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"this is no S3 or EventBridge event: {shown(str(error))} is missing or malformed",
            code="NOT_AN_UPLOAD_EVENT",
        ) from error


def model_and_form(key: str) -> tuple[str, Form] | None:
    """The model that `key` belongs to and the form it comes in; None for an object that is no model.

    >>> model_and_form("models/digits/job-1/output/model/model.onnx")
    ('digits', <Form.ONNX: 'one self-describing .onnx'>)
    >>> model_and_form("models/digits/output.tar.gz"), model_and_form("models/big/1/parts/model.onnx")
    (None, None)

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
            f"{shown(model)} cannot name a model: upload to models/<model>/ with 1 to 128 of a-z 0-9 . _ - in <model>",
            code="BAD_MODEL_NAME",
        )
    return model, form


def lacks_folder(key: str) -> bool:
    """Whether `key` would be a model's if it lay in a folder under models/, which gives the model its name.

    >>> lacks_folder("models/digits.onnx"), lacks_folder("models/digits/model.onnx"), lacks_folder("models/readme.md")
    (True, False, False)
    """
    name = key.removeprefix(PREFIX)
    return key.startswith(PREFIX) and "/" not in name and _form(name) is not None


def _form(name: str) -> Form | None:
    if name.endswith(".onnx"):
        return Form.ONNX
    if name.endswith("model.tar.gz"):
        return Form.ARCHIVE
    return Form.MANIFEST if name == "manifest.json" else None
