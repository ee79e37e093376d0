"""Route of the control plane's own OpenAPI document."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from functions.manage.route import Route


class OpenApiRoutes:
    """Route of the OpenAPI document, which `describe` makes once."""

    tag = "documents"

    def __init__(self, describe: Callable[[], dict[str, Any]]) -> None:
        self._describe = cache(describe)

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        return (Route("GET", "/openapi.json", None, self.read_openapi),)

    def read_openapi(self) -> dict[str, Any]:
        """Return this document."""
        return self._describe()
