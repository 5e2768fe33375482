"""How a generation ended, as its caller and Celery see it."""

import json
import math
import pickle
from typing import Any

import pytest

from genqueue import errors
from genqueue.client import views
from genqueue.registry import endings
from genqueue.registry.attempts import Flush
from genqueue.registry.lifecycle import State
from genqueue.registry.partial import PartialOutput
from genqueue.registry.reading import Record
from genqueue.wire.events import ToolCallDelta, event_body
from genqueue.wire.result import GenerationResult, Outcome


def record(state: State, **facts: Any) -> Record:
    return Record(
        **{
            "state": state,
            "generator": "chat",
            "priority": 5,
            "attempt": 2,
            "seq": 9,
            "submitted_at": 10.0,
            "started_at": 11.0,
            "first_text_at": 12.0,
            "ended_at": 15.0,
            "completion_tokens": 7,
            "outcome": None,
            **facts,
        }
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("rejected", errors.GenerationRejectedError),
        ("failed", errors.GenerationFailedError),
        ("expired", errors.GenerationExpiredError),
        ("cancelled", errors.GenerationCancelledError),
        ("a word of a later release", errors.GenerationFailedError),
    ],
)
def test_an_ending_becomes_its_typed_error(error, expected):
    ended = Outcome(error=error, message="the server's words", detail={"status": 422, "prompt_tokens": 3})
    found = views.error_of(record(State.FAILED, outcome=ended), PartialOutput("partial é"))
    assert type(found) is expected
    assert str(found) == "the server's words"
    assert found.partial_text == "partial é"
    assert found.usage == {"prompt_tokens": 3, "completion_tokens": 7}
    assert found.attempts == 2
    assert found.detail["status"] == 422


@pytest.mark.parametrize(
    ("state", "expected"),
    [(State.FAILED, errors.GenerationFailedError), (State.CANCELLED, errors.GenerationCancelledError)],
)
def test_an_ending_without_an_outcome_still_has_its_error(state, expected):
    assert type(views.error_of(record(state), PartialOutput())) is expected


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


def test_status_is_the_record_as_a_caller_sees_it():
    ended = Outcome(error="failed", message="words")
    seen = views.status("id", record(State.FAILED, outcome=ended), None)
    assert (seen.id, seen.state, seen.attempt, seen.position, seen.error) == ("id", State.FAILED, 2, None, "words")
    phases = {"queue_wait_s": 1.0, "waking_s": None, "first_text_s": 1.0, "decode_s": 3.0}
    assert seen.timings == {**phases, "total_s": 5.0}


def test_a_stillborn_record_has_a_status_too():
    seen = views.status("id", record(State.FAILED, submitted_at=math.nan, started_at=None, first_text_at=None), None)
    assert seen.timings["queue_wait_s"] is None


@pytest.mark.parametrize(("text", "expected"), [("", []), (" ", [" "]), ("all of it", ["all of it"])])
def test_the_whole_text_is_one_chunk_and_none_if_it_is_empty(text, expected):
    chunks = endings.whole_text_chunk(record(State.FINISHED), PartialOutput(text))
    assert [(chunk.text, chunk.seq, chunk.attempt) for chunk in chunks] == [(part, 9, 2) for part in expected]


def test_whoever_got_none_gets_thoughts_and_calls_in_the_one_chunk_too():
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    calls.append({"id": "2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}})
    result = GenerationResult(replies=[""], meta=[{"reasoning": "Hm", "tool_calls": calls}])
    (chunk,) = endings.whole_text_chunk(record(State.FINISHED), endings.said_in(result))
    pieces = (ToolCallDelta(0, "1", "f", "{}"), ToolCallDelta(1, "2", "sql", "select 1"))
    assert (chunk.text, chunk.reasoning, chunk.tool_calls) == ("", "Hm", pieces)


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


def test_the_tree_of_errors_is_the_one_in_its_docstring():
    assert errors.__doc__ is not None
    drawn = errors.__doc__
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [kind.__name__ for kind in classes if kind.__name__ not in drawn] == []
    assert all(issubclass(kind, errors.GenqueueError) for kind in classes)
    assert issubclass(errors.InvalidRequestError, ValueError)
    assert issubclass(errors.RedisUnavailableError, ConnectionError)
    assert issubclass(errors.ResultTimeoutError, TimeoutError)


@pytest.mark.parametrize(("word", "shown"), [("stop", "stop"), ("Bearer hf_canary What is", "_OTHER"), (None, None)])
def test_the_event_of_the_end_has_no_word_of_an_endpoint_but_a_known_one(word, shown):
    meta = {"finish_reason": word, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    result = GenerationResult(replies=["a"], meta=[meta])
    end = endings.finished("id", "g", Flush("id", 1, 1, 2, "a", "", []), result, date_done="")
    assert json.loads(b"{" + end.bodies[-1])["finish_reason"] == shown
    assert json.loads(end.celery_result)["result"]["meta"][0]["finish_reason"] == word


CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"reasoning": "Hm", "tool_calls": [CALL]}, PartialOutput("It", "Hm", [CALL])),
        ({}, PartialOutput("It", "", ())),
        ({"reasoning": 5, "tool_calls": "x"}, PartialOutput("It", "", ())),
        (
            {"tool_calls": [CALL, {"id": 5}, {}, None, {**CALL, "function": {"name": "f"}}]},
            PartialOutput("It", "", [CALL]),
        ),
    ],
)
def test_of_a_result_is_said_what_is_text(meta, said):
    assert endings.said_in(GenerationResult(replies=["It"], meta=[meta])) == said
