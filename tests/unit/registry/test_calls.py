"""What goes out to Redis and how its answers are read; what the scripts do is tests/contract's."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genqueue import keys
from genqueue.cli import tables
from genqueue.errors import (
    GenerationNotFoundError,
    IdempotencyConflictError,
    NotDeadError,
    QueueFullError,
    StoreError,
    UnknownGeneratorError,
)
from genqueue.registry import attempts, dead_letters, fleet, partial, reading, submitting
from genqueue.registry import script as registry_script
from genqueue.registry.attempts import Claim, End, Flush, NotClaimed
from genqueue.registry.lifecycle import State, Transition
from genqueue.registry.submitting import Accepted
from genqueue.wire.events import ToolCallDelta, join_tool_calls
from genqueue.wire.request import read_request
from genqueue.wire.result import Outcome

SCRIPTS = [
    "announce",
    "append",
    "claim",
    "drop",
    "finish",
    "read",
    "release",
    "renew",
    "retry",
    "submit",
    "sweep",
]


def submit(**options: Any) -> registry_script.Call[Accepted]:
    settings: dict[str, Any] = {
        "keep_s": 60,
        "idempotency_key": None,
        "idempotency_ttl_s": 9,
        "max_queue_depth": None,
        **options,
    }
    return submitting.submit("id", read_request({"prompt": "p", "priority": 3}), **settings)


def keys_of(call: registry_script.Call[Any]) -> list[str]:
    return list(call.arguments[1 : 1 + int(call.arguments[0])])


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_read_once_and_known_by_its_digest(name):
    script = registry_script.script(name)
    assert registry_script.script(name) is script
    assert script.source.startswith("-- Put before every script")
    assert len(script.sha1) == 40


def test_a_submit_declares_its_keys_first():
    assert keys_of(submit()) == [
        keys.generation("id"),
        keys.waiting("default"),
        keys.GENERATORS,
        keys.doorbell("default", 3),
        keys.DEADLINES,
    ]
    assert keys_of(submit(idempotency_key="k"))[-1] == keys.idempotency("k")


def test_a_submit_that_does_not_ring_sends_no_message():
    assert json.loads(submit().arguments[-4])["headers"]["id"] == "id"
    assert submit(ring=False).arguments[-4] == ""


@pytest.mark.parametrize(("depth", "sent"), [(None, ""), (-1, "-1"), (0, "0")])
def test_a_limit_of_zero_is_not_no_limit(depth, sent):
    assert submit(max_queue_depth=depth).arguments[-3] == sent


def test_a_submit_answers_the_id_that_was_accepted():
    assert submit().decode([b"accepted", b"earlier"]) == Accepted("earlier")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ([b"full", 7, 5], QueueFullError, "queue 'default' holds 7 generations, limit 5"),
        ([b"unknown"], UnknownGeneratorError, "known: none"),
        ([b"unknown", b"chat", b"code"], UnknownGeneratorError, "known: chat, code"),
        ([b"conflict", b"earlier"], IdempotencyConflictError, "'k' was used for generation earlier"),
        ([b"what"], StoreError, "submit.lua answered"),
        ([], StoreError, "submit.lua answered"),
    ],
)
def test_a_refused_submit_raises_its_error(answer, error, words):
    with pytest.raises(error, match=words):
        submit(idempotency_key="k").decode(answer)


def test_a_claim_is_read_whole():
    call = attempts.claim("id", "chat", owner="me", lease_s=3.0, keep_s=60)
    answer = [b"claimed", 2, b"{}", b"1.5", b"2.5", b"9.5", "so far é".encode(), 4, 1]
    errors = [{"attempt": 1, "message": "é"}]
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    assert call.decode(
        [*answer, '{"attempt":1,"message":"é"}'.encode(), 6, traceparent.encode(), b"7.5", b""]
    ) == Claim(2, b"{}", 1.5, 2.5, 9.5, "so far é", 4, 1, errors, "", 6, traceparent, answered_at=7.5, met=errors)
    answer[5] = b""
    claim = call.decode([*answer, b"", 0, b"\xff" * 9, b"7.5", b""])
    assert isinstance(claim, Claim)
    assert (claim.deadline_at, claim.errors, claim.traceparent) == (None, [], None)
    assert call.arguments[-4] == "queued,running"


@pytest.mark.parametrize(
    "answer", [[b"gone"], [b"held"], [b"elsewhere", b"chat"], [b"expired", b"", b""], [b"finished"]], ids=str
)
def test_another_answer_to_a_claim_is_its_reason(answer):
    call = attempts.claim("id", "chat", owner="me", lease_s=3.0, keep_s=60)
    assert call.decode(answer) == NotClaimed(answer[0].decode())


def test_a_claim_is_told_what_a_record_lacks():
    call = attempts.claim("id", "chat", owner="me", lease_s=3.0, keep_s=60)
    assert call.decode([b"incomplete", b"seq, request"]) == NotClaimed("incomplete", missing="seq, request")


def test_an_append_has_three_keys_and_its_own_arguments_for_each_flush():
    call = attempts.append(
        [Flush("a", 1, 2, 3, "text", "first", [b"x", b"y"], solid_tokens=2), Flush("b", 4, 5, 6, "", "", [])], keep_s=60
    )
    assert keys_of(call) == [
        make(generation_id) for generation_id in "ab" for make in (keys.generation, keys.log, keys.text)
    ]
    assert list(call.arguments[7:]) == [
        "60",
        "",
        *("1", "2", keys.live("a"), "3", "2", "first", "text", "2", b"x", b"y"),
        *("4", "5", keys.live("b"), "6", "0", "", "", "0"),
    ]
    assert call.decode([b"ok", b"superseded"]) == ["ok", "superseded"]


@pytest.mark.parametrize(
    ("answer", "expected"), [(b"ok", "ok"), (b"failed", "ok"), (b"finished", "finished"), (b"gone", "gone")]
)
def test_an_end_that_was_there_already_is_ok(answer, expected):
    end = End("id", "chat", None, Transition.FAILED, State.FAILED, [b"body"], b"{}")
    call = attempts.finish(end, log_ttl_s=1, result_ttl_s=2, keep_s=60)
    assert call.decode([answer]) == expected
    assert call.arguments[len(keys_of(call)) + 5 :][:4] == ("id", "", "queued,running", State.FAILED)
    assert call.arguments[-1] == b"body"


@pytest.mark.parametrize(
    ("error", "rests_s"), [("failed", "60"), ("rejected", ""), ("expired", ""), ("cancelled", ""), (None, "")]
)
def test_only_what_another_try_may_mend_becomes_a_dead_letter(error, rests_s):
    outcome = Outcome(error=error, message="m") if error else None
    end = End("id", "chat", None, Transition.FAILED, State.FAILED, [b"body"], b"{}", outcome=outcome)
    assert attempts.finish(end, log_ttl_s=1, result_ttl_s=2, keep_s=60).arguments[-5] == rests_s


def test_many_ends_share_a_call_and_each_has_its_own_answer():
    ends = [
        End(name, "chat", None, Transition.FAILED, State.FAILED, [b"body"] * bodies, b"{}")
        for bodies, name in enumerate(("a", "b", "c"), 1)
    ]
    call = attempts.finish_all(ends, log_ttl_s=1, result_ttl_s=2, keep_s=60)
    assert keys_of(call)[5::5] == [keys.generation(name) for name in "abc"]
    assert call.arguments.count(b"body") == 6
    assert call.decode([b"ok", b"failed", b"cancelled"]) == ["ok", "ok", "cancelled"]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ([b"full", 7, 5], QueueFullError, "queue 'chat' holds 7 generations, limit 5"),
        ([b"unknown", b"code"], UnknownGeneratorError, "unknown generator 'chat'; known: code"),
        ([b"gone"], GenerationNotFoundError, "no generation id"),
        ([b"not dead"], NotDeadError, "generation id is no dead letter: it was dropped"),
        ([b"what"], StoreError, "retry.lua answered"),
    ],
)
def test_a_refused_retry_raises_its_error(answer, error, words):
    call = dead_letters.retry("id", "new", "chat", 3, max_queue_depth=None, keep_s=60, result_ttl_s=9)
    assert call.decode([b"accepted", b"earlier"]) == Accepted("earlier")
    with pytest.raises(error, match=words):
        call.decode(answer)


def test_a_renewal_answers_what_is_lost_and_why():
    call = attempts.renew([("a", 1), ("b", 2)], lease_s=3.0, keep_s=60)
    assert keys_of(call) == [
        keys.LEASES,
        keys.RUNG,
        keys.DEADLINES,
        *(make(generation_id) for generation_id in "ab" for make in (keys.generation, keys.log, keys.text)),
    ]
    assert list(call.arguments[10:]) == ["3.0", "60", keys.waiting(""), "", "a", "1", "b", "2"]
    assert call.decode([]) == {}
    assert call.decode([b"a", b"superseded", b"b", b"gone"]) == {"a": "superseded", "b": "gone"}


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


UTF8 = st.text(st.characters(exclude_categories=["Cs"]))


DELTAS = st.lists(st.builds(ToolCallDelta, st.integers(0, 2), st.none() | UTF8, st.none() | UTF8, UTF8))


@given(st.lists(st.tuples(UTF8, UTF8, DELTAS)))
def test_text_thoughts_and_calls_are_told_apart_in_what_was_kept(flushes):
    said = [partial.encode_partial(text, thought, deltas) for text, thought, deltas in flushes]
    kept = b"".join(part.encode() if isinstance(part, str) else part for part in said)
    text = "".join(text for text, _, _ in flushes)
    assert reading.read_text("id").decode(kept) == text
    assert reading.read_said("id").decode(kept) == (
        text,
        "".join(thought for _, thought, _ in flushes),
        join_tool_calls(delta for _, _, deltas in flushes for delta in deltas),
    )


def test_a_text_alone_is_kept_as_it_is():
    assert partial.encode_partial("é", "") == "é"
    assert reading.read_said("id").decode(None) == ("", "", [])
    assert reading.read_said("id").decode("é".encode()) == ("é", "", [])


# --- what others wrote -------------------------------------------------------------------------

NEWER = {"announced_at": 5.0, "generators": {"chat": [{"address": "a", "health": "up", "running": 1, "trouble": ""}]}}
UNSAID = {"address": "", "health": "?", "running": 0, "trouble": ""}


@pytest.mark.parametrize(
    ("about", "generators"),
    [
        pytest.param({**NEWER, "version": "9", "load": [1]}, NEWER["generators"], id="one-more-field"),
        pytest.param(
            {"announced_at": 5, "generators": {"chat": [{"health": "naps", "gpus": 2}]}},
            {"chat": [{**UNSAID, "health": "naps", "gpus": 2}]},
            id="other-facts-of-a-server",
        ),
        pytest.param(
            {"announced_at": 5.0, "generators": {"chat": [{"running": "many", "trouble": None}], "b": {}}},
            {"chat": [UNSAID]},
            id="facts-of-another-type",
        ),
        pytest.param({"generators": {}}, None, id="no-time"),
        pytest.param({"announced_at": 5.0}, None, id="no-generators"),
        pytest.param({"announced_at": 5.0, "generators": [1]}, None, id="generators-are-no-object"),
        pytest.param([1], None, id="no-object"),
        pytest.param("text", None, id="a-text"),
    ],
)
def test_what_a_worker_of_another_version_announces_is_read_as_far_as_it_is_known(about, generators):
    raw = {b"other": json.dumps(about).encode(), b"ours": json.dumps(NEWER).encode()}
    workers = {worker.name: worker.generators for worker in fleet.read_workers().decode(raw)}
    assert workers == {"ours": NEWER["generators"], **({} if generators is None else {"other": generators})}
    for worker in fleet.read_workers().decode(raw):
        assert all(tables.worker_rows(worker, 6.0))


def test_an_announcement_that_is_no_json_hides_no_other():
    raw = {b"other": b"garbage", b"ours": json.dumps(NEWER).encode()}
    assert [worker.name for worker in fleet.read_workers().decode(raw)] == ["ours"]


@pytest.mark.parametrize("fact", [b"garbage", b"[1]", b'{"max_queue_depth":"x","api_type":5}', b"{}"])
def test_an_overview_outlives_what_it_cannot_read_of_a_generator(fact):
    row = [b"chat", 0, b"", 0, 0, 0]
    found = fleet.overview([]).decode([b"1.5", [b"chat", fact], [b"w", b"garbage"], [row], [0] * 5, []])
    assert [(queue.max_queue_depth, queue.api_type) for queue in found.queues] == [(None, None)]
    assert found.workers == []


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
