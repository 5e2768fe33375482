"""An oddity that costs no text and no call fails no answer, on whichever route it comes."""

import json
import math

import pytest

from genqueue.wire.events import Token
from genqueue_worker.upstream.engines.chats import ChatReader
from genqueue_worker.upstream.engines.completions import CompletionAnswer
from genqueue_worker.upstream.engines.native import NativeAnswer
from genqueue_worker.upstream.errors.answers import damage, foreign_charset
from genqueue_worker.upstream.faults import UpstreamError
from genqueue_worker.upstream.fields import UNKNOWN_TOKEN, encodable

from ...support.heard import Heard

DONE = b"[DONE]"
HALF, OTHER_HALF = "\ud83d", "\ude00"


def as_data(event):
    return event if isinstance(event, bytes) else json.dumps(event).encode()


def chatted(*events):
    """(what was heard, the answer) of a chat's stream, read to its end."""
    heard = Heard()
    answer = ChatReader(heard, 50)
    for event in events:
        if not answer.take(as_data(event)):
            break
    answer.finish()
    assert (answer.is_complete, answer.lack) == (True, None)
    return heard, answer


def completed(*events):
    heard = Heard()
    answer = CompletionAnswer(heard)
    for event in events:
        if not answer.take(as_data(event)):
            break
    assert answer.is_complete
    return heard, answer


def generated(*events):
    """(the text, what was heard, the answer) of a stream of TGI's."""
    heard = Heard()
    answer = NativeAnswer(heard)
    for event in events:
        if not answer.take(as_data(event)):
            break
    assert answer.is_complete
    return "".join(text for _, text, _ in heard.pushed), heard, answer


def choice(delta=None, **more):
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": None, **more}]}


A, B, STOP = choice({"content": "a"}), choice({"content": "b"}), choice(finish_reason="stop")
ODD = [None, True, False, 0, 5, -1.5, "", "x", "5", [], ["x"], [None], {}, {"x": 1}]
"""A value of each type of JSON."""


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize(
    "place",
    ["usage", "id", "object", "created", "model", "system_fingerprint", "service_tier", "provider", "x_groq"],
)
def test_whatever_stands_beside_the_choices_costs_no_chat(place, value):
    heard, _ = chatted(A, {**B, place: value}, STOP, DONE)
    assert "".join(heard.texts) == "ab"
    text, _ = completed({"choices": [{"text": "a"}], place: value}, {"choices": [{"text": "b", "finish_reason": "s"}]})
    assert "".join(text.texts) == "ab"


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("place", ["logprobs", "matched_stop", "stop_reason", "token_ids", "content_filter_results"])
def test_whatever_stands_beside_the_delta_costs_no_chat(place, value):
    heard, answer = chatted(A, choice({"content": "b"}, **{place: value}), STOP, DONE)
    assert ("".join(heard.texts), answer.extra) == ("ab", {})


