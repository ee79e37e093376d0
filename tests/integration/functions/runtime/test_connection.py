"""Connection to the Runtime API: broken ones, repeated requests, messages in pieces."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest

from functions.runtime.connection import ATTEMPTS, BrokenConnection, Connection
from tests.runtime_api import MAYFLY, Event, FakeRuntimeApi, play, started

ECHO = "tests.integration.functions.runtime.handlers.echo"
BODY = b"0123456789" * 3
MESSAGES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\nX-Name: a value \r\n\r\n" + BODY,
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-name:a value\r\n\r\n"
    b"5\r\n01234\r\n19;extension\r\n5678901234567890123456789\r\n0\r\nx-trailer: 1\r\n\r\n",
}


@contextmanager
def answering(pieces: Iterable[bytes], close: bool = False) -> Iterator[Connection]:
    """Yield a connection whose peer sends `pieces`, one by one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection(f"127.0.0.1:{server.getsockname()[1]}")
        connection.connect()
        peer, _ = server.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sender = threading.Thread(target=send, args=(peer, pieces, close), daemon=True)
            sender.start()
            try:
                yield connection
            finally:
                connection.close()
                sender.join(60)


def send(peer: socket.socket, pieces: Iterable[bytes], close: bool) -> None:
    with suppress(OSError):
        for piece in pieces:
            peer.sendall(piece)
        if close:
            peer.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_may_be_cut_anywhere(kind: str) -> None:
    message = MESSAGES[kind]
    for cut in range(1, len(message)):
        with answering([message[:cut], message[cut:]]) as connection:
            response = connection.receive()

        assert (response.status, response.body) == (200, BODY), cut
        assert response.headers["x-name"] == "a value"


@pytest.mark.parametrize("kind", MESSAGES)
def test_signals_do_not_break_a_message(kind: str) -> None:
    """Python's handlers run between two waits for the rest of the message."""
    signals: list[int] = []
    message, main = MESSAGES[kind], threading.main_thread().ident
    assert main is not None

    def pieces() -> Iterator[bytes]:
        yield message[:20]
        for count in range(1, 101):
            while len(signals) < count:  # a signal just before the wait does not end it
                signal.pthread_kill(main, signal.SIGUSR1)
                time.sleep(0.0001)
        yield message[20:]

    previous = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    try:
        with answering(pieces()) as connection:
            assert connection.receive().body == BODY
    finally:
        signal.signal(signal.SIGUSR1, previous)


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_follow_each_other(kind: str) -> None:
    with answering([MESSAGES[kind] * 3 + MESSAGES["length"]]) as connection:
        bodies = [connection.receive().body for _ in range(4)]

    assert bodies == [BODY] * 4


@pytest.mark.parametrize("kind", MESSAGES)
def test_an_incomplete_message_is_no_message(kind: str) -> None:
    message = MESSAGES[kind]
    for cut in range(len(message)):
        with answering([message[:cut]], close=True) as connection, pytest.raises(BrokenConnection):
            connection.receive()


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    with answering([b"HTTP/1.0 200 OK\r\n\r\n" + BODY], close=True) as connection:
        assert connection.receive().body == BODY


@pytest.mark.parametrize(
    "message",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n",
        b"HTTP/1.1 200 OK\r\nX-Endless: " + bytes(70_000),
    ],
)
def test_a_malformed_message_breaks_the_connection(message: bytes) -> None:
    with answering([message]) as connection, pytest.raises(BrokenConnection):
        connection.receive()


def test_a_header_may_take_many_kilobytes() -> None:
    value = "x" * 60_000
    message = f"HTTP/1.1 200 OK\r\nX-Long: {value}\r\nContent-Length: 2\r\n\r\nok".encode()

    with answering([message]) as connection:
        response = connection.receive()

    assert (response.headers["x-long"], response.body) == (value, b"ok")


def test_parts_of_a_message_are_sent_whole_and_in_order() -> None:
    parts = [b"head", bytes(9_000_000), b"", b"tail" * 100_000]
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection(f"127.0.0.1:{server.getsockname()[1]}")
        connection.connect().settimeout(60)  # without one, the kernel sends all at once
        peer, _ = server.accept()
        with peer:
            sender = threading.Thread(target=connection.send, args=parts)
            sender.start()
            while len(received) < sum(map(len, parts)):
                received += peer.recv(1 << 20)
            sender.join(60)
        connection.close()

    assert received == b"".join(parts)


def test_a_connection_that_the_peer_will_close_is_not_used_again() -> None:
    message = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nok"
    with answering([message]) as connection:
        first = connection.connect()
        connection.receive()

        assert connection.connect() is not first


@pytest.mark.parametrize("broken", range(1, ATTEMPTS))
def test_an_event_is_asked_for_again_when_the_connection_breaks(broken: int) -> None:
    script = [Event(b"1"), Event(b"2", broken_deliveries=broken)]

    api, ended = play(MAYFLY, ECHO, script)

    assert [post.json for post in api.posts] == [1, 2]
    assert (api.connections, ended.output) == (1 + broken, "")


@pytest.mark.parametrize("status", [202, 400, 403])
def test_a_reply_is_sent_again_when_the_connection_breaks(status: int) -> None:
    """The API may have had the first one, and then refuses the second."""
    api, _ = play(MAYFLY, ECHO, [Event(b"1", broken_replies=1, reply_status=status), Event(b"2")])

    assert [(post.json, post.connection) for post in api.posts] == [(1, 1), (1, 2), (2, 2)]


def test_a_reply_that_is_refused_at_once_ends_the_process() -> None:
    _, ended = play(MAYFLY, ECHO, [Event(reply_status=400), Event()])

    assert ended.status == 1


def test_half_a_surrogate_pair_is_a_question_mark() -> None:
    event = Event(rb'{"type": "Own", "message": "half \ud800"}')

    api, ended = play(MAYFLY, ECHO.replace("echo", "fail"), [event, Event(b"{}")])

    assert json.loads(api.posts[0].body)["errorMessage"] == "half ?"
    assert ended.lines[0] == r"[ERROR] OwnError: half \ud800"
    assert ended.status is None


def test_a_connection_that_always_breaks_ends_the_process() -> None:
    api, ended = play(MAYFLY, ECHO, [Event(broken_deliveries=1000)])

    assert (ended.status, api.asked) == (1, ATTEMPTS)
    [line] = ended.lines
    assert line.startswith("[ERROR] Runtime.LambdaRuntimeClientError: ")


@pytest.mark.parametrize(
    ("host", "family"), [("localhost", socket.AF_INET), ("[::1]", socket.AF_INET6)]
)
def test_an_address_may_be_a_name_or_of_ipv6(host: str, family: socket.AddressFamily) -> None:
    try:
        server = socket.create_server((host.strip("[]"), 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        connection = Connection(f"{host}:{server.getsockname()[1]}")
        connection.connect()
        connection.close()


def test_without_a_runtime_api_the_process_ends() -> None:
    api = FakeRuntimeApi()
    api.close()
    with started(MAYFLY, api, ECHO) as function:
        assert function.wait() == 1
        assert "Connection refused" in function.output()
