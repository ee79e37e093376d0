"""Token ids are the same in the graph and in Python."""

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("sklearn")  # with torch, what training needs

from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import ExportFailed, InvalidData
from training.export import graphs, tokenizer_graph
from training.export.tokenizer_graph import ODD, PAD, START, UNKNOWN, Tokenizer

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

DOCUMENTS = [
    "The cat sat.\nThe cat sat on the mat!",
    "(A dog) barked; the dog slept.",
    "cat, dog and café",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.fit(DOCUMENTS, words=50, length=8)


def graph_of(tokenizer: Tokenizer) -> Any:
    """Make a graph that answers the token ids of its texts."""
    tokens, ids = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"])
        for name in ("tokens", "ids")
    )
    node = onnx.helper.make_node("Identity", ["tokens"], ["ids"])
    graph = onnx.helper.make_graph([node], "g", [tokens], [ids])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return tokenizer_graph.TextPreprocessor(tokenizer).attach(model)


def test_punctuation_around_a_word_does_not_change_its_id(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["The cat sat.", "unheard-of Cat,", ""])

    the, cat, sat = (tokenizer.words[word] for word in ("the", "cat", "sat."))
    assert ids.tolist() == [
        [START, the, cat, sat],
        [START, UNKNOWN, cat, PAD],
        [START, PAD, PAD, PAD],
    ]
    assert tokenizer.words["dog)"] == tokenizer.words["dog"]
    assert tokenizer.size == max(tokenizer.words.values()) + 1


def test_the_rarest_words_are_left_out() -> None:
    assert set(Tokenizer.fit(DOCUMENTS, words=1, length=8).words) == {"the"}


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(InvalidData, match="no words"):
        Tokenizer.fit(["", " \n "], words=5, length=8)


@pytest.mark.parametrize("length", [1, 2, 8, 128])
def test_graph_and_python_agree_on_odd_texts(length: int) -> None:
    tokenizer = Tokenizer.fit(DOCUMENTS, words=50, length=length)

    assert tokenizer_graph.disagreement(tokenizer, [*ODD, *DOCUMENTS]) is None


SESSIONS: dict[int, Any] = {}


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(
        st.text() | st.text(" \n\tcatThe.,é\x00\r", max_size=60) | st.sampled_from(DOCUMENTS),
        min_size=1,
        max_size=4,
    ),
    length=st.sampled_from([1, 3, 8]),
)
def test_graph_and_python_agree_on_any_text(texts: list[str], length: int) -> None:
    tokenizer = Tokenizer.fit(DOCUMENTS, words=50, length=length)
    if length not in SESSIONS:
        SESSIONS[length] = graphs.open_session(graph_of(tokenizer))
    (answer,) = SESSIONS[length].run(None, {"text": np.array(texts, object)})

    assert answer.tolist() == tokenizer(texts).tolist()


def test_a_graph_whose_ids_differ_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split(text: str, length: int) -> list[str]:
        return text.lower().split()[:length]  # also at tabs, and lower-cases É

    monkeypatch.setattr(tokenizer_graph, "split", split)

    with pytest.raises(
        ExportFailed, match="encoding of 'text' in the graph differs from Python's at"
    ):
        graph_of(tokenizer)


def test_a_long_text_stays_small(tokenizer: Tokenizer) -> None:
    """4 MB of spaces and line ends: lines and words are limited."""
    session = graphs.open_session(graph_of(tokenizer))

    texts = np.array(["a b " * 500_000 + "\nc" * 1_000_000], object)

    assert session.run(None, {"text": texts})[0].shape == (1, 8)


def test_no_text_has_no_ids(tokenizer: Tokenizer) -> None:
    no_texts = np.array([], object)

    assert graphs.open_session(graph_of(tokenizer)).run(None, {"text": no_texts})[0].shape == (0, 1)
    assert tokenizer(no_texts).shape == (0, 1)


def test_only_core_operators_are_used(tokenizer: Tokenizer) -> None:
    model = graph_of(tokenizer)

    (text,) = model.graph.input
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx.ml"}
    assert (text.name, len(text.type.tensor_type.shape.dim)) == ("text", 1)


def test_a_network_without_the_input_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ExportFailed, match="no input 'words'"):
        tokenizer_graph.TextPreprocessor(tokenizer, tokens="words").attach(graph_of(tokenizer))


def test_similar_words_share_pieces() -> None:
    texts = ["queue queues asyncio.queue", "unique"]
    tokenizer = Tokenizer.fit(texts, words=9, length=8).in_pieces(4)
    ids = tokenizer(["queue queues", "asyncio.queue nothing"])

    assert ids.shape == (2, 3, 4)
    assert ids[:, 0].tolist() == [[START, PAD, PAD, PAD]] * 2
    queue, queues, asyncio = (set(row) - {PAD} for row in (ids[0, 1], ids[0, 2], ids[1, 1]))
    assert len(queue) == 1
    assert len(queues) == 2
    assert queue <= queues
    assert queue <= asyncio
    assert ids[1, 2].tolist() == [UNKNOWN, PAD, PAD, PAD]
    assert tokenizer.size == max(ids.max(), tokenizer.pieces.max()) + 1  # type: ignore[union-attr]


def test_graph_and_python_agree_on_pieces() -> None:
    texts = [*DOCUMENTS, "os.path.join and a-b_c"]
    tokenizer = Tokenizer.fit(texts, words=50, length=8).in_pieces(3)

    assert tokenizer_graph.disagreement(tokenizer, ODD) is None


def test_words_beyond_the_length_are_not_learned() -> None:
    assert set(Tokenizer.fit(["one two three four"], words=9, length=3).words) == {"one", "two"}


def test_words_are_recognized_in_the_punctuation_of_other_words() -> None:
    texts = ["(one) (two) three."]
    plain, more = (Tokenizer.fit(texts, words=9, length=8, punctuations=count) for count in (0, 2))

    assert set(plain.words) == {"(one)", "(two)", "three."}
    assert set(more.words) == {"(one)", "(two)", "(three)", "one.", "two.", "three."}
    assert more.words["(three)"] == more.words["three."] == plain.words["three."]
    assert tokenizer_graph.disagreement(more, [*ODD, "one. (three) four."]) is None
