"""Session of a command: its stack and its form of output."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, update_wrapper
from typing import Any, TypeVar

import click

from mayfly.cli import output
from mayfly.client import config
from mayfly.client.config import Config
from mayfly.client.errors import MayflyError, ModelNotFound, NotConfigured
from mayfly.client.sync.client import Mayfly
from mayfly.client.sync.model import Model

F = TypeVar("F", bound=Callable[..., Any])
MINUTES = 15  # lifetime of a key that --stack makes for one command


@dataclass
class Session:
    """Options that every command has."""

    url: str = ""
    stack: str = ""
    json: bool = False
    quiet: bool = False

    @cached_property
    def config(self) -> Config:
        """URL and key: of --stack, --url, the environment, or `mayfly login`.

        Raises:
            NotConfigured: no stack is named.
        """
        if self.stack:
            from mayfly.cli import invocation

            url = invocation.find_output(self.stack, "ApiUrl")
            key = os.environ.get("MAYFLY_KEY") or invocation.short_key(self.stack, MINUTES)
            return Config(url, key)
        if not self.url:
            return config.load()
        key = os.environ.get("MAYFLY_KEY", "")
        if not key:
            stored = self.stored
            key = stored.key if stored and stored.url == self.url.rstrip("/") else ""
        return Config(self.url, key)

    @property
    def stored(self) -> Config | None:
        """URL and key of the environment or file, None without."""
        try:
            return config.load()
        except NotConfigured:
            return None

    @cached_property
    def client(self) -> Mayfly:
        """Client of the stack."""
        return Mayfly(self.config.url, self.config.key)

    def model(self, name: str) -> Model:
        """Return a model by name, or by name:version."""
        return self.client.model(name)

    def explained(self, error: ModelNotFound, name: str) -> ModelNotFound:
        """Return the error of an unknown model, with a suggestion."""
        name = name.partition(":")[0]
        try:
            names = self.client._caller.get("/v2/models")["models"]
        except (MayflyError, TypeError, KeyError):
            return error
        if not name or name in names:
            return error
        near = get_close_matches(name, names, 1)
        advice = f'Did you mean "{near[0]}"?' if near else "See mayfly models."
        return ModelNotFound(f'no model "{name}". {advice}', status=error.status)

    def close(self) -> None:
        """Close the connections."""
        if "client" in self.__dict__:
            self.client.close()

    def show(self, document: Any, text: str = "", advice: str = "") -> None:
        """Print a result: its document with --json, or a text and advice."""
        if self.json:
            output.show_json(document)
        elif not self.quiet:
            click.echo(text)
            if advice:
                output.hint(advice)

    def show_rows(
        self, documents: list[Any], heads: list[str], rows: list[list[Any]], empty: str
    ) -> None:
        """Print a list: the documents with --json, else a table."""
        if self.json:
            output.show_json(documents)
        elif not self.quiet:
            output.show_table(heads, rows, empty)


def common(function: F) -> F:
    """Add the options of every command, as a session argument."""

    def run(*arguments: Any, **options: Any) -> Any:
        names = ("url", "stack", "json", "quiet")
        session = Session(**{name: options.pop(name) for name in names})
        try:
            return function(session, *arguments, **options)
        except ModelNotFound as error:
            raise session.explained(error, str(options.get("model") or "")) from error
        finally:
            session.close()

    for option in (
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        click.option("--json", is_flag=True, help="Print one JSON document and nothing else."),
        click.option("--stack", default="", help="Stack by its name, with IAM."),
        click.option("--url", default="", help="URL of the stack, its output ApiUrl."),
    ):
        run = option(run)
    return update_wrapper(run, function)  # type: ignore[return-value]
