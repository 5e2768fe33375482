"""A worker whose host grants it little: descriptors, memory, threads, a disk for its log."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import redis

from genqueue import AsyncGenerationClient, GenerationFailedError, Settings
from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.server import serve, stop_accepting

from ...support.roles import as_role


def ends(generations, within_s=60):
    results = [generation.result(timeout_s=within_s) for generation in generations]
    return [result.replies[0] for result in results], {result.meta[0]["attempts"] for result in results}


@pytest.mark.timeout(180)
def test_with_256_descriptors_and_256_places_nothing_is_lost(start_worker, own_redis, tgi, producer, ask, eventually):
    """Its connections to Redis are cut meanwhile: it has descriptors left to connect again."""
    worker = start_worker(tgi, own_redis.url, "-c", "256", before="ulimit -n 256")
    fits = re.search(r"-c 256 does not fit: this process may open 256 files .* runs (\d+) generations", worker.log)
    assert fits, worker.log
    prompts = [ask(tokens=60, itl_s=0.1) for _ in range(256)]
    generations = [producer.submit(prompt) for prompt in prompts]
    places = int(fits[1])
    with redis.Redis.from_url(own_redis.url) as db:
        eventually(lambda: db.zcard("genqueue:leases") >= places - 1, within_s=30)
        for kind in ("normal", "pubsub"):
            db.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    texts, attempts = ends(generations)
    assert texts == [prompt.answer for prompt in prompts]
    assert attempts == {1}
    afterwards = ask()
    assert producer.submit(afterwards).result(timeout_s=10).replies == [afterwards.answer]
    assert worker.end() == 0
    assert "Traceback" not in worker.log


@pytest.mark.timeout(180)
async def test_idle_connections_to_one_server_leave_descriptors_for_another(
    start_worker, own_redis, tgi, producer, ask
):
    async with serve(limits=Limits(max_concurrent_requests=1000)) as other:
        both = {**tgi, "other": {"api_type": "text_generation_inference", "api_params": {"url": other.url}}}
        worker = start_worker(both, own_redis.url, "-c", "40", before="ulimit -n 140")

        def turn(generator):
            prompts = [ask(tokens=4, itl_s=0.25) for _ in range(40)]
            texts, _ = ends([producer.submit(prompt, generator=generator) for prompt in prompts])
            assert texts == [prompt.answer for prompt in prompts]

        for generator in ("default", "other", "default"):
            await asyncio.to_thread(turn, generator)
        assert worker.process.poll() is None


@pytest.mark.timeout(120)
def test_a_worker_goes_on_when_there_are_descriptors_again(start_worker, own_redis, tgi, producer, ask, eventually):
    """For a while it can open nothing: neither a call's connection nor a new one to Redis, where all were cut."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot change the limits of another process")
    worker = start_worker(tgi, own_redis.url, "-c", "16")
    pid = worker.process.pid
    prompts = [ask(tokens=60, itl_s=0.1) for _ in range(8)]
    generations = [producer.submit(prompt) for prompt in prompts]
    for generation in generations:
        eventually(lambda generation=generation: generation.status().state == "running")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with redis.Redis.from_url(own_redis.url) as db:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, limits[1]))
        try:
            for kind in ("normal", "pubsub"):
                db.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            prompts += [ask(tokens=2) for _ in range(8)]
            generations += [producer.submit(prompt) for prompt in prompts[8:]]
            eventually(lambda: "leases cannot be renewed" in worker.log and "events wait" in worker.log)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert [generation.result(timeout_s=40).replies for generation in generations] == [
        [prompt.answer] for prompt in prompts
    ]
    assert worker.process.poll() is None
    assert worker.end() == 0


