"""Train a recipe and write one self-describing model.onnx: on a laptop, in a local job and on SageMaker alike.

    python -m training.train digits --set epochs=5 --model-dir artifacts/digits

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
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Read when torch is loaded. Threads that spin while they wait starve whatever else runs, the same team included: on two
# busy cores this recipe trained 45-122 images a second, and 660-2060 with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from training import artifact, checkpoint, evaluate, export, loop, manifest
from training.data import Dataset
from training.errors import TrainingError
from training.recipe import Hyperparameters, Recipe, load, override, pairs

STOPPED = 143  # exit status: 128 + SIGTERM


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    options = _options(arguments)
    try:
        train(options, environ, stop=checkpoint.Stop().listen())
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except checkpoint.Interrupted as stopped:
        print(f"SIGTERM: {stopped}", file=sys.stderr)
        return STOPPED
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train a recipe, write model.onnx.")
    parser.add_argument("recipe", help="a built-in recipe (digits) or a .py file that defines one")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter: lr=3e-4")
    parser.add_argument("--model-dir", type=Path, help="where model.onnx goes [$SM_MODEL_DIR or artifacts/<recipe>]")
    parser.add_argument("--checkpoint-dir", type=Path, help="save the run here and resume it [$SM_CHECKPOINT_DIR]")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args(arguments)


def train(options: argparse.Namespace, environ: Mapping[str, str], stop: checkpoint.Stop) -> Path:
    """From data to the proven, described model.onnx, whose path is returned.

    Raises:
        TrainingError: a mistake of the user's, or a network that no exporter gets right.
        Interrupted: `stop` was requested; the checkpoint holds the state.
    """
    started = time.monotonic()
    recipe = load(options.recipe)
    settings = override(recipe.hyperparameters(), json.loads(environ.get("SM_HPS", "{}")))
    settings = override(settings, pairs(options.set))
    device = _device(options.device)
    print(f"{recipe.name} on {_title(device)}: {settings}", flush=True)

    data = recipe.data(_channels(environ))
    print(
        f"{data.source}: {len(data.train)} to train, {len(data.validation)} to validate, {len(data.test)} to test",
        flush=True,
    )
    torch.manual_seed(settings.seed)
    network = recipe.model(settings)
    checkpoints = options.checkpoint_dir or environ.get("SM_CHECKPOINT_DIR")
    history = loop.fit(
        network,
        data,
        settings,
        device=device,
        augment=recipe.augment,
        stop=stop,
        checkpoints=Path(checkpoints) if checkpoints else None,
        identity={"recipe": recipe.name, "data": data.sha256},
    )
    metrics = evaluate.classification(loop.predict(network, data.test, device), data.test.target)

    print("exporting and proving the graph", flush=True)
    graph = export.export(_spec(recipe, network, data))
    card = _describe(recipe, settings, data, environ, device)
    card["metrics"], card["baselines"] = metrics, evaluate.baselines(data)
    images = data.test.inputs[recipe.input_name]
    card["samples"] = artifact.samples(graph, [{recipe.input_name: images[:1]}, {recipe.input_name: images[1:3]}])
    card["training"]["duration_s"] = round(time.monotonic() - started, 3)
    graph.metadata_props.add(key=manifest.KEY, value=manifest.dumps(card))
    path = (options.model_dir or Path(environ.get("SM_MODEL_DIR", f"artifacts/{recipe.name}"))) / "model.onnx"
    artifact.save(graph, path)
    _report(card, history, path, Path(environ.get("SM_OUTPUT_DATA_DIR", path.parent)))
    return path


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch sees no GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _title(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _channels(environ: Mapping[str, str]) -> dict[str, Path]:
    """Input channels by lower-case name."""
    prefix = "SM_CHANNEL_"
    return {key.removeprefix(prefix).lower(): Path(value) for key, value in environ.items() if key.startswith(prefix)}


def _spec(recipe: Recipe[Any], network: torch.nn.Module, data: Dataset) -> export.Spec:
    """What is exported: the network with its softmax, for any batch, proven on test images."""
    images = data.test.inputs[recipe.input_name]
    return export.Spec(
        model=torch.nn.Sequential(network.cpu(), torch.nn.Softmax(dim=-1)),
        inputs={recipe.input_name: {0: "batch"}},
        outputs=["probabilities"],
        dims={"batch": export.Dim()},
        sample=lambda sizes: (torch.from_numpy(images.take(range(sizes["batch"]), axis=0, mode="wrap")),),
    )


def _describe(
    recipe: Recipe[Any], settings: Hyperparameters, data: Dataset, environ: Mapping[str, str], device: torch.device
) -> manifest.Manifest:
    """The model's card; what is measured is filled in later."""
    return {
        "schema": 1,
        "task": recipe.task,
        "description": recipe.description,
        "inputs": [
            {
                "name": recipe.input_name,
                "datatype": "FP32",
                "shape": [-1, *data.test.inputs[recipe.input_name].shape[1:]],
                "preprocessing": recipe.preprocessing,
            }
        ],
        "outputs": [
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [-1, len(recipe.labels)],
                "kind": "probabilities",
                "labels": list(recipe.labels),
            }
        ],
        "metrics": {},
        "baselines": {},
        "data": {
            "source": data.source,
            "sha256": data.sha256,
            "split": dict(data.split),
        },
        "hyperparameters": asdict(settings),
        "training": {
            "job": environ.get("TRAINING_JOB_NAME"),
            "image": environ.get("MAYFLY_TRAINING_IMAGE"),
            "instance_type": environ.get("SM_CURRENT_INSTANCE_TYPE"),
            "code_revision": manifest.code_revision(environ),
            "libraries": manifest.libraries(),
            "device": device.type,
            "duration_s": 0.0,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "tolerance": {"rtol": artifact.RTOL, "atol": artifact.ATOL},
        "samples": [],
    }


def _report(card: manifest.Manifest, history: Sequence[Mapping[str, float]], path: Path, folder: Path) -> None:
    """The result, to read and as report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {key: card[key] for key in ("metrics", "baselines", "data", "hyperparameters", "training")}
    (folder / "report.json").write_text(json.dumps(report | {"history": history}, indent=2) + "\n")
    rows = {"this model": card["metrics"], **card["baselines"]}
    for metric, value in card["metrics"].items():
        print(f"test_{metric}={value:.4f}")
        for name, values in rows.items():
            print(f"  {name:<20} {metric} {values[metric]:.4f}")
    print(
        f"{path.name}: {path.stat().st_size / 1000:.0f} KB, {len(card['samples'])} samples inside, "
        f"{card['training']['duration_s']:.1f} s in all",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
