"""What ``genqueue doctor`` makes of what was gathered."""

import dataclasses

import pytest

from genqueue.acl import PermissionCheck
from genqueue.doctor import judge
from genqueue.doctor.facts import EndpointSeen, Facts, FileSeen
from genqueue.registry.fleet import Overview, QueueStatus, WorkerStatus
from genqueue.settings import Settings

QUEUE = QueueStatus("chat", 0, 100, None, 0, 0, 0, 1, "text_generation_inference")
SERVER = {"address": "http://a", "health": "up", "running": 2, "trouble": ""}
WORKER = WorkerStatus("host:1:a", 990.0, {"chat": [SERVER]})
OVERVIEW = Overview(1000.0, [QUEUE], [WORKER], 0, 0, 0, 0, 0, {})
INFO = {"maxmemory_policy": "noeviction", "used_memory": "10", "maxmemory": "100", "aof_enabled": "1"}
HELLO = {"server": "redis", "version": "7.0.15", "mode": "standalone", "role": "master"}
WELL = Facts(HELLO, INFO, "", (), 0.01, 0.001, OVERVIEW)


def judged(**changed):
    settings = Settings(redis_url="redis://127.0.0.1/0", generators=changed.pop("generators", {}))
    return judge.judge(settings, changed.pop("role", "producer"), dataclasses.replace(WELL, **changed), "someone")


def trouble(**changed):
    return [(one.level, one.what) for one in judged(**changed) if one.level != "ok"]


def overview(queue=None, **changed):
    if queue is not None:
        changed["queues"] = [dataclasses.replace(QUEUE, **queue)]
    return {"overview": dataclasses.replace(OVERVIEW, **changed)}


def server(*healths):
    servers = [{**SERVER, "address": f"http://{number}", "health": health} for number, health in enumerate(healths)]
    return overview(workers=[WorkerStatus("w", 990.0, {"chat": servers})])


def endpoint(**seen):
    return {"endpoints": [EndpointSeen("chat", "http://a/path", **seen)]}


def test_an_old_redis_is_told_what_is_needed():
    found = next(one for one in judged(hello={**HELLO, "version": "6.0.16"}) if one.what == "version")
    assert (found.seen, found.do) == ("redis 6.0.16", "use Redis 6.2 or newer, or Valkey")


def test_where_all_is_well_nothing_is_to_be_done():
    assert trouble() == []
    assert [one.do for one in judged()] == [""] * len(judged())
    assert not judge.has_failed(judged())


def test_lines_that_an_older_redis_logs_because_of_us_are_named():
    (found,) = [one for one in judged(noted=["INFO", "CONFIG GET save"]) if one.what == "ACL log"]
    assert (found.level, found.do) == ("ok", "")
    assert "'someone' for INFO, CONFIG GET save" in found.seen


OWN = FileSeen(
    path="genqueue.toml",
    mode=0o100600,
    owner=1000,
    group_is_owners=True,
    folder_mode=0o40755,
    folder_owner=1000,
    folder_group_is_owners=True,
    is_read_only=False,
    holds_secrets=True,
    us=1000,
)
WRITE, READ, REPLACE = "others may write", "others may read", "others may put another"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, [], id="its-user's-alone"),
        pytest.param({"owner": 0, "folder_owner": 0}, [], id="root's"),
        pytest.param({"mode": 0o100664, "holds_secrets": False}, [], id="in-a-group-of-its-user's-own"),
        pytest.param({"mode": 0o100664, "holds_secrets": False, "group_is_owners": False}, [WRITE], id="its-group"),
        pytest.param({"mode": 0o100666, "holds_secrets": False}, [WRITE], id="everybody-writes"),
        pytest.param({"mode": 0o100602, "holds_secrets": True}, [WRITE], id="everybody-writes-and-may-not-read"),
        pytest.param({"mode": 0o100644}, [READ], id="everybody-reads-secrets"),
        pytest.param({"mode": 0o100640, "group_is_owners": False}, [READ], id="a-group-reads-secrets"),
        pytest.param({"mode": 0o100640}, [], id="its-own-group-reads-secrets"),
        pytest.param({"mode": 0o100644, "holds_secrets": False}, [], id="everybody-reads-what-is-no-secret"),
        pytest.param({"mode": 0o100666}, [WRITE, READ], id="both"),
        pytest.param({"folder_mode": 0o40777}, [REPLACE], id="folder-of-all"),
        pytest.param({"folder_mode": 0o41777}, [], id="folder-of-all-where-each-keeps-their-own"),
        pytest.param({"folder_mode": 0o40775, "folder_group_is_owners": False}, [REPLACE], id="folder-of-a-group"),
        pytest.param({"folder_owner": 5}, [REPLACE], id="folder-of-another"),
        pytest.param({"owner": 5}, ["belongs to user 5"], id="another's"),
        pytest.param(
            {"mode": 0o100666, "folder_mode": 0o40777, "is_read_only": True, "holds_secrets": False},
            [],
            id="mounted-read-only",
        ),
    ],
)
def test_who_can_change_or_read_the_settings_file(changed, expected):
    found = judge.judge_file(dataclasses.replace(OWN, **changed))
    assert [one.level for one in found] == ["warn"] * len(expected)
    for one, words in zip(found, expected, strict=True):
        assert one.seen.startswith(words)
        assert one.do


