"""What training exports is what the registry takes: each form of model registered by the real sandbox, and asked."""

import json
from collections.abc import Iterator, Mapping
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
from tests import networks
from tests.platform import Platform
from training.compression import variants
from training.compression.quantize import CONVERTERS
from training.export import graphs, sklearn_exporter, tokenizer_graph, torch_exporter

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]  # the exporters' own

TEXTS = ["The cat sat on the mat.", "A dog, barked loudly!", "two cafés by the sea", ""] * 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path_factory.mktemp("models"), sandbox)
    sandbox.close()


Form = tuple[
    Any, Mapping[str, Any], float
]  # a graph, a request for it, and how far answers may be apart


def scripted(family: str) -> Form:
    spec = networks.spec(family)
    rung = torch_exporter.named_dims if family == "encoder" else torch_exporter.torchscript
    sizes = {name: max(dim.low, 2) for name, dim in spec.dims.items()}
    feeds = dict(zip(spec.inputs, (feed.numpy() for feed in spec.sample(sizes)), strict=True))
    return torch_exporter.export(spec, [rung]), feeds, graphs.ATOL


def text_encoder() -> Form:
    tokenizer = tokenizer_graph.Tokenizer.fit(TEXTS, words=17, length=16)
    graph, _, atol = scripted("encoder")
    return (
        tokenizer_graph.TextPreprocessor(tokenizer).attach(graph),
        {"text": np.array(TEXTS[:4], object)},
        atol,
    )


def forest() -> Form:
    x, y = load_digits(return_X_y=True)
    inputs = {"image": x.astype(np.float32).reshape(-1, 1, 8, 8)}
    model = RandomForestClassifier(10, random_state=0).fit(sklearn_exporter.table(inputs), y)
    graph = sklearn_exporter.export(model, inputs, "probabilities").graph
    return graph, {"image": inputs["image"][:2]}, graphs.ATOL


def words() -> Form:
    texts = np.array(TEXTS, object)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        texts, np.arange(len(texts)) % 4
    )
    graph = sklearn_exporter.export(model, {"text": texts}, "probabilities").graph
    return graph, {"text": texts[:3]}, graphs.ATOL


def smaller(kind: str) -> Form:
    graph, feeds, atol = scripted("perceptron")
    form = CONVERTERS[kind](graph, [feeds])
    return form, feeds, max(atol, variants.moved(graph, form, [feeds]))


FORMS = {
    "recurrent": lambda: scripted("bidirectional lstm"),
    "encoder with its tokeniser": text_encoder,
    "decoder with its cache": lambda: scripted("decoder"),
    "recommender": lambda: scripted("recommender"),
    "forest": forest,
    "words": words,
    **{kind: lambda kind=kind: smaller(kind) for kind in CONVERTERS},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_training_exports_is_taken_proven_and_answers(form: str, world: Platform) -> None:
    graph, feeds, atol = FORMS[form]()
    samples = graphs.samples(graph, [feeds])
    manifest = {"schema": 1, "samples": samples, "tolerance": {"rtol": graphs.RTOL, "atol": atol}}
    graph.metadata_props.add(key="mayfly.manifest", value=json.dumps(manifest))

    version = world.upload(graph.SerializeToString())

    assert version.state is State.READY, version.reason
    assert version.measured["samples_checked"] == 1
    reply = world.client.post(
        f"/v2/models/demo/versions/{version.number}/infer", samples[0]["request"]
    )
    assert reply.status == 200, reply.json
    for got, expected in zip(reply.json["outputs"], samples[0]["response"]["outputs"], strict=True):
        assert (got["name"], got["datatype"], got["shape"]) == tuple(
            expected[key] for key in ("name", "datatype", "shape")
        )
        np.testing.assert_allclose(got["data"], expected["data"], rtol=1e-3, atol=atol)
