"""The time of day."""

from datetime import UTC, datetime


def utc_now() -> str:
    """Now, as ISO 8601 to the millisecond, e.g. 2026-11-22T08:15:30.123Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
