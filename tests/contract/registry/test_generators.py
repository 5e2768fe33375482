"""``announce``: which generators there are, for as long as somebody serves them."""

import json

import pytest

from genqueue import keys
from genqueue.registry import fleet

from ...support.redis_servers import only_real_redis
from ...support.registry import KEEP_S

WORKER_S = 30.0
UP = {"address": "http://a", "health": "up", "running": 2, "trouble": ""}


def announce(registry, keep_s=KEEP_S, **limits):
    facts = {name: {"api_type": "inference_endpoints", "max_queue_depth": limit} for name, limit in limits.items()}
    registry.run(fleet.announce(facts, "host:1:a", {name: [UP] for name in limits}, worker_s=WORKER_S, keep_s=keep_s))


def known_generators(registry):
    return {name.decode(): json.loads(fact) for name, fact in registry.raw.hgetall(keys.GENERATORS).items()}


def test_what_workers_serve_is_known_to_producers(registry):
    announce(registry, chat=10_000, code=0)
    announce(registry, vision=3)
    known = known_generators(registry)
    assert {name: fact["max_queue_depth"] for name, fact in known.items()} == {"chat": 10_000, "code": 0, "vision": 3}
    assert known["chat"]["announced_at"] == pytest.approx(registry.now_ms / 1e3, abs=5)
    assert registry.raw.ttl(keys.GENERATORS) == pytest.approx(KEEP_S, abs=2)


def test_the_last_announcement_of_a_generator_stands(registry):
    announce(registry, chat=1)
    announce(registry, chat=2)
    assert known_generators(registry)["chat"]["max_queue_depth"] == 2


def test_a_generator_that_nobody_announced_for_long_is_forgotten(registry):
    announce(registry, old=1, recent=1)
    for name, age_s in (("old", KEEP_S + 1), ("recent", KEEP_S - 10)):
        fact = {"max_queue_depth": 1, "announced_at": registry.now_ms / 1e3 - age_s}
        registry.raw.hset(keys.GENERATORS, name, json.dumps(fact))
    announce(registry, new=1)
    assert set(known_generators(registry)) == {"recent", "new"}


def test_workers_are_known_with_their_servers_until_they_are_silent_or_say_goodbye(registry):
    announce(registry, chat=1)
    registry.run(fleet.announce({}, "host:2:b", {"chat": [UP, UP]}, worker_s=WORKER_S, keep_s=KEEP_S))
    first, second = registry.run(fleet.read_workers())
    assert (first.name, first.generators) == ("host:1:a", {"chat": [UP]})
    assert (second.name, second.generators) == ("host:2:b", {"chat": [UP, UP]})
    assert second.announced_at == pytest.approx(registry.now_ms / 1e3, abs=5)
    assert registry.raw.ttl(keys.WORKERS) == pytest.approx(WORKER_S, abs=2)

    long_ago = {"announced_at": registry.now_ms / 1e3 - WORKER_S - 1, "generators": {}}
    registry.raw.hset(keys.WORKERS, "host:1:a", json.dumps(long_ago))
    registry.run(fleet.announce({}, "host:2:b", {"chat": [UP]}, worker_s=WORKER_S, keep_s=KEEP_S))
    assert [worker.name for worker in registry.run(fleet.read_workers())] == ["host:2:b"]
    registry.run(fleet.retire("host:2:b"))
    assert registry.run(fleet.read_workers()) == []


def announce_places(registry, **places):
    registry.run(fleet.announce({}, "host:1:a", {}, worker_s=WORKER_S, keep_s=KEEP_S, places=places))


def test_the_places_of_one_generator_add_up_over_its_workers(registry):
    announce_places(registry, chat=["one", "both"], code=["one"])
    announce_places(registry, chat=["two", "both"])
    assert registry.run(fleet.known_places()) == {"chat": {"one", "two", "both"}, "code": {"one"}}
    assert registry.raw.ttl(keys.PLACES) == pytest.approx(KEEP_S, abs=2)


def called_before(registry, **ages_s):
    """As if workers had called places ("chat_old": of chat the place old) so long ago."""
    now_s = registry.now_ms / 1e3
    registry.raw.hset(keys.PLACES, mapping={name.replace("_", " "): now_s - age_s for name, age_s in ages_s.items()})


def test_while_nobody_serves_a_generator_its_places_stay_as_long_as_itself(registry):
    called_before(registry, chat_old=KEEP_S + 1, chat_here=KEEP_S - 10)
    announce_places(registry, code=["there"])
    assert registry.run(fleet.known_places()) == {"chat": {"here"}, "code": {"there"}}


def test_a_place_that_its_generator_left_is_forgotten_after_an_hour(registry):
    called_before(registry, chat_old=3700, chat_recent=3500)
    announce_places(registry, chat=["new"])
    assert registry.run(fleet.known_places()) == {"chat": {"recent", "new"}}


def test_a_place_whose_generator_has_another_name_now_is_forgotten_soon(registry):
    called_before(registry, chat_here=WORKER_S + 1, chat_there=WORKER_S + 1, code_here=WORKER_S - 10)
    announce_places(registry, talk=["here"])
    # Who called it as "code" a moment ago may still run.
    assert registry.run(fleet.known_places()) == {"chat": {"there"}, "code": {"here"}, "talk": {"here"}}


def worker(registry, name):
    registry.run(fleet.announce({}, name, {"chat": [UP]}, worker_s=WORKER_S, keep_s=KEEP_S))


def test_of_many_workers_those_that_are_silent_are_forgotten(registry):
    long_ago = json.dumps({"announced_at": registry.now_ms / 1e3 - WORKER_S - 1, "generators": {}})
    registry.raw.hset(keys.WORKERS, mapping={f"silent-{number}": long_ago for number in range(50)})
    for number in range(50):
        worker(registry, f"lives-{number}")
    rounds = 0
    while len(registry.raw.hkeys(keys.WORKERS)) > 50:
        worker(registry, f"lives-{rounds % 50}")
        rounds += 1
        assert rounds < 2000
    assert all(name.startswith(b"lives-") for name in registry.raw.hkeys(keys.WORKERS))


@only_real_redis
def test_announcing_costs_the_same_however_many_workers_there_are(registry):
    def answer_us():
        registry.raw.config_resetstat()
        for _ in range(50):
            worker(registry, "one")
        return registry.raw.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]

    worker(registry, "one")
    alone_us = answer_us()
    for number in range(2000):
        worker(registry, f"other-{number}")
    assert answer_us() < 10 * alone_us
