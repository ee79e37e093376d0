"""Heads of HTTP/1.1 requests, proxy and TLS settings of a base URL."""

import base64
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from mayfly.client.errors import Disconnected, NotConfigured, TimedOut
from mayfly.client.http1.address import Address
from mayfly.client.http1.messages import Request

BODYLESS = ("GET", "HEAD", "DELETE")


@dataclass(frozen=True, slots=True)
class Proxy:
    """HTTP proxy: host, port, and the header lines that authorize its use."""

    host: str
    port: int
    authorization: str = ""


class Writer:
    """Writer of requests, with the headers that each of them has."""

    def __init__(self, address: Address, headers: dict[str, str]) -> None:
        self._address = address
        self.proxy = find_proxy(address)
        self.tls = tls_context() if address.scheme == "https" else None
        fixed = {"host": address.host_header, "accept": "*/*", **headers}
        self._lines = lines(fixed)
        if self.proxy and not self.tls:
            self._lines += self.proxy.authorization

    def head(self, request: Request) -> bytes:
        """Return the head of a request.

        Raises:
            NotConfigured: a header has a line break, or a character outside Latin-1.
        """
        target = self._address.path + request.path
        if self.proxy and not self.tls:
            target = f"{self._address.scheme}://{self._address.host_header}{target}"
        more = dict(request.headers)
        if request.body or request.method not in BODYLESS:
            more["content-length"] = str(len(request.body))
        head = f"{request.method} {target} HTTP/1.1\r\n{self._lines}{lines(more)}\r\n"
        return head.encode("latin-1")

    def connect_head(self) -> bytes:
        """Return the head of the request for a tunnel through the proxy."""
        name = f"{self._address.host}:{self._address.port}"
        authorization = self.proxy.authorization if self.proxy else ""
        return f"CONNECT {name} HTTP/1.1\r\nhost: {name}\r\n{authorization}\r\n".encode("latin-1")

    @property
    def peer(self) -> tuple[str, int]:
        """Host and port to connect to."""
        target = self.proxy or self._address
        return target.host, target.port

    def connect_error(self, error: OSError) -> Exception:
        """Return the client's error for a failed connection."""
        host, port = self.peer
        if isinstance(error, TimeoutError):
            return TimedOut(f"no connection to {host}:{port} within the time limit")
        if isinstance(error, ssl.SSLCertVerificationError):
            return NotConfigured(f"the certificate of {host} is not trusted: {error}")
        return Disconnected(
            f"no connection to {host}:{port}: {error}; is the URL right, and the stack up?",
            sent=False,
        )

    def broken(self, error: Exception) -> Disconnected:
        """Return the client's error for a connection that broke."""
        text = str(error) or type(error).__name__
        return Disconnected(
            f"the connection to {self._address.host} broke before the whole reply: {text}",
            sent=True,
        )


def late(request: Request) -> TimedOut:
    """Return the error of a request whose time has passed."""
    return TimedOut(
        f"no answer to {request.method} {request.path} within the time limit: raise timeout"
    )


def lines(headers: dict[str, str]) -> str:
    """Return headers as lines of a request's head.

    Raises:
        NotConfigured: one has a line break, or a character outside Latin-1.
    """
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if (
        text.count("\n") != len(headers)
        or text.count("\r") != len(headers)
        or max(text, default="") > "\xff"
    ):
        names = ", ".join(name for name, value in headers.items() if not value.isprintable())
        raise NotConfigured(f"a header ({names or 'key'}) has a line break or no Latin-1 text")
    return text


def find_proxy(address: Address) -> Proxy | None:
    """Return the proxy that the environment names for an address, e.g. HTTPS_PROXY."""
    url = getproxies().get(address.scheme)
    if not url or proxy_bypass(address.host):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise NotConfigured(f"the proxy {url!r} is not supported: name one as http://host:port")
    authorization = ""
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = f"proxy-authorization: Basic {base64.b64encode(login).decode()}\r\n"
    return Proxy(parts.hostname, parts.port or 80, authorization)


def tls_context() -> ssl.SSLContext:
    """Return a TLS context that trusts the operating system's authorities."""
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