@pytest.mark.parametrize("value", [value for value in ODD if not isinstance(value, str)], ids=repr)
def test_what_is_no_word_ends_nothing(value):
    heard, answer = chatted(choice({"content": "a"}, finish_reason=value), B, STOP, DONE)
    assert ("".join(heard.texts), answer.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize("value", ["null", "none", "None", ""])
def test_a_word_for_no_end_ends_nothing(value):
    """As DashScope has it in every event."""
    heard = Heard()
    answer = ChatReader(heard, 50)
    for event in (choice({"content": "a"}, finish_reason=value), choice({"content": "b"}, finish_reason=value)):
        answer.take(as_data(event))
    assert ("".join(heard.texts), answer.is_complete, heard.is_closed) == ("ab", False, False)


@pytest.mark.parametrize("value", [None, True, False, 0, "", [], {}, [None], 5, -1.5, "x", "5", {"x": 1}], ids=repr)
@pytest.mark.parametrize("place", ["index", "role", "name", "annotations"])
def test_whatever_a_delta_says_beside_its_text_costs_no_text(place, value):
    heard, _ = chatted(A, choice({"content": "b", place: value}), STOP, DONE)
    assert "".join(heard.texts) == "ab"


@pytest.mark.parametrize("value", [None, True, False, 0, 5, "", "x", "auto", [], [None], {}, [{}]], ids=repr)
@pytest.mark.parametrize("place", ["tool_calls", "function_call"])
def test_what_is_no_call_is_none(place, value):
    heard, answer = chatted(A, choice({"content": "b", place: value}), STOP, DONE)
    assert ("".join(heard.texts), heard.tool_calls, answer.extra) == ("ab", [], {})


@pytest.mark.parametrize("value", [None, True, False, 0, "", [], {}], ids=repr)
@pytest.mark.parametrize("place", ["reasoning", "reasoning_content", "refusal"])
def test_what_is_no_thought_is_none(place, value):
    if (place, value) == ("refusal", True):
        return  # a word that it refuses, without the words
    heard, answer = chatted(A, choice({"content": "b", place: value}), STOP, DONE)
    assert ("".join(heard.texts), answer.extra) == ("ab", {})


@pytest.mark.parametrize("index", [None, 0, 0.0, "0", False, -1, "-1", "", "first", [], [1], {}, 0.5, True], ids=repr)
def test_an_index_that_is_none_tells_no_answers_apart(index):
    heard, _ = chatted(choice({"content": "a"}, index=index), choice({"content": "b"}, index=index), STOP, DONE)
    assert "".join(heard.texts) == "ab"


@pytest.mark.parametrize("index", [1, "1", 1.0, 7])
def test_another_answer_is_none_of_ours(index):
    heard, _ = chatted(A, choice({"content": "x"}, index=index), B, STOP, DONE)
    assert "".join(heard.texts) == "ab"


@pytest.mark.parametrize(
    "event",
    [
        pytest.param({}, id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b'""', id="empty-text"),
        pytest.param([], id="empty-list"),
        pytest.param({"choices": None}, id="null-choices"),
        pytest.param({"choices": []}, id="no-choice"),
        pytest.param({"choices": {}}, id="choices-is-an-empty-object"),
        pytest.param({"choices": [None]}, id="null-choice"),
        pytest.param({"choices": [{}]}, id="empty-choice"),
        pytest.param(choice(delta=None), id="empty-delta"),
        pytest.param({"choices": [{"index": 0, "delta": None}]}, id="null-delta"),
        pytest.param({"choices": [{"index": 0, "delta": []}]}, id="delta-is-an-empty-list"),
        pytest.param({"choices": [{"index": 0, "delta": False}]}, id="delta-is-false"),
        pytest.param({"choices": [{"index": 0, "delta": True}]}, id="delta-is-true"),
        pytest.param(choice({"role": "assistant"}), id="role-only"),
        pytest.param(choice({"content": [None, {"type": "text"}, {"type": "text", "text": None}]}), id="void-parts"),
        pytest.param(choice({"content": []}), id="no-parts"),
        pytest.param({"type": "ping"}, id="ping"),
        pytest.param({"usage": None}, id="null-usage"),
        pytest.param({"choices": [], "error": None}, id="null-error"),
    ],
)
def test_an_event_that_says_nothing_costs_nothing(event):
    heard, _ = chatted(event, A, event, B, STOP, event, DONE)
    assert "".join(heard.texts) == "ab"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        pytest.param({"choices": {"index": 0, "delta": {"content": "b"}}}, "b", id="choices-is-an-object"),
        pytest.param({"choices": [None, {"delta": {"content": "b"}}]}, "b", id="behind-a-null"),
        pytest.param([choice({"content": "b"}), choice({"content": "c"})], "bc", id="two-in-one"),
        pytest.param(choice({"content": ["b", "c"]}), "bc", id="parts-are-texts"),
        pytest.param(choice({"content": ["b", {"type": "text", "text": "c"}, None, "d"]}), "bcd", id="mixed"),
        pytest.param(choice({"content": {"type": "text", "text": {"value": "b"}}}), "b", id="assistants-text"),
        pytest.param(choice({"content": [{"type": ["x"], "text": "b"}]}), "b", id="type-is-a-list"),
        pytest.param({"choices": [{"delta": {}, "text": "b"}]}, "b", id="text-beside-an-empty-delta"),
        pytest.param({"choices": [{"delta": {"content": "b"}, "text": "b"}]}, "b", id="text-beside-a-delta"),
        pytest.param({"choices": [{"delta": "b"}]}, "b", id="delta-is-text"),
        pytest.param({"choices": [{"text": "b", "delta": None, "message": None}]}, "b", id="nulls-beside-a-text"),
    ],
)
def test_a_text_in_an_odd_place_is_there(event, text):
    heard, _ = chatted(A, event, STOP, DONE)
    assert "".join(heard.texts) == "a" + text


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ({"content": [{"token": "b", "logprob": -0.5}]}, [("b", -0.5, [])]),
        ({"content": [{"token": "b", "logprob": "-0.5", "top_logprobs": None}]}, [("b", -0.5, [])]),
        ({"content": [{"token": "b", "logprob": "none", "top_logprobs": 5}]}, [("b", None, [])]),
        ({"content": [{"token": "b", "logprob": True}, None, 5, {}, {"token": 5}]}, [("b", None, [])]),
        ({"content": [{"token": "b", "logprob": "-Infinity"}]}, [("b", None, [])]),
        ({"content": [{"token": "b"}]}, [("b", None, [])]),
        ([{"token": "b", "logprob": -1}], [("b", -1, [])]),
        (
            {"content": [{"token": "b", "logprob": -1, "top_logprobs": [None, {"token": "c", "logprob": "-2"}, {}]}]},
            [("b", -1, [{"token": "c", "logprob": -2.0}])],
        ),
        ({"tokens": ["b"], "token_logprobs": [-1]}, []),
        ({"content": {"token": "b"}}, []),
    ],
    ids=str,
)
def test_of_odd_logprobs_the_rest_is_kept(logprobs, expected):
    heard, answer = chatted(A, choice({"content": "b"}, logprobs=logprobs), STOP, DONE)
    told = [(one["token"], one["logprob"], one["top_logprobs"]) for one in answer.extra.get("logprobs", ())]
    assert ("".join(heard.texts), told) == ("ab", expected)


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        ([{"prompt_tokens": 7, "completion_tokens": 2}], (7, 2)),
        ([{"prompt_tokens": "7", "completion_tokens": 2.0}], (7, 2)),
        ([{"prompt_tokens": 7, "completion_tokens": 1}, {"completion_tokens": 2}], (7, 2)),
        ([{"prompt_tokens": 7, "completion_tokens": 2}, {"total_tokens": 9}], (7, 2)),
        ([{"prompt_tokens": 7, "completion_tokens": 2}, None], (7, 2)),
        ([{"prompt_tokens": 7, "completion_tokens": 2}, {"prompt_tokens": None, "completion_tokens": "?"}], (7, 2)),
        ([{"prompt_tokens": -7, "completion_tokens": 2.5}], (None, None)),
        ([{"prompt_tokens": True, "completion_tokens": [2]}], (None, None)),
        ([{"prompt_tokens": "9" * 400, "completion_tokens": math.inf}], (None, None)),
        (["7"], (None, None)),
    ],
    ids=str,
)
def test_usage_is_what_was_counted(usages, expected):
    told = [{"choices": [], "usage": usage} for usage in usages]
    _, answer = chatted(A, STOP, *told, DONE)
    assert (answer.usage.get("prompt_tokens"), answer.usage.get("completion_tokens")) == expected
    _, answer = completed({"choices": [{"text": "a", "finish_reason": "stop"}]}, *told)
    assert (answer.usage.get("prompt_tokens"), answer.usage.get("completion_tokens")) == expected


