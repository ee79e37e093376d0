"""Commands of the set-up: login, open, doctor, completion, logs."""

import os
import time
import webbrowser

import click
from click.shell_completion import get_completion_class

from mayfly.cli import output
from mayfly.cli.session import Session, common
from mayfly.cli.times import SECONDS
from mayfly.client import config
from mayfly.client.config import Config
from mayfly.client.errors import InvalidInput
from mayfly.client.http1 import address
from mayfly.client.sync.client import Mayfly

FOLLOW_S = 2.0
KEY_LIFETIME = "90d"
FUNCTIONS = ("infer", "register", "reconcile", "manage")


@click.command(short_help="Store URL and key of a stack.")
@click.argument("address_of_stack", metavar="[URL]", required=False)
@click.option("--key", help="Access key; without it you are asked, or MAYFLY_KEY is taken.")
@click.option("--expires", type=SECONDS, default=KEY_LIFETIME, metavar="TIME",
              help="Lifetime of the key that --stack makes [90d].")  # fmt: skip
@common
def login(session: Session, address_of_stack: str | None, key: str | None, expires: int) -> None:
    """Check URL and key, and store them in a private file.

    With --stack NAME, the URL comes from the stack, and a key with the scope admin is made by IAM.

    \b
    Example: mayfly login https://….execute-api.eu-west-1.amazonaws.com/live
             mayfly login --stack mayfly
    """
    url = address_of_stack or session.url
    if session.stack:
        from mayfly.cli import invocation

        url = invocation.find_output(session.stack, "ApiUrl")
        key = key or invocation.new_key(session.stack, "command line", expires)
    if not url:
        raise InvalidInput("name the URL of a stack, its output ApiUrl, or --stack NAME")
    url = str(address.parse(url))
    if key is None:
        key = os.environ.get("MAYFLY_KEY") or click.prompt("Access key", hide_input=True, err=True)
    with Mayfly(url, key) as client:
        client._caller.get("/v2")
    path = config.save(Config(url, key))
    document = {"url": url, "key": config.public_part(key), "file": str(path)}
    session.show(
        document, f"{url} with key {document['key']} is stored in {path}", "Try: mayfly models"
    )


@click.command("open", short_help="Open the console in the browser.")
@common
def open_console(session: Session) -> None:
    """Print the console's address, and open it in the browser.

    \b
    Example: mayfly open
    """
    url = f"{address.parse(session.config.url)}/console/"
    session.show({"url": url}, url)
    if not session.json:
        webbrowser.open(url)


@click.command(short_help="Check the set-up.")
@common
def doctor(session: Session) -> None:
    """Check settings, connection, clock, key and versions; name what mends each fault.

    \b
    Example: mayfly doctor
    """
    from mayfly.cli import doctor as examination

    results = list(examination.checks(session))
    lines = []
    for check in results:
        sign = output.good("✓") if check.ok else output.bad("✗")
        lines.append(f"{sign} {check.name}: {check.detail}")
        if not check.ok:
            lines.append(f"  mend it: {check.mend}")
    documents = [
        {"check": c.name, "ok": c.ok, "detail": c.detail, "mend": None if c.ok else c.mend}
        for c in results
    ]
    session.show(documents, "\n".join(lines))
    if not all(check.ok for check in results):
        raise click.exceptions.Exit(1)


@click.command(short_help="Print the completion of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example: source <(mayfly completion bash)
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise InvalidInput(f"there is no completion for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "mayfly", "_MAYFLY_COMPLETE").source())


@click.command(short_help="Show a function's log.")
@click.option("--function", type=click.Choice(FUNCTIONS), default="infer", help="[infer]")
@click.option(
    "--since", type=SECONDS, default="10m", metavar="TIME", help="Age of the first line [10m]."
)
@click.option("-f", "--follow", is_flag=True, help="Wait for more, until Ctrl-C.")
@common
def logs(session: Session, function: str, since: int, follow: bool) -> None:
    """Show the log lines of a stack's function, by IAM.

    \b
    Example: mayfly logs --stack mayfly --function register --follow
    """
    from mayfly.cli import invocation

    stack = session.stack or "mayfly"
    name = invocation.find_physical(stack, f"{function.capitalize()}Function")
    start_ms = int((time.time() - since) * 1000)
    seen: set[str] = set()
    while True:
        events = invocation.log_events(name, start_ms)
        for event in events:
            if event["eventId"] not in seen:
                click.echo(event["message"].rstrip("\n"))
        if events:  # the next page begins at this time: only its events come twice
            start_ms = max(event["timestamp"] for event in events)
            seen = {event["eventId"] for event in events if event["timestamp"] == start_ms}
        if not follow:
            return
        time.sleep(FOLLOW_S)
