"""Several labels a row, and classes of pixels: from data to a graph that answers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

import training
from training.data import files
from training.errors import InvalidRecipe
from training.export import graphs
from training.fitting import losses
from training.recipe import NetworkHyperparameters, Recipe

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised by the exporters
]
GENERATOR = np.random.default_rng(0)


def test_several_labels_a_row_from_a_table_to_a_graph(tmp_path: Path) -> None:
    x = GENERATOR.normal(size=(160, 2)).astype(np.float32)
    lines = [f"{a},{b},{'yes' if a > 0 else 'no'},{'yes' if a + b > 0.5 else 'no'}" for a, b in x]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,warm,wet", *lines]))
    recipe = Recipe(
        name="weather", description="", task="multilabel", hyperparameters=NetworkHyperparameters,
        data=lambda channels: files.table(
            channels["train"], target=["warm", "wet"], task="multilabel"
        ),
        model=lambda: torch.nn.Linear(2, 2),
    )  # fmt: skip

    result = training.run(
        recipe, data={"train": tmp_path / "rows.csv"}, model_dir=tmp_path / "out", epochs=40, lr=0.1
    )

    assert result.metrics["macro_f1"] > 0.9
    assert result.card["outputs"][0]["labels"] == ["warm", "wet"]
    assert result.card["distributions"]["priors"]["warm"] == pytest.approx(0.5, abs=0.15)
    run = graphs.runner(onnx.load(result.path))
    answers = run({"numbers": np.array([[3, 3], [-3, -3]], np.float32)})["probabilities"]
    assert answers.round().tolist() == [[1, 1], [0, 0]]
    forest = Recipe(**{**vars(recipe), "model": lambda: _estimator()})
    with pytest.raises(InvalidRecipe, match="multilabel takes a torch module"):
        training.run(forest, data={"train": tmp_path / "rows.csv"}, model_dir=tmp_path / "out")


def _estimator() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier()


def test_classes_of_pixels_from_arrays_to_a_graph(tmp_path: Path) -> None:
    target = np.zeros((60, 8, 8), np.int64)
    for image, (row, column) in zip(target, GENERATOR.integers(0, 5, (60, 2)), strict=True):
        image[row : row + 3, column : column + 3] = 1
    target[:, 0, 0] = -1  # does not count
    noise = GENERATOR.normal(size=(60, 1, 8, 8)) * 0.1
    pixels = ((target[:, None] == 1) + noise).astype(np.float32)
    np.savez(tmp_path / "rows.npz", image=pixels, mask=target)
    recipe = Recipe(
        name="squares", description="", task="segmentation", labels=("ground", "square"),
        hyperparameters=NetworkHyperparameters,
        data=lambda channels: files.arrays(channels["train"], target="mask"),
        model=lambda: torch.nn.Conv2d(1, 2, 1),
    )  # fmt: skip

    result = training.run(
        recipe, data={"train": tmp_path / "rows.npz"}, model_dir=tmp_path / "out", epochs=30, lr=0.1
    )

    assert result.metrics["mean_iou"] > 0.95
    assert result.card["evaluation"]["lead"]["over"] in ("class by place", "majority class")
    (output,) = result.card["outputs"]
    assert (output["shape"], output["labels"]) == ([-1, 8, 8, 2], ["ground", "square"])
    run = graphs.runner(onnx.load(result.path))
    answers = run({"image": pixels[:3]})["probabilities"].argmax(-1)
    assert (answers == np.maximum(target[:3], 0)).mean() > 0.95


@pytest.mark.parametrize(
    ("loss", "width"), [(losses.pixels, (2, 3, 4, 4)), (losses.next_token, (2, 5, 3))]
)
def test_a_batch_of_ignored_targets_alone_costs_nothing(loss: losses.Loss, width: Any) -> None:
    logits = torch.randn(width, requires_grad=True)
    shape = (2, 4, 4) if loss is losses.pixels else (2, 5)

    cost = loss(torch.nn.Identity(), (logits,), torch.full(shape, losses.IGNORED))
    cost.backward()

    assert cost.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(width))
    first = torch.full(shape, losses.IGNORED)
    first[0].flatten()[0] = 1
    row = logits.flatten(2).transpose(1, 2) if loss is losses.pixels else logits
    expected = torch.nn.functional.cross_entropy(row[0, :1], torch.tensor([1]))
    cost = loss(torch.nn.Identity(), (logits,), first)
    assert cost.item() == pytest.approx(expected.item())
