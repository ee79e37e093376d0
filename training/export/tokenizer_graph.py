"""Texts into numbers, twice the same: in Python for training, and in core ONNX operators in front of the network.

A word is what stands between spaces and line ends, in lower case where it is A to Z, which is all that every machine's
locale can do; other letters stay as they are. Words of the vocabulary are known in the forms in which the training
texts have them, with the punctuation around them. A word may stand for several pieces, itself among them, which it
shares with words that are like it.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.errors import ExportFailed, InvalidData
from training.export import graphs
from training.export.graphs import Feeds, first_line

PAD, UNKNOWN, START = (
    0,
    1,
    2,
)  # numbers of no word; every text begins with START, so that none is empty
SPECIAL = 3
BEGINNING = 5  # letters
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_AROUND = string.punctuation + "“”‘’«»„…–—"  # noqa: RUF001  # punctuation that looks like other punctuation
ODD = (  # texts that a proof asks about, whatever the training texts are
    "",
    " ",
    "\n\n",
    "  many   spaces \n and\n\n\nlines  ",
    "\ttabs\tand\r\nold line ends\x0b\x0c\x85\u2028",
    "Ünïcödé ÉTÉ İstanbul ẞ 漢字 テスト 🙂\u200d🙂 e\u0301 \u00a0no\u00a0break",
    "\x00 nul \x00x",
    "word " * 5000,
    "\n".join(["line"] * 3000),
    "x" * 100_000,
)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`words` knows the number of each form of a word; a text becomes at most `length` numbers, START included.

    With `pieces` (words, count), each word becomes the numbers of its pieces, PAD behind them.
    """

    words: Mapping[str, int]
    length: int
    pieces: NDArray[np.int64] | None = None

    @classmethod
    def fit(cls, texts: Iterable[str], *, words: int, length: int, around: int = 0) -> Tokenizer:
        """The `words` most frequent words of `texts`, as far as they are read, in all their forms.

        Those are the forms in `texts` and, of each word, the ones with the `around` most frequent punctuations.

        Raises:
            InvalidData: there is no word in the texts.
        """
        forms = Counter(
            form for text in texts for form in split(text, length)[: max(length - 1, 1)]
        )
        counts: Counter[str] = Counter()
        marks: Counter[tuple[str, str]] = Counter()
        for form, count in forms.items():
            before, word, after = form.partition(_bare(form))
            counts[word] += count
            marks[before, after] += count
        kept = {word: SPECIAL + at for at, (word, _) in enumerate(counts.most_common(words))}
        if not kept:
            raise InvalidData("the texts have no words")
        wrapped = {
            f"{before}{word}{after}": word
            for word in kept
            for (before, after), _ in marks.most_common(around)
        }
        known = {form: _bare(form) for form in sorted({*forms, *wrapped})}
        return cls({form: kept[word] for form, word in known.items() if word in kept}, length)

    def in_pieces(self, count: int) -> Tokenizer:
        """The same, each word as up to `count` pieces: itself, its parts, and how it and they begin."""
        table = np.full((self.size, count), PAD, np.int64)
        table[[UNKNOWN, START], 0] = UNKNOWN, START
        known: dict[str, int] = {}
        for form, number in self.words.items():
            for at, piece in enumerate(pieces(_bare(form))[:count]):
                table[number, at] = known.setdefault(piece, SPECIAL + len(known))
        return replace(self, pieces=table)

    @property
    def size(self) -> int:
        """How many different numbers there are, for the embedding."""
        return max(self.words.values()) + 1 if self.pieces is None else int(self.pieces.max()) + 1

    def __call__(self, texts: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
        """Texts (n,) as numbers (n, width), as wide as the longest of them, PAD behind the others.

        With pieces (n, width, count).
        """
        rows = [
            [START, *(self.words.get(form, UNKNOWN) for form in split(text, self.length))][
                : self.length
            ]
            for text in texts
        ]
        numbers = np.full((len(rows), max(map(len, rows), default=1)), PAD, np.int64)
        for row, found in zip(numbers, rows, strict=True):
            row[: len(found)] = found
        return numbers if self.pieces is None else self.pieces[numbers]


def split(text: str, length: int) -> list[str]:
    """The words of `text`. Only its first `length` lines are read, which hold as many words as are used.

    >>> split("The end.\\n\\nÉTÉ  is over", 8)
    ['the', 'end.', 'ÉtÉ', 'is', 'over']
    """
    lines = text.translate(_LOWER).split("\n")[:length]
    return [word for line in lines for word in line.split(" ") if word]


def pieces(word: str) -> list[str]:
    """A word, what its letters and digits are in a row, and the beginnings of all these.

    >>> pieces("asyncio.queue")
    ['asyncio.queue', 'async', 'asyncio', 'queue']
    """
    parts = [part for part in re.split(r"[^a-z0-9]+", word) if len(part) > 1]
    return list(
        dict.fromkeys(piece for part in (word, *parts) for piece in (part, part[:BEGINNING]))
    )


def _bare(form: str) -> str:
    """A word without the punctuation around it, or the punctuation where there is nothing else."""
    return form.strip(_AROUND) or form


@dataclass(frozen=True, slots=True)
class TextPreprocessor:
    """`recipe.Preprocessor` for one text input (n,), which becomes the network's input `tokens` (n, width[, pieces]) int64."""

    tokenizer: Tokenizer
    text: str = "text"
    tokens: str = "tokens"

    def encode(self, inputs: Feeds) -> dict[str, NDArray[Any]]:
        """`inputs` with numbers in the place of the text."""
        rest = {name: values for name, values in inputs.items() if name != self.text}
        return {self.tokens: self.tokenizer(inputs[self.text]), **rest}

    def attach(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """`graph` with the tokeniser in front, proven on odd texts.

        Raises:
            ExportFailed: it has no such input, or the two tokenisers differ.
        """
        if all(value.name != self.tokens for value in graph.graph.input):
            raise ExportFailed(
                f"the network has no input {self.tokens!r} for the words of {self.text!r}"
            )
        problem = disagreement(self.tokenizer, ODD)
        if problem is not None:
            raise ExportFailed(f"the tokeniser in the graph {problem}")
        return attach(self.tokenizer, graph, self.text, self.tokens)


def attach(tokenizer: Tokenizer, graph: onnx.ModelProto, text: str, tokens: str) -> onnx.ModelProto:
    """A graph that takes `text`, strings (batch,), where `graph` takes `tokens`."""
    nodes, constants = _nodes(tokenizer, text, tokens)
    given = helper.make_tensor_value_info(text, TensorProto.STRING, ["batch"])
    return graphs.put_before(graph, nodes, constants, tokens, given)


def _nodes(
    tokenizer: Tokenizer, text: str, tokens: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Strings → lines → words → numbers (n, lines, words) → the numbers of words alone, in rows (n, width).

    An empty text is added at first and its row taken away at last: StringNormalizer refuses to read no text at all.
    Both splits stop at `length`: a text does not blow up to more than about length² words, wherever its spaces are.
    """
    length = tokenizer.length
    prefix = f"{tokens}_"
    values = {
        "zero": [0], "one": [1], "three": [3], "axis": 1, "most": [length], "pads": [0, 1, 0, 0], "start": START,
        "pad": PAD, "single": 1, "last": length - 1, "starts": [0, 0], "minus_one": [-1],
    }  # fmt: skip
    constants = [
        numpy_helper.from_array(np.array(value, np.int64), f"{prefix}{name}")
        for name, value in values.items()
    ]
    constants.append(numpy_helper.from_array(np.array([""], object), f"{prefix}no_text"))
    whole = tokenizer.pieces is None
    if tokenizer.pieces is not None:
        constants.append(numpy_helper.from_array(tokenizer.pieces, f"{prefix}pieces"))

    def node(
        operator: str, inputs: str, output: str, domain: str = "", **settings: Any
    ) -> onnx.NodeProto:
        names = [text if name == "TEXT" else prefix + name for name in inputs.split()]
        outputs = [tokens if name == "TOKENS" else prefix + name for name in output.split()]
        return helper.make_node(operator, names, outputs, domain=domain, **settings)

    forms = {"": PAD, **tokenizer.words}
    return [
        node("Concat", "TEXT no_text", "texts", axis=0),
        node("StringNormalizer", "texts", "lower", case_change_action="LOWER", is_case_sensitive=1,
             locale=graphs.LOCALE),
        node("StringSplit", "lower", "all_lines line_counts", delimiter="\n", maxsplit=length),
        node("Slice", "all_lines zero most one", "lines"),
        node("StringSplit", "lines", "forms form_counts", maxsplit=length),
        node("LabelEncoder", "forms", "sparse", "ai.onnx.ml", keys_strings=list(forms),
             values_int64s=list(forms.values()), default_int64=UNKNOWN),
        node("Shape", "sparse", "size"),
        node("Slice", "size zero one", "rows"),
        node("Slice", "size one three", "inner"),
        node("ReduceProd", "inner", "places"),
        node("Concat", "rows places", "flat_size", axis=0),
        node("Reshape", "sparse flat_size", "flat", allowzero=1),
        node("Pad", "flat pads start", "begun"),
        node("Equal", "begun pad", "is_pad"),
        node("Not", "is_pad", "is_word"),
        node("Cast", "is_word", "counted", to=TensorProto.INT64),
        node("CumSum", "counted axis", "nth"),
        node("Sub", "nth single", "place"),
        node("LessOrEqual", "place last", "fits"),
        node("And", "fits is_word", "kept"),
        node("Min", "place last", "cut"),
        node("ReduceMax", "cut", "furthest", keepdims=0),
        node("Add", "furthest one", "width"),
        node("Where", "kept place width", "target"),  # the others go to one column more, which is cut off
        node("Add", "width one", "wider"),
        node("Concat", "rows wider", "wide_size", axis=0),
        node("Expand", "pad wide_size", "blank"),
        node("Concat", "minus_one width", "ends", axis=0),
        node("ScatterElements", "blank target begun", "scattered", axis=1),
        node("Slice", "scattered starts ends", "TOKENS" if whole else "words"),
        *([] if whole else [node("Gather", "pieces words", "TOKENS")]),
    ], constants  # fmt: skip


def disagreement(tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """What the tokeniser in a graph does differently from Python's, on `texts` one by one and all at once, or None."""
    shape: list[str | int] = ["batch", "length"]
    if tokenizer.pieces is not None:
        shape.append(tokenizer.pieces.shape[1])
    plain = helper.make_graph(
        [helper.make_node("Identity", ["tokens"], ["numbers"])],
        "model",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("numbers", TensorProto.INT64, shape)],
    )
    opset = helper.make_opsetid("", graphs.OPSET)
    inner = helper.make_model(plain, opset_imports=[opset], ir_version=graphs.IR)
    model = attach(tokenizer, inner, "text", "tokens")
    problem = graphs.unfit(model)
    if problem is not None:
        return problem
    session = graphs.runtime(model)
    for batch in ([text] for text in texts), [list(texts)]:
        for asked in batch:
            expected = tokenizer(asked)
            try:
                got = session.run(None, {"text": np.array(asked, object)})[0]
            except Exception as error:  # native errors of any kind
                return f"fails at {_shown(asked)}: {first_line(error)}"
            if got.shape != expected.shape or (got != expected).any():
                return f"differs from Python's at {_shown(asked)}"
    return None


def _shown(texts: Sequence[str]) -> str:
    return ", ".join(repr(text[:40]) for text in texts[:3])
