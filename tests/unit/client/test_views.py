"""How a generation is shown to its caller."""

import math
from typing import Any

import pytest

from genqueue import errors
from genqueue.client import views
from genqueue.registry.lifecycle import State
from genqueue.registry.partial import PartialOutput
from genqueue.registry.reading import Record
from genqueue.wire.events import ToolCallDelta
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
    chunks = views.whole_text_chunk(record(State.FINISHED), PartialOutput(text))
    assert [(chunk.text, chunk.seq, chunk.attempt) for chunk in chunks] == [(part, 9, 2) for part in expected]


def test_whoever_got_none_gets_thoughts_and_calls_in_the_one_chunk_too():
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    calls.append({"id": "2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}})
    result = GenerationResult(replies=[""], meta=[{"reasoning": "Hm", "tool_calls": calls}])
    (chunk,) = views.whole_text_chunk(record(State.FINISHED), views.output_of(result))
    pieces = (ToolCallDelta(0, "1", "f", "{}"), ToolCallDelta(1, "2", "sql", "select 1"))
    assert (chunk.text, chunk.reasoning, chunk.tool_calls) == ("", "Hm", pieces)


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
    assert views.output_of(GenerationResult(replies=["It"], meta=[meta])) == said
