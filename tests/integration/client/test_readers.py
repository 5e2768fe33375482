"""Readers that come late, twice, after the end, or lose their connection: all get the same text."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time

import pytest
import redis

from genqueue import AsyncGenerationClient, GenerationClient, GenerationNotFoundError, LogExpiredError, Settings

from ...support.roles import as_role


def texts(chunks):
    return "".join(chunk.text for chunk in chunks)


def test_a_late_reader_gets_the_text_from_the_beginning(client, ask, eventually):
    prompt = ask(tokens=40, itl_s=0.02)
    generation = client.submit(prompt)
    eventually(lambda: generation.status().completion_tokens >= 10)
    assert texts(generation.stream()) == prompt.answer


def test_reading_twice_gives_the_same_chunks_twice(client, ask):
    generation = client.submit(ask(tokens=10, itl_s=0.02))
    first = list(generation.stream())
    assert len(first) > 1
    assert list(generation.stream()) == first


def test_two_readers_at_once_get_the_same_chunks(client, ask):
    prompt = ask(tokens=30, itl_s=0.02)
    generation = client.submit(prompt)
    seen = {}

    def read(name):
        seen[name] = list(client.generation(generation.id).stream())

    readers = [threading.Thread(target=read, args=(name,)) for name in "ab"]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=20)
    assert seen["a"] == seen["b"]
    assert texts(seen["a"]) == prompt.answer


def test_a_reader_after_the_end_gets_the_same_chunks(client, ask, settings):
    generation = client.submit(ask(tokens=10, itl_s=0.02))
    live = list(generation.stream())
    generation.result(timeout_s=5)
    with GenerationClient(settings) as other:
        assert list(other.generation(generation.id).stream()) == live


def test_from_seq_resumes_after_any_chunk(client, ask):
    generation = client.submit(ask(tokens=12, itl_s=0.02))
    chunks = list(generation.stream())
    for read, chunk in enumerate(chunks, 1):
        assert list(generation.stream(from_seq=chunk.seq)) == chunks[read:]


def test_from_seq_resumes_while_it_runs(client, ask):
    prompt = ask(tokens=40, itl_s=0.02)
    generation = client.submit(prompt)
    reading = generation.stream()
    begun = [next(reading) for _ in range(3)]
    reading.close()
    rest = list(generation.stream(from_seq=begun[-1].seq))
    assert texts(begun) + texts(rest) == prompt.answer


def test_from_seq_beyond_the_end_gives_nothing(client, ask):
    generation = client.submit(ask(tokens=3))
    (*_, last) = generation.events()
    assert list(generation.stream(from_seq=last.seq)) == []
    assert list(generation.stream(from_seq=last.seq + 100)) == []


def test_an_unknown_id_is_said_to_be_unknown(client):
    generation = client.generation("nobody-submitted-this")
    for ask_for in (
        lambda: list(generation.stream()),
        lambda: generation.result(timeout_s=1),
        generation.status,
        generation.cancel,
    ):
        with pytest.raises(GenerationNotFoundError, match="nobody-submitted-this"):
            ask_for()


def pubsub_ids(db):
    """The subscription connections that wait for a generation's events or result."""
    return {entry["id"] for entry in db.client_list(_type="pubsub") if int(entry["sub"]) > 0}


def own_pubsubs(db, before):
    return pubsub_ids(db) - before


def kill_subscriptions(db, victims):
    for victim in victims:
        with contextlib.suppress(redis.ResponseError):  # it has gone by itself
            db.client_kill_filter(_id=victim)


@pytest.mark.parametrize("times", [1, 3])
def test_a_killed_subscription_loses_and_repeats_nothing(client, ask, db, eventually, times):
    before = pubsub_ids(db)
    prompt = ask(tokens=150, itl_s=0.02)
    generation = client.submit(prompt)
    chunks, kills = [], 0
    for chunk in generation.stream():
        chunks.append(chunk)
        if len(chunks) % 5 == 0 and kills < times:
            victims = eventually(lambda: own_pubsubs(db, before))
            kill_subscriptions(db, victims)
            kills += 1
    assert kills == times
    assert texts(chunks) == prompt.answer
    assert [chunk.seq for chunk in chunks] == sorted({chunk.seq for chunk in chunks})


