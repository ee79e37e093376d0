"""Routes of the traffic of aliases."""

from collections.abc import Sequence

from functions.core.access.grants import Scope
from functions.core.catalog.catalog import Catalog
from functions.core.registry.releases import Releases, unknown_alias
from functions.core.traffic.traffic import Traffic
from functions.manage.caller import CurrentCaller
from functions.manage.documents.fields import AliasName, ModelName
from functions.manage.documents.traffic import (
    AgreementDocument,
    SetTraffic,
    TrafficDocument,
    describe_traffic,
)
from functions.manage.route import Route
from functions.manage.routes.aliases import Expected
from functions.manage.routes.canaries import ReadArms


class TrafficRoutes:
    """Routes that show, replace and end the split of an alias's requests."""

    tag = "traffic"

    def __init__(
        self, catalog: Catalog, releases: Releases, read_arms: ReadArms, current: CurrentCaller
    ) -> None:
        self._catalog = catalog
        self._read_arms = read_arms
        self._releases = releases
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        traffic = "/models/<model>/aliases/<alias>/traffic"
        return (
            Route("GET", traffic, Scope.READ, self.read_traffic),
            Route("PUT", traffic, Scope.DEPLOY, self.set_traffic),
            Route("DELETE", traffic, Scope.DEPLOY, self.end_traffic),
        )

    def read_traffic(self, model: ModelName, alias: AliasName) -> TrafficDocument:
        """Return the traffic of an alias, with the agreement of its shadow."""
        stored = self._catalog.alias(model, alias)
        if stored is None:
            raise unknown_alias(model, alias)
        document = describe_traffic(model, stored)
        if stored.traffic and (shadow := stored.traffic.shadow):
            _, arm = self._read_arms(model, stored.traffic.id, stored.version, shadow.version)
            document.agreement = AgreementDocument(compared=arm.compared, differing=arm.disagreed)
        return document

    def set_traffic(self, model: ModelName, alias: AliasName, body: SetTraffic) -> TrafficDocument:
        """Replace the traffic object of an alias.

        A caller stays on the side of a version while its share grows. While a canary runs, this
        is answered 409: stop or promote it first.
        """
        return self._set(model, alias, body.traffic(), body.expected_revision)

    def end_traffic(
        self, model: ModelName, alias: AliasName, expected_revision: Expected = None
    ) -> TrafficDocument:
        """Send every request to the version that the alias points at.

        A canary is stopped.
        """
        return self._set(model, alias, None, expected_revision)

    def _set(
        self, model: str, alias: str, traffic: Traffic | None, expected: int | None
    ) -> TrafficDocument:
        changed = self._releases.set_traffic(
            model, alias, traffic, actor=self._current.actor, expected=expected
        )
        return describe_traffic(model, changed)
