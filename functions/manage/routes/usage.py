"""Routes of usage: requests, latency and costs."""

from collections.abc import Sequence
from datetime import date
from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.access.grants import Scope
from functions.core.errors import Forbidden
from functions.manage.caller import CurrentCaller
from functions.manage.documents.usage import UsageDocument
from functions.manage.route import Route
from functions.manage.usage import AllBy, ModelBy, UsageApi

First = Annotated[date | None, Query(alias="from", description="First day in UTC.")]
Last = Annotated[date | None, Query(alias="to", description="Last day in UTC.")]


class UsageRoutes:
    """Routes that add up the requests to models."""

    tag = "usage"

    def __init__(self, usage: UsageApi, current: CurrentCaller) -> None:
        self._usage = usage
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        return (
            Route("GET", "/models/<model>/usage", Scope.READ, self.read_model_usage),
            Route("GET", "/usage", Scope.READ, self.read_usage),
        )

    def read_model_usage(
        self,
        model: str,
        by: Annotated[ModelBy, Query()] = ModelBy.VERSION,
        first: First = None,
        last: Last = None,
        version: Annotated[int | None, Query(ge=1, description="Only of this version.")] = None,
    ) -> UsageDocument:
        """Return a model's requests, latency and costs.

        By version, alias, key, hour or day, for at most 31 days; by default the last seven. By
        key, it needs the scope admin.
        """
        self._check_keys(by.value)
        return self._usage.of_model(model, by, first, last, version)

    def read_usage(
        self,
        by: Annotated[AllBy, Query()] = AllBy.MODEL,
        first: First = None,
        last: Last = None,
    ) -> UsageDocument:
        """Return the requests, latency and costs of all models.

        By model, key or day, for at most 400 days; by default the last seven. By key, it needs the
        scope admin.
        """
        self._check_keys(by.value)
        return self._usage.of_all(by, first, last, self._current.sees)

    def _check_keys(self, by: str) -> None:
        if by == "key" and not self._current.caller.grant.allows(Scope.ADMIN):
            raise Forbidden("by: usage by key needs a key with the scope admin; choose another one")
