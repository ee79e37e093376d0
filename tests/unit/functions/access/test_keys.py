"""Format of access keys."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.core.access.keys import DIGITS, key_digest, new_id, new_key, parse_key


def test_a_key_holds_its_id_and_256_random_bits() -> None:
    key = new_key("0123456789ab")

    assert re.fullmatch(r"mfy_0123456789ab_[0-9A-Za-z]{49}", key)
    assert 62**43 > 2**256
    assert parse_key(key) == "0123456789ab"


def test_no_two_keys_or_ids_are_equal() -> None:
    assert len({new_key("0123456789ab") for _ in range(1000)}) == 1000
    assert len({new_id() for _ in range(1000)}) == 1000


@given(st.data())
def test_every_mistyped_character_is_recognised(data: st.DataObject) -> None:
    key = new_key(new_id())
    at = data.draw(st.integers(0, len(key) - 1))
    typo = data.draw(st.sampled_from([digit for digit in DIGITS if digit != key[at]]))

    assert parse_key(key[:at] + typo + key[at + 1 :]) is None


def test_swapped_characters_are_recognised() -> None:
    key = new_key(new_id())
    swapped = [key[:n] + key[n + 1] + key[n] + key[n + 2 :] for n in range(len(key) - 1)]

    assert not [text for text in swapped if text != key and parse_key(text)]


@pytest.mark.parametrize("text", ["", "mfy_", "x" * 66, "mfy_é", "\ud800", "a" * 10_000])
def test_any_other_text_is_no_key(text: str) -> None:
    assert parse_key(text) is None
    assert len(key_digest(text)) == 64


def test_a_key_with_a_line_end_is_no_key() -> None:
    assert parse_key(new_key(new_id()) + "\n") is None


def test_the_digest_is_the_sha256_of_the_whole_key() -> None:
    key = new_key("0123456789ab")

    assert key_digest(key) == hashlib.sha256(key.encode()).hexdigest()
