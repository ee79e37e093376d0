"""The networks that exporters get wrong: without the proof, each of these would ship a wrong graph."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from tests import networks  # noqa: E402
from training import artifact, export  # noqa: E402
from training.errors import ExportFailed  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]  # the exporters' own

NAMED, AUTOMATIC, SCRIPT = export.LADDER
FAMILIES = {  # and an exporter that gets each right
    "rnn": SCRIPT,
    "bidirectional lstm": SCRIPT,
    "convolution into gru": SCRIPT,
    "encoder": NAMED,
    "decoder": SCRIPT,
    "recommender": SCRIPT,
}


def frozen(spec: export.Spec) -> Any:
    """An exporter of the worst kind: it keeps the sizes that it saw, and declares them dynamic."""
    fixed = export.Spec(spec.model, {name: {} for name in spec.inputs}, spec.outputs, spec.dims, spec.sample)
    graph = SCRIPT(fixed)
    for value in graph.graph.input:
        for axis, name in spec.inputs[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for value in graph.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = "any"
    return graph


def careless(spec: export.Spec) -> Any:
    """TorchScript as tutorials advise for attention: the fast path off, so that it exports at all."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return SCRIPT(spec)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def assert_right(graph: Any, spec: export.Spec) -> None:
    """At sizes of our own choice, not the proof's."""
    session = artifact.runtime(graph)
    random = np.random.default_rng(3)
    for _ in range(4):
        sizes = {name: int(random.integers(dim.low, dim.high + 1)) for name, dim in spec.dims.items()}
        feeds = spec.sample(sizes)
        with torch.no_grad():
            answer = spec.model(*feeds)
        expected = answer if isinstance(answer, tuple) else (answer,)
        got = session.run(None, dict(zip(spec.inputs, (feed.numpy() for feed in feeds), strict=True)))
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-5, err_msg=str(sizes))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("encoder", "recommender")])
def test_a_graph_that_only_fits_the_traced_sizes_is_refused(family: str) -> None:
    with pytest.raises(ExportFailed, match="frozen: .* at batch="):
        export.export(networks.spec(family), [frozen])


def test_an_rnn_unrolled_to_the_traced_length_is_refused() -> None:
    with pytest.raises(ExportFailed, match="automatic_dims: .* at batch="):
        export.export(networks.spec("rnn"), [AUTOMATIC])


def test_an_encoder_whose_padding_mask_fits_one_length_is_refused() -> None:
    with pytest.raises(ExportFailed, match="careless: fails at batch="):
        export.export(networks.spec("encoder"), [careless])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_an_exporter_that_is_right(family: str) -> None:
    spec = networks.spec(family)

    assert_right(export.export(spec, [FAMILIES[family]]), spec)


@pytest.mark.stress
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ladder_is_right_for_each_family(family: str) -> None:
    spec = networks.spec(family)

    assert_right(export.export(spec), spec)


def test_an_empty_past_is_proven_too() -> None:
    sizes = export.proof_sizes(networks.spec("decoder").dims)

    assert sizes[0] == {"batch": 1, "length": 1, "past": 0}
    assert any(one["past"] == 0 and one["length"] > 1 for one in sizes)


@pytest.mark.parametrize("family", ["bidirectional lstm", "convolution into gru"])
def test_an_empty_batch_is_refused_and_does_not_end_the_process(family: str) -> None:
    spec = networks.spec(family)
    sizes = {name: dim.low for name, dim in spec.dims.items()} | {"batch": 0}
    empty = {name: feed.numpy() for name, feed in zip(spec.inputs, spec.sample(sizes), strict=True)}
    bare = artifact.clean(SCRIPT(spec))

    assert artifact.risky_answers(bare, [empty]) is None  # onnxruntime 1.31.1 aborts
    assert "ends the process at batch=0" in (export.disagreement(bare, spec) or "")
    assert artifact.risky_answers(export.export(spec, [SCRIPT]), [empty]) == [None]


def test_an_output_declared_with_a_size_that_it_does_not_keep_is_refused() -> None:
    spec = networks.spec("perceptron")
    graph = export.export(spec, [SCRIPT])
    dim = graph.graph.output[0].type.tensor_type.shape.dim[0]
    dim.ClearField("dim_param")
    dim.dim_value = 1

    assert export.disagreement(graph, spec) == "y is declared as [1, 10] and comes as [2, 10]"


def test_text_in_a_locale_that_slim_machines_lack_is_refused() -> None:
    normalise = onnx.helper.make_node("StringNormalizer", ["t"], ["y"], case_change_action="LOWER", locale="en_US")
    strings = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING, ["batch"]) for name in "ty"]
    graph = onnx.helper.make_graph([normalise], "g", strings[:1], strings[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)

    assert artifact.unfit(model) == "needs the locale en_US, which a slim machine lacks"
    assert artifact.unfit(artifact.clean(model)) is None


def test_networks_beyond_the_size_of_a_file_are_refused_before_they_are_exported() -> None:
    with torch.device("meta"):
        huge = torch.nn.Linear(2**15, 2**15)
    spec = export.Spec(huge, {"x": {0: "batch"}}, ["y"], {"batch": export.Dim()}, lambda sizes: ())

    with pytest.raises(ExportFailed, match=r"4\.3 GB of weights, and one ONNX file holds 2\.1 GB"):
        export.export(spec)


def test_a_file_beyond_the_limit_is_not_written(tmp_path: Any) -> None:
    graph = export.export(networks.spec("perceptron"), [SCRIPT])

    with pytest.raises(ExportFailed, match="one ONNX file holds"):
        artifact.save(graph, tmp_path / "model.onnx", limit_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_samples_have_every_datatype() -> None:
    spec = networks.spec("recommender")
    graph = export.export(spec, [SCRIPT])
    user, seen = (feed.numpy() for feed in spec.sample({"batch": 2}))

    (sample,) = artifact.samples(graph, [{"user": user, "seen": seen}])

    assert [tensor["datatype"] for tensor in sample["request"]["inputs"]] == ["INT64", "BOOL"]
    assert sample["request"]["inputs"][1]["data"][:2] == seen.ravel()[:2].tolist()
    scores, items = sample["response"]["outputs"]
    assert (scores["datatype"], items["datatype"], items["shape"]) == ("FP32", "INT64", [2, 5])
    assert sorted(items["data"][:5]) == sorted(set(items["data"][:5]))
