"""Log lines of a training job, as CloudWatch Logs gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

GROUP = "/aws/sagemaker/TrainingJobs"
PAGES = 20  # at most, of a stream at a poll; the rest comes with the next poll


class JobLog:
    """Reader of a job's new log lines, host by host."""

    def __init__(self, name: str, client: Any) -> None:
        self._name, self._client = name, client
        self._tokens: dict[str, str | None] = {}  # by stream, for what follows
        self._is_readable = True

    def lines(self) -> list[str]:
        """Return the lines that were logged since the last call.

        Where the caller may not read logs, one line says so, and none follow.
        """
        if not self._is_readable:
            return []
        try:
            return list(self._new_lines())
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFoundException":
                return []  # the first line makes the group and the stream
            return self._give_up(error)
        except BotoCoreError as error:
            return self._give_up(error)

    def _give_up(self, error: Exception) -> list[str]:
        self._is_readable = False
        return [f"no log lines: {error}"]

    def _new_lines(self) -> Iterator[str]:
        streams = self._client.describe_log_streams(
            logGroupName=GROUP, logStreamNamePrefix=f"{self._name}/"
        )["logStreams"]
        names = sorted(stream["logStreamName"] for stream in streams)
        for name in names:
            host = f"{name.rpartition('/')[2].rpartition('-')[0]}: " if len(names) > 1 else ""
            for line in self._of_stream(name):
                yield host + line

    def _of_stream(self, name: str) -> Iterator[str]:
        for _ in range(PAGES):
            token = self._tokens.get(name)
            page = self._client.get_log_events(
                logGroupName=GROUP, logStreamName=name, startFromHead=True,
                **({"nextToken": token} if token else {}),
            )  # fmt: skip
            self._tokens[name] = page["nextForwardToken"]
            for event in page["events"]:
                yield event["message"].rstrip("\n")
            if page["nextForwardToken"] == token or not page["events"]:
                return
