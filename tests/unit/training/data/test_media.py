"""Folders of images and sounds: tensors, or one sentence about the mistake."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data import files
from training.data.media import sounds
from training.errors import (
    InvalidData,
    NoRows,
    UnknownLabel,
    WrongShape,
)

pytestmark = pytest.mark.train


def pictures(folder: Path, rows: int = 12) -> Path:
    from PIL import Image

    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (folder / label).mkdir(parents=True)
        for row in range(rows):
            Image.new("RGB", (8, 6), colour).save(
                folder
                / label
                / f"{'png' if row % 2 else 'jpeg'}{row // 2}_{row}.{'png' if row % 2 else 'jpg'}"
            )
    return folder


def test_images_have_the_label_of_their_folder(tmp_path: Path) -> None:
    data = files.images(
        pictures(tmp_path), groups=lambda path: path.stem.split("_")[0], by="camera"
    )

    assert data.labels == ("cat", "dog")
    assert data.train.inputs["image"].shape[1:] == (3, 6, 8)
    for part in (data.train, data.validation, data.test):
        for image, target in zip(part.inputs["image"], part.target, strict=True):
            assert image.mean(axis=(1, 2)) == pytest.approx([1 - target, 0, target], abs=0.02)
    assert data.split["by"] == "camera"
    assert not set(data.train.groups) & set(data.test.groups)


def test_images_are_scaled_turned_upright_and_made_grey(tmp_path: Path) -> None:
    from PIL import Image

    pictures(tmp_path)
    half = Image.new("RGB", (40, 20), "white")
    half.paste("black", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    half.save(tmp_path / "cat" / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (3, 3), (0, 0, 0, 0)).save(tmp_path / "cat" / "clear.png")
    Image.fromarray(np.full((4, 4), 65535 // 4, np.uint16)).save(tmp_path / "cat" / "deep.png")

    data = files.images(tmp_path, size=(10, 5), colour="grey")

    whole = np.concatenate(
        [part.inputs["image"] for part in (data.train, data.validation, data.test)]
    )
    assert whole.shape[1:] == (1, 10, 5)
    means = {round(float(image.mean()), 2) for image in whole}
    assert {1.0, 0.25} <= means
    turned = [image for image in whole if image.std() > 0.2]
    assert len(turned) == 1
    assert turned[0][0, 0].mean() < 0.1 < 0.9 < turned[0][0, -1].mean()


def test_a_mistake_in_images_is_one_sentence(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 7)).save(pictures(tmp_path / "size") / "dog" / "x.png")
    (pictures(tmp_path / "torn") / "dog" / "x.png").write_bytes(
        (tmp_path / "torn/dog/png0_1.png").read_bytes()[:50]
    )
    (pictures(tmp_path / "text") / "dog" / "x.png").write_text("no image")
    Image.new("RGB", (8, 6)).save(pictures(tmp_path / "loose") / "x.png")
    pictures(tmp_path / "label")

    for name, options, error, message in [
        (
            "size",
            {},
            WrongShape,
            "dog/x.png has 7x8 pixels, those before 6x8; give size=(height, width)",
        ),
        (
            "torn",
            {},
            InvalidData,
            "dog/x.png is no image (PNG, JPEG, WEBP, BMP or GIF)",
        ),
        (
            "text",
            {},
            InvalidData,
            "dog/x.png is no image (PNG, JPEG, WEBP, BMP or GIF)",
        ),
        ("loose", {}, InvalidData, "x.png lies in no class's folder: put it into <label>/x.png"),
        (
            "label",
            {"labels": ["cat", "cow"]},
            UnknownLabel,
            "dog/jpeg0_0.jpg: 'dog' is none of the labels 'cat', 'cow'",
        ),
    ]:
        with pytest.raises(InvalidData) as caught:
            files.images(tmp_path / name, **options)  # type: ignore[arg-type]
        assert message in str(caught.value), name
        assert type(caught.value) is error, name


def wav(path: Path, samples: Any, *, rate: int = 8000, width: int = 2, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.rint(np.asarray(samples) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    raw = (
        (whole + 128).astype(np.uint8).tobytes()
        if width == 1
        else b"".join(int(value).to_bytes(width, "little", signed=True) for value in whole.ravel())
    )
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw)


def tone(rate: int, seconds: float = 0.5, hertz: float = 200) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def words(folder: Path) -> Path:
    for label in ("no", "yes"):
        for row in range(12):
            wav(folder / label / f"s{row // 2}_{row}.wav", tone(8000))
    return folder


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_samples_is_the_same_sound(tmp_path: Path, width: int) -> None:
    wav(tmp_path / "x.wav", tone(8000), width=width)

    sound, rate = sounds._read_wav(tmp_path / "x.wav")

    assert rate == 8000
    assert np.allclose(sound, tone(8000), atol=0.01 if width == 1 else 1e-4)


def test_sounds_are_brought_to_one_rate_length_and_channel(tmp_path: Path) -> None:
    words(tmp_path)
    wav(tmp_path / "no" / "s9_fast.wav", tone(44_100), rate=44_100)
    wav(tmp_path / "no" / "s9_long.wav", tone(8000, seconds=3))
    wav(
        tmp_path / "no" / "s9_two.wav",
        np.stack([2 * tone(8000), 0 * tone(8000)], axis=1),
        channels=2,
    )

    data = files.sounds(
        tmp_path, rate=16_000, seconds=0.75, groups=lambda path: path.stem.split("_")[0]
    )

    assert data.split["by"] == "speaker"
    whole = np.concatenate(
        [part.inputs["audio"] for part in (data.train, data.validation, data.test)]
    )
    assert (whole.shape, whole.dtype) == ((27, 12_000), np.float32)
    middle = slice(1000, 7000)
    for sound in whole:
        assert np.allclose(sound[middle], tone(16_000)[middle], atol=0.02)
    assert (whole[:, 8500:] == 0).all(
        axis=1
    ).sum() == 26  # silence after half a second, except in the long sound


def test_a_sound_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    """Such files come from ffmpeg when it writes into a pipe."""
    wav(tmp_path / "x.wav", tone(8000))
    raw = bytearray((tmp_path / "x.wav").read_bytes())
    raw[4:8] = raw[40:44] = b"\xff" * 4
    (tmp_path / "x.wav").write_bytes(bytes(raw))

    assert len(sounds._read_wav(tmp_path / "x.wav")[0]) == 4000


def test_a_mistake_in_sounds_is_one_sentence(tmp_path: Path) -> None:
    (words(tmp_path / "text") / "yes" / "x.wav").write_text("no sound")
    (words(tmp_path / "torn") / "yes" / "x.wav").write_bytes(
        (tmp_path / "torn/yes/s0_0.wav").read_bytes()[:30]
    )
    whole = (words(tmp_path / "cut") / "yes" / "s0_0.wav").read_bytes()
    (tmp_path / "cut" / "yes" / "x.wav").write_bytes(whole[:1044])
    wav(words(tmp_path / "none") / "yes" / "x.wav", [])
    float_header = bytearray((tmp_path / "none/yes/s0_0.wav").read_bytes())
    float_header[20:22] = (3).to_bytes(2, "little")  # IEEE float
    (words(tmp_path / "float") / "yes" / "x.wav").write_bytes(bytes(float_header))

    for name, error, message in [
        ("text", InvalidData, "yes/x.wav is no WAV file of PCM"),
        ("cut", InvalidData, "yes/x.wav is cut off: 500 of 4000 samples are there"),
        ("torn", InvalidData, "x.wav is no WAV file of PCM"),
        ("none", NoRows, "x.wav has no sound"),
        ("float", InvalidData, "x.wav is no WAV file of PCM: unknown format: 3"),
    ]:
        with pytest.raises(InvalidData) as caught:
            files.sounds(tmp_path / name)
        assert message in str(caught.value), name
        assert type(caught.value) is error, name
