"""Command-line options shared by local training and SageMaker training jobs."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from training.errors import TrainingError
from training.runs.config import STRATEGIES

BUDGET = 0.005  # share of the metric that compression may cost


def add_run_options(parser: argparse.ArgumentParser, data: Sequence[str], location: str) -> None:
    """Add the recipe argument and training options to an argument parser.

    `data` holds the names of the option for input data, `location` is its placeholder. The recipe
    may come from a --config file.
    """
    add = parser.add_argument
    help_text = "a built-in recipe (digits) or a .py file that defines one"
    add("recipe", help=help_text, nargs="?")
    add("--config", type=Path, metavar="FILE", help="options as YAML, such as a result's run.yaml")
    parser.set_defaults(expected={})
    add(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter: lr=3e-4"
    )
    add(*data, action="append", default=[], metavar=f"NAME={location}", help="input data")
    add(
        "--seeds",
        type=_count,
        default=1,
        metavar="N",
        help="train N times; the first is written [1]",
    )
    add(
        "--compress",
        default="",
        metavar="KINDS",
        help="try distil, prune, int8, int8-static, int4, fp16",
    )
    add(
        "--budget",
        type=float,
        default=BUDGET,
        help="share of the metric that compression may cost [%(default)s]",
    )


def add_search_options(parser: argparse.ArgumentParser, *strategies: str) -> None:
    """Add hyperparameter search options to an argument parser.

    `strategies` are choices of --search beside those that run everywhere.
    """
    add = parser.add_argument
    add(
        "--tune",
        type=_count,
        default=0,
        metavar="N",
        help="search the best hyperparameters in N trials",
    )
    add("--search", choices=[*STRATEGIES, *strategies], default="random", help="[%(default)s]")
    add("--parallel", type=_count, default=1, metavar="N", help="trials at a time [1]")
    add("--checkpoint-dir", type=Path, help="save the run, or the search, here and resume it")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def require_optuna() -> None:
    """Raise an error with a hint unless Optuna is installed.

    It is called before modules that import Optuna are loaded.

    Raises:
        TrainingError: it is not.
    """
    if importlib.util.find_spec("optuna") is None:
        raise TrainingError("--tune needs the package optuna: pip install optuna")
