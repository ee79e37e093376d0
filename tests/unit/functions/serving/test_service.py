"""What an environment remembers of names, what it keeps in memory, and the protocol's documents."""

import gc
import json
import threading
import time
import tomllib
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.adapters.clock import Elapsed
from functions.core.errors import (
    ExecutionFailed,
    InvalidModel,
    ModelNotFound,
    NotReady,
    Unavailable,
)
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry import resolver as resolution
from functions.core.registry.load_plan import Plan
from functions.core.registry.resolver import Resolver
from functions.core.registry.version import Resolved, Version
from functions.core.serving.metadata import MAX_BATCH, VERSION, model_config, model_metadata
from functions.core.serving.model_cache import MB, MODEL_OVERHEAD_BYTES, ModelCache, footprint_bytes
from functions.core.serving.service import Call
from tests.data_plane import Client, Clock, DataPlane, rows

LATER = time.monotonic() + 3600


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    return DataPlane(tmp_path)


def factor(models: ModelCache, version: Version, deadline: float = LATER) -> float:
    with models.session(version, deadline) as session:
        return session.factor  # type: ignore[attr-defined, no-any-return]


# --- names ------------------------------------------------------------------------------------------------------------


def test_an_alias_is_read_once_and_again_when_its_seconds_are_over(plane: DataPlane) -> None:
    plane.register("m")
    plane.resolver.resolve("m", "latest")
    plane.register("m")
    reads = plane.table.reads

    assert plane.resolver.resolve("m", "latest").version.number == 1
    assert plane.table.reads == reads
    plane.clock.now += 5.1
    assert plane.resolver.resolve("m", "latest").version.number == 2


def test_lifetimes_are_cut_short_at_random_and_never_extended(plane: DataPlane) -> None:
    plane.register("m")
    eager = Resolver(plane.registry, 5.0, plane.clock, chance=lambda: 1.0)
    eager.resolve("m", "latest")
    plane.register("m")

    plane.clock.now += 3.9
    assert eager.resolve("m", "latest").version.number == 1
    plane.clock.now += 0.2
    assert eager.resolve("m", "latest").version.number == 2


def test_zero_seconds_remember_nothing(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, seconds=0)
    plane.register("m")
    plane.resolver.resolve("m", "latest")
    plane.register("m")

    assert plane.resolver.resolve("m", "latest").version.number == 2
    with pytest.raises(ModelNotFound):
        plane.resolver.resolve("new", None)
    plane.register("new")
    assert plane.resolver.resolve("new", None).version.number == 1


def test_the_last_answer_stands_while_the_registry_fails_but_not_forever(plane: DataPlane) -> None:
    plane.register("m")
    plane.resolver.resolve("m", None)
    plane.table.broken = True

    plane.clock.now += resolution.STALE_SECONDS - 1
    assert plane.resolver.resolve("m", None).version.number == 1
    with pytest.raises(Unavailable):
        plane.resolver.resolve("m", "latest")  # never read before
    plane.clock.now += 2
    with pytest.raises(Unavailable):
        plane.resolver.resolve("m", None)
    plane.table.broken = False
    assert plane.resolver.resolve("m", None).version.number == 1


def test_a_failing_registry_is_asked_once_a_second(plane: DataPlane) -> None:
    plane.register("m")
    plane.resolver.resolve("m", None)
    plane.table.broken = True
    plane.clock.now += 6
    plane.resolver.resolve("m", None)
    plane.table.broken = False
    reads = plane.table.reads

    plane.resolver.resolve("m", None)
    assert plane.table.reads == reads
    plane.clock.now += resolution.RETRY_SECONDS
    plane.resolver.resolve("m", None)
    assert plane.table.reads > reads


def test_an_unloaded_model_is_no_failure_of_the_registry(plane: DataPlane) -> None:
    plane.register("m")
    plane.resolver.resolve("m", None)
    plane.registry.serve("m", False)
    plane.clock.now += 6

    with pytest.raises(NotReady, match="unloaded"):
        plane.resolver.resolve("m", None)


