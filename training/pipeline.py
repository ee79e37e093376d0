"""Pipeline steps of a training run: load, fit, export, compress, describe, write.

Each takes the values that the steps before it returned; train.py calls them in this order.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from numpy.typing import NDArray

from training.compression import select
from training.compression.variants import Compressed
from training.data import Dataset, lazy
from training.errors import TrainingError
from training.evaluation import baselines, distributions, figures, record, report
from training.evaluation.evaluate import evaluate, evaluate_baselines
from training.evaluation.metrics import PRIMARY
from training.export import graphs, model_card, model_exporter
from training.export.sample_requests import sample_requests
from training.fitting import checkpoint, distributed, trainer
from training.fitting.distributed import Ranks
from training.fitting.trained import Trained
from training.hyperparameters import Hyperparameters, override, pairs
from training.manifest import Distributions, Evaluation, Manifest
from training.recipe import LABELLED, Arrays, Recipe
from training.recipe_loading import code_digest
from training.recipe_loading import load as load_recipe
from training.runs import config, trackers
from training.tuning import objective
from training.tuning.options import require_optuna

if TYPE_CHECKING:
    from training.tuning.study import Study

Callback = Callable[[checkpoint.Row], None]  # gets the metrics of an epoch
ANSWERED_ROWS = 1000  # test rows whose answers are described in the manifest
LARGE_ANSWERS = 32  # the same where an answer has numbers for each token or pixel
CHANNEL = "SM_CHANNEL_"  # prefix of the environment variables that name a job's input folders


@dataclass(frozen=True)
class Setup:
    """Inputs of a training run: recipe, settings, data, device, processes."""

    options: argparse.Namespace
    environ: Mapping[str, str]
    recipe: Recipe[Any]
    settings: Hyperparameters
    data: Dataset
    channels: Mapping[str, Path]  # folders of input data by name
    compressions: list[str]
    device: torch.device
    ranks: Ranks
    started: float  # time.monotonic()

    @property
    def is_trial(self) -> bool:
        """Return True if this training is a trial of a hyperparameter search."""
        return "MAYFLY_TRIAL" in self.environ


@dataclass(frozen=True)
class Fitted:
    """Trained models, one per random seed, with their hyperparameter search if any."""

    seeds: list[Trained]
    search: Study | None
    by_seed: list[dict[str, float]]  # test metrics of each, where there are several
    runs: trackers.Runs
    run: trackers.Run  # tracked run of the exported model

    @property
    def first(self) -> Trained:
        """Return the trained model of the first seed, which is exported."""
        return self.seeds[0]

    def aborted_on_error(self) -> AbstractContextManager[None]:
        """Return a context that marks tracked runs as failed on errors."""
        return self.runs.failed_on_error()


@dataclass(frozen=True)
class Model:
    """ONNX graph, the trained model behind it, and its compression results."""

    graph: onnx.ModelProto
    trained: Trained
    compressed: Compressed | None = None


@dataclass(frozen=True)
class Description:
    """Model card, training record, and the model's outputs on test data."""

    card: Manifest
    record: dict[str, Any]
    outcome: NDArray[Any]


# --- load


def load(options: argparse.Namespace, environ: Mapping[str, str]) -> Setup:
    """Load recipe, settings and data; join the distributed training processes."""
    started = time.monotonic()
    recipe = options.recipe
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    compressions = select.kinds(options.compress, recipe)
    settings = override(recipe.hyperparameters(), json.loads(environ.get("SM_HPS", "{}")))
    settings = override(settings, pairs(options.set))
    channels = _job_channels(environ) | _command_line_channels(options.data)
    ranks, device = distributed.join(environ, _device(options.device))
    if ranks.leads:
        processes = f", {ranks.count} processes" if ranks.count > 1 else ""
        print(f"{recipe.name} on {_device_name(device)}{processes}: {settings}", flush=True)
    data = recipe.load_data(channels, settings)
    setup = Setup(
        options, environ, recipe, settings, data, channels, compressions, device, ranks, started
    )
    if setup.is_trial:
        setup = replace(setup, data=objective.without_test(data))
    elif ranks.leads:
        _check_writable("--model-dir", model_folder(setup))
    if options.checkpoint_dir and ranks.leads:
        _check_writable("--checkpoint-dir", Path(options.checkpoint_dir))
    if ranks.leads:
        expected = options.expected or config.submitted(environ)["expected"]
        changed = config.differences(expected, _digests(setup))
        print("\n".join([*_split_lines(setup.data), *changed]), flush=True)
    return setup


