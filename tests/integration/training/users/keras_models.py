"""Script that trains Keras models of many kinds and checks what training promises.

    .venv-keras/bin/python tests/integration/training/users/keras_models.py FOLDER

Writes FOLDER/<case>/model.onnx, and expected.npz with the inputs and Keras's own answers.
Prints one JSON object: what each check found.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"
warnings.simplefilter("ignore")

import keras
import numpy as np
import onnx
import torch
from keras import layers

import training
from training.compression import select
from training.data import Examples, split
from training.errors import TrainingError
from training.export import graphs, model_exporter
from training.fitting import checkpoint, losses, trainer
from training.fitting.steps import engines
from training.fitting.trained import Trained
from training.recipe import FitHyperparameters, NetworkHyperparameters, Recipe

GENERATOR = np.random.default_rng(0)
ROWS = 200
IMAGES = GENERATOR.random((ROWS, 1, 8, 8)).astype(np.float32)
HALVES = (IMAGES[:, 0, :4].mean((1, 2)) > IMAGES[:, 0, 4:].mean((1, 2))).astype(np.int64)
FIRST, SECOND = (GENERATOR.random((ROWS, width)).astype(np.float32) for width in (3, 2))
TOKENS = GENERATOR.integers(1, 20, (ROWS, 5)).astype(np.int64)
TOKENS[:50, :2] = 0
LATE = (TOKENS[:, -1] > 10).astype(np.int64)
LABELS = ("no", "yes")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loop(NetworkHyperparameters):
    epochs: int = 2


@dataclass(frozen=True)
class Fit(FitHyperparameters):
    epochs: int = 2


def recipe(
    name: str,
    inputs: Mapping[str, Any],
    target: Any,
    model: Callable[..., Any],
    kind: type[Any] = Loop,
    **more: Any,
) -> Recipe[Any]:
    settings = {"task": "classification", "labels": LABELS} | more
    return Recipe(
        name=name, description="Made up.", hyperparameters=kind, model=model,
        data=lambda: split(Examples(dict(inputs), target), source="made:up", sha256="0"),
        **settings,
    )  # fmt: skip


def compiled(model: Any, loss: str = "sparse_categorical_crossentropy") -> Any:
    model.compile("adam", loss, metrics=["accuracy"])
    return model


# --- models as they are taught


def convolutional() -> Any:
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(2, activation="softmax"),
    ])  # fmt: skip


def binary() -> Any:
    return keras.Sequential([
        keras.Input((64,)), layers.Dense(8, activation="relu"),
        layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip


def two_in_two_out() -> Any:
    first, second = keras.Input((3,), name="first"), keras.Input((2,), name="second")
    hidden = layers.Concatenate()([layers.Dense(4)(first), layers.Dense(4)(second)])
    outputs = [layers.Dense(1, name="sum")(hidden), layers.Dense(2, name="other")(hidden)]
    return keras.Model({"second": second, "first": first}, outputs)


def lstm() -> Any:
    return keras.Sequential([
        keras.Input((5,), dtype="int32"), layers.Embedding(20, 8, mask_zero=True), layers.LSTM(4),
        layers.Dense(2, activation="softmax"),
    ])  # fmt: skip


def free_text(recurrent: bool = False) -> Any:
    pooled = layers.GRU(4) if recurrent else layers.GlobalAveragePooling1D()
    return keras.Sequential([
        keras.Input((None,), dtype="int32"), layers.Embedding(20, 8), pooled,
        layers.Dense(2, activation="softmax"),
    ])  # fmt: skip


def photos() -> Any:
    return keras.Sequential([
        keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.1), layers.Conv2D(4, 3, padding="same"),
        layers.GlobalAveragePooling2D(), layers.Dense(2), layers.Softmax(),
    ])  # fmt: skip


def pixels() -> Any:
    return keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(4, 3, padding="same", activation="relu"),
        layers.Conv2D(2, 1, activation="softmax"),
    ])  # fmt: skip


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(2, activation="softmax")

    def call(self, x: Any) -> Any:
        return self.dense(self.flatten(x))


def channels_last(inputs: Mapping[str, Any]) -> Any:
    return inputs["image"].transpose(0, 2, 3, 1)


def flat(inputs: Mapping[str, Any]) -> Any:
    return inputs["image"].reshape(len(inputs["image"]), -1)


def as_is(inputs: Mapping[str, Any]) -> Any:
    return next(iter(inputs.values())) if len(inputs) == 1 else dict(inputs)


IMAGE, TEXT = {"image": IMAGES}, {"tokens": TOKENS}
COLORS = {"image": (IMAGES.repeat(3, 1) * 255).astype(np.uint8)}
FREE = {"dynamic": {"tokens": {1: "length"}}, "sizes": {"length": (1, 12)}}
# Name → recipe, and the way of its inputs into Keras's own `predict`.
CASES: dict[str, tuple[Recipe[Any], Callable[..., Any]]] = {
    "loop": (recipe("loop", IMAGE, HALVES, convolutional), channels_last),
    "fit": (
        recipe("fit", IMAGE, HALVES, lambda: compiled(convolutional()), Fit,
               callbacks=lambda: [keras.callbacks.ReduceLROnPlateau(patience=1)]),
        channels_last,
    ),
    "binary": (
        recipe("binary", IMAGE, HALVES, lambda: compiled(binary(), "binary_crossentropy"), Fit),
        flat,
    ),
    "without-input": (
        recipe("unbuilt", IMAGE, HALVES,
               lambda: keras.Sequential([layers.Flatten(), layers.Dense(2, activation="softmax")])),
        as_is,
    ),
    "subclassed": (recipe("subclassed", IMAGE, HALVES, Subclassed), as_is),
    "two-in-two-out": (
        recipe(
            "two", {"second": SECOND, "first": FIRST}, FIRST.sum(1) - SECOND.sum(1),
            two_in_two_out, task="regression", labels=(),
            outputs={"value": "value", "other": "tensor"},
            loss=lambda model, inputs, target: (model(*inputs)[0][:, 0] - target).square().mean(),
        ),
        as_is,
    ),
    "lstm": (recipe("lstm", TEXT, LATE, lstm), as_is),
    "free-text": (recipe("text", TEXT, LATE, lambda: free_text(), **FREE), as_is),
    "photos": (recipe("photos", COLORS, HALVES, photos),
               channels_last),
    "pixels": (
        recipe("pixels", IMAGE, (IMAGES[:, 0] > 0.5).astype(np.int64), pixels, task="segmentation"),
        channels_last,
    ),
    "multilabel": (
        recipe("multi", IMAGE, np.stack([HALVES, 1 - HALVES], 1),
               lambda: keras.Sequential([
                   keras.Input((8, 8)), layers.Flatten(), layers.Dense(2, activation="sigmoid"),
               ]), task="multilabel"),
        lambda inputs: inputs["image"][:, 0],
    ),
}  # fmt: skip


# --- what is written


def fit(chosen: Recipe[Any], **more: Any) -> Trained:
    settings = more.pop("settings", None) or chosen.hyperparameters()
    return trainer.fit(chosen, settings, chosen.load_data({}, settings), device=CPU, **more)


def write(folder: Path, trained: Trained, own_inputs: Callable[..., Any]) -> None:
    """Export a model; write Keras's own answers to its test rows beside it."""
    graphs.save(model_exporter.export(trained), folder / "model.onnx")
    inputs = dict(trained.data.test.inputs)
    answers = trained.model.keras.predict(own_inputs(inputs), verbose=0)
    arrays = answers if isinstance(answers, list) else [answers]
    first = at_temperature(arrays[0], trained)
    named = dict(zip(trained.recipe.output_kinds, [first, *arrays[1:]], strict=True))
    np.savez(
        folder / "expected.npz",
        **{f"in:{name}": values for name, values in inputs.items()},
        **{f"out:{name}": values for name, values in named.items()},
    )


