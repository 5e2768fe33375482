"""``sweep``: what nobody looks after is found, by one sweeper, and is the next to be taken.

Nothing here waits: time passes by writing older scores.
"""

import json
import time

import pytest

from genqueue import keys
from genqueue.client import flows
from genqueue.errors import GenerationExpiredError
from genqueue.registry import attempts, endings, sweeping
from genqueue.registry.attempts import NotClaimed
from genqueue.registry.sweeping import Found, Overdue

from ...support.redis_servers import only_real_redis
from ...support.registry import DONE, KEEP_S, LEASE_S, flush

NOTHING = Found([], [])
MINUTE_S = 60.0
LOOK_AGAIN_S = 3.0
WINDOW = 500
"""How many of a kind one sweep looks at."""


def rests(registry, generation_id, seconds):
    """Have a generation be ``seconds`` older than it is."""
    registry.raw.hincrbyfloat(keys.generation(generation_id), "submitted_at", -seconds)
    registry.raw.zadd(keys.waiting("default"), {generation_id: -seconds * 1e5}, xx=True, incr=True)  # 10 us each


def place(registry, generation_id):
    return registry.raw.zscore(keys.waiting("default"), generation_id)


def lose_doorbells(registry):
    registry.raw.delete(*(keys.doorbell("default", priority) for priority in keys.PRIORITIES))


def pop(registry, generation_id):
    """Take its doorbell, wherever it is in the list."""
    place = keys.doorbell("default", 5)
    for entry in registry.raw.lrange(place, 0, -1):
        if json.loads(entry)["headers"]["id"] == generation_id:
            registry.raw.lrem(place, 1, entry)


def began(registry):
    """A generation whose doorbell was popped and that worker-1 has claimed."""
    generation_id = registry.running()
    pop(registry, generation_id)
    return generation_id


def left_by_a_dead_worker(registry):
    generation_id = began(registry)
    registry.lose_lease(generation_id)
    return generation_id


def due_after_a_backoff(registry):
    generation_id = began(registry)
    registry.release(flush(generation_id, 1), delay_s=5.0)
    registry.raw.zadd(keys.DELAYED, {generation_id: registry.now_ms - 1})
    return generation_id


def without_a_list(registry):
    generation_id = registry.submit()
    rests(registry, generation_id, MINUTE_S)
    lose_doorbells(registry)
    return generation_id


def passed_over(registry):
    generation_id = registry.submit()
    rests(registry, generation_id, MINUTE_S)
    pop(registry, generation_id)
    began(registry)  # younger
    return generation_id


ASTRAY = [left_by_a_dead_worker, due_after_a_backoff, without_a_list, passed_over]
named = pytest.mark.parametrize("lose", ASTRAY, ids=lambda lose: lose.__name__)


@named
def test_what_is_astray_is_found(registry, lose):
    generation_id = lose(registry)
    assert registry.sweep() == Found([generation_id], [])


def test_after_a_time_without_a_sweep_whoever_lives_may_renew_first(registry):
    """Redis was frozen: the first sweep after it, or one that was on its way, comes before the renewals of others."""
    lives, died = (left_by_a_dead_worker(registry) for _ in range(2))
    due = due_after_a_backoff(registry)
    assert registry.sweep(last_s=LEASE_S * 0.7) == Found([due], [])
    assert registry.run(attempts.renew([(lives, 1)], lease_s=LEASE_S, keep_s=KEEP_S)) == {}
    assert registry.sweep() == NOTHING
    registry.raw.hincrbyfloat(keys.SWEPT, "leases_from", -LEASE_S)
    assert registry.sweep() == Found([died], [])


def test_the_first_sweep_of_all_takes_no_lease(registry):
    left_by_a_dead_worker(registry)
    swept = registry.run(sweeping.sweep(["default"], lease_s=LEASE_S, keep_s=KEEP_S))
    assert swept.found == NOTHING


@named
def test_one_of_ten_sweepers_finds_it(registry, lose):
    ids = {lose(registry) for _ in range(3)}
    found = [registry.sweep().astray for _ in range(10)]
    assert set(found[0]) == ids
    assert found[1:] == [[]] * 9


