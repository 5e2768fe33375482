"""What a stream of OpenAI's completions says, and what is left to huggingface_hub."""

import json

import pytest

from genqueue_worker.completions import CompletionAnswer, completion_parameters, more_fields


class Heard:
    def __init__(self):
        self.texts, self.is_closed = [], False

    def push_delta(self, text, reasoning="", tool_calls=()):
        self.texts.append(text)

    def close(self):
        self.is_closed = True


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


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(b" [DONE]", id="done"),
        pytest.param({"error": {"message": "busy"}}, id="error"),
        pytest.param({"token": {"text": "x"}}, id="tgi"),
        pytest.param({"choices": [{"delta": {"content": "x"}}]}, id="chat"),
        pytest.param(b" {", id="no-json"),
        pytest.param([], id="list"),
        pytest.param({"choices": None}, id="no-choices"),
    ],
)
def test_what_is_no_text_is_left_to_huggingface_hub(left):
    heard, answer, took = taken(left)
    assert (took, heard.texts, answer.is_complete) == ([False], [], False)


def test_what_only_shapes_tgis_answer_is_not_sent():
    parameters = {"max_new_tokens": 9, "details": True, "return_full_text": False, "stop": ["x"], "temperature": 0.5}
    assert completion_parameters(parameters) == {"max_new_tokens": 9, "stop": ["x"], "temperature": 0.5}
    assert more_fields(parameters) == {"max_tokens": 9, "stream_options": {"include_usage": True}}
