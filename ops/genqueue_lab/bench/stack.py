"""The processes of the benchmark: each part one of its own, and what each has taken.

This module starts them, carries orders to the callers and reads CPU, memory and Redis's counters.
It decides no figure: that is ``verdict.py``.  CPU and memory come from proc(5), so it needs Linux.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from genqueue_lab.bench.client import Kind, Load
from genqueue_ops.local_redis import LocalRedis, local_redis
from genqueue_ops.processes import Child, ChildError, started
from genqueue_ops.stack import configured

FIRST_MS = 50
BETWEEN_MS = 20
_READY_WITHIN_S = 60.0
_ANSWER_WITHIN_S = 180.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Sample = dict[str, float]
"""The figures of one load, by the names that :mod:`genqueue_lab.bench.verdict` knows."""


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def environ_of(folder: Path, redis_url: str, endpoint_url: str, checkout: Path | None = None) -> dict[str, str]:
    """The environment of a producer or worker; ``checkout`` has theirs run in place of ours."""
    environ = configured(folder, redis_url, endpoint_url, max_queue_depth=1_000_000)
    return {**environ, **(_path_to(checkout) if checkout is not None else {})}


def _path_to(checkout: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{checkout / 'producer'}{os.pathsep}{checkout / 'worker'}"}


def check_checkout(checkout: Path) -> None:
    """Raise ChildError unless a producer and a worker run from ``checkout``, an absolute path."""
    words = "import genqueue, genqueue_worker; print(genqueue.__file__, genqueue_worker.__file__)"
    command = [sys.executable, "-P", "-c", words]
    environ = {**os.environ, **_path_to(checkout)}
    done = subprocess.run(command, env=environ, cwd=checkout, capture_output=True, text=True)
    places = done.stdout.split()
    if done.returncode or not all(Path(place).is_relative_to(checkout) for place in places):
        raise ChildError(f"{checkout} holds no producer/ and worker/ that can run: {done.stdout}{done.stderr}")


class Caller:
    """A process of ``client.py``."""

    def __init__(
        self, opened: ExitStack, folder: Path, kind: Kind, address: str, environ: Mapping[str, str] | None, name: str
    ) -> None:
        path = folder / f"{name}.sock"
        listener = opened.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, "-P", "-m", "genqueue_lab.bench.client", kind, address, str(path)]
        self.child = Child(f"the {name} client", command, folder / f"{name}.log", environ)
        self.child.start()
        opened.callback(self.child.end)
        listener.settimeout(0.1)
        deadline_s = time.monotonic() + _READY_WITHIN_S
        while True:
            try:
                connection, _ = listener.accept()
                break
            except TimeoutError:
                self.child.check("at once ")
                if time.monotonic() > deadline_s:
                    raise ChildError(f"{self.child.name} was not ready in time:\n{self.child.log_tail()}") from None
        opened.enter_context(connection)
        connection.settimeout(_ANSWER_WITHIN_S)
        self._lines = opened.enter_context(connection.makefile("rwb"))

    def ask(self, **order: object) -> Any:
        """Give one order and wait for its answer.

        Raises:
            ChildError: the process ended, or did not answer in time.
        """
        try:
            self._lines.write(json.dumps(order).encode() + b"\n")
            self._lines.flush()
            answer = self._lines.readline()
        except OSError as error:
            raise ChildError(f"{self.child.name} does not answer ({error}):\n{self.child.log_tail()}") from error
        if not answer:
            raise ChildError(f"{self.child.name} has ended:\n{self.child.log_tail()}")
        return json.loads(answer)


@dataclass(frozen=True, slots=True)
class Queue:
    """A Redis and a worker."""

    server: LocalRedis
    worker: Child
    environ: dict[str, str]

    def redis_info(self) -> dict[str, Any]:
        """Redis's own counters."""
        with redis.Redis.from_url(self.server.url) as client:
            found: dict[str, Any] = client.info()
        return found


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to the endpoint.

    Attributes:
        name: in the table.
        caller: reads what is measured.
        crowd: reads what runs beside it.
        queue: what a queued call goes through; None for a direct one.
        endpoint_pid: the stand-in's process.
        faults: of all loads so far, what was wrong.
    """

    name: str
    caller: Caller
    crowd: Caller
    queue: Queue | None
    endpoint_pid: int
    faults: list[str] = field(default_factory=list)

    def processes(self) -> dict[str, int]:
        """The processes that share a load's work, by part."""
        found = {"client": self.caller.child.process.pid, "standin": self.endpoint_pid}
        if self.queue is not None:
            found |= {"worker": self.queue.worker.process.pid, "redis": self.queue.server.pid}
        return found

    def run(self, load: Load, crowd: Load | None = None) -> Sample:
        """Have the caller read a load, and say what that took; beside a crowd that another process reads."""
        if crowd is None:
            return self._run(load)
        self.crowd.ask(run=asdict(crowd))
        try:
            return self._run(load)
        finally:
            self.crowd.ask(release=True)
            self.faults.extend(self.crowd.ask(report=True)["faults"])

    def _run(self, load: Load) -> Sample:
        processes = self.processes()
        reads = self._redis_reads()
        before_s = {part: cpu_s(pid) for part, pid in processes.items()}
        self.caller.ask(run=asdict(load))
        time.sleep(0.1)  # the worker's last words on the last streams
        taken_s = {part: cpu_s(pid) - before_s[part] for part, pid in processes.items()}
        reads = self._redis_reads() - reads
        report = self.caller.ask(report=True)
        self.faults.extend(report["faults"])
        first_ms = 0 if load.instant else FIRST_MS
        return {
            "wall_s": report["wall_s"],
            "streams": report["streams"],
            "tokens": report["tokens"],
            "streams_per_s": report["streams"] / report["wall_s"],
            "ttft_p50_ms": report["ttft_ms"][0] - first_ms,
            "ttft_p95_ms": report["ttft_ms"][1] - first_ms,
            "chunk_p50_ms": report["chunk_ms"][0],
            "chunk_p95_ms": report["chunk_ms"][1],
            "trips": reads,
            **{f"{part}_us": taken / report["tokens"] * 1e6 for part, taken in taken_s.items()},
        }

    def _redis_reads(self) -> int:
        return 0 if self.queue is None else int(self.queue.redis_info()["total_reads_processed"])


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The stand-in."""

    url: str
    pid: int


def start_endpoint(opened: ExitStack, folder: Path) -> Endpoint:
    """Run ``standin.py``."""
    pace = ["--first-ms", str(FIRST_MS), "--between-ms", str(BETWEEN_MS)]
    command = [sys.executable, "-P", "-m", "genqueue_lab.bench.standin", *pace]
    child = Child("the stand-in", command, folder / "standin.log")
    child.start()
    opened.callback(child.end)
    child.wait_until(lambda logged: logged.endswith("\n"), _READY_WITHIN_S)
    return Endpoint(child.logged().split()[-1], child.process.pid)


def start_queue(
    opened: ExitStack, folder: Path, endpoint: Endpoint, concurrency: int, checkout: Path | None = None
) -> Queue:
    """Run a Redis and a worker of ours, or of another checkout."""
    server = opened.enter_context(local_redis())
    environ = environ_of(folder, server.url, endpoint.url, checkout)
    worker = started(opened, folder, ["worker", "--concurrency", str(concurrency)], " ready.", environ)
    return Queue(server, worker, environ)


def checkouts(against: Path | None) -> dict[str, Path | None]:
    """The contestants that are queues, each with its checkout; None is what runs here."""
    return {"queue": None, **({"before": against} if against is not None else {})}


def start_contestants(opened: ExitStack, folder: Path, concurrency: int, against: Path | None) -> dict[str, Contestant]:
    """Run everything: ``direct``, ``raw``, ``queue`` and, if there is another checkout, ``before``."""
    endpoint = start_endpoint(opened, folder)

    def contestant(name: str, kind: Kind, crowd: Kind, queue: Queue | None) -> Contestant:
        environ = None if queue is None else queue.environ
        caller = Caller(opened, folder, kind, endpoint.url, environ, f"{name}-caller")
        beside = Caller(opened, folder, crowd, endpoint.url, environ, f"{name}-crowd")
        return Contestant(name, caller, beside, queue, endpoint.pid)

    found = {
        "direct": contestant("direct", Kind.DIRECT, Kind.RAW, None),
        "raw": contestant("raw", Kind.RAW, Kind.RAW, None),
    }
    for name, checkout in checkouts(against).items():
        own = folder / name
        own.mkdir()
        queue = start_queue(opened, own, endpoint, concurrency, checkout)
        found[name] = contestant(name, Kind.QUEUE, Kind.QUEUE, queue)
    return found
