"""Parser of HTTP replies, fed byte by byte and at once."""

import gzip
import zlib

import pytest

from mayfly.client.http1.messages import Reply
from mayfly.client.http1.replies import BadReply, ReplyParser

OK = b"HTTP/1.1 200 OK\r\n"


def parse(content: bytes, step: int, *, to_head: bool = False) -> tuple[Reply, bool]:
    parser = ReplyParser(to_head=to_head)
    for start in range(0, len(content), step):
        if parser.feed(content[start : start + step]):
            break
    else:
        parser.feed(b"")
    assert parser.reply is not None
    return parser.reply, parser.keep


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("content", "body", "keep"),
    [
        (OK + b"Content-Length: 2\r\n\r\nhi", b"hi", True),
        (OK + b"Content-Length: 0\r\n\r\n", b"", True),
        (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi", False),
        (OK + b"\r\nuntil the end", b"until the end", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 1\r\n\r\na", b"a", True),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
            b"hi0123456789",
            True,
        ),
        (
            OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\ntrailer: x\r\n\r\n",
            b"a",
            True,
        ),
        (
            OK
            + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
            % len(gzip.compress(b"hello", mtime=0))
            + gzip.compress(b"hello", mtime=0),
            b"hello",
            True,
        ),
        (OK + b"content-encoding: deflate\r\n\r\n" + zlib.compress(b"hello"), b"hello", False),
    ],
)  # fmt: skip
def test_a_reply_is_read_whatever_pieces_it_comes_in(
    content: bytes, body: bytes, keep: bool, step: int
) -> None:
    reply, kept = parse(content, step)

    assert (reply.status // 100, reply.body, kept) == (2, body, keep)


def test_a_reply_to_head_has_no_body() -> None:
    reply, keep = parse(OK + b"content-length: 5\r\n\r\n", 3, to_head=True)

    assert (reply.body, keep) == (b"", True)


def test_bytes_after_the_reply_close_the_connection() -> None:
    _, keep = parse(OK + b"content-length: 1\r\n\r\nab", 1000)

    assert not keep


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"content-length: 5\r\n\r\nhi",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"content-length: x\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"a: b\r\n" * 300 + b"\r\n",
        OK + b"a: " + b"b" * 70_000,
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhi",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        OK + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd",
        OK + b"content-encoding: br\r\ncontent-length: 1\r\n\r\na",
    ],
)
def test_a_reply_that_cannot_be_read_is_an_error(content: bytes) -> None:
    for step in (1, 100_000):
        with pytest.raises(BadReply):
            parse(content, step)
