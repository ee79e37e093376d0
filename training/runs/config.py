"""Configuration file run.yaml: the options of a training run, to repeat it.

    recipe: churn.py
    set: {lr: 0.001, epochs: 20}
    data: {train: customers}
    seeds: 3

It has the command line's long options; options given beside --config win. The file written beside
a result has all hyperparameters, and digests of code and data. The same file starts a training job
(training/sagemaker/job_config.py), whose own file names its data in S3.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import InvalidConfig

FILE = "run.yaml"
EXPECTED = "expected"  # digests of the run that wrote the file
# Options that a file may hold, each with the type of its value.
OPTIONS: Mapping[str, type] = {
    "recipe": str, "set": dict, "data": dict, "seeds": int, "compress": str, "budget": float,
    "tune": int, "search": str, "parallel": int, "checkpoint_dir": str, "model_dir": str,
    "weights": str, "max_runtime": float, "device": str, EXPECTED: dict,
}  # fmt: skip
SUBMITTED = "MAYFLY_RUN_"  # prefix of a job's variables that say what it was submitted with
VARIABLE_MAX = 512  # characters of an environment variable of a SageMaker job
STRATEGIES = ("random", "grid", "optuna")
SAGEMAKER = "sagemaker"  # strategy of training jobs alone
COUNTS = ("seeds", "tune", "parallel")


def read(path: Path) -> dict[str, Any]:
    """Read a run.yaml file as defaults of the command line's options.

    Raises:
        InvalidConfig: there is no such file, or it has an unknown or wrong option.
    """
    try:
        document = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"--config {path}: {error.strerror or error}") from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidConfig(f"{path.name} is no YAML: {reason}") from error
    if not isinstance(document, dict):
        raise InvalidConfig(f"{path.name} is no mapping of options, such as recipe: digits")
    return {
        name: _option(path, name, value)
        for name, value in ((str(name).replace("-", "_"), document[name]) for name in document)
    }


def _option(path: Path, name: str, value: Any) -> Any:
    if name not in OPTIONS:
        close = difflib.get_close_matches(name, OPTIONS, n=1)
        names = ", ".join(option for option in OPTIONS if option != EXPECTED)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {names}"
        raise InvalidConfig(f"{path.name} has no option {name!r}: {hint}")
    kind = OPTIONS[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {dict: "a mapping", int: "a whole number", float: "a number", str: "a text"}
        raise InvalidConfig(f"{path.name}: {name} is {value!r}, not {expected[kind]}")
    if name in COUNTS and isinstance(value, int) and value < 1:
        raise InvalidConfig(f"{path.name}: {name} is {value}, below 1")
    if name == "max_runtime" and isinstance(value, float) and not 0 < value < math.inf:
        raise InvalidConfig(f"{path.name}: max_runtime is {value}, not a number above 0")
    if name == "search" and value not in (*STRATEGIES, SAGEMAKER):
        strategies = ", ".join((*STRATEGIES, SAGEMAKER))
        raise InvalidConfig(f"{path.name}: search is {value!r}, none of {strategies}")
    if name in ("set", "data") and isinstance(value, dict):
        return [f"{key}={_text(part)}" for key, part in value.items()]
    return Path(str(value)) if name in ("checkpoint_dir", "model_dir") else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write(path: Path, options: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    """Write a run.yaml file; options without a value are left out.

    Without PyYAML, as in the container of a job, it is JSON, which is YAML, too.
    """
    document = {name: value for name, value in options.items() if value not in (None, "", {}, [])}
    document |= {EXPECTED: dict(expected)}
    plain = json.loads(json.dumps(document, default=str))  # tuples become lists
    path.write_text(_dump(plain), encoding="utf-8")


def differences(expected: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Return warnings that name what has changed since the file was written.

    >>> differences({"code": "a", "data": "b"}, {"code": "c", "data": "b"})
    ["warning: the recipe's code is not that of the run to repeat: results may differ"]
    """
    named = {"code": "recipe's code", "data": "data", "libraries": "set of libraries"}
    return [
        f"warning: the {named.get(name, name)} is not that of the run to repeat: results may differ"
        for name, digest in expected.items()
        if current.get(name, digest) != digest
    ]


# --- what a training job is told of its own submission


def variables(channels: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, str]:
    """Encode data locations and expected digests as a job's environment variables.

    The container has the data in folders, and nothing else says where in S3 they came from.

    >>> variables({"train": "s3://b/rows/"}, {})
    {'MAYFLY_RUN_00': '{"channels": {"train": "s3://b/rows/"}, "expected": {}}'}
    """
    if not (channels or expected):
        return {}
    text = json.dumps({"channels": dict(channels), "expected": dict(expected)})
    starts = range(0, len(text), VARIABLE_MAX)
    return {
        f"{SUBMITTED}{number:02}": text[start : start + VARIABLE_MAX]
        for number, start in enumerate(starts)
    }


def submitted(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the channels and expected digests that `variables` encoded.

    Both are empty outside a job.
    """
    names = sorted(name for name in environ if name.startswith(SUBMITTED))
    run: dict[str, dict[str, str]] = {"channels": {}, "expected": {}}
    run.update(json.loads("".join(environ[name] for name in names) or "{}"))
    return run


def _parse(text: str) -> Any:
    if importlib.util.find_spec("yaml") is None:
        return json.loads(text)
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _dump(document: Mapping[str, Any]) -> str:
    if importlib.util.find_spec("yaml") is None:
        return json.dumps(document, indent=2) + "\n"
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text
