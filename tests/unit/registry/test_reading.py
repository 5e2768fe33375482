"""How records, results and texts are read."""

import json
import math

import pytest

from genqueue.errors import (
    GenerationNotFoundError,
    StoreError,
)
from genqueue.registry import reading
from genqueue.registry.lifecycle import State
from genqueue.wire.result import Outcome


def test_a_record_is_read_whole_and_with_what_it_lacks():
    decode = reading.read_record("id").decode
    outcome = Outcome(error="failed", message="m")
    full = [
        b"failed",
        b"chat",
        b"3",
        b"2",
        b"9",
        b"1.5",
        b"2.5",
        b"3.5",
        b"4.5",
        b"7",
        outcome.model_dump_json(),
        b"new",
        b"a newer worker",
    ]
    record = decode(full)
    assert (record.state, record.generator, record.priority, record.attempt, record.seq) == (
        State.FAILED,
        "chat",
        3,
        2,
        9,
    )
    assert (record.submitted_at, record.started_at, record.first_text_at, record.ended_at) == (1.5, 2.5, 3.5, 4.5)
    assert (record.completion_tokens, record.outcome, record.retried_as) == (7, outcome, "new")
    assert record.waits_for == "a newer worker"
    bare = decode([b"queued", b"chat", *[None] * 11])
    assert (bare.attempt, bare.started_at, bare.outcome) == (0, None, None)
    assert math.isnan(bare.submitted_at)
    with pytest.raises(GenerationNotFoundError, match="id"):
        decode([None] * 13)


@pytest.mark.parametrize(
    ("answer", "replies"),
    [
        (None, None),
        (b'{"status":"SUCCESS","result":{"replies":["a"],"meta":[{}]}}', ["a"]),
        (b'{"status":"FAILURE","result":{"exc_type":"x"}}', None),
        (b'{"status":"REVOKED","result":null}', None),
        (b'{"status":"STARTED","result":{}}', None),
        (b'{"status":"SUCCESS","result":5}', None),
        (b'{"status":"SUCCESS","result":{"replies":5}}', None),
        (b'{"status":"SUCCESS"}', None),
        (b"{}", None),
        (b"5", None),
        (b"null", None),
        (b"garbage", None),
        (b"", None),
    ],
)
def test_only_a_success_is_a_result(answer, replies):
    found = reading.read_result("id").decode(answer)
    assert (found.replies if found else None) == replies


@pytest.mark.parametrize(("answer", "text"), [(None, ""), (b"", ""), ("é🦜".encode(), "é🦜")])
def test_a_text_is_read_and_none_is_empty(answer, text):
    assert reading.read_text("id").decode(answer) == text


RECORD = dict.fromkeys(reading._RECORD) | {"state": b"running", "generator": b"chat", "submitted_at": b"1.5"}


@pytest.mark.parametrize(
    "forged",
    [
        {"state": b"bogus s3cret"},
        {"state": b"\xff"},
        {"seq": b"s3cret"},
        {"priority": b"1.5"},
        {"submitted_at": b"s3cret"},
        {"started_at": b"[[["},
        {"outcome": b"[[["},
        {"outcome": b'{"error":5,"message":"s3cret"}'},
        {"outcome": b'{"v":2,"error":"failed","message":"s3cret"}'},
        {"generator": b"\xff"},
    ],
    ids=str,
)
def test_a_record_that_nobody_of_ours_wrote_is_an_error_of_ours_that_does_not_quote_it(forged):
    answer = list((RECORD | forged).values())
    with pytest.raises(StoreError, match="the record of generation g cannot be read") as raised:
        reading.read_record("g").decode(answer)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    first, second = reading.read_records(["g", "h"]).decode([answer, list(RECORD.values())])
    assert (first, second.state) == (None, State.RUNNING)


@pytest.mark.parametrize("result", [{"replies": [], "meta": [{}]}, {"replies": ["a"], "meta": []}, {"replies": "a"}, 5])
def test_a_result_without_a_reply_is_none(result):
    assert reading.read_result("g").decode(json.dumps({"status": "SUCCESS", "result": result}).encode()) is None
