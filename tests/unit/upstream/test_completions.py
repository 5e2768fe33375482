"""What a stream of OpenAI's completions says, and what is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genqueue_worker.upstream.engines.completions import (
    CompletionAnswer,
    completion_parameters,
    more_fields,
    plain_text,
)
from genqueue_worker.upstream.faults import UpstreamError

from ...support.heard import Heard


def event(text, **choice):
    return {"choices": [{"index": 0, "text": text, **choice}]}


def taken(*events):
    heard = Heard()
    answer = CompletionAnswer(heard)
    took = [answer.take(each if isinstance(each, bytes) else b" " + json.dumps(each).encode()) for each in events]
    return heard, answer, took


def test_texts_end_and_usage_are_heard():
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    heard, answer, took = taken(
        event("Hel", finish_reason=None), event("lo", finish_reason="stop"), {"choices": [], "usage": usage}
    )
    assert took == [True, True, True]
    assert (heard.texts, heard.is_closed) == (["Hel", "lo"], True)
    assert (answer.finish_reason, answer.usage, answer.is_complete) == ("stop", usage, True)


def test_of_several_texts_the_first_is_heard():
    other = {"index": 1, "text": "B", "finish_reason": "stop"}
    heard, answer, took = taken(
        {"choices": [{"index": 0, "text": "A1"}, other]},
        {"choices": [other]},
        {"choices": [other, {"text": "A2", "finish_reason": "length"}]},
    )
    assert (took, heard.texts, answer.finish_reason) == ([True] * 3, ["A1", "A2"], "length")
    _, answer, _ = taken(event("A1"), {"choices": [other]})
    assert not answer.is_complete


@pytest.mark.parametrize("end", [[], [b" [DONE]"]], ids=["breaks-off", "done"])
def test_a_stream_without_a_finish_reason_is_not_complete(end):
    heard, answer, _ = taken(event("Hel"), event(""), *end)
    assert (heard.texts, heard.is_closed, answer.is_complete) == (["Hel"], False, False)


def test_the_last_word_is_no_event():
    heard, answer, took = taken(b" [DONE]")
    assert (took, heard.texts, answer.is_complete) == ([False], [], False)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        pytest.param({"error": {"message": "busy"}}, "^busy$", id="error"),
        pytest.param({"choices": [{"text": "x", "error": {"message": "busy"}}]}, "^busy$", id="error-of-a-choice"),
        pytest.param({"choices": [{"delta": {"error": "busy"}}]}, "^busy$", id="error-of-a-delta"),
        pytest.param({"token": {"text": "x"}}, "an event has no choices; it says", id="tgi"),
        pytest.param(b" {", "^the stream is no JSON: {$", id="no-json"),
        pytest.param([5], r"an event is no object; it says \[5\]", id="list"),
        pytest.param({"choices": 5}, "it says", id="no-list"),
        pytest.param({"choices": [{"text": 5}]}, "a content is int; it says", id="no-text"),
    ],
)
def test_what_is_no_text_is_an_error_that_says_what_was_seen(event, words):
    heard = Heard()
    with pytest.raises(UpstreamError, match=words):
        CompletionAnswer(heard).take(event if isinstance(event, bytes) else json.dumps(event).encode())
    assert heard.texts == []


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param({"delta": {"content": "x"}}, id="as-a-chat"),
        pytest.param({"message": {"content": [{"type": "text", "text": "x"}]}}, id="as-a-chats-parts"),
    ],
)
def test_a_text_is_found_where_a_chat_has_it(choice):
    assert taken({"choices": [choice]})[0].texts == ["x"]


def test_an_answer_in_one_piece_needs_no_word_for_its_end():
    heard = Heard()
    answer = CompletionAnswer(heard)
    answer.take_whole(json.dumps({**event("Hello"), "usage": {"completion_tokens": 1}}).encode())
    assert (heard.texts, answer.is_complete, answer.usage) == (["Hello"], True, {"completion_tokens": 1})
    empty = CompletionAnswer(Heard())
    empty.take_whole(b'{"choices": []}')
    assert not empty.is_complete


@pytest.mark.parametrize(("finish_reason", "is_complete"), [(None, False), ("stop", True)])
def test_lines_of_a_stream_are_complete_with_the_word_of_their_end(finish_reason, is_complete):
    answer = CompletionAnswer(Heard())
    answer.take_whole(
        b"\n".join(json.dumps(each).encode() for each in (event("a"), event("b", finish_reason=finish_reason)))
    )
    assert answer.is_complete is is_complete


def test_half_a_character_waits_for_the_other():
    heard, _, _ = taken(event("a\ud83d"), event("\ude00b"), event("c\ud83d", finish_reason="stop"))
    assert heard.texts == ["a", "\ud83d\ude00b", "c\ud83d"]  # which the outbox spells


def test_what_only_shapes_tgis_answer_is_not_sent():
    parameters = {"max_new_tokens": 9, "details": True, "return_full_text": False, "stop": ["x"], "temperature": 0.5}
    assert completion_parameters(parameters) == {"max_new_tokens": 9, "stop": ["x"], "temperature": 0.5}
    assert more_fields(parameters) == {"max_tokens": 9, "stream_options": {"include_usage": True}}


END = event("b", finish_reason="stop")


def bare(**choice):
    return {"choices": [choice]}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([event("a"), END], "ab", id="plain"),
        pytest.param([event("a", logprobs={"tokens": ["a"]}), END], "ab", id="logprobs"),
        pytest.param([event(None), END], "b", id="null-for-a-text"),
        pytest.param([bare(index=0), END], "b", id="no-text"),
        pytest.param([{"choices": None}, END], "b", id="null-for-choices"),
        pytest.param([{"choices": []}, END], "b", id="no-choice"),
        pytest.param([bare(text="a"), END], "ab", id="no-index"),
        pytest.param([bare(text="a", index="0"), END], "ab", id="an-index-of-text"),
        pytest.param([event("a", finish_reason=""), END], "ab", id="an-empty-reason-is-none"),
        pytest.param([{**event("a"), "error": None, "usage": None}, END], "ab", id="nulls-beside"),
        pytest.param([{"choices": [], "usage": [1]}, END], "b", id="a-usage-that-is-none"),
        pytest.param([event("a", delta={"content": "a"}), END], "ab", id="twice-in-one-event"),
        pytest.param([event("", delta={"content": "a"}), END], "ab", id="an-empty-text-beside-a-delta"),
        pytest.param([event([{"type": "text", "text": "a"}]), END], "ab", id="parts"),
        pytest.param([event("a"), END, event("", message={"content": "ab"})], "ab", id="a-copy-behind-the-end"),
        pytest.param([event("a"), event("b", message={"content": "ab"}, finish_reason="stop")], "ab", id="a-copy"),
        pytest.param([bare(message={"content": "a"}), bare(message={"content": "b"}), END], "abb", id="messages"),
        pytest.param([event("a"), END, b" [DONE]"], "ab", id="done"),
    ],
)
def test_a_text_is_there_once_whatever_the_shape_of_its_events(events, expected):
    heard, answer, _ = taken(*events)
    assert ("".join(heard.texts), answer.finish_reason, answer.is_complete) == (expected, "stop", True)


VALUES = st.sampled_from([None, True, False, "", "a", "null", 0, 1, -1, [], {}, ["a"], {"content": "b"}])
CHOICES = st.fixed_dictionaries(
    {"text": VALUES},
    optional={name: VALUES for name in ("index", "finish_reason", "logprobs", "delta", "message", "error", "x")},
)
EVENTS = st.fixed_dictionaries({"choices": st.lists(CHOICES, max_size=2)}, optional={"usage": VALUES, "error": VALUES})


@given(EVENTS | VALUES)
def test_a_plain_text_is_all_that_its_event_says(event):
    text = plain_text(event)
    if text is not None:
        short, long = Heard(), Heard()
        assert CompletionAnswer(short).take(json.dumps(event).encode())
        answer = CompletionAnswer(long)
        answer.take_whole(json.dumps(event).encode())
        assert (short.texts, long.texts, short.is_closed, long.is_closed) == ([text], [text], False, False)
        assert (answer.usage, answer.finish_reason) == ({}, None)
