"""Command-line options that the benchmarks share."""

import argparse
from collections.abc import Callable, Collection

from benchmarks.harness.models import all_workloads


def make_parser(benchmark: str, doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a benchmark's argument parser with `--rounds` and `--no-save`.

    Its description is the first line of `doc`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{benchmark}", description=(doc or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"default: {rounds}")
    add_no_save(parser)
    return parser


def add_no_save(parser: argparse.ArgumentParser) -> None:
    """Add the option `--no-save`, which keeps results out of the file."""
    parser.add_argument(
        "--no-save", dest="save", action="store_false", help="do not add to benchmarks/results/"
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the option `--models`: names of benchmark models, by default all."""
    names = list(all_workloads())
    parser.add_argument("--models", type=choice_of(names), default=names)


def choice_of(names: Collection[str]) -> Callable[[str], list[str]]:
    """Return an argparse type that reads a comma-separated choice of `names`.

    >>> choice_of(["a", "b", "c"])("c,a,c")
    ['c', 'a']
    """

    def parse(text: str) -> list[str]:
        words = list(dict.fromkeys(text.split(",")))
        if unknown := set(words).difference(names):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(names)}")
        return words

    return parse


def positive(text: str) -> int:
    """Parse a positive integer from text, as an argparse type."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError("must be a positive number")
    return int(text)


def positive_numbers(text: str) -> list[int]:
    """Parse comma-separated positive integers from text, as an argparse type.

    >>> positive_numbers("10,100")
    [10, 100]
    """
    try:
        return [positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        message = "must be positive numbers with commas between them"
        raise argparse.ArgumentTypeError(message) from error