@named
def test_it_is_found_again_if_nobody_has_come_for_it(registry, lose):
    generation_id = lose(registry)
    registry.sweep()
    rests(registry, generation_id, LOOK_AGAIN_S)
    lose_doorbells(registry)  # who was rung for died
    registry.raw.zincrby(keys.RUNG, -(LOOK_AGAIN_S * 1e3 - 1000), generation_id)
    assert registry.sweep() == NOTHING
    registry.raw.zincrby(keys.RUNG, -1100, generation_id)
    assert registry.sweep() == Found([generation_id], [])


@named
def test_what_was_claimed_again_is_not_astray(registry, lose):
    generation_id = lose(registry)
    registry.sweep()
    assert registry.claim(generation_id, "worker-2").attempt >= 1
    registry.raw.delete(keys.RUNG)
    assert registry.sweep() == NOTHING


@named
def test_what_is_rung_for_is_the_next_to_be_taken(registry, lose):
    generation_id = lose(registry)
    if lose is not without_a_list:
        for _ in range(3):
            registry.submit()
    registry.sweep()
    registry.submit()
    assert registry.doorbells()[0] == generation_id


def test_what_is_rung_for_together_is_taken_in_its_order(registry):
    ids = [left_by_a_dead_worker(registry) for _ in range(3)]
    for generation_id, lease_end in zip(ids, (3, 1, 2), strict=True):
        registry.raw.zadd(keys.LEASES, {generation_id: lease_end + registry.now_ms - 10})
    registry.submit()
    assert registry.sweep().astray == ids
    assert registry.doorbells()[:3] == ids


def test_what_is_looked_after_is_left_alone(registry):
    registry.running()
    registry.submit(deadline_s=100)
    delayed = registry.running()
    registry.release(flush(delayed, 1), delay_s=5.0)
    assert registry.sweep() == NOTHING


def test_a_queue_that_nobody_serves_yet_is_left_alone(registry):
    for _ in range(3):
        rests(registry, registry.submit(), MINUTE_S)
    assert registry.sweep() == NOTHING


def test_a_doorbell_on_its_way_to_a_claim_is_left_alone(registry):
    generation_id = registry.submit()
    lose_doorbells(registry)  # popped this instant
    assert registry.sweep() == NOTHING
    rests(registry, generation_id, 1.0)
    assert registry.sweep().astray == [generation_id]


def test_a_younger_one_that_overtook_it_by_a_moment_is_no_sign_of_loss(registry):
    generation_id = registry.submit()
    rests(registry, generation_id, MINUTE_S)
    overtaker = registry.submit()
    rests(registry, overtaker, MINUTE_S - 0.5)
    registry.claim(overtaker)
    assert registry.sweep() == NOTHING


def test_one_of_many_submitted_together_is_found_though_none_is_much_younger(registry):
    """Their doorbells keep the list full for long; it is looked for a second time before it is rung for."""
    lost = registry.submit()
    pop(registry, lost)
    rests(registry, lost, MINUTE_S)
    for younger_s in (0.2, 0.4):
        rests(registry, registry.submit(), MINUTE_S - younger_s)
    overtaker = registry.submit()
    pop(registry, overtaker)
    rests(registry, overtaker, MINUTE_S - 0.1)
    registry.claim(overtaker)
    assert registry.sweep() == NOTHING
    registry.raw.zincrby(keys.RUNG, -100, lost)
    assert registry.sweep() == NOTHING
    registry.raw.zincrby(keys.RUNG, -1000, lost)
    assert registry.sweep() == Found([lost], [])


def test_one_that_was_passed_over_and_whose_doorbell_is_still_there_is_not_rung_for(registry):
    generation_id = registry.submit()
    rests(registry, generation_id, MINUTE_S)
    registry.running()  # younger: it came another way
    assert registry.sweep() == NOTHING


def test_a_claim_of_one_priority_says_nothing_of_another(registry):
    for priority in (0, 9):
        rests(registry, registry.submit(priority=priority), MINUTE_S)
    registry.running(priority=5)
    assert registry.sweep() == NOTHING


