"""The registration queue and its dead letters in SQS."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from functions.core.errors import Unavailable
from functions.core.registry.dead_letters import Message

AT_ONCE = 10  # what SQS takes and gives in one call
LOOK_S = 30  # how long a message that is looked at is hidden from others


class SqsQueue:
    """`core.reconciliation.Queue`."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, events: Sequence[dict[str, Any]]) -> None:
        """Send each event as a message. After a failure some may have been sent.

        Raises:
            Unavailable: SQS failed; try again.
        """
        for start in range(0, len(events), AT_ONCE):
            entries = [
                {"Id": str(number), "MessageBody": json.dumps(event)}
                for number, event in enumerate(events[start : start + AT_ONCE])
            ]
            with _translated():
                reply = self._client.send_message_batch(QueueUrl=self._url, Entries=entries)
            if reply.get("Failed"):
                raise Unavailable(
                    f"the queue took {len(entries) - len(reply['Failed'])} of {len(entries)} messages"
                )


class SqsDeadLetters:
    """`core.dead_letters.DeadLetterQueue`."""

    def __init__(self, client: Any, url: str, arn: str) -> None:
        self._client = client
        self._url = url
        self._arn = arn

    def peek(self, limit: int) -> list[Message]:
        """Up to `limit` messages. They stay, and are visible again at once.

        Raises:
            Unavailable: SQS failed; try again.
        """
        seen: dict[str, Any] = {}
        with _translated():
            while len(seen) < limit:
                reply = self._client.receive_message(
                    QueueUrl=self._url,
                    MaxNumberOfMessages=min(AT_ONCE, limit - len(seen)),
                    VisibilityTimeout=LOOK_S,
                    MessageSystemAttributeNames=["SentTimestamp"],
                )
                found = {one["MessageId"]: one for one in reply.get("Messages", [])}
                if not found.keys() - seen.keys():
                    break
                seen |= found
            for one in seen.values():
                self._client.change_message_visibility(
                    QueueUrl=self._url, ReceiptHandle=one["ReceiptHandle"], VisibilityTimeout=0
                )
        return [
            Message(one["MessageId"], one["Body"], _moment(one["Attributes"]))
            for one in seen.values()
        ]

    def redrive(self, per_second: int | None = None) -> str:
        """Begin to send every message back to the queue it came from. Returns the handle of the task, to cancel it.

        Raises:
            Unavailable: SQS failed, or a task is under way already.
        """
        pace = {"MaxNumberOfMessagesPerSecond": per_second} if per_second else {}
        with _translated():
            return str(
                self._client.start_message_move_task(SourceArn=self._arn, **pace)["TaskHandle"]
            )


def _moment(attributes: dict[str, str]) -> str:
    sent = datetime.fromtimestamp(int(attributes["SentTimestamp"]) / 1000, UTC)
    return sent.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def _translated() -> Iterator[None]:
    """SQS's words into ours."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        code = str(error.response["Error"]["Code"])
        if status >= 500 or "Throttl" in code or code == "RequestThrottled":
            raise Unavailable("the queue does not answer; try again") from error
        if code.endswith("UnsupportedOperation"):  # StartMessageMoveTask while another one runs
            raise Unavailable(
                "the queue cannot do this now: messages are being moved already"
            ) from error
        raise
    except BotoCoreError as error:
        raise Unavailable("the queue cannot be reached; try again") from error
