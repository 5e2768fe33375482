"""``announce``: which generators there are, for as long as somebody serves them."""

import json

import pytest

from genqueue import calls, keys

from .conftest import KEEP_S


def announce(registry, keep_s=KEEP_S, **limits):
    facts = {name: {"api_type": "inference_endpoints", "max_queue_depth": limit} for name, limit in limits.items()}
    registry.run(calls.announce(facts, keep_s=keep_s))


def test_what_workers_serve_is_known_to_producers(registry):
    announce(registry, chat=10_000, code=0)
    announce(registry, vision=3)
    known = registry.run(calls.known_generators())
    assert {name: fact["max_queue_depth"] for name, fact in known.items()} == {"chat": 10_000, "code": 0, "vision": 3}
    assert known["chat"]["announced_at"] == pytest.approx(registry.now_ms / 1e3, abs=5)
    assert registry.raw.ttl(keys.GENERATORS) == pytest.approx(KEEP_S, abs=2)


def test_the_last_announcement_of_a_generator_stands(registry):
    announce(registry, chat=1)
    announce(registry, chat=2)
    assert registry.run(calls.known_generators())["chat"]["max_queue_depth"] == 2


def test_a_generator_that_nobody_announced_for_long_is_forgotten(registry):
    announce(registry, old=1, recent=1)
    for name, age_s in (("old", KEEP_S + 1), ("recent", KEEP_S - 10)):
        fact = {"max_queue_depth": 1, "announced_at": registry.now_ms / 1e3 - age_s}
        registry.raw.hset(keys.GENERATORS, name, json.dumps(fact))
    announce(registry, new=1)
    assert set(registry.run(calls.known_generators())) == {"recent", "new"}


def test_nothing_announced_is_nothing_known(registry):
    assert registry.run(calls.known_generators()) == {}


def test_the_places_of_one_generator_add_up_over_its_workers(registry):
    for places in (["one", "both"], ["two", "both"]):
        registry.run(calls.announce({"chat": {"max_queue_depth": 1, "places": places}}, keep_s=KEEP_S))
    assert set(registry.run(calls.known_generators())["chat"]["places"]) == {"one", "two", "both"}


def test_a_place_that_no_worker_announced_for_an_hour_is_forgotten(registry):
    now_s = registry.now_ms / 1e3
    fact = {"max_queue_depth": 1, "announced_at": now_s, "places": {"old": now_s - 3700, "recent": now_s - 3500}}
    registry.raw.hset(keys.GENERATORS, "chat", json.dumps(fact))
    registry.run(calls.announce({"chat": {"max_queue_depth": 1, "places": ["new"]}}, keep_s=KEEP_S))
    assert set(registry.run(calls.known_generators())["chat"]["places"]) == {"recent", "new"}
