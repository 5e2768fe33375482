"""The commands of docker-compose.yml, run by hand where there is no Docker: each service's own, to the letter."""

import os
import re
import shutil
import subprocess
import sys
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

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ROLES = ("producer", "worker", "flower")
ACL = """# A comment, and an empty line.

user default off
user genqueue-producer reset on ~* &* +@all -@dangerous
user genqueue-worker reset on
  ~* &*
  +@all
user genqueue-flower reset on ~* &* +@read +@connection"""


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
        server.write_text(f'#!/bin/sh\nexec timeout 1 {program} "$@" --port 0 --unixsocket {self.folder}/s --save ""\n')
        server.chmod(0o755)
        return subprocess.run(self.command(), capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture(scope="module")
def compose_redis(tmp_path_factory, real_redis) -> Iterator[int]:
    """The redis service; its port."""
    start = Start(tmp_path_factory.mktemp("redis"), ACL)
    for role in ROLES[:2]:
        start.environ[f"GENQUEUE_{role.upper()}_PASSWORD"] = password(role)
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
    return redis.Redis(port=port, username=f"genqueue-{role}", password=secret or password(role), retry=once)


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
    with connect(compose_redis, "worker") as client:
        clients = {each["user"] for each in client.client_list()}
        assert clients == {"genqueue-worker"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory") == {"maxmemory": str(2 << 30)}
        users = {line.decode().split()[1]: line.decode() for line in client.execute_command("ACL", "LIST")}
    assert "-@dangerous" in users["genqueue-producer"]
    assert " off " in users["default"]
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


@pytest.mark.parametrize("given", [ROLES, (*ROLES, "operator")], ids=["without-operator", "with-operator"])
def test_the_users_of_this_project_can_be_given_passwords(tmp_path, real_redis, given):
    start = Start(tmp_path, (ROOT / "ops/redis/users.acl").read_text())
    for role in given:
        start.environ[f"GENQUEUE_{role.upper()}_PASSWORD"] = "x"
    done = start.run()
    assert " to accept connections" in done.stdout, done
    rendered = (tmp_path / "rendered.acl").read_text().splitlines()
    assert {line.split()[1] for line in rendered} == {"default"} | {f"genqueue-{role}" for role in given}


def test_worker_and_standin_run_with_the_commands_of_compose(compose_redis, tmp_path, eventually):
    assert SERVICES["worker"]["environment"]["GENQUEUE_REDIS_URL"].startswith("redis://genqueue-worker:")
    secret = "".join(f"%{byte:02x}" for byte in password("worker").encode())
    url = f"redis://genqueue-worker:{secret}@127.0.0.1:{compose_redis}/0"
    port = free_port()
    standin = [word if word != "80" else str(port) for word in command("standin")]
    config = tmp_path / "genqueue.toml"
    config.write_text((ROOT / "ops/genqueue.toml").read_text().replace("http://tgi:80", f"http://127.0.0.1:{port}"))
    genqueue = Path(sys.executable).with_name("genqueue")
    settings = {"GENQUEUE_REDIS_URL": url, "GENQUEUE_CONFIG": str(config), "HF_HOME": str(tmp_path), "TERM": "dumb"}
    clean = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in settings.items())]
    children = [
        Child("stand-in", [*clean, str(genqueue), *standin], tmp_path / "standin.log"),
        Child("worker", [*clean, str(genqueue), *command("worker")], tmp_path / "worker.log"),
    ]
    try:
        for child in children:
            child.start()
        with GenerationClient(Settings(redis_url=url, generators={})) as client:
            eventually(client.workers, within_s=30)
            generation = client.submit("Hello", generation_kwargs={"max_new_tokens": 5})
            assert len(generation.result(timeout_s=30).replies[0]) > 0
    finally:
        for child in reversed(children):
            child.end(within_s=30)
