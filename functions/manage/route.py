"""Route of the control plane: method, path, scope and function."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from functions.core.access.grants import Scope

ROOT = "/api/v1"
# Returns fields of a reply anew, from the stored document and the body of the repeated request.
Renew = Callable[[Mapping[str, Any], bytes], dict[str, Any]]


@dataclass(frozen=True)
class Route:
    """Method and path below ROOT, with the scope that a key needs.

    `path` has parameters in angle brackets; `<model>` is a model's name, and the caller has to see
    that model. `scope` is None for everybody, also without a key. The function's docstring
    describes the route, and its signature the parameters: those of the path, `body` for a JSON
    document, and all others of the query.
    """

    method: str
    path: str
    scope: Scope | None
    function: Callable[..., Any]
    status: int = 200
    identified: bool = False  # refused while the parameter Auth is none
    secrets: tuple[str, ...] = ()  # fields of the reply that are never stored for repeats
    renew: Renew | None = None  # fields that a repeat has anew, e.g. a URL that expires
    errors: tuple[int, ...] = ()  # statuses of errors that method, path and scope do not imply

    @property
    def rule(self) -> str:
        """Path with ROOT, as Powertools spells it."""
        return ROOT + self.path

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression of the path; a trailing slash is allowed."""
        return re.compile(re.sub("<([^>]*)>", r"(?P<\1>[^/]+)", self.rule) + "/?", re.DOTALL)


class RouteGroup(Protocol):
    """Routes of one resource, e.g. of access keys."""

    tag: str  # heading in the OpenAPI document

    @property
    def routes(self) -> Sequence[Route]:
        """Routes, in the order of the OpenAPI document."""
