"""Redis servers that a test builds of its own: with TLS, with Sentinels, with passwords."""

import contextlib
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.exceptions
import trustme

from genqueue_ops.local_redis import find_redis_server, free_port
from genqueue_ops.processes import Child

USER, PASSWORD = "queue-user", "canary/pass@word:0005"
SENTINEL_PASSWORD = "canary-sentinel-0006"


class Certificates:
    """A CA of our own, what it signed for 127.0.0.1, and a client's certificate."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.server, self.client = folder / "ca.pem", folder / "server.pem", folder / "client.pem"
        authority.cert_pem.write_to_path(self.ca)
        authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(self.server)
        authority.issue_cert("genqueue@example.org").private_key_and_cert_chain_pem.write_to_path(self.client)

    @property
    def query(self) -> str:
        """The options of an address whose server asks for our certificate."""
        return f"ssl_ca_certs={self.ca}&ssl_certfile={self.client}&ssl_keyfile={self.client}"

    @property
    def context(self) -> dict[str, Any]:
        """The same for a redis-py client."""
        files = {"ssl_certfile": str(self.client), "ssl_keyfile": str(self.client), "ssl_ca_certs": str(self.ca)}
        return {"ssl": True, "ssl_cert_reqs": ssl.CERT_REQUIRED, **files}

    def server_lines(self) -> list[str]:
        """Lines of a configuration file."""
        files = [f"tls-cert-file {self.server}", f"tls-key-file {self.server}", f"tls-ca-cert-file {self.ca}"]
        return [*files, "tls-auth-clients yes", "tls-replication yes"]


class Server:
    """One redis-server, or a Sentinel; ``at`` its port, which stays the same over ``start``."""

    def __init__(self, folder: Path, certificates: Certificates | None, lines: list[str], *, sentinel: bool) -> None:
        found = find_redis_server()
        assert found is not None
        self.port = free_port()
        self._certificates = certificates
        self._password = SENTINEL_PASSWORD if sentinel else PASSWORD
        self._user = None if sentinel else USER
        folder.mkdir()
        ports = [f"port {self.port}"] if certificates is None else ["port 0", f"tls-port {self.port}"]
        tls = [] if certificates is None else certificates.server_lines()
        config = folder / "redis.conf"
        config.write_text(
            "\n".join(["bind 127.0.0.1", f"dir {folder}", "protected-mode no", *ports, *tls, *lines]) + "\n"
        )
        arguments = ["--sentinel"] if sentinel else []
        self.child = Child("a Redis", [found.program, str(config), *arguments], folder / "redis.log")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.child.start()
        deadline_s = time.monotonic() + 15
        while True:
            try:
                with self.connect() as client:
                    client.ping()
                return
            except redis.exceptions.ConnectionError:
                assert time.monotonic() < deadline_s, self.child.log.read_text()
                time.sleep(0.02)

    def connect(self) -> redis.Redis:
        """A client with the credentials of those who use it."""
        tls = self._certificates.context if self._certificates else {}
        return redis.Redis(port=self.port, username=self._user, password=self._password, protocol=2, **tls)

    def never_tilt(self) -> None:
        """Have a Sentinel that stood still for 2 s, as on a busy machine, not wait for half a minute before it acts."""
        with self.connect() as client, contextlib.suppress(redis.exceptions.ResponseError):  # before Redis 7
            client.execute_command("SENTINEL", "DEBUG", "tilt-trigger", "60000")

    def send(self, number: int) -> None:
        """Send a signal."""
        self.child.process.send_signal(number)


def _user_lines() -> list[str]:
    return [f"user {USER} on >{PASSWORD} ~* &* +@all", f"masteruser {USER}", f"masterauth {PASSWORD}"]


def data_lines() -> list[str]:
    """What a Redis for data is told."""
    return [*_user_lines(), "user default off", 'save ""', "appendonly yes", "repl-diskless-sync-delay 0"]


class Family:
    """A master, its replica and three Sentinels, which notice within half a second that it is gone."""

    NAME = "our-master"

    def __init__(self, folder: Path, certificates: Certificates | None) -> None:
        self.certificates = certificates
        self.data = [Server(folder / "first", certificates, data_lines(), sentinel=False)]
        replica = [*data_lines(), f"replicaof 127.0.0.1 {self.data[0].port}"]
        self.data.append(Server(folder / "second", certificates, replica, sentinel=False))
        watched = [
            f"requirepass {SENTINEL_PASSWORD}",
            f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
            f"sentinel monitor {self.NAME} 127.0.0.1 {self.data[0].port} 2",
            f"sentinel auth-user {self.NAME} {USER}",
            f"sentinel auth-pass {self.NAME} {PASSWORD}",
            f"sentinel down-after-milliseconds {self.NAME} 500",
            f"sentinel failover-timeout {self.NAME} 5000",
        ]
        self.sentinels = [Server(folder / f"sentinel{n}", certificates, watched, sentinel=True) for n in range(3)]

    @property
    def url(self) -> str:
        """For GENQUEUE_REDIS_URL."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        secret = PASSWORD.replace("/", "%2F").replace("@", "%40").replace(":", "%3A")
        scheme, tls = ("redis", "") if self.certificates is None else ("rediss", f"&{self.certificates.query}")
        where = f"{USER}:{secret}@{hosts}/{self.NAME}/0?sentinel_password={SENTINEL_PASSWORD}"
        return f"{scheme}+sentinel://{where}{tls}"

    @property
    def master(self) -> Server:
        """The one that the first Sentinel calls so."""
        with self.sentinels[0].connect() as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)
        (found,) = [server for server in self.data if server.port == int(port)]
        return found

    @property
    def is_whole(self) -> bool:
        """Whether the Sentinels know of each other and the replica keeps up."""
        with self.sentinels[0].connect() as client:
            answer = client.execute_command("SENTINEL", "MASTER", self.NAME)
        state = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
        known = {str(key.decode() if isinstance(key, bytes) else key): value for key, value in state.items()}
        with self.master.connect() as client:
            replicas = client.info("replication")
        return (
            int(known["num-other-sentinels"]) == 2
            and int(known["num-slaves"]) == 1
            and replicas["connected_slaves"] == 1
            and replicas["slave0"]["state"] == "online"
        )


@contextmanager
def sentinel_family(folder: Path, certificates: Certificates | None) -> Iterator[Family]:
    """A family that is whole when it is given."""
    family = Family(folder, certificates)
    with ExitStack() as running:
        for server in [*family.data, *family.sentinels]:
            running.callback(server.child.end, 9)
            server.start()
        for sentinel in family.sentinels:
            sentinel.never_tilt()
        deadline_s = time.monotonic() + 20
        while not family.is_whole:
            assert time.monotonic() < deadline_s, family.sentinels[0].child.log.read_text()
            time.sleep(0.05)
        yield family


only_real_redis = pytest.mark.parametrize("redis_server", ["redis"], indirect=True)
"""For what fakeredis does not have: CLIENT LIST, CLIENT KILL."""
