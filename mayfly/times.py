"""Lengths of time as people write them."""

import argparse
import re
from datetime import UTC, datetime, timedelta

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_seconds(text: str) -> int:
    """Parse a length of time to seconds.

    >>> parse_seconds("90d"), parse_seconds("0s")
    (7776000, 0)

    Raises:
        ArgumentTypeError: it has another form.
    """
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90d, 12h, 30m or 0s")
    return int(match[1]) * UNITS_S[match[2]]


def time_after(seconds: int) -> str:
    """Return the UTC time after some seconds from now, in ISO 8601."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")