def _check_writable(option: str, folder: Path) -> None:
    """Check that files can be written to a folder, without making it.

    Raises:
        TrainingError: they cannot.
    """
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise TrainingError(
            f"{option} {folder}: nothing can be written there ({error.strerror}: {existing}); "
            "give another folder"
        ) from error


def _digests(setup: Setup) -> dict[str, str]:
    """Return digests of the recipe's code and of the data."""
    return {"code": code_digest(setup.recipe), "data": setup.data.sha256}


def _split_lines(data: Dataset) -> list[str]:
    """Describe a split: sizes of its parts, copies, rows in two parts."""
    record = data.split
    lines = [
        f"{data.source}: {len(data.train)} to train, {len(data.validation)} to validate, "
        f"{len(data.test)} to test"
    ]
    if "test_from" in record:
        lines[0] += f" from {record['test_from']}"
    if "copies" in record:
        lines.append(f"{record['copies']} rows are copies of other rows: kept in one part")
    for name, how in (("identical_rows", "copies"), ("near_rows", "nearly copies")):
        if name in record:
            lines.append(
                f"warning: {record[name]} rows to validate or test are {how} of training rows: "
                "metrics may be too good"
            )
    return [*lines, *data.notes, *_on_disk(data)]


def _on_disk(data: Dataset) -> list[str]:
    """Name the inputs that are read batch by batch."""
    arrays = {**data.train.inputs, "target": data.train.target}
    return [
        f"{name}: {values.nbytes / 1e6:,.0f} MB to train, read batch by batch"
        for name, values in arrays.items()
        if lazy.is_lazy(values)
    ]


def _device(name: str) -> torch.device:
    """Return the device that --device names.

    Raises:
        TrainingError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    matched = re.fullmatch(r"(cpu|mps|cuda)(?:(?<=cuda):(\d+))?", name)
    if matched is None:
        raise TrainingError(f"--device {name}: give cpu, cuda, cuda:1 or mps")
    kind, number = matched[1], int(matched[2] or 0)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise TrainingError("--device mps: torch sees no Apple GPU here; use cpu")
    if kind == "cuda" and number >= torch.cuda.device_count():
        gpus = torch.cuda.device_count() or "no"
        raise TrainingError(
            f"--device {name}: torch sees {gpus} GPU here, counted from 0; --device cpu trains "
            "without"
        )
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for fp32 matrices
        torch.backends.cudnn.benchmark = True  # shapes are static: choose the fastest kernel once
        torch.cuda.set_device(number)
    return torch.device(name)


def _device_name(device: torch.device) -> str:
    if device.type == "mps":
        return "Apple GPU"
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


def _job_channels(environ: Mapping[str, str]) -> dict[str, Path]:
    """Return a SageMaker job's input data folders by lower-case channel name."""
    return {
        key.removeprefix(CHANNEL).lower(): Path(value)
        for key, value in environ.items()
        if key.startswith(CHANNEL)
    }


def _command_line_channels(data: Sequence[str]) -> dict[str, Path]:
    """Parse `--data NAME=DIR` options into input data folders by channel name."""
    folders = pairs(data, "--data")
    for name, folder in folders.items():
        if folder.startswith("s3://"):
            raise TrainingError(
                f"--data {name}={folder}: training here reads folders; copy it (aws s3 cp "
                f"--recursive {folder} DIR) and give --data {name}=DIR, or add --on sagemaker"
            )
    return {name: Path(folder).expanduser() for name, folder in folders.items()}


# --- fit


