"""Train a recipe and write one self-describing model.onnx: on a laptop, in a local job and on SageMaker alike.

    python -m training.train digits --set epochs=5 --model-dir artifacts/digits
    torchrun --nproc-per-node 8 -m training.train digits

In a job the settings come from SM_HPS, SM_CHANNEL_*, SM_MODEL_DIR, SM_OUTPUT_DATA_DIR and SM_CHECKPOINT_DIR, which
bootstrap.py sets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Read when torch is loaded. Threads that spin while they wait starve whatever else runs, the same team included: on two
# busy cores this recipe trained 45-122 images a second, and 660-2060 with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import onnx
import torch
from numpy.typing import NDArray

from training import pipeline
from training.compression import select
from training.errors import TrainingError
from training.evaluation import metrics as evaluate
from training.evaluation import record, report
from training.export import graphs, model_card
from training.fitting import checkpoint, distributed
from training.hyperparameters import override, pairs
from training.manifest import Evaluation, Manifest
from training.pipeline import Trained
from training.recipe_loading import load, mistake
from training.tuning import study

STOPPED = 143  # exit status: 128 + SIGTERM


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    options = parser().parse_args(arguments)
    try:
        train(options, environ, stop=checkpoint.Stop().listen())
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(
            f"error: {str(error).splitlines()[0]} Lower batch_size, or set accumulate=2.",
            file=sys.stderr,
        )
        return 1
    except checkpoint.Interrupted as stopped:
        print(f"SIGTERM: {stopped}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        found = mistake(options.recipe, error)
        if found is None:
            raise
        print(f"error: {found}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m training train",
        description="Train a recipe, write model.onnx.",
        epilog="With --on sagemaker or --on local-stack it runs as a job, whose request --dry-run prints; the options "
        "of a job: python -m training job --help",
    )
    made.add_argument("recipe", help="a built-in recipe (digits) or a .py file that defines one")
    made.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter: lr=3e-4"
    )
    made.add_argument(
        "--data", action="append", default=[], metavar="NAME=DIR", help="a folder of input data"
    )
    made.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train N times; the first is written [1]"
    )
    made.add_argument(
        "--compress",
        default="",
        metavar="KINDS",
        help="try distil, prune, int8, int8-static, int4, fp16",
    )
    made.add_argument(
        "--budget",
        type=float,
        default=0.005,
        help="share of the metric a form may lose [%(default)s]",
    )
    made.add_argument(
        "--model-dir", type=Path, help="where model.onnx goes [$SM_MODEL_DIR or artifacts/<recipe>]"
    )
    study.add_options(made)
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return made


def train(
    options: argparse.Namespace, environ: Mapping[str, str], stop: checkpoint.Stop
) -> Path | None:
    """From data to the proven, described model.onnx, whose path is returned; None in all processes but the first.

    Raises:
        TrainingError: a mistake of the user's, or a model that no exporter gets right.
        Interrupted: `stop` was requested; the checkpoint holds the state.
    """
    started = time.monotonic()
    recipe = load(options.recipe)
    kinds = select.kinds(options.compress, recipe)
    settings = override(recipe.hyperparameters(), json.loads(environ.get("SM_HPS", "{}")))
    settings = override(settings, pairs(options.set))
    channels = _channels(environ) | _folders(options.data)
    ranks, device = distributed.join(environ, _device(options.device))
    if ranks.leads:
        others = f", {ranks.count} processes" if ranks.count > 1 else ""
        print(f"{recipe.name} on {_title(device)}{others}: {settings}", flush=True)
    trial = "MAYFLY_TRIAL" in environ  # of a search: it is judged, and that is all
    data = recipe.load_data(channels, settings)
    if trial:
        data = study.without_test(data)
    if ranks.leads:
        sizes = f"{len(data.train)} to train, {len(data.validation)} to validate, {len(data.test)} to test"
        print(f"{data.source}: {sizes}", flush=True)

    folder = options.checkpoint_dir or environ.get("SM_CHECKPOINT_DIR")
    searched = None
    if options.tune:
        searched = study.run(
            recipe,
            settings,
            options,
            environ,
            data,
            channels,
            device=device,
            stop=stop,
            ranks=ranks,
        )
        settings = override(settings, searched.best.settings)
    runs = []
    for seed in range(settings.seed, settings.seed + max(options.seeds, 1)):
        if options.seeds > 1 and ranks.leads:
            print(f"seed {seed}", flush=True)
        checkpoints = Path(folder) if folder else None
        runs.append(
            pipeline.fit(
                recipe,
                replace(settings, seed=seed),
                data,
                device=device,
                checkpoints=checkpoints / f"seed-{seed}"
                if checkpoints and options.seeds > 1
                else checkpoints,
                stop=stop,
                ranks=ranks,
            )
        )
    ranks.leave()
    if not ranks.leads:
        return None

    first = runs[0]
    if trial:
        print(f"validation_{evaluate.PRIMARY[recipe.task].metric}={study.judge(first)}", flush=True)
        return None
    by_seed = (
        [pipeline.measure(recipe, one.run, data.test, one.labels)[0] for one in runs]
        if len(runs) > 1
        else []
    )
    print("exporting and proving the graph", flush=True)
    graph = pipeline.to_graph(first)
    compressed = None
    if kinds:
        compressed, first = select.smallest(first, graph, kinds, options.budget)
        print(compressed.table(f"validation {evaluate.PRIMARY[recipe.task].metric}"), flush=True)
        graph = compressed.graph
    graph = pipeline.with_front(first, graph)
    card, outcome = _card(first, graph, environ, started)
    if compressed is not None:
        card["compression"] = compressed.records()
        card["tolerance"]["atol"] = max(card["tolerance"]["atol"], compressed.atol)
    model_card.embed(graph, card)
    path = (
        options.model_dir or Path(environ.get("SM_MODEL_DIR", f"artifacts/{recipe.name}"))
    ) / "model.onnx"
    graphs.save(graph, path)
    told = record.make(
        recipe=recipe.name,
        settings=first.hyperparameters,
        seeds=[one.settings.seed for one in runs],
        metrics=by_seed or [card["metrics"]],
        histories=[one.history for one in runs],
        device=device,
        processes=ranks.count,
        duration_s=time.monotonic() - started,
    )
    if searched is not None:
        told["search"] = searched.record()
    _report(first, card, outcome, told, path, Path(environ.get("SM_OUTPUT_DATA_DIR", path.parent)))
    return path


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch sees no GPU here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for
    torch.backends.cudnn.benchmark = (
        True  # shapes are static, so the fastest kernel is looked for once
    )
    return torch.device("cuda")


def _title(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )


def _channels(environ: Mapping[str, str]) -> dict[str, Path]:
    """Input channels by lower-case name."""
    prefix = "SM_CHANNEL_"
    return {
        key.removeprefix(prefix).lower(): Path(value)
        for key, value in environ.items()
        if key.startswith(prefix)
    }


def _folders(data: Sequence[str]) -> dict[str, Path]:
    """Input channels of the command line."""
    given = pairs(data, "--data")
    for name, folder in given.items():
        if folder.startswith("s3://"):
            raise TrainingError(
                f"--data {name}={folder}: training here reads folders; --on sagemaker reads S3"
            )
    return {name: Path(folder).expanduser() for name, folder in given.items()}


def _card(
    run: Trained, graph: onnx.ModelProto, environ: Mapping[str, str], started: float
) -> tuple[Manifest, NDArray[Any]]:
    """The model's card, with what the graph itself reaches on the test part, and what it answered there."""
    recipe, data = run.recipe, run.data
    ask = pipeline.asking(graph)
    metrics, outcome = pipeline.measure(recipe, ask, data.test, run.labels)
    rtol, atol = recipe.tolerance
    card: Manifest = {
        "schema": 1,
        "task": recipe.task,
        "description": recipe.description,
        "inputs": model_card.inputs(graph, recipe.preprocessing, data.columns),
        "outputs": model_card.outputs(graph, recipe.answers, run.labels),
        "metrics": metrics,
        "baselines": evaluate.baselines(recipe.task, data),
        "evaluation": _evaluation(run, outcome),
        "data": {"source": data.source, "sha256": data.sha256, "split": dict(data.split)},
        "hyperparameters": run.hyperparameters,
        "training": model_card.origin(environ, run.device.type, time.monotonic() - started),
        "tolerance": {"rtol": rtol, "atol": atol},
        "samples": graphs.samples(graph, pipeline.requests(run, graph)),
    }
    return card, outcome