@pytest.mark.parametrize(
    ("events", "text", "finish_reason"),
    [
        pytest.param([A, choice({"content": "b", "finish_reason": "stop"})], "ab", "stop", id="in-the-delta"),
        pytest.param([A, choice({"finish_reason": "length"})], "a", "length", id="alone-in-the-delta"),
        pytest.param([A, STOP, B, DONE], "ab", "stop", id="a-token-behind-it"),
        pytest.param([A, STOP, STOP, DONE], "a", "stop", id="twice"),
        pytest.param([A, B, DONE], "ab", None, id="none"),
        pytest.param([A, STOP, b'"[DONE]"'], "a", "stop", id="done-in-quotes"),
        pytest.param([A, B, b' "[DONE]" '], "ab", None, id="done-in-quotes-alone"),
        pytest.param([A, STOP, DONE, B], "a", "stop", id="text-behind-done"),
        pytest.param([A, STOP, choice({"content": HALF}), choice({"content": OTHER_HALF})], "a😀", "stop", id="a-half"),
    ],
)
def test_an_end_in_an_odd_place_is_one(events, text, finish_reason):
    heard, answer = chatted(*events)
    assert (encodable("".join(heard.texts)), answer.finish_reason) == (text, finish_reason)


def call(arguments=None, name=None, **signs):
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**signs, "function": function}


