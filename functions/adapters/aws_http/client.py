"""Signed requests to one endpoint: tried again where that helps, with the clock of the service where ours is wrong"""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from functions.adapters.aws_http.connection import Broken, Connection, Endpoint, Pool, Reply
from functions.adapters.aws_http.settings import Settings
from functions.adapters.aws_http.sigv4 import Scope, signed

T = TypeVar("T")

ERROR_LIMIT = 64 * 1024  # bytes of an error's body
TRANSIENT = {500, 502, 503, 504}  # statuses
THROTTLED = {
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}
SKEWED = {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed"}
SKEW_S = 5.0  # a clock that differs by less is not what a signature fails by
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_DATE = re.compile(
    r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT", re.ASCII
)
_XML_CODE = re.compile(r"<Code>\s*([A-Za-z0-9.]{1,100})\s*</Code>")


class Refused(Exception):
    """When a service answers with an error. `details` is its body, where that is JSON; `date` the service's clock."""

    def __init__(self, status: int, code: str, details: Mapping[str, Any], date: str = "") -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.details = details
        self.date = date

    @property
    def is_transient(self) -> bool:
        """Whether the same request may be answered a moment later."""
        return self.status in TRANSIENT or self.code in THROTTLED


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it is signed: `path` and `query` encoded, `headers` without `host`."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    payload_hash: str
    query: str = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long one call is tried. Between tries it waits a random part of base · 2ⁿ, at most the cap."""

    attempts: int = 3
    attempt_s: float = 5.0
    total_s: float = 12.0
    base_s: float = 0.05
    cap_s: float = 1.0


class Client:
    """One service at one endpoint, over connections that its threads share."""

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
        """`endpoint` is the service's own, unless it is named. `clock` is Unix time, `chance` gives 0 to 1."""
        self._credentials = settings.credentials
        self._scope = Scope(settings.region, service)
        self._clock = clock
        self._pause = pause
        self._chance = chance
        self._offset_s = 0.0  # of the service's clock from ours
        self._connect_s = connect_s
        self._endpoint = endpoint or settings.endpoint(service)

        def connect(deadline: float) -> Connection:
            by = min(deadline, time.monotonic() + connect_s)
            return Connection(self._endpoint, settings.trust, deadline=by, read_s=read_s)

        self._pool = Pool(connect)

    def open_ahead(self, connections: int = 1) -> None:
        """Begin to open so many connections, while something else is done."""
        self._pool.open_ahead(connections, time.monotonic() + self._connect_s)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._pool.close()

    def call(
        self, prepare: Callable[[], Request], take: Callable[[Reply], T], patience: Patience
    ) -> T:
        """What `take` makes of the answer, once there is one without an error (2xx).

        `prepare` is called for each attempt, so that it can ask for what is still missing.

        Raises:
            Refused: the service answers with an error that does not go away.
            Broken: there is no answer.
        """
        end = time.monotonic() + patience.total_s
        corrected = False
        attempt = 1
        while True:
            try:
                return self._once(prepare(), take, min(end, time.monotonic() + patience.attempt_s))
            except Refused as error:
                if not corrected and error.code in SKEWED and self._correct(error):
                    corrected = True
                    continue
                if not error.is_transient or attempt >= patience.attempts:
                    raise
            except Broken:
                if attempt >= patience.attempts:
                    raise
            wait = self._chance() * min(patience.cap_s, patience.base_s * 2 ** (attempt - 1))
            if time.monotonic() + wait >= end:
                raise Broken("out of time")
            self._pause(wait)
            attempt += 1

    def _once(self, request: Request, take: Callable[[Reply], T], deadline: float) -> T:
        connection, reply = self._answer(self._message(request), deadline)
        try:
            if not 200 <= reply.status < 300:
                raise _refusal(reply)
            return take(reply)
        finally:
            if reply.leaves_reusable:
                self._pool.give(connection)
            else:
                connection.close()

    def _answer(self, message: bytes, deadline: float) -> tuple[Connection, Reply]:
        connection = self._pool.take(deadline)
        try:
            return connection, connection.ask(message, deadline)
        except Broken as error:
            connection.close()
            if error.answered or not connection.pooled_at:
                raise
        except BaseException:
            connection.close()
            raise
        connection = self._pool.fresh(
            deadline
        )  # the other one was closed while it was idle: no attempt of ours
        try:
            return connection, connection.ask(message, deadline)
        except BaseException:
            connection.close()
            raise

    def _message(self, request: Request) -> bytes:
        path = self._endpoint.path + request.path
        headers = signed(
            request.method,
            path,
            {"host": self._endpoint.authority, **request.headers},
            request.payload_hash,
            scope=self._scope,
            credentials=self._credentials(),
            now=self._clock() + self._offset_s,
            query=request.query,
        )
        target = f"{path}?{request.query}" if request.query else path
        lines = [
            f"{request.method} {target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if request.body:
            lines.append(f"content-length: {len(request.body)}")
        return "\r\n".join([*lines, "\r\n"]).encode() + request.body

    def _correct(self, error: Refused) -> bool:
        """Take over the service's clock; False where it is no other than the one that was signed with."""
        theirs = _unix_time(error.date)
        if theirs is None or abs(theirs - self._clock() - self._offset_s) < SKEW_S:
            return False
        self._offset_s = theirs - self._clock()
        return True


def _refusal(reply: Reply) -> Refused:
    body = reply.read(ERROR_LIMIT)
    details: Any = None
    if body.lstrip().startswith(b"{"):
        with contextlib.suppress(ValueError, RecursionError):
            details = json.loads(body)
    if not isinstance(details, dict):
        details = {}
    named = reply.headers.get("x-amzn-errortype") or details.get("__type")
    xml = _XML_CODE.search(body.decode(errors="replace"))
    code = (
        str(named).partition(":")[0].rpartition("#")[2]
        if named
        else xml[1]
        if xml
        else str(reply.status)
    )
    return Refused(reply.status, code, details, reply.headers.get("date", ""))


def _unix_time(date: str) -> float | None:
    """The instant of a Date header.

    >>> _unix_time("Sun, 22 Nov 2026 08:15:30 GMT"), _unix_time("yesterday")
    (1795335330.0, None)
    """
    from datetime import UTC, datetime  # needed where clocks differ, and not on every start

    match = _DATE.fullmatch(date)
    if match is None:
        return None
    day, year, hour, minute, second = map(int, match.group(1, 3, 4, 5, 6))
    try:
        return datetime(
            year, _MONTHS.index(match[2]) + 1, day, hour, minute, second, tzinfo=UTC
        ).timestamp()
    except ValueError:
        return None
