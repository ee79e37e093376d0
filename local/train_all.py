"""Train, register and call every built-in recipe on the local stack.

    python -m local.train_all                                     all recipes
    python -m local.train_all digits gpt --set gpt.epochs=1       two recipes, one shortened
    python -m local.train_all --compress mlp=prune,int8           other compression than COMPRESS

Prints a table. The exit status is 1 if a recipe failed at any step, or does not beat its baselines.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from functions.core.errors import one_line
from local.client import RunningStack, start_stack
from local.demo import (
    JOB_LIMIT_S,
    STACK_ERRORS,
    STATE,
    DemoFailed,
    fetch,
    follow,
    last_words,
    step,
    submit,
    wait_until_ready,
)
from training.data.dataset import BEST_POSSIBLE
from training.errors import TrainingError
from training.hyperparameters import pairs
from training.manifest import KEY
from training.recipe_loading import built_in

COMPRESS = {
    "digits": "prune,int8-static",
    "mlp": "prune,int8",
    "textures": "prune",
    "speech": "prune",
    "recommender": "int8",
    "gpt": "int8,int4",
}
CALLS = 20  # requests for the median latency


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one training recipe: metric, size, latency and durations.

    `latency_ms` is the median of warm JSON requests.
    """

    recipe: str
    metric: str
    value: float
    baseline: str
    baseline_value: float
    better: bool
    form: str
    size_bytes: int
    samples: int
    latency_ms: float
    training_s: float
    total_s: float

    def line(self) -> str:
        """Format a recipe's results as a line of the table."""
        metric = f"{self.metric} {self.value:.4f}"
        baseline = f"{self.baseline} {self.baseline_value:.4f}"
        size_kb = self.size_bytes / 1000
        return (
            f"{self.recipe:<13}{metric:<23}{baseline:<30}{size_kb:>8.0f} KB  {self.form:<12}"
            f"{self.latency_ms:>7.1f} ms{self.samples:>8}"
            f"{self.training_s:>9.0f} s{self.total_s:>7.0f} s"
        )


