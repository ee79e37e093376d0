"""The networks that exporters get wrong: without the proof, each of these would ship a wrong graph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tests import networks
from training import train
from training.errors import ExportFailed
from training.export import graph_editing, graphs, sklearn_exporter, torch_exporter

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]  # the exporters' own

NAMED, AUTOMATIC, SCRIPT = torch_exporter.EXPORTERS
RUNTIME_ERRORS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.RuntimeException,
)
FAMILIES = {  # and an exporter that gets each right
    "rnn": SCRIPT,
    "bidirectional lstm": SCRIPT,
    "convolution into gru": SCRIPT,
    "encoder": NAMED,
    "decoder": SCRIPT,
    "recommender": SCRIPT,
}


BRANCHING = '''
import numpy as np, torch
from training.data import Examples, split
from training.recipe import NetworkHyperparameters, Recipe

class Branching(torch.nn.Module):
    """Computes another thing for large batches."""
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
    def forward(self, x):
        return self.layer(x)[:, 0] * (1 if x.shape[0] < 100 else 2)

def data():
    x = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    return split(Examples({"x": x}, x[:, 0]), source="made", sha256="0")

recipe = Recipe(name="mine", description="", task="regression", hyperparameters=NetworkHyperparameters, data=data,
                model=lambda: Branching())
'''


def frozen(spec: torch_exporter.Spec) -> Any:
    """An exporter of the worst kind: it keeps the sizes that it saw, and declares them dynamic."""
    fixed = torch_exporter.Spec(
        spec.model, {name: {} for name in spec.inputs}, spec.outputs, spec.dims, spec.sample
    )
    graph = SCRIPT(fixed)
    for value in graph.graph.input:
        for axis, name in spec.inputs[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for value in graph.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = "any"
    return graph


def careless(spec: torch_exporter.Spec) -> Any:
    """TorchScript as tutorials advise for attention: the fast path off, so that it exports at all."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return SCRIPT(spec)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def assert_right(graph: Any, spec: torch_exporter.Spec) -> None:
    """At sizes of our own choice, not the proof's."""
    session = graphs.open_session(graph)
    random = np.random.default_rng(3)
    for _ in range(4):
        sizes = {
            name: int(random.integers(dim.low, dim.high + 1)) for name, dim in spec.dims.items()
        }
        feeds = spec.sample(sizes)
        with torch.no_grad():
            answer = spec.model(*feeds)
        expected = answer if isinstance(answer, tuple) else (answer,)
        got = session.run(
            None, dict(zip(spec.inputs, (feed.numpy() for feed in feeds), strict=True))
        )
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(
                ours, theirs.numpy(), rtol=1e-3, atol=1e-5, err_msg=str(sizes)
            )


TRAPS = [
    ("rnn", AUTOMATIC),  # unrolled to the traced length
    ("rnn", frozen),
    ("encoder", careless),  # its padding mask fits one length
    ("bidirectional lstm", frozen),
    ("convolution into gru", frozen),
    ("decoder", frozen),
]


@pytest.mark.parametrize(
    ("family", "rung"),
    TRAPS,
    ids=[f"{family} {rung.__name__.strip('_')}" for family, rung in TRAPS],
)
def test_without_the_proof_a_wrong_graph_would_be_taken(
    family: str, rung: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, made = networks.spec(family), []

    def once(spec: torch_exporter.Spec) -> Any:
        made.append(made[0] if made else rung(spec))
        graph = onnx.ModelProto()
        graph.CopyFrom(made[0])
        return graph

    with pytest.raises(ExportFailed, match="once: .* at batch="):
        torch_exporter.export(spec, [once])

    monkeypatch.setattr(torch_exporter, "disagreement", lambda graph, spec: None)

    graph = torch_exporter.export(spec, [once])
    with pytest.raises((AssertionError, *RUNTIME_ERRORS)):
        assert_right(graph, spec)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_an_exporter_that_is_right(family: str) -> None:
    spec = networks.spec(family)

    assert_right(torch_exporter.export(spec, [FAMILIES[family]]), spec)


@pytest.mark.stress
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ladder_is_right_for_each_family(family: str) -> None:
    spec = networks.spec(family)

    assert_right(torch_exporter.export(spec), spec)


def test_an_empty_past_is_proven_too() -> None:
    sizes = torch_exporter.proof_sizes(networks.spec("decoder").dims)

    assert sizes[0] == {"batch": 1, "length": 1, "past": 0}
    assert any(one["past"] == 0 and one["length"] > 1 for one in sizes)


@pytest.mark.parametrize("family", ["bidirectional lstm", "convolution into gru"])
def test_an_empty_batch_is_refused_and_does_not_end_the_process(family: str) -> None:
    spec = networks.spec(family)
    sizes = {name: dim.low for name, dim in spec.dims.items()} | {"batch": 0}
    empty = {name: feed.numpy() for name, feed in zip(spec.inputs, spec.sample(sizes), strict=True)}
    bare = graph_editing.clean(SCRIPT(spec))

    assert graphs.run_in_subprocess(bare, [empty]) is None  # onnxruntime 1.31.1 aborts
    assert "ends the process at batch=0" in (torch_exporter.disagreement(bare, spec) or "")
    assert graphs.run_in_subprocess(torch_exporter.export(spec, [SCRIPT]), [empty]) == [None]


def test_an_output_declared_with_a_size_that_it_does_not_keep_is_refused() -> None:
    spec = networks.spec("perceptron")
    graph = torch_exporter.export(spec, [SCRIPT])
    dim = graph.graph.output[0].type.tensor_type.shape.dim[0]
    dim.ClearField("dim_param")
    dim.dim_value = 1

    assert (
        torch_exporter.disagreement(graph, spec) == "y is declared as [1, 10] and comes as [2, 10]"
    )


def test_text_in_a_locale_that_slim_machines_lack_is_refused() -> None:
    normalise = onnx.helper.make_node(
        "StringNormalizer", ["t"], ["y"], case_change_action="LOWER", locale="en_US"
    )
    strings = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING, ["batch"])
        for name in "ty"
    ]
    graph = onnx.helper.make_graph([normalise], "g", strings[:1], strings[1:])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )

    assert graphs.load_problem(model) == "needs the locale en_US, which a slim machine lacks"
    assert graphs.load_problem(graph_editing.clean(model)) is None


