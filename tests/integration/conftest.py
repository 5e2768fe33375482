"""Real processes for the integration tests: one Redis, one TGI stand-in and one worker for all of them.

Nothing here is a fake and nothing of the client is patched.  Who stops, fills or starves a
worker starts one of their own with ``start_worker``.
"""

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
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

from ..support.programs import FlowerProcess, plain_celery
from ..support.readers import Reading
from ..support.roles import as_role, guarded_redis
from ..support.standins import Prompt, StandinProcess, running_standin
from ..support.waiting import wait_for
from ..support.workers import LOG_TAIL_CHARACTERS, TOKENS, Fleet, Hosts, WorkerProcess, clean_environment, toml_of


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


@pytest.fixture
def tgi(standin: StandinProcess) -> dict[str, dict[str, Any]]:
    """One generator, served by the stand-in."""
    return {"default": {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}}


@pytest.fixture
def producer(own_redis: LocalRedis) -> Iterator[GenerationClient]:
    """A producer of the module's own Redis, which knows no generator by itself."""
    with GenerationClient(Settings(redis_url=as_role(own_redis.url, "producer"), generators={})) as made:
        yield made


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


@pytest.fixture(scope="session")
def read() -> Callable[[Any], Reading]:
    """``read(generation)``: a reader that starts now and keeps when each event came."""
    return Reading


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