F = {"name": "f", "arguments": '{"x":1}'}


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param([{"tool_calls": [{"id": "a", "function": F}]}], id="in-one"),
        pytest.param([{"tool_calls": {"id": "a", "function": F}}], id="no-list"),
        pytest.param([{"tool_calls": {"0": {"id": "a", "function": F}}}], id="an-object-by-index"),
        pytest.param([{"tool_calls": [None, {"id": "a", "function": F}]}], id="behind-a-null"),
        pytest.param([{"tool_calls": [{"id": "a", **F}]}], id="no-function"),
        pytest.param([{"tool_calls": [{"function": "f", "arguments": '{"x":1}'}]}], id="function-is-a-name"),
        pytest.param([{"tool_calls": [{"index": -1, "function": F}]}], id="index-below-0"),
        pytest.param([{"tool_calls": [{"index": 0.0, "function": F}]}], id="index-with-a-fraction"),
        pytest.param([{"tool_calls": [{"index": "x", "id": ["a"], "function": F}]}], id="signs-are-none"),
        pytest.param([{"tool_calls": [call({"x": 1}, "f")]}], id="arguments-are-an-object"),
        pytest.param([{"function_call": F}], id="function-call"),
        pytest.param(
            [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": '{"x":1}'}}],
            id="function-call-in-pieces",
        ),
        pytest.param([{"tool_calls": [], "function_call": F}], id="function-call-beside-no-calls"),
        pytest.param(
            [{"tool_calls": [call("{}", "f", index=-1)]}, {"tool_calls": [call('{"x":1}', index=-1)]}],
            id="index-below-0-and-an-empty-opening",
        ),
        pytest.param(
            [
                {"tool_calls": [call('{"x":1}', "f", index=0)]},
                {"tool_calls": [call('{"x":', index=0)]},
                {"tool_calls": [call("1}", index=0)]},
            ],
            id="whole-and-then-in-pieces",
        ),
    ],
)
@pytest.mark.parametrize("ends", ["behind", "with-each", "first", "done-alone"])
def test_a_call_in_an_odd_shape_is_one(deltas, ends):
    reason = "tool_calls" if ends == "with-each" else None
    events = [choice(delta, finish_reason=reason) for delta in deltas]
    if ends == "behind":
        events.append(choice(finish_reason="tool_calls"))
    elif ends == "first":
        events.insert(0, choice(finish_reason="tool_calls"))
    heard, answer = chatted(*events, DONE)
    (found,) = answer.extra["tool_calls"]
    assert (found["function"], answer.finish_reason) == (F, "tool_calls")
    assert "".join(piece.arguments for piece in heard.tool_calls) == F["arguments"]
    assert [piece.id for piece in heard.tool_calls if piece.id] == [found["id"]]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        pytest.param(choice({"content": 5}), "a content is int", id="content"),
        pytest.param(choice({"content": [5]}), "a part of a content is int", id="part"),
        pytest.param(choice({"content": [{"type": "image"}]}), "has no text, it is image", id="image"),
        pytest.param(choice({"content": [{"type": "text", "text": 5}]}), "has no text, it is text", id="text"),
        pytest.param(choice({"refusal": ["x"]}), "text is list", id="refusal"),
        pytest.param(choice({"tool_calls": ["f"]}), "a tool call is str", id="call"),
        pytest.param(choice({"tool_calls": [{"function": ["f"]}]}), "function is list", id="function"),
        pytest.param({"choices": ["x"]}, "a choice is str", id="choice"),
        pytest.param([5], "an event is no object", id="event"),
    ],
)
def test_what_may_be_text_or_a_call_is_a_failure_that_says_what_was_seen(event, words):
    with pytest.raises(UpstreamError, match=words):
        ChatReader(Heard(), 50).take(as_data(event))


def token_event(text="a", generated_text=None, details=None, **more):
    token = {"id": 5, "text": text, "logprob": -0.5, "special": False, **more}
    return {"token": token, "generated_text": generated_text, "details": details}


