"""Operations by direct invocation with IAM, e.g. for the first key.

An event is `{"operation": <name>, <field>: …}`, with the fields of the HTTP request and `id` for
one key. `actor` may say who asks; IAM vouches only for the permission to invoke the function.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from functions.core.errors import InvalidRequest, shown
from functions.manage.documents.base import Limit, RequestDocument
from functions.manage.documents.keys import ChangeKey, CreateKey, RotateKey
from functions.manage.keys import KeysApi
from functions.manage.validation import invalid


class ListKeys(RequestDocument):
    """Request for a page of access keys."""

    limit: Limit = 50
    cursor: str = ""


class NamedKey(RequestDocument):
    """Request about one access key."""

    id: str


class ChangeNamedKey(ChangeKey):
    """Request to change one access key's limits."""

    id: str


class RotateNamedKey(RotateKey):
    """Request for a new secret of one access key."""

    id: str


class Actor(BaseModel):
    """Name of whoever invokes the function."""

    actor: str = Field(default="", max_length=100, pattern=r"^[ -~]*$")  # printable ASCII


def run_operation(api: KeysApi, event: Mapping[str, Any]) -> dict[str, Any]:
    """Run the operation that an event names and return its reply.

    Raises:
        InvalidRequest: there is no such operation, or a field is wrong.
        PlatformError: as `KeysApi` does.
    """
    name = event.get("operation")
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if operation is None:
        raise InvalidRequest(
            f"operation: there is no {shown(name)}; choose from {', '.join(OPERATIONS)}"
        )
    fields = {key: value for key, value in event.items() if key not in ("operation", "actor")}
    try:
        given_name = Actor.model_validate({"actor": event.get("actor", "")}).actor
        reply = operation(api, fields, f"iam:{given_name}" if given_name else "iam")
    except ValidationError as error:
        raise invalid(error.errors()) from error
    return reply.model_dump(mode="json")


def _create(api: KeysApi, fields: dict[str, Any], actor: str) -> BaseModel:
    return api.create(CreateKey.model_validate(fields), actor)


def _list(api: KeysApi, fields: dict[str, Any], _: str) -> BaseModel:
    request = ListKeys.model_validate(fields)
    return api.page(request.limit, request.cursor)


def _read(api: KeysApi, fields: dict[str, Any], _: str) -> BaseModel:
    return api.read(NamedKey.model_validate(fields).id)


def _change(api: KeysApi, fields: dict[str, Any], actor: str) -> BaseModel:
    request = ChangeNamedKey.model_validate(fields)
    return api.change(request.id, request, actor)


def _rotate(api: KeysApi, fields: dict[str, Any], actor: str) -> BaseModel:
    request = RotateNamedKey.model_validate(fields)
    return api.rotate(request.id, request, actor)


def _revoke(api: KeysApi, fields: dict[str, Any], actor: str) -> BaseModel:
    return api.revoke(NamedKey.model_validate(fields).id, actor)


OPERATIONS: dict[str, Callable[[KeysApi, dict[str, Any], str], BaseModel]] = {
    "create-key": _create,
    "list-keys": _list,
    "read-key": _read,
    "change-key": _change,
    "rotate-key": _rotate,
    "revoke-key": _revoke,
}