def at_temperature(probabilities: Any, trained: Trained) -> Any:
    """Return the probabilities of a classifier at its calibrated temperature."""
    if trained.recipe.task != "classification":
        return probabilities
    if probabilities.shape[1] == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities], 1)
    raised = probabilities.astype(np.float64) ** (1 / trained.temperature)
    return (raised / raised.sum(1, keepdims=True)).astype(np.float32)


# --- what is checked


def same(one: Trained, other: Trained) -> bool:
    """Return whether two runs end with the same weights, bit for bit."""
    return all(map(torch.equal, one.model.weights, other.model.weights))


def stopped_after(chosen: Recipe[Any], folder: Path, **more: Any) -> str:
    """Train until a stop that comes after the first epoch; return where it stopped."""
    stop = checkpoint.Stop()

    def watch(row: checkpoint.Row) -> None:
        stop.requested = row["epoch"] == 1

    try:
        fit(chosen, checkpoints=folder, stop=stop, watch=watch, **more)
    except checkpoint.Interrupted as error:
        return str(error)
    return ""


def resuming(folder: Path, name: str) -> dict[str, Any]:
    chosen = CASES[name][0]
    settings = chosen.hyperparameters(epochs=3, batch_size=32)
    whole = fit(chosen, settings=settings)
    where = stopped_after(chosen, folder, settings=settings)
    resumed = fit(chosen, settings=settings, checkpoints=folder)
    other = fit(chosen, settings=replace(settings, seed=1))
    return {
        "stopped": where, "same": same(whole, resumed), "other_seed": same(whole, other),
        "epochs": [row["epoch"] for row in resumed.history],
        "columns": sorted(resumed.history[-1]),
    }  # fmt: skip


