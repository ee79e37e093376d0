"""From a recipe to a model that has learned, and from there to a proven graph; torch and scikit-learn alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training import networks
from training.data import Dataset, Examples
from training.errors import ExportFailed, InvalidRecipe
from training.evaluation import calibration
from training.evaluation import metrics as evaluate
from training.export import graphs, sklearn_exporter, torch_exporter
from training.fitting import estimators, loop, losses
from training.fitting.checkpoint import Stop
from training.fitting.distributed import Ranks
from training.hyperparameters import Hyperparameters, NetworkHyperparameters
from training.recipe import Arrays, Front, Recipe, Run

CHUNK = 256  # examples a graph is asked at a time
SHOWN_LIMIT = 64 * 1024  # bytes of a sample, as JSON; the registry keeps no larger ones


@dataclass(frozen=True)
class Trained:
    """A model that has learned, with all that judging and exporting it takes."""

    recipe: Recipe[Any]
    settings: Hyperparameters
    data: Dataset  # as the recipe gave it
    encoded: Dataset  # as the model takes it
    labels: tuple[str, ...]
    front: Front | None
    model: Any
    history: list[loop.Row]
    device: torch.device
    temperature: float = 1.0  # of a classifier's softmax, see calibrate.py

    def run(self, inputs: Arrays) -> Arrays:
        """What the exported graph would answer, computed by the model itself."""
        encoded = self.front.encode(inputs) if self.front else inputs
        if not isinstance(self.model, nn.Module):
            answer = estimators.predict(self.model, encoded)
            answer = (
                answer if self.temperature == 1 else calibration.scaled(answer, self.temperature)
            )
            return {next(iter(self.recipe.answers)): answer}
        served = serve(self.recipe, self.model, self.temperature).to(self.device)
        return dict(
            zip(self.recipe.answers, loop.predict(served, encoded, self.device), strict=True)
        )

    def asks(self, examples: Examples) -> Arrays:
        """What the graph is asked for `examples`, which are as the recipe gave them."""
        return self.recipe.request(examples) if self.recipe.request else examples.inputs

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those that were set and, of a search, those that it found."""
        return asdict(self.settings) | estimators.found(self.model)


def fit(
    recipe: Recipe[Any],
    settings: Hyperparameters,
    data: Dataset,
    *,
    device: torch.device,
    checkpoints: Path | None = None,
    stop: Stop | None = None,
    ranks: Ranks | None = None,
    watch: Any = None,
) -> Trained:
    """Train the model of `recipe` on `data`; the other arguments are those of `loop.fit`.

    Raises:
        TrainingError: recipe, settings and data do not fit together.
        Interrupted: `stop` was requested; the checkpoint holds the state.
    """
    labels = recipe.labels_of(data)
    front = recipe.make_front(settings, data)
    encoded = _encode(front, data) if front else data
    torch.manual_seed(settings.seed)
    model = recipe.make_model(settings, encoded)
    trained = Trained(recipe, settings, data, encoded, labels, front, model, [], device)
    if not isinstance(model, nn.Module):
        return _fit_classic(trained, stop, ranks)
    if not isinstance(settings, NetworkHyperparameters):
        raise InvalidRecipe(
            f"recipe {recipe.name}: hyperparameters of a torch model extend NetworkHyperparameters"
        )

    if recipe.task == "classification" and recipe.loss is None:
        _check_width(model, encoded.train, labels)

    def score(_: nn.Module) -> loop.Row:
        primary = evaluate.PRIMARY[recipe.task].metric
        metrics = measure(recipe, trained.run, data.validation, labels)[0]
        return {primary: metrics[primary]} if primary in metrics else {}

    history = loop.fit(
        model,
        encoded,
        settings,
        device=device,
        loss=losses.choose(recipe.task, recipe.loss),
        score=None
        if recipe.task == "generation"
        else score,  # its loss says as much, and logits are large
        augment=recipe.augment,
        checkpoints=checkpoints,
        identity={"recipe": recipe.name, "data": data.sha256},
        stop=stop,
        ranks=ranks,
        watch=watch,
    )
    return _told(calibrated(replace(trained, history=history)), ranks)


