"""A record that lacks a field, or holds what is none: its generation ends with words, and nobody is rung for it again.

Half restored, edited by hand, or written by whoever may: whatever it is, no call about it fails for ever, and none
about others.
"""

from dataclasses import replace

import pytest

from genqueue import GenerationCancelledError, GenerationClient, Settings, keys
from genqueue.errors import NotDeadError
from genqueue.registry import attempts, dead_letters, endings, fleet, reading
from genqueue.registry.attempts import Claim, NotClaimed
from genqueue.registry.lifecycle import FINAL, State

from ...support.registry import DONE, KEEP_S, LEASE_S, LOG_TTL_S, RESULT_TTL_S, Registry, flush

NEEDED = ["state", "generator", "priority", "attempt", "seq", "submitted_at", "request"]
"""Without these nobody can run it."""
OTHERS = ["flush", "owner", "started_at", "solid_tokens", "completion_tokens", "failures", "errors", "deadline_at"]
NUMBERS = ["priority", "attempt", "seq", "submitted_at"]
GARBAGE = ["", "x", "nan", "inf", "-1", "1e300", "0x", "\x00"]


def spoilt(registry: Registry, generation_id: str, field: str, value: str | None) -> None:
    if value is None:
        registry.raw.hdel(keys.generation(generation_id), field)
    else:
        registry.raw.hset(keys.generation(generation_id), field, value)


def end_what_is_found(registry: Registry) -> list[str]:
    """What a sweeper does; which fields it found missing."""
    found = registry.sweep(last_s=LEASE_S / 3)
    ends = [
        endings.failed(each.generation_id, each.generator, None, endings.incomplete(each.missing), date_done=DONE)
        for each in found.incomplete
    ] + [endings.overdue(each, date_done=DONE) for each in found.expired]
    call = attempts.finish_all(ends, log_ttl_s=LOG_TTL_S, result_ttl_s=RESULT_TTL_S, keep_s=KEEP_S)
    assert registry.run(call) == ["ok"] * len(ends)
    return [each.missing for each in found.incomplete]


def claim_and_end(registry: Registry, generation_id: str) -> Claim | NotClaimed:
    """What a worker does with a doorbell."""
    claim = registry.claim(generation_id, "worker-2")
    if isinstance(claim, NotClaimed) and claim.reason == "incomplete":
        end = endings.failed(generation_id, "default", None, endings.incomplete(claim.missing), date_done=DONE)
        assert registry.finish(end) == "ok"
    return claim


def left_running(registry: Registry) -> str:
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    return generation_id


def due(registry: Registry) -> str:
    generation_id = registry.running()
    registry.release(flush(generation_id, 1), delay_s=5.0)
    registry.raw.zadd(keys.DELAYED, {generation_id: registry.now_ms - 1})
    return generation_id


def overdue(registry: Registry) -> str:
    generation_id = registry.submit(deadline_s=1000.0)
    registry.raw.zadd(keys.DEADLINES, {generation_id: registry.now_ms - 1})
    return generation_id


FOUND_BY_A_SWEEP = {"running": left_running, "delayed": due, "overdue": overdue}


def assert_at_rest(registry: Registry, generation_id: str) -> None:
    """Nobody is rung for it again, now or later."""
    for place in (keys.waiting("default"), keys.LEASES, keys.DELAYED, keys.DEADLINES):
        assert registry.raw.zscore(place, generation_id) is None
    registry.raw.delete(keys.doorbell("default", 5))
    assert registry.sweep().astray == []


@pytest.mark.parametrize("was", ["queued", "running"])
@pytest.mark.parametrize(
    ("field", "value"),
    [(field, None) for field in NEEDED] + [(field, value) for field in NUMBERS for value in GARBAGE],
)
def test_what_nobody_can_run_ends_with_words_at_its_claim(registry, was, field, value):
    generation_id = registry.submit(deadline_s=1000.0) if was == "queued" else registry.running()
    if was == "running":
        registry.lose_lease(generation_id)
    spoilt(registry, generation_id, field, value)
    claim = claim_and_end(registry, generation_id)
    assert claim == NotClaimed("incomplete", missing=field)
    spoilt(registry, generation_id, "priority", "5")
    spoilt(registry, generation_id, "submitted_at", "1")
    record = registry.run(reading.read_record(generation_id))
    assert record.state == "failed"
    assert record.outcome.message.endswith(f"incomplete, nobody can run it: {field}")
    assert_at_rest(registry, generation_id)
    assert registry.events(generation_id)[-1].endswith("failed")


