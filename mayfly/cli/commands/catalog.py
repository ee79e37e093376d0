"""Commands that list and compare: models, versions, diff, usage, audit."""

from typing import Any

import click

from mayfly.cli import output
from mayfly.cli.session import Session, common
from mayfly.client.errors import MayflyError
from mayfly.client.records import Document, ModelRecord, UsageRow, VersionRecord

NO_MODELS = "No models yet. Try: mayfly upload model.onnx --model NAME"


@click.command(short_help="List the models.")
@click.option("--search", default="", help="Text in the name.")
@click.option("--archived", is_flag=True, help="List archived models.")
@common
def models(session: Session, search: str, archived: bool) -> None:
    """List the models with their aliases.

    \b
    Example: mayfly models --search fraud
    """
    records = list(session.client.models(search, "archived" if archived else "active"))
    used = {} if session.json else _usage_by_model(session)
    heads = ["MODEL", "PROD", "LATEST", "REQUESTS 7D", "ERRORS", "P50", "COST 7D", "CHANGED"]
    rows = [_model_row(record, used.get(record.name)) for record in records]
    session.show_rows([record.raw for record in records], heads, rows, NO_MODELS)


def _usage_by_model(session: Session) -> dict[str, UsageRow]:
    """Return each model's usage of the last week, if readable."""
    try:
        return {str(row.model): row for row in session.client.usage().rows}
    except MayflyError:
        return {}


def _model_row(record: ModelRecord, used: UsageRow | None) -> list[Any]:
    aliases, row = record.aliases or {}, used or UsageRow()
    newest = record.newest or {}
    latest = aliases.get("latest") or newest.get("state")
    return [
        record.name,
        aliases.get("prod"),
        latest,
        f"{row.requests:,}" if used else "",
        _share(row.errors, row.requests),
        _milliseconds(row.latency_ms.get("p50")),
        _dollars(row.cost_usd) if used else "",
        output.age(record.changed_at),
    ]


@click.command(short_help="List the versions of a model.")
@click.argument("model")
@click.option("--state", default="", help="READY, REJECTED, ARCHIVED or PENDING.")
@common
def versions(session: Session, model: str, state: str) -> None:
    """List the versions of MODEL, newest first, with state, metrics and reasons.

    \b
    Example: mayfly versions digits
    """
    chosen = session.model(model)
    records = list(chosen.versions(state.upper()))
    aliases: dict[int, list[str]] = {}
    for alias in chosen.aliases():
        aliases.setdefault(alias.version, []).append(alias.alias)
    heads = ["VERSION", "STATE", "ALIASES", "METRIC", "SIZE", "REGISTERED", "NOTE"]
    rows = [_version_row(record, aliases.get(record.version, [])) for record in records]
    session.show_rows([record.raw for record in records], heads, rows, f"{model} has no versions.")


def _version_row(record: VersionRecord, aliases: list[str]) -> list[Any]:
    reason = record.reason["message"] if record.reason else record.damaged or record.note
    state = {"READY": output.good, "REJECTED": output.bad}.get(record.state, str)(record.state)
    return [
        record.version,
        state,
        ", ".join(aliases),
        metric(record.metrics, record.raw.get("primary")),
        output.size(record.size_bytes or None),
        output.age(record.finished_at or record.created_at),
        reason,
    ]


def metric(metrics: Document, primary: Document | None) -> str:
    """Spell a version's primary metric with its interval, else its first metric.

    >>> primary = {"metric": "accuracy", "value": 0.99444, "low": 0.98886, "high": 1.0}
    >>> metric({}, primary), metric({"f1": 0.9}, None)
    ('accuracy 0.9944 ±0.0056', 'f1 0.9')
    """
    if primary:
        low, high = primary.get("low"), primary.get("high")
        spread = "" if low is None or high is None else f" ±{(high - low) / 2:.2g}"
        return f"{primary['metric']} {primary['value']:.4g}{spread}"
    for name, value in metrics.items():
        if isinstance(value, int | float):
            return f"{name} {value:.4g}"
    return ""


@click.command(short_help="Compare two versions.")
@click.argument("model")
@click.argument("old", type=int)
@click.argument("new", type=int)
@common
def diff(session: Session, model: str, old: int, new: int) -> None:
    """Compare versions OLD and NEW of MODEL; equal parts are left out.

    \b
    Example: mayfly diff digits 7 8
    """
    record = session.model(model).diff(old, new)
    rows = [row for name, part in record.differences.items() for row in _parts(name, part)]
    if session.json or not rows:
        session.show(dict(record.raw), f"{model}: versions {old} and {new} do not differ.")
        return
    session.show_rows([], ["PART", str(old), str(new)], rows, "")


