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
from pathlib import Path

# Read by OpenMP when torch is loaded. Threads that spin while they wait starve everything else on
# the machine, including their own team: on two busy cores digits trained 45-122 images a second
# with spinning threads, and 660-2060 with sleeping ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from training.errors import TrainingError
from training.evaluation.metrics import PRIMARY
from training.fitting import checkpoint, distributed
from training.pipeline import compress, describe, export, fit, load, write
from training.recipe_loading import mistake
from training.tuning import objective
from training.tuning.options import add_run_options, add_search_options

STOPPED = 143  # exit status of a process ended by SIGTERM: 128 + 15


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Train a model from the command line; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        stop = checkpoint.Stop().listen().limit(environ, options.max_runtime)
        train(options, environ, stop)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(f"error: {reason} Lower batch_size, or set accumulate=2.", file=sys.stderr)
        return 1
    except checkpoint.Interrupted as stopped:
        print(f"SIGTERM: {stopped}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        problem = mistake(options.recipe, error)
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


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
        "--weights", type=Path, metavar="FILE", help="start from a checkpoint.pt or a state_dict"
    )
    arguments.add_argument(
        "--max-runtime",
        type=float,
        metavar="SECONDS",
        help="end training early enough to export within this time",
    )
    arguments.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or mps [a GPU if there is one]"
    )
    return arguments


def train(
    options: argparse.Namespace, environ: Mapping[str, str], stop: checkpoint.Stop
) -> Path | None:
    """Train a recipe's model; return the path of the written model.onnx.

    Returns None in every process but rank 0, and in a trial of a hyperparameter search, which
    prints its validation metric and writes no model.

    Raises:
        TrainingError: a mistake of the user's, or a model that no exporter gets right.
        Interrupted: `stop` was requested; the checkpoint holds the state.
    """
    setup = load(options, environ)
    fitted = fit(setup, stop)
    if not setup.ranks.leads:
        return None
    if setup.is_trial:
        metric = PRIMARY[setup.recipe.task].metric
        print(f"validation_{metric}={objective.judge(fitted.first)}", flush=True)
        return None
    graph = export(fitted.first)
    model = compress(setup, fitted.first, graph)
    description = describe(setup, fitted, model)
    return write(setup, model, description)


if __name__ == "__main__":
    distributed.run_and_exit(main)
