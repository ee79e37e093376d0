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
from tests.data_plane import Client, DataPlane, rows

LATER = time.monotonic() + 3600


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    return DataPlane(tmp_path)


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


PLAN = {"optimised": "extended", "prepacking": False, "threads": 1, "warmup": True, "layout": False}


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
