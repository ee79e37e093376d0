"""Converters to int8, int4 and float16: operators, sizes and accuracy."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")


from tests.unit.training.compression.small_networks import (
    CALIBRATION,
    IMAGES,
    accuracy,
    convolutional,
    fit,
    graph_of,
    perceptron,
)
from training.compression import quantize
from training.compression.quantize import CONVERTERS
from training.export import torch_exporter

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore"),  # the converters' own
]


@pytest.fixture(scope="module")
def dense() -> Any:
    return graph_of(fit(perceptron(256)))


def operators(graph: Any) -> set[str]:
    return {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize(
    ("kind", "operator", "share"),
    [
        ("int8", "MatMulInteger", 0.4),
        ("int8-static", "QuantizeLinear", 0.4),
        ("int4", "MatMulNBits", 0.3),
        ("fp16", "Cast", 0.6),
    ],
)
def test_a_dense_network_shrinks_and_stays_accurate(
    kind: str, operator: str, share: float, dense: Any
) -> None:
    form = CONVERTERS[kind](dense, CALIBRATION)

    assert operator in operators(form)
    assert form.ByteSize() < share * dense.ByteSize()
    assert accuracy(form) >= accuracy(dense) - 0.01
    assert (form.ir_version, form.opset_import[0].version) == (10, 20)


def test_int4_computes_in_integers(dense: Any) -> None:
    """Accuracy level 0 would be 6 times slower than float32."""
    nodes = [node for node in quantize.int4(dense).graph.node if node.op_type == "MatMulNBits"]
    settings = [{attribute.name: attribute.i for attribute in node.attribute} for node in nodes]

    assert [(row["bits"], row["block_size"], row["accuracy_level"]) for row in settings] == [
        (4, 32, 4)
    ] * 2


def test_convolutions_are_never_computed_in_integers_at_run_time() -> None:
    images = graph_of(convolutional(16, 64))

    assert "ConvInteger" not in operators(quantize.dynamic_int8(images))
    assert quantize.static_int8(images, CALIBRATION).ByteSize() < 0.5 * images.ByteSize()


def test_dense_layers_exported_by_torch_can_be_quantized() -> None:
    """Inferred shapes break the quantizer; a finished graph has none."""
    network = fit(perceptron(), 20)
    graph = graph_of(network, torch_exporter.named_dims)
    spec = torch_exporter.Spec(
        network,
        {"x": {0: "batch"}},
        ["y"],
        {"batch": torch_exporter.Dim()},
        lambda s: (IMAGES[: s["batch"]],),
    )

    assert "Gemm" in operators(graph)
    assert not graph.graph.value_info
    assert "MatMulInteger" in operators(quantize.dynamic_int8(graph))
    with pytest.raises(Exception, match="Inferred shape and existing shape differ"):
        quantize.dynamic_int8(torch_exporter.named_dims(spec))
