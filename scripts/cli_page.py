"""Write docs/cli.md from the help texts of the command line.

python -m scripts.cli_page
"""

from collections.abc import Iterator
from pathlib import Path

import click

from mayfly.cli.main import SECTIONS, cli

PAGE = Path("docs/cli.md")
WIDTH = 100
HEAD = """# Command line

```bash
pip install .                # from a clone; or python -m mayfly, without installing
mayfly login https://….execute-api.eu-west-1.amazonaws.com/live     # asks for the key
mayfly login --stack mayfly                                         # or: URL and key by IAM
```

A command talks to the stack of `--url`, of `MAYFLY_URL` and `MAYFLY_KEY`, of `mayfly login`, or of
`--stack NAME` by IAM (which needs `pip install '.[aws]'`; without `MAYFLY_KEY` it makes a key that
lives 15 minutes). `make local` exports URL and key. Tables are for people:
`--json` prints one document, `-q` nothing but errors. Advice and colours appear on a terminal
only, and `NO_COLOR` switches colours off.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | usage: an argument, an input or the settings are wrong |
| 3 | not found |
| 4 | the upload became no version: rejected, ignored, expired or failed |
| 5 | not allowed: the key is not valid, or lacks a scope |
| 6 | conflict: the state forbids it, or it changed meanwhile |
| 7 | unavailable, too many requests, or the key's quota is used up: try again later |
| 1 | anything else |

Completion: `source <(mayfly completion bash)` in `~/.bashrc`; zsh and fish alike.

The rest of this page is written by `python -m scripts.cli_page` from the help texts.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, commands in SECTIONS.items():
        parts.append(f"## {title}\n")
        for command in commands:
            parts += described("mayfly", command)
    return "\n".join(parts)


def described(parent: str, command: click.Command) -> Iterator[str]:
    """Yield heading and help of a command and its subcommands."""
    name = f"{parent} {command.name}"
    context = click.Context(
        command,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=cli.context_settings["help_option_names"],
    )
    yield f"### {name}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from described(name, inner)


if __name__ == "__main__":
    PAGE.write_text(page())
