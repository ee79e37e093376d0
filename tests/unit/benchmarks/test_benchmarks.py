"""Benchmarks: command lines, arithmetic, events and result lines."""

import base64
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cold_start, many_models, memory, payload, register, warm_request
from benchmarks.harness import cloud, fleet, measure, models, requests
from benchmarks.harness.measure import Spread
from benchmarks.harness.member import WIDTH, Member
from benchmarks.harness.requests import WrongPrediction
from benchmarks.harness.storage import byte_range
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.protocol.infer_reply import encode_infer
from functions.core.protocol.infer_request import HEADER, decode_infer
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.serving.http import HttpResponse
from local.template import Template
from tests.arrays import to_array, to_tensor

MODELS = ["tiny", "conv100", "encoder400"]
TINY = models.workloads()["tiny"]
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 784)),), (TensorSpec("y", "FP32", (-1, 10)),))
LINE = {"benchmark", "commit", "date", "machine", "versions", "unit", "rounds", "results"}
COLD_MS = {
    "reference": [100.0, 200.0],
    "usual, s3-like": [500.0, 1000.0],
    "ours, s3-like": [50.0, 100.0],
    "open, s3-like": [40.0, 100.0],
    "ours, aws, s3-like": [60.0, 140.0],
}
WARM_US = {
    "json 1|bare": [10.0, 20.0],
    "json 1|ours": [50.0, 60.0],
    "json 1|open": [40.0, 60.0],
    "json 1|unmetered": [48.0, 56.0],
    "binary 128|bare": [100.0, 100.0],
}


# --- command lines


def test_everything_is_measured_by_default() -> None:
    chosen = cold_start.arguments([])

    assert chosen.models == MODELS
    assert chosen.storages == ["s3-like", "unthrottled"]
    assert chosen.save
    assert chosen.rounds > 1
    assert warm_request.arguments([]).rounds > 1
    assert payload.arguments([]).rounds > 1


def test_registrations_are_compared_with_a_download_and_loads_with_uploads() -> None:
    assert register.arguments([]).models == MODELS
    durations_ms = {name: [10.0, 30.0] for name in (register.OURS, register.SERVED)}
    durations_ms |= {name: [5.0, 10.0] for name in (register.REFERENCE, register.UPLOAD)}

    entries = register.results("tiny", durations_ms, None)

    assert {entry["what"]: entry.get("ratio") for entry in entries} == {
        register.OURS: {"median": 2.5, "p90": 2.9},
        register.SERVED: {"median": 2.5, "p90": 2.9},
        register.REFERENCE: None,
        register.UPLOAD: None,
    }
    assert "2.50" in register.table(entries)


def test_arguments_choose_models_storages_and_rounds() -> None:
    words = ["--rounds", "3", "--models", "tiny", "--storages", "s3-like", "--no-save"]
    chosen = cold_start.arguments(words)

    assert (chosen.rounds, chosen.models, chosen.storages) == (3, ["tiny"], ["s3-like"])
    assert not chosen.save


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--rounds", "x"], ["--models", "tiny,huge"], ["--models", ""]]
)
def test_wrong_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cold_start.arguments(words)

    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


# --- arithmetic


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], Spread(1, 7.0, 7.0)),
        ([3.0, 1.0, 2.0], Spread(3, 2.0, 2.8)),
        (list(range(101)), Spread(101, 50, 90)),
    ],
    ids=["one", "unordered", "many"],
)
def test_a_spread_is_median_and_ninetieth_percentile(values: list[float], expected: Spread) -> None:
    assert Spread.from_values(values) == expected


def test_ratios_are_of_the_same_round() -> None:
    # the medians' ratio would be 1.97
    assert measure.ratios([1.0, 200.0], [2.0, 100.0]) == Spread(2, 1.25, 1.85)


def test_rounds_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        measure.ratios([1.0], [1.0, 2.0])


def test_each_round_begins_with_another_contender() -> None:
    order: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    results = measure.interleave({name: contender(name) for name in "abc"}, 2)

    assert "".join(order) == "abc" + "bca" + "cab"  # the first round is the warm-up
    assert results == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


# --- results


def test_cold_starts_are_compared_with_reference_and_usual_handler() -> None:
    reference, usual, ours, _, under_aws = cold_start.results("tiny", COLD_MS, ["s3-like"])

    labels = {"model": "tiny", "contender": "reference", "storage": "local file"}
    assert reference == labels | {"n": 2, "median": 150.0, "p90": 190.0}
    assert usual["over_reference"] == {"median": 5.0, "p90": 5.0}
    assert ours["over_reference"] == {"median": 0.5, "p90": 0.5}
    assert ours["over_usual"] == {"median": 0.1, "p90": 0.1}
    assert ours["over_open"]["median"] == 1.125  # of 50 / 40 and 100 / 100
    assert under_aws["over_usual"]["median"] == 0.13  # of 60 / 500 and 140 / 1000


