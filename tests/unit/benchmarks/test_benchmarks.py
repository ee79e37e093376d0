"""What is certain about the benchmarks: their arguments, their arithmetic, what they send and what they write down."""

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
from benchmarks.harness.storage import byte_range
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.protocol.infer_reply import encode_infer
from functions.core.protocol.infer_request import HEADER, decode_infer
from functions.core.protocol.signature import Signature, TensorSpec
from local.template import Template
from tests.arrays import to_array, to_tensor

MODELS = ["tiny", "conv100", "encoder400"]
TINY = models.workloads()["tiny"]
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 784)),), (TensorSpec("y", "FP32", (-1, 10)),))
LINE = {"benchmark", "commit", "date", "machine", "versions", "unit", "rounds", "results"}
TAKEN_COLD = {
    "reference": [100.0, 200.0],
    "usual, s3-like": [500.0, 1000.0],
    "ours, s3-like": [50.0, 100.0],
}
TAKEN_WARM = {
    "json 1|bare": [10.0, 20.0],
    "json 1|ours": [50.0, 60.0],
    "binary 128|bare": [100.0, 100.0],
}


# --- arguments --------------------------------------------------------------------------------------------------------


def test_everything_is_measured_unless_told_otherwise() -> None:
    wanted = cold_start.arguments([])

    assert (wanted.models, wanted.storages, wanted.save) == (
        MODELS,
        ["s3-like", "unthrottled"],
        True,
    )
    assert wanted.rounds > 1
    assert warm_request.arguments([]).rounds > 1
    assert payload.arguments([]).rounds > 1


def test_registering_is_measured_with_a_large_model_too() -> None:
    assert register.arguments([]).models == MODELS
    taken = {name: [10.0, 30.0] for name in (register.OURS, register.SERVED)}
    taken |= {name: [5.0, 10.0] for name in (register.REFERENCE, register.UPLOAD)}

    found = register.results("tiny", taken, None)

    assert {entry["what"]: entry.get("ratio") for entry in found} == {
        register.OURS: {"median": 2.5, "p90": 2.9},
        register.SERVED: {"median": 2.5, "p90": 2.9},
        register.REFERENCE: None,
        register.UPLOAD: None,
    }
    assert "2.50" in register.table(found)


def test_arguments_choose() -> None:
    wanted = cold_start.arguments(
        ["--rounds", "3", "--models", "tiny", "--storages", "s3-like", "--no-save"]
    )

    assert (wanted.rounds, wanted.models, wanted.storages, wanted.save) == (
        3,
        ["tiny"],
        ["s3-like"],
        False,
    )


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--rounds", "x"], ["--models", "tiny,huge"], ["--models", ""]]
)
def test_wrong_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cold_start.arguments(words)

    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


# --- arithmetic -------------------------------------------------------------------------------------------------------


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
    assert Spread.of(values) == expected


def test_ratios_are_of_the_same_round() -> None:
    assert measure.ratios([1.0, 200.0], [2.0, 100.0]) == Spread(
        2, 1.25, 1.85
    )  # the medians' ratio would be 1.97


def test_rounds_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        measure.ratios([1.0], [1.0, 2.0])


def test_contenders_take_turns_at_the_first_place() -> None:
    order: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    taken = measure.interleave({name: contender(name) for name in "abc"}, 2)

    assert "".join(order) == "abc" + "bca" + "cab"  # the first round is the warm-up
    assert taken == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


# --- results ----------------------------------------------------------------------------------------------------------


def test_cold_starts_are_compared_with_both_others() -> None:
    reference, usual, ours = cold_start.results("tiny", TAKEN_COLD, ["s3-like"])

    assert reference == {
        "model": "tiny", "contender": "reference", "storage": "local file", "n": 2, "median": 150.0, "p90": 190.0,
    }  # fmt: skip
    assert usual["over_reference"] == {"median": 5.0, "p90": 5.0}
    assert ours["over_reference"] == {"median": 0.5, "p90": 0.5}
    assert ours["over_usual"] == {"median": 0.1, "p90": 0.1}


def test_warm_requests_are_compared_with_the_bare_run() -> None:
    bare, ours, _ = warm_request.results(TAKEN_WARM)

    assert (bare["encoding"], bare["rows"], bare["median"]) == ("json", 1, 15.0)
    assert ours["over_bare"] == {"median": 4.0, "p90": 4.8}
    assert ours["minus_bare"] == {"median": 40.0, "p90": 40.0}


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (cold_start.table, cold_start.results("tiny", TAKEN_COLD, ["s3-like"])),
        (warm_request.table, warm_request.results(TAKEN_WARM)),
        (payload.table, warm_request.results(TAKEN_WARM)),
    ],
    ids=["cold start", "warm request", "payload"],
)
def test_a_table_has_one_line_a_result(
    table: Callable[[Any], str], found: list[dict[str, Any]]
) -> None:
    assert len(table(found).splitlines()) == 1 + len(found)


