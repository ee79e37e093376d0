"""Tokenizers of uploaded models: bytes of tokens, bad files, bad texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from functions.adapters.language.tokenizer import HfTokenizer, load_tokenizer
from functions.core.errors import InvalidModel, InvalidRequest
from functions.core.language import assets

TEXTS = ("Hello world", "naïve 😀 日本語", "def f(x):\n\treturn x + 1\n", " two  spaces ")


def byte_level() -> Tokenizer:
    """Byte-level BPE with all bytes, one merge and three added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: token for token, character in enumerate([*alphabet, "he"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return tokenizer


def sentence_piece() -> Tokenizer:
    """BPE with byte fallback, as llama's."""
    characters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "H", "e", "l", "o"]
    vocabulary = {text: token for token, text in enumerate([*characters, "▁H"])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("▁", "H")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def word_piece() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "hello": 1, "##s": 2, "world": 3}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path, **changes: Any) -> Path:
    """Write a tokenizer.json with other values in some of its fields."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(tokenizer.to_str()), **changes}))
    return path


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_bytes_of_tokens_are_the_bytes_of_the_text(make: Any, text: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(make(), tmp_path))
    tokens = tokenizer.encode(text)

    joined = b"".join(tokenizer.token_bytes(token) for token in tokens).decode()
    assert joined.removeprefix(" " if make is sentence_piece else "") == text
    assert tokenizer.decode(tokens) == text


def test_word_pieces_begin_with_a_space_unless_they_continue() -> None:
    tokenizer = HfTokenizer(word_piece())
    assert [tokenizer.token_bytes(token) for token in tokenizer.encode("hellos world")] == [
        b" hello",
        b"s",
        b" world",
    ]


def test_special_tokens_add_no_bytes_and_other_added_ones_their_text() -> None:
    tokenizer = HfTokenizer(byte_level())
    end, think = tokenizer.encode("<|end|><think>")

    assert (tokenizer.token_bytes(end), tokenizer.token_bytes(think)) == (b"", b"<think>")
    assert tokenizer.decode([end, think]) == "<think>"
    assert tokenizer.token("<|end|>") == end
    assert tokenizer.vocabulary == think + 1
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.decode([10**6]) == ""


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(4)
    loaded = load_tokenizer(saved(tokenizer, tmp_path))
    assert len(loaded.encode("abcdefghij")) == 10


def test_a_pair_of_texts_is_one_sequence() -> None:
    tokenizer = HfTokenizer(word_piece())
    assert tokenizer.encode_pair("hello", "world") == [1, 3]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "[" * 100_000, "{}", '{"model": {"type": "BPE"}}', "\x00", "\xff"]
)
def test_a_file_that_is_no_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidModel) as error:
        load_tokenizer(path)
    assert error.value.instance_code == "TOKENIZER_INVALID"


def test_a_bad_pattern_is_refused(tmp_path: Path) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    with pytest.raises(InvalidModel, match="tokenizer.json cannot be loaded"):
        load_tokenizer(saved(byte_level(), tmp_path, pre_tokenizer=pattern))


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Replace", "pattern": {"String": "z"}, "content": "z" * 65},
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "z" * 65}]},
    ],
)
def test_a_step_that_makes_long_texts_is_refused(normalizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="one of 65 characters"):
        load_tokenizer(saved(byte_level(), tmp_path, normalizer=normalizer))


def test_a_sequence_within_a_sequence_of_decoders_is_followed(tmp_path: Path) -> None:
    own = json.loads(byte_level().to_str())["decoder"]
    nested = {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [own]}]}
    tokenizer = load_tokenizer(saved(byte_level(), tmp_path, decoder=nested))
    assert tokenizer.token_bytes(tokenizer.encode("é")[0]) == b"\xc3"


def test_a_file_over_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(byte_level(), tmp_path)
    monkeypatch.setattr(assets, "TOKENIZER_BYTES", path.stat().st_size - 1)
    with pytest.raises(InvalidModel) as error:
        load_tokenizer(path)
    assert error.value.instance_code == "TOKENIZER_TOO_LARGE"


def test_a_pattern_that_backtracks_fails_the_text_alone(tmp_path: Path) -> None:
    pattern = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = load_tokenizer(saved(byte_level(), tmp_path, pre_tokenizer=pattern))
    with pytest.raises(InvalidRequest, match="the model's tokenizer fails on this text"):
        tokenizer.encode("a" * 30 + "b")
    assert tokenizer.encode("b") == [byte_level().token_to_id("b")]


def test_half_a_surrogate_pair_and_a_huge_token_are_the_callers_fault() -> None:
    tokenizer = HfTokenizer(byte_level())
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        tokenizer.encode("a\ud800b")
    with pytest.raises(InvalidRequest, match="fails on these tokens"):
        tokenizer.decode([2**40])


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_lack_of_memory_and_an_interrupt_are_not_the_texts_fault(
    error: type[BaseException],
) -> None:
    class Failing:
        decoder = None

        def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
            return {}

        def encode(self, *_: Any, **__: Any) -> Any:
            raise error

    with pytest.raises(error):
        HfTokenizer(Failing()).encode("a")
