"""What a worker says of its attempts, and how the answers are read; tests/contract/registry has what scripts do."""

import pytest

from genqueue import keys
from genqueue.registry import attempts
from genqueue.registry.attempts import Claim, End, Flush, NotClaimed
from genqueue.registry.lifecycle import State, Transition
from genqueue.wire.result import Outcome

from ...support.registry import keys_of


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
