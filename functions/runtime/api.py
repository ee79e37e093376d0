"""Lambda Runtime API: next event, reply, error.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import sys
from collections.abc import Mapping

from functions.runtime.connection import Bytes, Connection, Response
from functions.runtime.errors import FunctionError

_ROOT = "/2018-06-01/runtime"
STREAM_FIELDS = (
    "Content-Type: application/vnd.awslambda.http-integration-response\r\n"
    "Lambda-Runtime-Function-Response-Mode: streaming\r\n"
    "Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
)
REFUSED = (400, 403)  # statuses of a second reply to one invocation
XRAY_CAUSE_BYTES_MAX = 2**20  # a longer cause is left out, as no header can hold it


class ApiError(Exception):
    """Error: the Runtime API refused a request, which ends the process."""


class Invocation:
    """Event with metadata from its HTTP headers; a missing header is None.

    `dropped_bytes` is the size of an event for which there was no memory, else 0.
    """

    __slots__ = (
        "client_context",
        "content_type",
        "deadline_ms",
        "dropped_bytes",
        "event",
        "function_arn",
        "identity",
        "invocation_id",
        "request_id",
        "tenant_id",
        "trace_id",
    )

    def __init__(self, headers: Mapping[str, str], event: bytes, dropped_bytes: int = 0) -> None:
        get = headers.get
        self.event = event
        self.dropped_bytes = dropped_bytes
        self.request_id = headers["lambda-runtime-aws-request-id"]
        self.deadline_ms = int(get("lambda-runtime-deadline-ms") or 0)  # since the epoch
        self.content_type = get("content-type")
        self.function_arn = get("lambda-runtime-invoked-function-arn")
        self.trace_id = get("lambda-runtime-trace-id")
        self.client_context = get("lambda-runtime-client-context")
        self.identity = get("lambda-runtime-cognito-identity")
        self.tenant_id = get("lambda-runtime-aws-tenant-id")
        self.invocation_id = get("lambda-runtime-invocation-id")


class RuntimeApi:
    """Runtime API of this execution environment, at a host and port."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(address)
        self._failure: str | None = None  # message if the last post is refused
        version = ".".join(map(str, sys.version_info[:3]))
        self._host = f"Host: {address}\r\nUser-Agent: mayfly-runtime/1 python/{version}\r\n"
        self._next = f"GET {_ROOT}/invocation/next HTTP/1.1\r\n{self._host}\r\n".encode()

    def connect(self) -> None:
        """Connect to the Runtime API, so that the first request need not."""
        self._connection.connect()

    def next(self) -> Invocation:
        """Wait for the next event, however long the environment is idle.

        Raises:
            ApiError: the Runtime API answered with an error.
            OSError: it is gone.
        """
        response = self._connection.request(self._next)
        if response.status != 200:
            raise ApiError(
                "LAMBDA_RUNTIME Failed to get next invocation. "
                f"Http Response code: {response.status}"
            )
        return Invocation(response.headers, response.body, response.dropped_bytes)

    def respond(self, invocation: Invocation, payload: Bytes, content_type: str) -> None:
        """Post the reply to an invocation; `confirm` receives the answer.

        Raises:
            OSError: the connection broke.
        """
        head = self._head(invocation, "response", f"Content-Type: {content_type}\r\n")
        self._post(head, payload, "LAMBDA_RUNTIME Failed to post handler success response.")

    def fail(self, invocation: Invocation, error: FunctionError) -> None:
        """Post the error of an invocation; `confirm` receives the answer.

        Raises:
            OSError: the connection broke.
        """
        cause = error.xray_cause()
        fields = "Content-Type: application/json\r\n"
        if len(cause.encode()) < XRAY_CAUSE_BYTES_MAX:
            fields += f"Lambda-Runtime-Function-Xray-Error-Cause: {cause}\r\n"
        head = self._head(invocation, "error", fields)
        failure = "LAMBDA_RUNTIME Failed to post invocation error."
        self._post(head, error.to_json().encode(), failure)

    def confirm(self) -> None:
        """Receive the answer to what was posted, if one is due.

        Until then there is time for work that the caller does not wait for.

        Raises:
            ApiError: the Runtime API refused it; 413 if a reply is too large.
            OSError: the connection broke.
        """
        failure, self._failure = self._failure, None
        if failure is None:
            return
        response = self._connection.answer()
        if not _accepted(response):
            raise ApiError(f"{failure} Http response code: {response.status}. {_text(response)}")

    def report_init_error(self, error: FunctionError) -> None:
        """Post the error that kept the handler from being loaded.

        Raises:
            ApiError: the Runtime API refused it.
            OSError: the connection broke.
        """
        head = f"POST {_ROOT}/init/error HTTP/1.1\r\n{self._host}"
        head += f"Lambda-Runtime-Function-Error-Type: {error.type}\r\n"
        self._post(
            head, error.to_json().encode(), "LAMBDA_RUNTIME Failed to post an error of INIT."
        )
        self.confirm()

    def stream_head(self, invocation: Invocation) -> bytes:
        """Return the HTTP head of a streamed reply, to send before chunks."""
        return self._head(invocation, "response", STREAM_FIELDS).encode("utf-8", "surrogateescape")

    def send(self, *parts: Bytes) -> None:
        """Send parts of a streamed reply.

        Raises:
            OSError: the connection broke; what was sent cannot be repeated.
        """
        self._connection.send(*parts)

    def has_answered(self) -> bool:
        """Return True if the Runtime API ended a streamed reply early."""
        return self._connection.is_readable()

    def end_stream(self) -> None:
        """Receive the answer to a streamed reply.

        Raises:
            ApiError: the Runtime API refused it.
            OSError: the connection broke.
        """
        response = self._connection.receive()
        if not _accepted(response):
            raise ApiError(
                "LAMBDA_RUNTIME Failed to post a streamed response. "
                f"Http response code: {response.status}. {_text(response)}"
            )

    def disconnect(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def _head(self, invocation: Invocation, kind: str, fields: str) -> str:
        head = f"POST {_ROOT}/invocation/{invocation.request_id}/{kind} HTTP/1.1\r\n{self._host}"
        if invocation.invocation_id is not None:
            head += f"Lambda-Runtime-Invocation-Id: {invocation.invocation_id}\r\n"
        return head + fields

    def _post(self, head: str, body: Bytes, failure: str) -> None:
        text = f"{head}Content-Length: {len(body)}\r\n\r\n"
        self._connection.post(text.encode("utf-8", "surrogateescape"), body)
        self._failure = failure


def _accepted(response: Response) -> bool:
    """Return True if the API has the reply, now or before."""
    return 200 <= response.status < 300 or (response.repeated and response.status in REFUSED)


def _text(response: Response) -> str:
    return " ".join(response.body.decode("utf-8", "replace").split())
