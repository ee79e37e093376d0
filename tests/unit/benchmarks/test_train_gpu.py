"""The training benchmark in small, on the CPU, and its arithmetic."""

import json

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from benchmarks import train_gpu
from benchmarks.train_gpu import Taken
from training.data import digits

pytestmark = pytest.mark.train
CPU = torch.device("cpu")


def test_without_a_gpu_it_trains_in_small_and_leaves_the_goals_open(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_gpu.main(["--only", "mlp", "--device", "cpu"]) == 0

    *said, last = capsys.readouterr().out.splitlines()
    assert "mlp: goal 80% of the replay floor: open, for no GPU can be used here" in said
    line = json.loads(last)
    assert line["machine"]["gpu"] is None
    assert [row["what"] for row in line["results"]] == ["mlp ours", "mlp tutorial"]
    assert all(row["reached"] and row["metric"] >= row["target"] for row in line["results"])


def test_images_are_enlarged_from_the_training_part_alone() -> None:
    found, original = train_gpu.enlarged(500), digits()

    assert len(found.train) == 500
    (images,), (held_out,) = found.train.inputs.values(), found.validation.inputs.values()
    assert images.shape[1:] == held_out.shape[1:] == (1, 28, 28)
    assert (held_out == next(iter(original.test.inputs.values()))).all()
    assert found.source.endswith("?enlarged=500")


def test_the_gpt_of_the_gpu_is_as_large_as_it_says() -> None:
    with torch.device("meta"):
        model = train_gpu._gpt(on_gpu=True).model()

    assert 100e6 < sum(weights.numel() for weights in model.parameters()) < 120e6


def test_shares_of_what_a_device_can_do() -> None:
    (mlp,) = train_gpu.tasks(["mlp"], on_gpu=False)  # 2,000 images, 64 a step: 32 steps
    assert train_gpu.floor_share(mlp, epoch_s=0.064, floor_s=0.001) == pytest.approx(0.5)

    (gpt,) = train_gpu.tasks(["gpt"], on_gpu=False)  # 400 windows of 64 bytes
    matrices = 2 * 12 * 64 * 64 + 64 * 256
    share = train_gpu.peak_share(gpt, 1e-3, "NVIDIA H200")
    assert share == pytest.approx(6 * matrices * 400 * 64 / 1e-3 / 989e12)
    assert train_gpu.peak_share(gpt, 1e-3, "a CPU") is None


def test_what_is_done_once_is_no_part_of_the_time_to_the_target() -> None:
    (task,) = train_gpu.tasks(["mlp"], on_gpu=False)  # target 0.8
    taken = Taken.of(task, ends=[5.0, 6.5, 8.0], epochs_s=[4.0, 1.0, 1.0], found=[0.5, 0.81, 0.9])

    assert taken == Taken(seconds=3.5, once_s=3.0, epoch_s=1.0, epochs=2, metric=0.81, reached=True)
    assert not Taken.of(task, ends=[1.0, 2.0], epochs_s=[1.0, 1.0], found=[0.1, 0.2]).reached
