"""Who asks: the keys in the environment, or those behind an address, as an environment restored by SnapStart has them

https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from functions.adapters.aws_http.connection import Broken, Connection, Endpoint, Trust
from functions.adapters.aws_http.sigv4 import Credentials

ADDRESS = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
_LOCAL = {"127.0.0.1", "::1", "localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"}
EARLY_S = 300.0  # before they expire, others are asked for
TIMEOUT_S = 2.0
ANSWER_LIMIT = 64 * 1024  # bytes


class EnvironmentCredentials:
    """The credentials of this process, looked up at each call, because both kinds are replaced while it lives."""

    def __init__(
        self, environment: Mapping[str, str], trust: Trust, clock: Callable[[], float] = time.time
    ) -> None:
        """
        Raises:
            LookupError: there are none.
        """
        self._environment = environment
        self._trust = trust
        self._clock = clock
        self._lock = threading.Lock()
        self._fetched: tuple[Credentials, float] | None = None  # and when they expire
        if not environment.get(ADDRESS):
            self._keys()

    def __call__(self) -> Credentials:
        """
        Raises:
            LookupError: there are none.
            Broken: the address does not give them.
        """
        if not self._environment.get(ADDRESS) or self._environment.get("AWS_ACCESS_KEY_ID"):
            return self._keys()
        with self._lock:
            now = self._clock()
            if self._fetched is None or self._fetched[1] - now < EARLY_S:
                try:
                    self._fetched = self._fetch()
                except Broken:
                    if self._fetched is None or self._fetched[1] <= now:
                        raise
            return self._fetched[0]

    def _keys(self) -> Credentials:
        key, secret = (
            self._environment.get("AWS_ACCESS_KEY_ID"),
            self._environment.get("AWS_SECRET_ACCESS_KEY"),
        )
        if not key or not secret:
            missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
            raise LookupError(
                f"no AWS credentials: {missing} is not set; Lambda sets it from the function's role"
            )
        return Credentials(key, secret, self._environment.get("AWS_SESSION_TOKEN") or None)

    def _fetch(self) -> tuple[Credentials, float]:
        url, _, query = self._environment[ADDRESS].partition("?")
        endpoint = Endpoint.of(url)
        if not endpoint.tls and endpoint.host not in _LOCAL:
            raise LookupError(f"{ADDRESS} is neither https nor local")
        path = (endpoint.path or "/") + (f"?{query}" if query else "")
        lines = [f"GET {path} HTTP/1.1", f"host: {endpoint.authority}", "accept: application/json"]
        if token := self._token():
            lines.append(f"authorization: {token}")
        deadline = time.monotonic() + TIMEOUT_S
        connection = Connection(endpoint, self._trust, deadline=deadline, read_s=TIMEOUT_S)
        try:
            reply = connection.ask(
                "\r\n".join([*lines, "connection: close", "\r\n"]).encode(), deadline
            )
            body = reply.read(ANSWER_LIMIT)
        finally:
            connection.close()
        if reply.status != 200:
            raise Broken(f"there are no credentials at {ADDRESS}: {reply.status}")
        from datetime import (
            datetime,  # needed where keys come from an address, and not on every start
        )

        try:
            found = json.loads(body)
            expires = datetime.fromisoformat(found["Expiration"]).timestamp()
            return Credentials(
                found["AccessKeyId"], found["SecretAccessKey"], found["Token"]
            ), expires
        except (ValueError, LookupError, TypeError) as error:
            raise Broken(f"what came from {ADDRESS} are no credentials") from error

    def _token(self) -> str | None:
        if file := self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            return Path(file).read_text().strip()
        return self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
