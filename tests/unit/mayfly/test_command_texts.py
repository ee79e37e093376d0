"""Help texts: each command has an example, and docs/cli.md has them all."""

from collections.abc import Iterator

import click
import pytest

from mayfly import __version__
from mayfly.cli.main import SECTIONS, cli, main
from scripts import cli_page


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for command in group.commands.values():
        path = f"{name} {command.name}"
        yield path, command
        if isinstance(command, click.Group):
            yield from commands(command, path)


ALL = dict(commands(cli, "mayfly"))


@pytest.mark.parametrize("name", ALL)
def test_help_has_an_example_that_begins_with_the_command(name: str) -> None:
    text = ALL[name].help or ""

    assert "Example: " in text
    assert name in text.partition("Example: ")[2]


@pytest.mark.parametrize("name", ALL)
def test_help_names_each_option(name: str) -> None:
    options = [option for option in ALL[name].params if isinstance(option, click.Option)]

    assert [option.name for option in options if not option.help] == []


def test_the_help_lists_every_command() -> None:
    listed = [command for section in SECTIONS.values() for command in section]

    assert {command.name for command in listed} == set(cli.commands)


def test_the_page_is_that_of_the_help_texts() -> None:
    assert cli_page.PAGE.read_text() == cli_page.page(), "run python -m scripts.cli_page"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mayfly {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert "_MAYFLY_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["modls"], 'no command "modls". Did you mean "models"?'),
        (["zzz"], 'no command "zzz". See mayfly --help.'),
        (["call"], "Missing argument 'MODEL'. See mayfly call --help."),
        (["models", "--serch", "x"], "No such option '--serch'"),
        (["canary", "m", "1", "--bake", "1w"], "write 90d, 12h, 30m or 0s"),
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert (captured.out, line.startswith("mayfly: ")) == ("", True)
    assert text in line