@pytest.mark.parametrize("priority", [0, 9])
def test_each_priority_is_looked_through(registry, priority):
    generation_id = registry.submit(priority=priority)
    rests(registry, generation_id, MINUTE_S)
    lose_doorbells(registry)
    registry.running(priority=priority)
    assert registry.sweep().astray == [generation_id]


def test_lost_doorbells_are_looked_for_in_ones_own_queues_and_leases_everywhere(registry):
    lost_doorbell, lost_lease = without_a_list(registry), left_by_a_dead_worker(registry)
    lose_doorbells(registry)
    assert registry.sweep("other").astray == [lost_lease]
    assert registry.sweep("other", "default").astray == [lost_doorbell]


def test_what_was_given_back_this_instant_is_no_lost_doorbell(registry):
    """It has its old place again, before what was claimed meanwhile; but its doorbell has just been rung."""
    generation_id = registry.running()
    registry.running()
    registry.release(flush(generation_id, 1))
    rests(registry, generation_id, MINUTE_S)
    assert registry.sweep() == NOTHING


# --- deadlines -------------------------------------------------------------------------------


def expires(registry, generation_id, *, late=True):
    """Have its deadline be a second ago; the set of deadlines has it only while nobody runs it (``late``)."""
    registry.raw.hset(keys.generation(generation_id), "deadline_at", f"{registry.now_ms / 1e3 - 1:.6f}")
    if late:
        registry.raw.zadd(keys.DEADLINES, {generation_id: registry.now_ms - 1000})


def waited(generation_id):
    return Overdue(generation_id, "default", 0, None, [])


def end_of(registry, generation_id):
    """The error that whoever asks for its result is given."""
    flow = flows.result(generation_id)
    answer = None
    with pytest.raises(GenerationExpiredError) as ended:
        while True:
            answer = registry.run(flow.send(answer))
    return ended.value


def test_a_deadline_that_passes_in_the_queue_is_found_by_one_sweeper(registry):
    generation_id = registry.submit(deadline_s=100)
    expires(registry, generation_id)
    assert [registry.sweep() for _ in range(10)] == [Found([], [waited(generation_id)]), *[NOTHING] * 9]
    assert registry.finish(registry.expired(generation_id)) == "ok"
    assert registry.raw.zscore(keys.DEADLINES, generation_id) is None


def test_a_deadline_that_a_dying_sweeper_took_is_found_again(registry):
    generation_id = registry.submit(deadline_s=100)
    expires(registry, generation_id)
    registry.sweep()
    registry.raw.zincrby(keys.DEADLINES, -(LOOK_AGAIN_S * 1e3 - 1000), generation_id)
    assert registry.sweep() == NOTHING
    registry.raw.zincrby(keys.DEADLINES, -1100, generation_id)
    assert registry.sweep() == Found([], [waited(generation_id)])


@pytest.mark.parametrize("delay_s", [0.0, 60.0])
def test_a_deadline_that_passes_after_it_was_given_back_is_found(registry, delay_s):
    generation_id = registry.running(deadline_s=100)
    registry.release(flush(generation_id, 1, ["a"]), delay_s=delay_s, failure="cut")
    expires(registry, generation_id)
    errors = [{"attempt": 1, "message": "cut"}]
    assert registry.sweep() == Found([], [Overdue(generation_id, "default", 1, None, errors)])


@pytest.mark.parametrize("ends", ["sweeper", "claim"])
def test_a_deadline_that_passes_after_its_server_could_not_be_reached_says_so(registry, ends):
    generation_id = registry.running(deadline_s=100)
    registry.release(flush(generation_id, 1), failure="cut")
    assert registry.claim(generation_id).met == [{"attempt": 1, "message": "cut"}]
    unreached = {"attempt": 2, "message": "no server can be reached"}
    release = attempts.release(
        flush(generation_id, 1, attempt=2),
        "default",
        5,
        delay_s=0,
        failure=None,
        is_charged=False,
        keep_s=KEEP_S,
        met=unreached,
    )
    assert registry.run(release) == "ok"
    met = [{"attempt": 1, "message": "cut"}, unreached]
    expires(registry, generation_id)
    if ends == "claim":
        assert registry.claim(generation_id) == NotClaimed("expired", met=met)
        return
    (found,) = registry.sweep().expired
    assert found.met == met
    assert registry.finish(endings.overdue(found, date_done=DONE)) == "ok"
    error = end_of(registry, generation_id)
    assert str(error) == "the deadline passed in the queue; last error: no server can be reached"
    assert error.detail["errors"] == met