HEAD = (
    f"{'recipe':<13}{'held-out metric':<23}{'best baseline':<30}{'size':>11}  {'form':<12}"
    f"{'latency':>10}{'samples':>8}{'training':>11}{'total':>9}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, register and call the chosen recipes; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m local.train_all", description="Train, register and call every recipe."
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="[all built-in recipes]")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="RECIPE.NAME=VALUE",
        help="set a hyperparameter",
    )
    parser.add_argument(
        "--compress",
        action="append",
        default=[],
        metavar="RECIPE=KINDS",
        help="compression to try; RECIPE= for none",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=JOB_LIMIT_S,
        metavar="SECONDS",
        help="time limit of each job [%(default)s]",
    )
    options = parser.parse_args(arguments)
    names = options.recipes or built_in()
    unknown = sorted({*names} - {*built_in()})
    if unknown:
        parser.error(f"there is no recipe {unknown[0]!r}; there are {', '.join(built_in())}")
    try:
        kinds = COMPRESS | {
            name: str(value) for name, value in pairs(options.compress, "--compress").items()
        }
        settings = _settings(options.set)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            with step("Start the local stack"):
                started = start_stack(parameters={"Auth": "none"}, state_dir=STATE)
                running = stack.enter_context(started)
            rows, failures = _all(running, names, settings, kinds, options.limit)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # the stack did not start
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print("\n" + "\n".join([HEAD, *(row.line() for row in rows)]))
    failures |= {row.recipe: f"is no better than {row.baseline}" for row in rows if not row.better}
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}")
    passed = len(names) - len(failures)
    print(
        f"{passed} of {len(names)} recipes trained, registered and reproduced their samples, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return 1 if failures else 0


def _settings(assignments: Sequence[str]) -> dict[str, list[str]]:
    """Group RECIPE.NAME=VALUE into command-line options by recipe.

    >>> _settings(["gpt.epochs=1", "gpt.lr=0.1"])
    {'gpt': ['--set', 'epochs=1', '--set', 'lr=0.1']}
    """
    options: dict[str, list[str]] = {}
    for key, value in pairs(assignments).items():
        recipe, dot, name = key.partition(".")
        if not dot or recipe not in built_in():
            raise TrainingError(
                f"--set {key}={value}: write RECIPE.NAME=VALUE, with one of {', '.join(built_in())}"
            )
        options.setdefault(recipe, []).extend(["--set", f"{name}={value}"])
    return options


def _all(
    running: RunningStack,
    names: Sequence[str],
    settings: Mapping[str, Sequence[str]],
    kinds: Mapping[str, str],
    limit_s: float,
) -> tuple[list[Row], dict[str, str]]:
    """Run the training recipes in turn; return results, and failures by recipe."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        more = [*settings.get(name, ()), *(["--compress", kinds[name]] if kinds.get(name) else [])]
        try:
            with step(f"{number}/{len(names)} {name} {' '.join(more)}".rstrip()) as say:
                rows.append(_run_recipe(running, name, more, limit_s, say))
            print(
                f"  {rows[-1].metric} {rows[-1].value:.4f}, samples reproduced: {rows[-1].samples}"
            )
        except DemoFailed as failure:
            failures[name] = str(failure)
        except STACK_ERRORS as error:
            failures[name] = f"{one_line(str(error))}{last_words()}"
        if name in failures:
            print(f"  FAILED: {failures[name]}", flush=True)
    return rows, failures


def _run_recipe(
    running: RunningStack,
    name: str,
    more: Sequence[str],
    limit_s: float,
    say: Callable[[str], None],
) -> Row:
    """Train, register and call one recipe's model; return its results."""
    started = time.monotonic()
    job = submit(running, name, *more)
    description = follow(running, job, say, limit_s)
    say("registering")
    version = wait_until_ready(running, name, say)
    say("calling")
    card = _card(running, description["ModelArtifacts"]["S3ModelArtifacts"])
    url = f"{running.api_url}/v2/models/{name}/versions/{version.number}/infer"
    for sample in card["samples"]:
        _check(url, sample, card["tolerance"])
    primary = card["evaluation"]["primary"]
    value = card["metrics"][primary["metric"]]
    baselines = {
        baseline: values[primary["metric"]]
        for baseline, values in card["baselines"].items()
        if baseline != BEST_POSSIBLE
    }
    best = (max if primary["higher_is_better"] else min)(baselines, key=baselines.__getitem__)
    forms = [form["kind"] for form in card.get("compression", []) if form["taken"]]
    return Row(
        recipe=name,
        metric=primary["metric"],
        value=value,
        baseline=best,
        baseline_value=baselines[best],
        better=(value > baselines[best]) == primary["higher_is_better"]
        and value != baselines[best],
        form=forms[0] if forms else "fp32",
        size_bytes=version.size_bytes,
        samples=len(card["samples"]),
        latency_ms=_latency(url, card["samples"][0]["request"]),
        training_s=description["TrainingTimeInSeconds"],
        total_s=time.monotonic() - started,
    )


def _card(running: RunningStack, prefix: str) -> dict[str, Any]:
    """Return the manifest embedded in an uploaded ONNX model."""
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    s3 = running.client("s3")
    reply = s3.get_object(Bucket=bucket, Key=f"{key.rstrip('/')}/model.onnx")
    model = onnx.load_model_from_string(reply["Body"].read())
    text = next(entry.value for entry in model.metadata_props if entry.key == KEY)
    card: dict[str, Any] = json.loads(text)
    return card


def _check(url: str, sample: Mapping[str, Any], tolerance: Mapping[str, float]) -> None:
    """Check that a served model reproduces a sample's outputs.

    Raises:
        DemoFailed: an output differs.
    """
    answer = _post(url, sample["request"])
    for actual, expected in zip(answer["outputs"], sample["response"]["outputs"], strict=True):
        for key in ("name", "datatype", "shape"):
            if actual[key] != expected[key]:
                raise DemoFailed(
                    f"output {expected['name']}: {key} {actual[key]}, in training {expected[key]}"
                )
        same = actual["data"] == expected["data"]
        if expected["datatype"].startswith("FP"):
            values, answers = (np.array(side["data"], np.float64) for side in (expected, actual))
            same = np.allclose(answers, values, **tolerance, equal_nan=True)
        if not same:
            raise DemoFailed(f"output {expected['name']} differs from training")


def _latency(url: str, request: object) -> float:
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        _post(url, request)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def _post(url: str, request: object) -> Any:
    return fetch(url, json.dumps(request).encode())


if __name__ == "__main__":
    sys.exit(main())
