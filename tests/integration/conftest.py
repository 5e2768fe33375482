"""Real processes for the integration tests: one Redis, one TGI stand-in and one worker for all of them.

Nothing here is a fake and nothing of the client is patched.  Who stops, fills or starves a
worker starts one of their own with ``start_worker``.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from huggingface_hub import set_async_client_factory
from huggingface_hub.utils._http import default_async_client_factory

from genqueue import AsyncGenerationClient, GenerationClient, Settings
from genqueue_ops.local_redis import LocalRedis
from genqueue_ops.standin.llama import start_llama
from genqueue_ops.standin.prose import expected_text

from ..support.roles import as_role, guarded_redis

LOG_TAIL_CHARACTERS = 6000

# Values no test may find anywhere but in the Authorization header that they are meant for.
TOKENS = {
    "HF_API_TOKEN": "hf_canaryApiToken0001",
    "HF_TOKEN": "hf_canaryHubToken0002",
    "STANDIN_KEY": "canary-standin-key-0003",
    "OTHER_TOKEN": "canary-other-token-0004",
}


def wait_for(condition: Callable[[], Any], within_s: float = 30.0, what: str = "") -> Any:
    """The condition's first true value; an AssertionError once ``within_s`` have passed."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {what or condition}")
        time.sleep(0.005)


@pytest.fixture(scope="module")
def llama(real_model: None) -> Iterator[str]:
    """Where llama.cpp's own server listens, with two slots of 512 tokens."""
    server = start_llama(slots=2, context_tokens=512)
    yield server.listening_address
    del server


@pytest.fixture
def busy_slots(llama: str) -> Callable[[], int]:
    """How many generations llama.cpp is working on."""

    def count() -> int:
        with urllib.request.urlopen(f"{llama}/slots", timeout=10) as answer:
            return sum(slot["is_processing"] for slot in json.load(answer))

    return count


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """``eventually(condition)``: its first true value, or a failure after 30 s."""
    return wait_for


class Prompt(str):
    """A prompt of its own, with a stand-in directive, and the text that answers it."""

    tokens: int

    @property
    def answer(self) -> str:
        """The stand-in's whole text."""
        return expected_text(self, 100_000, tokens=self.tokens)

    def beginning(self, tokens: int) -> str:
        """The first ``tokens`` tokens of that text."""
        return expected_text(self, tokens, tokens=self.tokens)


@pytest.fixture(autouse=True)
def hub_of_its_own() -> Iterator[None]:
    """huggingface_hub as it comes: a test may have had it use our transport, which is closed by now."""
    yield
    set_async_client_factory(default_async_client_factory)


@pytest.fixture
def ask(request: pytest.FixtureRequest) -> Callable[..., Prompt]:
    """``ask(tokens=5, itl_s=0.1, …)``: a prompt nobody used before that makes the stand-in behave so.

    The same one in each run, since the stand-in draws its text from it: what a test meets is no matter of luck.
    """
    count = itertools.count()

    def make(words: str = "Tell me", *, tokens: int = 8, **script: Any) -> Prompt:
        directive = json.dumps({"tokens": tokens, **script})
        name = uuid.uuid5(uuid.NAMESPACE_OID, f"{request.node.nodeid} {next(count)}").hex
        prompt = Prompt(f"{words} {name} {{{{standin {directive}}}}}")
        prompt.tokens = tokens
        return prompt

    return make


@dataclass
class StandinProcess:
    """A stand-in in a process of its own, and its control routes."""

    url: str
    process: "subprocess.Popen[str]"

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/standin/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            raw = response.read()
        return json.loads(raw) if raw else None

    def script(self, **update: Any) -> None:
        """Change what every request without a directive meets."""
        self._control("PUT", "script", update)

    def requests(self, prompt: str | None = None) -> list[dict[str, Any]]:
        """What came over the wire, oldest first; only the calls for ``prompt`` if it is given."""
        entries: list[dict[str, Any]] = self._control("GET", "requests")
        if prompt is None:
            return entries
        return [entry for entry in entries if isinstance(entry["body"], dict) and entry["body"].get("inputs") == prompt]

    def attempts(self, prompt: str) -> list[dict[str, Any]]:
        """The calls for ``prompt`` and those that continue its text, oldest first."""
        return [entry for entry in self.requests() if str(entry["body"].get("inputs")).startswith(prompt)]

    def chats(self, prompt: str) -> list[dict[str, Any]]:
        """The chats whose first message is ``prompt``, oldest first."""
        entries = [entry for entry in self.requests() if "messages" in entry["body"]]
        return [entry for entry in entries if entry["body"]["messages"][0]["content"] == prompt]

    def only(self, prompt: str) -> dict[str, Any]:
        """The one call for ``prompt``."""
        (entry,) = self.requests(prompt)
        return entry

    def clear(self) -> None:
        """Forget all requests."""
        self._control("DELETE", "requests")


