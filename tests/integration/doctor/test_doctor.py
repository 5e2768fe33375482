"""``genqueue doctor`` as a process, at Redis servers that lack something."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
import redis

from genqueue.acl import CELERYS, CHANNELS, COMMANDS, OURS, permission_checks
from genqueue.connection.store import Store
from genqueue_ops.local_redis import find_redis_server, free_port, local_redis
from genqueue_ops.processes import Child

from ...support.roles import as_role, guarded_redis, password, refusals
from ...support.workers import TOKENS


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with guarded_redis(tmp_path_factory.mktemp("doctor")) as server:
        if as_role(server.url, "worker") == server.url:
            pytest.skip(f"these rules need Redis 7, here is {server.kind}")
        yield server
        with redis.Redis.from_url(server.url) as operator:
            others = [one for one in refusals(operator) if not one.startswith("lame ")]
            operator.acl_log_reset()
        assert others == []


def run_doctor(url, *options, cwd, **changed):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GENQUEUE_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-m", "genqueue", "doctor", *options],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**kept, "GENQUEUE_REDIS_URL": url, **changed},
    )
    assert "Traceback" not in done.stderr
    return done


def levels(done):
    return {one["what"]: one["level"] for one in json.loads(done.stdout)["findings"]}


@pytest.mark.parametrize("role", ["producer", "worker", "flower"])
def test_each_role_has_the_rights_it_needs_and_what_it_may_not_see_is_no_failure(guarded, role, tmp_path):
    with redis.Redis.from_url(guarded.url) as operator:
        before = operator.dbsize()
        done = run_doctor(as_role(guarded.url, role), "--role", role, "--json", cwd=tmp_path)
        assert operator.dbsize() == before
        assert refusals(operator) == []  # so that an empty ACL log means something where doctor runs from cron
    found = levels(done)
    assert found[f"rights of a {role}"] == "ok"
    assert found["version"] == "ok"
    assert found["eviction, memory, persistence"] == "warn"
    no_worker = {"workers"} if role != "flower" else set()
    assert {what for what, level in found.items() if level == "fail"} == no_worker
    assert password(role) not in done.stdout + done.stderr


def test_an_operator_sees_what_the_others_may_not(guarded, tmp_path):
    with redis.Redis.from_url(guarded.url) as operator:
        operator.rpush("generate.chat", "work")
        operator.zadd("genqueue:waiting:chat", {"id": 1})
        operator.hset("genqueue:generators", "chat", '{"max_queue_depth": 1}')
        url = as_role(guarded.url, "operator")
        found = levels(run_doctor(url, "--json", cwd=tmp_path))
        status = subprocess.run(
            [sys.executable, "-m", "genqueue", "status", "--json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "GENQUEUE_REDIS_URL": url},
            timeout=60,
        )
        operator.flushdb()
    assert found["rights of an operator"] == "ok"
    assert {"eviction", "memory", "persistence"} <= set(found)
    (queue,) = json.loads(status.stdout)["queues"]
    assert (queue["generator"], queue["waiting"], queue["doorbells"]) == ("chat", 1, 1)


def test_the_role_is_that_of_the_user_if_nothing_else_is_said(guarded, tmp_path):
    found = levels(run_doctor(as_role(guarded.url, "flower"), "--json", cwd=tmp_path))
    assert found["rights of a flower"] == "ok"


def rules(commands, channels, selectors):
    """A user of these rights, as ``users_acl`` makes one of a role's."""
    alone = " ".join(name if name.startswith("-") else f"+{name}" for name in commands)
    of_keys = [f"(~{pattern} +{name})" for name, pattern in selectors]
    return ["reset", "on", "nopass", "resetchannels", *(f"&{one}" for one in channels), *alone.split(), *of_keys]


def one_less(role):
    """Each right of a role: what taking it away leaves, and what doctor then finds refused."""
    commands, channels = COMMANDS[role].split(), [one.replace("{db}", "0") for one in CHANNELS[role]]
    selectors = [
        (name, pattern)
        for names, patterns in (*OURS[role], *CELERYS[role])
        for pattern in patterns
        for name in names.split()
    ]
    for name in commands:
        if name.startswith("-"):
            continue
        of = channels if name in {"publish", "subscribe"} else [one for one in channels if one.startswith("/")]
        found = {(name, f"&{one}") for one in of} if name in {"publish", "subscribe", "psubscribe"} else {(name, "")}
        # Redis refuses nobody to say who they are, and without MULTI nothing can be tried.
        found = {"auth": set(), "hello": set(), "multi": None}.get(name, found)
        yield pytest.param([one for one in commands if one != name], channels, selectors, found, id=name)
    for channel in channels:
        said = ["publish", "subscribe"] + ["psubscribe"] * channel.startswith("/")
        if channel == "/0.celeryev/worker.*":  # within /0.celeryev/*, but that is another pattern
            said = ["psubscribe"]
        found = {(name, f"&{channel}") for name in said}
        yield pytest.param(commands, [one for one in channels if one != channel], selectors, found, id=f"&{channel}")
    for right in selectors:
        name, pattern = right
        left = [one for one in selectors if one != right]
        yield pytest.param(commands, channels, left, {(name, f"~{pattern}")}, id=f"{name} ~{pattern}")


