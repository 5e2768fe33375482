"""Texts of the benchmark: what goes on the wire, and which text is whole."""

import json

import pytest

from genqueue_lab.bench.wire import Route, Templates, clocks_us, fault, http_chunk, token_text

WHOLE = token_text(0, 7) + token_text(1, 8) + token_text(2, 9)


def test_a_text_tells_when_each_token_was_written():
    assert clocks_us(WHOLE) == [7, 8, 9]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(WHOLE, None, id="whole"),
        pytest.param("", "0 tokens of 3", id="empty"),
        pytest.param(token_text(0, 7) + token_text(1, 8), "2 tokens of 3", id="cut"),
        pytest.param(token_text(0, 7) + token_text(2, 9), "token 2 where token 1 of 3 belongs", id="gap"),
        pytest.param(token_text(1, 8) + token_text(2, 9), "token 1 where token 0 of 3 belongs", id="begun late"),
        pytest.param(
            token_text(0, 7) + token_text(0, 7) + token_text(1, 8), "token 0 where token 1 of 3 belongs", id="repeated"
        ),
        pytest.param(WHOLE + WHOLE, "token 0 where token 3 of 3 belongs", id="doubled"),
        pytest.param(WHOLE + token_text(3, 9), "4 tokens of 3", id="one too many"),
        pytest.param(
            token_text(1, 7) + token_text(0, 8) + token_text(2, 9), "token 1 where token 0 of 3 belongs", id="swapped"
        ),
        pytest.param("x" + WHOLE, "'x' before token 0 of 3", id="other text before"),
        pytest.param(token_text(0, 7) + "x" + token_text(1, 8), "'x' before token 1 of 3", id="other text between"),
        pytest.param(WHOLE + "x", "'x' after token 2 of 3", id="other text after"),
        pytest.param(WHOLE[:-1], "' 2:00000000000000' after token 1 of 3", id="cut within a token"),
    ],
)
def test_only_a_whole_text_has_no_fault(text, words):
    assert fault(text, 3) == words


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_template_is_the_event_with_the_clock_in_its_place(is_chat):
    route = Route(is_chat)
    templates = Templates(route).up_to(120)
    for index in (0, 9, 10, 119):
        expected = http_chunk(route.event(index, token_text(index, 123_456)))
        assert templates[index] % 123_456 == expected


def test_the_native_stream_ends_with_the_whole_text_and_the_details():
    (event,) = events(Route(is_chat=False).last(2, token_text(2, 9), WHOLE, with_usage=False))
    assert event["token"]["text"] == token_text(2, 9)
    assert event["generated_text"] == WHOLE
    assert event["details"]["generated_tokens"] == 3


@pytest.mark.parametrize("with_usage", [False, True])
def test_the_chat_stream_ends_with_a_reason_the_usage_if_asked_and_done(with_usage):
    ending = Route(is_chat=True).last(2, token_text(2, 9), WHOLE, with_usage=with_usage)
    assert ending.endswith(b"data: [DONE]\n\n")
    last, *more = events(ending.removesuffix(b"data: [DONE]\n\n"))
    assert last["choices"][0]["delta"]["content"] == token_text(2, 9)
    assert last["choices"][0]["finish_reason"] == "length"
    assert [each["usage"]["completion_tokens"] for each in more] == ([3] if with_usage else [])


def events(data):
    return [json.loads(event.removeprefix(b"data: ")) for event in data.split(b"\n\n") if event]
