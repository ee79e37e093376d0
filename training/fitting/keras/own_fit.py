"""Training of a compiled Keras model by `fit`, with our checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data import Dataset, Examples
from training.errors import Diverged, InvalidRecipe
from training.fitting import checkpoint
from training.fitting.checkpoint import Row, RunState
from training.fitting.distributed import Ranks
from training.fitting.keras import backend
from training.fitting.keras.network import KerasNetwork
from training.fitting.progress import Progress
from training.hyperparameters import FitHyperparameters

SEED_LIMIT = 2**32  # NumPy's seeds are below it
REASON_SHOWN = 300  # characters of Keras's message in an error

Score = Callable[[], Row]  # metrics on the validation part


def fit(
    network: KerasNetwork,
    data: Dataset,
    weights: Mapping[str, NDArray[np.float32]],
    settings: FitHyperparameters,
    *,
    device: torch.device,
    score: Score,
    callbacks: Sequence[Any] = (),
    checkpoints: Path | None = None,
    identity: dict[str, Any] | None = None,
    stop: checkpoint.Stop | None = None,
    watch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train a compiled Keras model in place; return each epoch's metrics.

    A row has epoch, loss, what the model was compiled to measure, validation_loss, the metrics of
    `score`, and examples_per_s. `weights` are those of rows, by "train" and "validation". After
    each epoch a checkpoint is saved; a run that resumes ends with the weights of one that was never
    interrupted, if the state of its `callbacks` does not matter.

    Raises:
        InvalidRecipe: the data do not fit what the model was compiled for.
        Diverged: the loss is NaN or infinite.
        Interrupted: `stop` was requested; the checkpoint holds the last finished epoch.
    """
    keras = backend.load()
    model = network.to(device).keras
    stop = stop or checkpoint.Stop()
    with keras.device(str(device)):
        model.optimizer.build(model.trainable_variables)
        state = RunState(
            model=network,
            optimizer=_OptimizerState(model.optimizer),  # type: ignore[arg-type]
            identity={"settings": asdict(settings), "processes": 1} | (identity or {}),
            folder=checkpoints,
            ranks=Ranks(),
            loss_sum=torch.zeros(()),
        )
        train = _arrays(network, data.train, weights.get("train"))
        validation = _arrays(network, data.validation, weights.get("validation"))
        _try_out(model, train)
        state.restore()
        run = _Run(model, state, settings, stop, score, watch, len(data.train))
        if not run.is_complete:
            model.fit(
                *train[:2],
                sample_weight=train[2],
                validation_data=validation,
                batch_size=settings.batch_size,
                epochs=settings.epochs,
                initial_epoch=state.epoch,
                callbacks=[*callbacks, run.callback(keras)],
                verbose=0,
            )
        run.load_best()
    return state.history


class _OptimizerState:
    """State of a Keras optimizer, in the form of torch's optimizers."""

    def __init__(self, optimizer: Any) -> None:
        self._variables = optimizer.variables

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the optimizer's variables, a copy of each."""
        return {
            str(number): variable.value.detach().clone()
            for number, variable in enumerate(self._variables)
        }

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the optimizer's variables.

        Raises:
            ValueError: they are those of another optimizer.
        """
        if len(saved) != len(self._variables):
            raise ValueError("the optimizer has other variables")
        for number, variable in enumerate(self._variables):
            variable.assign(saved[str(number)])


def _arrays(
    network: KerasNetwork, examples: Examples, weights: NDArray[np.float32] | None
) -> tuple[Any, NDArray[Any], NDArray[np.float32] | None]:
    """Return inputs, target and row weights as Keras's `fit` takes them."""
    tensors = [torch.from_numpy(np.ascontiguousarray(each)) for each in examples.inputs.values()]
    inputs = backend.load().tree.map_structure(lambda each: each.numpy(), network.arrange(tensors))
    return inputs, np.asarray(examples.target), weights


