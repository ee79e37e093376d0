"""The registry accepts every kind of exported graph, and serves it."""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from functions.core.uploads import Upload
from tests import networks
from tests.platform import Platform
from training import manifest
from training.compression import variants
from training.compression.quantize import CONVERTERS
from training.export import graphs, sklearn_exporter, torch_exporter
from training.export.tokenizer_graph import TextPreprocessor, Tokenizer
from training.fitting import estimators

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

TEXTS = ["The cat sat on the mat.", "A dog, barked loudly!", "two cafés by the sea", ""] * 5


@dataclass(frozen=True)
class Export:
    """Graph with a request for it; answers may differ by `atol`."""

    graph: Any
    feeds: Mapping[str, Any]
    atol: float = graphs.ATOL


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path_factory.mktemp("models"), sandbox)
    sandbox.close()


def export_network(family: str) -> Export:
    spec = networks.spec(family)
    is_encoder = family == "encoder"
    exporter = torch_exporter.named_dims if is_encoder else torch_exporter.torchscript
    sizes = {name: max(dim.low, 2) for name, dim in spec.dims.items()}
    tensors = zip(spec.inputs, spec.sample(sizes), strict=True)
    feeds = {name: tensor.numpy() for name, tensor in tensors}
    return Export(torch_exporter.export(spec, [exporter]), feeds)


def export_encoder_with_tokenizer() -> Export:
    tokenizer = Tokenizer.fit(TEXTS, words=17, length=16)
    graph = TextPreprocessor(tokenizer).attach(export_network("encoder").graph)
    return Export(graph, {"text": np.array(TEXTS[:4], object)})


def export_forest() -> Export:
    x, y = load_digits(return_X_y=True)
    inputs = {"image": x.astype(np.float32).reshape(-1, 1, 8, 8)}
    model = RandomForestClassifier(10, random_state=0).fit(estimators.table(inputs), y)
    graph = sklearn_exporter.export(model, inputs, "probabilities").graph
    return Export(graph, {"image": inputs["image"][:2]})


def export_tf_idf() -> Export:
    texts = np.array(TEXTS, object)
    labels = np.arange(len(texts)) % 4
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    graph = sklearn_exporter.export(model, {"text": texts}, "probabilities").graph
    return Export(graph, {"text": texts[:3]})


def export_compressed(kind: str) -> Export:
    export = export_network("perceptron")
    graph = CONVERTERS[kind](export.graph, [export.feeds])
    moved = variants.moved(export.graph, graph, [export.feeds])
    return Export(graph, export.feeds, max(export.atol, moved))


EXPORTS: Mapping[str, Callable[[], Export]] = {
    "recurrent": partial(export_network, "bidirectional lstm"),
    "encoder with its tokenizer": export_encoder_with_tokenizer,
    "decoder with its cache": partial(export_network, "decoder"),
    "recommender": partial(export_network, "recommender"),
    "forest": export_forest,
    "TF-IDF": export_tf_idf,
    **{kind: partial(export_compressed, kind) for kind in CONVERTERS},
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_exported_graph_is_registered_and_answers(kind: str, platform: Platform) -> None:
    export = EXPORTS[kind]()
    [sample] = graphs.samples(export.graph, [export.feeds])
    tolerance = {"rtol": graphs.RTOL, "atol": export.atol}
    card = {"schema": 1, "samples": [sample], "tolerance": tolerance}
    export.graph.metadata_props.add(key=manifest.KEY, value=json.dumps(card))

    version = platform.upload(export.graph.SerializeToString())

    assert version.state is State.READY, version.reason
    assert version.measured["samples_checked"] == 1
    path = f"/v2/models/demo/versions/{version.number}/infer"
    reply = platform.client.post(path, sample["request"])
    assert reply.status == 200, reply.json
    for output, expected in zip(reply.json["outputs"], sample["response"]["outputs"], strict=True):
        for key in ("name", "datatype", "shape"):
            assert output[key] == expected[key]
        np.testing.assert_allclose(output["data"], expected["data"], rtol=1e-3, atol=export.atol)


@pytest.mark.parametrize("form", ["archive", "side by side"])
def test_torchs_default_export_is_served(platform: Platform, tmp_path: Path, form: str) -> None:
    """Check that both files of a default `torch.onnx.export` can be served."""
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    inputs = torch.arange(64.0).reshape(1, 64) / 64
    torch.onnx.export(network, (inputs,), tmp_path / "model.onnx", verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    if form == "archive":
        files = {"model.tar.gz": tmp_path.with_suffix(".tar.gz")}
        with tarfile.open(files["model.tar.gz"], "w:gz") as archive:
            archive.add(tmp_path, arcname=".")
    else:
        files = {path.name: path for path in sorted(tmp_path.iterdir(), reverse=True)}
    for name, path in files.items():
        key = f"models/demo/{form}/{name}"
        pinned = platform.uploads.put("up", key, path.read_bytes())

    version = platform.registration.register(Upload("up", key, pinned))

    assert version is not None
    assert version.state is State.READY, version.reason
    [spec] = version.signature.inputs
    tensor = {"name": spec.name, "datatype": "FP32", "shape": [1, 64]}
    request = {"inputs": [{**tensor, "data": inputs.flatten().tolist()}]}
    reply = platform.client.post(f"/v2/models/demo/versions/{version.number}/infer", request)
    assert reply.status == 200, reply.json
    expected = network(inputs).detach().numpy().flatten()
    np.testing.assert_allclose(reply.json["outputs"][0]["data"], expected, rtol=1e-5, atol=1e-6)
