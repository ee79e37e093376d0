"""Choice among compressed variants by metric, size and latency."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")


from tests.networks import spec
from tests.unit.training.compression.small_networks import (
    CALIBRATION,
    accuracy,
    fit,
    graph_of,
    perceptron,
)
from training import networks
from training.compression import variants
from training.errors import CompressionFailed
from training.export import graphs, torch_exporter

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore"),  # the converters' own
]


def compressed(graph: Any, *kinds: str, **settings: Any) -> variants.Compressed:
    options = {"higher_is_better": True, "calibration": CALIBRATION, "budget": 0.02} | settings
    evaluate = options.pop("evaluate", accuracy)
    return variants.compress(graph, kinds, evaluate, **options)


@pytest.fixture(scope="module")
def dense() -> Any:
    return graph_of(fit(perceptron(256)))


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure equal latencies for all graphs: on a busy machine they vary."""
    monkeypatch.setattr(variants, "latencies", lambda graphs, request: [1.0] * len(graphs))


def test_the_best_variant_within_the_budget_is_accepted(dense: Any, even: None) -> None:
    result = compressed(dense, "int8", "fp16", "int4")

    assert result.graph.ByteSize() == min(row.size_bytes for row in result.rows)
    assert [row.kind for row in result.rows if row.accepted] == [result.kind]
    assert [row.kind for row in result.rows] == ["fp32", "int8", "fp16", "int4"]
    assert all(row.metric is not None and row.latency_ms for row in result.rows)
    assert set(result.records()[0]) == {
        "kind",
        "size_bytes",
        "metric",
        "latency_ms",
        "taken",
        "why",
    }
    assert len(result.table("accuracy").splitlines()) == 5
    assert result.atol == variants.moved(dense, result.graph, CALIBRATION) > graphs.ATOL


@pytest.mark.parametrize(("higher", "worse"), [(True, 0.98), (False, 1.02)])
def test_a_variant_that_exceeds_the_budget_is_rejected(
    higher: bool, worse: float, dense: Any, even: None
) -> None:
    def metric(graph: Any) -> float:
        return 1.0 if graph is dense else worse

    refused = compressed(dense, "int8", evaluate=metric, higher_is_better=higher, budget=0.005)
    allowed = compressed(dense, "int8", evaluate=metric, higher_is_better=higher, budget=0.025)

    assert (refused.kind, allowed.kind) == ("fp32", "int8")
    assert refused.graph is dense
    assert refused.rows[1].reason == "not taken: 2.00% worse, and 0.50% are allowed"


def test_a_variant_neither_smaller_nor_faster_is_rejected(dense: Any, even: None) -> None:
    result = compressed(dense, "same", networks={"same": lambda: dense})

    assert result.kind == "fp32"
    assert result.rows[1].reason == "not taken: size x1.00, latency x1.00 of fp32"


def test_latency_is_milliseconds_of_one_row(dense: Any) -> None:
    first, second = variants.latencies([dense, dense], variants._first_row(CALIBRATION[0]))

    assert variants._first_row(CALIBRATION[0])["x"].shape == (1, 1, 8, 8)
    assert 0 < first < 1000
    assert 0 < second < 1000


def test_a_variant_that_cannot_be_made_is_a_row_of_the_table() -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other]
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )

    result = compressed(
        model,
        "int8",
        "int4",
        evaluate=lambda _: 1.0,
        calibration=[{"x": np.ones((2, 3), np.float32)}],
    )

    assert [row.reason for row in result.rows[1:]] == [
        "not made: the model has no weights of that kind"
    ] * 2
    assert result.graph is model


def test_a_variant_that_crashes_or_overflows_is_a_row_of_the_table() -> None:
    """ONNX Runtime 1.31.1 crashes on this encoder in float16, whose largest value is 65,504."""
    torch.manual_seed(0)
    encoder = networks.Encoder(20, 64, 3, width=16, heads=2)
    model = torch_exporter.export(
        replace(spec("encoder"), model=encoder), [torch_exporter.named_dims]
    )
    tokens = {"tokens": np.ones((2, 5), np.int64)}

    result = compressed(model, "fp16", evaluate=lambda _: 1.0, calibration=[tokens])

    assert result.rows[1].reason == "not made: it ends the process that loads it"
    assert result.graph is model
    loud = [{"x": np.full((2, 1, 8, 8), 1e5, np.float32)}]
    result = compressed(graph_of(perceptron()), "fp16", evaluate=lambda _: 1.0, calibration=loud)
    assert result.rows[1].reason == "not made: it answers NaN or infinity where the model does not"


@pytest.mark.parametrize(
    ("kinds", "calibration", "why"),
    [
        (["int7"], CALIBRATION, "no compression 'int7': int8, int8-static, int4, fp16"),
        (["int8"], [], "examples"),
    ],
)
def test_an_unknown_kind_or_no_calibration_is_an_error(
    kinds: list[str], calibration: list[Any], why: str, dense: Any
) -> None:
    with pytest.raises(CompressionFailed, match=why):
        compressed(dense, *kinds, calibration=calibration)


def test_a_smaller_network_is_judged_and_quantized_like_any_variant(dense: Any, even: None) -> None:
    small = graph_of(fit(perceptron(32)))

    result = compressed(dense, "pruned", "int8", networks={"pruned": lambda: small}, budget=0.05)

    assert [row.size_bytes for row in result.rows][1] == small.ByteSize()
    assert result.rows[2].size_bytes < small.ByteSize()  # int8 of the pruned network
