"""Torch networks are exported by the first exporter that agrees with torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from tests import networks
from training.errors import ExportFailed
from training.export import torch_exporter
from training.export.torch_exporter import EXPORTERS, Dim, Spec, torchscript

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

each_exporter = pytest.mark.parametrize(
    "exporter", EXPORTERS, ids=lambda exporter: exporter.__name__
)


class Recurrent(torch.nn.Module):  # type: ignore[misc]
    """Vanilla RNN, which torch.export unrolls to the traced length and declares dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = torch.nn.RNN(4, 8, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.cells(x)[0][:, -1]


class Branching(torch.nn.Module):  # type: ignore[misc]
    """Network with a branch that a trace of small batches misses."""

    def forward(self, x: Any) -> Any:
        return x * 2 if x.shape[0] < 100 else x * 3


def numbers(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def sequences() -> Spec:
    torch.manual_seed(0)
    return Spec(
        model=Recurrent(),
        inputs={"x": {0: "batch", 1: "time"}},
        outputs=["y"],
        dims={"batch": Dim(1, 33), "time": Dim(2, 40)},
        sample=lambda sizes: (numbers(sizes["batch"], sizes["time"], 4),),
    )


def rows(model: Any) -> Spec:
    return Spec(
        model=model,
        inputs={"x": {0: "batch"}},
        outputs=["y"],
        dims={"batch": Dim()},
        sample=lambda sizes: (numbers(sizes["batch"], 4),),
    )


def test_a_silently_wrong_graph_is_refused() -> None:
    with pytest.raises(ExportFailed, match=r"automatic_dims: (y is off by|fails at|y has shape)"):
        torch_exporter.export(sequences(), [torch_exporter.automatic_dims])


def test_some_exporter_is_right() -> None:
    graph = torch_exporter.export(sequences())

    assert torch_exporter.disagreement(graph, sequences()) is None


def test_a_refusal_has_the_reason_of_each_exporter() -> None:
    with pytest.raises(ExportFailed) as caught:
        torch_exporter.export(rows(Branching()))

    for reason in ("named_dims: ", "automatic_dims: ", "torchscript: y is off by"):
        assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_answers_infinity_is_refused() -> None:
    endless = torch.nn.Linear(4, 2)
    torch.nn.init.constant_(endless.bias, float("inf"))
    spec = rows(endless)

    problem = torch_exporter.disagreement(torchscript(spec), spec)

    assert problem == "y is not finite at batch=1"


def test_a_graph_with_different_weights_is_refused() -> None:
    spec = rows(torch.nn.Linear(4, 2))
    graph = torch_exporter.export(spec)
    with torch.no_grad():
        spec.model.weight += 0.01

    assert (torch_exporter.disagreement(graph, spec) or "").startswith("y is off by")


def test_an_output_of_an_undeclared_size_is_refused() -> None:
    spec = networks.spec("perceptron")
    graph = torch_exporter.export(spec, [torchscript])
    dim = graph.graph.output[0].type.tensor_type.shape.dim[0]
    dim.ClearField("dim_param")
    dim.dim_value = 1

    problem = torch_exporter.disagreement(graph, spec)

    assert problem == "y is declared as [1, 10] and comes as [2, 10]"


def test_graphs_are_compared_at_sizes_that_were_not_traced() -> None:
    dims = {"batch": Dim(1, 257), "time": Dim(2, 40)}
    traced, proofs = torch_exporter.traced_sizes(dims), torch_exporter.proof_sizes(dims)

    for name, dim in dims.items():
        sizes = {proof[name] for proof in proofs}
        assert len(sizes) >= 3
        assert traced[name] not in sizes
        assert {dim.low, dim.high} <= sizes


def test_graphs_are_compared_with_an_empty_past_too() -> None:
    proofs = torch_exporter.proof_sizes(networks.spec("decoder").dims)

    assert proofs[0] == {"batch": 1, "length": 1, "past": 0}
    assert any(sizes["past"] == 0 and sizes["length"] > 1 for sizes in proofs)


def test_a_dimension_with_too_few_sizes_is_refused() -> None:
    with pytest.raises(ExportFailed, match="too few sizes"):
        torch_exporter.proof_sizes({"batch": Dim(1, 3)})


@each_exporter
def test_an_output_may_have_the_name_of_an_operator(exporter: Any) -> None:
    spec = Spec(
        model=torch.nn.Sequential(torch.nn.Embedding(20, 4), torch.nn.Linear(4, 2)),
        inputs={"x": {0: "batch"}},
        outputs=["embedding"],
        dims={"batch": Dim()},
        sample=lambda sizes: (torch.arange(sizes["batch"]) % 20,),
    )

    graph = torch_exporter.export(spec, [exporter])

    assert [output.name for output in graph.graph.output] == ["embedding"]


@each_exporter
def test_a_graph_reveals_nothing_about_the_machine(exporter: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softmax(-1))
    graph = torch_exporter.export(rows(network), [exporter])
    text = graph.SerializeToString()

    for secret in (b".py", b"site-packages", b"torch.nn", b"/home", str(Path.cwd()).encode()):
        assert secret not in text
    assert (graph.ir_version, graph.opset_import[0].version) == (10, 20)
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_too_large_networks_are_refused_before_the_export() -> None:
    with torch.device("meta"):
        huge = torch.nn.Linear(2**15, 2**15)

    with pytest.raises(ExportFailed, match=r"4\.3 GB of weights, and one ONNX file holds 2\.1 GB"):
        torch_exporter.export(rows(huge))
