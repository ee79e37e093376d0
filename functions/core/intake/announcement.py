"""Announcement of an upload through the API, with its checks."""

import re
from dataclasses import dataclass

from functions.core.errors import InvalidModel, InvalidRequest, shown
from functions.core.names import PATH_BYTES, is_plain_path
from functions.core.registration.side_weights import model_key
from functions.core.upload_record import PACKAGE
from functions.core.uploads import BYSTANDERS, PARTS, PREFIX, Form, model_and_form

PUT_BYTES = 5 * 1024**3  # S3's limit for one PUT
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ACCEPTED = (
    "send model.onnx, model.tar.gz, or the files of a package: those in parts/ first, "
    "manifest.json last"
)


@dataclass(frozen=True, slots=True)
class Announcement:
    """Announced upload: file of a model, with its size and SHA-256.

    `file` may be a path in a folder parts/. `package` is the folder of the files that belong
    together, of an earlier announcement.
    """

    model: str
    file: str
    size_bytes: int
    sha256: str
    package: str

    @property
    def key(self) -> str:
        """S3 key of the file."""
        return f"{PREFIX}{self.model}/{self.package}/{self.file}"


def check(announcement: Announcement, *, is_new: bool) -> None:
    """Accept an upload that registration would not ignore.

    `is_new` says that no other file is in the package yet.

    Raises:
        InvalidRequest: names the field at fault.
    """
    if not PACKAGE.fullmatch(announcement.package):
        raise InvalidRequest(
            f"package: {shown(announcement.package)} is none; send that of an earlier upload, "
            "or leave it out"
        )
    if not _SHA256.fullmatch(announcement.sha256):
        raise InvalidRequest("sha256: send the file's SHA-256 as 64 hexadecimal digits, 0-9 a-f")
    if not 1 <= announcement.size_bytes <= PUT_BYTES:
        raise InvalidRequest(
            f"size_bytes: {announcement.size_bytes}; one PUT takes 1 to {PUT_BYTES} bytes (5 GiB); "
            f"upload larger files with aws s3 cp to {PREFIX}{announcement.model}/"
        )
    _check_file(announcement, is_new)


def _check_file(announcement: Announcement, is_new: bool) -> None:
    file = announcement.file
    if not is_plain_path(file) or len(announcement.key.encode()) > PATH_BYTES:
        raise InvalidRequest(f"file: {shown(file)} is no plain relative path; {_ACCEPTED}")
    if file.startswith(f"{PARTS}/"):
        return
    if "/" in file:
        raise InvalidRequest(f"file: {shown(file)} is in a folder other than {PARTS}/; {_ACCEPTED}")
    if model_key(announcement.key):  # weights beside a model; either may come first
        return
    if _form(announcement) is Form.MANIFEST and is_new:
        raise InvalidRequest(
            f"package: {shown(file)} is the last file of a package; send the package of its parts"
        )


def _form(announcement: Announcement) -> Form:
    """Return the form in which registration takes the file.

    Raises:
        InvalidRequest: registration would ignore it.
    """
    file = announcement.file
    try:
        target = model_and_form(announcement.key)
    except InvalidModel as error:
        raise InvalidRequest(f"file: {error}", code=error.instance_code) from error
    if target is None and file.lower() in BYSTANDERS:
        raise InvalidRequest(f"file: {shown(file)} is a file of training jobs; {_ACCEPTED}")
    if target is None:
        raise InvalidRequest(f"file: {shown(file)} would be ignored; {_ACCEPTED}")
    return target[1]


def is_part(key: str) -> bool:
    """Return True for a file that becomes no version by itself.

    >>> is_part("models/a/up-0/parts/w.bin"), is_part("models/a/x.onnx.data")
    (True, True)
    >>> is_part("models/a/model.onnx")
    False
    """
    try:
        return model_key(key) is not None or model_and_form(key) is None
    except InvalidModel:
        return False
