"""The hourly schedule becomes a run of the reconciler; two operations for people list and redrive the dead letters."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit

from functions.core.errors import InvalidRequest, Unavailable, shown
from functions.core.registry.dead_letters import DeadLetterQueue, dead_letters
from functions.core.registry.reconciler import Reconciler

RESERVE_MS = 30_000  # no further piece is begun with less time left
NAMED = 100  # damaged versions in the log line

Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]


def make_handler(
    reconciler: Reconciler, letters: DeadLetterQueue, logger: Logger, metrics: Metrics
) -> Handler:
    """The Lambda handler, bound to `reconciler` and the dead letters.

    {"operation": "dead-letters"} lists them with their reasons; {"operation": "redrive"} sends them back to the queue,
    `per_second` of them if it is given. Any other event, as the schedule's, is one run of the reconciler.
    """

    def reconcile(context: Any) -> dict[str, Any]:
        found = reconciler.run(lambda: bool(context.get_remaining_time_in_millis() > RESERVE_MS))
        counts = found.counts()
        logger.info(
            "reconciled", found=counts, damaged=sorted(found.damaged)[:NAMED], failed=found.failed
        )
        metrics.add_metric(
            "Reconciled", MetricUnit.Count, found.lost_uploads + found.resumed_versions
        )
        metrics.add_metric("Stuck", MetricUnit.Count, found.stuck_uploads + found.given_up_versions)
        metrics.add_metric("Damaged", MetricUnit.Count, len(found.damaged))
        metrics.add_metric("BlobsCollected", MetricUnit.Count, found.collected_blobs)
        metrics.flush_metrics()
        if found.failed:  # told as an error of the function, so that its alarm hears of it
            raise Unavailable("; ".join(found.failed))
        return counts

    def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        logger.append_keys(request_id=context.aws_request_id)
        match event.get("operation"):
            case None:
                return reconcile(context)
            case "dead-letters":
                return {
                    "dead_letters": [
                        asdict(letter) for letter in dead_letters(letters, reconciler.registry)
                    ]
                }
            case "redrive":
                task = letters.redrive(event.get("per_second"))
                logger.info("redrive begun", task=task)
                return {"task": task}
        raise InvalidRequest(
            f"{shown(event['operation'])} is no operation: leave it out, or dead-letters or redrive"
        )

    return lambda_handler