GENERATOR = {"api_type": "text_generation_inference", "api_params": {"url": "http://a"}, "max_queue_depth": 100}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"hello": {**HELLO, "version": "6.0.16"}}, [("fail", "version")], id="old"),
        pytest.param({"hello": {**HELLO, "version": "6.2.0"}}, [], id="just-new-enough"),
        pytest.param({"hello": None}, [("fail", "version")], id="no-hello"),
        pytest.param(
            {"hello": None, "info": {**INFO, "redis_version": "5.0.14"}}, [("fail", "version")], id="very-old"
        ),
        pytest.param({"hello": None, "info": {**INFO, "redis_version": "7.0.15"}}, [], id="hello-renamed"),
        pytest.param({"hello": {**HELLO, "version": "10.0.1"}}, [], id="two-figures"),
        pytest.param({"hello": {**HELLO, "mode": "cluster"}}, [("fail", "mode")], id="cluster"),
        pytest.param({"hello": {**HELLO, "role": "replica"}}, [("fail", "role")], id="replica"),
        pytest.param({"info": None}, [("warn", "eviction, memory, persistence")], id="hidden"),
        pytest.param({"info": {**INFO, "maxmemory_policy": "allkeys-lru"}}, [("fail", "eviction")], id="evicts"),
        pytest.param({"info": {**INFO, "maxmemory": "0"}}, [("warn", "memory")], id="no-limit"),
        pytest.param({"info": {**INFO, "used_memory": "80"}}, [("warn", "memory")], id="nearly-full"),
        pytest.param({"info": {**INFO, "used_memory": "100"}}, [("fail", "memory")], id="full"),
        pytest.param({"info": {**INFO, "aof_enabled": "0"}}, [("fail", "persistence")], id="forgets"),
        pytest.param({"info": {**INFO, "aof_enabled": "0"}, "save": "60 1"}, [("warn", "persistence")], id="snapshots"),
        pytest.param(
            {"info": {**INFO, "aof_enabled": "0"}, "save": None},
            [("warn", "persistence (appendonly no; snapshots?)")],
            id="snapshots-hidden",
        ),
        pytest.param(
            {"info": {**INFO, "aof_last_write_status": "err"}}, [("fail", "append-only file")], id="disk-full"
        ),
        pytest.param({"refused": None}, [("fail", "rights of a producer")], id="no-multi"),
        pytest.param({"clock_ahead_s": -1.5}, [("warn", "clock")], id="clock-behind"),
        pytest.param({"clock_ahead_s": None}, [], id="clock-hidden"),
        pytest.param({"clock_ahead_s": 1.5, "clock_bound_s": 0.6}, [], id="clock-perhaps"),
        pytest.param({"missing_tokens": {"chat": ("HF_TOKEN",)}}, [("fail", "token of 'chat'")], id="no-token"),
        pytest.param(endpoint(trouble="refused"), [("fail", "endpoint http://a/path of 'chat'")], id="unreachable"),
        pytest.param(endpoint(status=200), [], id="well"),
        pytest.param(endpoint(is_asked=False), [], id="not-asked"),
        pytest.param(endpoint(is_behind_proxy=True), [("warn", "endpoint http://a/path of 'chat'")], id="proxy"),
        pytest.param(endpoint(), [("fail", "endpoint http://a/path of 'chat'")], id="no-http"),
        pytest.param(endpoint(status=307), [("fail", "endpoint http://a/path of 'chat'")], id="redirect"),
        pytest.param(endpoint(status=401), [("warn", "endpoint http://a/path of 'chat'")], id="wants-a-token"),
        pytest.param(endpoint(status=404), [("warn", "endpoint http://a/path of 'chat'")], id="no-health"),
        pytest.param(endpoint(status=503), [("fail", "endpoint http://a/path of 'chat'")], id="unhealthy"),
        pytest.param({"overview": None, "overview_error": "x"}, [("fail", "queues and workers")], id="no-overview"),
        pytest.param({"overview": None, "role": "flower"}, [], id="flower-needs-none"),
        pytest.param(overview({"waiting": 1, "workers": 0, "doorbells": 1}), [("fail", "queue 'chat'")], id="unserved"),
        pytest.param(overview({"waiting": 1, "oldest_wait_s": 31.0}), [("fail", "queue 'chat'")], id="lost-doorbell"),
        pytest.param(overview({"waiting": 1, "oldest_wait_s": 29.0}), [], id="rung-soon"),
        pytest.param(overview({"waiting": 80, "doorbells": 80}), [("warn", "queue 'chat'")], id="nearly-at-limit"),
        pytest.param(overview({"waiting": 100, "doorbells": 100}), [("fail", "queue 'chat'")], id="at-limit"),
        pytest.param(overview({"waiting": 100, "doorbells": 9, "max_queue_depth": -1}), [], id="no-depth-limit"),
        pytest.param(overview(running_overdue=1), [("fail", "running")], id="abandoned"),
        pytest.param(overview(delayed_overdue=1), [("fail", "delayed")], id="not-taken-up"),
        pytest.param(overview(dead=2), [("warn", "dead letters")], id="dead-letters"),
        pytest.param(overview(unreadable={"k": "WRONGTYPE"}), [("fail", "key 'k'")], id="wrong-type"),
        pytest.param(overview(workers=[]), [("fail", "workers")], id="no-worker"),
        pytest.param(server("up", "down"), [("warn", "endpoint http://1 of 'chat'")], id="one-down"),
        pytest.param(server("down"), [("fail", "endpoint http://0 of 'chat'")], id="all-down"),
        pytest.param(server("refuses"), [("fail", "endpoint http://0 of 'chat'")], id="refuses"),
        pytest.param(server("rests"), [("warn", "endpoint http://0 of 'chat'")], id="rests"),
        pytest.param({"generators": {"chat": GENERATOR}}, [], id="settings-agree"),
        pytest.param(
            {"generators": {"chat": {**GENERATOR, "max_queue_depth": 7}}},
            [("warn", "generator 'chat'")],
            id="settings-differ",
        ),
    ],
)
def test_each_trouble_is_one_finding_that_says_what_to_do(changed, expected):
    assert trouble(**changed) == expected
    found = judged(**changed)
    assert all(one.do for one in found if one.level != "ok")
    assert judge.has_failed(found) == any(level == "fail" for level, _ in expected)


