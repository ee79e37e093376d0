"""Training loop: learns, prints its progress, resumes after SIGTERM bit for bit."""

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from training.data import Dataset, Examples
from training.errors import Diverged, InvalidCheckpoint, InvalidHyperparameter, InvalidRecipe
from training.fitting import augment, checkpoint, loop, losses
from training.fitting.checkpoint import Interrupted, Stop
from training.fitting.distributed import Ranks
from training.fitting.steps import engines, feed
from training.fitting.steps.schedule import rows_per_epoch, schedule
from training.hyperparameters import NetworkHyperparameters

pytestmark = pytest.mark.train
CPU = torch.device("cpu")
SETTINGS = NetworkHyperparameters(epochs=3, lr=0.01, batch_size=16, patience=2)


def make_data() -> Dataset:
    """Make noisy 8x8 images whose left or right half is bright."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 90)
    x = generator.random((90, 1, 8, 8), dtype=np.float32)
    for image, right in zip(x, y, strict=True):
        image[:, :, 4 * right : 4 * right + 4] += 1
    parts = [
        Examples({"image": x[rows]}, y[rows])
        for rows in (slice(0, 50), slice(50, 70), slice(70, 90))
    ]
    return Dataset(*parts, source="made", sha256="0", split={})  # type: ignore[arg-type, misc]


def make_model() -> Any:
    """Make a network with dropout: resuming has to restore its random numbers."""
    torch.manual_seed(1)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Dropout(0.3)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(4 * 36, 2))


def wobble(images: Any) -> Any:
    return augment.affine(images, turn=0.1, zoom=0.1, shift=0.1)


class StopAfter(Stop):
    """SIGTERM that arrives during step `steps`, counted from the start."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


def train(
    model: Any, settings: NetworkHyperparameters = SETTINGS, **more: Any
) -> list[dict[str, float]]:
    more = {"loss": losses.cross_entropy, "augment": wobble} | more
    return loop.fit(model, more.pop("data", None) or make_data(), settings, device=CPU, **more)


def test_the_loop_learns_and_prints_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    history = train(make_model(), score=lambda _: {"accuracy": 0.5})
    lines = capsys.readouterr().out.splitlines()

    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]
    assert lines[2].startswith("epoch 3/3  loss=")
    for word in ("validation_loss=", "validation_accuracy=0.5", "rate=", "left=0s"):
        assert word in lines[2]


@pytest.mark.parametrize("steps", range(12))  # 3 inner steps and the end of each of 3 epochs
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, steps: int
) -> None:
    whole = make_model()
    history = train(whole)
    first = make_model()
    with pytest.raises(Interrupted):
        train(first, checkpoints=tmp_path, stop=StopAfter(steps))
    second = make_model()
    resumed = train(second, checkpoints=tmp_path)

    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name]), name
    for name in ("loss", "validation_loss"):
        assert [row[name] for row in resumed] == [row[name] for row in history]


def test_a_finished_run_is_not_trained_again_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_model(), make_model()
    train(first, checkpoints=tmp_path)
    assert "warning" not in capsys.readouterr().out
    train(second, checkpoints=tmp_path)

    message = "warning: checkpoint.pt holds this run after its end, at epoch 3: nothing is trained"
    assert message in capsys.readouterr().out
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(make_model(), checkpoints=tmp_path)

    with pytest.raises(InvalidCheckpoint, match=r"with other settings \(lr 0.01 → 0.02\); remove"):
        train(make_model(), replace(SETTINGS, lr=0.02), checkpoints=tmp_path)


def test_a_checkpoint_of_another_network_is_refused_in_one_sentence(tmp_path: Path) -> None:
    train(make_model(), checkpoints=tmp_path)
    wider = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))

    with pytest.raises(InvalidCheckpoint, match="holds another network than the recipe's") as error:
        train(wider, checkpoints=tmp_path)
    assert "\n" not in str(error.value)