@contextlib.contextmanager
def running_standin(*arguments: str) -> Iterator[StandinProcess]:
    process = subprocess.Popen(
        [sys.executable, "-m", "genqueue_ops.standin", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"listening on (\S+)\n", line)
        assert found, f"the stand-in said {line!r}"
        yield StandinProcess(found[1], process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="session")
def standin() -> Iterator[StandinProcess]:
    """The TGI stand-in of the generators ``default`` and most others."""
    with running_standin("--max-concurrent-requests", "1000", "--tokens", "8") as served:
        yield served


@pytest.fixture(scope="session")
def keyed_standin() -> Iterator[StandinProcess]:
    """A stand-in that wants ``Authorization: Bearer $STANDIN_KEY``."""
    with running_standin("--tokens", "8", "--api-key", TOKENS["STANDIN_KEY"]) as served:
        yield served


@pytest.fixture(scope="session")
def closed_port() -> Iterator[int]:
    """A port of this machine where nothing listens: bound, so that nobody else can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def own_redis(real_redis: LocalRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    """A Redis of the module's own, as ``queue_redis`` is one for all."""
    with guarded_redis(tmp_path_factory.mktemp("own-redis")) as server:
        yield server


@pytest.fixture(scope="session")
def queue_redis(real_redis: LocalRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    """The Redis of the worker below, never emptied; ``real_redis`` knows what to do where there is none."""
    with guarded_redis(tmp_path_factory.mktemp("queue-redis")) as server:
        yield server


@pytest.fixture
def db(queue_redis: LocalRedis) -> Iterator[redis.Redis]:
    """A look into the worker's Redis."""
    with redis.Redis.from_url(queue_redis.url) as client:
        yield client


@dataclass
class WorkerProcess:
    """A Celery worker in a process of its own."""

    process: "subprocess.Popen[bytes]"
    log_path: Path
    redis_url: str
    generators: list[str] = field(default_factory=list)

    @property
    def producer_url(self) -> str:
        """Where its producers find Redis, and as whom."""
        return as_role(self.redis_url, "producer")

    @property
    def log(self) -> str:
        """Everything it has logged."""
        return self.log_path.read_text(errors="replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log, of which each line must be JSON; without the one that is not whole yet."""
        return [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("\n")]

    def outcomes(self, generation_id: str) -> list[dict[str, Any]]:
        """The lines that say what came of a generation's doorbells and attempts."""
        return [line for line in self.lines if line.get("generation_id") == generation_id and "outcome" in line]

    def wait_until_ready(self) -> None:
        """Its generators are announced and Celery consumes."""
        with redis.Redis.from_url(self.redis_url) as client:
            wait_for(
                lambda: self._is_ready(client), within_s=60, what=f"ready; its log: {self.log[-LOG_TAIL_CHARACTERS:]}"
            )

    def _is_ready(self, client: redis.Redis) -> bool:
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log}"
        return " ready." in self.log and {name.encode() for name in self.generators} <= set(
            client.hkeys("genqueue:generators")
        )

    def end(self, within_s: float = 60.0) -> int:
        """Send SIGTERM and wait for the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the worker did not end within {within_s} s of SIGTERM:\n{self.log[-LOG_TAIL_CHARACTERS:]}")


class Fleet:
    """Workers on a Redis of their own, which tests may kill, freeze and replace.

    Attributes:
        redis: that Redis.
        client: a producer that knows the generators.
    """

    def __init__(
        self,
        server: LocalRedis,
        launch: Callable[..., WorkerProcess],
        generators: dict[str, dict[str, Any]],
        environ: dict[str, str],
    ) -> None:
        self.redis = server
        self.producer_url = as_role(server.url, "producer")
        self.client = GenerationClient(Settings(redis_url=self.producer_url, generators=generators))  # type: ignore[arg-type]
        self.workers: list[WorkerProcess] = []
        self._launch = launch
        self._generators = generators
        self._environ = environ

    def staff(self, count: int, **environ: str) -> list[WorkerProcess]:
        """See to it that ``count`` workers run and are ready."""
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]
        began = [
            self._launch(self._generators, self.redis.url, "-c", "64", environ={**self._environ, **environ}, wait=False)
            for _ in range(count - len(self.workers))
        ]
        self.workers += began
        for worker in began:
            worker.wait_until_ready()
        return self.workers

    def holder(self, generation: Any) -> WorkerProcess:
        """The worker that began the newest attempt."""
        with redis.Redis.from_url(self.redis.url) as db:
            owner = wait_for(lambda: db.hget(f"genqueue:generation:{generation.id}", "owner"), what="an attempt")
        (found,) = [worker for worker in self.workers if str(worker.process.pid) == owner.decode().split(":")[-2]]
        return found

    def record(self, generation: Any) -> dict[str, str]:
        """The registry's entry."""
        with redis.Redis.from_url(self.redis.url, decode_responses=True) as db:
            found: dict[str, str] = db.hgetall(f"genqueue:generation:{generation.id}")
        return found

    def kill(self) -> None:
        """End all, whatever they do and whether they are frozen or not."""
        self.client.close()
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()


@pytest.fixture(scope="session")
def fleet_of(
    real_redis: LocalRedis, launch_worker: Callable[..., WorkerProcess], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., contextlib.AbstractContextManager[Fleet]]:
    """``with fleet_of(generators, GENQUEUE_LEASE_S="1") as fleet``: no worker yet; all are killed at the end."""

    @contextlib.contextmanager
    def open_fleet(generators: dict[str, dict[str, Any]], **environ: str) -> Iterator[Fleet]:
        with guarded_redis(tmp_path_factory.mktemp("fleet-redis"), appendonly=True) as server:
            fleet = Fleet(server, launch_worker, generators, environ)
            try:
                yield fleet
            finally:
                fleet.kill()

    return open_fleet


class Hosts:
    """A worker for each model server, as they stand side by side on their hosts."""

    def __init__(
        self,
        redis_url: str,
        launch: Callable[..., WorkerProcess],
        urls_of_each: list[list[str]],
        *,
        places: int = 64,
        **options: Any,
    ) -> None:
        self.settings = Settings(redis_url=as_role(redis_url, "producer"), generators={})
        self.workers = [
            launch(
                {"default": {"api_type": "text_generation_inference", **options, "api_params": {"urls": urls}}},
                redis_url,
                "-c",
                str(places),
                wait=False,
            )
            for urls in urls_of_each
        ]
        for worker in self.workers:
            worker.wait_until_ready()
        self.client = GenerationClient(self.settings)

    def health(self, worker: WorkerProcess) -> list[str] | None:
        """What the worker says of its servers; None before it said anything."""
        for status in self.client.workers():
            if f":{worker.process.pid}:" in status.name:
                return [server["health"] for server in status.generators["default"]]
        return None


@pytest.fixture
def hosts(
    real_redis: LocalRedis, launch_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> Iterator[Callable[..., Hosts]]:
    """``hosts([[url], [url, url]])``: one worker for each list of addresses, on a Redis of their own."""
    with contextlib.ExitStack() as stack:
        redis_url = stack.enter_context(guarded_redis(tmp_path)).url

        def start(urls_of_each: list[list[str]], **options: Any) -> Hosts:
            started = Hosts(redis_url, launch_worker, urls_of_each, **options)
            stack.callback(started.client.close)
            for worker in started.workers:
                stack.callback(worker.end)
            return started

        yield start


class Reading:
    """One generation read live in the background."""

    def __init__(self, generation: Any) -> None:
        self.generation = generation
        self.events: list[tuple[float, Any]] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self.generation.events():
                self.events.append((time.time(), event))
        except BaseException as error:
            self.error = error

    def came(self, kind: str, attempt: int) -> float | None:
        """When (epoch seconds) an event came; None if it has not."""
        return next((at_s for at_s, event in list(self.events) if (event.type, event.attempt) == (kind, attempt)), None)

    def kinds(self) -> list[str]:
        """``attempt.type`` of all events, chunks left out."""
        return [f"{event.attempt}.{event.type}" for _, event in self.events if event.type != "chunk"]

    def text(self, within_s: float = 30.0) -> str:
        """What a reader has at the end, who follows the events' rules."""
        self._thread.join(within_s)
        assert not self._thread.is_alive(), f"no end; so far: {self.kinds()}"
        if self.error is not None:
            raise self.error
        assert [event.seq for _, event in self.events] == list(range(1, len(self.events) + 1))
        parts: list[str] = []
        for _, event in self.events:
            if event.type == "reset":
                parts = []
            parts.append(getattr(event, "text", ""))
        return "".join(parts)


@pytest.fixture(scope="session")
def read() -> Callable[[Any], Reading]:
    """``read(generation)``: a reader that starts now and keeps when each event came."""
    return Reading


def printed_by(code: str, redis_url: str) -> str:
    """What a Python program of a page prints that finds its queue at ``redis_url``."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "GENQUEUE_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def toml_of(generators: dict[str, dict[str, Any]]) -> str:
    """A ``genqueue.toml``; JSON scalars, arrays and strings are TOML's too."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{json.dumps(key)} = {value(part)}" for key, part in item.items()) + " }"
        return json.dumps(item)

    lines = []
    for name, options in generators.items():
        lines.append(f"[generators.{name}]")
        lines += [f"{key} = {value(item)}" for key, item in options.items()]
    return "\n".join(lines) + "\n"


def clean_environment(folder: Path) -> dict[str, str]:
    """This process's environment without what would configure genqueue or huggingface_hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GENQUEUE_", "HF_", "HUGGING"))}
    return {**kept, "HF_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}


_started: list[WorkerProcess] = []


@pytest.fixture(scope="session")
def launch_worker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., WorkerProcess]:
    """Starts ``celery -A genqueue_worker.app worker``; whoever calls it ends it.  ``before`` is what its shell does."""

    def launch(
        generators: dict[str, dict[str, Any]],
        redis_url: str,
        *arguments: str,
        environ: dict[str, str] | None = None,
        wait: bool = True,
        before: str = "",
    ) -> WorkerProcess:
        folder = tmp_path_factory.mktemp("worker")
        config, log_path = folder / "genqueue.toml", folder / "worker.log"
        config.write_text(toml_of(generators))
        command = [sys.executable, "-m", "celery", "-A", "genqueue_worker.app", "worker", "-P", "threads", "-l", "info"]
        command += arguments  # the last -l counts
        if before:
            command = ["/bin/sh", "-c", f'{before}; exec "$@"', "sh", *command]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={
                    **clean_environment(folder),
                    "GENQUEUE_REDIS_URL": as_role(redis_url, "worker"),
                    "GENQUEUE_CONFIG": str(config),
                    **(environ or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        worker = WorkerProcess(process, log_path, redis_url, list(generators))
        _started.append(worker)
        if wait:
            worker.wait_until_ready()
        return worker

    return launch


@pytest.fixture
def start_worker(launch_worker: Callable[..., WorkerProcess]) -> Iterator[Callable[..., WorkerProcess]]:
    """``launch_worker`` for one test: what it started is ended with it."""
    started: list[WorkerProcess] = []

    def start(*args: Any, wait: bool = True, **kwargs: Any) -> WorkerProcess:
        worker = launch_worker(*args, wait=False, **kwargs)
        started.append(worker)  # before it is ready: one that never is ends with its test too
        if wait:
            worker.wait_until_ready()
        return worker

    yield start
    for worker in started:
        worker.end()


@dataclass
class FlowerProcess:
    """Flower, and its HTTP API, which asks for no password here."""

    url: str
    log_path: Path

    def ask(self, path: str, method: str = "GET") -> Any:
        """The JSON that a route answers; None while there is none."""
        try:
            request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
            with urllib.request.urlopen(request, timeout=5) as response:
                return json.load(response)
        except OSError:
            return None


@pytest.fixture(scope="session")
def flower_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, dict[str, dict[str, Any]]], contextlib.AbstractContextManager[FlowerProcess]]:
    """``with flower_of(redis_url, generators) as flower``: it has seen a worker."""

    @contextlib.contextmanager
    def open_flower(redis_url: str, generators: dict[str, dict[str, Any]]) -> Iterator[FlowerProcess]:
        folder = tmp_path_factory.mktemp("flower")
        (folder / "genqueue.toml").write_text(toml_of(generators))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "celery", "-A", "genqueue_worker.app", "flower"]
        command += ["--address=127.0.0.1", f"--port={port}"]
        environ = {name: value for name, value in clean_environment(folder).items() if not name.startswith("FLOWER")}
        environ |= {"GENQUEUE_REDIS_URL": as_role(redis_url, "flower"), "FLOWER_UNAUTHENTICATED_API": "true"}
        flower = FlowerProcess(f"http://127.0.0.1:{port}", folder / "flower.log")
        with flower.log_path.open("wb") as log:
            process = subprocess.Popen(
                command, env=environ, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            wait_for(lambda: flower.ask("workers"), within_s=60)
            yield flower
        except AssertionError as error:
            said = flower.log_path.read_text(errors="replace")[-3000:]
            raise AssertionError(f"{error}; Flower's log: {said}") from error
        finally:
            process.terminate()
            process.wait(timeout=20)

    return open_flower


@pytest.fixture(scope="session")
def generators(standin: StandinProcess, keyed_standin: StandinProcess, closed_port: int) -> dict[str, dict[str, Any]]:
    """What the worker below serves; a failure ends a generation at once (test_failures.py has those that go on)."""
    tgi = "text_generation_inference"
    served: dict[str, dict[str, Any]] = {
        "default": {"api_type": tgi, "api_params": {"url": standin.url}},
        "tuned": {
            "api_type": tgi,
            "api_params": {"url": standin.url, "headers": {"x-team": "blue"}, "model": "our/model"},
            "generation_kwargs": {"max_new_tokens": 6, "temperature": 0.5, "stop": ["own-stop"]},
            "chat_kwargs": {"max_tokens": 6, "temperature": 0.25, "top_p": 0.9},
            "stop_words": ["generator-word"],
        },
        "endpoint": {"api_type": "inference_endpoints", "api_params": {"url": f"{standin.url}/"}},
        "endpoint-hub": {
            "api_type": "inference_endpoints",
            "api_params": {"url": standin.url},
            "token_env": ["NOT_SET_ANYWHERE", "HF_TOKEN"],
        },
        "serverless": {
            "api_type": "serverless_inference_api",
            "api_params": {"model": standin.url, "provider": "hf-inference"},
        },
        "keyed": {"api_type": tgi, "api_params": {"url": keyed_standin.url}, "token_env": ["STANDIN_KEY"]},
        "locked": {"api_type": tgi, "api_params": {"url": keyed_standin.url}},
        "silent": {"api_type": tgi, "api_params": {"url": f"http://127.0.0.1:{closed_port}"}},
        "impatient": {"api_type": tgi, "api_params": {"url": standin.url, "timeout": 0.4}},
    }
    return {name: {**options, "max_attempts": 1} for name, options in served.items()}


@pytest.fixture(scope="session")
def worker(
    launch_worker: Callable[..., WorkerProcess], generators: dict[str, dict[str, Any]], queue_redis: LocalRedis
) -> Iterator[WorkerProcess]:
    """The worker of most tests, at its most talkative."""
    running = launch_worker(generators, queue_redis.url, "-c", "64", "-l", "debug", environ=TOKENS)
    yield running
    assert running.end() == 0, running.log[-LOG_TAIL_CHARACTERS:]


@pytest.fixture
def settings(worker: WorkerProcess) -> Settings:
    """A producer's: where Redis is, and nothing else."""
    return Settings(redis_url=worker.producer_url, generators={})


@pytest.fixture
def client(settings: Settings) -> Iterator[GenerationClient]:
    with GenerationClient(settings) as made:
        yield made


@pytest.fixture
async def async_client(settings: Settings) -> Any:
    async with AsyncGenerationClient(settings) as made:
        yield made


@contextlib.contextmanager
def plain_celery(url: str, broker: str | None = None) -> Iterator[Celery]:
    """An app that knows nothing of genqueue; ``Celery.close`` leaves the connections to its results open."""
    with Celery("plain", broker=broker or url, backend=url, set_as_current=False) as app:
        try:
            yield app
        finally:
            app.backend.result_consumer.stop()
            app.backend.result_consumer._pubsub = None  # or a result that is forgotten later unsubscribes on it
            app.backend.client.close()


@pytest.fixture
def celery_app(worker: WorkerProcess) -> Iterator[Celery]:
    """What a producer has that knows Celery and nothing of genqueue."""
    with plain_celery(worker.producer_url) as app:
        yield app


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failing test shows the end of the log of every worker that runs."""
    report = yield
    names = set(getattr(item, "fixturenames", ()))
    if report.failed and {"worker", "start_worker", "fleet_of"} & names:
        for worker in _started:
            if worker.process.poll() is None or "start_worker" in names:
                report.sections.append((f"log of worker {worker.process.pid}", worker.log[-LOG_TAIL_CHARACTERS:]))
    return report