def calibrated(trained: Trained) -> Trained:
    """The same at the temperature that makes a classifier as sure as it is right on the validation part."""
    recipe, part = trained.recipe, trained.encoded.validation
    if recipe.task != "classification" or recipe.serve is not None or not len(part):
        return trained
    if isinstance(trained.model, nn.Module):
        logits = loop.predict(trained.model, part.inputs, trained.device)[0]
    else:
        logits = calibration.logits(estimators.predict(trained.model, part.inputs))
    groups = None if trained.data.split.get("by", "row") == "row" else part.groups
    return replace(trained, temperature=calibration.temperature(logits, part.target, groups))


def _told(trained: Trained, ranks: Ranks | None = None) -> Trained:
    if trained.temperature != 1 and (ranks is None or ranks.leads):
        before, after = (
            measure(trained.recipe, one.run, trained.data.validation, trained.labels)[0]["log_loss"]
            for one in (replace(trained, temperature=1.0), trained)
        )
        print(
            f"at temperature {trained.temperature:.2f}, validation log loss {before:.4f} → {after:.4f}",
            flush=True,
        )
    return trained


def _fit_classic(trained: Trained, stop: Stop | None, ranks: Ranks | None) -> Trained:
    recipe, model = trained.recipe, trained.model
    if not estimators.is_estimator(model):
        raise InvalidRecipe(f"recipe {recipe.name}: model() returns a {type(model).__name__}, which is neither a torch "
                            "module nor a scikit-learn estimator")  # fmt: skip
    if ranks is not None and ranks.count > 1:
        raise InvalidRecipe(
            f"recipe {recipe.name}: a scikit-learn estimator is fitted in one process"
        )
    estimators.fit(model, trained.encoded.train, seed=trained.settings.seed, stop=stop)
    estimators.check_classes(model, trained.labels)
    trained = _told(calibrated(trained))
    metrics, _ = measure(recipe, trained.run, trained.data.validation, trained.labels)
    print(
        "  ".join(f"validation_{name}={value:.4f}" for name, value in metrics.items()), flush=True
    )
    return trained


def _check_width(model: nn.Module, examples: Examples, labels: tuple[str, ...]) -> None:
    try:
        width = loop.predict(model, examples.take(slice(0, 2)).inputs, torch.device("cpu"))[
            0
        ].shape[-1]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return  # the loop says what does not fit
    if width != len(labels):
        shown = ", ".join(labels)[:80]
        raise InvalidRecipe(
            f"the model answers {width} numbers a row, and there are {len(labels)} labels: {shown}"
        )