def refused_to(server, role, given):
    """(right, key or channel) of each check that a user with these rules is refused; None without MULTI."""
    queued, live = permission_checks(role, "doctor-test", 0)
    with redis.Redis.from_url(server.url) as operator:
        before = operator.dbsize()
        operator.execute_command("ACL", "SETUSER", "lame", *given)
        store = Store(server.url.replace("://", "://lame:x@"), 5.0)
        try:
            found = store.refused([one.command for one in queued], [one.command for one in live])
        finally:
            store.close()
        operator.acl_deluser("lame")
        assert operator.dbsize() == before
    return None if found is None else {(one.right, one.on) for one in ([*queued, *live][index] for index in found)}


@pytest.mark.parametrize("role", COMMANDS)
def test_a_role_of_the_table_lacks_nothing(guarded, role):
    ((commands, channels, selectors, _),) = [each.values for each in one_less(role) if each.id == "auth"]
    assert refused_to(guarded, role, rules([*commands, "auth"], channels, selectors)) == set()


@pytest.mark.parametrize(
    ("role", "commands", "channels", "selectors", "expected"),
    [pytest.param(role, *each.values, id=f"{role} {each.id}") for role in COMMANDS for each in one_less(role)],
)
def test_every_right_that_a_role_lacks_is_found(guarded, role, commands, channels, selectors, expected):
    assert refused_to(guarded, role, rules(commands, channels, selectors)) == expected


def test_a_forbidden_time_is_a_lack_of_rights_and_no_matter_of_credentials(tmp_path):
    with local_redis() as server, redis.Redis.from_url(server.url) as operator:
        operator.acl_setuser("lame", enabled=True, nopass=True, commands=["+@all", "-time"], keys=["*"], channels=["*"])
        done = run_doctor(server.url.replace("://", "://lame:x@"), "--json", cwd=tmp_path)
    found = json.loads(done.stdout)["findings"]
    assert [one["seen"] for one in found if one["what"] == "rights of a producer"] == ["lame may not say TIME"]
    assert levels(done)["redis"] == "ok"


def test_a_redis_that_has_no_hello_is_looked_at_all_the_same(tmp_path):
    """No rule can forbid HELLO, but it may have been given another name; before 6.0 there was none."""
    port = free_port()
    command = [
        find_redis_server().program,
        "--port",
        str(port),
        "--dir",
        str(tmp_path),
        "--rename-command",
        "HELLO",
        "",
    ]
    child = Child("redis", command, tmp_path / "log")
    child.start()
    try:
        child.wait_until(lambda logged: "Ready to accept connections" in logged, 15)
        found = levels(run_doctor(f"redis://127.0.0.1:{port}", "--json", cwd=tmp_path))
    finally:
        child.end()
    assert (found["redis"], found["version"], found["rights of a producer"]) == ("ok", "ok", "ok")