@pytest.mark.parametrize(
    "text", [b"\xc3", b"so far\xc3", b"\xfe[[1,2]]\xfe", b"\xfe" + b"[" * 9999, b'\xfe[["a",5,[],{}]]\xfe', b"\xfe{}"]
)
@pytest.mark.parametrize("was", ["queued", "running"])
def test_a_text_that_cannot_be_gone_on_with_ends_it(registry, was, text):
    generation_id = registry.submit() if was == "queued" else registry.running()
    if was == "running":
        registry.lose_lease(generation_id)
    registry.raw.set(keys.text(generation_id), text, ex=KEEP_S)
    assert claim_and_end(registry, generation_id) == NotClaimed("incomplete", missing="text")
    assert registry.run(reading.read_record(generation_id)).outcome.message.endswith("nobody can run it: text")
    assert registry.run(reading.read_said(generation_id)).text == registry.run(reading.read_text(generation_id)) == ""
    assert_at_rest(registry, generation_id)


@pytest.mark.parametrize("was", list(FOUND_BY_A_SWEEP))
@pytest.mark.parametrize(
    ("field", "value"),
    [(field, None) for field in NEEDED if field != "request"]
    + [("state", "")]
    + [(field, value) for field in NUMBERS for value in GARBAGE],
)
def test_what_nobody_can_run_ends_with_words_at_a_sweep(registry, was, field, value):
    generation_id = FOUND_BY_A_SWEEP[was](registry)
    spoilt(registry, generation_id, field, value)
    assert end_what_is_found(registry) == [field]
    assert registry.raw.hget(keys.generation(generation_id), "state") == b"failed"
    assert_at_rest(registry, generation_id)


@pytest.mark.parametrize("was", list(FOUND_BY_A_SWEEP))
def test_words_name_all_that_is_missing_beside_the_state(registry, was):
    generation_id = FOUND_BY_A_SWEEP[was](registry)
    registry.raw.hdel(keys.generation(generation_id), "state", "priority", "seq")
    assert end_what_is_found(registry) == ["state, priority, seq"]
    assert_at_rest(registry, generation_id)


@pytest.mark.parametrize("was", list(FOUND_BY_A_SWEEP))
@pytest.mark.parametrize("left", ["generator", "attempt", "seq", "request"])
def test_one_field_that_is_left_is_enough_for_an_end_with_words(registry, was, left):
    generation_id = FOUND_BY_A_SWEEP[was](registry)
    others = {*registry.hash(generation_id)} - {left}
    registry.raw.hdel(keys.generation(generation_id), *others)
    (missing,) = end_what_is_found(registry)
    assert missing.startswith("state, ")
    assert registry.run(reading.read_record(generation_id)).state == "failed"
    assert_at_rest(registry, generation_id)


@pytest.mark.parametrize("was", list(FOUND_BY_A_SWEEP))
def test_what_is_forgotten_leaves_its_place_without_a_word(registry, was):
    generation_id = FOUND_BY_A_SWEEP[was](registry)
    registry.raw.delete(keys.generation(generation_id))
    assert end_what_is_found(registry) == []
    for place in (keys.LEASES, keys.DELAYED, keys.DEADLINES):
        assert registry.raw.zscore(place, generation_id) is None


@pytest.mark.parametrize("was", list(FOUND_BY_A_SWEEP))
def test_a_state_that_a_newer_version_gave_is_left_to_its_sweepers(registry, was):
    generation_id = FOUND_BY_A_SWEEP[was](registry)
    spoilt(registry, generation_id, "state", "parked")
    place = {"running": keys.LEASES, "delayed": keys.DELAYED, "overdue": keys.DEADLINES}[was]
    assert end_what_is_found(registry) == []
    assert registry.raw.zscore(place, generation_id) > registry.now_ms  # it is found there again, by whoever knows it
    assert registry.hash(generation_id)["state"] == "parked"


