"""Command line of Mayfly: commands, suggestions, errors as exit codes."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click

from mayfly import __version__
from mayfly.cli.commands import (
    catalog,
    decisions,
    keys,
    language,
    predict,
    releases,
    setup,
    uploads,
)
from mayfly.client import errors
from mayfly.client.errors import MayflyError

CODES: tuple[tuple[type[MayflyError], int], ...] = (
    (errors.InvalidInput, 2),
    (errors.NotConfigured, 2),
    (errors.NotFound, 3),
    (errors.Rejected, 4),
    (errors.Unauthorized, 5),
    (errors.Forbidden, 5),
    (errors.Conflict, 6),
    (errors.QuotaExceeded, 7),
    (errors.Unavailable, 7),
)
SECTIONS = {
    "Models": (predict.call, predict.show, catalog.models, catalog.versions, catalog.diff),
    "Language": (language.chat, language.embed),
    "Uploads": (uploads.upload, uploads.wait, uploads.dead_letters),
    "Releases": (
        releases.promote, releases.rollback, releases.canary, releases.shadow, releases.traffic,
    ),
    "Decisions": (
        decisions.describe, decisions.approve, decisions.reject,
        decisions.archive, decisions.restore,
    ),
    "Records": (catalog.usage, catalog.audit, setup.logs),
    "Set-up": (setup.login, setup.open_console, setup.doctor, setup.completion, keys.keys),
}  # fmt: skip


class Commands(click.Group):
    """Group with sections in its help and suggestions for misspelled commands."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a command.

        Raises:
            UsageError: there is none of that name.
        """
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            meant = f' Did you mean "{near[0]}"?' if near else " See mayfly --help."
            raise click.UsageError(f'no command "{args[0]}".{meant}')
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 (click's signature)
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the commands of each section."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([
                    (str(command.name), command.get_short_help_str()) for command in commands
                ])  # fmt: skip


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="mayfly %(version)s")
def cli() -> None:
    """Models as a service: upload, call, release.

    A command talks to the stack of --url, of MAYFLY_URL and MAYFLY_KEY, of mayfly login, or of
    --stack by IAM. Exit codes: 0, 2 usage, 3 not found, 4 rejected, 5 not allowed, 6 conflict,
    7 unavailable, 1 anything else.
    """


for section in SECTIONS.values():
    for command in section:
        cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = cli.main(arguments, prog_name="mayfly", standalone_mode=False, color=_colour())
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return 130
    except click.ClickException as error:
        return _fail(_usage(error), 2)
    except errors.Unauthorized as error:
        return _fail(f"{error}. Set MAYFLY_KEY, or keep a key by mayfly login.", exit_code(error))
    except MayflyError as error:
        return _fail(str(error), exit_code(error))
    except BrokenPipeError:  # e.g. | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def exit_code(error: MayflyError) -> int:
    """Return the exit code of an error, by its kind."""
    return next((code for kind, code in CODES if isinstance(error, kind)), 1)


def _fail(text: str, code: int) -> int:
    click.echo(f"{click.style('mayfly:', fg='red')} {text}", err=True, color=_colour())
    return code


def _colour() -> bool | None:
    """Return False where NO_COLOR is set; None leaves it to the terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    more = f" See {context.command_path} --help." if context and context.parent else ""
    return f"{error.format_message()}{more}"
