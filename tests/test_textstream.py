from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

import tiny
from hneurons.answers.spans import to_token_span
from hneurons.answers.text import token_offsets, tokens_of
from hneurons.live.textstream import TextStream
from hneurons.types import Span

TOKENIZER = tiny.tokenizer()
STUDY = tiny.study()


def decode(ids: Sequence[int]) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def run(text: str, stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stop)
    given_out = []
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        given_out.append(stream.add(token))
        if stream.stopped:
            break
    given_out.append(stream.end())
    return given_out, stream


@given(st.text(max_size=60))
def test_the_pieces_make_up_the_text(text: str):
    pieces, stream = run(text)
    expected = decode(TOKENIZER.encode(text, add_special_tokens=False))
    assert "".join(pieces) == stream.text == expected


@given(st.text(alphabet="é日🙂ab", min_size=1, max_size=30))
def test_no_piece_ends_inside_a_character(text: str):
    pieces, _ = run(text)
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(alphabet="abc", max_size=40), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4))
def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(text: str, stop: list[str]):
    pieces, stream = run(text, stop)
    places = [text.find(word) for word in stop if word in text]
    expected = text[: min(places)] if places else text
    # A token may hold the end of one stop string and the beginning of another that starts before it; tokens of
    # these letters are single characters but for a few, so the earliest end decides.
    shown = "".join(pieces)
    assert shown == stream.text
    assert not any(word in shown for word in stop)
    assert stream.stopped == bool(places)
    assert expected.startswith(shown) or shown.startswith(expected)


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not():
    stream = TextStream(lambda ids: "".join(chr(i) for i in ids), ["END"])
    assert [stream.add(ord(letter)) for letter in "aENx"] == ["a", "", "", "ENx"]
    assert [stream.add(ord(letter)) for letter in "EN"] == ["", ""]
    assert stream.end() == "EN"
    assert not stream.stopped


def test_an_unfinished_character_at_the_end_is_given_as_it_is():
    first = TOKENIZER.encode("é", add_special_tokens=False)[0]
    stream = TextStream(decode)
    assert stream.add(first) == ""
    assert stream.end() == "\ufffd"


def test_nothing_follows_a_stop_string():
    stream = TextStream(lambda ids: "".join(chr(i) for i in ids), ["x"])
    assert [stream.add(ord(letter)) for letter in "axb"] == ["a", "", ""]
    assert stream.end() == ""


@given(st.text(alphabet="é日🙂ab .", min_size=1, max_size=25), st.data())
def test_the_tokens_of_a_span_are_those_by_all_offsets(text: str, data: st.DataObject):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    ids = ids[: data.draw(st.integers(1, len(ids)))]
    text = decode(ids)  # may end in a character cut short
    start = data.draw(st.integers(0, max(len(text) - 1, 0)))
    chars = Span(start, data.draw(st.integers(start + 1, max(len(text), 1))))
    expected = to_token_span(chars, token_offsets(STUDY, ids, text))
    assert tokens_of(STUDY, ids, text, chars) == expected
