"""Train a model from a recipe and write one self-describing model.onnx.

    python -m training.train digits --set epochs=5 --model-dir artifacts/digits
    torchrun --nproc-per-node 8 -m training.train digits

The same on a laptop, in a local job and on SageMaker. In a job the settings come from the
environment variables that sagemaker/bootstrap.py sets: SM_HPS, SM_CHANNEL_*, SM_MODEL_DIR,
SM_OUTPUT_DATA_DIR and SM_CHECKPOINT_DIR.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by OpenMP when torch is loaded. Threads that spin while they wait starve everything else on
# the machine, including their own team: on two busy cores digits trained 45-122 images a second
# with spinning threads, and 660-2060 with sleeping ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from training.errors import InvalidConfig, InvalidRecipe, TrainingError
from training.evaluation.metrics import PRIMARY
from training.fitting import checkpoint, distributed
from training.fitting.checkpoint import Row
from training.fitting.trained import Trained
from training.hyperparameters import encode
from training.manifest import Manifest
from training.pipeline import Callback, compress, describe, export, fit, load, write
from training.recipe import Arrays, Recipe
from training.recipe_loading import mistake
from training.runs import config
from training.tuning import objective
from training.tuning.options import add_run_options, add_search_options

STOPPED = 143  # exit status of a process ended by SIGTERM: 128 + 15


@dataclass(frozen=True)
class Result:
    """Written model.onnx, its manifest, each epoch's metrics, the trained model."""

    path: Path
    card: Manifest
    history: list[Row]
    trained: Trained

    @property
    def metrics(self) -> dict[str, float]:
        """Return the metrics on the test part."""
        return self.card["metrics"]

    def predict(self, inputs: Arrays) -> Arrays:
        """Return the model's outputs for inputs (n, ...), both by name."""
        return self.trained.run(inputs)


def run(
    recipe: str | Path | Recipe[Any],
    *,
    data: Mapping[str, str | Path] | None = None,
    model_dir: str | Path | None = None,
    options: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    **settings: object,
) -> Result:
    """Train a recipe from Python, as in a notebook.

    `recipe` is a name, a file, or a Recipe defined in the notebook; `settings` are hyperparameters,
    `options` further ones of the command line: ["--compress", "int8"].

    Raises:
        TrainingError: a mistake of the user's, in one sentence.
    """
    name = recipe.name if isinstance(recipe, Recipe) else str(recipe)
    arguments = [name, *options]
    for channel, folder in (data or {}).items():
        arguments += ["--data", f"{channel}={folder}"]
    for setting, value in settings.items():
        arguments += ["--set", f"{setting}={encode(value)}"]
    if model_dir is not None:
        arguments += ["--model-dir", str(model_dir)]
    parsed = parse(arguments)
    if isinstance(recipe, Recipe):
        if parsed.parallel > 1:
            raise InvalidRecipe(
                "trials at a time load their recipe from a file: save it as a .py file"
            )
        if parsed.checkpoint_dir:  # a changed model() would resume the old one's weights unseen
            raise InvalidRecipe(
                "--checkpoint-dir needs a recipe whose code can be compared on resuming: save it "
                "as a .py file and give its path, or leave out --checkpoint-dir"
            )
        parsed.recipe = recipe
    result = train(parsed, {}, checkpoint.Stop().limit({}, parsed.max_runtime), callbacks)
    assert result is not None  # noqa: S101  (one process, and no trial)
    return result


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Train a model from the command line; return the exit status."""
    try:
        options = parse(arguments)
        stop = checkpoint.Stop().listen().limit(environ, options.max_runtime)
        train(options, environ, stop)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(f"error: {reason} Lower batch_size, or set accumulate=2.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {_kept(options)}", file=sys.stderr)
        return 130
    except checkpoint.Interrupted as stopped:
        print(f"SIGTERM: {stopped}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        problem: object = mistake(options.recipe, error)
        if problem is None and isinstance(error, OSError):  # such as a disk that is full
            problem = f"{error.filename or options.recipe}: {error.strerror or error}"
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def _kept(options: argparse.Namespace) -> str:
    """Return which state an interrupted run leaves."""
    if options.checkpoint_dir is None:
        return "nothing is kept; with --checkpoint-dir DIR a run is saved after each epoch"
    return f"the same command resumes from what is saved in {options.checkpoint_dir}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, over the options of a --config file.

    Raises:
        InvalidConfig: the file is missing or has a wrong option.
    """
    command = parser()
    path = command.parse_args(arguments).config
    if path is not None:
        command.set_defaults(**config.read(path))
    options = command.parse_args(arguments)
    if options.recipe is None:
        command.error("give a RECIPE, or --config with one")
    if options.search == config.SAGEMAKER:
        raise InvalidConfig(
            f"{path.name if path else ''}: search is sagemaker, which runs as jobs alone: add "
            f"--on sagemaker, or --search with one of {', '.join(config.STRATEGIES)}"
        )
    return options


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the training command."""
    arguments = argparse.ArgumentParser(
        prog="python -m training train",
        description="Train a recipe, write model.onnx.",
        epilog="With --on sagemaker or --on local-stack it runs as a job, whose request --dry-run "
        "prints; the options of a job: python -m training job --help",
    )
    add_run_options(arguments, ["--data"], "DIR")
    add_search_options(arguments)
    arguments.add_argument(
        "--model-dir", type=Path, help="folder for model.onnx [$SM_MODEL_DIR or artifacts/<recipe>]"
    )
    arguments.add_argument(
        "--weights", metavar="FILE", help="start from a checkpoint.pt or a state_dict"
    )
    arguments.add_argument(
        "--max-runtime",
        type=_seconds,
        metavar="SECONDS",
        help="end training early enough to export within this time",
    )
    arguments.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or mps [a GPU if there is one]"
    )
    return arguments


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return seconds


def train(
    options: argparse.Namespace,
    environ: Mapping[str, str],
    stop: checkpoint.Stop,
    callbacks: Sequence[Callback] = (),
) -> Result | None:
    """Train a recipe's model and write model.onnx; return what was made.

    Returns None in every process but rank 0, and in a trial of a hyperparameter search, which
    prints its validation metric and writes no model. `callbacks` get the metrics of each epoch and
    may raise to end the run.

    Raises:
        TrainingError: a mistake of the user's, or a model that no exporter gets right.
        Interrupted: `stop` was requested; the checkpoint holds the state.
    """
    setup = load(options, environ)
    fitted = fit(setup, stop, callbacks)
    if not setup.ranks.leads:
        return None
    if setup.is_trial:
        metric = PRIMARY[setup.recipe.task].metric
        print(f"validation_{metric}={objective.judge(fitted.first)}", flush=True)
        return None
    with fitted.aborted_on_error():
        graph = export(fitted.first)
        model = compress(setup, fitted.first, graph)
        description = describe(setup, fitted, model)
        path = write(setup, fitted, model, description)
    return Result(path, description.card, fitted.first.history, model.trained)


if __name__ == "__main__":
    distributed.run_and_exit(main)