def test_an_unknown_name_is_believed_for_a_second(plane: DataPlane) -> None:
    for _ in range(3):
        with pytest.raises(ModelNotFound, match="Request for unknown model: 'm'"):
            plane.resolver.resolve("m", None)
    assert plane.table.reads == 1

    plane.register("m")
    plane.clock.now += resolution.REFUSAL_SECONDS
    assert plane.resolver.resolve("m", None).version.number == 1


def test_unknown_names_push_out_no_known_ones(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolution, "REFUSALS", 10)
    plane.register("m")
    plane.resolver.resolve("m", None)
    for n in range(50):
        with pytest.raises(ModelNotFound):
            plane.resolver.resolve(f"m{n}", None)
    reads = plane.table.reads

    plane.resolver.resolve("m", None)
    assert plane.table.reads == reads
    assert len(plane.resolver._refusals) == 10


def test_threads_that_want_to_know_the_same_ask_once(plane: DataPlane) -> None:
    plane.register("m")
    reads = plane.table.reads
    asked, answer = threading.Event(), threading.Event()
    resolve = plane.registry.resolve

    def slowly(model: str, reference: int | str | None) -> Resolved:
        asked.set()
        assert answer.wait(10)
        return resolve(model, reference)

    plane.registry.resolve = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(plane.resolver.resolve, "m", None) for _ in range(8)]
        assert asked.wait(10)
        answer.set()
        assert {one.result(10).version.number for one in found} == {1}
    assert plane.table.reads - reads == 2  # one resolution: the alias, and the version


def test_what_was_read_before_a_name_was_forgotten_is_not_remembered(plane: DataPlane) -> None:
    plane.register("m")
    resolve = plane.registry.resolve

    def overtaken(model: str, reference: int | str | None) -> Resolved:
        found = resolve(model, reference)
        plane.registry.serve("m", False)
        plane.resolver.invalidate("m")
        return found

    plane.registry.resolve = overtaken  # type: ignore[method-assign]
    assert plane.resolver.resolve("m", None).version.number == 1
    plane.registry.resolve = resolve  # type: ignore[method-assign]

    with pytest.raises(NotReady, match="unloaded"):
        plane.resolver.resolve("m", None)


def test_refusals_hold_on_to_no_request(plane: DataPlane) -> None:
    """A traceback would keep the frames of the request, and so its body, of as many requests as names are refused."""

    class Body:
        pass

    def request() -> "weakref.ref[Body]":
        body = Body()
        with pytest.raises(ModelNotFound):
            plane.resolver.resolve("m", None)
        return weakref.ref(body)

    kept = [request() for _ in range(3)]
    gc.collect()
    assert [one() for one in kept] == [None] * 3


def test_versions_with_many_labels_count_for_many_names(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolution, "ANSWERS", 40)
    labels = tuple(map(str, range(640)))
    wide = Signature(
        (spec("x", "FP32", -1, 3),), (TensorSpec("y", "FP32", (-1, 640), labels=labels),)
    )
    for n in range(10):
        plane.register(f"m{n}", signature=wide)
        plane.resolver.resolve(f"m{n}", None)

    assert list(plane.resolver._answers) == [(f"m{n}", None) for n in (7, 8, 9)]
    plane.resolver.invalidate()
    assert plane.resolver._weight == 0


def test_a_frozen_environment_believes_no_alias_longer(plane: DataPlane) -> None:
    """The clock that counts from the boot stands still while the machine does; the time of day is set afterwards."""
    boot, day = Clock(), Clock()
    resolver = Resolver(plane.registry, 5.0, Elapsed(boot, day), chance=lambda: 0.0)
    plane.register("m")
    resolver.resolve("m", "latest")
    plane.register("m")

    boot.now += 4
    day.now -= 3600  # set back: nothing gets younger
    assert resolver.resolve("m", "latest").version.number == 1
    day.now += 24 * 3600
    assert resolver.resolve("m", "latest").version.number == 2


def test_the_real_clocks_go_on() -> None:
    elapsed = Elapsed()
    before = elapsed(), time.monotonic()
    while time.monotonic() == before[1]:
        pass
    assert elapsed() > before[0]


# --- models in memory -------------------------------------------------------------------------------------------------


