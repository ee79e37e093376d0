"""Word tokenizer in Python and as ONNX operators, with identical results.

Words end at spaces and line ends. A to Z are lower-cased, which every machine's locale can do;
other letters keep their case. A word of the vocabulary is recognized in each spelling of the
training texts, with the punctuation around it. It may have several pieces, itself among them, some
of which it shares with similar words.
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
from onnx import TensorProto, helper

from training.errors import InvalidData
from training.export import graphs
from training.export.graph_editing import StringEncoder
from training.export.graphs import Feeds

# Token ids that stand for no word. Every text begins with START, so that no text is empty.
PAD, UNKNOWN, START = 0, 1, 2
SPECIAL = 3  # first id of a word
PREFIX_LETTERS = 5
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PUNCTUATION = string.punctuation + "“”‘’«»„…–—"  # noqa: RUF001  # characters that look alike
ODD = (  # unusual texts on which both tokenizers are always compared
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
    """Word tokenizer: converts each text to at most `length` token ids.

    START is the first of them. `words` maps each spelling of a word to its id. With `pieces` (ids,
    count), each id becomes those of its pieces, followed by PAD.
    """

    words: Mapping[str, int]
    length: int
    pieces: NDArray[np.int64] | None = None

    @classmethod
    def fit(
        cls, texts: Iterable[str], *, words: int, length: int, punctuations: int = 0
    ) -> Tokenizer:
        """Build a tokenizer from the `words` most frequent words of `texts`.

        Only the part of a text that is encoded counts. A word's spellings are those in `texts`, and
        the word inside the `punctuations` most frequent pairs of punctuation.

        Raises:
            InvalidData: the texts have no words.
        """
        spellings = Counter(
            spelling for text in texts for spelling in split(text, length)[: max(length - 1, 1)]
        )
        counts: Counter[str] = Counter()
        marks: Counter[tuple[str, str]] = Counter()
        for spelling, count in spellings.items():
            before, word, after = spelling.partition(_bare(spelling))
            counts[word] += count
            marks[before, after] += count
        ids = {word: SPECIAL + at for at, (word, _) in enumerate(counts.most_common(words))}
        if not ids:
            raise InvalidData("the texts have no words")
        pairs = [pair for pair, _ in marks.most_common(punctuations)]
        wrapped = {f"{before}{word}{after}" for word in ids for before, after in pairs}
        bare = {spelling: _bare(spelling) for spelling in sorted({*spellings, *wrapped})}
        return cls({spelling: ids[word] for spelling, word in bare.items() if word in ids}, length)

    def in_pieces(self, count: int) -> Tokenizer:
        """Return a tokenizer that encodes each word as up to `count` pieces."""
        table = np.full((self.size, count), PAD, np.int64)
        table[[UNKNOWN, START], 0] = UNKNOWN, START
        ids: dict[str, int] = {}
        for spelling, word_id in self.words.items():
            for at, piece in enumerate(pieces(_bare(spelling))[:count]):
                table[word_id, at] = ids.setdefault(piece, SPECIAL + len(ids))
        return replace(self, pieces=table)

    @property
    def size(self) -> int:
        """Vocabulary size: number of token ids, for the embedding layer."""
        return max(self.words.values()) + 1 if self.pieces is None else int(self.pieces.max()) + 1

    def __call__(self, texts: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
        """Encode texts (n,) as token ids (n, width[, pieces]).

        They are as wide as the longest text; shorter ones end in PAD.
        """
        rows = [self._word_ids(text) for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=1)), PAD, np.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        return ids if self.pieces is None else self.pieces[ids]

    def _word_ids(self, text: str) -> list[int]:
        ids = [self.words.get(spelling, UNKNOWN) for spelling in split(text, self.length)]
        return [START, *ids][: self.length]


def split(text: str, length: int) -> list[str]:
    """Split the first `length` lines of a text into lower-case words.

    As many words are used at most, so further lines would change nothing.

    >>> split("The end.\\n\\nÉTÉ  is over", 8)
    ['the', 'end.', 'ÉtÉ', 'is', 'over']
    """
    lines = text.translate(_LOWER).split("\n")[:length]
    return [word for line in lines for word in line.split(" ") if word]


def pieces(word: str) -> list[str]:
    """Split a word into pieces: itself, alphanumeric runs, five-letter prefixes.

    >>> pieces("asyncio.queue")
    ['asyncio.queue', 'async', 'asyncio', 'queue']
    """
    runs = [run for run in re.split(r"[^a-z0-9]+", word) if len(run) > 1]
    with_prefixes = [piece for run in (word, *runs) for piece in (run, run[:PREFIX_LETTERS])]
    return list(dict.fromkeys(with_prefixes))


def _bare(spelling: str) -> str:
    """Strip punctuation around a word, unless the word is all punctuation."""
    return spelling.strip(_PUNCTUATION) or spelling


@dataclass(frozen=True, slots=True)
class TextPreprocessor:
    """Preprocessor that turns one text input into token ids.

    Texts (n,) become the network's input `tokens` (n, width[, pieces]) int64.
    """

    tokenizer: Tokenizer
    text: str = "text"
    tokens: str = "tokens"

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Return the free axis of `tokens`: the width of the longest text."""
        return {self.tokens: {1: "length"}}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return the smallest and largest width of `tokens`."""
        return {"length": (1, self.tokenizer.length)}

    def encode(self, inputs: Feeds) -> dict[str, NDArray[Any]]:
        """Replace the text array in `inputs` by token ids."""
        rest = {name: values for name, values in inputs.items() if name != self.text}
        return {self.tokens: self.tokenizer(inputs[self.text]), **rest}

    def attach(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """Prepend tokenizer nodes to `graph`, checked against the Python tokenizer.

        Raises:
            ExportFailed: `graph` has no input of that name, or the tokenizers differ.
        """
        encoder = _encoder(self.tokenizer, self.text, self.tokens)
        return encoder.attach(graph, self.tokenizer, np.array(ODD, object))


def disagreement(tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """Describe how ONNX and Python token ids for `texts` differ, or None."""
    encoder = _encoder(tokenizer, "text", "tokens")
    return encoder.problem(tokenizer, np.array(texts, object))


def _encoder(tokenizer: Tokenizer, text: str, tokens: str) -> StringEncoder:
    """Return ONNX nodes that compute token ids (n, width[, pieces]) from texts.

    Texts are (n,) strings.
    """
    shape: list[str | int] = ["batch", "length"]
    if tokenizer.pieces is not None:
        shape.append(tokenizer.pieces.shape[1])
    encoder = StringEncoder(
        helper.make_tensor_value_info(text, TensorProto.STRING, ["batch"]),
        helper.make_tensor_value_info(tokens, TensorProto.INT64, shape),
    )
    _add_constants(encoder, tokenizer.length)
    _add_split(encoder, tokenizer.length)
    _add_ids(encoder, {"": PAD, **tokenizer.words})
    _add_targets(encoder)
    whole = tokenizer.pieces is None
    _add_rows(encoder, "OUTPUT" if whole else "words")
    if not whole:
        encoder.add_constants(np.int64, {"pieces": tokenizer.pieces})
        encoder.add("Gather", "pieces words", "OUTPUT")
    return encoder


def _add_constants(encoder: StringEncoder, length: int) -> None:
    sizes = {"most": [length], "last": length - 1, "axis": 1, "single": 1}
    ids = {"pad": PAD, "start": START}
    vectors = {"zero": [0], "one": [1], "three": [3], "minus_one": [-1], "starts": [0, 0]}
    encoder.add_constants(np.int64, {**sizes, **ids, **vectors, "pads": [0, 1, 0, 0]})
    encoder.add_constants(object, {"no_text": [""]})


def _add_split(encoder: StringEncoder, length: int) -> None:
    """Add ONNX nodes that split texts (n,) into lower-case words.

    The words have shape (n + 1, lines, words): an empty text is added, because StringNormalizer
    refuses to read no text at all. Both splits stop at `length`, so that a text has at most about
    length² words, wherever its spaces are.
    """
    encoder.add("Concat", "INPUT no_text", "texts", axis=0)
    encoder.add("StringNormalizer", "texts", "lower", case_change_action="LOWER",
                is_case_sensitive=1, locale=graphs.LOCALE)  # fmt: skip
    encoder.add("StringSplit", "lower", "all_lines line_counts", delimiter="\n", maxsplit=length)
    encoder.add("Slice", "all_lines zero most one", "lines")
    encoder.add("StringSplit", "lines", "forms form_counts", maxsplit=length)


def _add_ids(encoder: StringEncoder, ids: Mapping[str, int]) -> None:
    """Add ONNX nodes that look up the token id of each word.

    The ids have shape (n + 1, places); each row begins with START. Between the ids there is PAD,
    where a line is shorter than the longest.
    """
    encoder.add("LabelEncoder", "forms", "sparse", "ai.onnx.ml", keys_strings=list(ids),
                values_int64s=list(ids.values()), default_int64=UNKNOWN)  # fmt: skip
    encoder.add("Shape", "sparse", "size")
    encoder.add("Slice", "size zero one", "rows")
    encoder.add("Slice", "size one three", "inner")
    encoder.add("ReduceProd", "inner", "places")
    encoder.add("Concat", "rows places", "flat_size", axis=0)
    encoder.add("Reshape", "sparse flat_size", "flat", allowzero=1)
    encoder.add("Pad", "flat pads start", "begun")


def _add_targets(encoder: StringEncoder) -> None:
    """Add ONNX nodes that compute each token id's column in the result.

    They also compute the width of the result. PAD and the words beyond the length go to one column
    more, which is cut off.
    """
    encoder.add("Equal", "begun pad", "is_pad")
    encoder.add("Not", "is_pad", "is_word")
    encoder.add("Cast", "is_word", "counted", to=TensorProto.INT64)
    encoder.add("CumSum", "counted axis", "nth")
    encoder.add("Sub", "nth single", "place")
    encoder.add("LessOrEqual", "place last", "fits")
    encoder.add("And", "fits is_word", "kept")
    encoder.add("Min", "place last", "cut")
    encoder.add("ReduceMax", "cut", "furthest", keepdims=0)
    encoder.add("Add", "furthest one", "width")
    encoder.add("Where", "kept place width", "target")


def _add_rows(encoder: StringEncoder, output: str) -> None:
    """Add ONNX nodes that scatter token ids into a matrix (n, width).

    The row of the empty text is cut off.
    """
    encoder.add("Add", "width one", "wider")
    encoder.add("Concat", "rows wider", "wide_size", axis=0)
    encoder.add("Expand", "pad wide_size", "blank")
    encoder.add("Concat", "minus_one width", "ends", axis=0)
    encoder.add("ScatterElements", "blank target begun", "scattered", axis=1)
    encoder.add("Slice", "scattered starts ends", output)
