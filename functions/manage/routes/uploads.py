"""Routes of uploads: signed URLs, and what became of each upload."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.access.grants import Scope
from functions.core.intake.announcement import Announcement, check
from functions.core.intake.upload_log import UploadLog
from functions.manage.caller import CurrentCaller
from functions.manage.cursors import decode_cursor, encode_cursor
from functions.manage.documents.base import Limit
from functions.manage.documents.uploads import (
    CreateUpload,
    NewUpload,
    UploadDocument,
    UploadPage,
    describe_upload,
)
from functions.manage.route import Route


class SignedPuts(Protocol):
    """Signer of PUT requests; `adapters/aws/presigned.py` documents the method."""

    def sign(self, key: str, size_bytes: int, sha256: str) -> tuple[str, dict[str, str]]: ...


@dataclass(frozen=True, slots=True)
class Uploads:
    """Uploads as the control plane needs them."""

    log: UploadLog
    puts: SignedPuts
    end: Callable[[], str]  # time at which a URL that is signed now ends
    new_package: Callable[[], str] = lambda: f"up-{secrets.token_hex(10)}"


class UploadRoutes:
    """Routes that announce, read and list uploads."""

    tag = "uploads"

    def __init__(self, uploads: Uploads, current: CurrentCaller) -> None:
        self._uploads = uploads
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        return (
            Route(
                "POST",
                "/uploads",
                Scope.DEPLOY,
                self.create_upload,
                201,
                secrets=("url", "headers"),
                renew=self.sign_again,
                errors=(404,),
            ),
            Route("GET", "/uploads", Scope.READ, self.list_uploads),
            Route("GET", "/uploads/<upload_id>", Scope.READ, self.read_upload),
        )

    def create_upload(self, body: CreateUpload) -> NewUpload:
        """Return a signed URL for one file of a model.

        PUT the file there with the headers of the reply, then poll GET /uploads/{upload_id} until
        `done`. The URL works once, for exactly this size and SHA-256. Until the file is stored, a
        repeat with the same Idempotency-Key has a new URL for the same upload. Files larger than
        5 GiB are uploaded with aws s3 cp.
        """
        self._current.check_sees(body.model)
        announcement = Announcement(
            body.model,
            body.file,
            body.size_bytes,
            body.sha256.lower(),
            body.package or self._uploads.new_package(),
        )
        check(announcement, is_new=body.package is None)
        end = self._uploads.end()
        record = self._uploads.log.announce(announcement, self._current.actor, end)
        key, size_bytes, sha256 = announcement.key, announcement.size_bytes, announcement.sha256
        url, headers = self._uploads.puts.sign(key, size_bytes, sha256)
        return NewUpload(
            id=record.id,
            package=announcement.package,
            key=key,
            method="PUT",
            url=url,
            headers=headers,
            expires_at=end,
        )

    def sign_again(self, document: Mapping[str, Any], body: bytes) -> dict[str, Any]:
        """Return a new URL for the upload of a stored reply."""
        end, request = self._uploads.end(), CreateUpload.model_validate_json(body)
        record = self._uploads.log.prolong(
            document["id"], request.size_bytes, request.sha256.lower(), end
        )
        url, headers = self._uploads.puts.sign(record.key, request.size_bytes, record.sha256)
        return {"url": url, "headers": headers, "expires_at": end}

    def list_uploads(
        self,
        model: Annotated[str, Query(description="Only of this model.")] = "",
        limit: Annotated[Limit, Query()] = 50,
        cursor: Annotated[str, Query()] = "",
    ) -> UploadPage:
        """List the uploads of the last 30 days, newest first.

        Uploads by S3 alone, e.g. with aws s3 cp, are listed once registration has met them. The
        state of a list is up to a second old, and an upload that registration has not met yet is
        waiting in it.
        """
        statuses, position = self._uploads.log.page(
            decode_cursor(cursor), limit, lambda name: self._is_listed(name, model)
        )
        documents = [UploadDocument(**describe_upload(status)) for status in statuses]
        return UploadPage(uploads=documents, next_cursor=encode_cursor(position))

    def read_upload(self, upload_id: str) -> UploadDocument:
        """Return an upload with its state.

        It ends as READY with its version, REJECTED or ignored with the reason, failed as a dead
        letter, or expired. A part of a package ends as received.
        """
        return UploadDocument(
            **describe_upload(self._uploads.log.read(upload_id, self._current.sees))
        )

    def _is_listed(self, name: str, model: str) -> bool:
        return self._current.sees(name) and model in ("", name)