def test_a_result_says_what_it_was_measured_on_and_nothing_of_whose_machine_it_is() -> None:
    line = measure.result_line(
        "cold_start", "ms", 2, cold_start.results("tiny", TAKEN_COLD, ["s3-like"])
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
def test_the_last_line_printed_is_the_one_that_is_kept(
    save: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rounds in (1, 2):
        measure.finish({"benchmark": "cold_start", "rounds": rounds}, save, tmp_path)

    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["rounds"] for line in printed] == [1, 2]
    kept = tmp_path / "cold_start.jsonl"
    assert (kept.read_text().splitlines() if kept.exists() else []) == (printed if save else [])


def test_kept_results_have_the_schema() -> None:
    for path in measure.RESULTS.glob("*.jsonl"):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            assert set(line) >= LINE  # and what a benchmark has to say besides
            assert line["benchmark"] == path.stem


# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("rows", [1, 128])
def test_the_event_holds_the_same_values_however_they_are_spelled(rows: int, binary: bool) -> None:
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
    body = base64.b64encode(reply.body).decode()

    found = requests.infer_prediction({"statusCode": 200, "headers": headers, "body": body})
    np.testing.assert_array_equal(found, expected)


def test_a_refusal_is_no_prediction() -> None:
    with pytest.raises(RuntimeError, match="404"):
        requests.infer_prediction({"statusCode": 404, "headers": {}, "body": ""})
    with pytest.raises(RuntimeError, match="500"):
        requests.usual_prediction({"statusCode": 500, "body": ""})


def test_a_wrong_answer_ends_the_benchmark() -> None:
    text = base64.b64encode(
        json.dumps({"outputs": [{"name": "y", "shape": [1, 2], "data": [0.5, 0.5001]}]}).encode()
    ).decode()
    reply = {"statusCode": 200, "headers": {}, "body": text}

    warm_request.check({"json 1|bare": [[0.5, 0.5001]], "json 1|ours": reply})
    with pytest.raises(RuntimeError, match="ours answered json 1 wrongly"):
        warm_request.check({"json 1|bare": [[0.5, 0.5]], "json 1|ours": reply})


def test_payloads_are_what_lambda_lets_in(tmp_path: Path) -> None:
    where = cloud.Cloud(tmp_path, "", {}, Template.load("template.yaml"))

    plan = payload.plan(where, rounds=1)

    assert [case["case"] for case in plan["cases"]][-1] == "binary 1100000"
    largest = {case["event"]: Path(case["event"]).stat().st_size for case in plan["cases"]}
    assert 5_500_000 < max(largest.values()) <= payload.EVENT_LIMIT
    assert all(2 <= case["repeats"] <= 25 for case in plan["cases"])


# --- models and storage -----------------------------------------------------------------------------------------------


def test_a_model_is_the_same_every_time() -> None:
    assert models.tiny().SerializeToString() == models.tiny().SerializeToString()
    assert 400_000 < models.tiny().ByteSize() < 420_000


def test_models_are_of_the_project_s_opset() -> None:
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


# --- many models, and their memory ------------------------------------------------------------------------------------


def test_a_fleet_is_the_same_every_time_and_its_members_answer_with_themselves(
    tmp_path: Path,
) -> None:
    ten, thousand = fleet.members(10), fleet.members(1000)
    assert thousand[:10] == ten
    assert {fleet.SMALLEST_BYTES <= one.size_bytes <= fleet.LARGEST_BYTES for one in thousand} == {
        True
    }
    assert len({one.size_bytes for one in thousand}) > 900

    member = Member(7, 100_000)
    fleet.write(member, tmp_path / "model.onnx")
    session = OnnxRuntime().load(tmp_path / "model.onnx")
    [answer] = to_array(
        session.run({"x": to_tensor(np.full((1, WIDTH), 2.5, np.float32))}, ["y"], 30)["y"]
    )

    assert abs((tmp_path / "model.onnx").stat().st_size - 100_000) < 1000
    assert member.is_answer(answer.tolist(), 2.5)
    assert not Member(8, 100_000).is_answer(answer.tolist(), 2.5)
    assert not member.is_answer(answer.tolist(), 3.0)


SEEN = {
    "hits_ms": [1.0, 2.0, 3.0], "misses_ms": [50.0], "refused": {}, "bare_mb": 100.0, "peaks_mb": [150.0, 160.0],
    "held_mb": 40.0, "bound_mb": 170.0,
}  # fmt: skip


def test_many_models_are_told_by_hits_and_misses() -> None:
    entry = many_models.result(10, SEEN)

    assert (entry["models"], entry["n"], entry["hit_rate"]) == (10, 4, 0.75)
    assert entry["hit"] == {"n": 3, "p50_ms": 2.0, "p99_ms": 3.0}
    assert entry["miss"] == {"n": 1, "p50_ms": 50.0, "p99_ms": 50.0}
    assert entry["memory_mb"] == {"bare": 100, "peak": 160, "held": 40, "bound": 170}
    assert "0.750" in many_models.table([entry, many_models.result(10, SEEN | {"misses_ms": []})])
    assert many_models.arguments(["--models", "5,6"]).models == [5, 6]
    with pytest.raises(SystemExit):
        many_models.arguments(["--models", "5,x"])


def test_memory_is_compared_with_the_goal() -> None:
    taken = {
        memory.IDLE: [40.0, 42.0],
        memory.REFERENCE: [300.0, 302.0],
        memory.OURS: [140.0, 152.0],
    }

    idle, reference, ours = memory.results("conv100", 100.0, taken)

    assert "over_idle" not in idle
    assert reference["over_idle"]["median"] == 260.0
    assert (ours["over_idle"]["median"], ours["goal"], ours["weights_mb"]) == (105.0, 180.0, 100.0)
    assert "105" in memory.table([idle, reference, ours])
