"""The data every run sees: always the same rows in the same parts."""

import numpy as np
import pytest

from training import data
from training.data import bundled

pytestmark = pytest.mark.train


def test_digits_are_images_of_28_by_28_between_0_and_1() -> None:
    digits = data.digits()

    assert digits.test.inputs["image"].shape[1:] == (1, 28, 28)
    assert digits.test.inputs["image"].dtype == np.float32
    assert (digits.train.inputs["image"].min(), digits.train.inputs["image"].max()) == (0.0, 1.0)


def test_digits_are_split_the_same_way_every_time_and_share_no_image() -> None:
    first, second = data.digits(), data.digits()

    assert np.array_equal(first.test.inputs["image"], second.test.inputs["image"])
    assert len(first.train) + len(first.validation) + len(first.test) == 1797
    rows = {
        part: {image.tobytes() for image in getattr(first, part).inputs["image"]}
        for part in ("train", "validation", "test")
    }
    assert not rows["train"] & rows["test"]
    assert not rows["train"] & rows["validation"]


def test_every_part_holds_every_class_in_the_same_share() -> None:
    digits = data.digits()

    for part in (digits.train, digits.validation, digits.test):
        assert np.abs(np.bincount(part.target, minlength=10) / len(part) - 0.1).max() < 0.02


def test_resizing_is_bilinear_between_pixel_centres() -> None:
    ramp = np.tile(np.arange(4, dtype=np.float32) / 4, (1, 4, 1))

    assert np.allclose(bundled.resize(ramp, 8)[0, 0], [0, 0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.75])
