"""A Redis behind Sentinels, a Redis behind TLS, and both: broker, results, log and live channels alike."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from genqueue import AsyncGenerationClient, GenerationClient, Settings
from genqueue.connection.hub import LiveHub
from genqueue.errors import RedisUnavailableError, StoreError
from genqueue_ops.local_redis import find_redis_server

from ...support.redis_servers import (
    PASSWORD,
    SENTINEL_PASSWORD,
    USER,
    Certificates,
    Family,
    Server,
    data_lines,
    sentinel_family,
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates, where there is a redis-server that can use them."""
    found = find_redis_server("path")
    linked = subprocess.run(["ldd", found.program], capture_output=True, text=True).stdout if found else ""
    if "libssl" not in linked:
        missing = "no redis-server with TLS on PATH: apt-get install redis-server"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["plain", "tls"])
def family(request, tmp_path_factory, real_redis) -> Iterator[Family]:
    """A master, a replica and three Sentinels; all ask for passwords, and under TLS for certificates."""
    tls = request.getfixturevalue("certificates") if request.param == "tls" else None
    with sentinel_family(tmp_path_factory.mktemp("family"), tls) as family:
        yield family


@pytest.fixture(scope="module")
def generators(standin) -> dict[str, Any]:
    return {"default": {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}}


def serving(launch_worker, generators, url, eventually):
    """A worker that is ready, and a producer."""
    worker = launch_worker(generators, url, "-c", "16", wait=False)
    client = GenerationClient(Settings(redis_url=url, generators=generators))

    def is_ready() -> bool:
        assert worker.process.poll() is None, worker.log
        return " ready." in worker.log

    eventually(is_ready, within_s=60)
    eventually(client.workers, within_s=60)
    return worker, client


@pytest.fixture(scope="module")
def served(family, launch_worker, generators, eventually) -> Iterator[tuple[Any, GenerationClient]]:
    worker, client = serving(launch_worker, generators, family.url, eventually)
    yield worker, client
    client.close()
    assert worker.end() == 0, worker.log
    assert PASSWORD not in worker.log
    assert SENTINEL_PASSWORD not in worker.log


def whole(family: Family, eventually: Callable[..., Any]) -> Server:
    """The master of a family that can lose it."""
    eventually(lambda: family.is_whole, within_s=30)
    return family.master


def kill(family: Family, master: Server) -> Callable[[], None]:
    master.child.end(signal.SIGKILL)
    return master.start


def freeze(family: Family, master: Server) -> Callable[[], None]:
    master.send(signal.SIGSTOP)
    return lambda: master.send(signal.SIGCONT)


def hand_over(family: Family, master: Server) -> Callable[[], None]:
    with family.sentinels[0].connect() as client:
        client.execute_command("SENTINEL", "FAILOVER", family.NAME)
    return lambda: None


def is_replica(server: Server) -> bool:
    with server.connect() as client:
        role: bytes = client.execute_command("ROLE")[0]
    return role == b"slave"


LOSSES = {"plain": [freeze, hand_over], "tls": [kill]}


def test_a_failover_shows_no_seam(family, served, ask, read, eventually):
    _, client = served
    for lose in LOSSES["tls" if family.certificates else "plain"]:
        whole(family, eventually)
        prompt = ask(tokens=120, itl_s=0.03)
        generation = client.submit(prompt, generation_kwargs={"max_new_tokens": 500})
        reading = read(generation)
        eventually(lambda reading=reading: len(reading.events) > 20 or reading.error)
        master = whole(family, eventually)  # a machine that stood still may have had them fail over meanwhile
        mend = lose(family, master)
        try:
            eventually(lambda master=master: family.master is not master, within_s=30)
            assert reading.text(within_s=60) == prompt.answer
            assert generation.result(timeout_s=30).replies == [prompt.answer]
            assert reading.kinds() == ["1.started", "1.finished"]
            if lose is hand_over:
                # Until the Sentinels have told the old master, it accepts work of which nobody will know.
                eventually(lambda master=master: is_replica(master), within_s=30)
            # What is submitted now is taken: the queue is the new master's.
            after = ask(tokens=5)
            later = client.submit(after, generation_kwargs={"max_new_tokens": 500})
            assert later.result(timeout_s=60).replies == [after.answer]
        finally:
            mend()


def test_flower_and_celerys_own_commands_work_and_show_no_password(
    family, served, generators, flower_of, tmp_path, eventually
):
    environ = {**os.environ, "GENQUEUE_REDIS_URL": family.url, "GENQUEUE_GENERATORS": json.dumps(generators)}
    command = [sys.executable, "-m", "celery", "-A", "genqueue_worker.app", "inspect", "-t", "3", "conf"]
    said = []

    def ask():
        said.append(
            subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        )
        return said[-1].returncode == 0 and said[-1]

    asked = eventually(ask, within_s=60)
    assert family.NAME in asked.stdout
    shown = ""
    if family.certificates:  # the harder of the two is enough
        with flower_of(family.url, generators) as flower:
            found = eventually(
                lambda: "generate.default" in (answer := json.dumps(flower.ask("workers?refresh=1"))) and answer
            )
            shown = found + flower.log_path.read_text()
    for secret in (PASSWORD, family.url, SENTINEL_PASSWORD):
        assert secret not in shown + "".join(each.stdout + each.stderr for each in said)


