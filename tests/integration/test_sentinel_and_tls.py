"""A Redis behind Sentinels, a Redis behind TLS, and both: broker, results, log and live channels alike."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from genqueue import AsyncGenerationClient, GenerationClient, Settings
from genqueue_ops.local_redis import find_redis_server

from .redis_servers import PASSWORD, SENTINEL_PASSWORD, Certificates, Family, Server, sentinel_family

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

    eventually(is_ready, within_s=30)
    eventually(client.workers, within_s=30)
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


def bury(family: Family, server: Server, eventually: Callable[..., Any]) -> None:
    """Start a dead Redis again and see it become a replica."""
    server.start()
    eventually(lambda: family.is_whole, within_s=30)


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


@pytest.mark.parametrize("lose", [kill, freeze, hand_over])
def test_a_failover_shows_no_seam(family, served, ask, read, eventually, lose):
    _, client = served
    master = whole(family, eventually)
    prompt = ask(tokens=150, itl_s=0.03)
    generation = client.submit(prompt, generation_kwargs={"max_new_tokens": 500})
    reading = read(generation)
    eventually(lambda: len(reading.events) > 20)
    mend = lose(family, master)
    try:
        eventually(lambda: family.master is not master, within_s=30)
        assert reading.text(within_s=60) == prompt.answer
        assert generation.result(timeout_s=30).replies == [prompt.answer]
        assert reading.kinds() == ["1.started", "1.finished"]
        # What is submitted now is taken: the queue is the new master's.
        after = ask(tokens=5)
        later = client.submit(after, generation_kwargs={"max_new_tokens": 500})
        assert later.result(timeout_s=60).replies == [after.answer]
    finally:
        mend()
    eventually(lambda: family.is_whole, within_s=30)


async def test_an_async_client_asks_the_sentinels_too(family, served, ask):
    prompt = ask(tokens=5)
    async with AsyncGenerationClient(Settings(redis_url=family.url, generators={})) as client:
        generation = await client.submit(prompt, generation_kwargs={"max_new_tokens": 500})
        text = [chunk.text async for chunk in generation.stream()]
        assert ("".join(text), (await generation.result()).replies) == (prompt.answer, [prompt.answer])