def test_tf_idf_without_its_locale_is_refused_by_the_proof_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = {
        "text": np.array(["The cat sat", "A dog barks", "two cafés", "by the sea"] * 5, object)
    }
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        texts["text"], np.arange(20) % 4
    )
    locales = [node for node in graphs.nodes(sklearn_exporter.export(model, texts, "probabilities").graph.graph)
               if node.op_type == "StringNormalizer"]  # fmt: skip
    assert [one.s for node in locales for one in node.attribute if one.name == "locale"] == [b"C"]

    monkeypatch.setattr(graph_editing, "_set_locale", lambda node: None)
    with pytest.raises(ExportFailed, match="needs the locale en_US, which a slim machine lacks"):
        sklearn_exporter.export(model, texts, "probabilities")

    monkeypatch.setattr(graphs, "load_problem", lambda model: None)
    try:
        sklearn_exporter.export(
            model, texts, "probabilities"
        )  # where there is such a locale, it goes out
    except ExportFailed as failure:
        assert "does not load" in str(failure)  # where there is none, the runtime says so


def test_a_model_that_does_not_prove_itself_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(BRANCHING)
    arguments = [
        str(tmp_path / "mine.py"),
        "--set",
        "epochs=1",
        "--model-dir",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(torch_exporter, "EXPORTERS", (SCRIPT,))

    assert train.main([*arguments, "--device", "cpu"], {}) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "error: no exporter made a graph that computes what the network computes. "
    )
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()

    monkeypatch.setattr(torch_exporter, "disagreement", lambda graph, spec: None)
    assert train.main([*arguments, "--device", "cpu"], {}) == 0
    assert (tmp_path / "out" / "model.onnx").exists()


def test_networks_beyond_the_size_of_a_file_are_refused_before_they_are_exported() -> None:
    with torch.device("meta"):
        huge = torch.nn.Linear(2**15, 2**15)
    spec = torch_exporter.Spec(
        huge, {"x": {0: "batch"}}, ["y"], {"batch": torch_exporter.Dim()}, lambda sizes: ()
    )

    with pytest.raises(ExportFailed, match=r"4\.3 GB of weights, and one ONNX file holds 2\.1 GB"):
        torch_exporter.export(spec)


def test_a_file_beyond_the_limit_is_not_written(tmp_path: Any) -> None:
    graph = torch_exporter.export(networks.spec("perceptron"), [SCRIPT])

    with pytest.raises(ExportFailed, match="one ONNX file holds"):
        graphs.save(graph, tmp_path / "model.onnx", limit_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_samples_have_every_datatype() -> None:
    spec = networks.spec("recommender")
    graph = torch_exporter.export(spec, [SCRIPT])
    user, seen = (feed.numpy() for feed in spec.sample({"batch": 2}))

    (sample,) = graphs.samples(graph, [{"user": user, "seen": seen}])

    assert [tensor["datatype"] for tensor in sample["request"]["inputs"]] == ["INT64", "BOOL"]
    assert sample["request"]["inputs"][1]["data"][:2] == seen.ravel()[:2].tolist()
    scores, items = sample["response"]["outputs"]
    assert (scores["datatype"], items["datatype"], items["shape"]) == ("FP32", "INT64", [2, 5])
    assert sorted(items["data"][:5]) == sorted(set(items["data"][:5]))
