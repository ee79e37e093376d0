"""Endpoint URLs of AWS services, and trusted certificate authorities for TLS."""

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from functions.core.records import record

if TYPE_CHECKING:
    import ssl


AMAZON_ROOTS = Path(__file__).with_name("amazon_roots.pem")
# Not urllib.parse, whose import takes 2 ms
_URL = re.compile(
    r"(?i:(https?)://)([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(/[^\s?#]*)?", re.ASCII
)


@record
class Endpoint:
    """Address of an AWS service; `path` precedes each request's path."""

    host: str
    port: int
    tls: bool
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Parse an http or https URL into host, port and path.

        >>> Endpoint.parse("http://127.0.0.1:8081/aws/")
        Endpoint(host='127.0.0.1', port=8081, tls=False, path='/aws')

        Raises:
            LookupError: it is no http(s) URL.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise LookupError(
                f"{url!r} is no endpoint: it begins with https:// or http:// and has a host"
            )
        scheme, host, port, path = match.groups(default="")
        tls = scheme.lower() == "https"
        host = host.lower().strip("[]")
        return cls(host, int(port or (443 if tls else 80)), tls, path.rstrip("/"))

    @property
    def authority(self) -> str:
        """Value of the HTTP `host` header for requests to the endpoint."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Trust:
    """Certificate authorities trusted for TLS: a file's, or Amazon's and the system's.

    Reading the system's takes 17 ms of a cold start, Amazon's five less than 1. So the system's
    are read only when a server's certificate is not from Amazon.
    """

    def __init__(self, ca_file: str | None = None, roots: Path = AMAZON_ROOTS) -> None:
        self._files = [str(roots), None] if ca_file is None else [ca_file]  # None: the system's
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def context(self) -> "ssl.SSLContext":
        """Return the TLS context, which is created at the first call."""
        import ssl  # needed only for TLS: importing takes 5 ms

        with self._lock:
            if self._context is None:
                self._context = ssl.create_default_context(cafile=self._files.pop(0))
            return self._context

    def widen(self, refused: "ssl.SSLContext") -> bool:
        """Trust more authorities than a context that refused a certificate.

        Return False if there are no more.
        """
        with self._lock:
            if self._context is refused and self._files:
                self._context = None
            return self._context is not refused
