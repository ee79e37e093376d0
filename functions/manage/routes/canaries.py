"""Routes of canaries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from functions.core.access.grants import Scope
from functions.core.canary.canaries import Canaries, Launch, canary_of
from functions.core.canary.judge import Arm
from functions.core.canary.verdict import judge
from functions.core.catalog.catalog import Catalog
from functions.core.catalog.trail import AuditFilter, Trail
from functions.core.errors import ModelNotFound
from functions.core.registry.releases import unknown_alias
from functions.core.registry.table import Item
from functions.core.registry.version import Alias
from functions.core.traffic.canary import Canary
from functions.manage.caller import CurrentCaller
from functions.manage.documents.aliases import Expectation
from functions.manage.documents.canaries import (
    CanaryDocument,
    StartCanary,
    describe_canary,
    describe_end,
    ended_canary,
)
from functions.manage.documents.fields import AliasName, ModelName
from functions.manage.route import Route
from functions.manage.routes.aliases import Expected

LOOKED_THROUGH = 200  # changes of an alias, for the end of its latest canary

# Returns the counters of two versions of a model under a traffic object: stable, candidate.
ReadArms = Callable[[str, str, int, int], tuple[Arm, Arm]]


@dataclass(frozen=True, slots=True)
class CanaryParts:
    """Parts that the routes of canaries call."""

    canaries: Canaries
    launch: Launch
    read_arms: ReadArms
    now: Callable[[], str]


class CanaryRoutes:
    """Routes that start, show, stop and promote the canary of an alias."""

    tag = "canaries"

    def __init__(
        self, parts: CanaryParts, catalog: Catalog, trail: Trail, current: CurrentCaller
    ) -> None:
        self._parts = parts
        self._catalog = catalog
        self._trail = trail
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        canary = "/models/<model>/aliases/<alias>/canary"
        return (
            Route("GET", canary, Scope.READ, self.read_canary),
            Route("POST", canary, Scope.DEPLOY, self.start_canary, status=201),
            Route("DELETE", canary, Scope.DEPLOY, self.stop_canary),
            Route("POST", f"{canary}/promote", Scope.DEPLOY, self.promote_canary),
        )

    def read_canary(self, model: ModelName, alias: AliasName) -> CanaryDocument:
        """Return an alias's running canary, or its latest one's end."""
        stored = self._alias(model, alias)
        canary = canary_of(stored)
        if canary is not None:
            return self._running(model, stored, canary)
        record = self._last_end(model, alias)
        if record is None:
            text = f"alias {alias} of '{model}' has had no canary; start one by POST"
            raise ModelNotFound(text, code="CANARY_NOT_FOUND")
        return CanaryDocument(**describe_end(model, stored, record))

    def start_canary(self, model: ModelName, alias: AliasName, body: StartCanary) -> CanaryDocument:
        """Start a canary: a version gets growing shares of the requests.

        It is promoted after the last step, and rolled back as soon as it is worse than the stable
        version, or at its maximum age.
        """
        self._alias(model, alias)
        self._parts.canaries.start(
            model,
            alias,
            body.version,
            body.settings,
            self._parts.launch,
            actor=self._current.actor,
            expected=body.expected_revision,
        )
        return self.read_canary(model, alias)

    def stop_canary(
        self, model: ModelName, alias: AliasName, expected_revision: Expected = None
    ) -> CanaryDocument:
        """Stop a canary: all requests go to the stable version."""
        self._alias(model, alias)
        self._parts.canaries.stop(
            model, alias, actor=self._current.actor, expected=expected_revision
        )
        return self.read_canary(model, alias)

    def promote_canary(
        self, model: ModelName, alias: AliasName, body: Expectation | None = None
    ) -> CanaryDocument:
        """End a canary now: the alias points at its version."""
        expected = body.expected_revision if body else None
        self._alias(model, alias)
        self._parts.canaries.promote(model, alias, actor=self._current.actor, expected=expected)
        return self.read_canary(model, alias)

    def _alias(self, model: str, name: str) -> Alias:
        """Return an alias that exists, of a model that exists."""
        alias = self._catalog.alias(model, name)
        if alias is None:
            raise unknown_alias(model, name)
        return alias

    def _running(self, model: str, alias: Alias, canary: Canary) -> CanaryDocument:
        now = self._parts.now()
        split = alias.traffic.id if alias.traffic else ""
        arms = self._parts.read_arms(model, split, alias.version, canary.version)
        verdict = judge(canary, *arms, now)
        return CanaryDocument(**describe_canary(model, alias, canary, arms, verdict, now))

    def _last_end(self, model: str, alias: str) -> Item | None:
        """Return the audit record that ended an alias's latest canary, or None."""
        records, _ = self._trail.model_page(model, AuditFilter(alias=alias), "", LOOKED_THROUGH)
        ends = (record for record in records if ended_canary(record, alias) is not None)
        return next(ends, None)