LACKING = object()
END = {"finish_reason": "length", "generated_tokens": 2, "input_length": 3}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("special", LACKING, Token(5, "b", -0.5, False)),
        ("special", None, Token(5, "b", -0.5, False)),
        ("special", 0, Token(5, "b", -0.5, False)),
        ("special", 1, Token(5, "b", -0.5, True)),
        ("special", "false", Token(5, "b", -0.5, False)),
        ("special", "True", Token(5, "b", -0.5, True)),
        ("special", ["x"], Token(5, "b", -0.5, False)),
        ("id", LACKING, Token(UNKNOWN_TOKEN, "b", -0.5, False)),
        ("id", None, Token(UNKNOWN_TOKEN, "b", -0.5, False)),
        ("id", "7", Token(7, "b", -0.5, False)),
        ("id", 7.0, Token(7, "b", -0.5, False)),
        ("id", {}, Token(UNKNOWN_TOKEN, "b", -0.5, False)),
        ("logprob", LACKING, Token(5, "b", None, False)),
        ("logprob", "-0.25", Token(5, "b", -0.25, False)),
        ("logprob", "x", Token(5, "b", None, False)),
        ("logprob", [1], Token(5, "b", None, False)),
        ("logprob", True, Token(5, "b", None, False)),
        ("text", None, Token(5, "", -0.5, False)),
    ],
)
def test_a_native_token_is_its_text_whatever_else_it_lacks(field, value, expected):
    odd = token_event("b")
    if value is LACKING:
        del odd["token"][field]
    else:
        odd["token"][field] = value
    text, heard, _ = generated(token_event(), odd, token_event("c", "abc", END))
    assert [token for token, _, _ in heard.pushed][1] == expected
    assert text == f"a{'' if expected.special else expected.text}c"
    whole = Heard()
    answer = NativeAnswer(whole)
    answer.take_whole(json.dumps({"generated_text": "b", "details": {"tokens": [odd["token"]]}}).encode())
    assert ([token for token, _, _ in whole.pushed], answer.generated_text) == ([expected], "b")


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("place", ["details", "top_tokens", "index", "prefill", "best_of_sequences", "seed", "tokens"])
def test_an_odd_detail_costs_no_native_answer(place, value):
    end = token_event("b", "ab", END)
    if place in {"details", "top_tokens", "index"}:
        end[place] = value
    else:
        end["details"] = {**END, place: value}
    text, _, answer = generated(token_event(), end)
    assert (text, answer.generated_text) == ("ab", "ab")
    if place != "tokens":
        whole = NativeAnswer(Heard())
        whole.take_whole(as_data(end))
        assert whole.generated_text == "ab"


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("count", ["generated_tokens", "input_length"])
def test_an_odd_number_of_native_tokens_is_no_number(count, value):
    _, _, answer = generated(token_event("b", "b", {"finish_reason": "length", count: value}))
    told = {"generated_tokens": answer.completion_tokens, "input_length": answer.prompt_tokens}[count]
    assert told == {0: 0, 5: 5, "5": 5}.get(value if type(value) in {int, str} else None)


@pytest.mark.parametrize("event", [None, "", [], {}, {"token": None}, {"token": {}}, {"generated_text": None}], ids=str)
def test_a_native_event_that_says_nothing_costs_nothing(event):
    assert generated(event, token_event(), event, token_event("b", "ab", END))[0] == "ab"


def test_an_empty_text_beside_a_token_is_no_native_end():
    """Some servers spell out that there is no whole text yet."""
    assert generated(token_event("a", ""), token_event("b", ""), token_event("c", "abc", END))[0] == "abc"
    text, _, answer = generated({"token": {"id": 2, "text": "</s>", "special": True}, "generated_text": ""})
    assert (text, answer.generated_text) == ("", "")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a" + HALF, OTHER_HALF + "b"], "a😀b"),
        (["a" + HALF, "b"], "a\ufffdb"),
        (["a", "b" + HALF], "ab\ufffd"),
        ([HALF], "\ufffd"),
        (["a", HALF, ""], "a\ufffd"),
        (["a", OTHER_HALF], "a\ufffd"),
        (["a", HALF, HALF + OTHER_HALF], "a\ufffd😀"),
    ],
    ids=ascii,
)
def test_half_a_character_is_one_replacement_and_never_lost(texts, expected):
    """The reply is what was streamed, on each route."""
    tokens = [token_event(text) for text in texts]
    tokens[-1].update(generated_text="".join(texts), details=END)
    text, _, answer = generated(*tokens)
    assert (encodable(text), answer.generated_text) == (expected, expected)
    whole = Heard()
    NativeAnswer(whole).take_whole(as_data(tokens))
    if len(tokens) > 1:
        assert encodable("".join(text for _, text, _ in whole.pushed)) == expected
    whole = Heard()
    details = {**END, "tokens": [event["token"] for event in tokens]}
    NativeAnswer(whole).take_whole(as_data({"generated_text": "".join(texts), "details": details}))
    assert encodable("".join(text for _, text, _ in whole.pushed)) == expected

    texts_and_ends = [*(choice({"content": text}) for text in texts), STOP]
    for events in (texts_and_ends, [*texts_and_ends[:-1], DONE], [*texts_and_ends, DONE]):
        assert encodable("".join(chatted(*events)[0].texts)) == expected

    said = [{"choices": [{"text": text, "finish_reason": None}]} for text in texts]
    for events in ([*said, {"choices": [{"text": "", "finish_reason": "stop"}]}], [*said[:-1], {}, said[-1]]):
        events[-1]["choices"][0]["finish_reason"] = "stop"
        assert encodable("".join(completed(*events)[0].texts)) == expected
    heard = Heard()
    answer = CompletionAnswer(heard)
    answer.take_whole(as_data([{"choices": [{"text": text}]} for text in texts]))
    assert (encodable("".join(heard.texts)), answer.is_complete) == (expected, True)


