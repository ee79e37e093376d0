"""HTTP routes of the control plane, in Powertools' resolver."""

import re
from typing import Annotated

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.errors import InvalidRequest, MethodNotAllowed, PathNotFound, shown
from functions.core.serving.http import HttpRequest
from functions.manage.documents import (
    CreateKey,
    KeyDocument,
    KeyPage,
    Limit,
    NewKeyDocument,
    RotateKey,
)
from functions.manage.keys import KeysApi
from functions.manage.validation import invalid

ROOT = "/api/v1"
KEYS = f"{ROOT}/keys"
JSON = "application/json"


class Routes:
    """Resolver of the control plane's routes, bound to its parts."""

    def __init__(self, keys: KeysApi) -> None:
        self._keys = keys
        self._app = app = APIGatewayRestResolver(enable_validation=True)
        self._table = (
            ("POST", KEYS, self._create),
            ("GET", KEYS, self._list),
            ("GET", f"{KEYS}/<key_id>", self._read),
            ("POST", f"{KEYS}/<key_id>/rotate", self._rotate),
            ("POST", f"{KEYS}/<key_id>/revoke", self._revoke),
        )
        for method, path, function in self._table:
            app.route(path, method)(function)
        app.exception_handler(RequestValidationError)(_refuse)
        app.exception_handler(Exception)(_reraise)
        app.not_found(self._refuse_path)

    def answer(self, request: HttpRequest, actor: str) -> tuple[int, str]:
        """Return the status and JSON text of an authorised request's reply.

        Raises:
            PathNotFound, MethodNotAllowed: no route matches.
            InvalidRequest: a field is wrong.
            PlatformError: as the parts do.
        """
        try:
            body = request.body.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("body: it is no UTF-8; send JSON") from error
        event = {
            "httpMethod": request.method,
            "path": request.path,
            "headers": {"content-type": JSON},  # whatever the caller says, and without its key
            "multiValueQueryStringParameters": {n: [v] for n, v in request.query.items()},
            "requestContext": {"stage": ""},
            "body": body or None,
        }
        self._app.append_context(actor=actor)  # type: ignore[no-untyped-call]
        reply = self._app.resolve(event, None)  # type: ignore[arg-type]
        return reply["statusCode"], reply["body"]

    @property
    def _actor(self) -> str:
        return str(self._app.context["actor"])

    def _create(self, body: CreateKey) -> Response[NewKeyDocument]:
        return Response(201, JSON, self._keys.create(body, self._actor))

    def _list(
        self, limit: Annotated[Limit, Query()] = 50, cursor: Annotated[str, Query()] = ""
    ) -> KeyPage:
        return self._keys.page(limit, cursor)

    def _read(self, key_id: str) -> KeyDocument:
        return self._keys.read(key_id)

    def _rotate(self, key_id: str, body: RotateKey | None = None) -> NewKeyDocument:
        return self._keys.rotate(key_id, body or RotateKey(), self._actor)

    def _revoke(self, key_id: str) -> KeyDocument:
        return self._keys.revoke(key_id, self._actor)

    def _refuse_path(self, error: NotFoundError) -> Response[None]:
        path, method = self._app.current_event.path, self._app.current_event.http_method
        patterns = [(allowed, re.sub("<[^>]*>", "[^/]+", rule)) for allowed, rule, _ in self._table]
        allow = tuple(allowed for allowed, rule in patterns if re.fullmatch(rule + "/?", path))
        if allow:
            text = f"this path takes {' or '.join(allow)}, not {shown(method)}"
            raise MethodNotAllowed(text, allow=allow) from error
        raise PathNotFound(f"there is nothing at {shown(path)} below {ROOT}") from error


def _refuse(error: RequestValidationError) -> Response[None]:
    raise invalid(error.errors()) from error


def _reraise(error: Exception) -> Response[None]:
    """Raise any other error as it is.

    Powertools would log its text, which may hold values of the request.
    """
    raise error
