"""How a generation ended, as Celery and its log see it."""

import json
import pickle

import pytest

from genqueue import errors
from genqueue.registry import endings
from genqueue.registry.attempts import Flush
from genqueue.wire.events import event_body
from genqueue.wire.result import GenerationResult, Outcome


@pytest.mark.parametrize("kind", [*endings.ENDINGS.values(), errors.GenerationError])
def test_celery_can_rebuild_an_error_from_its_message_alone(kind):
    rebuilt = kind("words")
    assert str(rebuilt) == "words"
    assert rebuilt.partial_text == ""
    assert rebuilt.usage == {"prompt_tokens": None, "completion_tokens": 0}
    assert rebuilt.attempts == 0
    assert type(pickle.loads(pickle.dumps(rebuilt))) is kind


def test_every_ending_can_be_found_under_the_name_that_celery_stores():
    for kind in endings.ENDINGS.values():
        assert getattr(errors, kind.__name__) is kind
        assert kind.__module__ == "genqueue.errors"


LAST = Flush("id", 2, 5, 7, "tail", "", [event_body("chunk", {"text": "tail"})])


def test_a_finished_end_carries_the_last_flush_then_the_event_then_the_result():
    meta = {"finish_reason": "length", "usage": {"prompt_tokens": 1, "completion_tokens": 8}}
    end = endings.finished("id", "chat", LAST, GenerationResult(replies=["tail"], meta=[meta]), date_done="now")
    assert end.attempt == 2
    assert end.bodies[0] == LAST.bodies[0]
    assert json.loads(b"{" + end.bodies[1]) == {
        "v": 1,
        "type": "finished",
        "finish_reason": "length",
        "completion_tokens": 8,
    }
    assert json.loads(end.celery_result)["result"] == {"replies": ["tail"], "meta": [meta]}
    assert end.completion_tokens == 8
    assert end.outcome is None


@pytest.mark.parametrize(
    ("mark", "text", "expected"),
    [("", "tail", ""), ("first", "all", "first"), ("reset", "anew", "first"), ("reset", "", "reset")],
)
def test_a_finished_end_says_when_it_brings_the_first_text(mark, text, expected):
    meta = {"finish_reason": "length", "usage": {"prompt_tokens": 1, "completion_tokens": 8}}
    last = Flush("id", 2, 1, 8, text, mark, [])
    end = endings.finished("id", "chat", last, GenerationResult(replies=[text], meta=[meta]), date_done="now")
    assert end.mark == expected


def test_a_failed_end_keeps_the_text_and_names_a_class_that_celery_can_find():
    end = endings.failed("id", "chat", LAST, endings.rejection("too long", status=422), date_done="now")
    assert (end.text, end.completion_tokens, end.attempt) == ("tail", 7, 2)
    assert json.loads(end.celery_result)["result"] == {
        "exc_type": "GenerationRejectedError",
        "exc_message": ["too long"],
        "exc_module": "genqueue.errors",
    }
    assert json.loads(b"{" + end.bodies[-1])["error"] == "rejected"


def test_a_failure_without_an_attempt_claims_none():
    end = endings.failed("id", "chat", None, Outcome(error="expired", message="late"), date_done="now")
    assert (end.attempt, end.text, end.completion_tokens, len(end.bodies)) == (None, "", None, 1)


def test_a_cancelled_end_is_celerys_revoked():
    end = endings.cancelled("id", "chat", date_done="now")
    assert end.attempt is None
    stored = json.loads(end.celery_result)
    assert stored["status"] == "REVOKED"
    assert stored["result"]["exc_type"] == "TaskRevokedError"
    assert end.outcome == endings.CANCELLED


@pytest.mark.parametrize(("word", "shown"), [("stop", "stop"), ("Bearer hf_canary What is", "_OTHER"), (None, None)])
def test_the_event_of_the_end_has_no_word_of_an_endpoint_but_a_known_one(word, shown):
    meta = {"finish_reason": word, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    result = GenerationResult(replies=["a"], meta=[meta])
    end = endings.finished("id", "g", Flush("id", 1, 1, 2, "a", "", []), result, date_done="")
    assert json.loads(b"{" + end.bodies[-1])["finish_reason"] == shown
    assert json.loads(end.celery_result)["result"]["meta"][0]["finish_reason"] == word
