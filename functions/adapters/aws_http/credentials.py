"""AWS credentials from environment variables or the container credentials endpoint.

Environments restored by SnapStart have the latter:
https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from functions.adapters.aws_http.connection import BrokenConnection, Connection
from functions.adapters.aws_http.endpoint import Endpoint, Trust
from functions.adapters.aws_http.sigv4 import Credentials

ADDRESS = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
# Hosts of credentials endpoints allowed without TLS, as in the AWS SDKs
_LOCAL = {"127.0.0.1", "::1", "localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"}
EARLY_S = 300.0  # s before their expiry, credentials are fetched anew
TIMEOUT_S = 2.0
ANSWER_LIMIT = 64 * 1024  # bytes


class EnvironmentCredentials:
    """AWS credentials of the process, looked up again at each call.

    Both kinds are rotated while the process lives.
    """

    def __init__(
        self, environment: Mapping[str, str], trust: Trust, clock: Callable[[], float] = time.time
    ) -> None:
        """Check that environment variables provide AWS credentials or their endpoint.

        Raises:
            LookupError: they provide neither.
        """
        self._environment = environment
        self._trust = trust
        self._clock = clock
        self._lock = threading.Lock()
        self._fetched: tuple[Credentials, float] | None = None  # with their expiry, Unix time
        if not environment.get(ADDRESS):
            self._from_variables()

    def __call__(self) -> Credentials:
        """Return the current AWS credentials; refresh those about to expire.

        Raises:
            LookupError: there are none.
            BrokenConnection: the endpoint failed.
        """
        if not self._environment.get(ADDRESS) or self._environment.get("AWS_ACCESS_KEY_ID"):
            return self._from_variables()
        with self._lock:
            now = self._clock()
            if self._fetched is None or self._fetched[1] - now < EARLY_S:
                try:
                    self._fetched = self._fetch()
                except BrokenConnection:
                    if self._fetched is None or self._fetched[1] <= now:
                        raise
            return self._fetched[0]

    def _from_variables(self) -> Credentials:
        key = self._environment.get("AWS_ACCESS_KEY_ID")
        secret = self._environment.get("AWS_SECRET_ACCESS_KEY")
        if not key or not secret:
            missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
            raise LookupError(
                f"no AWS credentials: {missing} is not set; Lambda sets it from the function's role"
            )
        return Credentials(key, secret, self._environment.get("AWS_SESSION_TOKEN") or None)

    def _fetch(self) -> tuple[Credentials, float]:
        """Fetch AWS credentials and their expiry from the container credentials endpoint."""
        url, _, query = self._environment[ADDRESS].partition("?")
        endpoint = Endpoint.parse(url)
        if not endpoint.tls and endpoint.host not in _LOCAL:
            raise LookupError(f"{ADDRESS} is neither https nor local")
        path = (endpoint.path or "/") + (f"?{query}" if query else "")
        deadline = time.monotonic() + TIMEOUT_S
        connection = Connection(endpoint, self._trust, deadline=deadline, read_s=TIMEOUT_S)
        try:
            reply = connection.ask(self._message(path, endpoint), deadline)
            body = reply.read(ANSWER_LIMIT)
        finally:
            connection.close()
        if reply.status != 200:
            raise BrokenConnection(f"there are no credentials at {ADDRESS}: {reply.status}")
        return _parse_credentials(body)

    def _message(self, path: str, endpoint: Endpoint) -> bytes:
        lines = [f"GET {path} HTTP/1.1", f"host: {endpoint.authority}", "accept: application/json"]
        if token := self._token():
            lines.append(f"authorization: {token}")
        return "\r\n".join([*lines, "connection: close", "\r\n"]).encode()

    def _token(self) -> str | None:
        if file := self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            return Path(file).read_text().strip()
        return self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")


def _parse_credentials(body: bytes) -> tuple[Credentials, float]:
    from datetime import datetime  # only for this endpoint: keeps it out of other cold starts

    try:
        fields = json.loads(body)
        credentials = Credentials(fields["AccessKeyId"], fields["SecretAccessKey"], fields["Token"])
        return credentials, datetime.fromisoformat(fields["Expiration"]).timestamp()
    except (ValueError, LookupError, TypeError) as error:
        raise BrokenConnection(f"the reply of {ADDRESS} holds no credentials") from error
