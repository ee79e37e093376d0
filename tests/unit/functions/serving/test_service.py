"""Service methods without HTTP."""

import json
import time
from pathlib import Path

import pytest

from functions.core.errors import (
    ExecutionFailed,
    InvalidModel,
)
from functions.core.registry.version import Version
from functions.core.serving.service import Call
from tests.data_plane import PLAN, Client, DataPlane, rows

LATER = time.monotonic() + 3600


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    return DataPlane(tmp_path)


def test_an_inference_is_counted_with_the_durations_of_its_parts(plane: DataPlane) -> None:
    plane.register("m")
    client = Client(plane.handler())
    assert client.post("/v2/models/m/infer", rows([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])).status == 200

    [stats] = plane.service.model_statistics(Call(model="m"))["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (2, 1)
    durations = stats["inference_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert durations["success"]["ns"] == sum(durations[part]["ns"] for part in parts) > 0
    assert durations["fail"] == {"count": 0, "ns": 0}


def sampled(plane: DataPlane, model: str, document: object, **plan: bool) -> Version:
    blob = plane.blobs.add(
        "sample.json", document if isinstance(document, bytes) else json.dumps(document).encode()
    )
    return plane.register(model, 2.0, plan=PLAN | plan, sample=blob)


def test_load_requests_warm_up_and_inferences_do_not(plane: DataPlane, tmp_path: Path) -> None:
    client = Client(plane.handler())
    sampled(plane, "loaded", {"request": rows([1.0, 2.0, 3.0])})
    sampled(plane, "inferred", {"request": rows([1.0, 2.0, 3.0])})
    sampled(plane, "cold", {"request": rows([1.0, 2.0, 3.0])}, warmup=False)

    for model in ("loaded", "loaded", "cold"):
        assert client.post(f"/v2/repository/models/{model}/load").status == 200
    assert client.post("/v2/models/inferred/infer", rows([1.0, 2.0, 3.0])).status == 200

    assert plane.runtime.runs == [2.0, 2.0]  # the first load of `loaded`, and the inference
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("document", [b"{", [], {"request": {}}, {"request": rows([1.0])}], ids=str)
def test_a_broken_sample_does_not_fail_the_load(plane: DataPlane, document: object) -> None:
    sampled(plane, "m", document)

    assert Client(plane.handler()).post("/v2/repository/models/m/load").status == 200


def test_a_model_whose_warm_up_fails_stays_loaded(plane: DataPlane) -> None:
    plane.runtime.failure = ExecutionFailed("no")
    version = sampled(plane, "m", {"request": rows([1.0, 2.0, 3.0])})

    assert Client(plane.handler()).post("/v2/repository/models/m/load").status == 200
    assert plane.models.holds(version)


def test_a_load_request_retries_a_failed_load_at_once(plane: DataPlane) -> None:
    client = Client(plane.handler())
    plane.runtime.refusals = [InvalidModel("x")]
    plane.register("m")

    body = rows([1.0, 2.0, 3.0])
    assert [client.post("/v2/models/m/infer", body).status for _ in range(3)] == [500] * 3
    assert plane.blobs.fetches == 1
    assert client.post("/v2/repository/models/m/load").status == 200
    assert client.post("/v2/models/m/infer", body).status == 200
