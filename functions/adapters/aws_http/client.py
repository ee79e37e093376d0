"""HTTP client for AWS with signed requests, retries and clock correction."""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from functions.adapters.aws_errors import ErrorKind, classify
from functions.adapters.aws_http.connection import BrokenConnection, Connection, Reply
from functions.adapters.aws_http.endpoint import Endpoint
from functions.adapters.aws_http.pool import Pool
from functions.adapters.aws_http.settings import Settings
from functions.adapters.aws_http.sigv4 import Scope, sign
from functions.core.records import record

T = TypeVar("T")

ERROR_LIMIT = 64 * 1024  # bytes of an error's body
SKEWED = {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed"}
SKEW_S = 5.0  # no signature is refused for a smaller difference of the clocks
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
# Patterns of errors, which are compiled when there is one
_DATE = r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT"
_XML_CODE = r"<Code>\s*([A-Za-z0-9.]{1,100})\s*</Code>"


class ServiceError(Exception):
    """Error reply of an AWS service: status, code and details.

    `details` is its body if that is a JSON object, `date` its Date header.
    """

    def __init__(self, status: int, code: str, details: Mapping[str, Any], date: str = "") -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.details = details
        self.date = date
        self.kind = classify(status, code)


@record
class Request:
    """HTTP request before signing: `path` percent-encoded, `headers` without `host`."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    payload_hash: str


@record
class RetryPolicy:
    """Retry policy of an AWS request: attempts, time limits and waits.

    The wait before attempt n + 1 is a random part of min(cap_s, base_s * 2 ** (n - 1)).
    """

    attempts: int = 3
    attempt_s: float = 5.0
    total_s: float = 12.0
    base_s: float = 0.05
    cap_s: float = 1.0


class Client:
    """HTTP client of one AWS service, with connections shared by threads."""

    def __init__(
        self,
        settings: Settings,
        service: str,
        endpoint: Endpoint | None = None,
        *,
        connect_s: float = 1.0,
        read_s: float = 5.0,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Create an HTTP client; `endpoint` defaults to the AWS service's own.

        `clock` returns Unix time, `chance` a number from 0 to 1.
        """
        self._settings = settings
        self._scope = Scope(settings.region, service)
        self._endpoint = endpoint or settings.endpoint(service)
        self._connect_s = connect_s
        self._read_s = read_s
        self._clock = clock
        self._pause = pause
        self._chance = chance
        self._clock_offset_s = 0.0  # s; service's clock minus this machine's
        self._pool = Pool(self._connect)

    def preconnect(self, connections: int = 1) -> None:
        """Start to open connections to the service in background threads."""
        self._pool.preconnect(connections, time.monotonic() + self._connect_s)

    def close(self) -> None:
        """Close the idle connections to the service."""
        self._pool.close()

    def call(
        self, prepare: Callable[[], Request], read: Callable[[Reply], T], policy: RetryPolicy
    ) -> T:
        """Send a signed request, retry transient failures, and return the parsed reply.

        `prepare` is called for each attempt, so that it can ask for what is still missing.

        Raises:
            ServiceError: the service answered with an error, still after the retries.
            BrokenConnection: there was no whole reply.
        """
        end = time.monotonic() + policy.total_s
        corrected = False
        attempt = 1
        while True:
            try:
                return self._once(prepare(), read, min(end, time.monotonic() + policy.attempt_s))
            except ServiceError as error:
                if not corrected and error.code in SKEWED and self._correct_clock(error):
                    corrected = True
                    continue
                if error.kind is not ErrorKind.TRANSIENT or attempt >= policy.attempts:
                    raise
            except BrokenConnection:
                if attempt >= policy.attempts:
                    raise
            wait = self._chance() * min(policy.cap_s, policy.base_s * 2 ** (attempt - 1))
            if time.monotonic() + wait >= end:
                raise BrokenConnection("out of time")
            self._pause(wait)
            attempt += 1

    def _once(self, request: Request, read: Callable[[Reply], T], deadline: float) -> T:
        connection, reply = self._send(self._message(request), deadline)
        try:
            if not 200 <= reply.status < 300:
                raise _service_error(reply)
            return read(reply)
        finally:
            if reply.connection_reusable:
                self._pool.put_back(connection)
            else:
                connection.close()

    def _send(self, message: bytes, deadline: float) -> tuple[Connection, Reply]:
        connection = self._pool.take(deadline)
        try:
            return connection, _ask(connection, message, deadline)
        except BrokenConnection as error:
            if error.answered or not connection.pooled_at:
                raise
        # The connection was closed while it was idle, which does not count as an attempt.
        connection = self._pool.reconnect(deadline)
        return connection, _ask(connection, message, deadline)

    def _connect(self, deadline: float) -> Connection:
        deadline = min(deadline, time.monotonic() + self._connect_s)
        trust = self._settings.trust
        return Connection(self._endpoint, trust, deadline=deadline, read_s=self._read_s)

    def _message(self, request: Request) -> bytes:
        path = self._endpoint.path + request.path
        headers = sign(
            request.method,
            path,
            {"host": self._endpoint.authority, **request.headers},
            request.payload_hash,
            scope=self._scope,
            credentials=self._settings.credentials(),
            now=self._clock() + self._clock_offset_s,
        )
        lines = [
            f"{request.method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if request.body:
            lines.append(f"content-length: {len(request.body)}")
        return "\r\n".join([*lines, "\r\n"]).encode() + request.body

    def _correct_clock(self, error: ServiceError) -> bool:
        """Correct the signing clock from an error's Date; return True if corrected."""
        service_time = _unix_time(error.date)
        our_time = self._clock()
        if service_time is None or abs(service_time - our_time - self._clock_offset_s) < SKEW_S:
            return False
        self._clock_offset_s = service_time - our_time
        return True


def _ask(connection: Connection, message: bytes, deadline: float) -> Reply:
    """Send request bytes, return the reply; close the connection on failure."""
    try:
        return connection.ask(message, deadline)
    except BaseException:
        connection.close()
        raise


def _service_error(reply: Reply) -> ServiceError:
    """Convert DynamoDB's JSON or S3's XML error reply to a ServiceError."""
    body = reply.read(ERROR_LIMIT)
    details: Any = None
    if body.lstrip().startswith(b"{"):
        with contextlib.suppress(ValueError, RecursionError):
            details = json.loads(body)
    if not isinstance(details, dict):
        details = {}
    code = _error_code(reply, body, details)
    return ServiceError(reply.status, code, details, reply.headers.get("date", ""))


def _error_code(reply: Reply, body: bytes, details: Mapping[str, Any]) -> str:
    """Return the AWS error code of a reply, else its status."""
    name = reply.headers.get("x-amzn-errortype") or details.get("__type")
    if name:  # "com.amazonaws.dynamodb.v20120810#Code:http://…"
        return str(name).partition(":")[0].rpartition("#")[2]
    xml = re.search(_XML_CODE, body.decode(errors="replace"))
    return xml[1] if xml else str(reply.status)


def _unix_time(date: str) -> float | None:
    """Parse an HTTP Date header to Unix time; None if malformed.

    >>> _unix_time("Sun, 22 Nov 2026 08:15:30 GMT"), _unix_time("yesterday")
    (1795335330.0, None)
    """
    from datetime import UTC, datetime  # only if clocks differ: keeps it out of the cold start

    match = re.fullmatch(_DATE, date, re.ASCII)
    if match is None:
        return None
    day, year, hour, minute, second = map(int, match.group(1, 3, 4, 5, 6))
    try:
        month = _MONTHS.index(match[2]) + 1
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return None
