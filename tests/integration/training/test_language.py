"""A language model and a sentence embedder from their data to their answers: trained, registered, asked."""

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
from training.fitting.trained import Trained
from training.generate import generate
from training.hyperparameters import override
from training.recipe import Arrays, Run
from training.recipe_loading import load
from training.recipes.embedder import Pieces
from training.recipes.gpt import Decoder

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # the exporters' own
QUICK_GPT = {"epochs": 1, "width": 64, "layers": 2, "lr": 1e-2, "length": 64}
QUICK_EMBEDDER = {"epochs": 3, "width": 128}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path_factory.mktemp("models"), sandbox)
    sandbox.close()


class Made:
    """A model as training left it, and what it says about itself."""

    def __init__(self, recipe: str, settings: Mapping[str, Any], folder: Path) -> None:
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        assert train.main([recipe, *words, "--device", "cpu", "--model-dir", str(folder)], {}) == 0
        self.content = (folder / "model.onnx").read_bytes()
        self.graph = onnx.load_model_from_string(self.content)
        self.card = json.loads(
            next(prop.value for prop in self.graph.metadata_props if prop.key == manifest.KEY)
        )
        self.ask = graphs.runner(self.graph)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made("gpt", QUICK_GPT, tmp_path_factory.mktemp("gpt"))


def registered(world: Platform, made: Made) -> Version:
    version = world.upload(made.content)
    assert version.state is State.READY, version.reason
    assert version.measured["samples_checked"] == len(made.card["samples"]) == 2
    return version


def over_http(world: Platform, version: Version) -> Run:
    """The infer function, asked in JSON."""

    def ask(inputs: Arrays) -> Arrays:
        tensors = [graphs.protocol_tensor(name, {"i": "INT64", "f": "FP32"}[values.dtype.kind], values)
                   for name, values in inputs.items()]  # fmt: skip
        reply = world.client.post(
            f"/v2/models/demo/versions/{version.number}/infer", {"inputs": tensors}
        )
        assert reply.status == 200, reply.json
        return {
            one["name"]: np.array(one["data"], np.float32).reshape(one["shape"])
            for one in reply.json["outputs"]
        }

    return ask


def past_of(made: Made, batch: int = 1, length: int = 0, seed: int = 0) -> Any:
    stacks, _, heads, _, size = next(
        one["shape"] for one in made.card["inputs"] if one["name"] == "past"
    )
    return np.random.default_rng(seed).standard_normal(
        (stacks, batch, heads, length, size), np.float32
    )


def test_a_gpt_beats_counted_pairs_of_bytes(gpt: Made) -> None:
    reached = gpt.card["metrics"]["bits_per_byte"]
    known = {name: values["bits_per_byte"] for name, values in gpt.card["baselines"].items()}

    assert set(known) == {"byte frequencies", "byte pairs"}
    assert reached < known["byte pairs"] - 0.2, (reached, known)
    assert gpt.card["evaluation"]["lead"]["interval"][0] > 0.1
    assert gpt.card["data"]["split"]["by"] == "topic"


def test_a_decoder_says_what_it_remembers(gpt: Made) -> None:
    shapes = {one["name"]: one["shape"] for one in [*gpt.card["inputs"], *gpt.card["outputs"]]}

    assert shapes == {"tokens": [-1, -1], "past": [4, -1, 4, -1, 16], "logits": [-1, -1, 256],
                      "present": [4, -1, 4, -1, 16]}  # fmt: skip
    pasts = [sample["request"]["inputs"][1]["shape"][3] for sample in gpt.card["samples"]]
    assert pasts == [0, 1]


@pytest.mark.parametrize("before", [0, 1, 2, 40])
def test_what_was_read_before_need_not_be_read_again(gpt: Made, before: int) -> None:
    tokens = np.random.default_rng(before).integers(32, 127, (3, before + 5))
    whole = gpt.ask({"tokens": tokens})
    empty = past_of(gpt, batch=3)

    first = gpt.ask({"tokens": tokens[:, :before], "past": empty}) if before else {"present": empty}
    then = gpt.ask({"tokens": tokens[:, before:], "past": first["present"]})

    assert then["present"].shape[3] == before + 5
    np.testing.assert_allclose(then["logits"], whole["logits"][:, before:], atol=1e-4)
    np.testing.assert_allclose(then["present"], whole["present"], atol=1e-4)


def test_no_byte_knows_what_comes_after_it(gpt: Made) -> None:
    tokens = np.random.default_rng(0).integers(32, 127, (1, 20))
    other = tokens.copy()
    other[:, 12:] = 65

    ours, theirs = (gpt.ask({"tokens": one})["logits"] for one in (tokens, other))

    np.testing.assert_allclose(ours[:, :12], theirs[:, :12], atol=1e-5)
    assert abs(ours[:, 12:] - theirs[:, 12:]).max() > 0.1


