"""The scripted text is what any piece of it continues to."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genqueue_ops.standin.prose import (
    alternatives,
    expected_text,
    expected_tokens,
    next_tokens,
    pieces,
    position_after,
    tag_of,
)

TOKENS = 60


@given(prompt=st.text(), made=st.integers(0, TOKENS))
def test_prompt_and_text_so_far_get_the_rest(prompt, made):
    whole = expected_tokens(prompt, TOKENS)
    so_far = prompt + "".join(token.text for token in whole[:made])
    assert expected_tokens(so_far, TOKENS - made) == whole[made:]
    assert tag_of(so_far) == tag_of(prompt) or made == 0


@given(prompt=st.text(), cut=st.integers(12, 200))
def test_text_cut_inside_a_token_is_completed(prompt, cut):
    text = expected_text(prompt, TOKENS)
    so_far = (prompt + text[:cut]).rstrip() if text[:cut].strip() else prompt
    rest = expected_text(so_far, TOKENS)
    assert (so_far + rest).startswith(prompt + text)


@given(prompt=st.text(), made=st.integers(0, TOKENS))
def test_split_characters_still_join_to_the_same_text(prompt, made):
    whole = expected_tokens(prompt, TOKENS, split_characters=True)
    so_far = prompt + "".join(token.text for token in whole[:made])
    rest = expected_tokens(so_far, TOKENS, split_characters=True)
    unsaid = 1 if made and whole[made - 1].text == "" else 0
    assert rest[: TOKENS - made] == whole[made - unsaid :][: TOKENS - made]


def test_split_characters_arrive_with_the_second_of_two_tokens():
    tokens = expected_tokens("Hello", 400, split_characters=True)
    empty = [place for place, token in enumerate(tokens) if token.text == ""]
    assert len(empty) > 10
    assert all(len(tokens[place + 1].text.encode()) > 1 for place in empty if place + 1 < len(tokens))


@given(prompt=st.text(), total=st.integers(0, 30), made=st.integers(0, 30))
def test_length_is_that_of_the_whole_text(prompt, total, made):
    made = min(made, total)
    so_far = prompt + expected_text(prompt, made)
    assert position_after(so_far) == position_after(prompt) + made
    assert len(expected_tokens(so_far, 100, tokens=total)) == total - made


@given(prompt=st.text(), made=st.integers(0, TOKENS))
def test_pieces_of_the_text_are_its_tokens(prompt, made):
    assert "".join(token.text for token in pieces(prompt)) == prompt
    assert len(pieces(prompt + expected_text(prompt, made))) == len(pieces(prompt)) + made


def test_prompts_have_texts_of_their_own():
    assert len({tag_of(f"Prompt {number}") for number in range(5000)}) >= 4998


def test_a_quoted_text_does_not_continue():
    quoted = f"Summarise: {expected_text('Hello', 9)} Thanks."
    assert position_after(quoted) == 0


def test_text_holds_words_punctuation_and_characters_of_many_bytes():
    text = expected_text("Hello", 2000)
    for part in ("-0000", "-1996", "café", "東京", "😀", "🚀", "\n\n", ".", " the"):
        assert part in text


def test_ids_and_logprobs_print_alike_as_32_and_64_bit_floats():
    for token in expected_tokens("Hello", 500):
        (as_f32,) = struct.unpack("f", struct.pack("f", token.logprob))
        assert as_f32 == token.logprob <= 0
        assert 0 < token.id < 32_000


@pytest.mark.parametrize("count", [1, 2, 5])
def test_alternatives_begin_with_the_token_and_grow_less_likely(count):
    token = next(next_tokens("Hello"))
    likely = alternatives(token, count)
    assert likely[0] == token
    assert len({other.id for other in likely}) == count
    assert [other.logprob for other in likely] == sorted((other.logprob for other in likely), reverse=True)
