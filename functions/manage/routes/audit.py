"""Routes of audit records."""

from collections.abc import Sequence
from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.access.grants import Scope
from functions.core.catalog.catalog import Catalog
from functions.core.catalog.trail import AuditFilter, Trail
from functions.manage.caller import CurrentCaller
from functions.manage.cursors import decode_cursor, encode_cursor
from functions.manage.documents.audit import AuditPage, describe_record
from functions.manage.documents.fields import Cursor, ModelName, PageLimit
from functions.manage.route import Route

Actor = Annotated[str, Query(max_length=300, description="Whole name of the actor.")]
Action = Annotated[str, Query(max_length=100, description="Whole name of the action.")]
Model = Annotated[str, Query(max_length=128, description="Model of the records.")]


class AuditRoutes:
    """Routes of audit records: of one model, and of everything."""

    tag = "audit"

    def __init__(self, trail: Trail, catalog: Catalog, current: CurrentCaller) -> None:
        self._trail = trail
        self._catalog = catalog
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        return (
            Route("GET", "/audit", Scope.ADMIN, self.list_audit, errors=(404,)),
            Route("GET", "/models/<model>/audit", Scope.READ, self.list_model_audit),
        )

    def list_audit(
        self,
        model: Model = "",
        actor: Actor = "",
        action: Action = "",
        limit: PageLimit = 50,
        cursor: Cursor = "",
    ) -> AuditPage:
        """List audit records of models and keys, newest first."""
        if model:
            self._current.check_sees(model)
            return self.list_model_audit(model, actor, action, limit, cursor)
        records, position = self._trail.page(
            AuditFilter(actor, action), decode_cursor(cursor), limit
        )
        documents = [describe_record(record) for record in records]
        return AuditPage(records=documents, next_cursor=encode_cursor(position))

    def list_model_audit(
        self,
        model: ModelName,
        actor: Actor = "",
        action: Action = "",
        limit: PageLimit = 50,
        cursor: Cursor = "",
    ) -> AuditPage:
        """List a model's audit records, newest first."""
        records, position = self._trail.model_page(
            model, AuditFilter(actor, action), decode_cursor(cursor), limit
        )
        if not records and not cursor:
            self._catalog.model(model)
        documents = [describe_record(record) for record in records]
        return AuditPage(records=documents, next_cursor=encode_cursor(position))
