"""Each compression does what it says, and is taken only if the model stays good enough."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.networks import spec
from training import networks
from training.compression import distil, prune, quantize
from training.errors import CompressionFailed
from training.export import graphs, torch_exporter
from training.fitting import losses

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]  # the tools' own

X, Y = load_digits(return_X_y=True)
IMAGES, LABELS = (
    torch.from_numpy(X.astype(np.float32) / 16).reshape(-1, 1, 8, 8),
    torch.from_numpy(Y),
)
TRAIN, TEST = slice(0, 1300), slice(1300, None)
CALIBRATION = [{"x": IMAGES[start : start + 50].numpy()} for start in range(0, 200, 50)]
Network = Any


def fit(
    network: Network,
    steps: int = 150,
    loss: losses.Loss = losses.cross_entropy,
    rows: slice = TRAIN,
) -> Network:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, (IMAGES[rows],), LABELS[rows]).backward()
        optimizer.step()
    return network.eval()


def perceptron(hidden: int = 64) -> Network:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def convolutional(first: int = 8, second: int = 16) -> Network:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * 4, 10))  # fmt: skip


def right(network: Network) -> float:
    with torch.no_grad():
        return float((network(IMAGES[TEST]).argmax(1) == LABELS[TEST]).float().mean())


def graph_of(network: Network, rung: Any = torch_exporter.LADDER[2]) -> Any:
    spec = torch_exporter.Spec(
        network,
        {"x": {0: "batch"}},
        ["y"],
        {"batch": torch_exporter.Dim()},
        lambda sizes: (IMAGES[: sizes["batch"]],),
    )
    return torch_exporter.export(spec, [rung])


def accuracy(graph: Any) -> float:
    answers = graphs.runtime(graph).run(None, {"x": IMAGES[TEST].numpy()})[0]
    return float(np.mean(answers.argmax(1) == Y[TEST]))


def compressed(graph: Any, *kinds: str, **settings: Any) -> quantize.Compressed:
    options = {"higher_is_better": True, "calibration": CALIBRATION, "budget": 0.02} | settings
    return quantize.compress(graph, kinds, settings.pop("evaluate", accuracy), **{
        name: value for name, value in options.items() if name != "evaluate"})  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make these small networks slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dense() -> Any:
    return graph_of(fit(perceptron(256)))


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """All forms take as long as each other: on a busy machine times are luck."""
    monkeypatch.setattr(quantize, "latencies", lambda graphs, request: [1.0] * len(graphs))


def operators(graph: Any) -> set[str]:
    return {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize(
    ("kind", "operator", "share"),
    [("int8", "MatMulInteger", 0.4), ("int8-static", "QuantizeLinear", 0.4), ("int4", "MatMulNBits", 0.3),
     ("fp16", "Cast", 0.6)],
)  # fmt: skip
def test_a_dense_network_shrinks_and_stays_as_good(
    kind: str, operator: str, share: float, dense: Any
) -> None:
    form = quantize.MAKERS[kind](dense, CALIBRATION)

    assert operator in operators(form)
    assert form.ByteSize() < share * dense.ByteSize()
    assert accuracy(form) >= accuracy(dense) - 0.01
    assert (form.ir_version, form.opset_import[0].version) == (10, 20)


def test_int4_computes_in_integers(dense: Any) -> None:
    """accuracy_level 0 would be 6 times slower than float32."""
    nodes = [node for node in quantize.int4(dense).graph.node if node.op_type == "MatMulNBits"]
    settings = [{attribute.name: attribute.i for attribute in node.attribute} for node in nodes]

    assert [(one["bits"], one["block_size"], one["accuracy_level"]) for one in settings] == [
        (4, 32, 4)
    ] * 2


def test_convolutions_are_never_computed_in_integers_at_run_time() -> None:
    images = graph_of(convolutional(16, 64))

    assert "ConvInteger" not in operators(quantize.dynamic_int8(images))
    assert quantize.static_int8(images, CALIBRATION).ByteSize() < 0.5 * images.ByteSize()


def test_dense_layers_as_torch_exports_them_can_be_quantised() -> None:
    """Shapes that the new exporter infers are in the quantiser's way; a finished graph has none."""
    network = fit(perceptron(), 20)
    graph = graph_of(network, torch_exporter.LADDER[0])
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
        quantize.dynamic_int8(torch_exporter.LADDER[0](spec))


