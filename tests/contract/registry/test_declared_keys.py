"""A script touches the keys and channels that it declares, by name or as a pattern, and no others.

On a real Redis every test of this suite runs its scripts so (``run`` and ``writer`` in ``conftest.py``).
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

import pytest

from genqueue.errors import StoreError
from genqueue.registry import attempts, dead_letters, fleet, reading, sweeping
from genqueue.registry.declaring import Channel, Key, Prefix, Signature
from genqueue.registry.script import Call, script_of

from ...support.redis_servers import only_real_redis
from ...support.registry import KEEP_S, RESULT_TTL_S, flush

SCRIPTS = {
    file.name.removesuffix(".lua")
    for file in (files("genqueue.registry") / "lua").iterdir()
    if file.name != "common.lua"
}


@dataclass(kw_only=True, slots=True)
class Small(Signature):
    """One key, one prefix of keys, a channel and a prefix of channels."""

    own: Annotated[str, Key("small:own*")]
    prefix: Annotated[str, Prefix(Key)] = "small:of:"
    told: Annotated[str, Channel("small:told")]
    heard_prefix: Annotated[str, Prefix(Channel)] = "small:heard:"


def small(body, own="small:own"):
    """A call of a script with that body."""
    script = script_of("small", Small, body)
    return Call(script.layout.words(Small(own=own, told="small:told")), lambda answer: answer, script)


@only_real_redis
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("return redis.call('SET', own, 1, 'EX', 60)", id="its-key"),
        pytest.param("return redis.call('SET', prefix .. 'x', 1, 'EX', 60)", id="a-key-of-its-prefix"),
        pytest.param("return redis.call('PUBLISH', told, 1)", id="its-channel"),
        pytest.param("return redis.call('PUBLISH', heard_prefix .. 'x', 1)", id="a-channel-of-its-prefix"),
    ],
)
def test_what_is_declared_may_be_touched(registry, body):
    registry.run(small(body))


@only_real_redis
@pytest.mark.parametrize(
    ("body", "refused"),
    [
        pytest.param("return redis.call('GET', own .. ':x')", "key small:own:x", id="beside-its-key"),
        pytest.param("return redis.call('GET', 'small:o')", "key small:o", id="another-key"),
        pytest.param("return redis.call('DEL', own, 'other')", "key other", id="one-of-two"),
        pytest.param("return redis.call('PUBLISH', 'other', 1)", "channel other", id="a-channel"),
    ],
)
def test_what_is_not_declared_is_refused(registry, declared_keys, body, refused):
    with pytest.raises(StoreError):
        registry.run(small(body))
    assert declared_keys.refused() == [refused]
    declared_keys.forgive()


@only_real_redis
def test_a_script_that_does_without_what_it_is_refused_is_found_too(registry, declared_keys):
    assert registry.run(small("redis.pcall('GET', 'other') return 'ok'")) == b"ok"
    assert declared_keys.refused() == ["key other"]
    declared_keys.forgive()


@only_real_redis
def test_a_key_is_permitted_to_the_letter(registry, declared_keys):
    registry.run(small("return redis.call('SET', own, 1, 'EX', 60)", own="small:own [*]"))
    with pytest.raises(StoreError):
        registry.run(small("return redis.call('GET', 'small:own of another')", own="small:own*"))
    assert declared_keys.refused() == ["key small:own of another"]
    declared_keys.forgive()


@only_real_redis
def test_every_script_is_among_those_that_run_so(registry, declared_keys):
    facts, places = {"default": {"max_queue_depth": 10}}, {"default": ["here"]}
    registry.run(fleet.announce(facts, "worker-1", {}, worker_s=30, keep_s=KEEP_S, places=places))
    runs = registry.running(idempotency_key="key", deadline_s=500)
    assert registry.append(flush(runs, 1, ["a"], mark="first")) == ["ok"]
    registry.run(attempts.renew([(runs, 1)], lease_s=30.0, keep_s=KEEP_S))
    assert registry.release(flush(runs, 2, ["b"])) == "ok"
    registry.claim(runs)
    assert registry.finish(registry.failed(runs, attempt=2)) == "ok"
    options = {"max_queue_depth": None, "keep_s": KEEP_S, "result_ttl_s": RESULT_TTL_S}
    registry.run(dead_letters.retry(runs, "again", "default", 5, **options))
    registry.run(dead_letters.drop(runs, result_ttl_s=RESULT_TTL_S))
    assert registry.finish(registry.cancelled("again")) == "ok"
    registry.run(sweeping.discard("default", owner="worker-1", told=[], keep_s=KEEP_S))
    registry.sweep()
    registry.run(fleet.overview(["default"]))
    assert len(registry.run(reading.read_records([runs, "again"]))) == 2
    assert declared_keys.scripts == SCRIPTS