def test_model_servers_are_asked_how_they_are(guarded, standin, closed_port, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sleeping = f"http://127.0.0.1:{silent.getsockname()[1]}"
        redis_port = guarded.url.rsplit(":", 1)[1].partition("/")[0]
        (tmp_path / "genqueue.toml").write_text(
            "[generators.default]\n"
            'api_type = "text_generation_inference"\n'
            f'api_params.urls = ["{standin.url}/", "http://127.0.0.1:{redis_port}", "http://127.0.0.1:{closed_port}"]\n'
            '[generators.paid]\napi_type = "inference_endpoints"\n'
            f'api_params.url = "{sleeping}"\n'
        )
        done = run_doctor(as_role(guarded.url, "worker"), "--json", cwd=tmp_path, HF_TOKEN="canary-token")
        asked, _ = silent.accept()
        assert asked.recv(100) == b""  # connected to, and not asked: that may wake a paid one
        asked.close()
    found = {one["what"]: (one["level"], one["seen"]) for one in json.loads(done.stdout)["findings"]}
    assert found[f"endpoint {standin.url}/ of 'default'"] == ("ok", "answers /health with 200")
    assert found[f"endpoint http://127.0.0.1:{redis_port} of 'default'"] == ("fail", "no HTTP answer to /health")
    refused = ("fail", "not reached from here: Connection refused")
    assert found[f"endpoint http://127.0.0.1:{closed_port} of 'default'"] == refused
    assert found[f"endpoint {sleeping} of 'paid'"][0] == "ok"
    assert "canary" not in done.stdout + done.stderr


@contextmanager
def speaking(head, piece, gap_s):
    """The address of a server that says ``head`` and then ``piece`` for ever."""
    is_over = threading.Event()

    def speak(server):
        with server, server.accept()[0] as connection, suppress(OSError):
            connection.recv(1000)
            connection.sendall(head)
            while not is_over.wait(gap_s):
                connection.sendall(piece)

    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    thread = threading.Thread(target=speak, args=[server])
    thread.start()
    yield url
    is_over.set()
    thread.join()


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
ENDLESS = [
    pytest.param(b"", INTERIM * 1000, 0.0, "no HTTP answer to /health", id="interim-answers"),
    pytest.param(b"", INTERIM, 0.5, "not reached from here: no answer within 5 s", id="slow-interim-answers"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n", 0.5, "not reached from here: no answer within 5 s", id="slow-headers"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\n", b"x" * 1000, 0.0, "no HTTP answer to /health", id="a-header"),
]


@pytest.mark.parametrize(("head", "piece", "gap_s", "seen"), ENDLESS)
def test_a_model_server_whose_answer_does_not_end_holds_nobody(guarded, tmp_path, head, piece, gap_s, seen):
    with speaking(head, piece, gap_s) as url:
        (tmp_path / "genqueue.toml").write_text(
            f'[generators.default]\napi_type = "text_generation_inference"\napi_params.url = "{url}"\n'
        )
        done = run_doctor(as_role(guarded.url, "worker"), "--json", cwd=tmp_path)
    found = {one["what"]: (one["level"], one["seen"]) for one in json.loads(done.stdout)["findings"]}
    assert found[f"endpoint {url} of 'default'"] == ("fail", seen)


def test_two_model_servers_of_one_host_are_told_apart_without_what_is_secret(guarded, closed_port, tmp_path):
    host = f"127.0.0.1:{closed_port}"
    (tmp_path / "genqueue.toml").write_text(
        '[generators.a]\napi_type = "text_generation_inference"\n'
        f'api_params.urls = ["http://{host}/one?key=canary", "http://u:canary@{host}/two"]\n'
        f'[generators.b]\napi_type = "text_generation_inference"\napi_params.url = "http://{host}/two"\n'
    )
    done = run_doctor(as_role(guarded.url, "worker"), "--json", cwd=tmp_path)
    named = [one["what"] for one in json.loads(done.stdout)["findings"] if one["what"].startswith("endpoint ")]
    assert named == [
        f"endpoint http://{host}/one of 'a'",
        f"endpoint http://{host}/two of 'a'",
        f"endpoint http://{host}/two of 'b'",
    ]
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        pytest.param({"HTTP_PROXY": "http://u:canary@proxy.invalid:1"}, "warn", id="by-a-proxy"),
        pytest.param({"ALL_PROXY": "http://u:canary@proxy.invalid:1"}, "warn", id="by-one-for-all"),
        pytest.param({"HTTPS_PROXY": "http://proxy.invalid:1"}, "ok", id="of-another-scheme"),
        pytest.param({"HTTP_PROXY": "http://proxy.invalid:1", "NO_PROXY": "127.0.0.1"}, "ok", id="but-not-to-there"),
    ],
)
def test_a_model_server_that_a_worker_reaches_by_a_proxy_is_left_alone(guarded, standin, tmp_path, variables, level):
    (tmp_path / "genqueue.toml").write_text(
        f'[generators.default]\napi_type = "text_generation_inference"\napi_params.url = "{standin.url}"\n'
    )
    done = run_doctor(as_role(guarded.url, "worker"), "--json", cwd=tmp_path, **variables)
    assert levels(done)[f"endpoint {standin.url} of 'default'"] == level
    assert "canary" not in done.stdout + done.stderr


