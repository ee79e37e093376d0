"""Text generation with a served decoder, by `training.generate`."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from tests.e2e.conftest import Api
from training import networks
from training.export import graphs
from training.export.torch_exporter import Dim, Spec, export
from training.generate import Served, generate, main
from training.recipes.gpt import Decoder

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # raised within torch's exporter


@pytest.fixture(scope="module")
def graph() -> Any:
    """Export an untrained decoder with a random head."""
    torch.manual_seed(0)
    decoder = Decoder(networks.GPT(width=32, heads=2, layers=2))
    torch.nn.init.normal_(decoder.gpt.head.weight)
    axes = {"tokens": {0: "batch", 1: "length"}, "past": {1: "batch", 3: "past"}}
    sizes = {"batch": Dim(1, 5), "length": Dim(1, 40), "past": Dim(0, 40)}
    return export(Spec(decoder, axes, ["logits", "present"], sizes, decoder.sample))


@pytest.fixture
def url(api: Api, graph: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MAYFLY_KEY", api.key)
    api.upload(f"models/{model}/model.onnx", graph.SerializeToString())
    api.wait_ready(model)
    return f"{api.url}/v2/models/{model}"


def test_a_served_decoder_writes_the_same_text_as_in_process(
    api: Api, url: str, graph: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    past = np.zeros((4, 1, 2, 0, 16), np.float32)
    text = list(generate(graphs.runner(graph), past, b"The", length=20, temperature=0, context=12))

    with Served(f"{url}/versions/1", api.key) as model:
        assert model.past.shape == past.shape
        assert (
            list(generate(model, model.past, b"The", length=20, temperature=0, context=12)) == text
        )
    capsys.readouterr()
    assert main([url, "The", "--length", "20", "--temperature", "0", "--context", "12"]) == 0
    assert capsys.readouterr().out.startswith("The")


def test_generation_that_is_impossible_fails_with_one_sentence(
    url: str, scaled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([url.removesuffix(url.rpartition("/")[2]) + scaled, "The"]) == 1
    assert capsys.readouterr().err == f"error: {scaled} has no input 'past' but x\n"
    assert main([f"{url}-not", "The"]) == 1
    assert "error: " in capsys.readouterr().err
    assert main(["http://127.0.0.1:9/v2/models/gpt", "The"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["gpt", "The"]) == 1
    assert capsys.readouterr().err.startswith("error: gpt is no model's URL: ")
    assert main([url, ""]) == 1
    assert capsys.readouterr().err.startswith("error: the prompt is empty")