def fit(setup: Setup, stop: checkpoint.Stop, callbacks: Sequence[Callback] = ()) -> Fitted:
    """Search hyperparameters if --tune is given, then train a model per seed.

    `callbacks` get the metrics of each epoch, after the trackers.

    Raises:
        TrainingError: recipe, settings and data do not fit together.
        Interrupted: `stop` was requested; the checkpoint holds the state.
    """
    weights = _weights(setup)
    runs = _open_runs(setup)
    with runs.failed_on_error():
        search = _search(setup, stop, runs) if setup.options.tune else None
        settings = setup.settings
        if search is not None:
            settings = override(settings, search.settings(search.best))
        if setup.options.seeds > 1:
            seeds, by_seed = _fit_seeds(setup, settings, weights, stop, callbacks, runs)
            run = runs.start(trackers.MODEL, asdict(settings))
            for row in seeds[0].history:  # it was trained as the run of its seed
                run.epoch(row)
        else:
            run = runs.start(trackers.MODEL, asdict(settings))
            watch = _watcher([run.epoch, *callbacks])
            seeds, by_seed = [_fit_seed(setup, settings, weights, stop, watch)], []
        setup.ranks.close()
    return Fitted(seeds, search, by_seed, runs, run)


def _fit_seeds(
    setup: Setup,
    settings: Hyperparameters,
    weights: Path | None,
    stop: checkpoint.Stop,
    callbacks: Sequence[Callback],
    runs: trackers.Runs,
) -> tuple[list[Trained], list[dict[str, float]]]:
    """Train a model per seed; return models and rank 0's test metrics."""
    numbers = range(settings.seed, settings.seed + setup.options.seeds)
    seeds: list[Trained] = []
    by_seed: list[dict[str, float]] = []
    for number in numbers:
        if seeds and setup.ranks.any(stop.is_late):
            print(f"time limit: {len(seeds)} of {len(numbers)} seeds are trained", flush=True)
            break
        seeded = replace(settings, seed=number)
        run = runs.start(f"seed-{number}", asdict(seeded))
        watch = _watcher([run.epoch, *callbacks])
        seeds.append(_fit_seed(setup, seeded, weights, stop, watch))
        if setup.ranks.leads:
            by_seed.append(seeds[-1].measure(setup.data.test)[0])
            run.end(_of_test(by_seed[-1]))
    return seeds, by_seed


def _of_test(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"test_{name}": value for name, value in metrics.items()}


def _open_runs(setup: Setup) -> trackers.Runs:
    """Return the runs to track; a search records its trials itself."""
    if setup.is_trial or not setup.ranks.leads:
        return trackers.Runs()
    grouped = setup.options.tune > 0 or setup.options.seeds > 1
    folder = report_folder(setup)
    return trackers.open_runs(setup.recipe.name, folder, setup.environ, grouped=grouped)


def _watcher(callbacks: Sequence[Callback]) -> Callback:
    def watch(row: checkpoint.Row) -> None:
        for callback in callbacks:
            callback(row)

    return watch


def _search(setup: Setup, stop: checkpoint.Stop, runs: trackers.Runs) -> Study:
    require_optuna()
    from training.tuning import local  # imports Optuna: 0.3 s, and containers of trials lack it

    return local.run(
        setup.recipe,
        setup.settings,
        setup.options,
        setup.environ,
        setup.data,
        setup.channels,
        device=setup.device,
        stop=stop,
        ranks=setup.ranks,
        runs=runs,
    )


def _fit_seed(
    setup: Setup,
    settings: Hyperparameters,
    weights: Path | None,
    stop: checkpoint.Stop,
    watch: Callback,
) -> Trained:
    folder = setup.options.checkpoint_dir or setup.environ.get("SM_CHECKPOINT_DIR")
    checkpoints = Path(folder) if folder else None
    if setup.options.seeds > 1:
        if setup.ranks.leads:
            print(f"seed {settings.seed}", flush=True)
        checkpoints = checkpoints / f"seed-{settings.seed}" if checkpoints else None
    return trainer.fit(
        setup.recipe,
        settings,
        setup.data,
        device=setup.device,
        checkpoints=checkpoints,
        stop=stop,
        ranks=setup.ranks,
        watch=watch,
        weights=weights,
    )


def _weights(setup: Setup) -> Path | None:
    """Return the weights to start from: --weights, or a job's channel."""
    path = setup.options.weights or setup.channels.get("weights")
    if path is None:
        return None
    if setup.options.tune:
        raise TrainingError("--weights start one run and no search: leave out --tune")
    if str(path).startswith("s3://"):
        raise TrainingError(
            f"--weights {path}: training here reads files; copy it (aws s3 cp --recursive {path} "
            "DIR) and give --weights DIR, or add --on sagemaker"
        )
    return Path(path)


