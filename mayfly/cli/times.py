"""Lengths of time as people write them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Seconds(click.ParamType[int]):
    """Option whose value is a length of time, e.g. 90d."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the seconds."""
        if isinstance(value, int):
            return value
        seconds = parse_seconds(value)
        if seconds is None:
            self.fail(f"{value!r} is no time: write 90d, 12h, 30m or 0s", param, ctx)
        return seconds


SECONDS = Seconds()


def parse_seconds(text: str) -> int | None:
    """Parse a length of time to seconds; None for another form.

    >>> parse_seconds("90d"), parse_seconds("0s"), parse_seconds("1w")
    (7776000, 0, None)
    """
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    return int(match[1]) * UNITS_S[match[2]] if match else None


def time_after(seconds: int) -> str:
    """Return the UTC time after some seconds from now, in ISO 8601."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")