@pytest.mark.parametrize("was", list(FOUND_BY_A_SWEEP))
def test_a_name_that_is_no_text_keeps_nobody_from_what_else_is_found(registry, was):
    odd_id, lost_id = FOUND_BY_A_SWEEP[was](registry), left_running(registry)
    registry.raw.hset(keys.generation(odd_id), mapping={"generator": b"\xff", "owner": b"\xfe"})
    registry.raw.hdel(keys.generation(odd_id), "seq")
    registry.raw.zadd(keys.LEASES, {b"\xfd": registry.now_ms - 1})
    registry.raw.hset(keys.generation("").encode() + b"\xfd", "seq", "1")
    registry.raw.expire(keys.generation("").encode() + b"\xfd", 60)
    found = registry.sweep()
    assert lost_id in found.astray
    assert odd_id in [each.generation_id for each in found.incomplete]


@pytest.fixture
def client(redis_url):
    with GenerationClient(Settings(redis_url=redis_url, generators={})) as opened:
        yield opened


@pytest.mark.parametrize("was", [Registry.submit, *FOUND_BY_A_SWEEP.values()], ids=["queued", *FOUND_BY_A_SWEEP])
@pytest.mark.parametrize(
    ("field", "value"),
    [(field, None) for field in [*NEEDED, *OTHERS]]
    + [("state", "parked"), ("state", ""), ("outcome", "{"), ("waits_for", b"\xff"), ("retried_as", b"\xff")]
    + [(field, value) for field in [*NUMBERS, "started_at", "completion_tokens", "first_text_at"] for value in GARBAGE],
)
def test_what_cannot_be_read_is_cancelled_as_anything_else(writer, client, was, field, value):
    generation_id = was(writer)
    spoilt(writer, generation_id, field, value)
    generation = client.generation(generation_id)
    assert generation.cancel()
    status = generation.status()
    assert (status.state, status.error) == ("cancelled", "cancelled")
    assert generation.cancel()  # as often as one likes
    with pytest.raises(GenerationCancelledError):
        generation.result(timeout_s=5)
    assert writer.events(generation_id)[-1].endswith("cancelled")
    assert_at_rest(writer, generation_id)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_cancel_changes_no_end_whatever_its_record_lacks(writer, client, state):
    generation_id = writer.into(state)
    writer.raw.hdel(keys.generation(generation_id), "priority", "submitted_at", "ended_at")
    before = writer.hash(generation_id)
    assert client.generation(generation_id).cancel() is (state == "cancelled")
    assert writer.hash(generation_id) == before


def test_an_end_that_a_newer_version_gave_is_none_to_cancel(writer, client):
    generation_id = writer.into(State.FINISHED)
    spoilt(writer, generation_id, "state", "archived")
    assert not client.generation(generation_id).cancel()
    assert writer.hash(generation_id)["state"] == "archived"


def test_a_cancel_of_a_key_of_another_type_is_kept_for_the_message_to_come(registry):
    """A worker's: it registers what is not there, so that a message that brings its request finds it cancelled."""
    registry.raw.set(keys.generation("spoilt"), "of another type", ex=60)
    end = registry.cancelled("spoilt")
    assert registry.finish(end) == "gone"
    assert registry.finish(replace(end, stillborn=True)) == "ok"
    assert registry.claim("spoilt") == NotClaimed("cancelled", is_untold=True)


def test_a_sweeper_that_dies_before_it_ended_it_leaves_it_to_the_next(registry):
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    spoilt(registry, generation_id, "priority", None)
    assert [each.generation_id for each in registry.sweep().incomplete] == [generation_id]
    assert registry.sweep().incomplete == []
    registry.lose_lease(generation_id)  # 3 s later
    assert [each.generation_id for each in registry.sweep().incomplete] == [generation_id]


@pytest.mark.parametrize("field", OTHERS)
@pytest.mark.parametrize("value", [None, *GARBAGE])
def test_without_the_rest_it_is_run_all_the_same(registry, field, value):
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    spoilt(registry, generation_id, field, value)
    claim = registry.claim(generation_id, "worker-2")
    if field == "deadline_at" and value == "-1":
        assert claim == NotClaimed("expired")
        return
    assert isinstance(claim, Claim)
    assert claim.attempt == 2
    assert registry.finish(registry.finished(generation_id, attempt=2)) == "ok"