def test_a_version_is_loaded_once_and_leaves_no_file(plane: DataPlane) -> None:
    version = plane.register("m", 3.0)

    assert [factor(plane.models, version) for _ in range(3)] == [3.0] * 3
    assert plane.runtime.loads == [3.0]
    assert list(plane.directory.iterdir()) == []


def test_files_are_named_as_the_model_names_them(plane: DataPlane) -> None:
    files = (plane.blobs.add("model.onnx", b"2"), plane.blobs.add("weights.bin", b"w"))
    factor(plane.models, replace(plane.register("m"), files=files))

    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


def test_versions_with_the_same_files_share_a_session(plane: DataPlane) -> None:
    one, two = plane.register("m", 3.0), plane.register("other", 3.0)
    factor(plane.models, one)

    assert plane.models.holds(two)
    assert factor(plane.models, two) == 3.0
    assert plane.blobs.fetches == 1


def test_many_threads_wait_for_one_load(plane: DataPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m", 3.0)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(factor, plane.models, version) for _ in range(8)]
        plane.runtime.gate.set()
        assert [found.result(10) for found in asked] == [3.0] * 8
    assert plane.runtime.loads == [3.0]


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, memory_bytes=2 * MODEL_OVERHEAD_BYTES + 100)
    one, two, three = (plane.register("m", n) for n in (1.0, 2.0, 3.0))
    for version in (one, two, one, three):
        factor(plane.models, version)

    assert [plane.models.holds(version) for version in (one, two, three)] == [True, False, True]


def test_a_model_in_use_is_never_evicted(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, memory_bytes=MODEL_OVERHEAD_BYTES + 100)
    one, two = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(one, LATER):
        plane.models.evict(one.files)
        with pytest.raises(Unavailable, match="leave no memory") as refused:
            factor(plane.models, two)
        assert plane.models.holds(one)

    assert refused.value.code == "UNAVAILABLE"
    assert refused.value.instance_code == "MODELS_BUSY"
    assert factor(plane.models, two) == 2.0
    assert not plane.models.holds(one)


PLAN = {"optimised": "extended", "prepacking": False, "threads": 1, "warmup": True, "layout": False}


def test_a_version_is_loaded_as_its_plan_says(plane: DataPlane) -> None:
    factor(plane.models, plane.register("m", 2.0, plan=PLAN | {"of a later release": 1}))
    factor(plane.models, plane.register("m", 3.0))

    assert plane.runtime.plans == [Plan(**PLAN), None]


def test_what_was_measured_at_registration_counts(plane: DataPlane) -> None:
    version = plane.register("m", 2.0, measured={"resident_mb": 100.5})

    assert footprint_bytes(version) == int(100.5 * MB) + MODEL_OVERHEAD_BYTES


def sampled(plane: DataPlane, model: str, document: object, **plan: bool) -> Version:
    blob = plane.blobs.add(
        "sample.json", document if isinstance(document, bytes) else json.dumps(document).encode()
    )
    return plane.register(model, 2.0, plan=PLAN | plan, sample=blob)


def test_a_load_that_nobody_waits_for_warms_up_and_a_request_does_not(
    plane: DataPlane, tmp_path: Path
) -> None:
    client = Client(plane.handler())
    sampled(plane, "loaded", {"request": rows([1.0, 2.0, 3.0])})
    sampled(plane, "asked", {"request": rows([1.0, 2.0, 3.0])})
    sampled(plane, "cold", {"request": rows([1.0, 2.0, 3.0])}, warmup=False)

    for model in ("loaded", "loaded", "cold"):
        assert client.post(f"/v2/repository/models/{model}/load").status == 200
    assert client.post("/v2/models/asked/infer", rows([1.0, 2.0, 3.0])).status == 200

    assert plane.runtime.runs == [2.0, 2.0]  # of `loaded` once, and the request
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("document", [b"{", [], {"request": {}}, {"request": rows([1.0])}], ids=str)
def test_a_warm_up_that_fails_is_no_error(plane: DataPlane, document: object) -> None:
    sampled(plane, "m", document)

    assert Client(plane.handler()).post("/v2/repository/models/m/load").status == 200