def stop_in_an_epoch(folder: Path) -> dict[str, Any]:
    """Stop Keras's fit in the middle of its second epoch, and resume."""
    stop = checkpoint.Stop()

    class Ends(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            stop.requested = self.epoch == 1 and batch == 1

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

    chosen = replace(CASES["fit"][0], callbacks=lambda: [Ends()])
    settings = Fit(epochs=3, batch_size=32)
    where = ""
    try:
        fit(chosen, settings=settings, stop=stop, checkpoints=folder)
    except checkpoint.Interrupted as error:
        where = str(error)
    plain = replace(chosen, callbacks=None)
    resumed = fit(plain, settings=settings, checkpoints=folder)
    return {"stopped": where, "same": same(fit(plain, settings=settings), resumed)}


def modes() -> dict[str, Any]:
    """Check dropout, batch normalisation and regularization in training and evaluation."""
    trained = fit(CASES["loop"][0])
    network, images = trained.model, torch.from_numpy(IMAGES[:16])
    target = torch.from_numpy(HALVES[:16])
    network.eval()
    moving = [weight.clone() for weight in network.weights]
    evaluated = torch.equal(network(images), network(images))
    kept = all(map(torch.equal, moving, network.weights))
    network.train()
    differ = not torch.equal(network(images), network(images))
    moved = not all(map(torch.equal, moving, network.weights))
    torch.manual_seed(0)
    plain = losses.cross_entropy(network, (images,), target)
    torch.manual_seed(0)
    whole = engines.Objective(network, losses.cross_entropy)((images,), target)
    kernel = network.keras.layers[0].kernel.value
    return {
        "evaluation_repeats": evaluated, "evaluation_keeps": kept, "dropout_differs": differ,
        "moving_averages_move": moved,
        "penalty": float(whole - plain), "expected_penalty": float(0.01 * kernel.square().sum()),
        "softmax_stays": network.keras.layers[-1].activation is keras.activations.softmax,
    }  # fmt: skip


def frozen() -> dict[str, bool]:
    """Check that a layer that is not trainable keeps its weights, in both ways of training."""
    unchanged = {}
    for name, finish in (("loop", lambda model: model), ("fit", compiled)):
        kept: dict[str, Any] = {}

        def model(*, finish: Any = finish, kept: Any = kept) -> Any:
            made = convolutional()
            made.layers[0].trainable = False
            kept["first"] = made.layers[0].kernel.value.detach().clone()
            return finish(made)

        kind = Loop if name == "loop" else Fit
        trained = fit(recipe(name, IMAGE, HALVES, model, kind))
        unchanged[name] = torch.equal(kept["first"], trained.model.keras.layers[0].kernel.value)
    return unchanged


def early() -> dict[str, Any]:
    """Check early stopping of `fit`, and class weights."""
    chosen = CASES["fit"][0]
    impatient = fit(
        replace(chosen, callbacks=None, model=diverging), settings=Fit(epochs=40, patience=2)
    )
    stale = [row["validation_loss"] for row in impatient.history]
    loss = impatient.model.keras.evaluate(
        channels_last(impatient.data.validation.inputs), impatient.data.validation.target, verbose=0
    )[0]
    one_sided = fit(
        replace(chosen, model=plain, class_weights={"no": 0.0}), settings=Fit(epochs=20)
    )
    answers = one_sided.run(one_sided.data.test.inputs)["probabilities"]
    return {
        "epochs": len(stale), "best": min(stale), "kept": loss,
        "all_yes": bool((answers.argmax(1) == 1).all()),
    }  # fmt: skip


def plain() -> Any:
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    return model


def diverging() -> Any:
    """Return a model whose validation loss rises soon."""
    model = convolutional()
    model.compile(
        keras.optimizers.SGD(3.0), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def refusals() -> dict[str, str]:
    """Return the sentence for each recipe that cannot work."""

    def sequential(shape: tuple[int, ...], width: int) -> Any:
        return keras.Sequential([
            keras.Input(shape), layers.Flatten(), layers.Dense(width, activation="softmax"),
        ])  # fmt: skip

    broken = {
        "shape": recipe("x", IMAGE, HALVES, lambda: sequential((9, 9, 1), 2)),
        "width": recipe("x", IMAGE, HALVES, lambda: sequential((8, 8, 1), 5)),
        "width of fit": recipe("x", IMAGE, HALVES, lambda: compiled(sequential((8, 8, 1), 5)), Fit),
        "one-hot loss": recipe(
            "x", IMAGE, HALVES,
            lambda: compiled(sequential((8, 8, 1), 2), "categorical_crossentropy"), Fit,
        ),
        "settings": recipe("x", IMAGE, HALVES, lambda: compiled(convolutional())),
        "not compiled": recipe("x", IMAGE, HALVES, convolutional, Fit),
        "augment": recipe(
            "x", IMAGE, HALVES, lambda: compiled(convolutional()), Fit, augment=lambda image: image
        ),
        "names": recipe("x", {"one": FIRST, "two": SECOND}, HALVES, two_in_two_out),
        "free length": recipe("x", TEXT, LATE, lambda: free_text(recurrent=True), **FREE),
        "hidden sigmoid": recipe(
            "x", IMAGE, np.stack([HALVES] * 2, 1), HiddenSigmoid, task="multilabel"
        ),
    }  # fmt: skip
    sentences = {}
    for name, chosen in broken.items():
        try:
            fit(chosen)
            sentences[name] = "accepted"
        except TrainingError as error:
            sentences[name] = str(error)
    try:
        select.NETWORKS["prune"](fit(CASES["loop"][0]))
        sentences["prune"] = "accepted"
    except TrainingError as error:
        sentences["prune"] = str(error)
    return sentences


class HiddenSigmoid(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(2)

    def call(self, x: Any) -> Any:
        return keras.activations.sigmoid(self.dense(self.flatten(x)))


def wide() -> Any:
    return keras.Sequential([
        keras.Input((64,)), layers.Dense(512, activation="relu"), layers.Dense(256),
        layers.Dense(2, activation="softmax"),
    ])  # fmt: skip


def compressed(folder: Path) -> dict[str, Any]:
    """Compress by int8 and by a Keras student; return the operators of both graphs."""
    student = recipe("distil", IMAGE, HALVES, convolutional, student=linear)
    operators, libraries = {}, {}
    for kind, chosen in (("distil", student), ("int8", recipe("int8", IMAGE, HALVES, wide))):
        options = ["--compress", kind, "--budget", "1", "--device", "cpu"]
        result = training.run(chosen, model_dir=folder / kind, epochs=1, options=options)
        operators[kind] = sorted({node.op_type for node in onnx.load(result.path).graph.node})
        libraries = result.card["training"]["libraries"]
    return {"operators": operators, "libraries": libraries}


def linear() -> Any:
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)])


def pages(folder: Path) -> dict[str, float]:
    """Train the two examples of docs/training.md that lie in the folder; return accuracies."""
    accuracies = {}
    for name in ("keras_digits", "keras_perceptron"):
        out = folder / name.replace("_", "-")
        result = training.run(
            str(folder / f"{name}.py"), model_dir=out, options=["--device", "cpu"], epochs=3
        )
        accuracies[name] = result.metrics["accuracy"]
        own = channels_last if name == "keras_digits" else flat
        write(out, result.trained, own)
    return accuracies


def main(folder: Path) -> None:
    for name, (chosen, own_inputs) in CASES.items():
        write(folder / name, fit(chosen), own_inputs)
    found = {
        "modes": modes(),
        "resume": {
            name: resuming(folder / f"checkpoints-{name}", name) for name in ("loop", "fit")
        },
        "in an epoch": stop_in_an_epoch(folder / "checkpoints-within"),
        "frozen": frozen(),
        "early": early(),
        "refusals": refusals(),
        "compressed": compressed(folder / "compressed"),
        "pages": pages(folder),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
