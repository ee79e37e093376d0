"""SQS event source mapping: poll a queue, invoke a function, delete successes.

Failed messages become visible again after the queue's visibility timeout; the queue moves them to
its dead-letter queue after too many receives.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local.events import sqs_event
from local.execution.pool import FunctionPool, PayloadTooLarge, Result, Throttled
from local.template import QueueSource

log = logging.getLogger("local.poller")
WAIT_S = 20


class Poller:
    """Poller that invokes a Lambda function with an SQS queue's messages.

    `sqs` is a boto3 client, used from threads.
    """

    def __init__(self, pool: FunctionPool, source: QueueSource, sqs: Any) -> None:
        self._pool = pool
        self._source = source
        self._sqs = sqs
        self._url = ""
        limit = source.maximum_concurrency or pool.concurrency
        self._slots = asyncio.Semaphore(min(int(limit), pool.concurrency))
        self._batches: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Poll the SQS queue until cancelled; unfinished messages become visible again."""
        try:
            while True:
                await self._slots.acquire()
                try:
                    messages = await asyncio.to_thread(self._receive)
                except (
                    BotoCoreError,
                    ClientError,
                ) as error:  # SQS failed: retry, as AWS's pollers do
                    log.warning("%s: cannot receive: %s", self._source.queue_arn, error)
                    messages = []
                    await asyncio.sleep(1)
                if not messages:
                    self._slots.release()
                    continue
                batch = asyncio.create_task(self._handle(messages))
                self._batches.add(batch)
                batch.add_done_callback(self._finished)
        finally:
            for batch in self._batches:
                batch.cancel()

    def _finished(self, batch: "asyncio.Task[None]") -> None:
        self._batches.discard(batch)
        self._slots.release()
        if not batch.cancelled() and (error := batch.exception()):
            log.error("%s: a batch failed: %s", self._source.queue_arn, error)

    def _receive(self) -> list[dict[str, Any]]:
        if not self._url:
            name = self._source.queue_arn.split(":")[-1]
            self._url = self._sqs.get_queue_url(QueueName=name)["QueueUrl"]
        answer = self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=min(self._source.batch_size, 10),
            WaitTimeSeconds=WAIT_S,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return list(answer.get("Messages", []))

    async def _handle(self, messages: Sequence[dict[str, Any]]) -> None:
        event = json.dumps(sqs_event(messages, self._source.queue_arn)).encode()
        try:
            result = await self._pool.invoke(event)
        except (Throttled, PayloadTooLarge) as error:
            log.warning("%s: %s", self._source.queue_arn, error)
            return
        failed = failed_messages(
            result, [message["MessageId"] for message in messages], self._source.partial_failures
        )
        done = [message for message in messages if message["MessageId"] not in failed]
        if done:
            entries = [
                {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}
                for index, message in enumerate(done)
            ]
            await asyncio.to_thread(
                self._sqs.delete_message_batch, QueueUrl=self._url, Entries=entries
            )


def failed_messages(result: Result, message_ids: Sequence[str], partial_failures: bool) -> set[str]:
    """Return the ids of an SQS batch's failed messages.

    With ReportBatchItemFailures the function lists them. No reply, null or an empty list means
    success; a malformed reply, or an unknown message id, fails the whole batch.
    """
    everything = set(message_ids)
    if result.error:
        return everything
    if not partial_failures:
        return set()
    try:
        answer = json.loads(result.payload or b"null")
        failures = (answer or {}).get("batchItemFailures") or []
        named = {failure["itemIdentifier"] for failure in failures}
    except (ValueError, TypeError, KeyError, AttributeError):
        return everything
    return named if named <= everything else everything