# --- export and compress


def export(trained: Trained) -> onnx.ModelProto:
    """Export a trained model without its preprocessor to a checked ONNX graph.

    Raises:
        ExportFailed: no exporter made a graph that computes what the model computes.
    """
    print("exporting and proving the graph", flush=True)
    return model_exporter.export(trained)


def compress(setup: Setup, trained: Trained, graph: onnx.ModelProto) -> Model:
    """Choose the smallest compressed variant within the metric budget; attach the preprocessor.

    Without --compress, `graph` is the only variant. Pruning and distilling return another trained
    model than `trained`.

    Raises:
        CompressionFailed: a variant cannot be made of this kind of model.
    """
    compressed = None
    if setup.compressions:
        compressed, trained = select.smallest(
            trained, graph, setup.compressions, setup.options.budget
        )
        metric = PRIMARY[setup.recipe.task].metric
        print(compressed.table(f"validation {metric}"), flush=True)
        graph = compressed.graph
    return Model(model_exporter.attach_preprocessor(trained, graph), trained, compressed)


# --- describe


def describe(setup: Setup, fitted: Fitted, model: Model) -> Description:
    """Evaluate an ONNX graph on test data; return model card and record."""
    card, outcome = _card(setup, model)
    run_record = record.make(
        recipe=setup.recipe.name,
        settings=model.trained.hyperparameters,
        seeds=[trained.settings.seed for trained in fitted.seeds],
        metrics=fitted.by_seed if len(fitted.seeds) > 1 else [card["metrics"]],
        histories=[trained.history for trained in fitted.seeds],
        device=setup.device,
        processes=setup.ranks.count,
        duration_s=time.monotonic() - setup.started,
    )
    if fitted.search is not None:
        run_record["search"] = fitted.search.record()
    return Description(card, run_record, outcome)


def _card(setup: Setup, model: Model) -> tuple[Manifest, NDArray[Any]]:
    """Return the model card and the graph's outputs on test data."""
    trained, graph, recipe, data = model.trained, model.graph, setup.recipe, setup.data
    metrics, outcome = trained.measure(data.test, graphs.runner(graph))
    rivals = baselines.outputs(recipe.task, data)
    rtol, atol = recipe.tolerance
    duration_s = time.monotonic() - setup.started
    card: Manifest = {
        "schema": 1,
        "task": recipe.task,
        "description": recipe.description,
        "inputs": model_card.inputs(graph, recipe.preprocessing, data.columns),
        "outputs": model_card.outputs(graph, recipe.output_kinds, trained.labels),
        "metrics": metrics,
        "baselines": evaluate_baselines(recipe.task, data, rivals),
        "evaluation": _evaluation(trained, outcome, rivals),
        "data": {"source": data.source, "sha256": data.sha256, "split": dict(data.split)},
        "distributions": _distributions(trained, graph),
        "hyperparameters": trained.hyperparameters,
        "training": model_card.origin(setup.environ, setup.device.type, duration_s),
        "tolerance": {"rtol": rtol, "atol": atol},
        "samples": graphs.samples(graph, sample_requests(trained, graph)),
    }
    if model.compressed is not None:
        card["compression"] = model.compressed.records()
        card["tolerance"]["atol"] = max(atol, model.compressed.atol)
    return card, outcome


def _distributions(trained: Trained, graph: onnx.ModelProto) -> Distributions:
    """Return the distributions of training inputs and test answers."""
    data, recipe = trained.data, trained.recipe
    is_large = recipe.task in ("generation", "segmentation")
    most = LARGE_ANSWERS if is_large else ANSWERED_ROWS
    rows = distributions.spread(len(data.test), most)
    answers = graphs.runner(graph)(trained.request(data.test.take(rows)))
    kinds = recipe.output_kinds
    return distributions.describe(
        trained.request(data.train),
        {name: values for name, values in answers.items() if kinds.get(name) != "tensor"},
        parts=("train", "test"),
        columns=data.columns,
        labels=trained.labels,
        target=data.train.target if recipe.task in LABELLED else None,
        one_label=recipe.task != "multilabel",
    )