def test_the_best_form_within_the_budget_is_taken(dense: Any, even: None) -> None:
    result = compressed(dense, "int8", "fp16", "int4")

    assert result.graph.ByteSize() == min(row.size_bytes for row in result.rows)
    assert [row.kind for row in result.rows if row.taken] == [result.kind]
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
    assert result.atol == quantize.moved(dense, result.graph, CALIBRATION) > graphs.ATOL


@pytest.mark.parametrize(("higher", "worse"), [(True, 0.98), (False, 1.02)])
def test_what_costs_more_than_the_budget_is_not_taken(
    higher: bool, worse: float, dense: Any, even: None
) -> None:
    def metric(graph: Any) -> float:
        return 1.0 if graph is dense else worse

    refused = compressed(dense, "int8", evaluate=metric, higher_is_better=higher, budget=0.005)
    allowed = compressed(dense, "int8", evaluate=metric, higher_is_better=higher, budget=0.025)

    assert (refused.kind, allowed.kind) == ("fp32", "int8")
    assert refused.graph is dense
    assert refused.rows[1].why == "not taken: 2.00% worse, and 0.50% are allowed"


def test_what_is_neither_smaller_nor_faster_is_not_taken(dense: Any, even: None) -> None:
    result = compressed(dense, "same", made={"same": lambda: dense})

    assert result.kind == "fp32"
    assert result.rows[1].why == "not taken: size x1.00, latency x1.00 of fp32"


def test_latency_is_of_one_row_in_milliseconds(dense: Any) -> None:
    first, second = quantize.latencies([dense, dense], quantize._one(CALIBRATION[0]))

    assert quantize._one(CALIBRATION[0])["x"].shape == (1, 1, 8, 8)
    assert 0 < first < 1000
    assert 0 < second < 1000


def test_a_kind_that_cannot_be_made_is_a_line_in_the_table() -> None:
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

    assert [row.why for row in result.rows[1:]] == [
        "not made: the model has no weights of that kind"
    ] * 2
    assert result.graph is model


def test_a_form_that_ends_the_process_or_overflows_is_a_line_in_the_table() -> None:
    """ONNX Runtime 1.31.1 dies of this encoder in half precision, while it optimises it; 1e5 has no half precision."""
    torch.manual_seed(0)
    encoder = networks.Encoder(20, 64, 3, width=16, heads=2)
    model = torch_exporter.export(
        replace(spec("encoder"), model=encoder), [torch_exporter.LADDER[0]]
    )
    tokens = {"tokens": np.ones((2, 5), np.int64)}

    result = compressed(model, "fp16", evaluate=lambda _: 1.0, calibration=[tokens])

    assert result.rows[1].why == "not made: it ends the process that loads it"
    assert result.graph is model
    loud = [{"x": np.full((2, 1, 8, 8), 1e5, np.float32)}]
    result = compressed(graph_of(perceptron()), "fp16", evaluate=lambda _: 1.0, calibration=loud)
    assert result.rows[1].why == "not made: it answers NaN or infinity where the model does not"


