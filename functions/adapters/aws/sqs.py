"""SQS queues of upload events and of dead letters, through boto3."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from functions.adapters.aws_errors import ErrorKind, classify_response
from functions.adapters.clock import iso
from functions.core.errors import StateConflict, Unavailable
from functions.core.registry.dead_letters import Message

BATCH = 10  # messages; SQS's limit for one call
PEEK_S = 30  # s that a peeked message is hidden from other readers
# s of one long poll. A short poll asks a subset of SQS's servers, and can miss every message.
# docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html
LONG_POLL_S = 1
# Error codes of StartMessageMoveTask while another task runs, by botocore's protocol
_TASK_RUNNING = {"UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation"}


class SqsQueue:
    """SQS queue of upload events that wait for registration."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Send upload events to an SQS queue, one message each.

        After a failure, some may have been sent.

        Raises:
            Unavailable: SQS failed; try again.
        """
        for start in range(0, len(events), BATCH):
            self._send_batch(events[start : start + BATCH])

    def _send_batch(self, events: Sequence[Mapping[str, Any]]) -> None:
        entries = [
            {"Id": str(number), "MessageBody": json.dumps(event)}
            for number, event in enumerate(events)
        ]
        with _translate_errors():
            reply = self._client.send_message_batch(QueueUrl=self._url, Entries=entries)
        if reply.get("Failed"):
            sent = len(entries) - len(reply["Failed"])
            raise Unavailable(f"the queue took {sent} of {len(entries)} messages")


class SqsDeadLetters:
    """SQS dead-letter queue: upload events that failed repeatedly."""

    def __init__(self, client: Any, url: str, arn: str) -> None:
        self._client = client
        self._url = url
        self._arn = arn

    def peek(self, limit: int) -> list[Message]:
        """Return up to `limit` SQS messages, which stay visible in the queue.

        Raises:
            Unavailable: SQS failed; try again.
        """
        with _translate_errors():
            messages = self._receive(limit)
            for message in messages:
                self._client.change_message_visibility(
                    QueueUrl=self._url,
                    ReceiptHandle=message["ReceiptHandle"],
                    VisibilityTimeout=0,
                )
        return [
            Message(
                id=message["MessageId"],
                body=message["Body"],
                sent_at=iso(int(message["Attributes"]["SentTimestamp"])),
            )
            for message in messages
        ]

    def _receive(self, limit: int) -> list[dict[str, Any]]:
        """Receive SQS messages until `limit`, or until a long poll brings none."""
        messages: dict[str, dict[str, Any]] = {}
        for _ in range(limit):  # each poll brings a message; SQS may deliver one twice
            received = self._poll(min(BATCH, limit - len(messages)))
            if not received:
                break
            messages |= {message["MessageId"]: message for message in received}
            if len(messages) == limit:
                break
        return list(messages.values())

    def _poll(self, count: int) -> list[dict[str, Any]]:
        """Ask all of SQS's servers for up to `count` messages."""
        reply = self._client.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=count,
            VisibilityTimeout=PEEK_S,
            WaitTimeSeconds=LONG_POLL_S,
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        return list(reply.get("Messages", []))

    def redrive(self, per_second: int | None = None) -> str:
        """Start an SQS task that moves dead letters to their source queue.

        Return the task's handle, with which it can be cancelled.

        Raises:
            StateConflict: a task is running already.
            Unavailable: SQS failed.
        """
        pace = {"MaxNumberOfMessagesPerSecond": per_second} if per_second else {}
        with _translate_errors():
            reply = self._client.start_message_move_task(SourceArn=self._arn, **pace)
        return str(reply["TaskHandle"])


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if classify_response(error.response) is ErrorKind.TRANSIENT:
            raise Unavailable("the queue does not answer; try again") from error
        if error.response["Error"]["Code"] in _TASK_RUNNING:
            raise StateConflict(
                "the dead letters are being moved already: wait until they are"
            ) from error
        raise
    except ParamValidationError:  # a bug, which no repetition mends
        raise
    except BotoCoreError as error:
        raise Unavailable("the queue cannot be reached; try again") from error
