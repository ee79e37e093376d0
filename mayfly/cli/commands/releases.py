"""Commands that change which version answers: promote, rollback, canary, shadow, traffic."""

import time

import click

from mayfly.cli import output
from mayfly.cli.session import Session, common
from mayfly.cli.times import SECONDS
from mayfly.client.errors import InvalidInput
from mayfly.client.records import CanaryRecord, Document, TrafficRecord

WATCH_S = 2.0
alias_option = click.option("--alias", default="prod", help="Alias to change [prod].")


@click.command(short_help="Let a version answer.")
@click.argument("model")
@click.argument("version", type=int)
@alias_option
@common
def promote(session: Session, model: str, version: int, alias: str) -> None:
    """Point an alias of MODEL, `prod` by default, at VERSION.

    \b
    Example: mayfly promote digits 8
    """
    record = session.model(model).promote(version, alias)
    was = f"{record.previous} → " if record.previous else ""
    session.show(
        dict(record.raw),
        f"{model} {alias}: {was}{record.version} (revision {record.revision}). "
        "Callers see it within 5 s.",
        f"Back: mayfly rollback {model}",
    )


@click.command(short_help="Go back to the version before.")
@click.argument("model")
@alias_option
@common
def rollback(session: Session, model: str, alias: str) -> None:
    """Point an alias of MODEL back at the version before.

    \b
    Example: mayfly rollback digits
    """
    record = session.model(model).rollback(alias)
    session.show(
        dict(record.raw),
        f"{model} {alias}: {record.previous} → {record.version} (revision {record.revision}). "
        "Callers see it within 5 s.",
    )


@click.command(short_help="Give a version growing shares of the requests.")
@click.argument("model")
@click.argument("version", type=int, required=False)
@alias_option
@click.option("--steps", help="Shares in per cent [10,50].")
@click.option("--bake", type=SECONDS, metavar="TIME", help="Time of a step, at least [10m].")
@click.option("--min-samples", type=int, help="Requests of each version in a step, at least [500].")
@click.option("--stop", is_flag=True, help="Stop the canary and go back.")
@click.option("--finish", is_flag=True, help="Promote its version now.")
@common
def canary(
    session: Session,
    model: str,
    version: int | None,
    alias: str,
    steps: str | None,
    bake: int | None,
    min_samples: int | None,
    stop: bool,
    finish: bool,
) -> None:
    """Start a canary of VERSION; without VERSION, show the one that runs.

    It is rolled back when it fails more often or is slower than the stable version.

    \b
    Example: mayfly canary digits 8 --steps 10,50 --bake 10m
    """
    chosen = session.model(model)
    if stop or finish:
        record = chosen.finish_canary(alias) if finish else chosen.stop_canary(alias)
        session.show(dict(record.raw), str(record))
        return
    if version is None:
        record = chosen.canary(alias)
        session.show(dict(record.raw), _progress(record))
        return
    chosen.start_canary(
        version, alias, steps=_numbers(steps), bake_seconds=bake, min_samples=min_samples
    )
    split = chosen.traffic(alias)
    session.show(
        dict(split.raw),
        f"{split} · watching errors and latency",
        f"Watch: mayfly traffic {model} --watch   Back: mayfly canary {model} --stop",
    )


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(f"--steps {text!r}: write percentages, e.g. 10,50") from None


def _progress(record: CanaryRecord) -> str:
    """Return a canary's verdict, steps as dots, and counters."""
    lines = [str(record)]
    if record.steps and record.step:
        dots = ["●" if at < record.step else "○" for at in range(len(record.steps))]
        shares = [f"{dot} {share} %" for dot, share in zip(dots, record.steps, strict=True)]
        left = record.step_seconds_left
        bake = f"   {_minutes(left)} of this step left" if left else ""
        lines.append(f"  {'  '.join(shares)}{bake}")
    arms = [("stable", record.stable), ("candidate", record.candidate)]
    rows = [_arm(name, arm) for name, arm in arms if arm]
    if rows:
        heads = ["", "VERSION", "REQUESTS", "ERRORS", "P95"]
        lines += ["  " + line for line in output.table(heads, rows).splitlines()]
    return "\n".join(lines)


def _minutes(seconds: int) -> str:
    """Format a time.

    >>> _minutes(3), _minutes(185)
    ('3 s', '3 min 5 s')
    """
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _arm(name: str, arm: Document) -> list[object]:
    rate, p95 = arm["error_rate"]["value"], arm["p95_ms"]
    return [
        name,
        arm["version"],
        arm["requests"],
        f"{rate:.1%}" if rate is not None else "",
        f"{p95['value']:.1f} ms ({p95['low']:.1f} to {p95['high']:.1f})" if p95 else "",
    ]


@click.command(short_help="Let a version answer copies of requests.")
@click.argument("model")
@click.argument("version", type=int, required=False)
@alias_option
@click.option("--percent", type=float, default=10.0, help="Share of the requests [10].")
@click.option("--stop", is_flag=True, help="Stop the copies.")
@common
def shadow(
    session: Session, model: str, version: int | None, alias: str, percent: float, stop: bool
) -> None:
    """Send copies of MODEL's requests to VERSION and compare the answers.

    Callers see nothing of it.

    \b
    Example: mayfly shadow digits 9 --percent 5
    """
    if (version is None) != stop:
        raise InvalidInput("name a VERSION, or --stop")
    chosen = session.model(model)
    present = chosen.traffic(alias)
    weights = {row["version"]: row["weight"] for row in present.weights}
    if not weights:
        weights = {chosen.alias(alias).version: 100}
    copies = None if version is None else (version, percent)
    record = chosen.set_traffic(weights, alias, shadow=copies, sticky=present.sticky or "auto")
    session.show(dict(record.raw), str(record), f"Agreement: mayfly traffic {model}")


@click.command(short_help="Show or set the split of requests.")
@click.argument("model")
@click.argument("weights", nargs=-1, metavar="[VERSION=PERCENT ...]")
@alias_option
@click.option("--clear", is_flag=True, help="Send all requests to the alias's own version.")
@click.option("--watch", is_flag=True, help="Show it again when it changes, until Ctrl-C.")
@common
def traffic(
    session: Session, model: str, weights: tuple[str, ...], alias: str, clear: bool, watch: bool
) -> None:
    """Show how MODEL's requests are split between versions, or set it.

    \b
    Example: mayfly traffic digits 7=90 8=10
    """
    chosen = session.model(model)
    if clear:
        chosen.clear_traffic(alias)
    elif weights:
        chosen.set_traffic(dict(map(_weight, weights)), alias)
    record = chosen.traffic(alias)
    session.show(dict(record.raw), _bar(record))
    while watch:
        time.sleep(WATCH_S)
        latest = chosen.traffic(alias)
        if latest.raw != record.raw:
            record = latest
            session.show(dict(record.raw), _bar(record))


def _weight(text: str) -> tuple[int, float]:
    version, _, share = text.partition("=")
    try:
        return int(version), float(share.removesuffix("%"))
    except ValueError:
        raise InvalidInput(f"{text!r} is no share: write VERSION=PERCENT, e.g. 8=10") from None


def _bar(record: TrafficRecord) -> str:
    """Return the split as one horizontal bar, on a terminal."""
    signs = "█▒░"
    width = 40
    parts = [
        signs[at % len(signs)] * round(row["weight"] * width / 100)
        for at, row in enumerate(record.weights)
    ]
    return f"{record}\n{''.join(parts)}" if len(record.weights) > 1 else str(record)