def _encode(front: Front, data: Dataset) -> Dataset:
    train, validation, test = (
        replace(part, inputs=front.encode(part.inputs))
        for part in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def measure(
    recipe: Recipe[Any], run: Run, examples: Examples, labels: tuple[str, ...]
) -> tuple[dict[str, float], NDArray[Any]]:
    """The metrics of what `run` answers for `examples`, and these answers."""
    infer = recipe.infer or (lambda run, examples: run(examples.inputs)[next(iter(recipe.answers))])
    outcome = infer(run, examples)
    metrics = evaluate.metrics(recipe.task, outcome, examples, labels)
    return metrics | (recipe.metric(outcome, examples) if recipe.metric else {}), outcome


def serve(recipe: Recipe[Any], model: nn.Module, temperature: float = 1.0) -> nn.Module:
    """The module that is exported; it shares its weights with `model`."""
    if recipe.serve is not None:
        return recipe.serve(model)
    return (
        networks.After(model, networks.softmax(temperature))
        if recipe.task == "classification"
        else model
    )


def asking(graph: onnx.ModelProto) -> Run:
    """ONNX Runtime, asked in chunks where all inputs have as many rows. What a decoder remembers begins empty."""
    session = graphs.runtime(graph)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        inputs = graphs.begun(graph, inputs)
        rows = {len(values) for values in inputs.values()}
        chunk = CHUNK if len(rows) == 1 else max(rows)
        parts = [
            session.run(
                names, {name: values[start : start + chunk] for name, values in inputs.items()}
            )
            for start in range(0, max(rows), chunk)
        ]
        return {
            name: np.concatenate(answers)
            for name, answers in zip(names, zip(*parts, strict=True), strict=True)
        }

    return run


def to_graph(trained: Trained) -> onnx.ModelProto:
    """The proven graph of the model, which takes what the model takes.

    Raises:
        ExportFailed: no exporter made a graph that computes what the model computes.
    """
    if isinstance(trained.model, nn.Module):
        return torch_exporter.export(_spec(trained))
    inputs, answer = trained.encoded.test.inputs, next(iter(trained.recipe.answers))
    graph = sklearn_exporter.export(trained.model, inputs, answer).graph
    return (
        graph
        if trained.temperature == 1
        else sklearn_exporter.at_temperature(graph, answer, trained.temperature, inputs)
    )


def with_front(trained: Trained, graph: onnx.ModelProto) -> onnx.ModelProto:
    """`graph` from a caller's raw inputs on, proven to answer the same.

    Raises:
        ExportFailed: it does not.
    """
    if trained.front is None:
        return graph
    whole = trained.front.attach(graph)
    inner, outer = asking(graph), asking(whole)
    for rows in (slice(0, 1), slice(0, 2), slice(0, CHUNK)):
        raw = trained.asks(trained.data.test.take(rows))
        expected, got = inner(trained.front.encode(raw)), outer(raw)
        for name, theirs in expected.items():
            problem = graphs.difference(got[name], theirs, *trained.recipe.tolerance)
            if problem is not None:
                raise ExportFailed(f"with its front, {name} {problem}")
    return whole


def _spec(trained: Trained) -> torch_exporter.Spec:
    recipe, inputs = trained.recipe, trained.asks(trained.data.test)
    inputs = trained.front.encode(inputs) if trained.front else inputs
    served = serve(recipe, trained.model.cpu(), trained.temperature)
    own = set(recipe.dynamic) - set(inputs)  # a served module may have other inputs, e.g. a cache
    axes = {
        name: dict(recipe.dynamic.get(name, {})) for name in (recipe.dynamic if own else inputs)
    }
    for names in axes.values():
        if "batch" not in names.values():
            names[0] = "batch"
    dims = {"batch": torch_exporter.Dim()} | {
        name: torch_exporter.Dim() for one in axes.values() for name in one.values()
    }
    dims |= {name: torch_exporter.Dim(*bounds) for name, bounds in recipe.sizes.items()}

    def sample(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        if own or recipe.sample is not None:
            return recipe.make_sample(sizes, served)
        return tuple(torch.from_numpy(_resized(inputs[name], axes[name], sizes)) for name in axes)

    rtol, atol = recipe.tolerance
    return torch_exporter.Spec(
        model=served,
        inputs=axes,
        outputs=list(recipe.answers),
        dims=dims,
        sample=sample,
        rtol=rtol,
        atol=atol,
    )


def _resized(
    values: NDArray[Any], axes: Mapping[int, str], sizes: Mapping[str, int]
) -> NDArray[Any]:
    """`values` cut, or repeated, to the sizes of their dynamic dimensions."""
    for axis, name in axes.items():
        values = values.take(range(sizes[name]), axis=axis, mode="wrap")
    return np.ascontiguousarray(values)


def requests(trained: Trained, graph: onnx.ModelProto) -> list[Arrays]:
    """Inputs to show what the graph does: one example of the test part and, if they are small, two more at once."""
    shown = batches(trained, graph, trained.data.test, (slice(0, 1), slice(1, 3)))
    if {value.name for value in graph.graph.input} != set(
        shown[0]
    ):  # made up: short, without a past and with one
        spec = _spec(trained)
        sizes = [{name: dim.low + more for name, dim in spec.dims.items()} for more in (0, 1)]
        return [
            dict(zip(spec.inputs, (tensor.numpy() for tensor in spec.sample(size)), strict=True))
            for size in sizes
        ]
    return [one for one in shown if _length(one) <= SHOWN_LIMIT] or shown[:1]


def batches(
    trained: Trained, graph: onnx.ModelProto, examples: Examples, rows: Sequence[slice]
) -> list[Arrays]:
    """What `graph`, with its front or without, is asked for rows of `examples`, which are as the recipe gave them."""
    asked = [trained.asks(examples.take(part)) for part in rows]
    names = {value.name for value in graph.graph.input}
    if trained.front is not None and not set(asked[0]) <= names:
        return [trained.front.encode(one) for one in asked]
    return asked


def _length(inputs: Arrays) -> int:
    return sum(len(json.dumps(np.asarray(values).round(4).tolist() if values.dtype.kind == "f" else values.tolist()))
               for values in inputs.values())  # fmt: skip
