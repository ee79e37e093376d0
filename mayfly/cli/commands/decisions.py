"""Commands of people's decisions: describe, approve, reject, archive, restore."""

import sys
from typing import Any

import click

from mayfly.cli.session import Session, common
from mayfly.client.errors import InvalidInput
from mayfly.client.records import ModelRecord, VersionRecord

POLICIES = ("manual", "always", "if_better")
note_option = click.option("--note", default="", help="Reason, kept in the audit log.")


@click.command(short_help="Set description and policy of a model.")
@click.argument("model")
@click.argument("description", required=False)
@click.option("--policy", type=click.Choice(POLICIES), help="Who moves prod to a new version.")
@click.option("--canary", is_flag=True, help="Move it by a canary; with always or if_better.")
@common
def describe(
    session: Session, model: str, description: str | None, policy: str | None, canary: bool
) -> None:
    """Set the description of MODEL, or its release policy.

    A person moves prod (manual), each READY version does (always), or one whose metric is better.

    \b
    Example: mayfly describe digits "A handwritten digit" --policy if_better
    """
    if description is None and policy is None:
        raise InvalidInput("nothing to change: name a description or --policy")
    if canary and policy in (None, "manual"):
        raise InvalidInput("--canary needs --policy always or if_better")
    kind: dict[str, Any] | None = None
    if policy:
        kind = {"kind": policy, **({"canary": {}} if canary else {})}
    record = session.model(model).describe(description, policy=kind)
    text = f"{record.name}: {record.description or 'no description'} ({record.policy['kind']})"
    session.show(dict(record.raw), text)


@click.command(short_help="Mark a version as looked at.")
@click.argument("model")
@click.argument("version", type=int)
@note_option
@common
def approve(session: Session, model: str, version: int, note: str) -> None:
    """Approve VERSION of MODEL; that takes a person's rejection back, too.

    \b
    Example: mayfly approve digits 8 --note "checked by hand"
    """
    _show(session, session.model(model).approve(version, note), "approved")


@click.command(short_help="Keep a version from answering.")
@click.argument("model")
@click.argument("version", type=int)
@note_option
@common
def reject(session: Session, model: str, version: int, note: str) -> None:
    """Reject VERSION of MODEL: no alias and no policy takes it.

    \b
    Example: mayfly reject digits 8 --note "wrong labels"
    """
    _show(session, session.model(model).reject(version, note), "rejected")


@click.command(short_help="Take a model or version out of service.")
@click.argument("model")
@click.argument("version", type=int, required=False)
@note_option
@click.option("--yes", is_flag=True, help="Do not ask; a version is archived for good.")
@common
def archive(session: Session, model: str, version: int | None, note: str, yes: bool) -> None:
    """Take MODEL out of service, or one VERSION for good.

    \b
    Example: mayfly archive digits
             mayfly archive digits 3 --yes
    """
    if version is None:
        record = session.model(model).archive()
        _show_model(session, record, f"Back: mayfly restore {model}")
        return
    if not yes and not (sys.stdin.isatty() and click.confirm("Archive it for good?", err=True)):
        raise InvalidInput("a version is archived for good: confirm it, or add --yes")
    _show(session, session.model(model).archive_version(version, note), "archived")


@click.command(short_help="Put an archived model back.")
@click.argument("model")
@common
def restore(session: Session, model: str) -> None:
    """Put the archived MODEL back into service.

    \b
    Example: mayfly restore digits
    """
    _show_model(session, session.model(model).restore(), "")


def _show(session: Session, record: VersionRecord, deed: str) -> None:
    session.show(dict(record.raw), f"{record.model} {record.version} {deed}")


def _show_model(session: Session, record: ModelRecord, advice: str) -> None:
    text = f"{record.name} is {record.state}. Callers see it within seconds."
    session.show(dict(record.raw), text, advice)
