"""Parts of the control plane, and the routes that call them."""

from collections.abc import Sequence
from dataclasses import dataclass

from functions.manage.caller import CurrentCaller
from functions.manage.keys import KeysApi
from functions.manage.route import RouteGroup
from functions.manage.router import Router
from functions.manage.routes.keys import KeyRoutes


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts that routes call: `main.py` builds them over AWS, tests over fakes."""

    keys: KeysApi


def make_router(parts: Parts) -> Router:
    """Return the router of every route."""
    current = CurrentCaller()
    groups: Sequence[RouteGroup] = (KeyRoutes(parts.keys, current),)
    return Router(groups, current)