KEYS = [
    PermissionCheck(("EVALSHA", "0", "1", "genqueue:x"), "evalsha", "~genqueue:*"),
    PermissionCheck(("EVALSHA", "0", "1", "generate.x"), "evalsha", "~generate.*"),
]
CHANNELS = [
    PermissionCheck(("PUBLISH", "a", ""), "publish", "&a"),
    PermissionCheck(("PUBLISH", "b", ""), "publish", "&b"),
]
ALONE = [PermissionCheck(("CONFIG", "GET", "save"), "config|get")]
SEVEN = "(ops/redis/users.acl has all of them)"
SIX = "(ops/redis/users.acl needs Redis 7)"


@pytest.mark.parametrize(
    ("version", "refused", "seen", "rule"),
    [
        pytest.param(
            "7.0.0",
            KEYS,
            "EVALSHA on genqueue:* generate.*",
            f"'(+evalsha ~genqueue:* ~generate.*)' {SEVEN}",
            id="keys",
        ),
        pytest.param("7.2.4", CHANNELS, "PUBLISH on a b", f"'+publish' '&a' '&b' {SEVEN}", id="channels"),
        pytest.param("8.0.1", ALONE, "CONFIG GET", f"'+config|get' {SEVEN}", id="alone"),
        pytest.param(
            "6.2.14",
            KEYS,
            "EVALSHA on genqueue:* generate.*",
            "'+evalsha' '~genqueue:*' '~generate.*' (all else that someone may say then reaches these keys too; "
            "ops/redis/users.acl needs Redis 7, which tells them apart)",
            id="keys-before-selectors",
        ),
        pytest.param("6.2.14", CHANNELS, "PUBLISH on a b", f"'+publish' '&a' '&b' {SIX}", id="channels-before"),
        pytest.param("6.2.14", ALONE, "CONFIG GET", f"'+config|get' {SIX}", id="alone-before"),
    ],
)
def test_each_command_that_was_refused_is_one_finding_with_the_rule_that_grants_it(version, refused, seen, rule):
    (found,) = [one for one in judged(refused=refused, hello={**HELLO, "version": version}) if one.level != "ok"]
    assert found.seen == f"someone may not say {seen}"
    assert found.do == f"ACL SETUSER someone {rule}"