async def test_an_async_client_asks_the_sentinels_too(family, served, ask, eventually):
    await asyncio.to_thread(whole, family, eventually)
    prompt = ask(tokens=5)
    async with AsyncGenerationClient(Settings(redis_url=family.url, generators={})) as client:
        generation = await client.submit(prompt, generation_kwargs={"max_new_tokens": 500})
        text = [chunk.text async for chunk in generation.stream()]
        assert ("".join(text), (await generation.result()).replies) == (prompt.answer, [prompt.answer])


@pytest.fixture(scope="module")
def tls_redis(certificates, tmp_path_factory) -> Iterator[Server]:
    """One Redis that speaks TLS only, and asks for a certificate and a password."""
    server = Server(tmp_path_factory.mktemp("tls") / "redis", certificates, data_lines(), sentinel=False)
    try:
        server.start()
        yield server
    finally:
        server.child.end(signal.SIGKILL)


def tls_url(server: Server, query: str) -> str:
    secret = PASSWORD.replace("/", "%2F").replace("@", "%40").replace(":", "%3A")
    return f"rediss://{USER}:{secret}@127.0.0.1:{server.port}/0?{query}"


async def test_everything_goes_over_tls(tls_redis, certificates, launch_worker, generators, eventually, ask):
    url = tls_url(tls_redis, certificates.query)
    worker, client = serving(launch_worker, generators, url, eventually)
    try:
        prompt = ask(tokens=5)
        generation = client.submit(prompt, generation_kwargs={"max_new_tokens": 500})
        assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
        async with AsyncGenerationClient(Settings(redis_url=url, generators={})) as other:
            again = other.generation(generation.id)
            text = [chunk.text async for chunk in again.stream()]
            assert ("".join(text), (await again.result()).replies) == (prompt.answer, [prompt.answer])
        app = Celery("plain", broker=f"{url}&ssl_cert_reqs=required", backend=f"{url}&ssl_cert_reqs=required")
        arguments = {"prompt": ask(tokens=5), "generation_kwargs": {"max_new_tokens": 500}}
        sent = app.send_task("genqueue.generate", kwargs=arguments, queue="generate.default", ignore_result=True)
        result = await asyncio.to_thread(client.generation(sent.id).result, 30)
        assert result.replies == [arguments["prompt"].answer]
        app.close()
    finally:
        client.close()
        assert worker.end() == 0, worker.log
    assert PASSWORD not in worker.log


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ends_at_once_leaves_no_connection_over_tls_open(tls_redis, certificates):
    """A call that is broken off at any step, and a subscription that is closed; each on a loop of its own."""
    settings = Settings(redis_url=tls_url(tls_redis, certificates.query), generators={})

    async def call(steps: int) -> None:
        async with AsyncGenerationClient(settings) as client:
            await client.generators()
            asking = asyncio.create_task(client.generators())
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])

    async def listen(steps: int) -> None:
        hub = LiveHub(settings.redis_url, settings.redis_timeout_s)
        async with hub.listen("a", lambda message: None):
            for _ in range(steps):
                await asyncio.sleep(0)
        await hub.close()

    for steps in range(30):
        for work in (call, listen):
            asyncio.run(work(steps))
            gc.collect()


@pytest.fixture
def wrong(tls_redis, certificates, tmp_path) -> dict[str, str]:
    """Addresses that name the right Redis in wrong ways."""
    foreign = Certificates(tmp_path)
    return {
        "another CA": tls_url(tls_redis, certificates.query.replace(str(certificates.ca), str(foreign.ca))),
        "no CA": tls_url(tls_redis, certificates.query.partition("&")[2]),
        "another password": tls_url(tls_redis, certificates.query).replace("canary", "wrong"),
    }


WRONG = {
    "another CA": "certificate verify failed",
    "no CA": "certificate verify failed",
    "another password": "refuses the credentials",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_producer_says_why_it_has_no_tls(wrong, what):
    with GenerationClient(Settings(redis_url=wrong[what], generators={})) as client:
        with pytest.raises(StoreError) as told:
            client.submit("x")
        with pytest.raises(StoreError) as told_listening:
            client.generation("x").result(timeout_s=5)
    for error in (told, told_listening):
        assert not isinstance(error.value, RedisUnavailableError)
        assert WRONG[what] in str(error.value).lower().replace("_", " ")
        assert "canary" not in str(error.value)


@pytest.mark.parametrize("what", ["another CA", "another password"])
def test_a_worker_ends_at_its_start_and_says_why_in_one_line(wrong, what, generators, tmp_path):
    configured = json.dumps({name: options for name, options in generators.items()})
    environ = {**os.environ, "GENQUEUE_REDIS_URL": wrong[what], "GENQUEUE_GENERATORS": configured}
    command = [sys.executable, "-m", "celery", "-A", "genqueue_worker.app", "worker", "-P", "threads"]
    ended = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if "genqueue:" in line]
    assert WRONG[what] in line.lower().replace("_", " ")
    assert "Traceback" not in ended.stderr
    assert "canary" not in ended.stdout + ended.stderr
