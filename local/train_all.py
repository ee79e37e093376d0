"""Every recipe from its data to its answers: trained as a job, compressed where asked, registered, called over HTTP.

python -m local.train_all                                     all of them, one after the other
python -m local.train_all digits gpt --set gpt.epochs=1       two of them, the second shortened
python -m local.train_all --compress mlp=prune,int8           what to try for a recipe, in place of what COMPRESS says

It ends with a table, and non-zero if a recipe failed: at any step, or by not being better than what needs no model.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import numpy as np
import onnx
from botocore.exceptions import BotoCoreError, ClientError

from functions.core.errors import one_line
from local.client import RunningStack, start_stack
from local.demo import STATE, DemoFailed, follow, get, last_words, registered, step, submit
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
JOB_LIMIT_S = 3600
CALLS = 20  # for the latency


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe that went all the way. Latency is the median of JSON requests over HTTP, on warm environments."""

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
        reached = f"{self.metric} {self.value:.4f}"
        known = f"{self.baseline} {self.baseline_value:.4f}"
        return (
            f"{self.recipe:<13}{reached:<23}{known:<30}{self.size_bytes / 1000:>8.0f} KB  {self.form:<12}"
            f"{self.latency_ms:>7.1f} ms{self.samples:>8}{self.training_s:>9.0f} s{self.total_s:>7.0f} s"
        )


HEAD = (
    f"{'recipe':<13}{'metric, held out':<23}{'best that needs no model':<30}{'size':>11}  {'form':<12}{'latency':>10}"
    f"{'samples':>8}{'training':>11}{'in all':>9}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m local.train_all", description="Train, register, ask every recipe."
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="[all built-in ones]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="RECIPE.NAME=VALUE", help="a hyperparameter"
    )
    parser.add_argument(
        "--compress", action="append", default=[], metavar="RECIPE=KINDS", help="none: RECIPE="
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=JOB_LIMIT_S,
        metavar="SECONDS",
        help="for each job [%(default)s]",
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
        with start_stack(state_dir=STATE) as running:
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
    print(
        f"{len(names) - len(failures)} of {len(names)} recipes trained, registered and answered as they did in training"
    )
    return 1 if failures else 0


def _settings(told: Sequence[str]) -> dict[str, list[str]]:
    """Words of the command line by recipe.

    >>> _settings(["gpt.epochs=1", "gpt.lr=0.1"])
    {'gpt': ['--set', 'epochs=1', '--set', 'lr=0.1']}
    """
    found: dict[str, list[str]] = {}
    for key, value in pairs(told).items():
        recipe, dot, name = key.partition(".")
        if not dot or recipe not in built_in():
            raise TrainingError(
                f"--set {key}={value}: write RECIPE.NAME=VALUE, with one of {', '.join(built_in())}"
            )
        found.setdefault(recipe, []).extend(["--set", f"{name}={value}"])
    return found


def _all(
    running: RunningStack,
    names: Sequence[str],
    settings: Mapping[str, Sequence[str]],
    kinds: Mapping[str, str],
    limit_s: float,
) -> tuple[list[Row], dict[str, str]]:
    """One after the other: they would share the same cores."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for at, name in enumerate(names, 1):
        more = [*settings.get(name, ()), *(["--compress", kinds[name]] if kinds.get(name) else [])]
        try:
            with step(f"{at}/{len(names)} {name} {' '.join(more)}".rstrip()) as say:
                rows.append(_one(running, name, more, limit_s, say))
            print(
                f"  {rows[-1].metric} {rows[-1].value:.4f}, {rows[-1].samples} samples reproduced"
            )
        except DemoFailed as failure:
            failures[name] = str(failure)
        except (
            BotoCoreError,
            ClientError,
            HTTPException,
            OSError,
        ) as error:  # the stack ended, or a part of it
            failures[name] = f"{one_line(str(error))}{last_words()}"
        if name in failures:
            print(f"  FAILED: {failures[name]}", flush=True)
    return rows, failures


def _one(
    running: RunningStack,
    name: str,
    more: Sequence[str],
    limit_s: float,
    say: Callable[[str], None],
) -> Row:
    """Everything for one recipe; every step can fail."""
    started = time.monotonic()
    job = submit(running, name, *more)
    told = follow(running, job, say, limit_s)
    say("registering")
    version = registered(running, name, say)
    say("asking")
    card = _card(running, told["ModelArtifacts"]["S3ModelArtifacts"])
    url = f"{running.api_url}/v2/models/{name}/versions/{version.number}/infer"
    for sample in card["samples"]:
        _check(url, sample, card["tolerance"])
    primary = card["evaluation"]["primary"]
    value = card["metrics"][primary["metric"]]
    rivals = {
        about: values[primary["metric"]]
        for about, values in card["baselines"].items()
        if about != BEST_POSSIBLE
    }
    best = (max if primary["higher_is_better"] else min)(rivals, key=lambda about: rivals[about])
    forms = [form["kind"] for form in card.get("compression", []) if form["taken"]]
    return Row(
        recipe=name,
        metric=primary["metric"],
        value=value,
        baseline=best,
        baseline_value=rivals[best],
        better=value > rivals[best] if primary["higher_is_better"] else value < rivals[best],
        form=forms[0] if forms else "fp32",
        size_bytes=version.size_bytes,
        samples=len(card["samples"]),
        latency_ms=_latency(url, card["samples"][0]["request"]),
        training_s=told["TrainingTimeInSeconds"],
        total_s=time.monotonic() - started,
    )


def _card(running: RunningStack, prefix: str) -> dict[str, Any]:
    """What the uploaded file says about itself."""
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    content = (
        running.client("s3")
        .get_object(Bucket=bucket, Key=f"{key.rstrip('/')}/model.onnx")["Body"]
        .read()
    )
    model = onnx.load_model_from_string(content)
    card: dict[str, Any] = json.loads(
        next(prop.value for prop in model.metadata_props if prop.key == KEY)
    )
    return card


def _check(url: str, sample: Mapping[str, Any], tolerance: Mapping[str, float]) -> None:
    """The endpoint answers what ONNX Runtime answered in training.

    Raises:
        DemoFailed: it does not.
    """
    answer = _post(url, sample["request"])
    for got, expected in zip(answer["outputs"], sample["response"]["outputs"], strict=True):
        for key in ("name", "datatype", "shape"):
            if got[key] != expected[key]:
                raise DemoFailed(
                    f"output {expected['name']}: {key} {got[key]}, in training {expected[key]}"
                )
        same = got["data"] == expected["data"]
        if expected["datatype"].startswith("FP"):
            ours, theirs = (np.array(one["data"], np.float64) for one in (got, expected))
            same = np.allclose(ours, theirs, **tolerance, equal_nan=True)
        if not same:
            raise DemoFailed(f"output {expected['name']} is not what it was in training")


def _latency(url: str, request: object) -> float:
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        _post(url, request)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def _post(url: str, request: object) -> Any:
    answer = get(url, json.dumps(request).encode())
    if answer is None:
        raise DemoFailed("the endpoint refused a sample")
    return answer


if __name__ == "__main__":
    sys.exit(main())
