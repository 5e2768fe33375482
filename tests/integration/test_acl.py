"""What the users of ``ops/redis/users.acl`` are refused.

That they are refused nothing they need is shown by every other test of this folder: its producers, workers and
Flowers are these users, and ``guarded_redis`` fails where Redis has refused one of them anything.
"""

import re

import pytest
import redis

from .roles import as_role, guarded_redis, refusals

RECORD = "genqueue:generation:id"
EVERYBODY = [
    ("FLUSHALL",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "genqueue-producer", "+@all"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("MONITOR",),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LIST"),
    ("SAVE",),
    ("SHUTDOWN",),
    ("REPLICAOF", "NO", "ONE"),
    ("RENAME", RECORD, "other"),
    ("GET", "somebody-elses"),
    ("SET", "somebody-elses", "1"),
    ("PUBLISH", "somebody-elses", "1"),
    ("EVAL", "return redis.call('GET', 'somebody-elses')", "0"),
    ("EVAL", "return redis.call('FLUSHALL')", "0"),
]
REFUSED = {
    "producer": [
        *EVERYBODY,
        # the work of others
        ("BRPOP", "generate.default", "1"),
        ("RPOP", "generate.default"),
        ("LRANGE", "generate.default", "0", "-1"),
        ("DEL", "generate.default"),
        ("EVAL", "return redis.call('RPOP', KEYS[1])", "1", "generate.default"),
        # what only a worker knows
        ("HSET", "genqueue:generators", "default", "{}"),
        ("EVAL", "return redis.call('HSET', KEYS[1], 'default', '{}')", "1", "genqueue:generators"),
        ("HSET", "genqueue:workers", "other", "{}"),
        ("DEL", "genqueue:waiting:default"),
        # orders to workers
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("PUBLISH", "/0.celeryev/task.sent", "{}"),
        ("PSUBSCRIBE", "*"),
        ("SUBSCRIBE", "/0.celeryev/task.#"),
    ],
    "worker": [
        *EVERYBODY,
        ("GET", "genqueue:idempotency:key"),
        ("DEL", "genqueue:waiting:default"),
        ("DEL", "generate.default"),
        ("PSUBSCRIBE", "*"),
    ],
    "flower": [
        *EVERYBODY,
        # prompts and replies
        ("HGETALL", RECORD),
        ("HGET", RECORD, "request"),
        ("GET", f"{RECORD}:text"),
        ("XRANGE", f"{RECORD}:log", "-", "+"),
        ("GET", "celery-task-meta-id"),
        ("SUBSCRIBE", f"{RECORD}:live"),
        ("EVAL", "return redis.call('HGETALL', KEYS[1])", "1", RECORD),
        # work
        ("LPUSH", "generate.default", "{}"),
        ("RPOP", "generate.default"),
        ("PUBLISH", "genqueue:worker:one", "id"),
    ],
}


@pytest.fixture(scope="module")
def guarded(real_redis, tmp_path_factory):
    with guarded_redis(tmp_path_factory.mktemp("acl")) as server:
        if as_role(server.url, "worker") == server.url:
            pytest.skip(f"these rules need Redis 7, here is {server.kind}")
        yield server
        with redis.Redis.from_url(server.url) as operator:
            operator.acl_log_reset()


@pytest.mark.parametrize(
    ("role", "command"),
    [pytest.param(role, command, id=f"{role}-{' '.join(command)}") for role in REFUSED for command in REFUSED[role]],
)
def test_a_role_is_refused(guarded, role, command):
    with redis.Redis.from_url(guarded.url) as operator:
        operator.acl_log_reset()
        operator.rpush("generate.default", "work")
        with redis.Redis.from_url(as_role(guarded.url, role)) as client, pytest.raises(redis.ResponseError) as refused:
            client.execute_command(*command)
        assert re.search("permission|user executing the script can't", str(refused.value))
        (entry,) = refusals(operator)
        assert entry.startswith(f"genqueue-{role} ")
        assert operator.lrange("generate.default", 0, -1)[0] == b"work"


def test_nobody_comes_in_without_a_password(guarded):
    for role in REFUSED:
        wrong = as_role(guarded.url, role).replace("canary-", "wrong-")
        with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    with redis.Redis.from_url(guarded.url) as operator:
        operator.acl_log_reset()