def _try_out(model: Any, arrays: tuple[Any, NDArray[Any], NDArray[np.float32] | None]) -> None:
    """Check on two rows that data, model and compiled loss fit together.

    Raises:
        InvalidRecipe: they do not; the message is Keras's.
    """
    keras = backend.load()
    inputs, target, weights = keras.tree.map_structure(
        lambda array: None if array is None else array[:2], arrays
    )
    try:
        model.test_on_batch(inputs, target, sample_weight=weights)
    except Exception as error:  # a loss or metric may raise anything
        reason = " ".join(str(error).split())[:REASON_SHOWN]
        classes = target.dtype.kind in "iu" and target.ndim == 1
        hint = "; class numbers take the loss sparse_categorical_crossentropy" if classes else ""
        raise InvalidRecipe(
            f"the compiled Keras model does not take the data, target {list(target.shape)} "
            f"{target.dtype}{hint}: {reason}"
        ) from error
    model.reset_metrics()


@dataclass
class _Run:
    """Run of Keras's `fit`: our rows, checkpoints and early end of it."""

    model: Any
    state: RunState
    settings: FitHyperparameters
    stop: checkpoint.Stop
    score: Score
    watch: Callable[[Row], None] | None
    rows: int
    is_late: bool = False  # the time limit has ended training
    started: float = 0.0  # time.monotonic() at the start of the epoch
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(self.state.epoch, self.settings.epochs, self.state.ranks)

    @property
    def is_complete(self) -> bool:
        """Return whether all epochs are done, or early stopping has ended training."""
        stale = 0 < self.settings.patience <= self.state.stale
        return stale or self.state.epoch >= self.settings.epochs

    def callback(self, keras: Any) -> Any:
        """Return the callback of Keras that keeps our records."""
        return keras.callbacks.LambdaCallback(
            on_epoch_begin=self._begin, on_train_batch_end=self._batch, on_epoch_end=self._end
        )

    def _begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002  (Keras passes it by name)
        seed = (self.settings.seed * 1_000_003 + epoch) % SEED_LIMIT
        backend.load().utils.set_random_seed(seed)
        self.started = time.monotonic()

    def _batch(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002  (Keras passes it by name)
        if self.stop.requested:
            raise self._interrupted(f"in epoch {self.state.epoch + 1}")
        if self.stop.is_late:
            self.is_late = self.model.stop_training = True

    def _end(self, epoch: int, logs: Mapping[str, float]) -> None:
        if self.is_late:
            return
        row = self._row(epoch, logs)
        self.state.epoch = epoch + 1
        self.state.history.append(row)
        self.state.keep_best(row["validation_loss"])
        self.state.save()
        self.progress.epoch(row, self.settings.epochs, self.state.epoch)
        if self.watch is not None:
            self.watch(row)
        if self.stop.requested:
            raise self._interrupted(f"after epoch {self.state.epoch}")
        if self.is_complete:
            self.model.stop_training = True

    def _row(self, epoch: int, logs: Mapping[str, float]) -> Row:
        measured = {name: float(value) for name, value in logs.items()}
        for name in ("loss", "val_loss"):
            if not math.isfinite(measured[name]):
                raise Diverged(
                    f"diverged: the {name} is {measured[name]} in epoch {epoch + 1}: compile the "
                    "model with a lower learning rate"
                )
        named = {
            f"validation_{name.removeprefix('val_')}" if name.startswith("val_") else name: value
            for name, value in measured.items()
        }
        rate = self.rows / max(time.monotonic() - self.started, 1e-9)
        ours = {f"validation_{name}": value for name, value in self.score().items()}
        return {"epoch": epoch + 1, **named, **ours, "examples_per_s": rate}

    def _interrupted(self, place: str) -> checkpoint.Interrupted:
        saved = self.state.folder is not None
        fate = f"; resumes after epoch {self.state.epoch}" if saved else "; all of it is lost"
        return checkpoint.Interrupted(f"stopped {place} of {self.settings.epochs}{fate}")

    def load_best(self) -> None:
        """Load the weights of lowest validation loss after an early end."""
        state = self.state
        if self.is_late:
            print(f"time limit: trained for {state.epoch} of {self.settings.epochs} epochs")
        if state.best is None or not (self.settings.patience or self.is_late):
            return
        state.model.load_state_dict(state.best)
        print(
            f"the weights of epoch {state.epoch - state.stale} are kept: "
            f"validation_loss={state.best_loss:.4f}",
            flush=True,
        )