def test_a_token_counts_as_the_worker_reads_it(guarded, keyed_standin, tmp_path):
    (tmp_path / "genqueue.toml").write_text(
        '[generators.default]\napi_type = "text_generation_inference"\ntoken_env = ["STANDIN_KEY"]\n'
        f'api_params.url = "{keyed_standin.url}"\n'
    )

    def findings(key):
        done = run_doctor(as_role(guarded.url, "worker"), "--json", cwd=tmp_path, STANDIN_KEY=key)
        assert "canary" not in done.stdout + done.stderr
        found = json.loads(done.stdout)["findings"]
        return [(one["level"], one["seen"]) for one in found if one["what"].startswith(("endpoint ", "token "))]

    assert findings(f"{TOKENS['STANDIN_KEY']}\r\n") == [("ok", "answers /health with 200")]
    assert findings(" \n") == [("fail", "no variable holds it"), ("ok", "answers /health with 200")]
    assert findings("canary\nX-Other: 1")[0] == (
        "fail",
        "STANDIN_KEY holds a character that cannot stand in a header",
    )


def test_a_redis_that_forgets_and_evicts_is_a_failure(tmp_path):
    with local_redis() as server, redis.Redis.from_url(server.url) as operator:
        operator.config_set("maxmemory-policy", "allkeys-lru")
        operator.config_set("save", "")
        done = run_doctor(server.url, cwd=tmp_path)
        assert done.returncode == 1
        assert "fail  eviction: allkeys-lru\n      -> CONFIG SET maxmemory-policy noeviction" in done.stdout
        found = levels(run_doctor(server.url, "--json", cwd=tmp_path))
        assert (found["eviction"], found["persistence"], found["workers"]) == ("fail", "fail", "fail")


def test_no_redis_and_no_settings_are_findings(closed_port, tmp_path):
    done = run_doctor(f"redis://u:secret@127.0.0.1:{closed_port}/0", "--json", cwd=tmp_path)
    assert (done.returncode, levels(done)["redis"]) == (1, "fail")
    assert "secret" not in done.stdout + done.stderr
    done = run_doctor("http://u:secret@127.0.0.1", "--json", cwd=tmp_path)
    assert (done.returncode, levels(done)) == (1, {"settings": "fail"})
    assert "secret" not in done.stdout + done.stderr


def test_a_variable_that_nobody_reads_is_a_warning(closed_port, tmp_path):
    done = run_doctor(f"redis://127.0.0.1:{closed_port}/0", cwd=tmp_path, GENQUEUE_LEASE="9")
    wanted = "call it GENQUEUE_LEASE_S if that is meant, else drop it"
    assert f"warn  settings: nobody reads GENQUEUE_LEASE\n      -> {wanted}\n" in done.stdout


def test_a_settings_file_that_others_may_change_or_read_is_a_warning(closed_port, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    path = folder / "genqueue.toml"
    path.write_text(
        '[generators.g]\napi_type = "text_generation_inference"\n'
        'api_params = { url = "http://127.0.0.1:1", headers = { x-key = "canary-of-header" } }\n'
    )

    def warnings(mode, folder_mode=0o700):
        path.chmod(mode)
        folder.chmod(folder_mode)
        done = run_doctor(f"redis://127.0.0.1:{closed_port}/0", "--json", cwd=folder)
        assert "canary" not in done.stdout + done.stderr
        found = json.loads(done.stdout)["findings"]
        return [one["seen"] for one in found if one["what"] == "settings file genqueue.toml"]

    assert warnings(0o600) == []
    assert warnings(0o644) == ["others may read it (mode 0644)"]
    assert warnings(0o666) == ["others may write it (mode 0666)", "others may read it (mode 0666)"]
    assert warnings(0o600, 0o777) == ["others may put another in its place: they may write its folder"]
    path.write_text("lease = 3\n")  # what cannot be used can be somebody else's work as well
    assert warnings(0o666) == ["others may write it (mode 0666)"]


def test_with_a_worker_all_is_well(worker, queue_redis, tmp_path):
    done = run_doctor(worker.producer_url, "--json", cwd=tmp_path)
    found = levels(done)
    assert (found["workers"], found["rights of a producer"], found["redis"]) == ("ok", "ok", "ok")
    with redis.Redis.from_url(queue_redis.url) as operator:
        assert refusals(operator) == []


def test_a_producer_alone_can_run_it(tmp_path, closed_port):
    code = (
        "import sys\nfor name in ('celery', 'huggingface_hub', 'kombu', 'genqueue_worker'): sys.modules[name] = None\n"
        "sys.argv = ['genqueue', 'doctor']\nfrom genqueue.cli.app import main\nmain()"
    )
    kept = {**os.environ, "GENQUEUE_REDIS_URL": f"redis://127.0.0.1:{closed_port}/0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=kept, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 1
    assert "fail  redis: no answer from Redis" in done.stdout
