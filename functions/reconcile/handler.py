"""Lambda handler: repair registry and storage hourly, list and redrive dead letters."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit

from functions.core.errors import InvalidRequest, Unavailable, shown
from functions.core.registry.dead_letters import Message, explain
from functions.core.registry.reconciler import Findings, Reconciler, TimeLeft
from functions.core.registry.table import Conflict

RESERVE_MS = 30_000  # ms; with less time left, no further task of the reconciler begins
DAMAGED_LOGGED = 100  # damaged versions named in the log line
DEAD_LETTERS = 100  # dead letters listed in one answer


class DeadLetterQueue(Protocol):
    """Dead-letter queue of failed uploads, to list and to redrive.

    `adapters/aws/sqs.py` documents the methods.
    """

    def peek(self, limit: int) -> list[Message]: ...
    def redrive(self, per_second: int | None = None) -> str: ...


@dataclass(frozen=True, slots=True)
class ReconcileHandler:
    """Lambda handler for hourly reconciliation and operators' dead-letter commands.

    {"operation": "dead-letters"} lists dead letters with their reasons; {"operation": "redrive"}
    sends them back to the registration queue, at most `per_second` a second if that is given. Any
    event without an operation, like that of the schedule, is one run of the reconciler.
    """

    reconciler: Reconciler
    queue: DeadLetterQueue
    logger: Logger
    metrics: Metrics
    sum_usage: Callable[[TimeLeft], int]  # adds closed hours to the sums; returns their number

    def __call__(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """Run the event's operation: reconcile, list dead letters, or redrive them.

        Raises:
            InvalidRequest: no such operation.
            Unavailable: storage, registry or queue failed; the function's alarm counts it.
        """
        self.logger.append_keys(request_id=context.aws_request_id)
        match event.get("operation"):
            case None:
                return self.reconcile(context)
            case "dead-letters":
                return self.list_dead_letters()
            case "redrive":
                return self.redrive(event.get("per_second"))
        raise InvalidRequest(
            f"{shown(event['operation'])} is no operation: "
            "leave it out, or use dead-letters or redrive"
        )

    def reconcile(self, context: Any) -> dict[str, Any]:
        """Repair registry and storage; log the findings and emit metrics."""

        def time_left() -> bool:
            return bool(context.get_remaining_time_in_millis() > RESERVE_MS)

        findings = self.reconciler.run(time_left)
        counts = {**findings.counts(), "summed_hours": self._sum_usage(findings, time_left)}
        damaged = sorted(findings.damaged)[:DAMAGED_LOGGED]
        self.logger.info("reconciled", found=counts, damaged=damaged, failed=findings.failed)
        self._count(findings)
        if findings.failed:  # raised only now: the other tasks were done
            raise Unavailable("; ".join(findings.failed))
        return counts

    def _sum_usage(self, findings: Findings, time_left: TimeLeft) -> int:
        try:
            return self.sum_usage(time_left)
        except (Unavailable, Conflict) as error:  # the next run continues
            findings.failed.append(f"sum_usage: {error}")
            return 0

    def list_dead_letters(self) -> dict[str, Any]:
        """List failed uploads (dead letters) with reasons, without removing them."""
        letters = explain(self.queue.peek(DEAD_LETTERS), self.reconciler.registry)
        return {"dead_letters": [asdict(letter) for letter in letters]}

    def redrive(self, per_second: int | None) -> dict[str, Any]:
        """Start to move all dead letters back to the registration queue."""
        task = self.queue.redrive(per_second)
        self.logger.info("redrive begun", task=task)
        return {"task": task}

    def _count(self, findings: Findings) -> None:
        """Emit a metric for each kind of finding; CloudWatch charges zeros, too."""
        metrics = {
            "Reconciled": findings.lost_uploads + findings.resumed_versions,
            "Stuck": findings.stuck_uploads + findings.given_up_versions,
            "Damaged": len(findings.damaged),
            "BlobsCollected": findings.collected_blobs,
        }
        for name, value in metrics.items():
            if value:
                self.metrics.add_metric(name, MetricUnit.Count, value)
        if self.metrics.metric_set:
            self.metrics.flush_metrics()
