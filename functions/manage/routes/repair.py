"""Routes of dead letters and of the reconciler."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from functions.core.access.grants import Scope
from functions.manage.documents.uploads import (
    DeadLetters,
    ReconcileStarted,
    Redrive,
    RedriveStarted,
)
from functions.manage.route import Route


class ReconcileFunction(Protocol):
    """Reconcile function; `adapters/aws/lambda_function.py` documents the methods."""

    def call(self, event: Mapping[str, Any]) -> dict[str, Any]: ...
    def start(self, event: Mapping[str, Any]) -> None: ...


class RepairRoutes:
    """Routes for administrators, answered by the reconcile function."""

    tag = "repair"

    def __init__(self, function: ReconcileFunction) -> None:
        self._function = function

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        admin = Scope.ADMIN
        return (
            Route("GET", "/dead-letters", admin, self.list_dead_letters),
            Route("POST", "/dead-letters/redrive", admin, self.redrive_dead_letters, status=202),
            Route("POST", "/reconcile", admin, self.start_reconciler, status=202),
        )

    def list_dead_letters(self) -> DeadLetters:
        """List uploads that failed five times, each with its reason.

        They stay in the queue."""
        return DeadLetters.model_validate(self._function.call({"operation": "dead-letters"}))

    def redrive_dead_letters(self, body: Redrive | None = None) -> RedriveStarted:
        """Register the uploads of all dead letters once more."""
        per_second = body.per_second if body else None
        reply = self._function.call({"operation": "redrive", "per_second": per_second})
        return RedriveStarted.model_validate(reply)

    def start_reconciler(self) -> ReconcileStarted:
        """Start one run of the reconciler.

        It queues lost uploads again, ends those whose workers died, and checks stored files. It
        takes up to minutes: its findings are in its log and metrics.
        """
        self._function.start({})
        return ReconcileStarted(started=True)