def test_a_student_that_keeps_less_of_the_past_is_compared_all_the_same(gpt: Made) -> None:
    student = Decoder(networks.GPT(width=32, heads=2, layers=1))
    dims = {
        "batch": torch_exporter.Dim(1, 5),
        "length": torch_exporter.Dim(1, 9),
        "past": torch_exporter.Dim(0, 9),
    }
    axes = {"tokens": {0: "batch", 1: "length"}, "past": {1: "batch", 3: "past"}}
    graph = torch_exporter.export(
        torch_exporter.Spec(student, axes, ["logits", "present"], dims, student.sample)
    )
    tokens = {"tokens": np.zeros((2, 5), np.int64)}

    assert graphs.with_empty_inputs(graph, tokens)["past"].shape == (2, 2, 2, 0, 16)
    assert graphs.with_empty_inputs(gpt.graph, tokens)["past"].shape == (4, 2, 4, 0, 16)
    assert min(variants.latencies([gpt.graph, graph], tokens)) > 0


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_with_its_cache_it_writes_what_it_writes_without(gpt: Made, temperature: float) -> None:
    settings = {
        "length": 60,
        "temperature": temperature,
        "seed": 3,
        "context": 32,
    }  # beyond the context, twice
    asked: list[int] = []

    def ask(inputs: Arrays) -> Arrays:
        asked.append(inputs["tokens"].shape[1])
        return gpt.ask(inputs)

    cached = b"".join(generate(ask, past_of(gpt), b"The statement", **settings))
    read, asked[:] = sum(asked), []
    plain = b"".join(generate(ask, past_of(gpt), b"The statement", **settings, cached=False))

    assert cached == plain
    assert len(cached) == 60
    assert read < 120 < 1000 < sum(asked)


def test_wrong_wishes_are_refused(gpt: Made) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate(gpt.ask, past_of(gpt), b""))
    with pytest.raises(ValueError, match="a temperature of -1 is below 0"):
        next(generate(gpt.ask, past_of(gpt), b"a", temperature=-1))


def test_a_registered_gpt_writes_over_http_what_it_writes_here(gpt: Made, world: Platform) -> None:
    ask = over_http(world, registered(world, gpt))

    here = b"".join(generate(gpt.ask, past_of(gpt), b"A class ", length=12, temperature=0))
    there = b"".join(generate(ask, past_of(gpt), b"A class ", length=12, temperature=0))

    assert there == here


# --- the sentence embedder --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made("embedder", QUICK_EMBEDDER, tmp_path_factory.mktemp("embedder"))


def padded(*texts: str) -> Any:
    rows = [text.encode() for text in texts]
    numbers = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, raw in zip(numbers, rows, strict=True):
        row[: len(raw)] = list(raw)
    return numbers


def test_an_embedder_beats_words_in_common(embedder: Made) -> None:
    reached, known = embedder.card["metrics"], embedder.card["baselines"]

    assert reached["recall_at_1"] > known["TF-IDF"]["recall_at_1"] + 0.03, (reached, known)
    assert reached["recall_at_10"] > known["TF-IDF"]["recall_at_10"] + 0.02
    assert known["random"]["recall_at_1"] < 0.02
    assert embedder.card["data"]["split"]["by"] == "module"


def test_learning_adds_to_what_the_pieces_know_by_their_rarity(embedder: Made) -> None:
    recipe = load("embedder")
    settings = override(recipe.hyperparameters(), QUICK_EMBEDDER)
    data = recipe.load_data({}, settings)
    torch.manual_seed(settings.seed)
    untrained = recipe.make_model(settings, data).eval()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def ask(inputs: Arrays) -> Arrays:
        return {"embedding": untrained(torch.from_numpy(inputs["text"])).numpy()}

    cpu = torch.device("cpu")
    model = Trained(recipe, settings, data, data, (), None, untrained, [], cpu)
    before, _ = model.measure(data.test, ask)
    assert embedder.card["metrics"]["recall_at_10"] > before["recall_at_10"] + 0.03


def test_vectors_are_of_length_one_and_padding_changes_nothing(embedder: Made) -> None:
    alone = embedder.ask({"text": padded("Return the name of a file.")})["embedding"]
    among = embedder.ask({"text": padded("Return the name of a file.", "x" * 500, "", "çé 漢字")})[
        "embedding"
    ]

    assert embedder.card["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, 128], "kind": "embedding"}
    ]
    np.testing.assert_allclose(among[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(among, axis=1), [1, 1, 0, 0], atol=1e-5)


def test_near_is_what_shares_parts_of_words(embedder: Made) -> None:
    asked, near, far = embedder.ask(
        {
            "text": padded(
                "How do I open a FILE?", "Opening files for reading", "A random number generator"
            )
        }
    )["embedding"]

    assert asked @ near > asked @ far + 0.1


def test_the_quick_sum_of_training_is_the_exported_one() -> None:
    pieces = Pieces(1009, 16)
    text = torch.from_numpy(padded("Some text, 3 words", "another"))
    pieces.weigh(text, text)

    quick, exported = pieces.train()(text), pieces.eval()(text)

    np.testing.assert_allclose(quick.detach(), exported.detach(), atol=1e-6)


def test_a_piece_is_three_to_five_letters_of_one_word() -> None:
    pieces = Pieces(101, 1)
    numbers, inside = pieces.numbers(torch.from_numpy(padded("ab, c")))

    # edge-a-b, a-b-edge, edge-c-edge, edge-a-b-edge
    assert int(inside.sum()) == 4
    same = pieces.numbers(torch.from_numpy(padded("AB\n\tC")))
    assert sorted(numbers[inside].tolist()) == sorted(same[0][same[1]].tolist())


def test_a_registered_embedder_answers_what_it_answers_here(
    embedder: Made, world: Platform
) -> None:
    ask = over_http(world, registered(world, embedder))
    text = {"text": padded("Read bytes from a socket.", "Nothing")}

    np.testing.assert_allclose(ask(text)["embedding"], embedder.ask(text)["embedding"], atol=1e-5)