def test_a_limit_that_may_be_raised_is_raised(start_worker, own_redis, tgi):
    worker = start_worker(tgi, own_redis.url, "-c", "256", before="ulimit -S -n 256")
    limits = Path(f"/proc/{worker.process.pid}/limits")
    if not limits.exists():
        pytest.skip("this system does not say what a process may use")
    (soft,) = re.findall(r"Max open files +(\d+)", limits.read_text())
    assert int(soft) > 512
    assert "does not fit" not in worker.log


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        pytest.param("ulimit -n 70", "this process may open 70 files (RLIMIT_NOFILE)", id="descriptors"),
        pytest.param("ulimit -v 400000", "this host", id="memory"),
    ],
)
def test_too_little_for_any_generation_ends_the_start_in_words(start_worker, own_redis, tgi, limit, words):
    worker = start_worker(tgi, own_redis.url, "-c", "256", before=limit, wait=False)
    try:
        assert worker.process.wait(30) != 0
    except subprocess.TimeoutExpired:
        pytest.fail(worker.log)
    assert "genqueue: " in worker.log
    assert words in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.timeout(180)
def test_with_little_memory_as_many_run_as_there_are_threads_for(start_worker, own_redis, tgi, producer, ask):
    """A thread takes 8 MB of addresses for its stack; where memory is short no more can be started."""
    worker = start_worker(tgi, own_redis.url, "-c", "256", before="ulimit -v 1500000")
    fits = re.search(r"-c 256 does not fit: this host .*; (\d+) generations run at once", worker.log)
    assert fits, worker.log
    prompts = [ask(tokens=10, itl_s=0.05) for _ in range(120)]
    texts, attempts = ends([producer.submit(prompt) for prompt in prompts])
    assert texts == [prompt.answer for prompt in prompts]
    assert attempts == {1}
    assert worker.end() == 0