@pytest.mark.parametrize(
    ("kinds", "calibration", "why"),
    [
        (["int7"], CALIBRATION, "no compression 'int7': int8, int8-static, int4, fp16"),
        (["int8"], [], "examples"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_sentence(
    kinds: list[str], calibration: list[Any], why: str, dense: Any
) -> None:
    with pytest.raises(CompressionFailed, match=why):
        compressed(dense, *kinds, calibration=calibration)


# --- pruning ----------------------------------------------------------------------------------------------------------


def operations(network: Network) -> int:
    """Multiplications and additions for one image."""
    with FlopCounterMode(display=False) as counter:
        network(IMAGES[:1])
    return counter.get_total_flops()


@pytest.mark.parametrize("network", [perceptron, convolutional])
def test_pruning_halves_the_hidden_layers_and_a_little_training_mends_them(
    network: Callable[[], Network],
) -> None:
    some = slice(0, 600)
    whole = fit(network(), rows=some)
    tuned: list[float] = []

    def tune(smaller: Network) -> None:
        tuned.append(right(smaller.eval()))
        fit(smaller, 100, rows=some)

    half = prune.prune(whole, 0.5, tune, steps=2).eval()

    assert len(tuned) == 2
    assert graph_of(half).ByteSize() < 0.62 * graph_of(whole).ByteSize()
    assert operations(half) < 0.62 * operations(whole)
    assert right(half) > tuned[-1] + 0.01
    assert right(half) >= right(whole) - 0.1
    assert right(whole) > 0.85


def test_the_weakest_neurons_go() -> None:
    """A neuron that is not read can go without a trace."""
    network = perceptron(8)
    with torch.no_grad():
        network[3].weight[:, [1, 6]] = 0
    before = network(IMAGES[:20])

    smaller = prune.prune(network, 0.25, lambda _: None)

    assert smaller[1].out_features == smaller[3].in_features == 6
    torch.testing.assert_close(smaller(IMAGES[:20]), before)


def test_channels_take_their_norms_and_their_places_after_flattening_along() -> None:
    network = convolutional().eval()
    with torch.no_grad():
        network[1].running_mean.uniform_(-0.1, 0.1)
        network[1].weight[[0, 5]] = 0
        network[1].bias[[0, 5]] = 0
        network[8].weight.view(10, 16, 4)[:, [3, 9, 10, 11]] = 0
    before = network(IMAGES[:20])

    smaller = prune.prune(network, 0.25, lambda _: None).eval()

    assert (smaller[0].out_channels, smaller[1].num_features, smaller[4].in_channels) == (6, 6, 6)
    assert (smaller[4].out_channels, smaller[8].in_features) == (12, 48)
    torch.testing.assert_close(smaller(IMAGES[:20]), before)


def test_the_feed_forward_part_of_an_encoder_shrinks() -> None:
    smaller: Any = prune.prune(nn.TransformerEncoderLayer(16, 2, 32), 0.5, lambda _: None)

    assert (smaller.linear1.out_features, smaller.linear2.in_features) == (16, 16)


def test_zeros_alone_make_nothing_smaller() -> None:
    network = perceptron()
    size = graph_of(network).ByteSize()
    weights = network[1].weight
    with torch.no_grad():
        weights[weights.abs() < weights.abs().quantile(0.8)] = 0

    assert (weights == 0).float().mean() > 0.79
    assert graph_of(network).ByteSize() == size


@pytest.mark.parametrize(
    ("network", "share", "why"),
    [(nn.LSTM(4, 4), 0.5, "nothing can be pruned"), (perceptron(), 1.0, "between 0 and 1")],
    ids=["no layers in a row", "everything"],
)
def test_what_cannot_be_pruned_is_said(network: Network, share: float, why: str) -> None:
    with pytest.raises(CompressionFailed, match=why):
        prune.prune(network, share, lambda _: None)


def test_a_pruned_network_goes_through_the_same_gate(dense: Any, even: None) -> None:
    small = graph_of(fit(perceptron(32)))

    result = compressed(dense, "pruned", "int8", made={"pruned": lambda: small}, budget=0.05)

    assert [row.size_bytes for row in result.rows][1] == small.ByteSize()
    assert result.rows[2].size_bytes < small.ByteSize()  # int8 of the pruned one


# --- distillation -----------------------------------------------------------------------------------------------------


def test_a_student_learns_from_its_teacher_what_few_labels_do_not_say() -> None:
    """60 labelled images for both students; one hears the teacher, too, on images whose labels it never sees."""
    teacher = fit(perceptron(128), 200)
    before = [parameter.clone() for parameter in teacher.parameters()]
    few, alone, taught = slice(0, 60), perceptron(12), perceptron(12)

    def with_labels_of_few(network: Network, inputs: Any, target: Any) -> Any:
        return functional.cross_entropy(network(*inputs)[few], target[few])

    fit(alone, 200, rows=few)
    fit(taught, 200, distil.objective(teacher, with_labels_of_few, temperature=3.0, weight=0.7))

    assert right(taught) > right(alone) + 0.05
    assert all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))


def test_the_teacher_says_nothing_about_padding_and_nothing_new_to_itself() -> None:
    logits = torch.randn(2, 3, 5)
    teacher, student = distil._Said(logits), distil._Said(logits.clone())
    target = torch.tensor([[1, 2, losses.IGNORED], [0, losses.IGNORED, losses.IGNORED]])
    student.answer[0, 2] = 100.0
    loss = distil.objective(teacher, losses.next_token, weight=1.0)

    assert float(loss(student, (logits,), target)) == pytest.approx(0, abs=1e-5)
    assert float(distil.soft(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), 1.0)) > 0.5


def test_values_are_distilled_by_their_squares() -> None:
    loss = distil.objective(distil._Said(torch.tensor([2.0])), losses.mse, weight=0.75)

    assert (
        float(loss(distil._Said(torch.tensor([0.0])), (torch.zeros(1),), torch.tensor([4.0])))
        == 0.75 * 4 + 0.25 * 16
    )
