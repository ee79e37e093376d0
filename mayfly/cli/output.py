"""Output for people: tables, sizes, times, colours; and JSON for programs."""

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))
AGES_S = ((86_400, "day"), (3600, "hour"), (60, "minute"))
LESS = "less -FRX"  # one screen needs no key, colours stay, the text stays on the screen


def size(count: float | None) -> str:
    """Format a number of bytes.

    >>> size(217_441), size(12), size(None)
    ('217 KB', '12 B', '')
    """
    if count is None:
        return ""
    for unit, name in SIZES:
        if count >= unit:
            return (
                f"{count / unit:.1f} {name}" if count < 10 * unit else f"{count / unit:.0f} {name}"
            )
    return f"{count:.0f} B"


def age(moment: str | None, now: datetime | None = None) -> str:
    """Format a time in ISO 8601 by its distance from now.

    >>> age("2026-11-30T10:00:00Z", datetime(2026, 11, 30, 13, 0, tzinfo=UTC))
    '3 hours ago'
    """
    if not moment:
        return ""
    passed = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    suffix = "ago" if passed >= 0 else "from now"
    for seconds, name in AGES_S:
        if abs(passed) >= seconds:
            count = int(abs(passed) // seconds)
            return f"{count} {name}{'' if count == 1 else 's'} {suffix}"
    return "just now"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format rows under headings, with numbers aligned at the right.

    >>> print(table(["MODEL", "PROD"], [["digits", 7], ["churn", 12]]))
    MODEL   PROD
    digits     7
    churn     12
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    right = [_is_numeric([row[at] for row in cells]) for at in range(len(heads))]
    widths = [max(map(_width, column)) for column in zip(heads, *cells, strict=True)]
    lines = []
    for row in [list(heads), *cells]:
        parts = [
            " " * (width - _width(cell)) + cell if is_right else cell + " " * (width - _width(cell))
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _is_numeric(column: Sequence[str]) -> bool:
    filled = [cell for cell in column if cell]
    return bool(filled) and all(
        cell.lstrip("$-")[:1].isdigit() and " ago" not in cell for cell in filled
    )


def _width(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    plain = click.unstyle(text)
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in plain)


def show_table(heads: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Print a table, paged if longer than the terminal.

    Without rows, print `empty`."""
    if not rows:
        hint(empty)
        return
    text = table(heads, rows)
    head, _, rest = text.partition("\n")
    text = f"{click.style(head, dim=True)}\n{rest}"
    if sys.stdout.isatty() and len(rows) + 1 > shutil.get_terminal_size().lines:
        click.echo_via_pager(text + "\n")
    else:
        click.echo(text)


def show_json(document: Any) -> None:
    """Print one document as JSON."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=plain))


def plain(value: Any) -> Any:
    """Convert a value for JSON: arrays to lists, bytes to text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def hint(text: str) -> None:
    """Print advice in grey on a terminal, and nothing elsewhere."""
    if sys.stdout.isatty():
        click.secho(text, dim=True)


def good(text: str) -> str:
    """Return a text in green."""
    return click.style(text, fg="green")


def bad(text: str) -> str:
    """Return a text in red."""
    return click.style(text, fg="red")
