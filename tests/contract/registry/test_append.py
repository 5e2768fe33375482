"""``append``: many attempts' events in one call, fenced, each flush once."""

import dataclasses
import json
from collections.abc import Callable

import pytest

from genqueue import keys
from genqueue.registry import attempts, endings, reading
from genqueue.registry.attempts import Claim, Flush
from genqueue.registry.lifecycle import FINAL
from genqueue.registry.partial import encode_partial
from genqueue.wire.events import chunk_body, event_body
from genqueue.wire.result import Outcome

from ...support.redis_servers import only_real_redis
from ...support.registry import KEEP_S, LEASE_S, Registry, flush


def test_a_flush_is_logged_published_and_kept_as_text(registry):
    generation_id = registry.running()
    with registry.raw.pubsub() as heard:
        heard.subscribe(keys.live(generation_id))
        assert heard.get_message(timeout=30)["type"] == "subscribe"
        assert registry.append(flush(generation_id, 1, ["It ", "é🦜"], mark="first", tokens=5)) == ["ok"]
        published = json.loads(heard.get_message(timeout=30)["data"])
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk It", "3.1 chunk é🦜"]
    assert published == [
        json.loads(event.model_dump_json(exclude_none=True))
        for event in registry.run(reading.read_log(generation_id, 2))
    ]
    assert registry.text(generation_id) == "It é🦜"
    record = registry.run(reading.read_record(generation_id))
    assert (record.seq, record.completion_tokens) == (3, 5)
    assert record.started_at <= record.first_text_at
    for key in (keys.log(generation_id), keys.text(generation_id)):
        assert registry.raw.ttl(key) == pytest.approx(KEEP_S, abs=2)


@pytest.mark.parametrize("reason", ["gone", "superseded", *sorted(FINAL)])
def test_the_fence_lets_nothing_through(registry, reason):
    generation_id = registry.lost(reason)
    stored = registry.everything()
    assert registry.append(flush(generation_id, 1, ["zombie"], mark="reset")) == [reason]
    assert registry.everything() == stored


def test_an_attempt_that_was_never_claimed_is_refused(registry):
    generation_id = registry.submit()
    assert registry.append(flush(generation_id, 1, ["a"])) == ["superseded"]
    assert registry.append(flush(generation_id, 1, ["a"], attempt=0)) == ["queued"]
    assert registry.text(generation_id) == ""


def test_a_flush_that_is_sent_twice_is_written_once(registry):
    generation_id = registry.running()
    first, second = flush(generation_id, 1, ["a"], mark="first"), flush(generation_id, 2, ["b"])
    assert [registry.append(each) for each in (first, first, second, first, second)] == [["ok"]] * 5
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk a", "3.1 chunk b"]
    assert registry.text(generation_id) == "ab"


def test_flushes_are_numbered_anew_by_each_attempt(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 7, ["a"]))
    registry.lose_lease(generation_id)
    registry.claim(generation_id, "worker-2")
    assert registry.append(flush(generation_id, 1, ["b"], attempt=2)) == ["ok"]
    assert registry.text(generation_id) == "ab"


def test_one_call_writes_for_many_and_each_has_its_own_answer(registry):
    ids = [registry.running() for _ in range(3)]
    registry.finish(registry.cancelled(ids[1]))
    answers = registry.append(
        flush(ids[0], 1, ["a", "b"]), flush("nobody's", 1, ["x"]), flush(ids[1], 1, ["y"]), flush(ids[2], 1, [])
    )
    assert answers == ["ok", "gone", "cancelled", "ok"]
    assert [registry.text(each) for each in ids] == ["ab", "", ""]


def test_two_flushes_of_one_generation_may_share_a_call(registry):
    generation_id = registry.running()
    assert registry.append(flush(generation_id, 1, ["a"]), flush(generation_id, 2, ["b"])) == ["ok", "ok"]
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk a", "3.1 chunk b"]


def test_nothing_to_write_is_no_event_and_no_message(registry):
    generation_id = registry.running()
    assert registry.append() == []
    assert registry.append(flush(generation_id, 1, [])) == ["ok"]
    assert registry.events(generation_id) == ["1.1 started"]
    assert registry.raw.exists(keys.text(generation_id)) == 0


@pytest.mark.parametrize("text", ["", "\x00", "]}", "%d %s %%", "\\", "日本語" * 50_000])
def test_any_text_is_kept_as_it_is(registry, text):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, [text, "."]))
    assert registry.text(generation_id) == text + "."
    (_, chunk, _) = registry.run(reading.read_log(generation_id, 0))
    assert chunk.text == text


