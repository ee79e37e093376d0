"""A graph counts only if it computes what the network computes; each trap fails if the proof is taken away."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from training import train
from training.errors import ExportFailed
from training.export import graphs, torch_exporter

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # the exporters' own


class Recurrent(torch.nn.Module):  # type: ignore[misc]
    """The vanilla RNN, which torch's new exporter unrolls to the traced length and still declares dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = torch.nn.RNN(4, 8, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.cells(x)[0][:, -1]


class Branching(torch.nn.Module):  # type: ignore[misc]
    """Computes another thing for large batches: a trace sees only one of the two."""

    def forward(self, x: Any) -> Any:
        return x * 2 if x.shape[0] < 100 else x * 3


def numbers(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def sequences() -> torch_exporter.Spec:
    torch.manual_seed(0)
    return torch_exporter.Spec(
        model=Recurrent(), inputs={"x": {0: "batch", 1: "time"}}, outputs=["y"],
        dims={"batch": torch_exporter.Dim(1, 33), "time": torch_exporter.Dim(2, 40)},
        sample=lambda sizes: (numbers(sizes["batch"], sizes["time"], 4),))  # fmt: skip


def rows(model: Any) -> torch_exporter.Spec:
    return torch_exporter.Spec(
        model=model, inputs={"x": {0: "batch"}}, outputs=["y"], dims={"batch": torch_exporter.Dim()},
        sample=lambda sizes: (numbers(sizes["batch"], 4),))  # fmt: skip


def test_a_silently_wrong_graph_is_refused() -> None:
    automatic = torch_exporter.automatic_dims

    with pytest.raises(ExportFailed, match=r"automatic_dims: (y is off by|fails at|y has shape)"):
        torch_exporter.export(sequences(), [automatic])


def test_the_ladder_finds_an_exporter_that_is_right() -> None:
    graph = torch_exporter.export(sequences())

    assert torch_exporter.disagreement(graph, sequences()) is None


def test_a_network_that_no_exporter_gets_right_is_refused_with_every_reason() -> None:
    with pytest.raises(ExportFailed) as caught:
        torch_exporter.export(rows(Branching()))

    for rung in ("named_dims: ", "automatic_dims: ", "torchscript: y is off by"):
        assert rung in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_answers_infinity_is_refused() -> None:
    endless = torch.nn.Linear(4, 2)
    torch.nn.init.constant_(endless.bias, float("inf"))

    assert (
        torch_exporter.disagreement(torch_exporter.torchscript(rows(endless)), rows(endless))
        == "y is not finite at batch=1"
    )


def test_a_graph_of_other_weights_is_found_out() -> None:
    spec = rows(torch.nn.Linear(4, 2))
    graph = torch_exporter.export(spec)
    with torch.no_grad():
        spec.model.weight += 0.01

    assert (torch_exporter.disagreement(graph, spec) or "").startswith("y is off by")


def test_the_proof_is_at_sizes_that_were_not_traced() -> None:
    dims = {"batch": torch_exporter.Dim(1, 257), "time": torch_exporter.Dim(2, 40)}
    traced, proofs = torch_exporter.traced_sizes(dims), torch_exporter.proof_sizes(dims)

    for name in dims:
        sizes = {proof[name] for proof in proofs}
        assert len(sizes) >= 3
        assert traced[name] not in sizes
        assert {dims[name].low, dims[name].high} <= sizes


@pytest.mark.parametrize("rung", torch_exporter.EXPORTERS, ids=lambda rung: rung.__name__)
def test_an_output_may_be_called_as_an_operator_is(rung: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(20, 4), torch.nn.Linear(4, 2))
    spec = torch_exporter.Spec(
        model=model, inputs={"x": {0: "batch"}}, outputs=["embedding"], dims={"batch": torch_exporter.Dim()},
        sample=lambda sizes: (torch.arange(sizes["batch"]) % 20,))  # fmt: skip

    assert [output.name for output in torch_exporter.export(spec, [rung]).graph.output] == [
        "embedding"
    ]


def test_a_dimension_with_too_few_sizes_is_refused() -> None:
    with pytest.raises(ExportFailed, match="too few sizes"):
        torch_exporter.proof_sizes({"batch": torch_exporter.Dim(1, 3)})


@pytest.mark.parametrize("rung", torch_exporter.EXPORTERS, ids=lambda rung: rung.__name__)
def test_a_graph_tells_nothing_about_the_machine_it_was_made_on(rung: Any) -> None:
    graph = torch_exporter.export(
        rows(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softmax(-1))), [rung]
    )
    text = graph.SerializeToString()

    for secret in (b".py", b"site-packages", b"torch.nn", b"/home", str(Path.cwd()).encode()):
        assert secret not in text
    assert (graph.ir_version, graph.opset_import[0].version) == (10, 20)
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    environ = {
        "SM_HPS": json.dumps({"batch_size": "128", "epochs": "7"}),
        "SM_OUTPUT_DATA_DIR": str(folder / "data"),
    }
    options = [
        "digits",
        "--set",
        "epochs=2",
        "--model-dir",
        str(folder / "model"),
        "--device",
        "cpu",
    ]
    assert train.main(options, environ) == 0
    return folder


@pytest.fixture
def card(trained: Path) -> Mapping[str, Any]:
    session = graphs.open_session((trained / "model" / "model.onnx").read_bytes())
    card: Mapping[str, Any] = json.loads(
        session.get_modelmeta().custom_metadata_map["mayfly.manifest"]
    )
    return card


def test_the_entry_script_writes_one_file_that_describes_itself(
    trained: Path, card: Mapping[str, Any]
) -> None:
    pictures = {"confusion.png", "learning.png"}
    assert {path.name for path in (trained / "model").iterdir()} == {
        "model.onnx",
        "report.json",
        *pictures,
    }
    assert card["schema"] == 1
    assert card["inputs"][0]["name"] == "image"
    assert card["inputs"][0]["shape"] == [-1, 1, 28, 28]
    assert card["outputs"][0]["labels"] == list("0123456789")
    assert card["hyperparameters"]["epochs"] == 2  # the command line over SM_HPS
    assert card["hyperparameters"]["batch_size"] == 128  # SM_HPS over the recipe
    assert card["metrics"]["accuracy"] > card["baselines"]["majority class"]["accuracy"] + 0.3
    assert sum(card["data"]["split"][part] for part in ("train", "validation", "test")) == 1797
    assert str(trained) not in json.dumps(card)
    report = json.loads((trained / "data" / "report.json").read_text())
    assert report["metrics"] == card["metrics"]
    assert len(report["history"]) == 2


def test_its_samples_are_reproduced(trained: Path, card: Mapping[str, Any]) -> None:
    session = graphs.open_session((trained / "model" / "model.onnx").read_bytes())
    assert len(card["samples"]) >= 2
    for sample in card["samples"]:
        tensor, answer = sample["request"]["inputs"][0], sample["response"]["outputs"][0]
        image = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        got = session.run([answer["name"]], {tensor["name"]: image})[0]

        expected = np.array(answer["data"], np.float32).reshape(answer["shape"])
        assert np.allclose(got, expected, **card["tolerance"])
        assert np.allclose(got.sum(axis=1), 1, atol=1e-5)


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["digits", "--set", "lr=fast"], {}) == 1
    assert capsys.readouterr().err == "error: lr: 'fast' is not a number\n"