def test_a_cold_start_can_be_measured_under_one_client() -> None:
    assert cold_start.arguments(["--clients", "aws"]).clients == ["aws"]
    durations_ms = {
        name: values for name, values in COLD_MS.items() if not name.startswith(("ours, s", "open"))
    }

    entries = cold_start.results("tiny", durations_ms, ["s3-like"])

    assert [entry["contender"] for entry in entries] == ["reference", "usual", "ours, aws"]


def test_warm_requests_are_compared_with_the_bare_run() -> None:
    bare, ours, *_ = warm_request.results(WARM_US)

    assert (bare["encoding"], bare["rows"], bare["median"]) == ("json", 1, 15.0)
    assert ours["over_bare"] == {"median": 4.0, "p90": 4.8}
    assert ours["minus_bare"] == {"median": 40.0, "p90": 40.0}
    assert ours["minus_open"]["median"] == 5.0  # the check of the caller's key
    assert ours["minus_unmetered"]["median"] == 3.0


@pytest.mark.parametrize(
    ("table", "entries"),
    [
        (cold_start.table, cold_start.results("tiny", COLD_MS, ["s3-like"])),
        (warm_request.table, warm_request.results(WARM_US)),
        (payload.table, warm_request.results(WARM_US)),
    ],
    ids=["cold start", "warm request", "payload"],
)
def test_a_table_has_one_line_a_result(
    table: Callable[[Any], str], entries: list[dict[str, Any]]
) -> None:
    assert len(table(entries).splitlines()) == 1 + len(entries)


def test_a_result_names_the_machine_but_neither_host_nor_folder() -> None:
    line = measure.result_line(
        "cold_start", "ms", 2, cold_start.results("tiny", COLD_MS, ["s3-like"])
    )

    assert set(line) == LINE
    assert set(line["machine"]) == {"cpu", "architecture", "cores", "load"}
    assert set(line["versions"]) == {"python", *measure.PACKAGES}
    assert all({"n", "median", "p90"} <= set(entry) for entry in line["results"])
    text = json.dumps(line)
    assert platform.node() not in line["machine"].values()
    assert str(Path.home()) not in text
    assert str(measure.ROOT) not in text


@pytest.mark.parametrize("save", [True, False])
def test_the_printed_result_line_is_the_saved_one(
    save: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rounds in (1, 2):
        measure.finish({"benchmark": "cold_start", "rounds": rounds}, save, tmp_path)

    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["rounds"] for line in printed] == [1, 2]
    saved = tmp_path / "cold_start.jsonl"
    assert (saved.read_text().splitlines() if saved.exists() else []) == (printed if save else [])


def test_saved_results_have_the_schema() -> None:
    for path in measure.RESULTS.glob("*.jsonl"):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            assert set(line) >= LINE  # a benchmark may add fields
            assert line["benchmark"] == path.stem


# --- requests and predictions


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("rows", [1, 128])
def test_json_and_binary_events_hold_the_same_values(rows: int, binary: bool) -> None:
    event = requests.infer_event(TINY, rows, binary=binary)
    request = decode_infer(base64.b64decode(event["body"]), event["headers"].get(HEADER), SIGNATURE)

    assert event["isBase64Encoded"]
    np.testing.assert_array_equal(
        to_array(request.inputs["x"]), TINY.values(rows).astype(np.float32)
    )


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_a_prediction_is_read_from_the_reply(binary: bool) -> None:
    event = requests.infer_event(TINY, binary=binary)
    request = decode_infer(base64.b64decode(event["body"]), event["headers"].get(HEADER), SIGNATURE)
    expected = np.arange(10, dtype=np.float32).reshape(1, 10) / 3
    reply = encode_infer(request, {"y": to_tensor(expected)}, SIGNATURE, "tiny", 1)
    headers = {} if reply.header_length is None else {HEADER.lower(): str(reply.header_length)}
    reply_event = HttpResponse(200, reply.body, headers, binary).to_event()

    np.testing.assert_array_equal(requests.infer_prediction(reply_event), expected)


def test_an_error_reply_has_no_prediction() -> None:
    with pytest.raises(RuntimeError, match="404"):
        requests.infer_prediction({"statusCode": 404, "body": "", "isBase64Encoded": False})
    with pytest.raises(RuntimeError, match="500"):
        requests.usual_prediction({"statusCode": 500, "body": ""})


def test_a_wrong_answer_ends_the_benchmark() -> None:
    output = {"name": "y", "shape": [1, 2], "data": [0.5, 0.5001]}
    body = json.dumps({"outputs": [output]}).encode()
    reply = HttpResponse(200, body).to_event()

    warm_request.check({"json 1|bare": [[0.5, 0.5001]], "json 1|ours": reply})
    for expected in ([[0.5, 0.5]], [[0.5, 0.5001, 0.5]], [0.5, 0.5001]):
        with pytest.raises(WrongPrediction, match="ours answered json 1 wrongly"):
            warm_request.check({"json 1|bare": expected, "json 1|ours": reply})