def test_text_without_chunks_is_kept_for_the_next_attempt(registry):
    generation_id = registry.running(stream=False)
    quiet = flush(generation_id, 1, ["a"], mark="first")
    quiet.bodies = []
    registry.append(quiet)
    assert (registry.events(generation_id), registry.text(generation_id)) == (["1.1 started"], "a")


def test_a_reset_forgets_the_text_and_then_takes_the_new(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["old"], mark="first"))
    registry.lose_lease(generation_id)
    registry.claim(generation_id, "worker-2")
    anew = flush(generation_id, 1, ["new"], attempt=2, mark="reset")
    anew.bodies.insert(0, event_body("reset", {}))
    assert registry.append(anew, anew) == ["ok", "ok"]
    assert registry.text(generation_id) == "new"
    assert registry.events(generation_id)[2:] == ["3.2 started", "4.2 reset", "5.2 chunk new"]
    assert registry.raw.ttl(keys.text(generation_id)) == pytest.approx(KEEP_S, abs=2)


@pytest.mark.parametrize(("text", "has_text"), [(["new"], True), ([], False)])
def test_the_first_text_after_a_reset_is_stamped(registry, text, has_text):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, text, mark="reset"))
    assert (registry.run(reading.read_record(generation_id)).first_text_at is not None) is has_text


def test_only_the_first_text_is_stamped_as_first(registry: Registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["a"], mark="first"))
    first = registry.run(reading.read_record(generation_id)).first_text_at
    registry.append(flush(generation_id, 2, ["b"]))
    assert registry.run(reading.read_record(generation_id)).first_text_at == first


def test_a_large_flush_of_many_generations_goes_through(registry):
    ids = [registry.running() for _ in range(100)]
    assert registry.append(*(flush(each, 1, ["a"] * 50) for each in ids)) == ["ok"] * 100
    assert {len(registry.events(each)) for each in ids} == {51}


def test_thoughts_are_kept_beside_the_text_by_every_script(registry):
    """Between bytes that no UTF-8 holds, in the one string: appended, released, claimed, failed."""

    def thinking(number, text, thought, attempt=1):
        body = chunk_body(text, [], reasoning=thought)
        return Flush(
            generation_id, attempt, number, number, encode_partial(text, thought), "", [body], solid_tokens=number
        )

    generation_id = registry.running()
    registry.append(thinking(1, "", "Hm, é"))
    registry.append(thinking(2, "It", "!"))
    assert (registry.text(generation_id), registry.reasoning(generation_id)) == ("It", "Hm, é!")
    assert registry.release(thinking(3, " is", "")) == "ok"
    claim = registry.claim(generation_id, "worker-2")
    assert (claim.text_so_far, claim.reasoning_so_far, claim.solid_tokens) == ("It is", "Hm, é!", 3)
    last = thinking(1, " so", " Well", attempt=2)
    end = endings.failed(generation_id, "default", last, Outcome(error="failed", message="words"), date_done="now")
    assert registry.finish(end) == "ok"
    assert (registry.text(generation_id), registry.reasoning(generation_id)) == ("It is so", "Hm, é! Well")
    chunks = [event for event in registry.run(reading.read_log(generation_id, 0)) if event.type == "chunk"]
    assert [(chunk.text, chunk.reasoning) for chunk in chunks] == [
        ("", "Hm, é"),
        ("It", "!"),
        (" is", ""),
        (" so", " Well"),
    ]


def forget(registry: Registry, generation_id: str, do: Callable[[], object]) -> None:
    """Do something of which Redis knows nothing afterwards, as after a crash or a failover."""
    names = [keys.generation(generation_id), keys.log(generation_id), keys.text(generation_id)]
    before = {name: registry.raw.dump(name) for name in names}
    do()
    for name, dumped in before.items():
        registry.raw.delete(name)
        if dumped is not None:
            registry.raw.restore(name, KEEP_S * 1000, dumped)


def append(registry: Registry, *flushes: Flush, owner: str = "worker-1") -> list[str]:
    answers: list[str] = registry.run(attempts.append(flushes, keep_s=KEEP_S, owner=owner))
    return answers


