"""Base URL of a stack, in its parts."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from mayfly.client.errors import NotConfigured

_PORTS = {"http": 80, "https": 443}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Address:
    """Base URL in parts: scheme, host, port, path prefix."""

    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.path}"

    @property
    def host_header(self) -> str:
        """Value of the header Host.

        >>> parse("http://[::1]:8080/live").host_header
        '[::1]:8080'
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Tell if the host is this machine."""
        return self.host in _LOOPBACK


def parse(url: str) -> Address:
    """Parse a base URL.

    >>> parse("https://x.execute-api.eu-west-1.amazonaws.com/live/").path
    '/live'

    Raises:
        NotConfigured: it is no such URL.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise NotConfigured(f"the URL {url!r} cannot be read: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.username:
        raise NotConfigured(
            f"{url!r} is no URL of a stack: take the output ApiUrl, "
            "e.g. https://<id>.execute-api.eu-west-1.amazonaws.com/live"
        )
    path = parts.path.rstrip("/")
    return Address(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], path)
