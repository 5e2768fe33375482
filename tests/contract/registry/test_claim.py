"""``claim``: one worker gets the next attempt, everybody else a reason."""

import json
from dataclasses import replace

import pytest

from genqueue import keys
from genqueue.registry import reading
from genqueue.registry.attempts import Claim, NotClaimed
from genqueue.registry.lifecycle import FINAL
from genqueue.wire.events import Started

from ...support.registry import KEEP_S, LEASE_S, flush


def test_a_claim_is_the_next_attempt_with_a_lease_and_an_event(registry):
    generation_id = registry.submit(prompt="p", deadline_s=50)
    with registry.raw.pubsub() as heard:
        heard.subscribe(keys.live(generation_id))
        assert heard.get_message(timeout=30)["type"] == "subscribe"
        claim = registry.claim(generation_id, 'host "1":7:ab')
        published = heard.get_message(timeout=30)["data"]
    assert isinstance(claim, Claim)
    assert claim.attempt == 1
    assert json.loads(claim.request) == {"prompt": "p", "deadline_s": 50.0}
    assert claim.submitted_at <= claim.started_at
    assert claim.deadline_at == pytest.approx(claim.submitted_at + 50, abs=1e-5)
    assert (claim.text_so_far, claim.solid_tokens, claim.failures, claim.errors) == ("", 0, 0, [])
    started = Started(seq=1, attempt=1, at=claim.started_at, worker='host "1":7:ab')
    assert registry.run(reading.read_log(generation_id, 1)) == [started]
    assert json.loads(published) == [started.model_dump()]
    assert registry.raw.zscore(keys.LEASES, generation_id) == pytest.approx(
        claim.started_at * 1e3 + LEASE_S * 1e3, abs=1
    )
    assert registry.run(reading.queue_position(generation_id, "default")) is None
    assert registry.hash(generation_id)["state"] == "running"


def test_a_second_worker_is_refused_while_the_lease_lives(registry):
    generation_id = registry.running()
    stored = registry.everything()
    assert registry.claim(generation_id, "worker-2") == NotClaimed("held")
    assert registry.everything() == stored


def test_the_same_worker_asking_twice_gets_the_same_attempt_twice(registry):
    generation_id = registry.submit()
    first = registry.claim(generation_id)
    stored = registry.everything()
    second = registry.claim(generation_id)
    assert replace(second, answered_at=0.0) == replace(first, answered_at=0.0)
    assert first.started_at <= first.answered_at <= second.answered_at  # so both know how late they were told
    assert registry.everything() == stored


@pytest.mark.parametrize("owner", ["worker-1", "worker-2"])
def test_a_lease_that_ran_out_gives_the_next_attempt_with_the_text_so_far(registry, owner):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["It ", "is é"], mark="first"))
    registry.lose_lease(generation_id)
    claim = registry.claim(generation_id, owner)
    assert (claim.attempt, claim.text_so_far, claim.solid_tokens) == (2, "It is é", 2)
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk It", "3.1 chunk is é", "4.2 started"]
    assert registry.hash(generation_id)["owner"] == owner
    assert registry.append(flush(generation_id, 1, ["!"], attempt=2)) == ["ok"]


def test_a_running_generation_without_any_lease_can_be_claimed(registry):
    generation_id = registry.running()
    registry.raw.delete(keys.LEASES)
    assert registry.claim(generation_id, "worker-2").attempt == 2


def test_a_new_attempt_has_timings_of_its_own(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["a"], mark="first"))
    assert registry.run(reading.read_record(generation_id)).first_text_at is not None
    registry.lose_lease(generation_id)
    registry.claim(generation_id, "worker-2")
    assert registry.run(reading.read_record(generation_id)).first_text_at is None


def test_what_was_never_submitted_is_gone(registry):
    assert registry.claim("nobody's") == NotClaimed("gone")
    assert registry.everything() == {}


def test_a_message_in_the_wrong_queue_is_elsewhere(registry):
    generation_id = registry.submit()
    stored = registry.everything()
    assert registry.claim(generation_id, generator="other") == NotClaimed("elsewhere")
    assert registry.everything() == stored


@pytest.mark.parametrize("state", sorted(FINAL))
def test_what_has_ended_is_not_claimed(registry, state):
    generation_id = registry.into(state)
    stored = registry.everything()
    assert registry.claim(generation_id, "worker-2") == NotClaimed(state)
    assert registry.everything() == stored