@pytest.mark.parametrize("forged", ["0.5", "nan", "-3", "x", "1e300"])
def test_a_flushs_number_that_is_none_counts_as_the_last_whole_one(registry: Registry, forged: str):
    generation_id = registry.running()
    registry.raw.hset(keys.generation(generation_id), "flush", forged)
    assert append(registry, flush(generation_id, 3, ["c"])) == ["behind 0"]
    assert append(registry, flush(generation_id, 1, ["a"])) == ["ok"]
    assert append(registry, flush(generation_id, 1, ["a"])) == ["ok"]
    assert registry.text(generation_id) == "a"


@only_real_redis
def test_what_redis_answered_and_forgot_is_asked_for_again_and_gets_the_same_numbers(registry: Registry):
    generation_id = registry.running()
    pieces = [flush(generation_id, number, [letter]) for number, letter in enumerate("abcd", start=1)]
    assert append(registry, pieces[0]) == ["ok"]
    forget(registry, generation_id, lambda: append(registry, *pieces[1:3]))
    assert append(registry, pieces[3]) == ["behind 1"]
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk a"]
    assert append(registry, *pieces[1:]) == ["ok"] * 3
    assert registry.events(generation_id)[1:] == ["2.1 chunk a", "3.1 chunk b", "4.1 chunk c", "5.1 chunk d"]
    assert registry.text(generation_id) == "abcd"


@only_real_redis
def test_an_end_does_not_come_before_what_redis_forgot(registry: Registry):
    generation_id = registry.running()
    forget(registry, generation_id, lambda: append(registry, flush(generation_id, 1, ["a"])))
    last = flush(generation_id, 2, ["b"])
    end = dataclasses.replace(registry.finished(generation_id, "ab", last=last), owner="worker-1", number=2)
    again = {"delay_s": 0.0, "failure": None, "is_charged": False, "keep_s": KEEP_S, "owner": "worker-1"}
    assert registry.finish(end) == "behind 0"
    assert registry.run(attempts.release(last, "default", 5, **again)) == "behind 0"
    assert append(registry, flush(generation_id, 1, ["a"])) == ["ok"]
    assert registry.finish(end) == "ok"
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk a", "3.1 chunk b", "4.1 finished"]


@only_real_redis
def test_of_two_workers_with_the_same_attempt_only_the_one_that_redis_knows_may_write(registry: Registry):
    generation_id = registry.submit()
    forget(registry, generation_id, lambda: registry.claim(generation_id, "worker-1"))
    registry.lose_lease(generation_id)
    claimed = registry.claim(generation_id, "worker-2")
    assert isinstance(claimed, Claim)
    assert claimed.attempt == 1
    first = flush(generation_id, 1, ["x"])
    assert append(registry, first, owner="worker-1") == ["superseded"]
    end = dataclasses.replace(registry.finished(generation_id), owner="worker-1")
    assert registry.finish(end) == "superseded"
    held = [(generation_id, 1)]
    renewal = attempts.renew(held, lease_s=LEASE_S, keep_s=KEEP_S, owner="worker-1")
    assert registry.run(renewal) == {generation_id: "superseded"}
    assert append(registry, first, owner="worker-2") == ["ok"]


@pytest.mark.parametrize("entry_id", ["2-0", "9-9", "18446744073709551615-0"])
def test_a_number_that_somebody_took_has_the_log_begin_anew(registry, entry_id):
    generation_id, other = registry.running(), registry.running()
    registry.raw.xadd(keys.log(generation_id), {"e": b"x"}, id=entry_id)
    assert registry.append(flush(generation_id, 1, ["a", "b"]), flush(other, 1, ["c"])) == ["ok", "ok"]
    assert registry.events(generation_id) == ["2.1 chunk a", "3.1 chunk b"]
    assert registry.events(other) == ["1.1 started", "2.1 chunk c"]
    assert registry.raw.ttl(keys.log(generation_id)) == pytest.approx(KEEP_S, abs=2)


def test_a_log_that_is_none_is_replaced(registry):
    generation_id = registry.running()
    registry.raw.set(keys.log(generation_id), "x", ex=60)
    assert registry.append(flush(generation_id, 1, ["a"])) == ["ok"]
    assert registry.events(generation_id) == ["2.1 chunk a"]


def test_what_is_no_event_under_its_own_number_is_passed_over(registry):
    generation_id = registry.running()
    for entry_id, fields in (("1-1", {"x": b"x"}), ("1-2", {"e": b"x"}), ("7-0", {"e": b'{"v":1,"seq":2}'})):
        registry.raw.xadd(keys.log(generation_id), fields, id=entry_id)
    assert registry.events(generation_id) == ["1.1 started"]