def test_a_model_that_fails_its_warm_up_stays_loaded(plane: DataPlane) -> None:
    plane.runtime.failure = ExecutionFailed("no")
    version = sampled(plane, "m", {"request": rows([1.0, 2.0, 3.0])})

    assert Client(plane.handler()).post("/v2/repository/models/m/load").status == 200
    assert plane.models.holds(version)


def test_a_model_that_cannot_fit_says_how_much_it_needs(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, memory_bytes=4 * MB)
    version = plane.register("m", b"2 " + b" " * (2 * MB))

    with pytest.raises(
        Unavailable, match=r"takes about 6 MB of memory, 4 MB are kept for models"
    ) as refused:
        factor(plane.models, version)

    assert refused.value.instance_code == "MODEL_TOO_LARGE"
    assert footprint_bytes(version) > 4 * MB
    assert plane.blobs.fetches == 0


def test_a_load_that_lacks_memory_is_tried_again_without_the_idle_models(plane: DataPlane) -> None:
    idle, wanted = plane.register("m", 1.0), plane.register("m", 2.0)
    factor(plane.models, idle)
    plane.runtime.refusals = [MemoryError()]

    assert factor(plane.models, wanted) == 2.0
    assert not plane.models.holds(idle)


def test_a_load_that_lacks_memory_by_itself_is_told(plane: DataPlane) -> None:
    plane.runtime.refusals = [MemoryError()]
    version = plane.register("m")

    with pytest.raises(Unavailable, match="does not fit"):
        factor(plane.models, version)
    plane.models.clear_failure(version.files)
    assert factor(plane.models, version) == 2.0
    assert list(plane.directory.iterdir()) == []


@pytest.mark.parametrize(
    "failure", [InvalidModel("x"), ValueError("a bug")], ids=["refused", "bug"]
)
def test_a_failed_load_leaves_nothing_and_is_tried_again(
    plane: DataPlane, failure: Exception
) -> None:
    plane.runtime.refusals = [failure]
    version = plane.register("m")

    with pytest.raises(type(failure)):
        factor(plane.models, version)
    assert not plane.models.holds(version)
    assert list(plane.directory.iterdir()) == []
    plane.models.clear_failure(version.files)
    assert factor(plane.models, version) == 2.0


def test_a_damaged_download_is_never_opened(plane: DataPlane) -> None:
    version = plane.register("m")
    plane.blobs.content[version.files[0].key] = b"666"

    with pytest.raises(Unavailable, match="corrupted"):
        factor(plane.models, version)
    assert plane.runtime.seen == []


def test_a_load_that_takes_too_long_goes_on_for_the_next_request(plane: DataPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m")

    with pytest.raises(Unavailable, match="still loading") as refused:
        factor(plane.models, version, deadline=time.monotonic() + 0.05)
    assert refused.value.instance_code == "MODEL_LOADING"
    plane.runtime.gate.set()
    assert factor(plane.models, version) == 2.0
    assert plane.runtime.loads == [2.0]


def test_a_second_request_of_a_name_wants_no_second_download(plane: DataPlane) -> None:
    """load tries again at once what requests do not."""
    client = Client(plane.handler())
    plane.runtime.refusals = [InvalidModel("x")]
    plane.register("m")

    assert [client.post("/v2/models/m/infer", rows([1.0, 2.0, 3.0])).status for _ in range(3)] == [
        500
    ] * 3
    assert plane.blobs.fetches == 1
    assert client.post("/v2/repository/models/m/load").status == 200
    assert client.post("/v2/models/m/infer", rows([1.0, 2.0, 3.0])).status == 200


def test_the_bound_holds_under_many_threads_and_models(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, memory_bytes=4 * MODEL_OVERHEAD_BYTES + 1000)
    versions = [plane.register(f"m{n}", float(n + 1)) for n in range(12)]
    held: list[int] = []

    def ask(n: int) -> float:
        version = versions[n * 7 % 12]
        found = factor(plane.models, version)
        held.append(sum(plane.models.holds(v) for v in versions))
        return found - (n * 7 % 12 + 1)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(300))) == {0.0}
    assert max(held) <= 4
    assert list(tmp_path.iterdir()) == []


