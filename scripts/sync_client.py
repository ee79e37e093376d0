"""Write the synchronous client from the asynchronous one.

    python -m scripts.sync_client [--check]

Each file of mayfly/client/aio but the transport becomes one of the same name in mayfly/client/sync:
without async and await, and with the names below replaced. `--check` only compares.
"""

import re
import subprocess
import sys
from pathlib import Path

SOURCE, TARGET = Path("mayfly/client/aio"), Path("mayfly/client/sync")
BY_HAND = {"__init__.py", "transport.py"}
REPLACEMENTS = (
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\b__aiter__\b", "__iter__"),
    (r"\bAsynchronous\b", "Synchronous"),
    (r"\bmany tasks\b", "many threads"),
    (r"\bmayfly\.client\.aio\b", "mayfly.client.sync"),
    (r"\basyncio\.to_thread\(([\w.]+), ", r"\1("),
)
NOTE = "# Written by scripts/sync_client.py from mayfly/client/aio: change that.\n"


def translate(source: str) -> str:
    """Return the synchronous form of a module.

    >>> translate("caller = await AsyncCaller.find()").splitlines()[-1]
    'caller = Caller.find()'
    """
    for pattern, replacement in REPLACEMENTS:
        source = re.sub(pattern, replacement, source)
    return NOTE + _sorted_and_formatted(source)


def _sorted_and_formatted(source: str) -> str:
    for arguments in (["check", "-q", "--select", "I,F401", "--fix"], ["format", "-q"]):
        command = [Path(sys.executable).with_name("ruff"), *arguments, "-"]
        source = subprocess.run(
            [*map(str, command), "--stdin-filename", str(TARGET / "module.py")],
            input=source, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    return source


def outdated(write: bool) -> list[Path]:
    """Return the files that differ from their source; write them if `write`."""
    differing = []
    for source in sorted(SOURCE.glob("*.py")):
        target = TARGET / source.name
        text = "" if source.name in BY_HAND else translate(source.read_text())
        if text and (not target.exists() or target.read_text() != text):
            differing.append(target)
            if write:
                target.write_text(text)
    return differing


def main() -> int:
    """Write the files, or compare them; return the exit status."""
    check = "--check" in sys.argv[1:]
    differing = outdated(write=not check)
    for path in differing:
        sys.stdout.write(f"{'outdated' if check else 'wrote'} {path}\n")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