@pytest.mark.parametrize("field", [*NEEDED, *OTHERS])
@pytest.mark.parametrize("value", [None, "x", "nan"])
def test_no_call_about_it_harms_another(registry, field, value):
    """Whatever is spoilt while it runs, what its worker says of others arrives."""
    spoilt_id, other_id = registry.running(), registry.running()
    spoilt(registry, spoilt_id, field, value)
    registry.raw.zrem(keys.LEASES, spoilt_id)  # a sweeper has given it up: renewing it takes it out of its queue
    renewal = attempts.renew([(spoilt_id, 1), (other_id, 1)], lease_s=LEASE_S, keep_s=KEEP_S, owner="worker-1")
    assert other_id not in registry.run(renewal)
    answers = registry.run(attempts.append([flush(spoilt_id, 1, ["a"]), flush(other_id, 1, ["b"])], keep_s=KEEP_S))
    assert answers[1] == "ok"
    last = flush(spoilt_id, 2, ["b"])
    assert registry.release(last) in {"ok", "superseded", "gone", "running", "x", "nan"}
    registry.sweep()
    assert claim_and_end(registry, spoilt_id).reason if registry.hash(spoilt_id).get("state") in FINAL else True


def test_a_key_of_another_type_is_nobodys(registry):
    generation_id, other_id = registry.submit(), registry.running()
    registry.raw.delete(keys.generation(generation_id))
    registry.raw.set(keys.generation(generation_id), "of another type", ex=60)
    assert registry.claim(generation_id) == NotClaimed("gone")
    assert registry.raw.zscore(keys.waiting("default"), generation_id) is None
    renewal = attempts.renew([(generation_id, 1), (other_id, 1)], lease_s=LEASE_S, keep_s=KEEP_S)
    assert registry.run(renewal) == {generation_id: "gone"}
    assert registry.append(flush(generation_id, 1, ["a"]), flush(other_id, 1, ["b"])) == ["gone", "ok"]
    assert registry.release(flush(generation_id, 1)) == "gone"
    assert registry.finish(registry.cancelled(generation_id)) == "gone"


@pytest.mark.parametrize("state", sorted(FINAL))
def test_what_has_ended_is_not_rung_for_though_it_stands_in_its_queue(registry, state):
    generation_id = registry.into(state)
    registry.raw.zadd(keys.waiting("default"), {generation_id: 5 * 3e14 + (registry.now_ms / 1e3 - 60) * 1e5})
    registry.raw.delete(keys.doorbell("default", 5))
    assert registry.sweep().astray == [generation_id]
    assert registry.claim(generation_id).reason == state
    assert_at_rest(registry, generation_id)


@pytest.mark.parametrize("field", ["request", "priority", "submitted_at", "deadline_at"])
def test_a_retry_of_a_spoilt_dead_letter_says_so(registry, field):
    generation_id = registry.running(deadline_s=50.0)
    registry.finish(registry.failed(generation_id))
    spoilt(registry, generation_id, field, None)
    call = dead_letters.retry(
        generation_id, "new", "default", 5, max_queue_depth=-1, keep_s=KEEP_S, result_ttl_s=RESULT_TTL_S
    )
    if field in {"request", "priority"}:
        with pytest.raises(NotDeadError, match="its request is lost"):
            registry.run(call)
    else:
        assert registry.run(call).generation_id == "new"
        assert isinstance(registry.claim("new"), Claim)


def test_an_announcement_that_cannot_be_read_stops_no_submit(registry):
    for garbage in ("[]", "{}", "nothing", '{"max_queue_depth":"x"}', '{"max_queue_depth":null}'):
        registry.raw.hset(keys.GENERATORS, "default", garbage)
        registry.raw.expire(keys.GENERATORS, 60)
        assert registry.submit(max_queue_depth=None)
    registry.raw.hset(keys.WORKERS, "old", "nothing")
    registry.raw.expire(keys.WORKERS, 60)
    facts = {"default": {"max_queue_depth": -1}}
    registry.run(fleet.announce(facts, "me", {}, worker_s=30.0, keep_s=KEEP_S))
    assert registry.raw.hkeys(keys.WORKERS) == [b"me"]