def test_what_was_met_before_the_last_error_is_not_the_last(registry):
    generation_id = registry.running(deadline_s=100)
    release = attempts.release(
        flush(generation_id, 1),
        "default",
        5,
        delay_s=0,
        failure=None,
        is_charged=False,
        keep_s=KEEP_S,
        met={"attempt": 1, "message": "no server can be reached"},
    )
    assert registry.run(release) == "ok"
    assert registry.claim(generation_id).errors == []
    registry.release(flush(generation_id, 1, attempt=2), failure="cut")
    assert registry.claim(generation_id).met == [{"attempt": 2, "message": "cut"}]


def test_a_deadline_that_passes_just_after_it_was_rung_again_is_found_at_once(registry):
    generation_id = registry.submit(deadline_s=100)
    rests(registry, generation_id, MINUTE_S)
    lose_doorbells(registry)
    assert registry.sweep() == Found([generation_id], [])
    expires(registry, generation_id)
    assert registry.sweep() == Found([], [waited(generation_id)])


def test_what_runs_meanwhile_does_not_expire_in_the_queue(registry):
    generation_id = registry.submit(deadline_s=100)
    expires(registry, generation_id)
    assert registry.sweep().expired == [waited(generation_id)]
    registry.raw.hset(keys.generation(generation_id), "deadline_at", f"{registry.now_ms / 1e3 + 100:.6f}")
    registry.claim(generation_id)
    assert registry.finish(registry.expired(generation_id)) == "superseded"


def test_what_a_dead_worker_left_past_its_deadline_is_ended_whoever_sweeps(registry):
    """Nobody may serve its generator any more."""
    generation_id = registry.running(deadline_s=100)
    registry.append(flush(generation_id, 1, ["a", "b"], mark="first"))
    registry.lose_lease(generation_id)
    expires(registry, generation_id, late=False)
    assert registry.sweep("other") == Found([], [Overdue(generation_id, "default", 1, "worker-1", [])])
    assert registry.doorbells() == [generation_id]  # its first, that nobody popped: none was added
    assert registry.finish(registry.expired(generation_id, 1, "worker-1")) == "ok"
    assert registry.events(generation_id)[-1] == "4.1 failed"
    error = end_of(registry, generation_id)
    assert (error.partial_text, error.usage["completion_tokens"], error.attempts) == ("ab", 2, 1)
    assert error.detail["errors"] == [{"attempt": 1, "message": "the lease of worker-1 ran out"}]
    assert (error.detail["finish_reason"], error.detail["timings"]["decode_s"]) == ("deadline", pytest.approx(0, abs=9))
    assert registry.sweep("other") == NOTHING


def test_a_deadline_that_passes_after_its_worker_was_lost_is_found(registry):
    generation_id = registry.running(deadline_s=100)
    registry.lose_lease(generation_id)
    assert registry.sweep("other").astray == [generation_id]
    expires(registry, generation_id)
    assert registry.sweep("other") == Found([], [Overdue(generation_id, "default", 1, "worker-1", [])])


def test_where_a_deadline_passed_in_the_queue_the_phases_are_said(registry):
    generation_id = registry.submit(deadline_s=100)
    registry.raw.hset(keys.generation(generation_id), "submitted_at", f"{registry.now_ms / 1e3 - 100:.6f}")
    expires(registry, generation_id)
    registry.sweep()
    registry.finish(registry.expired(generation_id))
    timings = end_of(registry, generation_id).detail["timings"]
    assert timings.pop("total_s") == pytest.approx(100, abs=9)
    assert timings == {"queue_wait_s": None, "waking_s": None, "first_text_s": None, "decode_s": None}


# --- what it costs, and what it forgets ------------------------------------------------------


