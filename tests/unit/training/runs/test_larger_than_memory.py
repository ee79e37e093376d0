"""Data that stay on disk: the same model as from memory, and no more memory than a chunk."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

import training
from tests.unit.training.runs.memory_script import WIDTH
from training.data import files, lazy
from training.recipe import NetworkHyperparameters, Recipe

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised by the exporters
]
GENERATOR = np.random.default_rng(5)
NOTHING, ALL = 0.0, 1e6  # megabytes that may be in memory


def write_rows(path: Path, rows: int, part: int = 5000) -> Path:
    """Write an uncompressed .npz file a part at a time; its first column tells the class."""
    target = np.arange(rows) % 2
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, WIDTH)}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, rows, part):
                classes = target[start : start + part]
                values = GENERATOR.random((len(classes), WIDTH), np.float32)
                values[:, 0] += classes
                file.write(values.tobytes())
        with archive.open("y.npy", "w") as file:
            np.lib.format.write_array(file, target)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_file_of_600_mb_trains_in_a_fraction_of_its_size(tmp_path: Path) -> None:
    large = write_rows(tmp_path / "large.npz", 100_000)
    assert large.stat().st_size > 600e6
    small = write_rows(tmp_path / "small.npz", 1000)
    command = [sys.executable, "-m", "tests.unit.training.runs.memory_script"]

    try:
        run = subprocess.run(
            [*command, small, large, tmp_path / "out"], capture_output=True, text=True, check=True
        )
    finally:
        large.unlink()

    assert "x: 420 MB to train, read batch by batch" in run.stdout
    (peaks,) = re.findall(r"^peaks_kb=(\d+),(\d+)$", run.stdout, re.M)
    assert int(peaks[1]) - int(peaks[0]) < 200_000


def trained(recipe: Recipe[Any], data: Path, out: Path) -> Any:
    return training.run(recipe, data={"train": data}, model_dir=out, epochs=2, lr=0.01)


def assert_equal(first: Any, second: Any) -> None:
    for name, weight in first.trained.model.state_dict().items():
        assert torch.equal(weight, second.trained.model.state_dict()[name]), name
    for key in ("metrics", "baselines", "distributions"):
        assert first.card[key] == second.card[key], key
    assert first.card["data"] == second.card["data"]


def classifier(data: Any, model: Any, **more: Any) -> Recipe[Any]:
    fields = {"name": "x", "description": "", "task": "classification"}
    return Recipe(**fields | more, hyperparameters=NetworkHyperparameters, data=data, model=model)  # type: ignore[arg-type]


def arrays_recipe(in_memory_mb: float) -> Recipe[Any]:
    return classifier(
        lambda channels: files.arrays(channels["train"], target="y", in_memory_mb=in_memory_mb),
        lambda: torch.nn.Linear(6, 2),
        augment=lambda x: x + 0.1 * torch.randn_like(x),
    )


@pytest.mark.parametrize("kind", ["npz", "two files", "npy"])
def test_arrays_on_disk_train_the_same_model_as_in_memory(tmp_path: Path, kind: str) -> None:
    x = GENERATOR.normal(size=(300, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    folder = tmp_path / "rows"
    folder.mkdir()
    if kind == "npy":
        np.save(folder / "x.npy", np.asfortranarray(x.astype(np.float64)))
        np.save(folder / "y.npy", y)
    else:
        halves = [slice(0, 130), slice(130, 300)] if kind == "two files" else [slice(None)]
        for number, half in enumerate(halves):
            np.savez(folder / f"{number}.npz", x=x[half], y=y[half])

    on_disk = trained(arrays_recipe(NOTHING), folder, tmp_path / "a")
    in_memory = trained(arrays_recipe(ALL), folder, tmp_path / "b")

    assert lazy.is_lazy(on_disk.trained.data.train.inputs["x"])
    assert not lazy.is_lazy(in_memory.trained.data.train.inputs["x"])
    assert_equal(on_disk, in_memory)


def pictures(folder: Path) -> Path:
    from PIL import Image

    for label, light in (("day", 160), ("night", 60)):
        (folder / label).mkdir(parents=True)
        for number in range(30):
            pixels = GENERATOR.integers(0, light, (12, 10, 3)).astype(np.uint8)
            ending = ("png", "jpg", "webp")[number % 3]
            Image.fromarray(pixels).save(folder / label / f"{number}.{ending}")
    return folder


def test_pictures_decoded_by_batch_train_the_same_model(tmp_path: Path) -> None:
    pictures(tmp_path / "rows")

    def recipe(in_memory_mb: float) -> Recipe[Any]:
        return classifier(
            lambda channels: files.images(
                channels["train"], size=(8, 8), in_memory_mb=in_memory_mb
            ),
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)),
            augment=lambda image: image.flip(3),
        )

    by_batch = trained(recipe(NOTHING), tmp_path / "rows", tmp_path / "a")
    in_memory = trained(recipe(ALL), tmp_path / "rows", tmp_path / "b")

    assert lazy.is_lazy(by_batch.trained.data.train.inputs["image"])
    assert_equal(by_batch, in_memory)


def test_masks_read_by_batch_train_the_same_model(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("images", "masks"):
        (tmp_path / "rows" / name).mkdir(parents=True)
    for number in range(40):
        mask = np.zeros((8, 8), np.uint8)
        row, column = GENERATOR.integers(0, 5, 2)
        mask[row : row + 3, column : column + 3] = 1
        grey = mask * 150 + GENERATOR.integers(0, 60, (8, 8)).astype(np.uint8)
        mask[0] = 255
        Image.fromarray(grey).save(tmp_path / "rows" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "rows" / "masks" / f"{number}.png")

    def recipe(in_memory_mb: float) -> Recipe[Any]:
        return classifier(
            lambda channels: files.segmentation(
                channels["train"], labels=["ground", "square"], colour="grey",
                in_memory_mb=in_memory_mb,
            ),
            lambda: torch.nn.Conv2d(1, 2, 3, padding=1),
            task="segmentation",
        )  # fmt: skip

    by_batch = trained(recipe(NOTHING), tmp_path / "rows", tmp_path / "a")
    in_memory = trained(recipe(ALL), tmp_path / "rows", tmp_path / "b")

    assert lazy.is_lazy(by_batch.trained.data.train.target)
    assert_equal(by_batch, in_memory)
