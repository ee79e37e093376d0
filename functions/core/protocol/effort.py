"""Time and memory limits for decoding request bodies."""

import math
import time

from functions.core.errors import PayloadTooLarge, TimedOut

# Parsed, a JSON value takes up to 60 bytes and a list 100, whatever its text takes: 64 MB of "[],"
# were 2.4 GB, and 29 s for the garbage collector. No uncompressed body holds as many.
CONTAINERS_MAX = 2**21  # lists and objects
VALUES_MAX = 2**22
SMALL_BYTES = 2**20  # a shorter text cannot hold too many
ELEMENTS_AT_ONCE = 2**14  # decoded between two looks at the clock
NO_DEADLINE = math.inf
# Bytes that orjson takes to read: for its tree, a value with its place in a list, a list.
TREE_BYTES, VALUE_BYTES, LIST_BYTES = 12, 64, 128  # the first for each byte of text
WRITING = 4  # times what orjson reserves: it doubles its buffer, and copies it (measured: 3.6)


def check_deadline(deadline: float) -> None:
    """Raise TimedOut if `deadline`, in `time.monotonic` seconds, has passed.

    Raises:
        TimedOut: decoding took longer than the whole request may take.
    """
    if time.monotonic() > deadline:
        raise TimedOut("the time was over before the body was read; send fewer rows at once")


def check_effort(text: memoryview) -> None:
    """Refuse JSON text that would take too much memory when parsed.

    Brackets and commas within strings count, too.

    Raises:
        PayloadTooLarge: naming the number of values, or of lists and objects.
    """
    if len(text) < SMALL_BYTES:
        return
    raw = bytes(text)
    containers, values = raw.count(b"[") + raw.count(b"{"), raw.count(b",")
    for count, limit, noun in (
        (containers, CONTAINERS_MAX, "lists and objects"),
        (values, VALUES_MAX, "values"),
    ):
        if count > limit:
            raise PayloadTooLarge(
                f"the body's JSON has {count} {noun}, at most {limit} are read: "
                "send fewer rows at once, or binary data"
            )


def check_room(size_bytes: int) -> None:
    """Raise MemoryError unless this many bytes can be allocated now.

    For orjson, which does not look whether an allocation has failed: it then ends the process, or
    returns a damaged list. Reserving takes microseconds, because no page is touched.

    Raises:
        MemoryError: it cannot.
    """
    if size_bytes < SMALL_BYTES:  # an idle environment has as much
        return
    import mmap  # a cold start does not need it

    try:
        mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE).close()
    except OSError:
        raise MemoryError from None


def reading_bytes(text: bytes, start: int, end: int) -> int:
    """Return the peak bytes orjson needs to parse `text[start:end]`."""
    values, lists = text.count(b",", start, end), text.count(b"[", start, end)
    return (end - start) * TREE_BYTES + values * VALUE_BYTES + lists * LIST_BYTES
