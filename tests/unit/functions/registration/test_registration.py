"""Registration in every package form, with buckets and table in memory."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import InvalidModel, Unavailable
from functions.core.registration.registration import Registration
from functions.core.registration.sandbox_protocol import Brief, Built
from functions.core.registry.registry import Registry
from functions.core.registry.version import Reason, State, Version
from functions.core.uploads import Upload
from functions.register.manifest import read_manifest
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.models import outside_weights_model, scale_model
from tests.sandbox import SIGNATURE, MemorySandbox

MANIFEST = {
    "schema": 1,
    "task": "regression",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3], "labels": ["a", "b", "c"]}],
    "metrics": {"r2": 0.9},
    "evaluation": {
        "primary": {"metric": "r2", "higher_is_better": True},
        "intervals": {"r2": [0.85, 0.93]},
        "lead": {"over": "mean", "by": 0.9, "interval": [0.8, 0.95]},
        "groups": {"by": "shop", "worst": [{"group": "7", "rows": 9, "r2": 0.1}]},
    },
    "owner": "unknown fields are welcome",
}


class World:
    """Registration with fakes around it."""

    def __init__(self) -> None:
        self.uploads, self.blobs, self.table = MemoryUploads(), MemoryBlobs(), MemoryTable()
        self.registry = Registry(
            self.table, lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None
        )
        self.sandbox = MemorySandbox()
        self.registration = Registration(
            self.registry,
            self.uploads,
            self.blobs,
            self.sandbox,
            read_manifest,
        )

    def upload(self, key: str, content: bytes) -> Version | None:
        return self.registration.register(Upload("up", key, self.uploads.put("up", key, content)))


@pytest.fixture
def world() -> World:
    return World()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def listing(**files: bytes) -> dict[str, Any]:
    files = {name.replace("__", "/"): content for name, content in files.items()}
    return {
        "schema": 1,
        "files": [
            {"path": p, "size": len(content), "sha256": digest(content)}
            for p, content in files.items()
        ],
    }


def test_a_bare_model_is_stored_and_becomes_ready(
    world: World,
) -> None:
    content = scale_model()

    version = world.upload("models/m/x.onnx", content)

    assert (version.state, version.number, version.digest) == (State.READY, 1, digest(content))
    assert world.blobs.content[version.files[0].key] == content
    assert version.signature == SIGNATURE
    assert version.graph == {"opset": 20, "ir_version": 10, "producer": "mayfly-tests", "nodes": 1}


def test_the_manifest_inside_gives_labels_and_card(world: World) -> None:
    version = world.upload("models/m/x.onnx", scale_model(manifest=MANIFEST))

    assert version.signature.outputs[0].labels == ("a", "b", "c")
    assert version.card["metrics"] == {"r2": 0.9}
    assert version.card["evaluation"] == MANIFEST["evaluation"]
    assert json.loads(world.blobs.content[version.manifest.key]) == MANIFEST


def test_an_archive_gives_model_weights_and_ignored_names(world: World, tmp_path: Path) -> None:
    model, weights = outside_weights_model(tmp_path, "w.bin")
    members = {
        "model/w.bin": weights,
        "model/net.onnx": model,
        "model/manifest.json": json.dumps(MANIFEST).encode(),
        "model/code.pkl": b"\x80\x04",
        "w.bin": b"decoy",
    }
    packed = tar(**members)

    version = world.upload("models/m/job/output/model.tar.gz", packed)

    assert version.state is State.READY, version.reason
    assert [(blob.name, blob.sha256) for blob in version.files] == [
        ("model.onnx", digest(model)),
        ("w.bin", digest(weights)),
    ]
    assert version.ignored == ("model/code.pkl", "w.bin")
    assert version.card["task"] == "regression"


def test_a_manifest_written_last_gives_the_files_it_lists(world: World, tmp_path: Path) -> None:
    model, weights = outside_weights_model(tmp_path, "w.bin")
    assert world.upload("models/m/1/parts/big.onnx", model) is None
    world.uploads.put("up", "models/m/1/parts/w.bin", weights)

    version = world.upload(
        "models/m/1/manifest.json",
        json.dumps(
            listing(parts__w_bin=b"") | listing(**{"parts/w.bin": weights, "parts/big.onnx": model})
        ).encode(),
    )

    assert version.state is State.READY, version.reason
    assert [blob.name for blob in version.files] == ["model.onnx", "w.bin"]
    assert world.sandbox.built == [["manifest.json", "model.onnx", "w.bin"]]


def test_files_that_a_manifest_lists_are_no_ignored_uploads(world: World) -> None:
    model, words = scale_model(), b"words"
    for key in ("models/m/1/words.zip", "models/m/2/words.zip"):
        world.uploads.put("up", key, words)
        world.registry.note_ignored(key, Reason("FOREIGN_FORMAT", "text"))
    world.uploads.put("up", "models/m/1/parts/m.onnx", model)
    document = listing(**{"parts/m.onnx": model, "words.zip": words})

    version = world.upload("models/m/1/manifest.json", json.dumps(document).encode())

    assert version.state is State.READY, version.reason
    assert [key for key, _ in world.registry.ignored()] == ["models/m/2/words.zip"]


def test_the_endings_of_a_package_may_have_capitals(world: World) -> None:
    model = scale_model()
    world.uploads.put("up", "models/M/1/parts/Big.ONNX", model)
    manifest = json.dumps(listing(**{"parts/Big.ONNX": model})).encode()

    versions = [
        world.upload("models/M/x.ONNX", model),
        world.upload("models/M/MODEL.TGZ", tar(**{"model.onnx": model})),
        world.upload("models/M/1/Manifest.JSON", manifest),
    ]

    assert [(v.model, v.number, v.state) for v in versions] == [
        ("M", 1, State.READY),
        ("M", 2, State.READY),
        ("M", 3, State.READY),
    ]


def manifest_of(files: dict[str, Any]) -> bytes:
    return json.dumps(files).encode()


@pytest.mark.parametrize(
    ("key", "content", "code"),
    [
        ("x.onnx", b"", "EMPTY_FILE"),
        ("x.onnx", scale_model()[:-5], "TRUNCATED"),
        ("x.onnx", b"I am text, not a model", None),
        ("x.onnx", scale_model(manifest={"schema": 2}), "BAD_MANIFEST"),
        (
            "x.onnx",
            scale_model(manifest={"schema": 1, "outputs": [{"name": "z"}]}),
            "MANIFEST_MISMATCH",
        ),
        (
            "x.onnx",
            scale_model(manifest={"schema": 1, "outputs": [{"name": "y", "labels": ["a"]}]}),
            "MANIFEST_MISMATCH",
        ),
        (
            "x.onnx",
            scale_model(manifest={"schema": 1, "inputs": [{"name": "x", "datatype": "FP64"}]}),
            "MANIFEST_MISMATCH",
        ),
        ("model.tar.gz", tar(**{"readme.txt": b"no model"}), "NO_MODEL"),
        ("model.tar.gz", tar(**{"a.onnx": scale_model(), "b.onnx": scale_model()}), "NO_MODEL"),
        ("model.tar.gz", b"not an archive", "BAD_ARCHIVE"),
        ("manifest.json", b"{", "BAD_MANIFEST"),
        ("manifest.json", manifest_of({"schema": 1}), "NO_MODEL"),
        ("manifest.json", manifest_of(listing(**{"parts/m.onnx": b"?"})), "FILE_MISSING"),
        ("manifest.json", manifest_of(listing(**{"parts/../m.onnx": b"?"})), "BAD_FILE_NAME"),
        ("manifest.json", manifest_of(listing(**{"a/m.onnx": b"?", "b/m.onnx": b"?"})), "NO_MODEL"),
    ],
)
def test_a_bad_upload_is_rejected_and_blocks_nothing(
    world: World, key: str, content: bytes, code: str | None
) -> None:
    version = world.upload(f"models/m/{key}", content)

    assert version.state is State.REJECTED
    assert version.reason.code in ({code} if code else {"NOT_ONNX", "TRUNCATED"})
    assert len(version.reason.message) <= 300
    assert world.upload("models/m/good.onnx", scale_model()).state is State.READY


@pytest.mark.parametrize(
    ("change", "code"), [({"sha256": "0" * 64}, "DIGEST_MISMATCH"), ({"size": 5}, "SIZE_MISMATCH")]
)
def test_a_listed_file_has_to_match_the_manifest(
    world: World, change: dict[str, Any], code: str
) -> None:
    model = scale_model()
    world.uploads.put("up", "models/m/1/parts/m.onnx", model)
    document = listing(**{"parts/m.onnx": model})
    document["files"][0] |= change

    version = world.upload("models/m/1/manifest.json", json.dumps(document).encode())

    assert (version.state, version.reason.code) == (State.REJECTED, code)


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("model.onnx", "BAD_FILE_NAME"),
        ("manifest.json", "BAD_FILE_NAME"),
        ("missing.bin", "WEIGHTS_MISSING"),
    ],
)
def test_weights_that_are_not_beside_the_model_are_missing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, code: str
) -> None:
    monkeypatch.chdir(tmp_path)  # onnx refuses to write weights over a file in this folder
    model, _ = outside_weights_model(tmp_path, location)

    version = world.upload("models/m/model.tar.gz", tar(**{"model.onnx": model}))

    assert version.reason.code == code


def test_the_same_object_five_times_is_one_version(world: World) -> None:
    upload = Upload(
        "up", "models/m/x.onnx", world.uploads.put("up", "models/m/x.onnx", scale_model())
    )

    versions = [world.registration.register(upload) for _ in range(5)]

    assert {version.number for version in versions} == {1}
    assert len(world.sandbox.built) == 1


def test_events_out_of_order_give_each_object_version_its_own_bytes(world: World) -> None:
    contents = [scale_model(2.0), scale_model(3.0)]
    uploads = [
        Upload("up", "models/m/x.onnx", world.uploads.put("up", "models/m/x.onnx", c))
        for c in contents
    ]

    late, early = world.registration.register(uploads[1]), world.registration.register(uploads[0])

    assert (late.digest, early.digest) == (digest(contents[1]), digest(contents[0]))
    assert world.registry.aliases("m") == {"latest": 1, "prod": 1}


def test_an_event_without_a_version_reads_the_current_object(world: World) -> None:
    world.uploads.put("up", "models/m/x.onnx", scale_model(2.0))
    pinned = world.uploads.put("up", "models/m/x.onnx", scale_model(3.0))

    version = world.registration.register(Upload("up", "models/m/x.onnx"))

    assert version.source.object_version == pinned
    assert version.digest == digest(scale_model(3.0))


def test_a_missing_object_is_rejected_only_if_its_version_was_named(
    world: World,
) -> None:
    version = world.registration.register(Upload("up", "models/m/x.onnx", "v1"))
    assert (version.state, version.reason.code) == (State.REJECTED, "OBJECT_GONE")

    assert world.registration.register(Upload("up", "models/m/y.onnx")) is None


def test_keys_that_are_no_models_are_ignored(world: World) -> None:
    for key in [
        "models/m/readme.txt",
        "models/m/output.tar.gz",
        "other/m/x.onnx",
        "models/x.onnx/parts/y.onnx",
    ]:
        assert world.upload(key, scale_model()) is None
    assert world.table.transactions == 0


@pytest.mark.parametrize("model", ["dígits", "di gits", "-digits", "d" * 129, ""])
def test_an_impossible_model_name_is_explained(world: World, model: str) -> None:
    with pytest.raises(InvalidModel, match="cannot name a model: upload to models/<model>/"):
        world.upload(f"models/{model}/x.onnx", scale_model())


def test_the_next_delivery_completes_a_crashed_registration(world: World) -> None:
    upload = Upload(
        "up",
        "models/m/x.onnx",
        world.uploads.put("up", "models/m/x.onnx", scale_model(manifest=MANIFEST)),
    )
    steps: list[tuple[object, str]] = [
        (world.table, "transact"),
        (world.uploads, "fetch"),
        (world.blobs, "store"),
        (world.registry, "finish"),
    ]

    class Killed(BaseException):
        """SIGKILL, which no code can catch."""

    for number, (owner, method) in enumerate(steps):
        original = getattr(owner, method)

        def killed(
            *args: Any, original: Any = original, after: bool = number < 3, **_: Any
        ) -> None:
            if after:
                original(*args)
            raise Killed

        setattr(owner, method, killed)
        with pytest.raises(Killed):
            world.registration.register(upload)
        setattr(owner, method, original)
        assert world.registry.version("m", 1).state is State.PENDING

    assert world.registration.register(upload).state is State.READY
    assert [version.number for version in world.registry.versions("m")] == [1]
    actions = [record["action"] for record in world.registry.audit("m")]
    assert actions == ["claim", "resume", "resume", "resume", "resume", "finish"]


def test_a_failed_store_leaves_the_version_pending(world: World) -> None:
    upload = Upload(
        "up", "models/m/x.onnx", world.uploads.put("up", "models/m/x.onnx", scale_model())
    )
    store = world.blobs.store

    def failing(*_: object) -> None:
        raise Unavailable("storage does not answer; try again")

    world.blobs.store = failing
    with pytest.raises(Unavailable):
        world.registration.register(upload)
    assert world.registry.version("m", 1).state is State.PENDING

    world.blobs.store = store
    assert world.registration.register(upload).state is State.READY


def test_a_registered_upload_is_not_fetched_again(world: World) -> None:
    upload = Upload(
        "up", "models/m/x.onnx", world.uploads.put("up", "models/m/x.onnx", scale_model())
    )
    assert world.registration.register(upload).state is State.READY

    def fetch(*_: object) -> None:
        raise AssertionError("fetched again")

    world.uploads.fetch = fetch
    assert world.registration.register(upload).number == 1


class LeavingSandbox(MemorySandbox):
    """Fake sandbox that leaves a file or link in the directory."""

    def __init__(self, leave: Callable[[Path], None]) -> None:
        super().__init__()
        self._leave = leave

    def build(self, brief: Brief, directory: Path) -> Built:
        built = super().build(brief, directory)
        self._leave(directory)
        return built


def _link_serving(directory: Path) -> None:
    (directory / "serving").rename(directory / "moved")
    (directory / "serving").symlink_to(directory / "moved")


@pytest.mark.parametrize(
    "leave",
    [
        lambda directory: (directory / "documents").mkdir(),
        lambda directory: (directory / "documents").symlink_to("/"),
        lambda directory: os.mkfifo(directory / "documents"),
        lambda directory: (directory / "serving/extra").touch(),
        lambda directory: shutil.rmtree(directory / "serving"),
        _link_serving,
    ],
)
def test_nothing_is_written_through_what_a_sandbox_left(
    world: World, leave: Callable[[Path], None]
) -> None:
    world.registration.sandbox = LeavingSandbox(leave)
    manifest = {"schema": 1, "task": "regression"}

    version = world.upload("models/m/model.onnx", scale_model(manifest=manifest))

    assert version is not None
    assert version.reason is not None
    assert version.reason.code == "SANDBOX_BAD_ANSWER"
    assert world.registration.sandbox.suspect