@pytest.fixture
def with_threads():
    """``with_threads(60)``: what a worker's shell does so that its user may have so many.

    The limit counts the threads of a user and is none for root, so the user is one that has nothing else.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "prlimit"))):
        pytest.skip("only root can start a worker as a user that has nothing else, by setpriv and prlimit")
    uid = 100_000 + os.getpid()

    def before(count):
        as_user = f"setpriv --reuid {uid} --inh-caps +dac_override --ambient-caps +dac_override"
        return f'set -- {as_user} prlimit --nproc={count} "$@"'

    return before


@pytest.fixture
def named(standin):
    """A server by its name, whose lookup needs a thread."""
    url = standin.url.replace("127.0.0.1", "localhost")
    return {"default": {"api_type": "text_generation_inference", "api_params": {"url": url}}}


@pytest.mark.timeout(180)
def test_with_few_threads_as_many_run_as_there_are(start_worker, own_redis, named, producer, ask, with_threads):
    worker = start_worker(named, own_redis.url, "-c", "256", before=with_threads(60))
    fits = re.search(r"-c 256 does not fit: this host lets .* too few threads: .*; (\d+) generations", worker.log)
    assert fits, worker.log
    prompts = [ask(tokens=10, itl_s=0.05) for _ in range(120)]
    texts, attempts = ends([producer.submit(prompt) for prompt in prompts])
    assert texts == [prompt.answer for prompt in prompts]
    assert attempts == {1}
    assert worker.end() == 0
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("count", [2, 4, 5, 6, 7])
def test_too_few_threads_for_any_generation_end_the_start_in_words(start_worker, own_redis, named, with_threads, count):
    worker = start_worker(named, own_redis.url, "-c", "256", before=with_threads(count), wait=False)
    assert worker.process.wait(60) == 1
    assert "genqueue: " in worker.log
    assert "can't start new thread" in worker.log
    assert "Traceback" not in worker.log


def limit_threads(pid, count):
    """As its user: root may not everywhere."""
    uid = Path(f"/proc/{pid}").stat().st_uid
    subprocess.run(["setpriv", f"--reuid={uid}", "prlimit", f"--pid={pid}", f"--nproc={count}:200"], check=True)


@pytest.mark.timeout(120)
def test_a_worker_goes_on_when_there_are_threads_again(
    start_worker, own_redis, named, producer, ask, eventually, with_threads
):
    """For a while it can start none, and its connections to Redis are cut meanwhile."""
    worker = start_worker(named, own_redis.url, "-c", "16", before=with_threads(200))
    pid = worker.process.pid
    prompts = [ask(tokens=60, itl_s=0.05) for _ in range(8)]
    generations = [producer.submit(prompt) for prompt in prompts]
    for generation in generations:
        eventually(lambda generation=generation: generation.status().state == "running")
    limit_threads(pid, 1)
    with redis.Redis.from_url(own_redis.url) as db:
        for kind in ("normal", "pubsub"):
            db.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    prompts += [ask(tokens=2) for _ in range(16)]
    generations += [producer.submit(prompt) for prompt in prompts[8:]]
    texts, attempts = ends(generations)
    assert texts == [prompt.answer for prompt in prompts]
    assert attempts == {1}
    limit_threads(pid, 200)
    assert worker.end() == 0
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("where", ["exec 2>/dev/full >/dev/full", "exec 2>&- >&-"])
def test_a_log_that_cannot_be_written_costs_nothing_else(
    start_worker, own_redis, tgi, producer, ask, eventually, where
):
    worker = start_worker(tgi, own_redis.url, "-c", "8", before=where, wait=False)
    eventually(lambda: producer.workers(), within_s=30)
    prompts = [ask(tokens=10) for _ in range(16)]
    texts, attempts = ends([producer.submit(prompt) for prompt in prompts])
    assert texts == [prompt.answer for prompt in prompts]
    assert attempts == {1}
    running = producer.submit(ask(tokens=20, itl_s=0.05))
    eventually(lambda: running.status().state == "running")
    worker.process.send_signal(signal.SIGTERM)
    assert running.result(timeout_s=10).meta[0]["attempts"] == 1
    assert worker.process.wait(15) == 0


@contextlib.asynccontextmanager
async def long_answers(most_bytes):
    """Where each answer is JSON of so many spaces."""

    async def serve(reader, writer):
        with contextlib.suppress(OSError, EOFError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[")
                for _ in range(0, most_bytes, 2**16):
                    writer.write(b" " * 2**16)
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    await stop_accepting(server)
    server.close()


SPARE_BYTES = 100 * 2**20


@pytest.mark.parametrize(
    ("most_bytes", "words"),
    [
        # What comes fits, and to join it does not.
        pytest.param(SPARE_BYTES * 3 // 4, "gave up after 3 attempts: this host is out of memory", id="to-read"),
        # aiohttp's parser has no memory for what comes, and says only that it failed.
        pytest.param(SPARE_BYTES * 10, "the way to the server failed|this host is out of memory", id="to-receive"),
    ],
)
@pytest.mark.timeout(180)
async def test_an_answer_that_does_not_fit_in_memory_ends_and_harms_no_other(
    start_worker, own_redis, tgi, ask, most_bytes, words
):
    """It is tried again a few times only: it would fail for ever."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot change the limits of another process")
    async with (
        long_answers(most_bytes) as url,
        AsyncGenerationClient(Settings(redis_url=as_role(own_redis.url, "producer"), generators={})) as client,
    ):
        long = {"api_type": "text_generation_inference", "api_params": {"url": url}, "max_attempts": 1}
        environ = {"GENQUEUE_MAX_REPLY_BYTES": "2000000000"}
        worker = start_worker({**tgi, "long": long}, own_redis.url, "-c", "16", environ=environ, wait=False)
        await asyncio.to_thread(worker.wait_until_ready)
        pid = worker.process.pid
        size = int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024
        resource.prlimit(pid, resource.RLIMIT_AS, (size + SPARE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        prompts = [ask(tokens=60, itl_s=0.1) for _ in range(4)]
        good = [await client.submit(prompt) for prompt in prompts]
        bad = await client.submit("hi", generator="long", generation_kwargs={"best_of": 2, "do_sample": True})
        with pytest.raises(GenerationFailedError, match=words):
            await bad.result(timeout_s=60)
        assert [(await each.result(timeout_s=30)).replies for each in good] == [[prompt.answer] for prompt in prompts]
        afterwards = ask()
        assert (await (await client.submit(afterwards)).result(timeout_s=10)).replies == [afterwards.answer]
    assert worker.process.poll() is None