def test_a_torn_checkpoint_is_refused_and_no_run_leaves_one(tmp_path: Path) -> None:
    (tmp_path / checkpoint.FILE).write_bytes(b"half")

    with pytest.raises(InvalidCheckpoint, match="cannot be read; remove it"):
        train(make_model(), checkpoints=tmp_path)

    (tmp_path / checkpoint.FILE).unlink()
    train(make_model(), checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


def test_more_epochs_extend_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_model(), checkpoints=tmp_path)
    model = make_model()

    history = train(model, replace(SETTINGS, epochs=5, patience=0), checkpoints=tmp_path)

    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert "the run is extended from 3 to 5 epochs" in capsys.readouterr().out
    with pytest.raises(InvalidCheckpoint, match="epochs 5 → 4"):
        train(make_model(), replace(SETTINGS, epochs=4), checkpoints=tmp_path)


def test_a_stop_without_a_checkpoint_folder_says_that_all_is_lost(tmp_path: Path) -> None:
    for steps in (2, 3):  # within the first epoch, and at its end
        with pytest.raises(Interrupted, match="all of it is lost: --checkpoint-dir DIR"):
            train(make_model(), stop=StopAfter(steps))
        with pytest.raises(Interrupted) as saved:
            train(make_model(), stop=StopAfter(steps), checkpoints=tmp_path / str(steps))
        assert "lost" not in str(saved.value)


class LateAfter(Stop):
    """Time limit that is reached after `steps` steps."""

    deadline = 1e9

    def __init__(self, steps: int) -> None:
        self.left = steps

    @property
    def is_late(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("steps", range(1, 11))
def test_a_run_out_of_time_ends_with_its_best_weights(
    tmp_path: Path, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, limited, resumed = make_model(), make_model(), make_model()
    weights: list[Any] = []  # after each epoch, with its validation loss

    def watch(row: Any) -> None:
        copies = {name: value.clone() for name, value in whole.state_dict().items()}
        weights.append((row["validation_loss"], copies))

    settings = replace(SETTINGS, patience=0)
    train(whole, settings, watch=watch)
    history = train(limited, settings, stop=LateAfter(steps), checkpoints=tmp_path)

    assert len(history) == (steps + 1) // 4  # three votes within an epoch, and one at its end
    assert "time limit: trained for" in capsys.readouterr().out
    if history:
        best = min(weights[: len(history)], key=lambda pair: pair[0])[1]
        assert all(torch.equal(best[name], value) for name, value in limited.state_dict().items())
    train(resumed, settings, checkpoints=tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_a_run_within_its_time_limit_ends_with_its_last_weights() -> None:
    plain, limited = make_model(), make_model()
    settings = replace(SETTINGS, patience=0)
    train(plain, settings)
    train(limited, settings, stop=LateAfter(1000))

    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), limited.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("environ", "limit_s", "left_s"),
    [
        ({}, None, math.inf),
        ({}, 100, 50),
        ({"MAYFLY_MAX_RUNTIME_S": "3600"}, None, 3240),
        ({"MAYFLY_MAX_RUNTIME_S": "3600", "MAYFLY_STARTED_AT": "0"}, None, -1e9),
        ({"MAYFLY_MAX_RUNTIME_S": "3600"}, 1000, 900),
    ],
)
def test_the_time_limit_keeps_a_reserve_for_the_export(
    environ: dict[str, str], limit_s: float | None, left_s: float
) -> None:
    before = time.monotonic()
    deadline = Stop().limit(environ, limit_s).deadline

    if left_s > 0:
        assert before + left_s <= deadline <= time.monotonic() + left_s
    else:
        assert deadline < before


def test_training_starts_from_the_best_weights_of_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_model(), make_model()
    train(first, checkpoints=tmp_path)
    checkpoint.load_weights(second, tmp_path)

    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert "weights of checkpoint.pt: 4 of 4 tensors\n" in capsys.readouterr().out


def test_a_new_last_layer_is_named_when_weights_are_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    torch.save(model.state_dict(), tmp_path / "old.pt")
    wider = torch.nn.Sequential(*list(model)[:4], torch.nn.Linear(4 * 36, 3))

    checkpoint.load_weights(wider, tmp_path / "old.pt")

    expected = "weights of old.pt: 2 of 4 tensors; as initialised: 4.weight, 4.bias\n"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"half", [1, 2], {"other": torch.zeros(2)}])
