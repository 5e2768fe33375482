"""The tokens' text beside the one that the endpoint says at its end."""

import pytest

from genqueue_worker.engine.final_text import AGREED, Check, check, told


@pytest.mark.parametrize(
    ("streamed", "whole", "more"),
    [
        pytest.param(" one two", " one two", {}, id="the-same"),
        pytest.param(" one two", None, {}, id="not-said"),
        pytest.param("", "", {}, id="nothing"),
        pytest.param(" one two", "one two", {}, id="white-space-in-front-is-trimmed"),
        pytest.param("one two\n", "one two", {}, id="and-behind"),
        pytest.param("one two", " one two\n", {}, id="or-is-there"),
        pytest.param("one two###", "one two", {"stops": ["###"]}, id="a-stop-sequence-is-cut-off"),
        pytest.param("one two ##", "one two", {"stops": ["###"]}, id="and-so-is-its-beginning"),
        pytest.param("one two###", " one two###", {"stops": ["###"]}, id="or-is-there"),
        pytest.param("one two", "one two</s>", {"specials": {"</s>"}}, id="a-special-token-is-spelt"),
        pytest.param("one two", "<s> one two</s>", {"specials": {"</s>", "<s>"}}, id="several-are"),
        pytest.param("one two", "one two###", {"stops": ["###"]}, id="a-stop-sequence-that-was-not-streamed"),
        pytest.param("one two", "one two</s>", {}, id="a-special-token-that-was-not-streamed"),
        pytest.param("one two", "one two<|im_end|>\n", {}, id="and-another"),
        pytest.param("one two", "What? one two", {"prompt": "What?"}, id="the-prompt-is-there"),
    ],
)
def test_what_says_the_same_is_no_contradiction(streamed, whole, more):
    assert check(streamed, whole, **more) == AGREED


@pytest.mark.parametrize(
    ("streamed", "whole", "more", "missing"),
    [
        pytest.param("", " one two", {}, " one two", id="all"),
        pytest.param(" one", " one two", {}, " two", id="the-end"),
        pytest.param(" one", "one two", {}, " two", id="the-end-of-a-trimmed-one"),
        pytest.param(" one", "What? one two", {"prompt": "What?"}, " two", id="behind-the-prompt"),
    ],
)
def test_text_that_no_token_brought_is_added(streamed, whole, more, missing):
    assert check(streamed, whole, **more) == Check(missing=missing)


@pytest.mark.parametrize(
    ("streamed", "whole", "more", "differs_at"),
    [
        pytest.param(" two three", " one two three", {}, 1, id="the-first-token-was-lost"),
        pytest.param(" one three", " one two three", {}, 6, id="one-in-the-middle-was-lost"),
        pytest.param(" one two", " one", {}, 4, id="more-than-the-whole"),
        pytest.param(" one two###", " one", {"stops": ["###"]}, 4, id="more-than-a-stop-sequence"),
        pytest.param("a\ufffdb", "aéb", {}, 1, id="a-character-that-was-cut"),
        pytest.param("one", "", {}, 0, id="nothing-is-said"),
    ],
)
def test_a_contradiction_is_told_and_the_tokens_are_taken(streamed, whole, more, differs_at):
    found = check(streamed, whole, **more)
    assert found == Check(differs_at=differs_at)
    conflict = told(found, whole)["text_conflict"]
    assert (conflict["taken"], conflict["differs_at"], conflict["generated_text"]) == ("tokens", differs_at, whole)


def test_nothing_is_told_where_both_agree():
    assert told(AGREED, "one") == told(Check(missing="x"), "x") == {}
