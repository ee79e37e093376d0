"""Tests of registering a model with separately uploaded weight files."""

from dataclasses import replace
from pathlib import Path

import pytest

from functions.core.errors import InvalidModel, Unavailable
from functions.core.names import is_plain_path, overlapping
from functions.core.registration.registration import Registration
from functions.core.registration.sandbox_protocol import Unpacked
from functions.core.registry.registry import Registry
from functions.core.registry.version import State, Version
from functions.core.uploads import Form, Upload
from functions.register.manifest import read_manifest
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.hostile.cases import outside
from tests.models import scale_model
from tests.sandbox import MemorySandbox

FOLDER = "models/m/1"
MODEL, WEIGHTS = f"{FOLDER}/model.onnx", f"{FOLDER}/model.onnx.data"
CURE = "torch.onnx.export(..., external_data=False)"


class World:
    """Registration with in-memory fakes, and uploads to its fake bucket."""

    def __init__(self) -> None:
        self.uploads, self.blobs = MemoryUploads(), MemoryBlobs()
        self.registry = Registry(
            MemoryTable(), lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None
        )
        self.registration = Registration(
            self.registry, self.uploads, self.blobs, MemorySandbox(), read_manifest
        )

    def put(self, key: str, content: bytes) -> Upload:
        return Upload("up", key, self.uploads.put("up", key, content))

    def register(self, upload: Upload) -> Version | None:
        return self.registration.register(upload)

    def waits(self, upload: Upload) -> str:
        with pytest.raises(Unavailable) as caught:
            self.register(upload)
        assert caught.value.instance_code == "WEIGHTS_MISSING"
        return str(caught.value)


@pytest.fixture
def world() -> World:
    return World()


def graph(location: str = "model.onnx.data") -> bytes:
    return outside(location)


def stored_weights(world: World, version: Version | None) -> bytes:
    assert version is not None
    assert version.state is State.READY, version.reason
    return world.blobs.content[version.files[1].key]


def test_weights_that_arrived_before_belong_to_the_model(world: World) -> None:
    weights = world.put(WEIGHTS, b"w" * 12)
    assert world.register(weights) is None

    version = world.register(world.put(MODEL, graph()))

    assert stored_weights(world, version) == b"w" * 12
    assert version.notes == ("Weights: model.onnx.data, object version v1.",)
    assert world.register(weights) is None
    assert len(world.registry.versions("m")) == 1


def test_weights_that_arrive_later_complete_the_version(world: World) -> None:
    model = world.put(MODEL, graph())
    reason = world.waits(model)
    [(_, number, state, shown)] = world.registry.listing()
    assert (number, state, shown) == (1, State.PENDING, reason)
    assert "'model.onnx.data' are not beside it" in reason
    assert CURE in reason

    version = world.register(world.put(WEIGHTS, b"w" * 12))

    assert stored_weights(world, version) == b"w" * 12
    assert version.reason is None
    assert world.registry.version("m", 1) == version
    assert world.register(model) == version
    actions = [record["action"] for record in world.registry.audit("m")]
    assert actions == ["claim", "wait", "resume", "finish"]


def test_weights_of_optimum_complete_the_version_too(world: World) -> None:
    world.waits(world.put(MODEL, graph("./model.onnx_data")))

    version = world.register(world.put(f"{FOLDER}/model.onnx_data", b"w" * 12))

    assert stored_weights(world, version) == b"w" * 12


def test_the_event_of_the_weights_may_overtake_the_models(world: World) -> None:
    model, weights = world.put(MODEL, graph()), world.put(WEIGHTS, b"w" * 12)

    version = world.register(weights)

    assert stored_weights(world, version) == b"w" * 12
    assert version.source.key == MODEL
    assert world.register(model) == version


@pytest.mark.parametrize("path", ["data/w 1.bin", "poids-modèle.bin", "w.bin"])
def test_weights_of_any_name_are_found_at_the_next_receive(world: World, path: str) -> None:
    model = world.put(MODEL, graph(path))
    world.waits(model)
    assert world.register(world.put(f"{FOLDER}/{path}", b"w" * 12)) is None

    assert stored_weights(world, world.register(model)) == b"w" * 12


def test_weights_that_never_arrive_reject_the_model(world: World) -> None:
    model = world.put(MODEL, graph())
    world.waits(model)
    world.waits(model)

    version = world.register(model)

    assert (version.state, version.reason.code) == (State.REJECTED, "WEIGHTS_MISSING")
    assert CURE in version.reason.message
    assert len(version.reason.message) < 300
    assert world.register(world.put(WEIGHTS, b"w" * 12)) is None