def test_a_prediction_that_is_not_a_number_is_wrong() -> None:
    with pytest.raises(WrongPrediction):
        requests.check_prediction("ours answered", np.array([np.nan]), np.array([1.0]))


def test_payloads_are_within_lambda_s_limit(tmp_path: Path) -> None:
    aws = cloud.Cloud(tmp_path, "", {}, Template.load("template.yaml"))

    plan = payload.make_plan(aws, rounds=1)

    assert [case["case"] for case in plan["cases"]][-1] == "binary 1100000"
    largest = {case["event"]: Path(case["event"]).stat().st_size for case in plan["cases"]}
    assert 5_500_000 < max(largest.values()) <= payload.EVENT_LIMIT
    assert all(2 <= case["repeats"] <= 25 for case in plan["cases"])


# --- models and storage


def test_building_a_model_again_gives_the_same_bytes() -> None:
    assert models.tiny().SerializeToString() == models.tiny().SerializeToString()
    assert 400_000 < models.tiny().ByteSize() < 420_000


def test_models_have_the_project_s_opset() -> None:
    model = models.tiny()

    assert (model.opset_import[0].version, model.ir_version) == (20, 10)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, range(10)),
        ("bytes=0-0", range(1)),
        ("bytes=4-", range(4, 10)),
        ("bytes=8-99", range(8, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-99", range(10)),
        ("bytes=10-", None),
        ("bytes=-0", None),
        ("rows=1-2", range(10)),
    ],
)
def test_storage_reads_ranges_as_s3_does(header: str | None, expected: range | None) -> None:
    assert byte_range(header, 10) == expected


# --- many models, memory


def test_a_larger_fleet_begins_with_the_members_of_a_smaller_one() -> None:
    ten, thousand = fleet.members(10), fleet.members(1000)
    sizes = {member.size_bytes for member in thousand}

    assert thousand[:10] == ten
    assert all(fleet.SMALLEST_BYTES <= size <= fleet.LARGEST_BYTES for size in sizes)
    assert len(sizes) > 900


def test_a_member_of_a_fleet_answers_with_its_number(tmp_path: Path) -> None:
    member = Member(7, 100_000)
    fleet.write(member, tmp_path / "model.onnx")
    session = OnnxRuntime().load(tmp_path / "model.onnx")
    inputs = {"x": to_tensor(np.full((1, WIDTH), 2.5, np.float32))}
    [answer] = to_array(session.run(inputs, ["y"], 30)["y"])

    assert abs((tmp_path / "model.onnx").stat().st_size - 100_000) < 1000
    assert member.is_answer(answer.tolist(), 2.5)
    assert not Member(8, 100_000).is_answer(answer.tolist(), 2.5)
    assert not member.is_answer(answer.tolist(), 3.0)


MEASURED = {
    "hits_ms": [1.0, 2.0, 3.0],
    "misses_ms": [50.0],
    "refused": {},
    "bare_mb": 100.0,
    "peaks_mb": [150.0, 160.0],
    "held_mb": 40.0,
    "bound_mb": 170.0,
}


def test_many_models_are_reported_as_hits_and_misses() -> None:
    entry = many_models.result(10, MEASURED)
    without_misses = many_models.result(10, MEASURED | {"misses_ms": []})

    assert (entry["models"], entry["n"], entry["hit_rate"]) == (10, 4, 0.75)
    assert entry["hit"] == {"n": 3, "p50_ms": 2.0, "p99_ms": 3.0}
    assert entry["miss"] == {"n": 1, "p50_ms": 50.0, "p99_ms": 50.0}
    assert entry["memory_mb"] == {"bare": 100, "peak": 160, "held": 40, "bound": 170}
    assert "0.750" in many_models.table([entry, without_misses])
    assert many_models.arguments(["--models", "5,6"]).models == [5, 6]
    with pytest.raises(SystemExit):
        many_models.arguments(["--models", "5,x"])


def test_memory_is_compared_with_the_goal() -> None:
    peaks_mb = {
        memory.IDLE: [40.0, 42.0],
        memory.REFERENCE: [300.0, 302.0],
        memory.OURS: [140.0, 152.0],
    }

    idle, reference, ours = memory.results("conv100", 100.0, peaks_mb)

    assert "over_idle" not in idle
    assert reference["over_idle"]["median"] == 260.0
    assert (ours["over_idle"]["median"], ours["goal"], ours["weights_mb"]) == (105.0, 180.0, 100.0)
    assert "105" in memory.table([idle, reference, ours])
