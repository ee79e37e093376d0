"""Both clients over TLS, directly and through a proxy."""

import asyncio
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly import AsyncMayfly, Mayfly, errors
from tests.fault_server import FaultServer, ReceivedRequest, ServerConnection, fault_server
from tests.integration.authority import Authority


def answer(seen: ReceivedRequest, line: ServerConnection) -> None:
    line.answer(200, b"{}")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Iterator[FaultServer]:
    with fault_server(answer, context=authority.server_context("127.0.0.1")) as server:
        server.signed = False
        yield server


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ready(kind: str, url: str) -> bool:
    if kind == "sync":
        with Mayfly(url, retries=0) as client:
            return client.model("m").ready() and client.model("m").ready()

    async def ask() -> bool:
        async with AsyncMayfly(url, retries=0) as client:
            return await client.model("m").ready() and await client.model("m").ready()

    return asyncio.run(ask())


def test_a_trusted_server_is_called_over_a_kept_connection(
    kind: str, server: FaultServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))

    assert ready(kind, server.url)
    assert server.connections == 1


def test_another_server_is_not_trusted(kind: str, server: FaultServer) -> None:
    with pytest.raises(errors.NotConfigured, match="certificate of 127.0.0.1 is not trusted"):
        ready(kind, server.url)


class Tunnel(threading.Thread):
    """Proxy that answers one CONNECT with `status`, and then copies bytes both ways."""

    def __init__(self, status: int) -> None:
        super().__init__(daemon=True)
        self.status = status
        self.head = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:word@127.0.0.1:{self._listener.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as client:
            while not self.head.endswith(b"\r\n\r\n"):
                self.head += client.recv(1)
            client.sendall(b"HTTP/1.1 %d Planned\r\ncontent-length: 0\r\n\r\n" % self.status)
            if self.status == 200:
                port = int(self.head.split(b" ")[1].rpartition(b":")[2])
                with socket.create_connection(("127.0.0.1", port)) as server:
                    self._copy(client, server)

    @staticmethod
    def _copy(client: socket.socket, server: socket.socket) -> None:
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(65_536)
                if not data:
                    return
                (server if source is client else client).sendall(data)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("proxied")
def test_a_proxy_carries_tls(
    kind: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel = Tunnel(200)
    monkeypatch.setenv("https_proxy", tunnel.url)

    assert ready(kind, server.url)
    tunnel.join(30)
    assert b"proxy-authorization: Basic dXNlcjp3b3Jk\r\n" in tunnel.head
    assert not [seen for seen in server.seen if "proxy-authorization" in seen.headers]


@pytest.mark.usefixtures("proxied")
def test_a_proxy_that_refuses_is_named(
    kind: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel = Tunnel(407)
    monkeypatch.setenv("https_proxy", tunnel.url)

    with pytest.raises(errors.Disconnected, match="the proxy answered 407"):
        ready(kind, server.url)
    tunnel.join(30)


@pytest.mark.usefixtures("proxied")
def test_a_proxy_of_plain_http_gets_whole_urls(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_server(answer) as proxy:
        proxy.signed = False
        monkeypatch.setenv("http_proxy", proxy.url)

        assert ready(kind, "http://stack.example/live")
        assert proxy.seen[0].path == "http://stack.example/live/v2/models/m/ready"
        assert proxy.seen[0].headers["host"] == "stack.example"