@pytest.mark.parametrize("place", [keys.LEASES, keys.DELAYED, keys.DEADLINES])
def test_what_is_gone_is_forgotten(registry, place):
    registry.raw.zadd(place, {"gone": registry.now_ms - 1})
    assert registry.sweep() == NOTHING
    assert registry.raw.exists(place) == 0


def test_rings_for_what_is_gone_are_forgotten(registry):
    old, young = registry.now_ms - (KEEP_S + 1) * 1e3, registry.now_ms - (KEEP_S - 60) * 1e3
    registry.raw.zadd(keys.RUNG, {"old": old, "young": young})
    registry.sweep()
    assert registry.raw.zrange(keys.RUNG, 0, -1) == [b"young"]


def test_what_waited_for_longer_than_its_keys_live_takes_no_room(registry):
    generation_id = registry.submit(priority=3, max_queue_depth=1)
    rests(registry, generation_id, KEEP_S + 1)
    registry.raw.delete(keys.generation(generation_id))  # as its time to live does
    assert registry.sweep() == NOTHING
    assert registry.submit(max_queue_depth=1)


@pytest.mark.parametrize("delay_s", [0.0, 5.0])
def test_what_was_given_back_long_after_its_submit_waits_on_and_is_found(registry, delay_s):
    generation_id = began(registry)
    registry.raw.hincrbyfloat(keys.generation(generation_id), "submitted_at", -(KEEP_S + 1))
    registry.release(flush(generation_id, 1), delay_s=delay_s)
    if delay_s:
        registry.raw.zadd(keys.DELAYED, {generation_id: registry.now_ms - 1})
    lose_doorbells(registry)
    registry.raw.delete(keys.RUNG)  # it was rung for when it was given back
    found = registry.sweep()
    assert found.astray == [generation_id]
    assert registry.claim(generation_id).attempt == 2


def test_what_is_gone_takes_no_room_behind_any_number_that_wait(registry):
    """Pages follow one another by Redis's clock, so it may take a few turns."""
    waiting, old_s = keys.waiting("default"), registry.now_ms / 1e3 - KEEP_S - 3600
    waits = [f"waits {number}" for number in range(600)]
    for generation_id in waits:
        registry.raw.hset(keys.generation(generation_id), "state", "queued")
        registry.raw.expire(keys.generation(generation_id), KEEP_S)
    oldest = place(registry, registry.submit()) - (registry.now_ms / 1e3 - old_s) * 1e5
    registry.raw.zadd(waiting, {generation_id: oldest + number for number, generation_id in enumerate(waits)})
    registry.raw.zadd(waiting, {f"gone {number}": oldest + 1000 + number for number in range(1200)})
    deadline_s = time.monotonic() + 30
    while registry.raw.zcard(waiting) > 601 and time.monotonic() < deadline_s:
        registry.raw.hdel(keys.SWEPT, "queue default")  # as if its turn had come
        registry.sweep()
        time.sleep(0.05)
    assert registry.raw.zcard(waiting) == 601
    assert all(registry.raw.zscore(waiting, generation_id) for generation_id in waits)


@only_real_redis
def test_a_sweep_costs_the_same_however_many_wait(registry):
    def commands():
        registry.sweep()  # so that no turn of the clock is due, however long the submits took
        registry.raw.config_resetstat()
        assert registry.sweep() == NOTHING
        stats = registry.raw.info("commandstats")
        # A TTL is renewed when a second of it has passed.
        return {name: each["calls"] for name, each in stats.items() if name != "cmdstat_expire" and "reset" not in name}

    registry.running()
    for _ in range(10):
        registry.submit(deadline_s=100)
    few = commands()
    for _ in range(990):
        registry.submit(deadline_s=100)
    assert commands() == few


@only_real_redis
def test_a_queue_that_one_has_just_looked_through_costs_the_others_next_to_nothing(registry):
    """A thousand workers sweep a thousand times a second."""
    names = [f"generator-{number}" for number in range(10)]
    registry.sweep(*names)
    registry.raw.config_resetstat()
    assert registry.run(sweeping.sweep(names, lease_s=LEASE_S, keep_s=KEEP_S)).found == NOTHING
    stats = registry.raw.info("commandstats")
    assert sum(each["calls"] for name, each in stats.items() if "evalsha" not in name) < 20 + 3 * len(names)