# --- documents --------------------------------------------------------------------------------------------------------


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def test_the_version_stands_in_one_place_more_than_the_project() -> None:
    assert tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"] == VERSION


def test_metadata_tells_tensors_versions_and_facts_as_strings(plane: DataPlane) -> None:
    card = {"task": "classification", "metrics": {"accuracy": 0.99}}
    version = plane.register("m", card=card, graph={"opset": 20})
    plane.reject("m")
    plane.register("m")

    document = model_metadata(version, plane.registry.versions("m"), plane.registry.aliases("m"))

    assert document["versions"] == ["1", "3"]
    assert document["platform"] == "onnxruntime_onnx"
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    properties = document["properties"]
    assert all(type(value) is str for value in properties.values())
    assert (properties["task"], properties["opset"], properties["aliases"]) == (
        "classification",
        "20",
        "prod",
    )
    assert properties["sha256"] == version.digest
    assert "load_plan" not in properties


def test_metadata_tells_how_a_model_is_loaded_and_what_proves_it(plane: DataPlane) -> None:
    version = plane.register("m", plan=PLAN, memory_mb=395, measured={"samples_checked": 2.0})

    properties = model_metadata(version, [version], {})["properties"]

    assert properties["load_plan"] == "optimised: extended, prepacking: no, threads: 1"
    assert (properties["memory_mb"], properties["samples_checked"]) == ("395", "2")


def read_as_pytriton(config: dict[str, Any]) -> dict[str, Any]:
    """What pytriton's ModelConfigParser asks of a configuration: names, types, and dims that are not empty."""
    assert config["name"]
    tensors = {}
    for kind in ("input", "output"):
        for item in config[kind]:
            assert item["data_type"].startswith("TYPE_")
            assert item["dims"], f"{item['name']}: dims are not defined"
            tensors[item["name"]] = (item["data_type"].removeprefix("TYPE_"), tuple(item["dims"]))
    return {"batching": config["max_batch_size"] > 0, "tensors": tensors}


@pytest.mark.parametrize(
    ("inputs", "outputs", "batching", "tensors"),
    [
        (
            [spec("x", "FP32", -1, 1, 28, 28)],
            [spec("y", "FP32", -1, 10)],
            True,
            {"x": ("FP32", (1, 28, 28)), "y": ("FP32", (10,))},
        ),
        (
            [spec("text", "BYTES", -1, 1)],
            [spec("y", "BF16", -1, -1)],
            True,
            {"text": ("STRING", (1,)), "y": ("BF16", (-1,))},
        ),
        (
            [spec("x", "INT64", 1, 3)],
            [spec("y", "BOOL", -1, 3)],
            False,
            {"x": ("INT64", (1, 3)), "y": ("BOOL", (-1, 3))},
        ),
        (
            [spec("x", "FP64", -1, 3)],
            [spec("y", "INT64", -1)],
            False,
            {"x": ("FP64", (-1, 3)), "y": ("INT64", (-1,))},
        ),
    ],
    ids=["batches", "strings", "fixed batch", "a tensor of nothing but its batch"],
)
def test_configuration_batches_only_where_every_tensor_does(
    plane: DataPlane,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    batching: bool,
    tensors: dict[str, Any],
) -> None:
    version = plane.register("m", signature=Signature(tuple(inputs), tuple(outputs)))

    config = model_config(version)

    assert read_as_pytriton(config) == {"batching": batching, "tensors": tensors}
    assert config["max_batch_size"] in (0, MAX_BATCH)


def test_one_session_serves_while_the_service_counts(plane: DataPlane) -> None:
    plane.register("m")
    call = Call(
        model="m",
        body=b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,3],"data":[1,2,3,4,5,6]}]}',
    )
    call.deadline = LATER
    plane.service.infer(call)

    [stats] = plane.service.model_statistics(Call(model="m"))["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (2, 1)
    durations = stats["inference_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert durations["success"]["ns"] == sum(durations[part]["ns"] for part in parts) > 0
    assert durations["fail"] == {"count": 0, "ns": 0}
    assert list(call.stages_ns) == ["resolve", "decode", "load", "compute", "encode"]
