"""Caller of a request: admission, permissions, name for audit records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functions.core.access.auth import Auth
from functions.core.access.gate import Gate
from functions.core.access.grants import UNLIMITED, Grant
from functions.core.errors import Forbidden
from functions.core.names import is_model_name
from functions.core.registry.transactions import unknown_model
from functions.manage.route import Route

NOBODY = "anonymous"  # actor while the parameter Auth is none


@dataclass(frozen=True, slots=True)
class Caller:
    """Sender of a request: name for audit records, and permissions."""

    actor: str
    grant: Grant = UNLIMITED

    def check_sees(self, model: str) -> None:
        """Accept a model's name if the model may exist for the caller.

        Raises:
            ModelNotFound: the name is none, or its model is another caller's.
        """
        if not (is_model_name(model) and self.grant.sees(model)):
            raise unknown_model(model)


class CurrentCaller:
    """Caller of the request in progress; there is one at a time."""

    def __init__(self) -> None:
        self.caller = Caller(NOBODY)

    @property
    def actor(self) -> str:
        """Name of the caller for audit records."""
        return self.caller.actor

    def check_sees(self, model: str) -> None:
        """Accept a model's name as `Caller.check_sees` does."""
        self.caller.check_sees(model)

    def sees(self, model: str) -> bool:
        """Return True if a model of this name exists for the caller."""
        return self.caller.grant.sees(model)


@dataclass(frozen=True, slots=True)
class Entrance:
    """Admission of HTTP requests, as the template's parameter Auth asks for."""

    auth: Auth
    gate: Gate

    def admit(self, route: Route, headers: Mapping[str, str], event: Mapping[str, Any]) -> Caller:
        """Return the sender of a request that its route permits.

        Raises:
            InvalidRequest: the key is missing, invalid, or lacks the route's scope.
            Unavailable: the registry fails.
        """
        if route.scope is None:
            return Caller(NOBODY)
        match self.auth:
            case Auth.KEYS:
                grant = self.gate.authorize(headers, route.scope)
                return Caller(f"key:{grant.key_id}", grant)
            case Auth.IAM:
                identity = (event.get("requestContext") or {}).get("identity") or {}
                return Caller(f"iam:{identity.get('userArn') or ''}")
        if route.identified:
            raise Forbidden(
                "keys are not managed over HTTP while the parameter Auth is none: "
                "invoke the function with IAM",
                code="AUTH_NONE",
            )
        return Caller(NOBODY)