def test_killing_every_subscription_worker_included_loses_nothing(client, ask, db, standin, eventually):
    prompt = ask(tokens=100, itl_s=0.02)
    generation = client.submit(prompt)
    chunks = []
    for chunk in generation.stream():
        chunks.append(chunk)
        if len(chunks) == 5:
            db.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    assert texts(chunks) == prompt.answer
    # And the worker still hears of cancels.
    unwanted = ask(tokens=5000, itl_s=0.02)
    other = client.submit(unwanted)
    eventually(lambda: other.status().completion_tokens > 0)
    assert other.cancel() is True
    eventually(lambda: standin.only(unwanted)["state"] == "dropped")


async def test_an_async_reader_survives_a_killed_subscription(async_client, ask, db):
    before = pubsub_ids(db)
    prompt = ask(tokens=150, itl_s=0.02)
    generation = await async_client.submit(prompt)
    chunks = []
    async for chunk in generation.stream():
        chunks.append(chunk)
        if len(chunks) == 5:
            kill_subscriptions(db, own_pubsubs(db, before))
    assert texts(chunks) == prompt.answer


def test_a_result_survives_a_killed_subscription(client, ask, db, eventually):
    before = pubsub_ids(db)
    prompt = ask(tokens=200, itl_s=0.02)
    generation = client.submit(prompt)
    states = []

    def kill():
        kill_subscriptions(db, eventually(lambda: own_pubsubs(db, before)))
        states.append(generation.status().state)

    thread = threading.Thread(target=kill)
    thread.start()
    result = generation.result(timeout_s=15)
    thread.join()
    assert states == ["running"]
    assert result.replies == [prompt.answer]