@pytest.mark.parametrize(
    "event",
    [
        {"choices": {"text": "b"}},
        {"choices": [None, {"text": "b"}]},
        {"choices": [{"index": -1, "text": "b"}]},
        {"choices": [{"text": "b", "logprobs": [5]}]},
        {"choices": [{"text": ["b"]}]},
        {"choices": [{"text": "b", "finish_reason": "null"}]},
        [{"choices": [{"text": "b"}]}],
    ],
    ids=str,
)
def test_an_odd_event_of_a_completion_costs_no_text(event):
    heard, answer = completed(
        {"choices": [{"text": "a"}]}, event, {"choices": [{"text": "c", "finish_reason": "stop"}]}
    )
    assert ("".join(heard.texts), answer.finish_reason) == ("abc", "stop")


COUNTED = {"prompt_tokens": 12, "completion_tokens": 4}


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        pytest.param({"prompt_tokens": "12", "completion_tokens": "4"}, COUNTED, id="as-text"),
        pytest.param({"prompt_tokens": 12.0, "completion_tokens": "4.0"}, COUNTED, id="with-a-fraction"),
        pytest.param({"input_tokens": 12, "output_tokens": 4, "total_tokens": 16}, COUNTED, id="of-responses"),
        pytest.param(
            {"prompt_tokens": 0, "completion_tokens": None, "input_tokens": "12", "output_tokens": 4.0},
            COUNTED,
            id="both-names",
        ),
        pytest.param({"prompt_tokens": 12, "completion_tokens": 0}, {**COUNTED, "completion_tokens": 0}, id="nothing"),
        *(
            pytest.param({"prompt_tokens": 12, "completion_tokens": absurd}, {"prompt_tokens": 12}, id=repr(absurd)[:9])
            for absurd in (-4, -4.0, "-4", math.nan, "nan", math.inf, 1e300, 2**53 - 1, 10**12, "9" * 15, 4.5, "4,0")
        ),
        *(
            pytest.param({"prompt_tokens": 12, "output_tokens": odd}, {"prompt_tokens": 12}, id=f"odd-{odd}")
            for odd in (True, [], {}, "", None, "\u0664", "9" * 30, "1_0")
        ),
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda usage: {**choice(finish_reason="stop"), "usage": usage}, id="openai"),
        pytest.param(lambda usage: {"choices": [], "usage": usage}, id="behind-the-end"),
        pytest.param(lambda usage: choice(finish_reason="stop", usage=usage), id="kimi"),
        pytest.param(lambda usage: {**choice(finish_reason="stop"), "x_groq": {"id": "r", "usage": usage}}, id="groq"),
        pytest.param(
            lambda usage: {**choice(finish_reason="stop"), "usage": None, "x_groq": {"usage": usage}}, id="groq-null"
        ),
    ],
)
@pytest.mark.parametrize("read", [chatted, completed])
def test_usage_is_read_wherever_and_however_it_is_written(read, place, usage, counted):
    _, answer = read(choice({"content": "a"}, text="a"), place(usage), choice(finish_reason="stop"))
    assert answer.usage == counted


@pytest.mark.parametrize("said", [[1], "12", 12, True, {"usage": [1]}])
def test_what_is_no_usage_costs_no_answer(said):
    for place in ({"usage": said}, {"x_groq": said}):
        _, answer = chatted({**choice({"content": "a"}), **place}, choice(finish_reason="stop", usage=said))
        assert answer.usage == {}


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "zz"}
OF_OPENROUTER = [{"type": "reasoning.text", "text": "hm", "format": "x", "index": 0}]
UNREAD_THOUGHTS = [{"type": "reasoning.encrypted", "data": "xx"}, {"type": "redacted_thinking", "data": "xx"}]


