"""Options of a run.yaml file that fit a training job.

A run tried on this machine is started as a job from the same file. Recipe, hyperparameters, seeds,
search and compression go with it; data and weights that are no S3 addresses need a flag; what the
job decides by itself is left out, and said.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import InvalidConfig
from training.hyperparameters import pairs
from training.runs import config

ANY_DEVICE = "auto"
LEFT_OUT = {  # options of the file that a job decides, and how it decides
    "device": "a job trains on all GPUs of its instance, or on its CPU: choose one by --instance",
    "model_dir": "a job writes to models/<model>/ in the bucket: choose a name by --model",
    "checkpoint_dir": "a job saves its checkpoints in S3; --resume JOB continues from them",
}


def read(path: Path, *, searches: bool) -> dict[str, Any]:
    """Read a run.yaml file as defaults of a job's options.

    Options that a job decides are left out, and printed. `searches`: the command line has --tune.

    Raises:
        InvalidConfig: there is no such file, or it has an unknown or wrong option.
    """
    options = config.read(path)
    if options.get("device") == ANY_DEVICE:  # as every run.yaml has it where nothing was chosen
        del options["device"]
    searches = searches or "tune" in options
    for name in [name for name in LEFT_OUT if name in options]:
        if name == "checkpoint_dir" and searches:  # a search of jobs is saved on this machine
            continue
        del options[name]
        print(f"{path.name}: {name} is left out: {LEFT_OUT[name]}", file=sys.stderr)
    if "max_runtime" in options:
        options["max_runtime"] = math.ceil(options["max_runtime"])  # SageMaker counts seconds
    return options


def check(path: Path, options: Mapping[str, Any], data: Sequence[str], weights: str | None) -> None:
    """Check that flags replace the file's data and weights of this machine.

    `options` come from the file, `data` and `weights` from file and flags together.

    Raises:
        InvalidConfig: they do not.
    """
    sources, chosen = pairs(options.get("data", ())), pairs(data, "--data")
    for name, source in sources.items():
        if chosen[name] == source:
            _check_address(path, f"data {name}", source, f"--data {name}=s3://BUCKET/PREFIX/")
    if weights is not None and weights == options.get("weights"):
        _check_address(path, "weights", weights, "--weights s3://BUCKET/PREFIX/")


def _check_address(path: Path, option: str, source: str, flag: str) -> None:
    if not source.startswith("s3://"):
        raise InvalidConfig(
            f"{path.name}: {option} is {source}, which a job cannot see: upload it (aws s3 cp "
            f"--recursive), and add {flag}"
        )