def test_sweepers_take_turns_by_queue(registry):
    """Each serves other generators: a queue that nobody has looked through is not passed over for another's sake."""
    lost = without_a_list(registry)
    registry.sweep("other")
    assert registry.run(sweeping.sweep(["default"], lease_s=LEASE_S, keep_s=KEEP_S)).found == Found([lost], [])


def test_a_queue_is_looked_through_again_soon(registry):
    registry.sweep()
    lost = without_a_list(registry)

    def found(after_s):
        registry.raw.hset(keys.SWEPT, "queue default", registry.now_ms / 1e3 - after_s)
        return registry.run(sweeping.sweep(["default"], lease_s=LEASE_S, keep_s=KEEP_S)).found

    assert found(LEASE_S / 12 - 1.0) == NOTHING
    assert found(LEASE_S / 12) == Found([lost], [])


def test_a_turn_that_a_clock_gone_back_has_left_in_the_future_is_nobodys(registry):
    registry.sweep()
    registry.raw.hset(keys.SWEPT, "queue default", registry.now_ms / 1e3 + MINUTE_S)
    lost = without_a_list(registry)
    assert registry.run(sweeping.sweep(["default"], lease_s=LEASE_S, keep_s=KEEP_S)).found == Found([lost], [])


@only_real_redis
def test_a_sweep_that_finds_something_is_one_command_too(registry):
    for lose in ASTRAY:
        lose(registry)
    registry.raw.config_resetstat()
    assert len(registry.sweep().astray) == len(ASTRAY)
    stats = registry.raw.info("commandstats")
    assert sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")) == 1


# --- what it finds however much cannot be claimed ---------------------------------------------


def many(registry, count, **fields):
    return [registry.submit(**fields) for _ in range(count)]


def swept(registry, *generators, rounds):
    """What that many sweeps ring for, each with time enough behind it for another look."""
    found = []
    for _ in range(rounds):
        found += registry.sweep(*generators).astray
        for generation_id in registry.raw.zrange(keys.RUNG, 0, -1):
            registry.raw.zincrby(keys.RUNG, -LOOK_AGAIN_S * 1e3, generation_id)
    return found


def lost_lease(registry, ids, ago_ms):
    for generation_id in ids:
        registry.raw.zadd(keys.LEASES, {generation_id: registry.now_ms - ago_ms})


@pytest.mark.parametrize("unclaimable", ["leases", "delays", "gone"])
def test_nothing_hides_behind_what_nobody_can_claim(writer, unclaimable):
    registry = writer
    first = many(registry, WINDOW, generator="nobody-serves")
    if unclaimable == "gone":
        registry.raw.zadd(keys.LEASES, {f"gone-{number}": registry.now_ms - MINUTE_S * 1e3 for number in range(WINDOW)})
    else:
        for generation_id in first:
            registry.claim(generation_id, generator="nobody-serves")
        if unclaimable == "leases":
            lost_lease(registry, first, MINUTE_S * 1e3)
        else:
            for generation_id in first:
                registry.release(flush(generation_id, 1), delay_s=5.0)
            due_ms = registry.now_ms - MINUTE_S * 1e3
            registry.raw.zadd(keys.DELAYED, dict.fromkeys(first, due_ms))
    last = left_by_a_dead_worker(registry)
    if unclaimable == "delays":
        registry.release(flush(last, 1), delay_s=5.0)
        registry.raw.zadd(keys.DELAYED, {last: registry.now_ms - 1})
    assert last in swept(registry, rounds=3)


def test_no_deadline_hides_behind_others(writer):
    registry = writer
    ids = many(registry, 250, deadline_s=100)
    for generation_id in ids:
        expires(registry, generation_id)
    found = [overdue.generation_id for _ in range(3) for overdue in registry.sweep().expired]
    assert sorted(found) == sorted(ids)