@pytest.mark.parametrize("twice", [MODEL, WEIGHTS])
def test_what_was_uploaded_twice_belongs_to_nothing_for_sure(world: World, twice: str) -> None:
    uploads = {MODEL: graph(), WEIGHTS: b"w" * 12}
    world.put(twice, uploads[twice])
    world.put(WEIGHTS, uploads[WEIGHTS])

    version = world.register(world.put(MODEL, uploads[MODEL]))

    assert (version.state, version.reason.code) == (State.REJECTED, "WEIGHTS_AMBIGUOUS")
    assert "upload both to a new folder" in version.reason.message
    assert CURE in version.reason.message
    assert len(version.reason.message) < 300


def test_without_versioning_nothing_belongs_together_for_sure(world: World) -> None:
    pin = world.uploads.pin
    world.uploads.pin = lambda *address: replace(pin(*address), version_id=None)
    world.put(WEIGHTS, b"w" * 12)

    version = world.register(world.put(MODEL, graph()))

    assert version.reason.code == "WEIGHTS_AMBIGUOUS"


def test_weights_uploaded_again_are_named_to_their_uploader(world: World) -> None:
    world.put(WEIGHTS, b"w" * 12)
    version = world.register(world.put(MODEL, graph()))

    with pytest.raises(InvalidModel, match=r"'model\.onnx\.data' were uploaded again") as caught:
        world.register(world.put(WEIGHTS, b"v" * 12))

    assert caught.value.instance_code == "WEIGHTS_AMBIGUOUS"
    assert len(str(caught.value)) < 300
    assert stored_weights(world, world.registry.version("m", version.number)) == b"w" * 12


def test_weights_without_a_model_are_no_upload(world: World) -> None:
    assert world.register(world.put(WEIGHTS, b"w")) is None
    assert world.register(world.put(f"{FOLDER}/parts/model.onnx.data", b"w")) is None
    world.put(f"{FOLDER}/parts/model.onnx", graph())
    assert world.register(world.put(f"{FOLDER}/parts/model.onnx.data", b"w")) is None
    assert world.registry.versions("m") == []


def test_weights_beside_a_model_in_one_file_change_nothing(world: World) -> None:
    version = world.register(world.put(MODEL, scale_model()))
    assert version.state is State.READY

    assert world.register(world.put(WEIGHTS, b"w")) is None


def test_weights_that_are_too_short_reject_the_model(world: World) -> None:
    world.put(WEIGHTS, b"w" * 11)

    version = world.register(world.put(MODEL, graph()))

    assert version.reason.code == "WEIGHTS_TRUNCATED"


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin", "/etc/passwd", "model.onnx", "net.onnx", "manifest.json", "a\\b",
        "a/" * 600 + "b", "w" * 300,
    ],
    ids=lambda location: location[:12],
)  # fmt: skip
def test_weights_of_an_impossible_name_reject_the_model_at_once(
    world: World, location: str
) -> None:
    version = world.register(world.put(MODEL, graph(location)))

    assert (version.state, version.reason.code) == (State.REJECTED, "BAD_FILE_NAME")


def test_a_key_beyond_s3s_limit_is_missing(world: World) -> None:
    folder = "models/m/" + "f" * 200
    model = world.put(f"{folder}/model.onnx", graph("/".join(["x" * 200] * 5)))

    assert "are not beside it" in world.waits(model)


@pytest.mark.parametrize(
    ("paths", "twice"),
    [
        (["a", "b", "a/b/c"], "a/b/c"),
        (["a/b/c", "a/b"], "a/b"),
        (["a", "a"], "a"),
        (["a/b", "a/c", "ab"], None),
    ],
)
def test_paths_that_exclude_each_other_are_found(paths: list[str], twice: str | None) -> None:
    assert overlapping(paths) == twice


def test_a_plain_path_fits_into_any_file_system() -> None:
    assert is_plain_path("a/" * 300 + "é")
    for path in ("", "/a", "a/", "a/./b", "..", "a/../b", "a\nb", "x" * 256, "é" * 128, "a/" * 600):
        assert not is_plain_path(path), path


class PlantingSandbox(MemorySandbox):
    """Fake sandbox that plants a symlink where the weights go."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self._target = target

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        unpacked = super().unpack(form, directory)
        if unpacked.outside:
            (directory / "upload/model.onnx.data").symlink_to(self._target)
        return unpacked


def test_weights_are_not_written_through_a_link_that_the_sandbox_left(
    world: World, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    world.registration.sandbox = PlantingSandbox(target)
    world.put(WEIGHTS, b"w" * 24)

    world.register(world.put(MODEL, graph()))

    assert not target.exists()
