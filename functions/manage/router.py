"""Router of the control plane, over Powertools' resolver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.middlewares import NextMiddleware
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError

from functions.core.errors import InvalidRequest, MethodNotAllowed, PathNotFound, shown
from functions.core.serving.http import HttpRequest, HttpResponse
from functions.manage.caller import Caller, CurrentCaller
from functions.manage.route import ROOT, Route, RouteGroup
from functions.manage.validation import invalid


@dataclass(frozen=True, slots=True)
class Match:
    """Route of a request, with the parameters of its path."""

    route: Route
    parameters: dict[str, str]


class Router:
    """Routes of the control plane in Powertools' resolver."""

    def __init__(self, groups: Sequence[RouteGroup], current: CurrentCaller) -> None:
        """Route to `groups`, whose functions read the caller from `current`."""
        self.routes = [route for group in groups for route in group.routes]
        self._current = current
        # A reply that contradicts its declared type is a bug of ours: 500, not 400.
        self.app = app = APIGatewayRestResolver(
            enable_validation=True, response_validation_error_http_code=500
        )
        for group in groups:
            for route in group.routes:
                _register(app, route, group.tag)
        self._functions = {route.function for route in self.routes}
        app.use([self._refuse_undeclared])
        app.exception_handler(RequestValidationError)(_refuse)
        app.exception_handler(Exception)(_reraise)
        app.not_found(_refuse_path)

    def match(self, method: str, path: str) -> Match:
        """Return the route of a method and path.

        HEAD is a GET without the reply's body.

        Raises:
            PathNotFound, MethodNotAllowed: there is none.
        """
        allow = []
        for route in self.routes:
            if match := route.pattern.fullmatch(path):
                if route.method == ("GET" if method == "HEAD" else method):
                    return Match(route, match.groupdict())
                allow.append(route.method)
        if allow:
            text = f"this path takes {' or '.join(allow)}, not {shown(method)}"
            raise MethodNotAllowed(text, allow=tuple(allow))
        raise PathNotFound(f"there is nothing at {shown(path)} below {ROOT}")

    def answer(self, match: Match, request: HttpRequest, caller: Caller) -> HttpResponse:
        """Return the reply to a request that its route permits.

        Raises:
            ModelNotFound: the path names a model that the caller does not see.
            InvalidRequest: a field is wrong.
            PlatformError: as the parts do.
        """
        if "model" in match.parameters:
            caller.check_sees(match.parameters["model"])
        self._current.caller = caller
        event = {
            "httpMethod": match.route.method,
            "path": request.path,
            "headers": {"content-type": "application/json"},  # whatever the caller says
            "multiValueQueryStringParameters": {n: [v] for n, v in request.query.items()},
            "requestContext": {"stage": ""},
            "body": _json_text(request.body),
        }
        reply = self.app.resolve(event, None)  # type: ignore[arg-type]
        headers = {name.lower(): values[0] for name, values in reply["multiValueHeaders"].items()}
        body = b"" if request.method == "HEAD" else reply["body"].encode()
        return HttpResponse(reply["statusCode"], body, headers)

    def _refuse_undeclared(
        self, app: APIGatewayRestResolver, next_middleware: NextMiddleware
    ) -> Response[Any]:
        """Refuse query parameters and bodies that a route does not declare."""
        route = app.context["_route"]
        if route.func not in self._functions:  # Powertools found none: `_refuse_path` follows
            return next_middleware(app)
        names = [field.alias for field in route.dependant.query_params]
        for name in app.current_event.resolved_query_string_parameters:
            if name not in names:
                choice = f"this path takes {', '.join(names)}" if names else "this path takes none"
                raise InvalidRequest(f"{name}: there is no such query parameter; {choice}")
        if app.current_event.body not in (None, "{}") and not route.dependant.body_params:
            raise InvalidRequest("body: this path takes none; leave it out")
        return next_middleware(app)


def _register(app: APIGatewayRestResolver, route: Route, tag: str) -> None:
    summary, _, description = (route.function.__doc__ or "").partition("\n\n")
    app.route(
        route.rule,
        route.method,
        summary=summary,
        description=" ".join(description.split()) or None,
        tags=[tag],
        operation_id=route.function.__name__,
        status_code=route.status,
    )(route.function)


def _json_text(body: bytes) -> str | None:
    """Return a request's body as JSON that Python's parser reads, too.

    Only orjson bounds depth and numbers, and refuses NaN and lone surrogates.
    """
    if not body:
        return None
    try:
        return orjson.dumps(orjson.loads(body)).decode()
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"body: it is no JSON: {error}") from error


def _refuse_path(error: NotFoundError) -> Response[None]:
    """Refuse a path with characters that Powertools takes for no parameter."""
    raise PathNotFound(f"a segment of this path is no name below {ROOT}") from error


def _refuse(error: RequestValidationError) -> Response[None]:
    raise invalid(error.errors()) from error


def _reraise(error: Exception) -> Response[None]:
    """Raise any other error as it is.

    Powertools would log its text, which may hold values of the request.
    """
    raise error
