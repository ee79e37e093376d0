"""A language model and a sentence embedder: trained, exported, registered and called."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State, Version
from tests.platform import Platform
from training import manifest, networks, train
from training.compression import variants
from training.export import graphs, torch_exporter
from training.export.torch_exporter import Dim
from training.fitting.trained import Trained
from training.generate import generate
from training.hyperparameters import override
from training.recipe import Arrays, Run
from training.recipe_loading import load
from training.recipes.embedder import Pieces
from training.recipes.gpt import Decoder

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

QUICK_GPT = {"epochs": 1, "width": 64, "layers": 2, "lr": 1e-2, "length": 64}
QUICK_EMBEDDER = {"epochs": 3, "width": 128}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path_factory.mktemp("models"), sandbox)
    sandbox.close()


class Model:
    """Trained model, with its file, graph, card and runner."""

    def __init__(self, recipe: str, settings: Mapping[str, Any], folder: Path) -> None:
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        assert train.main([recipe, *words, "--device", "cpu", "--model-dir", str(folder)], {}) == 0
        self.content = (folder / "model.onnx").read_bytes()
        self.graph = onnx.load_model_from_string(self.content)
        cards = [prop.value for prop in self.graph.metadata_props if prop.key == manifest.KEY]
        self.card = json.loads(cards[0])
        self.run = graphs.runner(self.graph)


def register(platform: Platform, model: Model) -> Version:
    version = platform.upload(model.content)
    assert version.state is State.READY, version.reason
    assert version.measured["samples_checked"] == len(model.card["samples"]) == 2
    return version


def run_over_http(platform: Platform, version: Version) -> Run:
    """Return a function that runs a version through the infer function."""
    path = f"/v2/models/demo/versions/{version.number}/infer"

    def run(inputs: Arrays) -> Arrays:
        datatypes = {"i": "INT64", "f": "FP32"}
        tensors = [
            graphs.protocol_tensor(name, datatypes[values.dtype.kind], values)
            for name, values in inputs.items()
        ]
        reply = platform.client.post(path, {"inputs": tensors})
        assert reply.status == 200, reply.json
        return {
            output["name"]: np.array(output["data"], np.float32).reshape(output["shape"])
            for output in reply.json["outputs"]
        }

    return run


# --- the language model


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model("gpt", QUICK_GPT, tmp_path_factory.mktemp("gpt"))


def make_past(model: Model, batch: int = 1, length: int = 0) -> Any:
    """Make a past of random numbers (stacks, batch, heads, length, size)."""
    shapes = {tensor["name"]: tensor["shape"] for tensor in model.card["inputs"]}
    stacks, _, heads, _, size = shapes["past"]
    shape = (stacks, batch, heads, length, size)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_a_gpt_beats_frequencies_of_byte_pairs(gpt: Model) -> None:
    bits = gpt.card["metrics"]["bits_per_byte"]
    rivals = {name: metrics["bits_per_byte"] for name, metrics in gpt.card["baselines"].items()}

    assert set(rivals) == {"byte frequencies", "byte pairs"}
    assert bits < rivals["byte pairs"] - 0.2, (bits, rivals)
    assert gpt.card["evaluation"]["lead"]["interval"][0] > 0.1
    assert gpt.card["data"]["split"]["by"] == "topic"


def test_a_decoder_declares_its_past(gpt: Model) -> None:
    tensors = [*gpt.card["inputs"], *gpt.card["outputs"]]
    lengths = [sample["request"]["inputs"][1]["shape"][3] for sample in gpt.card["samples"]]

    assert {tensor["name"]: tensor["shape"] for tensor in tensors} == {
        "tokens": [-1, -1],
        "past": [4, -1, 4, -1, 16],
        "logits": [-1, -1, 256],
        "present": [4, -1, 4, -1, 16],
    }
    assert lengths == [0, 1]


@pytest.mark.parametrize("before", [0, 1, 2, 40])
def test_a_past_replaces_the_tokens_that_made_it(gpt: Model, before: int) -> None:
    tokens = np.random.default_rng(before).integers(32, 127, (3, before + 5))
    whole = gpt.run({"tokens": tokens})
    empty = make_past(gpt, batch=3)

    first = gpt.run({"tokens": tokens[:, :before], "past": empty}) if before else {"present": empty}
    second = gpt.run({"tokens": tokens[:, before:], "past": first["present"]})

    assert second["present"].shape[3] == before + 5
    np.testing.assert_allclose(second["logits"], whole["logits"][:, before:], atol=1e-4)
    np.testing.assert_allclose(second["present"], whole["present"], atol=1e-4)


def test_later_bytes_do_not_change_earlier_logits(gpt: Model) -> None:
    tokens = np.random.default_rng(0).integers(32, 127, (1, 20))
    changed = tokens.copy()
    changed[:, 12:] = 65

    before, after = (gpt.run({"tokens": ids})["logits"] for ids in (tokens, changed))

    np.testing.assert_allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert abs(before[:, 12:] - after[:, 12:]).max() > 0.1


def test_a_student_with_a_shorter_past_is_timed(gpt: Model) -> None:
    student = Decoder(networks.GPT(width=32, heads=2, layers=1))
    dims = {"batch": Dim(1, 5), "length": Dim(1, 9), "past": Dim(0, 9)}
    axes = {"tokens": {0: "batch", 1: "length"}, "past": {1: "batch", 3: "past"}}
    spec = torch_exporter.Spec(student, axes, ["logits", "present"], dims, student.sample)
    graph = torch_exporter.export(spec)
    tokens = {"tokens": np.zeros((2, 5), np.int64)}

    assert graphs.with_empty_inputs(graph, tokens)["past"].shape == (2, 2, 2, 0, 16)
    assert graphs.with_empty_inputs(gpt.graph, tokens)["past"].shape == (4, 2, 4, 0, 16)
    assert min(variants.latencies([gpt.graph, graph], tokens)) > 0


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_cache_does_not_change_the_text(gpt: Model, temperature: float) -> None:
    # The text is longer than the context, twice.
    settings = {"length": 60, "temperature": temperature, "seed": 3, "context": 32}

    def write(cached: bool) -> tuple[bytes, int]:
        """Return the text, and the number of tokens that were computed."""
        lengths: list[int] = []

        def run(inputs: Arrays) -> Arrays:
            lengths.append(inputs["tokens"].shape[1])
            return gpt.run(inputs)

        parts = generate(run, make_past(gpt), b"The statement", **settings, cached=cached)
        return b"".join(parts), sum(lengths)

    text, tokens = write(cached=True)
    plain_text, plain_tokens = write(cached=False)

    assert text == plain_text
    assert len(text) == 60
    assert tokens < 120 < 1000 < plain_tokens


def test_wrong_arguments_are_refused(gpt: Model) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate(gpt.run, make_past(gpt), b""))
    with pytest.raises(ValueError, match="a temperature of -1 is below 0"):
        next(generate(gpt.run, make_past(gpt), b"a", temperature=-1))


def test_a_registered_gpt_writes_the_same_text(gpt: Model, platform: Platform) -> None:
    remote = run_over_http(platform, register(platform, gpt))

    texts = [
        b"".join(generate(run, make_past(gpt), b"A class ", length=12, temperature=0))
        for run in (gpt.run, remote)
    ]

    assert texts[0] == texts[1]


# --- the sentence embedder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model("embedder", QUICK_EMBEDDER, tmp_path_factory.mktemp("embedder"))


def pad(*texts: str) -> Any:
    rows = [text.encode() for text in texts]
    numbers = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, raw in zip(numbers, rows, strict=True):
        row[: len(raw)] = list(raw)
    return numbers


def test_an_embedder_beats_tf_idf(embedder: Model) -> None:
    metrics, rivals = embedder.card["metrics"], embedder.card["baselines"]

    assert metrics["recall_at_1"] > rivals["TF-IDF"]["recall_at_1"] + 0.03, (metrics, rivals)
    assert metrics["recall_at_10"] > rivals["TF-IDF"]["recall_at_10"] + 0.02
    assert rivals["random"]["recall_at_1"] < 0.02
    assert embedder.card["data"]["split"]["by"] == "module"


def test_training_improves_on_weights_by_rarity(embedder: Model) -> None:
    recipe = load("embedder")
    settings = override(recipe.hyperparameters(), QUICK_EMBEDDER)
    data = recipe.load_data({}, settings)
    torch.manual_seed(settings.seed)
    untrained = recipe.make_model(settings, data).eval()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def run(inputs: Arrays) -> Arrays:
        return {"embedding": untrained(torch.from_numpy(inputs["text"])).numpy()}

    cpu = torch.device("cpu")
    model = Trained(recipe, settings, data, data, (), None, untrained, [], cpu)
    before, _ = model.measure(data.test, run)
    assert embedder.card["metrics"]["recall_at_10"] > before["recall_at_10"] + 0.03


def test_vectors_have_length_one_and_ignore_padding(embedder: Model) -> None:
    alone = embedder.run({"text": pad("Return the name of a file.")})["embedding"]
    texts = pad("Return the name of a file.", "x" * 500, "", "çé 漢字")
    among = embedder.run({"text": texts})["embedding"]

    assert embedder.card["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, 128], "kind": "embedding"}
    ]
    np.testing.assert_allclose(among[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(among, axis=1), [1, 1, 0, 0], atol=1e-5)


def test_texts_that_share_parts_of_words_are_near(embedder: Model) -> None:
    texts = ["How do I open a FILE?", "Opening files for reading", "A random number generator"]

    query, near, far = embedder.run({"text": pad(*texts)})["embedding"]

    assert query @ near > query @ far + 0.1


def test_training_and_export_sum_pieces_alike() -> None:
    pieces = Pieces(1009, 16)
    text = torch.from_numpy(pad("Some text, 3 words", "another"))
    pieces.weigh(text, text)

    trained, exported = pieces.train()(text), pieces.eval()(text)

    np.testing.assert_allclose(trained.detach(), exported.detach(), atol=1e-6)


def test_a_piece_has_three_to_five_letters_of_one_word() -> None:
    pieces = Pieces(101, 1)
    numbers, inside = pieces.numbers(torch.from_numpy(pad("ab, c")))

    # edge-a-b, a-b-edge, edge-c-edge, edge-a-b-edge
    assert int(inside.sum()) == 4
    same = pieces.numbers(torch.from_numpy(pad("AB\n\tC")))
    assert sorted(numbers[inside].tolist()) == sorted(same[0][same[1]].tolist())


def test_a_registered_embedder_gives_the_same_vectors(embedder: Model, platform: Platform) -> None:
    run = run_over_http(platform, register(platform, embedder))
    text = {"text": pad("Read bytes from a socket.", "Nothing")}

    np.testing.assert_allclose(run(text)["embedding"], embedder.run(text)["embedding"], atol=1e-5)