def test_a_deadline_that_passed_in_the_queue_is_not_run(registry):
    generation_id = registry.submit(deadline_s=1e-6)
    stored = registry.everything()
    assert registry.claim(generation_id) == NotClaimed("expired")
    assert registry.everything() == stored


def test_a_deadline_that_passed_while_a_worker_holds_it_is_that_workers_business(registry):
    generation_id = registry.running(deadline_s=1000)
    registry.raw.hset(keys.generation(generation_id), "deadline_at", "1.0")
    assert registry.claim(generation_id, "worker-2") == NotClaimed("held")
    registry.lose_lease(generation_id)
    assert registry.claim(generation_id, "worker-2") == NotClaimed("expired")


def test_a_claim_renews_the_life_of_everything_the_generation_has(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["a"]))
    own = [keys.generation(generation_id), keys.log(generation_id), keys.text(generation_id), keys.LEASES]
    for key in own:
        registry.raw.expire(key, 30)
    registry.lose_lease(generation_id)
    registry.claim(generation_id, "worker-2")
    assert [registry.raw.ttl(key) for key in own] == [pytest.approx(KEEP_S, abs=2)] * 4


def test_one_of_many_claims_wins(registry):
    generation_id = registry.submit()
    answers = [registry.claim(generation_id, f"worker-{number}") for number in range(10)]
    assert [type(answer) for answer in answers] == [Claim] + [NotClaimed] * 9


def test_a_worker_that_died_costs_an_attempt_and_is_named(registry):
    generation_id = registry.submit()
    for number in range(1, 4):
        assert registry.claim(generation_id, f'host "{number}"').failures == number - 1
        registry.lose_lease(generation_id)
    claim = registry.claim(generation_id, "worker-4")
    assert (claim.attempt, claim.failures) == (4, 3)
    assert claim.errors == [
        {"attempt": number, "message": f'the lease of host "{number}" ran out'} for number in (1, 2, 3)
    ]
    again = registry.claim(generation_id, "worker-4")  # the answer to the first got lost
    assert replace(again, answered_at=claim.answered_at) == claim


def test_a_claim_marks_how_far_the_queue_was_served(registry):
    first, second = registry.submit(), registry.submit()
    registry.raw.zincrby(keys.waiting("default"), 1000, second)
    places = [registry.raw.zscore(keys.waiting("default"), each) for each in (first, second)]
    registry.claim(second)
    assert float(registry.raw.hget(keys.newest_claimed("default"), "5")) == places[1]
    registry.claim(first)  # an older one takes nothing back
    assert float(registry.raw.hget(keys.newest_claimed("default"), "5")) == places[1]
    assert registry.raw.ttl(keys.newest_claimed("default")) == pytest.approx(KEEP_S, abs=2)


def test_a_cancel_in_the_queue_is_news_to_the_first_who_comes(registry):
    generation_id = registry.submit()
    registry.finish(registry.cancelled(generation_id))
    assert registry.claim(generation_id) == NotClaimed("cancelled", is_untold=True)
    assert registry.claim(generation_id, "worker-2") == NotClaimed("cancelled")


def test_a_cancel_of_what_runs_is_no_news_to_who_comes_later(registry):
    generation_id = registry.running()
    registry.finish(registry.cancelled(generation_id))
    assert registry.claim(generation_id, "worker-2") == NotClaimed("cancelled")


def test_a_cancel_of_what_lost_its_worker_is_news_again(registry):
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    registry.sweep("default")
    registry.finish(registry.cancelled(generation_id))
    assert registry.claim(generation_id, "worker-2") == NotClaimed("cancelled", is_untold=True)


def test_a_text_key_that_somebody_made_something_else_of_stops_nobody(registry):
    generation_id = registry.submit()
    spoil = {"a": "b"}
    registry.raw.hset(keys.text(generation_id), mapping=spoil)
    claim = registry.claim(generation_id)
    assert isinstance(claim, Claim)
    assert claim.text_so_far == ""
    registry.raw.delete(keys.text(generation_id))
    registry.raw.hset(keys.text(generation_id), mapping=spoil)
    assert registry.append(flush(generation_id, 1, ["It"])) == ["ok"]
    assert registry.text(generation_id) == "It"
    registry.raw.delete(keys.text(generation_id))
    registry.raw.hset(keys.text(generation_id), mapping=spoil)
    assert registry.release(flush(generation_id, 2, [" is"])) == "ok"
    assert registry.text(generation_id) == " is"