@pytest.mark.parametrize(
    "thoughts",
    [
        pytest.param({"thinking": "hm"}, id="thinking"),
        pytest.param({"thinking": {"type": "thinking", "thinking": "hm"}}, id="thinking-in-an-object"),
        pytest.param({"reasoning_details": OF_OPENROUTER}, id="openrouters-details"),
        pytest.param({"reasoning": "hm", "reasoning_details": OF_OPENROUTER}, id="openrouters-both"),
        pytest.param(
            {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}, *UNREAD_THOUGHTS]}, id="a-summary"
        ),
        pytest.param({"thinking_blocks": [THOUGHT, *UNREAD_THOUGHTS], "reasoning_content": "hm"}, id="litellms"),
        pytest.param({"thinking_blocks": [THOUGHT]}, id="litellms-blocks"),
        pytest.param({"reasoning": {"content": "hm"}}, id="an-object"),
        pytest.param({"reasoning": {"text": "hm", "effort": "low"}}, id="an-object-with-a-text"),
        pytest.param({"reasoning": {"type": "reasoning", "summary": [{"text": "hm"}]}}, id="summaries-in-an-object"),
        pytest.param({"reasoning_content": [{"type": "text", "text": "hm"}, 5, None]}, id="parts"),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"content": ""}, {"content": "Yes"}])
@pytest.mark.parametrize("whole", [False, True])
def test_thoughts_are_read_however_they_are_called(thoughts, beside, whole):
    if whole:
        heard = Heard()
        answer = ChatReader(heard, 50)
        answer.take_whole(as_data({"choices": [{"message": {**beside, **thoughts}, "finish_reason": "stop"}]}))
    else:
        heard, answer = chatted(choice({**beside, **thoughts}), choice(finish_reason="stop"))
    assert ("".join(heard.texts), "".join(heard.reasoning)) == (beside.get("content", ""), "hm")
    assert (answer.extra["reasoning"], answer.is_complete, answer.lack) == ("hm", True, None)
    assert answer.extra.get("reasoning_field") in {None, "reasoning"}


@pytest.mark.parametrize(
    "unread",
    [
        *({field: value} for field in ("reasoning", "thinking", "reasoning_details") for value in (5, True, ["x"][:0])),
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"reasoning_details": UNREAD_THOUGHTS},
        {"thinking_blocks": UNREAD_THOUGHTS},
        {"content": UNREAD_THOUGHTS},
        {"content": [{"type": "redacted_thinking"}, {"type": "text", "text": "Yes"}, UNREAD_THOUGHTS[0]]},
        {"content": [{"type": "thinking", "thinking": 5}]},
    ],
)
def test_thoughts_that_nobody_can_read_cost_no_text(unread):
    heard, answer = chatted(choice(unread), choice({"content": "Yes"}), choice(finish_reason="stop"))
    beside = "Yes" if {"type": "text", "text": "Yes"} in unread.get("content", ()) else ""
    assert "".join(heard.texts) == beside + "Yes"
    assert (answer.extra, "".join(heard.reasoning)) == ({}, "")


LONG = b"9" * 5000


@pytest.mark.parametrize("digits", [LONG, b"-" + LONG, b"1" * 401])
def test_a_number_without_end_costs_no_answer(digits):
    said = b'{"created":' + digits + b',"choices":[{"delta":{"content":"a"},"text":"a","usage":{"prompt_tokens":%s}}]}'
    for read in (chatted, completed):
        heard, answer = read(said.replace(b"%s", digits), choice(finish_reason="stop"))
        assert ("".join(heard.texts), answer.usage) == ("a", {})


@pytest.mark.parametrize("done", [b"[DONE]", b" [DONE]\r", b'"[DONE]"'])
def test_lines_may_end_with_the_last_word(done):
    lines = [*(as_data(choice({"content": text})) for text in ("a", "b")), done, b""]
    heard = Heard()
    answer = ChatReader(heard, 50)
    answer.take_whole(b"\n".join(lines))
    assert ("".join(heard.texts), answer.is_complete, answer.lack) == ("ab", True, None)


def raw(said, *, read):
    """An event with ``said``, bytes that need be no UTF-8, as its text."""
    event = {"token": {"id": 1, "text": "@", "special": False}} if read is generated else choice({"content": "@"})
    if read is completed:
        event = {"choices": [{"index": 0, "text": "@"}]}
    return json.dumps(event).encode().replace(b"@", said)