def _evaluation(
    trained: Trained, outcome: NDArray[Any], rivals: Arrays | None = None
) -> Evaluation:
    """Return a model's evaluation, with calibration and figures.

    The calibration has the errors before and after temperature scaling.
    """
    task, data, labels = trained.recipe.task, trained.data, trained.labels
    uncalibrated = None
    if trained.temperature != 1:
        _, uncalibrated = replace(trained, temperature=1.0).measure(data.test)
    evaluation = evaluate(task, outcome, data, labels, uncalibrated=uncalibrated, rivals=rivals)
    if uncalibrated is not None:
        evaluation["calibration"]["temperature"] = trained.temperature
    drawn = figures.collect(task, outcome, data.test.target, labels, trained.history)
    if drawn:
        evaluation["figures"] = drawn
    return evaluation


# --- write


def model_folder(setup: Setup) -> Path:
    """Return the folder of model.onnx."""
    default = setup.environ.get("SM_MODEL_DIR", f"artifacts/{setup.recipe.name}")
    return Path(setup.options.model_dir or default)


def report_folder(setup: Setup) -> Path:
    """Return the folder of record.json, run.yaml and TensorBoard's files."""
    return Path(setup.environ.get("SM_OUTPUT_DATA_DIR", model_folder(setup)))


def write(setup: Setup, fitted: Fitted, model: Model, description: Description) -> Path:
    """Write model.onnx with model card, reports, run.yaml and plots; print results.

    The reports go beside the model and, in a job, to $SM_OUTPUT_DATA_DIR.
    """
    card, run_record = description.card, description.record
    path, folder = model_folder(setup) / "model.onnx", report_folder(setup)
    model_card.embed(model.graph, card)
    graphs.save(model.graph, path)
    reports = report.write(
        card,
        history=model.trained.history,
        outputs=description.outcome,
        target=setup.data.test.target,
        labels=model.trained.labels,
        folders=[folder, path.parent],
        search=run_record.get("search"),
    )
    (folder / "record.json").write_text(json.dumps(run_record, indent=2) + "\n")
    _write_config(setup, fitted, folder)
    fitted.run.end(_of_test(card["metrics"]), [path, *reports, folder / config.FILE])
    fitted.runs.close()
    for line in [*report.lines(card), *_seed_lines(run_record), _file_line(path, card)]:
        print(line, flush=True)
    return path


def _write_config(setup: Setup, fitted: Fitted, folder: Path) -> None:
    """Write the options that repeat this run, without a search."""
    options = setup.options
    sources = _sources(setup)
    weights = sources.pop("weights", None)
    chosen = {
        "recipe": _recipe_reference(setup),
        "set": asdict(fitted.first.settings),
        "data": sources,
        "seeds": options.seeds,
        "compress": options.compress,
        "budget": options.budget if options.compress else None,
        "weights": str(Path(options.weights).absolute()) if options.weights else weights,
        "device": options.device,
    }
    config.write(folder / config.FILE, chosen, _digests(setup))


def _sources(setup: Setup) -> dict[str, str]:
    """Return each channel's source: S3 in a job, else a folder."""
    folders = {name: str(path.absolute()) for name, path in setup.channels.items()}
    folders.pop("code", None)  # a job's own
    return config.submitted(setup.environ)["channels"] or folders


def _recipe_reference(setup: Setup) -> str:
    """Return a recipe's name or file, in a job without its folder."""
    reference, file = str(setup.options.recipe), setup.recipe.file
    if file is None or not reference.endswith(".py"):
        return setup.recipe.name
    return reference if "TRAINING_JOB_NAME" in setup.environ else str(file)


def _seed_lines(run_record: Mapping[str, Any]) -> list[str]:
    count = len(run_record["seeds"])
    if count == 1:
        return []
    return [
        f"over {count} seeds: {metric} {spread['mean']:.4f} ± {spread['deviation']:.4f}"
        for metric, spread in run_record["metrics"].items()
    ]


def _file_line(path: Path, card: Manifest) -> str:
    return (
        f"{path.name}: {path.stat().st_size / 1000:.0f} KB, {len(card['samples'])} samples inside, "
        f"{card['training']['duration_s']:.1f} s in all"
    )
