"""What the users of ``ops/redis/users.acl`` are refused, and what they could do with a password that got out.

Both are what ``SECURITY.md`` says: a line that changes here changes there.  That they are refused nothing
they need is shown by the other tests of this folder: their producers, workers and Flowers are these users
wherever the Redis is ``guarded_redis``, which fails where it has refused one of them anything.
"""

import re
import threading

import pytest
import redis

from ..support.roles import as_role, guarded_redis, refusals

RECORD = "genqueue:generation:id"
SETTINGS_AND_OTHERS_KEYS = [
    ("FLUSHALL",),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "genqueue-producer", "+@all"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("MONITOR",),
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
EVERYBODY = [*SETTINGS_AND_OTHERS_KEYS, ("INFO",), ("CONFIG", "GET", "*"), ("CLIENT", "LIST"), ("ACL", "LOG")]
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
        ("ZADD", "genqueue:leases", "1", "id"),
        ("ZADD", "genqueue:dead", "1", "id"),
        ("HSET", "genqueue:claimed:default", "5", "1"),
        # orders to workers
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("PUBLISH", "/0.celeryev/task.sent", "{}"),
        ("PSUBSCRIBE", "*"),
        ("SUBSCRIBE", "/0.celeryev/task.#"),
        ("LPUSH", "x.reply.celery.pidbox", "{}"),
        ("SADD", "_kombu.binding.celery.pidbox", "x"),
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
        # and where plain Celery producers leave theirs
        ("LRANGE", "generate.default", "0", "-1"),
        ("SADD", "_kombu.binding.generate.default", "x"),
    ],
    "operator": [
        *SETTINGS_AND_OTHERS_KEYS,
        ("LPUSH", "generate.default", "{}"),
        ("HSET", RECORD, "state", "finished"),
        ("ZREM", "genqueue:waiting:default", "id"),
        ("XRANGE", f"{RECORD}:log", "-", "+"),
        ("GET", f"{RECORD}:text"),
        ("GET", "celery-task-meta-id"),
        ("SET", "celery-task-meta-id", "{}"),
        ("PUBLISH", f"{RECORD}:live", "[]"),
        ("SUBSCRIBE", f"{RECORD}:live"),
        ("EVAL", "return redis.call('HSET', KEYS[1], 'state', 'finished')", "1", RECORD),
    ],
}
# What SECURITY.md says that each could do.  No wish list: what is refused one day is struck from there.
ALLOWED = {
    "producer": [
        # list what waits, runs and has failed
        ("ZRANGEBYSCORE", "genqueue:waiting:default", "-inf", "+inf"),
        ("ZRANGE", "genqueue:leases", "0", "-1"),
        ("ZREVRANGE", "genqueue:dead", "0", "-1"),
        # read prompts, texts and results
        ("HGET", RECORD, "request"),
        ("GET", f"{RECORD}:text"),
        ("XRANGE", f"{RECORD}:log", "-", "+"),
        ("GET", "celery-task-meta-id"),
        ("SUBSCRIBE", f"{RECORD}:live"),
        # forge them
        ("HSET", RECORD, "state", "finished", "request", "{}"),
        ("XADD", f"{RECORD}:log", "*", "e", "{}"),
        ("PUBLISH", f"{RECORD}:live", "[]"),
        ("SET", "celery-task-meta-id", "{}"),
        ("SET", "genqueue:idempotency:key", "other print"),
        # end or forget them
        ("PUBLISH", "genqueue:worker:one", "id"),
        ("ZREM", "genqueue:waiting:default", "id"),
        ("EXPIRE", RECORD, "0"),
        ("DEL", "celery-task-meta-id"),
        # have plain Celery messages go elsewhere too
        ("SADD", "_kombu.binding.generate.default", "\x06\x16\x06\x16generate.other"),
        # fill Redis, past every bound, for ever
        ("LPUSH", "generate.default", "no message"),
        ("ZADD", "genqueue:waiting:default", "1", "no-generation"),
        ("HSET", "genqueue:generation:new", "field", "without an end"),
        ("EVAL", "for n = 1, 1e4 do redis.call('HSET', KEYS[1], n, n) end", "1", RECORD),
    ],
    "worker": [
        # all of a producer's, and
        ("BRPOP", "generate.default", "1"),
        ("LRANGE", "generate.default", "0", "-1"),
        ("HGET", RECORD, "request"),
        ("GET", f"{RECORD}:text"),
        ("SET", "celery-task-meta-id", "{}"),
        ("DEL", RECORD),
        ("HSET", "genqueue:generators", "other", "{}"),
        ("HSET", "genqueue:workers", "other", "{}"),
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("PSUBSCRIBE", "genqueue:*"),
    ],
    "flower": [
        # order workers, and lead orders and events elsewhere
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("LPUSH", "x.celery.pidbox", "{}"),
        ("BRPOP", "x.celery.pidbox", "1"),
        ("DEL", "_kombu.binding.celery.pidbox"),
        # hear and forge events
        ("SUBSCRIBE", "/0.celeryev/task.#"),
        ("PUBLISH", "/0.celeryev/task.sent", "{}"),
        ("LLEN", "generate.default"),
        ("EVAL", "return 1", "0"),
    ],
    "operator": [
        ("INFO",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LOG", "RESET"),
        ("CLIENT", "LIST"),
        ("SLOWLOG", "GET"),
        ("ZRANGEBYSCORE", "genqueue:waiting:default", "-inf", "+inf"),
        ("ZRANGE", "genqueue:leases", "0", "-1"),
        ("HGET", RECORD, "request"),
        ("EVAL", "return redis.call('HGET', KEYS[1], 'request')", "1", RECORD),
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


@pytest.mark.parametrize(
    ("role", "command"),
    [pytest.param(role, command, id=f"{role}-{' '.join(command)}") for role in ALLOWED for command in ALLOWED[role]],
)
def test_a_password_that_got_out_is_worth(guarded, role, command):
    with redis.Redis.from_url(guarded.url) as operator:
        operator.acl_log_reset()
        operator.rpush("generate.default", "work")
        operator.rpush("x.celery.pidbox", "an answer")
        operator.hset(RECORD, "request", "a prompt")
        with redis.Redis.from_url(as_role(guarded.url, role), protocol=2) as client:
            client.execute_command(*command)
        assert refusals(operator) == []
        operator.flushdb()


def test_a_database_of_ones_own_keeps_nobody_out(guarded):
    with redis.Redis.from_url(guarded.url, db=3) as operator:
        operator.hset(RECORD, "request", "a prompt")
        with redis.Redis.from_url(as_role(guarded.url, "producer"), db=3) as client:
            assert client.hget(RECORD, "request") == b"a prompt"
        operator.flushdb()


def test_a_function_that_an_operator_loads_has_no_more_rights_than_who_calls_it(guarded):
    """So no library of functions could keep a producer to submit, read by id and cancel."""
    library = "#!lua name=ours\nredis.register_function('read', function(keys) return redis.call('GET', keys[1]) end)"
    with redis.Redis.from_url(guarded.url) as operator:
        operator.function_load(library)
        operator.acl_setuser("caller", enabled=True, nopass=True, commands=["+fcall"], keys=["*"])
        operator.set("secret", "1")
        assert operator.fcall("read", 1, "secret") == b"1"
        with (
            redis.Redis.from_url(guarded.url.replace("://", "://caller:x@")) as client,
            pytest.raises(redis.ResponseError, match="can't run this command"),
        ):
            client.fcall("read", 1, "secret")
        operator.acl_deluser("caller")
        operator.function_flush()
        operator.flushdb()
        operator.acl_log_reset()


@pytest.mark.parametrize("role", ["producer", "worker", "flower"])
def test_a_script_that_does_not_end_stops_redis_until_the_operator_ends_it(guarded, role, eventually):
    with redis.Redis.from_url(guarded.url) as default:
        default.config_set("busy-reply-threshold", 50)

    def stop_redis():
        with redis.Redis.from_url(as_role(guarded.url, role)) as client, pytest.raises(redis.ResponseError):
            client.eval("while true do end", 0)

    stopper = threading.Thread(target=stop_redis)
    stopper.start()
    with redis.Redis.from_url(as_role(guarded.url, "operator")) as operator:

        def is_ended():
            try:
                return operator.script_kill()
            except redis.exceptions.ResponseError as error:
                assert "NOTBUSY" in str(error)

        eventually(is_ended)
        stopper.join(10)
        assert operator.ping()


def test_nobody_comes_in_without_a_password(guarded):
    for role in REFUSED:
        wrong = as_role(guarded.url, role).replace("canary-", "wrong-")
        with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    with redis.Redis.from_url(guarded.url) as operator:
        operator.acl_log_reset()