def heard_of(read, *parts):
    """(the text, how many characters were lost) of a stream with these texts."""
    events = [raw(part, read=read) for part in parts]
    if read is generated:
        end = {"token": {"id": 2, "text": "", "special": False}, "generated_text": "x", "details": {}}
        text, _, answer = generated(*events, end)
    else:
        heard, answer = read(*events, choice(finish_reason="stop"))
        text = "".join(heard.texts)
    return encodable(text), answer.lost


ROUTES = [chatted, completed, generated]
FACE, EURO, E_ACUTE = "\U0001f600".encode(), "\u20ac".encode(), "\u00e9".encode()


@pytest.mark.parametrize("read", ROUTES)
@pytest.mark.parametrize("character", [FACE, EURO, E_ACUTE, "\U0001f49b".encode()])
def test_a_character_whose_bytes_are_cut_between_events_is_one(read, character):
    for at in range(1, len(character)):
        cut = [b"a" + character[:at], character[at:] + b"b"]
        assert heard_of(read, *cut, b"c") == ("a" + character.decode() + "bc", 0)
    each_byte = [bytes([byte]) for byte in character]
    assert heard_of(read, *each_byte, FACE) == (character.decode() + FACE.decode(), 0)


@pytest.mark.parametrize("read", ROUTES)
@pytest.mark.parametrize(
    ("parts", "text", "lost"),
    [
        pytest.param([b"caf\xe9", b"s"], "caf\ufffds", 1, id="latin-1"),
        pytest.param([b"\xe9t\xe9"], "\ufffdt\ufffd", 2, id="latin-1-twice"),
        pytest.param([b"a" + FACE[:2], b"b"], "a\ufffd\ufffdb", 2, id="its-other-half-never-comes"),
        pytest.param([FACE[2:], b"b"], "\ufffd\ufffdb", 2, id="its-first-half-never-came"),
        pytest.param([b"\xff" + EURO[:1], EURO[1:]], "\ufffd\u20ac", 1, id="behind-a-byte-of-none"),
        pytest.param([b"a\xed\xa0\x80b"], "a\ufffd\ufffd\ufffdb", 3, id="a-surrogate-in-bytes"),
        pytest.param(["\ufffd".encode(), b"b"], "\ufffdb", 0, id="the-server-says-it"),
        pytest.param([b"a" + HALF.encode("unicode_escape"), b"b"], "a\ufffdb", 1, id="half-a-pair"),
        pytest.param([b"\\ud83d", b"\\udc9b"], "\U0001f49b", 0, id="a-pair-whose-half-looks-like-a-byte"),
        pytest.param([FACE, b"a"], "\U0001f600a", 0, id="utf-8"),
    ],
)
def test_what_bytes_do_not_spell_is_counted(read, parts, text, lost):
    assert heard_of(read, *parts) == (text, lost)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_the_bytes_of_thoughts_are_joined_in_the_result_too(field):
    events = [
        json.dumps(choice({field: "@"})).encode().replace(b"@", part) for part in (b"a" + FACE[:1], FACE[1:], b"\xff")
    ]
    heard, answer = chatted(*events, choice(finish_reason="stop"))
    assert encodable("".join(heard.reasoning)) == answer.extra["reasoning"] == "a\U0001f600\ufffd"
    assert answer.lost == 1


@pytest.mark.parametrize(
    ("content_type", "charset"),
    [
        ("text/event-stream", None),
        ("text/event-stream; charset=utf-8", None),
        ('text/event-stream;charset="UTF-8"', None),
        ("text/event-stream; charset=US-ASCII", None),
        ("text/event-stream; charset=ISO-8859-1", "iso-8859-1"),
        ("application/json;x=y; Charset = 'windows-1252'", "windows-1252"),
        ("text/event-stream; charset=hf_secret", "another charset"),
    ],
)
def test_a_declared_charset_is_told_by_a_known_word(content_type, charset):
    assert foreign_charset(content_type) == charset


@pytest.mark.parametrize(
    ("lost", "charset", "said"),
    [(0, None, None), (2, None, "bytes or halves"), (2, "gbk", "declares gbk"), (0, "gbk", "declares gbk")],
)
def test_damage_is_told_with_its_cause(lost, charset, said):
    told = damage(lost, charset).get("lost_characters")
    assert (told is None) == (said is None)
    if told:
        assert told["count"] == lost and said in told["why"]
