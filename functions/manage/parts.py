"""Parts of the control plane, and the routes that call them."""

from collections.abc import Sequence
from dataclasses import dataclass

from functions.core.catalog.catalog import Catalog
from functions.core.catalog.decisions import Decisions
from functions.core.catalog.trail import Trail
from functions.core.registry.releases import Releases
from functions.manage.caller import CurrentCaller
from functions.manage.keys import KeysApi
from functions.manage.openapi.control_plane import control_plane_document
from functions.manage.route import RouteGroup
from functions.manage.router import Router
from functions.manage.routes.aliases import AliasRoutes
from functions.manage.routes.audit import AuditRoutes
from functions.manage.routes.canaries import CanaryParts, CanaryRoutes
from functions.manage.routes.keys import KeyRoutes
from functions.manage.routes.models import ModelRoutes
from functions.manage.routes.openapi import OpenApiRoutes
from functions.manage.routes.repair import ReconcileFunction, RepairRoutes
from functions.manage.routes.samples import SampleRoutes, Samples
from functions.manage.routes.traffic import TrafficRoutes
from functions.manage.routes.uploads import UploadRoutes, Uploads
from functions.manage.routes.usage import UsageRoutes
from functions.manage.routes.versions import VersionRoutes
from functions.manage.usage import UsageApi


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts that routes call: `main.py` builds them over AWS, tests over fakes."""

    keys: KeysApi
    catalog: Catalog
    trail: Trail
    releases: Releases
    decisions: Decisions
    usage: UsageApi
    canary: CanaryParts
    uploads: Uploads
    reconcile: ReconcileFunction
    samples: Samples


def make_router(parts: Parts) -> Router:
    """Return the router of every route."""
    current = CurrentCaller()
    catalog, trail, decisions = parts.catalog, parts.trail, parts.decisions
    groups: Sequence[RouteGroup] = (
        UploadRoutes(parts.uploads, current),
        ModelRoutes(catalog, decisions, current),
        VersionRoutes(catalog, decisions, parts.releases, current),
        SampleRoutes(catalog, parts.samples),
        AliasRoutes(catalog, trail, parts.releases, decisions, current),
        TrafficRoutes(catalog, parts.releases, parts.canary.read_arms, current),
        CanaryRoutes(parts.canary, catalog, trail, current),
        AuditRoutes(trail, catalog, current),
        KeyRoutes(parts.keys, current),
        UsageRoutes(parts.usage, current),
        RepairRoutes(parts.reconcile),
        OpenApiRoutes(lambda: control_plane_document(router.app, router.routes)),
    )
    router = Router(groups, current)
    return router
