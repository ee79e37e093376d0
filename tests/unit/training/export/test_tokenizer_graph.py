"""The tokeniser in the graph is Python's, whatever the text."""

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
    """A session whose answer are the numbers of its texts."""
    value = onnx.helper.make_tensor_value_info
    plain = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["tokens"], ["numbers"])],
        "g",
        [value("tokens", onnx.TensorProto.INT64, ["batch", "length"])],
        [value("numbers", onnx.TensorProto.INT64, ["batch", "length"])],
    )
    model = onnx.helper.make_model(
        plain, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    return tokenizer_graph.TextPreprocessor(tokenizer).attach(model)


def test_numbers_are_of_words_without_the_punctuation_around_them(tokenizer: Tokenizer) -> None:
    numbers = tokenizer(["The cat sat.", "unheard-of Cat,", ""])

    the, cat, sat = (tokenizer.words[word] for word in ("the", "cat", "sat."))
    assert numbers.tolist() == [
        [START, the, cat, sat],
        [START, UNKNOWN, cat, PAD],
        [START, PAD, PAD, PAD],
    ]
    assert tokenizer.words["dog)"] == tokenizer.words["dog"]
    assert tokenizer.size == max(tokenizer.words.values()) + 1


def test_the_rarest_words_are_left_out() -> None:
    assert set(Tokenizer.fit(DOCUMENTS, words=1, length=8).words) == {"the"}


def test_texts_without_words_teach_nothing() -> None:
    with pytest.raises(InvalidData, match="no words"):
        Tokenizer.fit(["", " \n "], words=5, length=8)


@pytest.mark.parametrize("length", [1, 2, 8, 128])
def test_graph_and_python_agree_on_odd_texts(length: int) -> None:
    assert (
        tokenizer_graph.disagreement(
            Tokenizer.fit(DOCUMENTS, words=50, length=length), [*ODD, *DOCUMENTS]
        )
        is None
    )


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
    (got,) = SESSIONS[length].run(None, {"text": np.array(texts, object)})

    assert got.tolist() == tokenizer(texts).tolist()


def test_a_tokeniser_that_differs_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tokenizer_graph, "split", lambda text, length: text.lower().split()[:length]
    )  # tabs, É

    with pytest.raises(ExportFailed, match="encoding of 'text' in the graph differs from Python's at"):
        graph_of(tokenizer)


def test_a_text_cannot_blow_up(tokenizer: Tokenizer) -> None:
    """4 MB of spaces and line ends: neither as many lines as it has, nor as many words in each."""
    session = graphs.open_session(graph_of(tokenizer))

    texts = np.array(["a b " * 500_000 + "\nc" * 1_000_000], object)

    assert session.run(None, {"text": texts})[0].shape == (1, 8)


def test_no_text_at_all_has_no_numbers(tokenizer: Tokenizer) -> None:
    nothing = np.array([], object)

    assert graphs.open_session(graph_of(tokenizer)).run(None, {"text": nothing})[0].shape == (0, 1)
    assert tokenizer(nothing).shape == (0, 1)


def test_only_core_operators_are_used(tokenizer: Tokenizer) -> None:
    model = graph_of(tokenizer)

    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx.ml"}
    assert [(value.name, len(value.type.tensor_type.shape.dim)) for value in model.graph.input] == [
        ("text", 1)
    ]


def test_a_network_without_that_input_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ExportFailed, match="no input 'words'"):
        tokenizer_graph.TextPreprocessor(tokenizer, tokens="words").attach(graph_of(tokenizer))


def test_words_that_are_alike_share_pieces() -> None:
    tokenizer = Tokenizer.fit(
        ["queue queues asyncio.queue", "unique"], words=9, length=8
    ).in_pieces(4)
    numbers = tokenizer(["queue queues", "asyncio.queue nothing"])

    assert numbers.shape == (2, 3, 4)
    assert numbers[:, 0].tolist() == [[START, PAD, PAD, PAD]] * 2
    queue, queues, asyncio = (
        set(numbers[0, 1]) - {PAD},
        set(numbers[0, 2]) - {PAD},
        set(numbers[1, 1]) - {PAD},
    )
    assert len(queue) == 1
    assert len(queues) == 2
    assert queue <= queues
    assert queue <= asyncio
    assert numbers[1, 2].tolist() == [UNKNOWN, PAD, PAD, PAD]
    assert tokenizer.size == max(numbers.max(), tokenizer.pieces.max()) + 1  # type: ignore[union-attr]


def test_graph_and_python_agree_on_pieces() -> None:
    tokenizer = Tokenizer.fit([*DOCUMENTS, "os.path.join and a-b_c"], words=50, length=8).in_pieces(
        3
    )

    assert tokenizer_graph.disagreement(tokenizer, ODD) is None


def test_only_words_that_are_read_are_known() -> None:
    assert set(Tokenizer.fit(["one two three four"], words=9, length=3).words) == {"one", "two"}


def test_words_are_known_in_punctuation_that_others_have() -> None:
    texts = ["(one) (two) three."]
    plain, more = (Tokenizer.fit(texts, words=9, length=8, punctuations=around) for around in (0, 2))

    assert set(plain.words) == {"(one)", "(two)", "three."}
    assert set(more.words) == {"(one)", "(two)", "(three)", "one.", "two.", "three."}
    assert more.words["(three)"] == more.words["three."] == plain.words["three."]
    assert tokenizer_graph.disagreement(more, [*ODD, "one. (three) four."]) is None
