"""Training benchmark: its reduced form on the CPU, its tasks, goals and arithmetic."""

import json
import signal

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from benchmarks import train_gpu
from benchmarks.harness.training import goals, tasks
from benchmarks.harness.training.loops import Training
from training.data import digits

pytestmark = pytest.mark.train
CPU = torch.device("cpu")


def test_without_a_gpu_the_goals_stay_open(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_gpu.main(["--only", "mlp", "--device", "cpu"]) == 0

    *output, last = capsys.readouterr().out.splitlines()
    assert "mlp: goal 80% of the replay floor: open, for no GPU can be used here" in output
    line = json.loads(last)
    assert line["machine"]["gpu"] is None
    assert [row["what"] for row in line["results"]] == ["mlp ours", "mlp tutorial"]
    assert all(row["reached"] and row["metric"] >= row["target"] for row in line["results"])


def failing(_task: object, _device: object) -> Training:
    raise RuntimeError("no kernel\nimage")


def fake(_task: object, _device: object) -> Training:
    return Training(seconds=3.5, once_s=3.0, epoch_s=1.0, epochs=2, metric=0.81, reached=True)


def test_a_network_that_fails_costs_the_others_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(task: tasks.Task, device: object) -> Training:
        return (failing if task.name == "mlp" else fake)(task, device)

    monkeypatch.setattr(train_gpu, "LOOPS", {"ours": first, "tutorial": fake})

    assert train_gpu.main(["--only", "mlp,cnn", "--device", "cpu"]) == 1

    *output, last = capsys.readouterr().out.splitlines()
    line = json.loads(last)
    assert "mlp: FAILED: RuntimeError: no kernel image" in output
    assert line["failures"] == {"mlp": "RuntimeError: no kernel image"}
    assert [row["what"] for row in line["results"]] == ["cnn ours", "cnn tutorial"]


def test_what_is_measured_is_printed_when_the_time_is_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(task: tasks.Task, device: object) -> Training:
        if task.name == "cnn":
            signal.raise_signal(signal.SIGTERM)
        return fake(task, device)

    monkeypatch.setattr(train_gpu, "LOOPS", {"ours": killed, "tutorial": fake})

    with pytest.raises(SystemExit):
        train_gpu.main(["--only", "mlp,cnn", "--device", "cpu"])

    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["what"] for row in line["results"]] == ["mlp ours", "mlp tutorial"]


def test_rounds_that_do_not_fit_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_gpu, "LOOPS", {"ours": fake, "tutorial": fake})
    (task,) = tasks.tasks(["mlp"], on_gpu=False)

    late = train_gpu.compare(task, CPU, rounds=3, deadline_s=0.0)
    enough = train_gpu.compare(task, CPU, rounds=3)

    assert [len(runs) for runs in late.values()] == [1, 1]  # the warm-up stands for a round
    assert [len(runs) for runs in enough.values()] == [3, 3]


def test_images_are_enlarged_from_the_training_part_alone() -> None:
    enlarged, original = tasks.enlarged(500), digits()

    assert len(enlarged.train) == 500
    (images,), (held_out,) = enlarged.train.inputs.values(), enlarged.validation.inputs.values()
    assert images.shape[1:] == held_out.shape[1:] == (1, 28, 28)
    assert (held_out == next(iter(original.test.inputs.values()))).all()
    assert enlarged.source.endswith("?enlarged=500")


def test_on_a_gpu_the_gpt_has_about_113_million_parameters() -> None:
    with torch.device("meta"):
        model = tasks.gpt(on_gpu=True).model()

    assert 100e6 < sum(weights.numel() for weights in model.parameters()) < 120e6


def test_shares_of_the_replay_floor_and_of_the_peak() -> None:
    (mlp,) = tasks.tasks(["mlp"], on_gpu=False)  # 2,000 images, 64 a step: 32 steps
    assert goals.floor_share(mlp, epoch_s=0.064, floor_s=0.001) == pytest.approx(0.5)

    (gpt,) = tasks.tasks(["gpt"], on_gpu=False)  # 400 windows of 64 bytes
    matrices = 2 * 12 * 64 * 64 + 64 * 256
    share = goals.peak_share(gpt, 1e-3, "NVIDIA H200")
    assert share == pytest.approx(6 * matrices * 400 * 64 / 1e-3 / 989e12)
    assert goals.peak_share(gpt, 1e-3, "a CPU") is None


def test_one_time_work_does_not_count_as_time_to_the_target() -> None:
    (task,) = tasks.tasks(["mlp"], on_gpu=False)  # target 0.8
    training = Training.from_epochs(
        task, ends_s=[5.0, 6.5, 8.0], epochs_s=[4.0, 1.0, 1.0], metrics=[0.5, 0.81, 0.9]
    )

    assert training == Training(
        seconds=3.5, once_s=3.0, epoch_s=1.0, epochs=2, metric=0.81, reached=True
    )


def test_a_training_that_misses_the_target_runs_to_its_end() -> None:
    (task,) = tasks.tasks(["mlp"], on_gpu=False)
    training = Training.from_epochs(
        task, ends_s=[1.0, 2.0], epochs_s=[1.0, 1.0], metrics=[0.1, 0.2]
    )

    assert not training.reached
    assert (training.seconds, training.epochs, training.metric) == (2.0, 2, 0.2)


def test_goals_are_met_or_missed_with_their_numbers() -> None:
    (mlp,) = tasks.tasks(["mlp"], on_gpu=False)  # 32 steps
    met = goals.judge_floor(mlp, epoch_s=0.064, floor_s=0.0018)
    missed = goals.judge_epoch(mlp, epoch_s=0.064)  # of 2,000 images

    assert met.sentence == "mlp: 90.0%, goal 80% of the replay floor: met"
    assert met.numbers == {"floor_us": 1800.0, "floor_share": 0.9}
    assert missed.numbers == {"epoch_ms": 1920.0}
    assert missed.sentence.endswith(": missed")


def test_the_peak_goal_stays_open_on_an_unknown_device() -> None:
    (gpt,) = tasks.tasks(["gpt"], on_gpu=False)

    assert "open" in goals.judge_peak(gpt, 1.0, "a CPU").sentence
    assert goals.judge_peak(gpt, 1e-9, "NVIDIA H200").sentence.endswith(": met")
