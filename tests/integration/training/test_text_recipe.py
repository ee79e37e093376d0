"""Recipe of texts with a network of its own: exported for texts of every length."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from training.data import Dataset, Examples, split
from training.errors import InvalidRecipe
from training.export import graphs, model_exporter
from training.export.tokenizer_graph import TextPreprocessor, Tokenizer
from training.fitting import trainer
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Recipe

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]
WORDS = ("film", "food", "day", "great", "good", "bad", "poor")
LENGTH = 12


class Bag(torch.nn.Module):  # type: ignore[misc]
    """Mean of the words' vectors."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(words, 8), torch.nn.Linear(8, 2)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.table(tokens).mean(1))


class Last(Bag):
    """Recurrent network, which one exporter unrolls to the length of the training data."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__(words, width)
        self.cell = torch.nn.RNN(8, 8, batch_first=True)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.cell(self.table(tokens))[0][:, -1])


class Flat(Bag):
    """Dense layer over all words, which takes one length alone."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__(words, width)
        self.head = torch.nn.Linear(8 * width, 2)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.table(tokens).flatten(1))


def make_data() -> Dataset:
    generator = np.random.default_rng(0)
    target = np.arange(120) % 2
    texts = [
        " ".join([str(row), *generator.choice(WORDS[:3], 1 + row % 9), WORDS[3 + 2 * number]])
        for row, number in enumerate(target)
    ]
    examples = Examples({"text": np.array(texts, object)}, target)
    return split(examples, source="made", sha256="0", labels=("good", "bad"))


def make_recipe(network: type[Bag]) -> Recipe[Any]:
    def preprocessor(_: object, data: Dataset) -> TextPreprocessor:
        return TextPreprocessor(Tokenizer.fit(data.train.inputs["text"], words=20, length=LENGTH))

    def model(_: object, data: Dataset) -> Any:
        tokens = data.train.inputs["tokens"]
        return network(int(tokens.max()) + 30, tokens.shape[1])

    return Recipe(
        name="reviews",
        description="Whether a review is kind.",
        task="classification",
        hyperparameters=NetworkHyperparameters,
        data=make_data,
        preprocessor=preprocessor,
        model=model,
    )


def train(recipe: Recipe[Any]) -> Any:
    settings = NetworkHyperparameters(epochs=1)
    data = recipe.load_data({}, settings)
    return trainer.fit(recipe, settings, data, device=torch.device("cpu"))


@pytest.mark.parametrize("network", [Bag, Last])
def test_texts_of_every_length_are_answered_without_dynamic(network: type[Bag]) -> None:
    trained = train(make_recipe(network))

    graph = model_exporter.attach_preprocessor(trained, model_exporter.export(trained))

    run = graphs.runner(graph)
    for length in range(LENGTH + 3):
        texts = {"text": np.array([" ".join(["good"] * length), "bad day"], object)}
        expected = trained.run(texts)["probabilities"]
        np.testing.assert_allclose(run(texts)["probabilities"], expected, atol=1e-5)


def test_a_network_of_one_length_is_refused_before_it_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InvalidRecipe, match=r"does not take tokens \[2, 1\]"):
        train(make_recipe(Flat))
    assert "epoch" not in capsys.readouterr().out


def test_a_shortest_length_may_be_set() -> None:
    recipe = replace(make_recipe(Bag), sizes={"length": (2, LENGTH)})

    assert train(recipe).sizes == {"length": (2, LENGTH)}