def test_a_waiting_one_is_found_behind_any_number_whose_doorbells_nobody_pops(writer):
    """A list was deleted: those at its front are rung for first, and as they are claimed the others."""
    registry = writer
    ids = many(registry, WINDOW + 3)
    for generation_id in ids:
        rests(registry, generation_id, MINUTE_S)
    lose_doorbells(registry)
    assert swept(registry, rounds=3) == ids[:WINDOW]
    assert registry.doorbells() == ids[:WINDOW]
    for generation_id in ids[:WINDOW]:
        registry.claim(generation_id)
    lose_doorbells(registry)  # popped
    assert registry.sweep().astray == ids[WINDOW:]


# --- how often it rings -----------------------------------------------------------------------


def handed_over(registry):
    """Its worker left; it is queued again, and has been rung for."""
    generation_id = began(registry)
    registry.release(flush(generation_id, 1))
    registry.raw.zincrby(keys.RUNG, -LOOK_AGAIN_S * 1e3, generation_id)
    rests(registry, generation_id, MINUTE_S)
    return generation_id


any_cause = pytest.mark.parametrize("lose", [*ASTRAY, handed_over], ids=lambda lose: lose.__name__)


@any_cause
@pytest.mark.parametrize("crowd", [0, 3])
def test_a_doorbell_that_nobody_pops_is_not_rung_again(registry, lose, crowd):
    """No worker has room, or nobody serves that queue."""
    generation_id = lose(registry)
    many(registry, crowd)
    began(registry)  # younger
    swept(registry, rounds=20)
    assert registry.doorbells().count(generation_id) == 1
    assert registry.raw.llen(keys.doorbell("default", 5)) == 1 + crowd


@any_cause
@pytest.mark.parametrize("crowd", [0, 3])
def test_a_doorbell_that_is_popped_and_lost_again_and_again_is_rung_each_time(registry, lose, crowd):
    generation_id = lose(registry)
    rests(registry, generation_id, MINUTE_S)
    many(registry, crowd)
    began(registry)  # younger
    for _ in range(5):
        swept(registry, rounds=2)
        assert registry.doorbells()[0] == generation_id
        pop(registry, generation_id)  # its worker died before the claim


def test_one_priority_that_never_empties_does_not_hide_what_another_lost(registry):
    generation_id = registry.submit(priority=5)
    rests(registry, generation_id, MINUTE_S)
    lose_doorbells(registry)
    many(registry, 3, priority=0)
    many(registry, 3, priority=9)
    assert registry.sweep().astray == [generation_id]


def test_the_doorbell_of_an_odd_id_is_known_again(registry):
    """A plain Celery producer may choose any."""
    for generation_id in ('"quoted"', "a/b", "100%", "{id}", "Ωmega"):
        registry.submit(generation_id)
        registry.claim(generation_id)
        registry.lose_lease(generation_id)
    lose_doorbells(registry)
    swept(registry, rounds=3)
    assert sorted(registry.doorbells()) == sorted(['"quoted"', "a/b", "100%", "{id}", "Ωmega"])


# --- a holder that comes back -----------------------------------------------------------------


def test_a_holder_that_comes_back_before_anybody_came_for_it_keeps_it(registry):
    generation_id = registry.running(deadline_s=100)
    registry.lose_lease(generation_id)
    assert registry.sweep().astray == [generation_id]
    assert registry.run(attempts.renew([(generation_id, 1)], lease_s=LEASE_S, keep_s=KEEP_S)) == {}
    assert registry.claim(generation_id, "worker-2").reason == "held"
    for place in (keys.waiting("default"), keys.RUNG, keys.DEADLINES):
        assert registry.raw.zscore(place, generation_id) is None
    assert registry.sweep() == NOTHING


def test_what_its_holder_ends_after_it_was_given_up_is_rung_for_no_more(registry):
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    registry.sweep()
    assert registry.finish(registry.finished(generation_id)) == "ok"
    lose_doorbells(registry)
    assert swept(registry, rounds=3) == []
    assert registry.raw.zcard(keys.waiting("default")) == 0


# --- what every sweeper is told -----------------------------------------------------------------


