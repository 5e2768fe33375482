"""The commands of docker-compose.yml, run by hand where there is no Docker: each service's own, to the letter."""

import base64
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.exceptions
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from genqueue import GenerationClient, Settings
from genqueue_ops.local_redis import find_redis_server, free_port
from genqueue_ops.processes import Child

ROOT = Path(__file__).parents[3]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ROLES = ("producer", "worker", "flower")
# The users of this project, and one who may look into that Redis.
ACL = (ROOT / "ops/redis/users.acl").read_text() + "\nuser operator on ~* &* +@all\n"


def password(role: str) -> str:
    return f"{role} $(touch canary)'\" `x` \\ #>"


def command(name: str) -> list[str]:
    """A service's arguments, each variable at its default."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(word)) for word in SERVICES[name]["command"]]


class Start:
    """ops/redis/start.sh, its paths in a folder of the test's."""

    def __init__(self, folder: Path, acl: str) -> None:
        server = find_redis_server()
        assert server is not None
        (folder / "bin").mkdir()
        (folder / "bin" / "redis-server").symlink_to(server.program)
        (folder / "secrets").mkdir()
        (folder / "rules.acl").write_text(acl)
        self.folder = folder
        self.environ = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "USERS_ACL": str(folder / "rules.acl"),
            "RENDERED_ACL": str(folder / "rendered.acl"),
            "SECRETS_DIR": str(folder / "secrets"),
        }

    def command(self, *arguments: str) -> list[str]:
        shell = shutil.which("dash") or "/bin/sh"
        settings = [f"{name}={value}" for name, value in self.environ.items()]
        return ["/usr/bin/env", "-i", *settings, shell, str(ROOT / "ops/redis/start.sh"), *arguments]

    def run(self) -> "subprocess.CompletedProcess[str]":
        """To the end, which must come: who gets to be redis-server here only checks its users."""
        server = self.folder / "bin" / "redis-server"
        program = server.readlink()
        server.unlink()
        server.write_text(f'#!/bin/sh\nexec timeout 3 {program} "$@" --port 0 --unixsocket {self.folder}/s --save ""\n')
        server.chmod(0o755)
        return subprocess.run(self.command(), capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture(scope="module")
def compose_redis(tmp_path_factory, real_redis) -> Iterator[int]:
    """The redis service; its port."""
    start = Start(tmp_path_factory.mktemp("redis"), ACL)
    for role in ROLES[:2]:
        start.environ[f"GENQUEUE_{role.upper()}_PASSWORD"] = password(role)
    start.environ["OPERATOR_PASSWORD"] = password("operator")
    (start.folder / "secrets" / "genqueue-flower").write_text(password("flower") + "\n")
    port = free_port()
    arguments = [str(start.folder) if word == "/data" else word for word in command("redis")]
    child = Child("redis", start.command(*arguments, "--port", str(port), "--bind", "127.0.0.1"), start.folder / "log")
    child.start()
    try:
        child.wait_until(lambda logged: "Ready to accept connections" in logged, 15)
        yield port
    finally:
        child.end()


def connect(port: int, role: str, secret: str | None = None) -> redis.Redis:
    once = Retry(NoBackoff(), 0)
    name = role if role == "operator" else f"genqueue-{role}"
    return redis.Redis(port=port, username=name, decode_responses=True, password=secret or password(role), retry=once)


def test_redis_has_the_users_and_their_passwords_and_keeps_everything(compose_redis):
    for role in ROLES:
        with connect(compose_redis, role) as client:
            assert client.ping()
        with connect(compose_redis, role, "wrong") as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()
    with (
        redis.Redis(port=compose_redis, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.ping()
    with connect(compose_redis, "operator") as client:
        assert {each["user"] for each in client.client_list()} == {"operator"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory") == {"maxmemory": str(2 << 30)}
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("acl", "words"),
    [
        pytest.param("user genqueue-worker reset on ~* +@all", "GENQUEUE_WORKER_PASSWORD", id="no-password"),
        pytest.param("users genqueue-worker on", "no user", id="no-user"),
        pytest.param("  +@all\nuser default off", "no user", id="nobodys-rules"),
        pytest.param("user a$(id) on", "the user's name may have", id="name"),
    ],
)
def test_redis_does_not_start_with_a_user_that_anybody_could_be(tmp_path, acl, words, real_redis):
    done = Start(tmp_path, acl).run()
    assert done.returncode != 0
    assert words in done.stderr
    assert "Redis version" not in done.stdout


def test_each_user_has_the_rights_of_this_project_and_no_more(compose_redis):
    with connect(compose_redis, "operator") as client:
        users = {line.split()[1]: line for line in client.execute_command("ACL", "LIST")}
    assert set(users) == {"default", "operator", *(f"genqueue-{role}" for role in ROLES)}
    assert " off " in users["default"]
    for role in ROLES:
        with connect(compose_redis, role) as client, pytest.raises(redis.exceptions.NoPermissionError):
            client.config_get("maxmemory")
    with connect(compose_redis, "operator") as client:
        client.acl_log_reset()  # those were meant; in the next test nobody is refused anything


@pytest.mark.parametrize("given", [ROLES, (*ROLES, "operator")], ids=["without-operator", "with-operator"])
def test_the_users_of_this_project_can_be_given_passwords(tmp_path, real_redis, given):
    start = Start(tmp_path, (ROOT / "ops/redis/users.acl").read_text())
    for role in given:
        start.environ[f"GENQUEUE_{role.upper()}_PASSWORD"] = "x"
    done = start.run()
    assert " to accept connections" in done.stdout, done
    rendered = (tmp_path / "rendered.acl").read_text().splitlines()
    assert {line.split()[1] for line in rendered} == {"default"} | {f"genqueue-{role}" for role in given}


def address(role: str, port: int) -> str:
    secret = "".join(f"%{byte:02x}" for byte in password(role).encode())
    return f"redis://genqueue-{role}:{secret}@127.0.0.1:{port}/0"


def settings_of(name: str, port: int, **own: str) -> dict[str, str]:
    """A service's environment with what Compose's variables and volumes are here."""
    given = {key: str(value) for key, value in SERVICES[name]["environment"].items()}
    assert given["GENQUEUE_REDIS_URL"].startswith(f"redis://genqueue-{name}:${{")
    given["GENQUEUE_REDIS_URL"] = address(name, port)
    return {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for key, value in (given | own).items()}


def started(name: str, folder: Path, words: list[str], settings: dict[str, str]) -> Child:
    own = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HF_HOME": str(folder), "TERM": "dumb"}
    clean = ["/usr/bin/env", "-i", *(f"{key}={value}" for key, value in (own | settings).items())]
    child = Child(name, [*clean, str(Path(sys.executable).with_name("genqueue")), *words], folder / f"{name}.log")
    child.start()
    return child


def is_well(name: str, inside: int, outside: int) -> bool:
    """What the service's own health check says, asking the port that is its here."""
    kind, *words = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    assert f":{inside}/" in words[-1]
    words = [word.replace(f":{inside}/", f":{outside}/") for word in words]
    environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return subprocess.run(words, env=environ, capture_output=True, timeout=20, check=False).returncode == 0


def test_worker_standin_and_flower_run_with_the_commands_of_compose(compose_redis, tmp_path, eventually):
    standin, monitor, flower = free_port(), free_port(), free_port()
    config = tmp_path / "genqueue.toml"
    config.write_text((ROOT / "ops/genqueue.toml").read_text().replace("http://tgi:80", f"http://127.0.0.1:{standin}"))
    (tmp_path / "flower").mkdir()
    children: list[Child] = []
    try:
        words = [word if word != "80" else str(standin) for word in command("standin")]
        children.append(started("standin", tmp_path, words, {}))
        settings = settings_of("worker", compose_redis, GENQUEUE_CONFIG=str(config), GENQUEUE_MONITOR_PORT=str(monitor))
        children.append(started("worker", tmp_path, command("worker"), settings))
        settings = settings_of(
            "flower",
            compose_redis,
            FLOWER_PORT=str(flower),
            FLOWER_DB=str(tmp_path / "flower" / "db"),
            FLOWER_BASIC_AUTH="user:password",
        )
        children.append(started("flower", tmp_path / "flower", command("flower"), settings))
        eventually(lambda: is_well("standin", 80, standin), within_s=30)
        eventually(lambda: is_well("worker", 9464, monitor), within_s=30)
        eventually(lambda: is_well("flower", 5555, flower), within_s=30)
        with GenerationClient(Settings(redis_url=address("producer", compose_redis), generators={})) as client:
            eventually(client.workers, within_s=30)
            generation = client.submit("Hello", generation_kwargs={"max_new_tokens": 5})
            assert len(generation.result(timeout_s=30).replies[0]) > 0
        seen = urllib.request.Request(f"http://127.0.0.1:{flower}/task/{generation.id}")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(seen, timeout=10)
        seen.add_header("Authorization", "Basic " + base64.b64encode(b"user:password").decode())
        eventually(lambda: "SUCCESS" in page(seen), within_s=15)
        with connect(compose_redis, "operator") as client:
            assert [one for one in client.acl_log() if one["reason"] != "auth"] == []
    finally:
        for child in reversed(children):
            child.end(within_s=30)


def page(request: urllib.request.Request) -> str:
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:  # it does not know that task yet
        return str(error)