class CuttableProxy:
    """A TCP way to Redis that can be cut, refused, swallow everything, and be opened again."""

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._pairs = []
        self._open = True
        self._lost = None
        self._deaf = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._lost is not None:
                self._lost.add(near)
                continue
            if not self._open:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if source not in self._deaf:
                    sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Drop every connection, and those that come until :meth:`mend`."""
        self._open = False
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def swallow(self):
        """Lose every byte of the connections there are, for ever, and of those that come until :meth:`mend`."""
        self._deaf.update(end for pair in self._pairs for end in pair)
        self._lost = set()

    def mend(self):
        self._open = True
        if self._lost is not None:
            self._deaf |= self._lost
            self._lost = None

    def close(self):
        self.cut()
        for end in self._deaf:
            end.close()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(timeout=5)


@pytest.fixture
def proxy(queue_redis):
    made = CuttableProxy(queue_redis.port)
    made.url = as_role(queue_redis.url, "producer").replace(f":{queue_redis.port}/", f":{made.port}/")
    yield made
    made.close()


def test_a_reader_whose_network_was_away_for_a_second_gets_the_whole_text(proxy, worker, client, ask):
    prompt = ask(tokens=150, itl_s=0.02)
    generation = client.submit(prompt)
    with GenerationClient(Settings(redis_url=proxy.url, generators={})) as far:
        chunks = []
        mending = threading.Timer(1.0, proxy.mend)
        for chunk in far.generation(generation.id).stream():
            chunks.append(chunk)
            if len(chunks) == 5:
                proxy.cut()
                mending.start()
        mending.join()
        assert texts(chunks) == prompt.answer
        assert far.generation(generation.id).result(timeout_s=5).replies == [prompt.answer]


def test_a_reader_whose_network_swallowed_everything_is_soon_live_again(proxy, worker, client, ask, db, eventually):
    """As a NAT or a load balancer that forgets its connections: no end of any connection ever arrives."""
    before = pubsub_ids(db)
    prompt = ask(tokens=500, itl_s=0.03)
    generation = client.submit(prompt)
    settings = Settings(redis_url=proxy.url, generators={})
    with GenerationClient(settings) as far:
        chunks = []

        def read():
            chunks.extend(far.generation(generation.id).stream())

        reader = threading.Thread(target=read)
        reader.start()
        lost = eventually(lambda: own_pubsubs(db, before))
        eventually(lambda: generation.status().completion_tokens > 10)
        proxy.swallow()
        time.sleep(5.0)  # the length of the outage is what is tested
        proxy.mend()
        # A live channel again, before a silent one would have been looked after.
        eventually(lambda: own_pubsubs(db, before) - lost, within_s=4.5, what="subscribed again")
        assert generation.status().state == "running"
        reader.join(timeout=40)
        assert texts(chunks) == prompt.answer


async def test_fifty_streams_share_one_subscription_connection(settings, ask, db):
    before = pubsub_ids(db)
    async with AsyncGenerationClient(settings) as client, AsyncGenerationClient(settings) as another:
        prompts = [ask(tokens=40, itl_s=0.05) for _ in range(50)]
        counts, read = [], 0

        async def read_one(place, prompt):
            nonlocal read
            generation = await (client, another)[place % 2].submit(prompt)
            chunks = []
            async for chunk in generation.stream():
                chunks.append(chunk)
                if len(chunks) == 1:
                    read += 1
                    if read == len(prompts):  # all are under way
                        counts.append(len(await asyncio.to_thread(own_pubsubs, db, before)))
            return texts(chunks)

        read_texts = await asyncio.gather(*(read_one(place, prompt) for place, prompt in enumerate(prompts)))
    assert read_texts == [prompt.answer for prompt in prompts]
    assert counts == [1]


def test_fifty_threads_share_one_subscription_connection(client, ask, db, eventually):
    before = pubsub_ids(db)
    prompts = [ask(tokens=60, itl_s=0.05) for _ in range(50)]
    generations = [client.submit(prompt) for prompt in prompts]
    read, started = {}, threading.Semaphore(0)

    def read_one(generation):
        chunks = []
        for chunk in generation.stream():
            chunks.append(chunk)
            if len(chunks) == 1:
                started.release()
        read[generation.id] = texts(chunks)

    threads = [threading.Thread(target=read_one, args=(generation,)) for generation in generations]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert started.acquire(timeout=20)
    count = len(own_pubsubs(db, before))
    for thread in threads:
        thread.join(timeout=30)
    assert [read[generation.id] for generation in generations] == [prompt.answer for prompt in prompts]
    assert count == 1


def test_once_the_log_has_expired_the_text_comes_as_one_chunk(start_worker, queue_redis, standin, ask, eventually, db):
    url = queue_redis.url.removesuffix("/0") + "/2"
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}, "max_attempts": 1}
    start_worker({"brief": generator}, url, "-c", "4", environ={"GENQUEUE_LOG_TTL_S": "1"})
    with GenerationClient(Settings(redis_url=url, generators={})) as client, redis.Redis.from_url(url) as brief_db:
        prompt = ask(tokens=10, itl_s=0.02)
        generation = client.submit(prompt, generator="brief")
        chunks = list(generation.stream())
        assert len(chunks) > 1
        failed = client.submit(
            ask(tokens=9, faults=[{"kind": "cut", "after_tokens": 4}], itl_s=0.02), generator="brief"
        )
        with pytest.raises(Exception, match="end marker"):
            failed.result(timeout_s=10)
        eventually(lambda: not brief_db.keys("genqueue:generation:*:log"))
        (chunk,) = generation.stream()
        assert chunk.text == prompt.answer
        assert generation.result(timeout_s=10).replies == [prompt.answer]
        with pytest.raises(LogExpiredError):
            list(generation.stream(from_seq=chunks[0].seq))
        with pytest.raises(LogExpiredError):
            list(generation.events())
        whole = []
        with pytest.raises(Exception, match="end marker") as caught:
            whole.extend(failed.stream())
        assert caught.value.partial_text


def test_a_paused_reader_goes_on_where_it_was(client, ask):
    prompt = ask(tokens=30, itl_s=0.01)
    generation = client.submit(prompt)
    reading = generation.stream()
    first = next(reading)
    generation.result(timeout_s=10)  # everything happened meanwhile
    assert first.text + texts(reading) == prompt.answer


UNCLOSED = """
import asyncio, sys
from genqueue import AsyncGenerationClient, Settings

async def main():
    client = AsyncGenerationClient(Settings(redis_url=sys.argv[1], generators={}))

    async def one(prompt):
        generation = await client.submit(prompt)
        return "".join([chunk.text async for chunk in generation.stream()])

    await asyncio.gather(*map(one, sys.argv[2:]))

asyncio.run(main())
print("ended")
"""


def test_a_program_that_does_not_close_its_asyncio_client_ends(worker, ask):
    """Whoever swallows its cancel: before Python 3.12 redis-py does, in most runs with twenty streams."""
    for _ in range(3):
        prompts = [ask(tokens=10, itl_s=0.02) for _ in range(20)]
        done = subprocess.run(
            [sys.executable, "-c", UNCLOSED, worker.producer_url, *prompts], capture_output=True, text=True, timeout=30
        )
        assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
