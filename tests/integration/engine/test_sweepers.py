"""Ten sweepers beside 100,000 waiting generations: what they ask of Redis, how often they ring, what they end."""

import json
import time
import uuid
from collections import Counter

import pytest
import redis

from genqueue import Settings, keys
from genqueue.registry import attempts, submitting
from genqueue.registry import script as registry_script
from genqueue.wire.request import read_request
from genqueue_worker.engine.leases import LeaseKeeper
from genqueue_worker.observe.metrics import Metrics

WAITING, LOST, SWEEPERS = 100_000, 500, 10
WATCHED_S = 6.0
OVERDUE = 3000
OVERDUE_ENDED_WITHIN_S = 10.0
"""At 100 in each round, as it once was, it would take half a minute."""
ROUNDS_A_S = 1.0  # lease_s / 3


@pytest.fixture
def db(real_redis):
    with redis.Redis.from_url(real_redis.url) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def sweepers(real_redis):
    """Started by the test; they hold nothing."""
    generator = {"api_type": "text_generation_inference", "api_params": {"url": "http://127.0.0.1:1"}}
    settings = Settings(redis_url=real_redis.url, generators={"default": generator})
    metrics = Metrics(settings.generators)
    keepers = [LeaseKeeper(settings, f"sweeper-{n}", list, lambda *_: None, dict, metrics) for n in range(SWEEPERS)]
    yield keepers
    for keeper in keepers:
        keeper.stop()


def submitted(db, count, deadline_s=3600.0):
    """Through the registry's own script, many in one round trip."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    request = read_request({"prompt": "What's NLP?", "deadline_s": deadline_s})
    options = {"keep_s": 3600, "idempotency_key": None, "idempotency_ttl_s": 60, "max_queue_depth": -1}
    script = registry_script.script("submit")
    db.script_load(script.source)
    with db.pipeline(transaction=False) as pipeline:
        for generation_id in ids:
            pipeline.evalsha(script.sha1, *submitting.submit(generation_id, request, **options).arguments)
        pipeline.execute()
    return ids


def left_by_a_dead_worker(db, ids):
    script = registry_script.script("claim")
    db.script_load(script.source)
    for one in ids:
        call = attempts.claim(one, "default", owner="dead", lease_s=0.001, keep_s=3600)
        assert db.evalsha(script.sha1, *call.arguments)[0] == b"claimed"
    db.delete(keys.doorbell("default", 5))  # it popped them all


def rings(db):
    return Counter(json.loads(entry)["headers"]["id"] for entry in db.lrange(keys.doorbell("default", 5), 0, -1))


@pytest.mark.timeout(240)
def test_they_cost_next_to_nothing_and_ring_once_for_each_of_500_lost(db, sweepers, eventually):
    lost = submitted(db, LOST)
    left_by_a_dead_worker(db, lost)
    waiting = [one for _ in range(WAITING // 10_000) for one in submitted(db, 10_000)]
    for sweeper in sweepers:
        sweeper.start()
    eventually(lambda: db.llen(keys.doorbell("default", 5)) == WAITING + LOST, within_s=30)
    began_s = time.monotonic()
    db.config_resetstat()
    time.sleep(WATCHED_S)  # what they do in that time is what is counted
    stats, passed_s = db.info("commandstats"), time.monotonic() - began_s
    scripts = stats["cmdstat_evalsha"]["calls"]
    inner = sum(each["calls"] for name, each in stats.items() if name not in ("cmdstat_evalsha", "cmdstat_info"))
    found = rings(db)
    assert [found[one] for one in lost] == [1] * LOST
    assert [found[one] for one in waiting] == [1] * WAITING
    rounds = SWEEPERS * (passed_s * ROUNDS_A_S + 1)
    assert SWEEPERS <= scripts <= 1.2 * rounds  # an announcement every 10 s
    assert inner / scripts < 100


@pytest.fixture
def alone(real_redis, db):
    """One sweeper that holds a generation."""
    generator = {"api_type": "text_generation_inference", "api_params": {"url": "http://127.0.0.1:1"}}
    settings = Settings(redis_url=real_redis.url, generators={"default": generator})
    (held,) = submitted(db, 1)
    left_by_a_dead_worker(db, [held])
    db.hset(keys.generation(held), "owner", "alone")
    keeper = LeaseKeeper(settings, "alone", lambda: [(held, 1)], lambda *_: None, dict, Metrics(settings.generators))
    yield keeper, held
    keeper.stop()


def test_thousands_of_deadlines_in_one_second_are_told_within_seconds_and_leases_do_not_wait(db, alone, eventually):
    keeper, held = alone
    ids = submitted(db, OVERDUE, deadline_s=0.5)
    lowest_ms = float("inf")

    def all_are_told():
        nonlocal lowest_ms
        seconds, microseconds = db.time()
        if (lease_ms := db.zscore(keys.LEASES, held)) is not None:
            lowest_ms = min(lowest_ms, lease_ms - seconds * 1e3 - microseconds / 1e3)
        return db.zcard(keys.DEADLINES) == 0

    keeper.start()
    eventually(lambda: (db.zscore(keys.LEASES, held) or 0) > (db.time()[0] + 1) * 1e3)
    eventually(all_are_told, within_s=OVERDUE_ENDED_WITHIN_S)
    assert lowest_ms > 0
    for one in ids:
        outcome = json.loads(db.hget(keys.generation(one), "outcome"))
        assert (outcome["error"], db.exists(keys.result(one))) == ("expired", 1)
    assert db.zcard(keys.waiting("default")) == 0


@pytest.mark.parametrize("refused", [keys.SWEPT, keys.PLACES, keys.RUNG])
def test_what_redis_refuses_of_its_duties_stops_none_of_the_others(db, alone, eventually, caplog, refused):
    caplog.set_level("INFO")
    keeper, held = alone
    db.delete(refused)
    db.set(refused, "of another type", ex=60)
    duty = {keys.SWEPT: "looked for", keys.PLACES: "announced", keys.RUNG: "looked for"}[refused]
    submitted_id, *_ = submitted(db, 1, deadline_s=0.2) if refused == keys.PLACES else [None]
    keeper.start()
    eventually(lambda: f"cannot be {duty}" in caplog.text)
    eventually(lambda: (db.zscore(keys.LEASES, held) or 0) > (db.time()[0] + 1) * 1e3)
    eventually(lambda: db.hexists(keys.WORKERS, "alone"))
    if submitted_id is not None:
        eventually(lambda: db.hget(keys.generation(submitted_id), "state") == b"failed")
    assert "leases cannot be renewed" not in caplog.text
    eventually(lambda: keeper.redis_trouble.startswith("Redis refused"))
    db.delete(refused)
    eventually(lambda: not keeper.redis_trouble)
    eventually(lambda: f"{duty} again" in caplog.text)
