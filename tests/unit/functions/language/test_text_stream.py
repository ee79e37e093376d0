"""Text of tokens: characters across tokens, stop strings across tokens."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from functions.core.language.stop_strings import StopStrings
from functions.core.language.text_stream import TextStream

TEXT = st.text(alphabet="ab#é漢🙂\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab#é🙂", min_size=1, max_size=5), max_size=4)
CUTS = st.lists(st.integers(0, 200), max_size=30)


def parts(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


def before_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return the text before the stop string that ends first, the longest of several."""
    for end in range(1, len(text) + 1):
        matched = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if matched:
            return text[: end - max(matched)], True
    return text, False


@given(text=TEXT, stops=STOPS, cuts=CUTS)
def test_parts_give_the_text_before_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stream = TextStream(stops)
    pieces = []
    for part in parts(text.encode(), cuts):
        pieces.append(stream.feed(part))
        # nothing is emitted that a stop string could still cut off
        assert before_stop(text, stops)[0].startswith("".join(pieces))
        if stream.stopped:
            break
    pieces.append(stream.end())

    assert ("".join(pieces), stream.stopped) == before_stop(text, stops)


@given(data=st.binary(max_size=60), cuts=CUTS)
def test_any_bytes_give_whole_characters(data: bytes, cuts: list[int]) -> None:
    stream = TextStream()

    text = "".join(stream.feed(part) for part in parts(data, cuts)) + stream.end()

    whole = data.decode("utf-8", "replace")
    assert whole.startswith(text)
    # only half a character is left out, of which "replace" makes one mark, or two (a surrogate's)
    assert whole[len(text) :] in ("", "\ufffd", "\ufffd\ufffd")


def test_half_a_character_at_the_end_is_left_out() -> None:
    stream = TextStream()

    assert stream.feed("caf🙂".encode()[:-1]) + stream.end() == "caf"


def test_text_is_emitted_as_soon_as_it_is_decided() -> None:
    stops = StopStrings(["END"])

    assert [stops.feed(text) for text in ("a", "bE", "N", "x", "E", "ND", "y")] == [
        *("a", "b", "", "ENx", "", "", "")
    ]
    assert stops.stopped


def test_the_start_of_a_stop_string_comes_at_the_end_of_the_reply() -> None:
    stops = StopStrings(["END"])

    assert stops.feed("the EN") == "the "
    assert stops.end() == "EN"


def test_a_stop_string_of_10000_characters_takes_a_few_steps_a_character() -> None:
    stop = "a" * 9_999 + "b"
    stops = StopStrings([stop, "ab" * 5000])
    steps = 0

    class Counted(str):
        """Text that counts how often its characters are compared."""

        def __getitem__(self, at: object) -> str:  # type: ignore[override]
            nonlocal steps
            steps += 1
            return str.__getitem__(self, at)  # type: ignore[index]

    for pattern in stops._patterns:
        pattern._text = Counted(pattern._text)
    emitted = "".join(stops.feed("a" * 7) for _ in range(5000)) + stops.feed("b")

    assert stops.stopped
    assert len(emitted) == 35_000 - 9_999
    assert steps < 10 * 35_000
