"""What TGI's native routes say: a token in each event, the whole text at the end, or all of it in one piece."""

import json
from pathlib import Path
from typing import Any

import pytest

from genqueue.wire.events import Token
from genqueue_worker.upstream.engines.native import NativeAnswer
from genqueue_worker.upstream.faults import Fault, UpstreamError, fault_of

from ...support.heard import Heard

RECORDED = Path(__file__).parents[2] / "fixtures" / "tgi"


def event(text: Any = " é", **fields: Any) -> bytes:
    token = {"id": 5, "text": text, "logprob": -0.25, "special": False}
    return json.dumps({"index": 1, "token": token, "generated_text": None, "details": None, **fields}).encode()


def test_a_token_event_is_taken():
    heard = Heard()
    assert NativeAnswer(heard).take(event())
    assert heard.pushed == [(Token(5, " é", -0.25, False), " é", None)]


def test_a_special_token_brings_no_text():
    heard = Heard()
    assert NativeAnswer(heard).take(event(token={"id": 2, "text": "</s>", "logprob": None, "special": True}))
    assert heard.pushed == [(Token(2, "</s>", None, True), "", None)]


def test_half_a_character_waits_for_the_other():
    heard = Heard()
    answer = NativeAnswer(heard)
    for text in ("a", "b\ud83d", "\ude00"):
        answer.take(event(text))
    assert [text for _, text, _ in heard.pushed] == ["a", "b", "\ud83d\ude00"]


@pytest.mark.parametrize("text", ["", " all of it"])
def test_the_last_event_has_the_whole_text(text):
    heard, details = Heard(), {"finish_reason": "length", "generated_tokens": 2, "seed": 7, "input_length": 3}
    answer = NativeAnswer(heard)
    assert not answer.is_complete
    assert not answer.take(event(generated_text=text, details=details))
    assert (answer.is_complete, answer.generated_text, answer.finish_reason) == (True, text, "length")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.extra) == (3, 2, {"seed": 7})
    assert heard.is_closed and len(heard.pushed) == 1


@pytest.mark.parametrize("data", [b"{}", event(token=None), b'{"choices":[{"delta":{"content":"x"}}]}'])
def test_an_event_without_a_token_says_nothing(data):
    heard = Heard()
    answer = NativeAnswer(heard)
    assert answer.take(data)
    assert (heard.pushed, answer.is_complete) == ([], False)


@pytest.mark.parametrize(
    ("said", "is_strange"),
    [
        pytest.param({"choices": [{"delta": {"content": "x"}}]}, True, id="openais"),
        pytest.param({"type": "content_block_delta", "delta": {"text": "x"}}, True, id="anthropics"),
        pytest.param({"model": "m", "response": "x", "done": False}, True, id="ollamas"),
        pytest.param({"type": "ping"}, False, id="a-heartbeat"),
        pytest.param({"token": None, "details": {}, "index": 1}, False, id="tgis"),
        pytest.param({"token": {"id": 1, "text": "x", "special": False}, "vendor": "y"}, False, id="a-token"),
    ],
)
def test_an_event_of_another_dialect_is_kept_for_who_asks(said, is_strange):
    answer = NativeAnswer(Heard())
    data = json.dumps(said).encode()
    for each in (b"{}", data, b'{"later":"x"}'):
        assert answer.take(each)
    assert answer.strange == (data if is_strange else b'{"later":"x"}')


