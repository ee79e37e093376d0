"""Routes of models."""

from collections.abc import Sequence
from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.access.grants import Scope
from functions.core.catalog.catalog import Catalog, Search
from functions.core.catalog.decisions import Decisions
from functions.manage.caller import CurrentCaller
from functions.manage.cursors import decode_cursor, encode_cursor
from functions.manage.documents.fields import Cursor, ModelName, PageLimit
from functions.manage.documents.models import (
    ChangeModel,
    ModelDocument,
    ModelPage,
    ModelState,
    ServedModelDocument,
    describe_model,
)
from functions.manage.route import Route

SearchText = Annotated[
    str, Query(max_length=128, description="Text in the model's name, in any case.")
]
Prefix = Annotated[str, Query(max_length=128, description="Beginning of the model's name.")]
State = Annotated[ModelState, Query(description="State of the models.")]


class ModelRoutes:
    """Routes that list, read, change, archive and restore models."""

    tag = "models"

    def __init__(self, catalog: Catalog, decisions: Decisions, current: CurrentCaller) -> None:
        self._catalog = catalog
        self._decisions = decisions
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        model = "/models/<model>"
        return (
            Route("GET", "/models", Scope.READ, self.list_models),
            Route("GET", model, Scope.READ, self.read_model),
            Route("PATCH", model, Scope.DEPLOY, self.change_model),
            Route("POST", f"{model}/archive", Scope.DEPLOY, self.archive_model),
            Route("POST", f"{model}/restore", Scope.DEPLOY, self.restore_model),
        )

    def list_models(
        self,
        search: SearchText = "",
        prefix: Prefix = "",
        state: State = ModelState.ACTIVE,
        limit: PageLimit = 50,
        cursor: Cursor = "",
    ) -> ModelPage:
        """List models by name."""
        grant = self._current.caller.grant
        rule = Search(
            search, prefix, state is ModelState.ARCHIVED, None if grant.sees_all else grant.sees
        )
        models, position = self._catalog.models(rule, decode_cursor(cursor), limit)
        documents = [ModelDocument(**describe_model(model)) for model in models]
        return ModelPage(models=documents, next_cursor=encode_cursor(position))

    def read_model(self, model: ModelName) -> ServedModelDocument:
        """Return a model."""
        summary, serving = self._catalog.model(model)
        return ServedModelDocument(**describe_model(summary), serving=serving)

    def change_model(self, model: ModelName, body: ChangeModel) -> ServedModelDocument:
        """Change a model's description or release policy."""
        self._decisions.describe(
            model, body.changes(), actor=self._current.actor, expected=body.expected_revision
        )
        return self.read_model(model)

    def archive_model(self, model: ModelName) -> ServedModelDocument:
        """Take a model out of service and of lists.

        Its versions and aliases stay, and restore puts it back.
        """
        self._decisions.archive_model(model, actor=self._current.actor)
        return self.read_model(model)

    def restore_model(self, model: ModelName) -> ServedModelDocument:
        """Put an archived model back into service."""
        self._decisions.restore_model(model, actor=self._current.actor)
        return self.read_model(model)
