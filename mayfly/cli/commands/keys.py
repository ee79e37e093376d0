"""Commands of access keys, by IAM or an admin key."""

import getpass
import json
import sys
from typing import Any

import click

from mayfly.cli import output
from mayfly.cli.session import Session, common
from mayfly.cli.times import SECONDS, time_after
from mayfly.client.errors import NotConfigured

SCOPES = ("infer", "read", "deploy", "admin")
DEFAULT_STACK = "mayfly"
REQUESTS = click.IntRange(0, 10**12)
TOKENS = click.IntRange(1, 10**9)
CACHED = "KeyCacheSeconds (60 s by default)"
function_option = click.option("--function", help="Manage function, instead of --stack.")


class OrNone(click.ParamType[Any]):
    """Number, or the word none for no limit."""

    name = "number"

    def __init__(self, number: click.IntRange) -> None:
        self._number = number

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number, or "none"."""
        return value if value == "none" else self._number.convert(value, param, ctx)


@click.group(short_help="Manage access keys.")
def keys() -> None:
    """Manage access keys.

    By IAM where --stack or --function is named, or no URL is: the AWS CLI's credentials need
    cloudformation:DescribeStacks and lambda:InvokeFunction. Otherwise by a key with scope admin.

    \b
    Example: export MAYFLY_KEY=$(mayfly keys create --scope infer)
    """


@keys.command()
@click.option("--name", default="key", help="Name for people [key].")
@click.option("--scope", multiple=True, type=click.Choice(SCOPES), help="May be repeated [infer].")
@click.option("--model", multiple=True, help="Pattern of names, e.g. 'fraud-*'; may be repeated.")
@click.option("--expires", type=SECONDS, metavar="TIME", help="Lifetime, e.g. 12h or 90d [none].")
@click.option("--monthly-requests", type=REQUESTS, metavar="N", help="Quota of a month [none].")
@click.option("--max-tokens", type=TOKENS, metavar="N", help="Longest reply in tokens [none].")
@function_option
@common
def create(
    session: Session,
    name: str,
    scope: tuple[str, ...],
    model: tuple[str, ...],
    expires: int | None,
    monthly_requests: int | None,
    max_tokens: int | None,
    function: str | None,
) -> None:
    """Create a key and print it: the only text on standard output.

    \b
    Example: mayfly keys create --name ci --scope deploy --expires 90d
    Example: mayfly keys create --name shop --monthly-requests 100000
    """
    fields: dict[str, Any] = {"name": name, "scopes": list(scope) or ["infer"]}
    if model:
        fields["models"] = list(model)
    if expires is not None:
        fields["expires_at"] = time_after(expires)
    if monthly_requests is not None:
        fields["monthly_requests"] = monthly_requests
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    if _by_iam(session, function):
        reply = _invoke(session, function, "create-key", fields)
    else:
        record = session.client.create_key(
            name,
            fields["scopes"],
            models=model or ("*",),
            expires_at=fields.get("expires_at"),
            monthly_requests=monthly_requests,
            max_tokens=max_tokens,
        )
        reply = dict(record.raw)
    _show_once(session, reply)


@keys.command("list")
@function_option
@common
def list_keys(session: Session, function: str | None) -> None:
    """List the keys: a table, or lines of JSON in a pipe.

    \b
    Example: mayfly keys list | grep revoked
    """
    if _by_iam(session, function):
        records = list(_pages(session, function))
    else:
        records = [dict(record.raw) for record in session.client.keys()]  # noqa: SIM118
    if session.json:
        output.show_json(records)
    elif not sys.stdout.isatty():
        for record in records:
            click.echo(json.dumps(record))
    else:
        output.show_table(
            ["ID", "NAME", "STATE", "SCOPES", "MODELS", "A MONTH", "A REPLY", "CREATED", "EXPIRES"],
            [_row(record) for record in records],
            "No keys yet. Try: mayfly keys create",
        )


def _row(record: dict[str, Any]) -> list[Any]:
    scopes, patterns = ", ".join(record["scopes"]), ", ".join(record["models"])
    created, expires = output.age(record["created_at"]), output.age(record["expires_at"])
    limits = [record.get(name) for name in ("monthly_requests", "max_tokens")]
    month, reply = ("" if limit is None else f"{limit:,}" for limit in limits)
    return [
        record["id"], record["name"], record["state"], scopes, patterns, month, reply,
        created, expires,
    ]  # fmt: skip


@keys.command()
@click.argument("id", metavar="ID")
@click.option(
    "--monthly-requests", type=OrNone(REQUESTS), metavar="N|none", help="Quota of a month."
)
@click.option(
    "--max-tokens", type=OrNone(TOKENS), metavar="N|none", help="Longest reply in tokens."
)
@function_option
@common
def limit(
    session: Session,
    id: str,  # noqa: A002
    monthly_requests: Any,
    max_tokens: Any,
    function: str | None,
) -> None:
    """Change the limits of a key; none takes one away.

    What is not named stays. For a quota, what the key has used of this month counts.

    \b
    Example: mayfly keys limit 4uiwhwnxlxtg --monthly-requests 100000
    Example: mayfly keys limit 4uiwhwnxlxtg --max-tokens none
    """
    named = {"monthly_requests": monthly_requests, "max_tokens": max_tokens}
    limits = {
        name: None if value == "none" else value
        for name, value in named.items()
        if value is not None
    }
    if not limits:
        raise click.UsageError("Name a limit to change: --monthly-requests or --max-tokens.")
    if _by_iam(session, function):
        reply = _invoke(session, function, "change-key", {"id": id, **limits})
    else:
        reply = dict(session.client.change_key(id, **limits).raw)
    if not session.quiet:
        click.echo(json.dumps(reply))
        click.echo(f"It holds within {CACHED}.", err=True)


@keys.command()
@click.argument("id", metavar="ID")
@click.option("--overlap", type=SECONDS, default="1d", metavar="TIME", help="[1d]")
@function_option
@common
def rotate(session: Session, id: str, overlap: int, function: str | None) -> None:  # noqa: A002
    """Print a new text of a key; the old stays valid.

    ID is the key's second part, between the underscores.

    \b
    Example: mayfly keys rotate 4uiwhwnxlxtg --overlap 7d
    """
    if _by_iam(session, function):
        reply = _invoke(session, function, "rotate-key", {"id": id, "overlap_seconds": overlap})
    else:
        reply = dict(session.client.rotate_key(id, overlap).raw)
    _show_once(session, reply)


@keys.command()
@click.argument("id", metavar="ID")
@function_option
@common
def revoke(session: Session, id: str, function: str | None) -> None:  # noqa: A002
    """End a key for good.

    \b
    Example: mayfly keys revoke 4uiwhwnxlxtg
    """
    if _by_iam(session, function):
        reply = _invoke(session, function, "revoke-key", {"id": id})
    else:
        reply = dict(session.client.revoke_key(id).raw)
    if not session.quiet:
        click.echo(json.dumps(reply))
        click.echo(f"It may still be accepted for {CACHED}.", err=True)


def _by_iam(session: Session, function: str | None) -> bool:
    if session.stack or function:
        return True
    if session.url:
        return False
    try:
        return not session.config.key
    except NotConfigured:
        return True


def _invoke(session: Session, function: str | None, operation: str, fields: dict[str, Any]) -> Any:
    from mayfly.cli import invocation

    name = function or invocation.find_function(session.stack or DEFAULT_STACK)
    event = {"operation": operation, "actor": getpass.getuser(), **fields}
    return invocation.invoke(name, event)


def _pages(session: Session, function: str | None) -> Any:
    fields: dict[str, Any] = {}
    while True:
        page = _invoke(session, function, "list-keys", fields)
        yield from page["keys"]
        if page["next_cursor"] is None:
            return
        fields = {"cursor": page["next_cursor"]}


def _show_once(session: Session, reply: dict[str, Any]) -> None:
    if session.json:
        output.show_json(reply)
        return
    text = reply.pop("key")
    if not session.quiet:
        click.echo(json.dumps(reply), err=True)
        click.echo("The key is not shown again:", err=True)
    click.echo(text)