@pytest.mark.parametrize(
    ("data", "words", "fault"),
    [
        pytest.param(
            b'{"error":"Model is overloaded","error_type":"overloaded"}',
            "^Model is overloaded$",
            Fault.CAPACITY,
            id="overloaded",
        ),
        pytest.param(
            b'{"error":"Input validation error: x","error_type":"validation"}', "x$", Fault.REQUEST, id="validation"
        ),
        pytest.param(b'{"error":{"message":"bad","code":400}}', "^bad$", Fault.REQUEST, id="openais"),
        pytest.param(b'{"error":{"message":"bad","code":"429"}}', "^bad$", Fault.CAPACITY, id="code-as-text"),
        pytest.param(b'{"detail":"Not Found"}', "^Not Found$", Fault.SERVER, id="detail"),
        pytest.param(b'{"detail":[{"msg":"field required"}]}', "^field required$", Fault.SERVER, id="fastapis"),
        pytest.param(b'{"error":{}}', "reports an error without words", Fault.SERVER, id="no-words"),
        pytest.param(b'{"error":"bad","token":null}', "^bad$", Fault.SERVER, id="with-a-token"),
        pytest.param(b"", "no JSON: nothing", Fault.SERVER, id="empty"),
        pytest.param(b"[DONE]", r"no JSON: \[DONE\]", Fault.SERVER, id="another-routes-end"),
        pytest.param(b"5", "no object; it says 5", Fault.SERVER, id="number"),
        pytest.param(b'"text"', "no object", Fault.SERVER, id="string"),
        pytest.param(event(token={"id": 5}), "it says", Fault.SERVER, id="half-a-token"),
        pytest.param(event(5), "text is int; it says", Fault.SERVER, id="text-is-none"),
        pytest.param(event(generated_text=["a"]), "text is list; it says", Fault.SERVER, id="whole-text-is-none"),
    ],
)
def test_what_is_no_event_is_an_error_that_says_what_was_seen(data, words, fault):
    heard = Heard()
    with pytest.raises(UpstreamError, match=words) as failed:
        NativeAnswer(heard).take(data)
    assert (heard.pushed, fault_of(failed.value.facts)) == ([], fault)
    assert "\n" not in str(failed.value)


class Defect(Exception):
    pass


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AttributeError("x"), ValueError("x"), Defect()])
def test_what_a_sink_raises_is_no_fault_of_the_server_and_a_token_is_pushed_once(error):
    class Broken(Heard):
        def push(self, *told):
            super().push(*told)
            raise error

    heard = Broken()
    with pytest.raises(type(error)):
        NativeAnswer(heard).take(event())
    assert len(heard.pushed) == 1


@pytest.mark.parametrize("name", ["generate_details_eos_token", "generate_details_stop_sequence_return_full_text"])
@pytest.mark.parametrize("is_list", [False, True], ids=["object", "list"])
def test_an_answer_in_one_piece(name, is_list):
    said = json.loads((RECORDED / f"{name}.json").read_text())
    said = said[0] if isinstance(said, list) else said
    heard = Heard()
    answer = NativeAnswer(heard)
    answer.take_whole(json.dumps([said] if is_list else said).encode())
    details = said["details"]
    assert (answer.generated_text, answer.finish_reason) == (said["generated_text"], details["finish_reason"])
    assert answer.completion_tokens == details["generated_tokens"] == len(heard.pushed)


def test_an_answer_in_one_piece_without_details():
    answer = NativeAnswer(Heard())
    answer.take_whole(b'[{"generated_text":"all"}]')
    assert (answer.generated_text, answer.finish_reason, answer.completion_tokens) == ("all", None, None)


def test_a_streams_events_as_one_list_are_read_one_by_one():
    heard = Heard()
    answer = NativeAnswer(heard)
    answer.take_whole(b"[" + event("a") + b"," + event("b", generated_text="ab") + b"]")
    assert ([text for _, text, _ in heard.pushed], answer.generated_text) == (["a", "b"], "ab")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"[]", "IndexError in what it says", id="empty-list"),
        pytest.param(b"{}", "it has no generated_text", id="empty"),
        pytest.param(b'{"error":"bad","error_type":"validation"}', "^bad$", id="error"),
        pytest.param(b'{"text":"x"}', "it has no generated_text; it says", id="another-shape"),
        pytest.param(b"{", "no JSON: {", id="half"),
    ],
)
def test_what_is_no_answer_in_one_piece_is_an_error(body, words):
    with pytest.raises(UpstreamError, match=words):
        NativeAnswer(Heard()).take_whole(body)
