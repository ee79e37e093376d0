"""Record of an upload, an item of the registry's table.

`pk` is `UPLOAD#<id>`, `sk` is `RECORD`. Uploads that the API announced have one from that time on,
all others from the first event that registration handles. In the index `listing`, `listed` begins
with the time, so that the newest can be read first. A record says where the upload came from; what
became of it is in the registry's version, or in its note on a failure.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from functions.core.uploads import PREFIX

KIND = "UPLOAD"
KEPT_DAYS = 30  # as notes on failures; longer than the 14 days for which SQS keeps a dead letter
# Second folder of an upload that the API announced, e.g. models/digits/up-4f…/model.onnx. Nobody
# else has written there: S3 refuses a second object of the same key (If-None-Match).
PACKAGE = re.compile(r"up-[0-9a-f]{20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """Upload with its S3 object, its caller, and its refusal.

    `object_version` and `received_at` are empty until registration has met its event; the latter
    stays empty for an upload that is only announced. `created_by` is empty for an upload that was
    written to S3 without the API.
    """

    id: str
    model: str  # empty if the key names none
    bucket: str
    key: str
    created_at: str
    created_by: str = ""
    object_version: str = ""
    received_at: str = ""
    size_bytes: int | None = None
    sha256: str = ""
    expires_at: str = ""  # end of the signed URL
    ignored_code: str = ""
    ignored_reason: str = ""

    @property
    def listed(self) -> str:
        """Sort key in the index: time, model and id."""
        return f"{self.created_at}#{self.model}#{self.id}"


def package_of(key: str) -> str:
    """Return the package of an S3 key, "" without one.

    >>> package_of("models/digits/up-0123456789abcdef0123/parts/w.bin")
    'up-0123456789abcdef0123'
    >>> package_of("models/digits/1/model.onnx")
    ''
    """
    folders = key.removeprefix(PREFIX).split("/")[1:-1]
    return folders[0] if folders and PACKAGE.fullmatch(folders[0]) else ""


def upload_id(bucket: str, key: str, object_version: str) -> str:
    """Return the id of an upload, made of its address.

    Only the key counts in a package: an announced upload is known before its object version is.
    """
    address = f"{bucket}/{key}" if package_of(key) else f"{bucket}/{key}?{object_version}"
    return hashlib.sha256(address.encode("utf-8", "replace")).hexdigest()[:32]


def upload_key(upload: str) -> tuple[str, str]:
    """Return the DynamoDB primary key of an upload's record."""
    return f"{KIND}#{upload}", "RECORD"


def received_item(
    stored: Mapping[str, Any] | None,
    address: tuple[str, str, str],
    at: str,
    *,
    model: str,
    ignored: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    """Return the item of an upload whose event registration handles.

    `stored` is its item so far, `address` its bucket, key and object version (empty if unknown),
    `ignored` a code and a text.
    """
    bucket, key, object_version = address
    new = UploadRecord(upload_id(*address), model, bucket, key, created_at=at)
    record = record_from_item(stored) if stored else new
    code, text = ignored
    received = replace(
        record,
        object_version=object_version or record.object_version,
        received_at=record.received_at or at,
        ignored_code=code,
        ignored_reason=text,
    )
    return record_to_item(received)


def record_to_item(record: UploadRecord) -> dict[str, Any]:
    """Convert an upload's record to its DynamoDB item, which expires."""
    pk, sk = upload_key(record.id)
    end = datetime.fromisoformat(record.created_at) + timedelta(days=KEPT_DAYS)
    return {
        "pk": pk,
        "sk": sk,
        "kind": KIND,
        "listed": record.listed,
        "upload": asdict(record),
        "expires_at": int(end.timestamp()),
    }


def record_from_item(item: Mapping[str, Any]) -> UploadRecord:
    """Parse an upload's record from its DynamoDB item."""
    names = {entry.name for entry in fields(UploadRecord)}
    return UploadRecord(**{name: item["upload"][name] for name in names & item["upload"].keys()})


def listed_model(listed: str) -> str:
    """Return the model of an index entry, "" for none.

    >>> listed_model("2026-11-22T08:15:30.123Z#digits#0f")
    'digits'
    """
    return listed.split("#")[1]