def _evaluation(run: Trained, outcome: NDArray[Any]) -> Evaluation:
    """Of what the graph answered and, where it has a temperature, of what the network says without one."""
    if run.temperature == 1:
        return evaluate.details(run.recipe.task, outcome, run.data, run.labels)
    _, plain = pipeline.measure(
        run.recipe, replace(run, temperature=1.0).run, run.data.test, run.labels
    )
    found = evaluate.details(run.recipe.task, outcome, run.data, run.labels, plain=plain)
    found["calibration"]["temperature"] = run.temperature
    return found


def _report(
    run: Trained,
    card: Manifest,
    outcome: NDArray[Any],
    told: Mapping[str, Any],
    path: Path,
    folder: Path,
) -> None:
    """The result to read, report.json, record.json and pictures, beside the model and in the job's output."""
    report.write(
        card,
        history=run.history,
        outputs=outcome,
        target=run.data.test.target,
        labels=run.labels,
        folders=[folder, path.parent],
        search=told.get("search"),
    )
    (folder / "record.json").write_text(json.dumps(told, indent=2) + "\n")
    for line in report.lines(card):
        print(line)
    if len(told["seeds"]) > 1:
        for metric, found in told["metrics"].items():
            print(
                f"over {len(told['seeds'])} seeds: {metric} {found['mean']:.4f} ± {found['deviation']:.4f}"
            )
    print(
        f"{path.name}: {path.stat().st_size / 1000:.0f} KB, {len(card['samples'])} samples inside, "
        f"{card['training']['duration_s']:.1f} s in all",
        flush=True,
    )


if __name__ == "__main__":
    distributed.end(main)