def _parts(name: str, part: Any) -> list[list[Any]]:
    """Return the rows of a part, with the parts inside it."""
    if not isinstance(part, dict):
        return [[name, "", _cell(part)]]
    if set(part) >= {"from", "to", "changes"}:  # signatures: the changes say more than both
        return _parts(name, {"changes": part["changes"], "breaks_callers": part["breaks_callers"]})
    if set(part) >= {"from", "to"}:
        row = [name, _cell(part["from"]), _cell(part["to"])]
        inner = {key: value for key, value in part.items() if key not in ("from", "to")}
        return [row, *_parts(name, inner)]
    return [row for key, value in part.items() for row in _parts(f"{name}.{key}", value)]


def spelled(value: Any) -> str:
    """Spell a JSON value in a cell.

    >>> spelled({"aliases": {"prod": 1, "next": None}, "notes": ["a", "b"]})
    'aliases prod 1, next -; notes a; b'
    """
    if isinstance(value, dict):
        inner = "; " if any(isinstance(item, dict | list) for item in value.values()) else ", "
        return inner.join(f"{name} {spelled(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(spelled, value))
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    text = spelled(value)
    return text if len(text) <= 60 else text[:59] + "…"


@click.command(short_help="Show requests and cost.")
@click.argument("model", required=False)
@click.option("--by", default="", help="version, alias, key, hour or day; model without MODEL.")
@click.option("--from", "first", default="", metavar="DATE", help="First day [six days ago].")
@click.option("--to", "last", default="", metavar="DATE", help="Last day [today].")
@common
def usage(session: Session, model: str | None, by: str, first: str, last: str) -> None:
    """Show requests, errors, latency and cost, of MODEL or of all models.

    By key, it needs a key with the scope admin.

    \b
    Example: mayfly usage digits --by version
    """
    if model:
        record = session.model(model).usage(by or "version", first=first, last=last)
    else:
        record = session.client.usage(by or "model", first=first, last=last)
    if session.json:
        session.show(record.raw)
        return
    heads = [record.by.upper(), "REQUESTS", "ERRORS", "REFUSED", "P50", "P99", "COST"]
    rows = [_usage_row(str(row.raw.get(record.by) or "none"), row) for row in record.rows]
    if len(rows) > 1:
        rows.append(_usage_row("all", record.total))
    session.show_rows([], heads, rows, f"No requests from {record.from_day} to {record.to_day}.")
    idle = record.prices.get("idle_month_usd")
    if idle is not None and not session.quiet:
        output.hint(f"A month without requests costs {_dollars(idle)}.")


def _usage_row(name: str, row: UsageRow) -> list[Any]:
    return [
        name,
        f"{row.requests:,}",
        _share(row.errors, row.requests),
        _share(row.refused, row.requests),
        _milliseconds(row.latency_ms.get("p50")),
        _milliseconds(row.latency_ms.get("p99")),
        _dollars(row.cost_usd),
    ]


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else ""


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _dollars(value: float) -> str:
    return f"${value:.2f}" if value >= 0.01 or not value else f"${value:.5f}"


@click.command(short_help="List who changed what.")
@click.argument("model", required=False)
@click.option("--actor", default="", help="Only changes of this actor, e.g. key:<id>.")
@click.option("--action", default="", help="Only this action.")
@click.option("-n", "--limit", default=50, help="Number of changes [50].")
@common
def audit(session: Session, model: str | None, actor: str, action: str, limit: int) -> None:
    """List the newest changes, of MODEL or of everything.

    Everything needs a key with the scope admin.

    \b
    Example: mayfly audit digits -n 10
    """
    if model:
        pages = session.model(model).audit(actor=actor, action=action)
    else:
        pages = session.client.audit(actor=actor, action=action)
    records = [record for _, record in zip(range(limit), pages, strict=False)]
    heads = ["WHEN", "WHO", "WHAT", "SUBJECT", "VERSION", "BEFORE", "AFTER"]
    rows = [
        [
            output.age(record.at),
            record.actor,
            record.action,
            record.model or record.key,
            record.version,
            _cell(record.before),
            _cell(record.after),
        ]
        for record in records
    ]
    session.show_rows([record.raw for record in records], heads, rows, "No changes yet.")
