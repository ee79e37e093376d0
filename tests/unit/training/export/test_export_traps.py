"""Networks for which exporters make a wrong graph, unless it is checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tests import networks
from training import train
from training.errors import ExportFailed
from training.export import graph_editing, graphs, sklearn_exporter, torch_exporter
from training.export.torch_exporter import Spec, automatic_dims, named_dims, torchscript

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

RUNTIME_ERRORS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.RuntimeException,
)
RIGHT_EXPORTERS = {
    "rnn": torchscript,
    "bidirectional lstm": torchscript,
    "convolution into gru": torchscript,
    "encoder": named_dims,
    "decoder": torchscript,
    "recommender": torchscript,
}

BRANCHING = '''
import numpy as np, torch
from training.data import Examples, split
from training.recipe import NetworkHyperparameters, Recipe

class Branching(torch.nn.Module):
    """Network with a branch for large batches."""
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
    def forward(self, x):
        return self.layer(x)[:, 0] * (1 if x.shape[0] < 100 else 2)

def data():
    x = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    return split(Examples({"x": x}, x[:, 0]), source="made", sha256="0")

recipe = Recipe(
    name="mine",
    description="",
    task="regression",
    hyperparameters=NetworkHyperparameters,
    data=data,
    model=lambda: Branching(),
)
'''


def frozen(spec: Spec) -> Any:
    """Export with the traced sizes as constants that are declared dynamic."""
    fixed = Spec(
        spec.model, {name: {} for name in spec.inputs}, spec.outputs, spec.dims, spec.sample
    )
    graph = torchscript(fixed)
    for value in graph.graph.input:
        for axis, name in spec.inputs[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for value in graph.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = "any"
    return graph


def careless(spec: Spec) -> Any:
    """Export attention by TorchScript without its fast path, as tutorials advise."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return torchscript(spec)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def assert_right(graph: Any, spec: Spec) -> None:
    """Compare a graph with torch at random sizes, independently of the check."""
    session = graphs.open_session(graph)
    random = np.random.default_rng(3)
    for _ in range(4):
        sizes = {
            name: int(random.integers(dim.low, dim.high + 1)) for name, dim in spec.dims.items()
        }
        tensors = spec.sample(sizes)
        with torch.no_grad():
            answer = spec.model(*tensors)
        expected = answer if isinstance(answer, tuple) else (answer,)
        feeds = dict(zip(spec.inputs, (tensor.numpy() for tensor in tensors), strict=True))
        for actual, original in zip(session.run(None, feeds), expected, strict=True):
            np.testing.assert_allclose(
                actual, original.numpy(), rtol=1e-3, atol=1e-5, err_msg=str(sizes)
            )


TRAPS = [
    ("rnn", automatic_dims),  # unrolled to the traced length
    ("rnn", frozen),
    ("encoder", careless),  # its padding mask fits one length
    ("bidirectional lstm", frozen),
    ("convolution into gru", frozen),
    ("decoder", frozen),
]


@pytest.mark.parametrize(
    ("family", "exporter"),
    TRAPS,
    ids=[f"{family} {exporter.__name__}" for family, exporter in TRAPS],
)
def test_only_the_check_refuses_a_wrong_graph(
    family: str, exporter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = networks.spec(family)
    spec.model.eval()
    wrong = exporter(spec)

    def once(spec: Spec) -> Any:
        return graph_editing.copy(wrong)

    with pytest.raises(ExportFailed, match="once: .* at batch="):
        torch_exporter.export(spec, [once])

    monkeypatch.setattr(torch_exporter, "disagreement", lambda graph, spec: None)

    graph = torch_exporter.export(spec, [once])
    with pytest.raises((AssertionError, *RUNTIME_ERRORS)):
        assert_right(graph, spec)


@pytest.mark.parametrize("family", RIGHT_EXPORTERS)
def test_each_family_has_an_exporter_that_is_right(family: str) -> None:
    spec = networks.spec(family)

    assert_right(torch_exporter.export(spec, [RIGHT_EXPORTERS[family]]), spec)


@pytest.mark.stress
@pytest.mark.parametrize("family", RIGHT_EXPORTERS)
def test_all_exporters_together_are_right_for_each_family(family: str) -> None:
    spec = networks.spec(family)

    assert_right(torch_exporter.export(spec), spec)


@pytest.mark.parametrize("family", ["bidirectional lstm", "convolution into gru"])
def test_an_empty_batch_is_refused_without_a_crash(family: str) -> None:
    spec = networks.spec(family)
    sizes = {name: dim.low for name, dim in spec.dims.items()} | {"batch": 0}
    tensors = zip(spec.inputs, spec.sample(sizes), strict=True)
    empty = {name: tensor.numpy() for name, tensor in tensors}
    unguarded = graph_editing.clean(torchscript(spec))

    assert graphs.run_in_subprocess(unguarded, [empty]) is None  # onnxruntime 1.31.1 aborts
    assert "ends the process at batch=0" in (torch_exporter.disagreement(unguarded, spec) or "")
    assert graphs.run_in_subprocess(torch_exporter.export(spec, [torchscript]), [empty]) == [None]


def test_only_the_check_refuses_tf_idf_in_another_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = np.array(["The cat sat", "A dog barks", "two cafés", "by the sea"] * 5, object)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, np.arange(20) % 4)

    def export() -> Any:
        return sklearn_exporter.export(model, {"text": texts}, "probabilities").graph

    locales = [
        attribute.s
        for node in graphs.nodes(export().graph)
        for attribute in node.attribute
        if node.op_type == "StringNormalizer" and attribute.name == "locale"
    ]
    assert locales == [b"C"]

    monkeypatch.setattr(graph_editing, "_set_locale", lambda node: None)
    with pytest.raises(ExportFailed, match="needs the locale en_US, which a slim machine lacks"):
        export()

    monkeypatch.setattr(graphs, "load_problem", lambda model: None)
    try:
        export()  # succeeds on a machine with that locale
    except ExportFailed as failure:
        assert "does not load" in str(failure)  # the runtime's message on any other machine


def test_a_wrong_graph_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(BRANCHING)
    options = ["--set", "epochs=1", "--model-dir", str(tmp_path / "out"), "--device", "cpu"]
    command = [str(tmp_path / "mine.py"), *options]
    monkeypatch.setattr(torch_exporter, "EXPORTERS", (torchscript,))

    assert train.main(command, {}) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: no exporter made a graph that computes what the network computes. "
    )
    assert error.count("\n") == 1
    # TensorBoard may show the run; a model there is not.
    assert not list((tmp_path / "out").glob("model*"))

    monkeypatch.setattr(torch_exporter, "disagreement", lambda graph, spec: None)
    assert train.main(command, {}) == 0
    assert (tmp_path / "out" / "model.onnx").exists()
