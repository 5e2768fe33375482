"""The text of one chat, whatever shape its events have."""

import json
from typing import Any

import pytest

from genqueue_worker.upstream.engines.chats import ChatReader
from genqueue_worker.upstream.errors.answers import error_in

from ...support.heard import Heard

DONE = b"[DONE]"


def choice(**fields: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "finish_reason": None, **fields}]}).encode()


WHOLE = {"role": "assistant", "content": "hi you"}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [choice(delta={"content": "hi "}), choice(delta={"content": "you"}), choice(delta={}, message=WHOLE), DONE],
            "hi you",
            id="the-last-event-repeats-the-whole-answer",
        ),
        pytest.param(
            [choice(delta={"content": ""}, message=WHOLE, finish_reason="stop"), DONE], "hi you", id="a-void-delta"
        ),
        pytest.param([choice(delta={"content": None}, text="hi you"), DONE], "hi you", id="a-null-beside-a-text"),
        pytest.param([choice(delta=None, message=WHOLE), DONE], "hi you", id="a-null-for-a-delta"),
        pytest.param(
            [choice(message={"content": "hi "}), choice(message={"content": "you"}), DONE], "hi you", id="message"
        ),
        pytest.param([choice(delta={"content": "hi\ud83d"}), DONE], "hi\ud83d", id="half-a-character-at-the-end"),
    ],
)
def test_the_text_is_there_once(events, expected):
    heard = Heard()
    answer = ChatReader(heard, 50)
    for event in events:
        answer.take(event)
    assert ("".join(heard.texts), answer.is_complete, answer.lack) == (expected, True, None)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": "rate_limit_exceeded", "message": "m", "status": 429}, 429),
        ({"code": 503, "message": "m"}, 503),
        ({"code": "429", "message": "m"}, 429),
        ({"code": 7, "message": "m", "http_status_code": 400}, 400),
        ({"code": None, "message": "m"}, None),
    ],
)
def test_an_errors_status_is_the_first_code_that_is_one(error, status):
    assert error_in({"error": error}).status == status


def line(text: str, **fields: Any) -> bytes:
    return choice(delta={"content": text}, **fields) + b"\n"


@pytest.mark.parametrize(
    ("body", "is_complete"),
    [
        pytest.param(line("a"), False, id="one-line"),
        pytest.param(line("a") + line("b"), False, id="lines-that-break-off"),
        pytest.param(line("a") + line("b", finish_reason="stop"), True, id="lines-with-an-end"),
        pytest.param(line("ab", finish_reason="stop"), True, id="a-line-with-an-end"),
        pytest.param(b"[" + line("a") + b"," + line("b") + b"]", True, id="a-list-is-whole-by-its-bracket"),
        pytest.param(choice(message={"content": "ab"}), True, id="a-whole-answer"),
        pytest.param(choice(delta={}, message={"content": "ab"}), True, id="a-whole-answer-beside-a-void-delta"),
    ],
)
def test_lines_of_a_stream_are_complete_with_the_word_of_their_end(body, is_complete):
    answer = ChatReader(Heard(), 50)
    answer.take_whole(body)
    assert answer.is_complete is is_complete