def test_unusable_weights_are_refused_in_one_sentence(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "old.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)

    with pytest.raises(InvalidCheckpoint, match="--weights old.pt: no"):
        checkpoint.load_weights(make_model(), path)


def rates(kind: str, warm_up: float = 0.1) -> list[float]:
    return [schedule(step, 100, kind, warm_up) for step in range(100)]


@pytest.mark.parametrize(
    ("kind", "middle", "last"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1, 1)]
)
def test_the_learning_rate_warms_up_and_decays_by_its_schedule(
    kind: str, middle: float, last: float
) -> None:
    shares = rates(kind)

    assert shares[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert shares[10] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[55] == pytest.approx(middle)
    assert shares[-1] == pytest.approx(last, abs=0.02)


def test_without_warm_up_the_rate_starts_at_its_highest() -> None:
    assert rates("linear", 0.0)[0] == 1.0


def make_weak_data(rows: int = 200) -> Dataset:
    """Make 20 columns: column 3 predicts the target, the others are noise."""
    generator = np.random.default_rng(2)
    x = generator.standard_normal((rows, 20)).astype(np.float32)
    y = (2 * x[:, 3] + 0.1 * generator.standard_normal(rows)).astype(np.float32)
    half = rows // 2
    parts = [
        Examples({"x": x[part]}, y[part])
        for part in (slice(0, half), slice(half, rows), slice(half, rows))
    ]
    return Dataset(*parts, source="made", sha256="0", split={})  # type: ignore[arg-type, misc]


def make_linear(columns: int = 20) -> Any:
    torch.manual_seed(3)
    return torch.nn.Linear(columns, 1)


def fit_linear(**settings: Any) -> Any:
    model = make_linear()
    chosen = {"epochs": 60, "lr": 0.03, "batch_size": 25, "weight_decay": 0.0} | settings
    train(
        model,
        NetworkHyperparameters(**chosen),
        data=make_weak_data(),
        loss=losses.mse,
        augment=None,
    )
    return model


def test_l1_makes_useless_weights_zero_and_keeps_the_useful_one() -> None:
    sparse, dense = fit_linear(l1=0.2), fit_linear()

    zeros = (sparse.weight == 0).squeeze()
    assert zeros.sum() == 19
    assert abs(sparse.weight[0, 3].item() - 2) < 0.4
    assert not (dense.weight == 0).any()


def test_l2_makes_weights_small_and_leaves_biases_alone() -> None:
    plain, decayed = fit_linear(), fit_linear(weight_decay=5.0)
    groups = engines.optimizer(plain, NetworkHyperparameters(weight_decay=5.0), CPU).param_groups

    assert decayed.weight.norm() < 0.8 * plain.weight.norm()
    assert [(len(group["params"][0].shape), group["weight_decay"]) for group in groups] == [
        (2, 5.0),
        (1, 0.0),
    ]


class Recorder(torch.optim.SGD):  # type: ignore[misc]
    """SGD that records the norm of each gradient, and the learning rates."""

    norms: list[float]
    rates: list[float]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        grads = [weight.grad for group in self.param_groups for weight in group["params"]]
        self.norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
        self.rates += {group["lr"] for group in self.param_groups}
        super().step(closure)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Replace the optimizer of every run with a recorder."""
    records = Recorder([torch.nn.Parameter(torch.zeros(1))], 0.1)
    records.norms, records.rates = [], []

    def make(model: Any, settings: Any, device: Any) -> Any:
        made = Recorder(model.parameters(), settings.lr)
        made.norms, made.rates = records.norms, records.rates
        return made

    monkeypatch.setattr(engines, "optimizer", make)
    return records


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_clipping_bounds_the_gradient(recorder: Recorder, clip: float) -> None:
    fit_linear(clip=clip, epochs=2, l1=0.0)

    assert len(recorder.norms) == 8
    if clip:
        assert max(recorder.norms) <= 0.5 + 1e-5
    else:
        assert max(recorder.norms) > 1


def test_clipping_limits_the_influence_of_an_outlier() -> None:
    data = make_weak_data()
    data.train.target[0] = 1e4

    def miss(clip: float) -> float:
        model = make_linear()
        settings = NetworkHyperparameters(
            epochs=60, lr=0.03, batch_size=10, weight_decay=0.0, clip=clip
        )
        train(model, settings, data=data, loss=losses.mse, augment=None)
        (predicted,) = loop.predict(model, data.test.inputs, CPU)
        return float(np.abs(predicted[:, 0] - data.test.target).mean())

    assert miss(clip=1.0) < 0.5 * miss(clip=0.0)


def test_the_optimizer_gets_the_rate_of_each_step(recorder: Recorder) -> None:
    fit_linear(epochs=5, lr=0.01, warm_up=0.2, schedule="linear")

    assert recorder.rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert recorder.rates[4:] == pytest.approx([0.01 * (1 - step / 16) for step in range(16)])


def test_a_decaying_rate_ends_nearer_to_the_optimum_than_a_constant_one() -> None:
    data = make_weak_data()
    x, y = np.column_stack([data.train.inputs["x"], np.ones(100)]), data.train.target
    best = np.linalg.lstsq(x, y, rcond=None)[0][:20]
    falling, constant = (
        fit_linear(schedule=kind, lr=0.05, batch_size=4, epochs=20).weight.detach().numpy()[0]
        for kind in ("cosine", "constant")
    )

    assert np.abs(falling - best).max() < 0.5 * np.abs(constant - best).max()


def test_early_stopping_restores_the_best_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ten rows of 40 columns make the network overfit."""
    generator = np.random.default_rng(5)
    x, y = (
        generator.standard_normal((60, 40), np.float32),
        generator.standard_normal(60, np.float32),
    )
    parts = [
        Examples({"x": x[part]}, y[part]) for part in (slice(0, 10), slice(10, 60), slice(10, 60))
    ]
    data = Dataset(*parts, source="made", sha256="0", split={})  # type: ignore[arg-type, misc]
    model = make_linear(40)
    settings = NetworkHyperparameters(
        epochs=200, lr=0.05, batch_size=10, patience=3, schedule="constant"
    )
    history = train(model, settings, data=data, loss=losses.mse, augment=None)

    losses_seen = [row["validation_loss"] for row in history]
    best = losses_seen.index(min(losses_seen))
    assert len(history) == best + 1 + 3 < 200
    (prediction,) = loop.predict(model, data.validation.inputs, CPU)
    assert np.mean((prediction[:, 0] - y[10:]) ** 2) == pytest.approx(min(losses_seen), rel=1e-5)
    assert f"the weights of epoch {best + 1} are kept" in capsys.readouterr().out

    to_the_end = train(
        make_linear(40), replace(settings, patience=0), data=data, loss=losses.mse, augment=None
    )
    assert len(to_the_end) == 200
    assert to_the_end[-1]["validation_loss"] > 1.1 * min(losses_seen)


def test_bf16_is_close_to_fp32_and_not_the_same() -> None:
    seen: list[Any] = []
    watching = torch.nn.modules.module.register_module_forward_hook(
        lambda module, x, y: seen.append(y.dtype)
    )
    try:
        full = fit_linear()
        assert set(seen) == {torch.float32}
        seen.clear()
        half = fit_linear(precision="bf16")
    finally:
        watching.remove()

    assert torch.bfloat16 in seen
    assert torch.allclose(full.weight, half.weight, atol=0.05)
    assert not torch.equal(full.weight, half.weight)
    assert half.weight.dtype == torch.float32


def test_a_batch_in_parts_gives_the_gradient_of_the_whole() -> None:
    whole, parts = fit_linear(), fit_linear(accumulate=4)

    assert torch.allclose(whole.weight, parts.weight, atol=1e-4)


def test_the_huber_loss_weighs_outliers_less() -> None:
    outlier = torch.tensor([0.0, 0.0, 0.0, 100.0])

    def loss(kind: str) -> float:
        constant = torch.nn.Linear(1, 1, bias=False)
        return losses.choose("regression", kind)(constant, (torch.zeros(4, 1),), outlier).item()

    assert loss("huber") < loss("mse") / 50


def test_next_token_leaves_out_ignored_targets() -> None:
    class Fixed(torch.nn.Module):  # type: ignore[misc]
        def forward(self, tokens: Any) -> Any:
            return torch.nn.functional.one_hot(tokens, 5).float() * 10

    tokens = torch.tensor([[1, 2, 3]])
    right, padded = torch.tensor([[1, 2, 3]]), torch.tensor([[1, losses.IGNORED, 3]])
    wrong = torch.tensor([[1, 4, 3]])

    assert losses.next_token(Fixed(), (tokens,), right) < 0.01
    assert losses.next_token(Fixed(), (tokens,), padded) < 0.01
    assert losses.next_token(Fixed(), (tokens,), wrong) > 3


def test_the_contrastive_loss_is_low_where_pairs_match() -> None:
    rows = torch.nn.functional.normalize(
        torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=1
    )

    assert losses.contrastive(rows, rows) < 0.1 < losses.contrastive(rows, rows.roll(1, 0))


def test_steps_on_device_compute_the_weights_of_eager_steps() -> None:
    """Runs on the CPU what a CUDA graph would record; the last batch of an epoch is smaller."""
    data = make_weak_data(134).train  # 67 rows: two batches of 25 and one of 17
    inputs, target = (torch.from_numpy(data.inputs["x"]),), torch.from_numpy(data.target)
    settings = NetworkHyperparameters(epochs=2, lr=0.03, batch_size=25, l1=0.01, clip=1.0)
    weights = []
    for graphed in (False, True):
        model = make_linear()
        optimizer = engines.optimizer(model, settings, CPU)
        objective = engines.Objective(model, losses.mse)
        update = engines.Update(
            objective, optimizer, inputs, target, settings, None, Ranks(), torch.zeros(())
        )
        rates = [settings.lr * schedule(step, 6) for step in range(6)]
        engine = (
            engines.Graphed(update, rates, 25, 67, CPU)
            if graphed
            else engines.Eager(update, rates, 25)
        )
        for epoch in range(2):
            engine.start_epoch(
                torch.randperm(67, generator=torch.Generator().manual_seed(epoch)), 0, 3 * epoch
            )
            for step in range(3):
                engine.step_on_device() if graphed and step < 2 else engine.step()
                engine._step = step + 1
        weights.append(model.weight.detach())

    assert torch.allclose(*weights, atol=1e-6)
    assert not torch.equal(weights[0], make_linear().weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_computes_the_weights_of_eager_steps() -> None:
    weights = []
    for engine in ("eager", "graph"):
        model = make_linear()
        settings = NetworkHyperparameters(
            epochs=4,
            lr=0.03,
            batch_size=24,
            precision="fp32",
            engine=engine,
            l1=0.01,
            clip=1.0,
        )
        loop.fit(model, make_weak_data(), settings, device=torch.device("cuda"), loss=losses.mse)
        weights.append(model.weight.detach().cpu())

    assert torch.allclose(*weights, atol=1e-4)


@pytest.mark.stress  # the compiler takes a minute, and a C++ compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own
def test_a_compiled_step_computes_the_weights_of_eager_steps() -> None:
    plain, compiled = fit_linear(epochs=3), fit_linear(epochs=3, engine="compile")

    assert torch.allclose(plain.weight, compiled.weight, atol=1e-5)


def test_a_cuda_graph_is_refused_on_a_cpu() -> None:
    with pytest.raises(InvalidHyperparameter, match="engine: 'graph' needs one GPU"):
        fit_linear(engine="graph")


def test_a_loss_of_nan_ends_the_run_in_one_sentence() -> None:
    with pytest.raises(Diverged, match="the loss is nan in epoch 1: lower lr, or set clip=1"):
        train(
            make_linear(),
            data=make_weak_data(),
            augment=None,
            loss=lambda m, x, y: m(*x).mean() * float("nan"),
        )


def test_a_diverging_run_is_one_sentence_and_no_traceback_of_the_metrics() -> None:
    """Weights become infinite in the last update; a metric would refuse NaN."""

    def score(model: Any) -> dict[str, float]:
        raise ValueError("Input contains NaN.")

    settings = NetworkHyperparameters(epochs=1, lr=1e30, batch_size=100, warm_up=0.0)
    with pytest.raises(Diverged, match="diverged: the validation loss is (nan|inf)"):
        train(
            make_linear(),
            settings,
            data=make_weak_data(),
            augment=None,
            loss=losses.mse,
            score=score,
        )


def make_normalized(rows: int, **settings: Any) -> Any:
    """Train a network with BatchNorm after a dense layer; return it with its history."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(20, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)]
    model = torch.nn.Sequential(*layers)
    chosen = NetworkHyperparameters(**{"epochs": 2, "batch_size": 8} | settings)
    data = make_weak_data(2 * rows)
    return model, train(model, chosen, data=data, augment=None, loss=losses.mse)


@pytest.mark.parametrize(("rows", "settings"), [(17, {}), (19, {"accumulate": 2})])
def test_batch_norm_trains_where_a_last_row_is_left_alone(
    rows: int, settings: dict[str, int]
) -> None:
    model, history = make_normalized(rows, **settings)

    assert len(history) == 2
    assert model[1].num_batches_tracked == 2 * 2 * settings.get("accumulate", 1)


@pytest.mark.parametrize(
    "settings", [{"batch_size": 1}, {"batch_size": 3, "accumulate": 2}, {"accumulate": 8}]
)
def test_batches_too_small_for_batch_norm_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(
        InvalidHyperparameter, match="batch_size: BatchNorm needs two rows at least"
    ):
        make_normalized(32, **settings)


@pytest.mark.parametrize(
    ("last", "processes", "accumulate", "is_trained"),
    [(1, 1, 1, False), (2, 1, 1, True), (3, 2, 1, False), (4, 2, 1, True), (7, 2, 2, False),
     (8, 2, 2, True), (1, 4, 1, False), (5, 1, 2, True), (3, 1, 2, False)],
)  # fmt: skip
def test_no_process_and_no_part_of_a_batch_is_left_with_one_row(
    last: int, processes: int, accumulate: int, is_trained: bool
) -> None:
    rows = rows_per_epoch(64 + last, 32, processes, accumulate)

    assert rows == 64 + last * is_trained


def test_batch_norm_of_images_uses_every_row() -> None:
    """Train on a single image, which has many values for each channel."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(72, 2))
    train(model, replace(SETTINGS, epochs=1, batch_size=49))

    assert model[1].num_batches_tracked == 2  # 49 rows, and one


def test_data_that_do_not_fit_the_network_are_named_with_their_shapes() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        train(make_linear(19), data=make_weak_data(), augment=None, loss=losses.mse)

    assert str(caught.value).startswith(
        "the data do not go through the model (x [2, 20], target [2] float32): "
    )
    assert "\n" not in str(caught.value)


def test_a_watcher_gets_every_epoch_and_may_end_the_run() -> None:
    class Enough(Exception):
        pass

    seen: list[Any] = []

    def watch(row: Any) -> None:
        seen.append(row["epoch"])
        if len(seen) == 2:
            raise Enough

    with pytest.raises(Enough):
        train(make_model(), watch=watch)
    assert seen == [1, 2]


def test_waiting_threads_do_not_spin() -> None:
    """OpenMP prints its settings when it is loaded, which torch's import does."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}

    done = subprocess.run(
        [sys.executable, "-c", "import training.train"],
        env=environment | {"OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


def test_text_for_a_network_names_the_preprocessors() -> None:
    words = Examples({"plan": np.array([["a"], ["b"]], object)}, np.array([0, 1]))

    with pytest.raises(InvalidRecipe, match=r"plan is text.* CategoryPreprocessor .*churn\.py"):
        feed.check_numbers(words.inputs)