def test_every_sweeper_is_told_how_many_wait_and_how_long_the_oldest_has(registry):
    generators = ["default", "other", "idle"]
    for priority, waited_s in ((0, 1.0), (3, 7.0), (3, 2.0), (9, 30.0), (9, 20.0)):
        rests(registry, registry.submit(priority=priority), waited_s)
    registry.submit(generator="other")
    began(registry)
    for _ in range(2):
        swept = registry.run(sweeping.sweep(generators, lease_s=LEASE_S, keep_s=KEEP_S))
        assert {name: queue.depth for name, queue in swept.queues.items()} == {"default": 5, "other": 1, "idle": 0}
        assert {name: queue.messages for name, queue in swept.queues.items()} == {"default": 5, "other": 1, "idle": 0}
        assert 30.0 <= swept.queues["default"].oldest_s < 40.0
        assert 0.0 <= swept.queues["other"].oldest_s < 10.0
        assert swept.queues["idle"].oldest_s == 0.0
        assert swept.dead_letters == 0


def test_every_sweeper_is_told_of_messages_that_are_no_generations_yet(registry):
    registry.submit(priority=3)
    registry.raw.lpush(keys.doorbell("default", 0), *[b"of a plain Celery producer"] * 4)
    for _ in range(2):
        swept = registry.run(sweeping.sweep(["default"], lease_s=LEASE_S, keep_s=KEEP_S))
        assert (swept.queues["default"].depth, swept.queues["default"].messages) == (1, 5)


def test_what_a_sweep_puts_back_is_counted_by_it_and_dead_letters_are_too(registry):
    registry.sweep()
    left_by_a_dead_worker(registry)
    registry.raw.zadd(keys.DEAD, {"one": registry.now_ms, "two": registry.now_ms})
    registry.raw.expire(keys.DEAD, KEEP_S)
    swept = registry.run(sweeping.sweep(["default"], lease_s=LEASE_S, keep_s=KEEP_S))
    assert (len(swept.found.astray), swept.queues["default"].depth, swept.dead_letters) == (1, 1, 2)


@pytest.mark.parametrize("where", [keys.LEASES, keys.DELAYED, keys.DEADLINES])
@pytest.mark.parametrize(
    "forged",
    [
        pytest.param("no hash at all", id="no-hash"),
        pytest.param({"state": "running"}, id="a-state-only"),
        pytest.param({"state": "queued", "generator": "default", "priority": "x", "attempt": "x"}, id="no-numbers"),
        pytest.param(
            {"state": "running", "generator": "default", "priority": "5", "submitted_at": "nan", "attempt": "1"},
            id="not-a-number",
        ),
        pytest.param(
            {"state": "running", "generator": "default", "priority": "1e300", "submitted_at": "1", "attempt": "1"},
            id="a-priority-beyond-all",
        ),
        pytest.param(
            {"state": "queued", "generator": "default", "priority": "5", "attempt": "0", "errors": "{}, 5, ["},
            id="errors-that-are-none",
        ),
    ],
)
def test_what_a_stranger_wrote_keeps_no_sweep_from_its_work(registry, where, forged):
    key = keys.generation("forged")
    registry.raw.set(key, forged) if isinstance(forged, str) else registry.raw.hset(key, mapping=forged)
    registry.raw.expire(key, KEEP_S)
    registry.raw.zadd(where, {"forged": 1})
    registry.raw.expire(where, KEEP_S)
    lost, late = left_by_a_dead_worker(registry), registry.submit(deadline_s=60.0)
    registry.raw.zadd(keys.DEADLINES, {late: registry.now_ms - 1})
    found = registry.sweep()
    assert lost in found.astray
    assert late in [overdue.generation_id for overdue in found.expired]
    assert registry.sweep().astray == []


@pytest.mark.parametrize("place", ["inf", "-inf", "1e300", "-1", str(9 * 3e14 + 4e9 * 1e5)])
def test_a_place_that_is_nobodys_keeps_no_sweep_from_its_end(registry, place):
    """One loop per priority: of a place that no priority has it must not look for the next for ever."""
    waiting = registry.submit()
    registry.raw.zadd(keys.waiting("default"), {"forged": place})
    lost = left_by_a_dead_worker(registry)
    assert registry.sweep().astray == [lost]
    registry.sweep()
    assert registry.raw.zscore(keys.waiting("default"), waiting) is not None
