"""A reader that is broken off, closed, forgotten or failed keeps its place, says so, and leaves no subscription."""

import asyncio
import contextlib
import gc
import inspect
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis

from genqueue import (
    AsyncGenerationClient,
    GenerationClient,
    GenerationNotFoundError,
    GenqueueError,
    RedisUnavailableError,
    Settings,
    StreamRestartedError,
    keys,
)

from ...support.redis_servers import only_real_redis
from ...support.registry import Registry, flush
from ...support.waiting import wait_for


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url, generators={})


@pytest.fixture
def client(settings: Settings) -> Iterator[GenerationClient]:
    with GenerationClient(settings) as made:
        yield made


@pytest.fixture
async def async_client(settings: Settings) -> AsyncIterator[AsyncGenerationClient]:
    async with AsyncGenerationClient(settings) as made:
        yield made


@pytest.fixture
def channels(raw: redis.Redis) -> Callable[[], set[str]]:
    """The channels of readers that Redis sends to (fakeredis forgets none)."""
    return lambda: {name.decode() for name in raw.pubsub_channels() if name.decode() != keys.SILENT}


@pytest.fixture
def silent_redis() -> Iterator[tuple[str, threading.Event]]:
    """The address of a Redis that takes connections and never says a word, and whether it was asked anything."""
    is_asked = threading.Event()

    def listen_on(listening: socket.socket) -> None:
        with contextlib.suppress(OSError), listening.accept()[0] as asked:  # closed below
            asked.recv(1)
            is_asked.set()
            asked.recv(1 << 20)
            while asked.recv(1 << 20):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=listen_on, args=[listening])
        thread.start()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0", is_asked
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def begun(writer: Registry, *texts: str) -> str:
    """A running generation that has said so much."""
    generation_id = writer.running()
    for number, text in enumerate(texts, 1):
        writer.append(flush(generation_id, number, [text]))
    return generation_id


def say(writer: Registry, generation_id: str, number: int, text: str) -> None:
    writer.append(flush(generation_id, number, [text]))


def begin_anew(writer: Registry, generation_id: str, text: str) -> None:
    """Another worker has it, and says another text from its beginning on."""
    writer.lose_lease(generation_id)
    writer.claim(generation_id, "worker-2")
    last = flush(generation_id, 1, attempt=2, mark="reset")
    chunk = b'"v":1,"type":"chunk","text":"%s","tokens":[]}' % text.encode()
    last.bodies, last.text = [b'"v":1,"type":"reset"}', chunk], text
    writer.append(last)


async def gone(channels: Callable[[], set[str]]) -> None:
    async with asyncio.timeout(10):
        while await asyncio.to_thread(channels):
            await asyncio.sleep(0.005)


# --- a wait that is broken off ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["stream", "events", "batches"])
async def test_a_wait_that_times_out_takes_nothing_and_may_be_taken_up_again(async_client, writer, what):
    generation_id = begun(writer)
    reading, seen, pings = getattr(async_client.generation(generation_id), what)(), [], 0
    for number in range(1, 4):
        while True:  # until it waits for what does not come
            try:
                seen.append(await asyncio.wait_for(anext(reading), 0.1))
            except TimeoutError:
                break
        pings += 1
        await asyncio.to_thread(say, writer, generation_id, number, f"{number} ")
    await asyncio.to_thread(writer.finish, writer.finished(generation_id, "1 2 3 "))
    seen += [item async for item in reading]
    items = [item for each in seen for item in (each if isinstance(each, list) else [each])]
    assert "".join(getattr(item, "text", "") for item in items) == "1 2 3 "
    assert pings == 3


async def test_a_first_wait_that_is_cancelled_at_any_moment_takes_nothing(async_client, writer):
    """While it subscribes, while it asks Redis, while it waits."""
    generation_id = begun(writer, "a", "b")
    writer.finish(writer.finished(generation_id, "ab"))
    for steps in range(60):
        reading, seen = async_client.generation(generation_id).stream(), []
        waiting = asyncio.ensure_future(anext(reading))
        for _ in range(steps):
            await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            seen.append(await waiting)
        seen += [chunk async for chunk in reading]
        assert "".join(chunk.text for chunk in seen) == "ab"


async def test_two_waits_at_once_are_refused_and_do_no_harm(async_client, writer):
    generation_id = begun(writer)
    reading = async_client.generation(generation_id).stream()
    first = asyncio.ensure_future(anext(reading))
    await asyncio.sleep(0)
    with pytest.raises(GenqueueError, match="in another thread or task"):
        await anext(reading)
    await asyncio.to_thread(say, writer, generation_id, 1, "a")
    assert (await asyncio.wait_for(first, 10)).text == "a"


PROGRAM = """
import gc, signal, sys
from genqueue import GenerationClient, Settings
client = GenerationClient(Settings(redis_url=sys.argv[1], generators={}))
generation, text, interrupts, is_armed = client.generation(sys.argv[2]), "", 0, False
def interrupt(*_):
    global is_armed
    if is_armed:  # once for each time that the program is ready for it
        is_armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.00317)
while text != sys.argv[3] and interrupts < 2000:
    try:
        is_armed = True
        try:
            reading, text = generation.stream(), ""
            while True:
                try:
                    is_armed = True
                    for chunk in reading:
                        text += chunk.text
                    break
                except KeyboardInterrupt:
                    interrupts += 1
        except Exception as error:
            assert "interrupted" in str(error), error
            text = ""
        is_armed = False
    except KeyboardInterrupt:
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
reading = None
gc.collect()
print(text == sys.argv[3], interrupts > 0, flush=True)
sys.stdin.read()  # until it was looked for what is left
"""


@only_real_redis
def test_ctrl_c_between_any_two_steps_leaves_a_whole_text_or_an_error_and_no_subscription(redis_url, writer, channels):
    generation_id = begun(writer, *(f"{number} " for number in range(30)))
    text = "".join(f"{number} " for number in range(30))
    writer.finish(writer.finished(generation_id, text))
    command = [sys.executable, "-c", PROGRAM, redis_url, generation_id, text]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        said = program.stdout.readline()
        try:
            if said == "True True\n":
                assert program.poll() is None
                wait_for(lambda: not channels())
        finally:
            _, trouble = program.communicate(timeout=60)
    assert said == "True True\n", trouble


# --- close() -----------------------------------------------------------------------------------------


def reading_in_thread(read: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    ends: list[Any] = []

    def run() -> None:
        try:
            ends.append(read())
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ends


@only_real_redis
@pytest.mark.parametrize("timeout_s", [None, 60.0])
@pytest.mark.parametrize(("whose", "what"), [("client", "result"), ("client", "batches"), ("reading", "batches")])
def test_who_waits_while_it_is_closed_is_told_so_at_once(client, writer, channels, timeout_s, whose, what):
    generation = client.generation(begun(writer))
    reading = generation.batches(timeout_s=timeout_s)
    thread, ends = reading_in_thread(lambda: generation.result(timeout_s) if what == "result" else [*reading])
    wait_for(channels)
    time.sleep(0.05)  # until it waits; sooner is right too
    began_s = time.monotonic()
    (client if whose == "client" else reading).close()
    thread.join(10)
    (error,) = ends
    assert isinstance(error, GenqueueError), error
    assert "closed while it was in use" in str(error)
    assert time.monotonic() - began_s < 3.0
    wait_for(lambda: not channels())


@only_real_redis
async def test_an_asyncio_reader_that_waits_while_its_client_is_closed_is_told_so(settings, writer, channels):
    client = AsyncGenerationClient(settings)
    generation = client.generation(begun(writer))
    waiting = [asyncio.ensure_future(generation.result()), asyncio.ensure_future(anext(generation.stream()))]
    async with asyncio.timeout(10):
        while len(await asyncio.to_thread(channels)) < 2:
            await asyncio.sleep(0.005)
    await client.close()
    for error in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 3):
        assert isinstance(error, GenqueueError), error
        assert "closed while it was in use" in str(error)
    await gone(channels)


@pytest.mark.parametrize("whose", ["client", "reading"])
def test_who_waits_for_a_silent_redis_while_it_is_closed_is_told_so_at_once(silent_redis, whose):
    url, is_asked = silent_redis
    client = GenerationClient(Settings(redis_url=url, redis_timeout_s=60))
    reading = client.generation("g").stream()
    thread, ends = reading_in_thread(lambda: next(reading))
    assert is_asked.wait(10)
    (client if whose == "client" else reading).close()
    thread.join(20)
    (error,) = ends
    assert isinstance(error, GenqueueError), error
    assert "closed while it was in use" in str(error)
    client.close()


@pytest.mark.parametrize("whose", ["client", "reading"])
async def test_an_asyncio_reader_of_a_silent_redis_is_told_so_at_once(silent_redis, whose):
    url, is_asked = silent_redis
    client = AsyncGenerationClient(Settings(redis_url=url, redis_timeout_s=60))
    reading = client.generation("g").stream()
    waiting = asyncio.ensure_future(anext(reading))
    assert await asyncio.to_thread(is_asked.wait, 10)
    async with asyncio.timeout(20):
        await (client.close() if whose == "client" else reading.aclose())
        with pytest.raises(GenqueueError, match="closed while it was in use"):
            await waiting
    await client.close()


def test_who_reads_on_after_the_client_was_closed_is_told_so(client, writer):
    reading = client.generation(begun(writer, "a")).stream()
    assert next(reading).text == "a"
    client.close()
    for _ in range(2):
        with pytest.raises(GenqueueError, match="closed while it was in use"):
            next(reading)


def test_a_reading_that_was_closed_has_ended(client, writer):
    with client.generation(begun(writer, "a", "b")).stream() as reading:
        assert next(reading).text == "a"
    assert list(reading) == []
    reading.close()


# --- what is left behind ------------------------------------------------------------------------------


@only_real_redis
@pytest.mark.parametrize("how", ["closed", "forgotten", "ended", "failed", "restarted"])
def test_no_subscription_is_left_behind(client, writer, channels, how):
    generation_id = begun(writer, "a")
    reading = client.generation(generation_id).stream()
    assert next(reading).text == "a"
    assert channels() == {keys.live(generation_id)}
    if how == "closed":
        reading.close()
    elif how == "forgotten":
        del reading
        gc.collect()
    elif how == "ended":
        writer.finish(writer.finished(generation_id, "a"))
        assert list(reading) == []
    elif how == "failed":
        writer.raw.delete(keys.log(generation_id), keys.generation(generation_id))
        writer.raw.publish(keys.live(generation_id), b'[{"seq":9,"attempt":1,"v":1,"type":"resumed"}]')
        with pytest.raises(GenerationNotFoundError):
            wait_for(lambda: next(reading))
    else:
        begin_anew(writer, generation_id, "x")
        with pytest.raises(StreamRestartedError):
            next(reading)
    wait_for(lambda: not channels())


@only_real_redis
@pytest.mark.parametrize("how", ["closed", "forgotten", "cancelled", "ended", "failed", "restarted"])
async def test_no_asyncio_reader_leaves_a_subscription_behind(async_client, writer, channels, how):
    generation_id = begun(writer, "a")
    reading = async_client.generation(generation_id).stream()
    assert (await anext(reading)).text == "a"
    if how == "closed":
        await reading.aclose()
    elif how == "forgotten":
        del reading
        gc.collect()
    elif how == "cancelled":
        waiting = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0.01)
        waiting.cancel()
        del reading, waiting
        await asyncio.sleep(0)
        gc.collect()
    elif how == "ended":
        await asyncio.to_thread(writer.finish, writer.finished(generation_id, "a"))
        assert [chunk async for chunk in reading] == []
    elif how == "restarted":
        await asyncio.to_thread(begin_anew, writer, generation_id, "x")
        with pytest.raises(StreamRestartedError):
            await asyncio.wait_for(anext(reading), 20)
    else:
        await asyncio.to_thread(writer.raw.delete, keys.log(generation_id), keys.generation(generation_id))
        message = b'[{"seq":9,"attempt":1,"v":1,"type":"resumed"}]'
        await asyncio.to_thread(writer.raw.publish, keys.live(generation_id), message)
        with pytest.raises(GenerationNotFoundError):
            await asyncio.wait_for(anext(reading), 20)
    await gone(channels)


@only_real_redis
async def test_a_cancelled_first_wait_leaves_no_subscription_behind(async_client, writer, channels):
    generation_id = begun(writer)
    for steps in range(0, 40, 3):
        waiting = asyncio.ensure_future(anext(async_client.generation(generation_id).stream()))
        for _ in range(steps):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        del waiting
    gc.collect()
    await gone(channels)


# --- errors --------------------------------------------------------------------------------------------


def test_an_error_is_said_again_and_is_never_a_silent_end(client):
    reading = client.generation("nobody's").stream()
    for _ in range(3):
        with pytest.raises(GenerationNotFoundError):
            next(reading)


def test_a_restart_leads_to_its_generation(client, writer):
    generation_id = begun(writer, "a")
    generation = client.generation(generation_id)
    reading = generation.stream()
    assert next(reading).text == "a"
    begin_anew(writer, generation_id, "x")
    with pytest.raises(StreamRestartedError) as raised:
        next(reading)
    assert raised.value.generation is generation
    assert raised.value.delivered_text == "a"


# --- who shares what -------------------------------------------------------------------------------------


def test_clients_of_unequal_settings_share_no_hub(settings):
    patient = settings.model_copy(update={"redis_timeout_s": 60.0})
    with GenerationClient(settings) as one, GenerationClient(settings) as two, GenerationClient(patient) as other:
        assert one._live() is two._live()
        assert one._live() is not other._live()


def test_what_is_awaited_is_a_coroutine_function():
    for verb in ("submit", "submit_chat", "retry", "workers", "close"):
        assert inspect.iscoroutinefunction(getattr(AsyncGenerationClient, verb)), verb
        assert list(inspect.signature(getattr(AsyncGenerationClient, verb)).parameters) == list(
            inspect.signature(getattr(GenerationClient, verb)).parameters
        )


# --- a first contact ----------------------------------------------------------------------------------------


class CutsFirst:
    """A way to Redis that cuts its first ``cuts`` connections, each before its first answer is whole."""

    def __init__(self, port: int, cuts: int) -> None:
        self._target, self._cuts = port, cuts

    async def __aenter__(self) -> "CutsFirst":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if self._cuts > 0:
            self._cuts -= 1
            await near.read(1)
            back.close()
            return
        far, on = await asyncio.open_connection("127.0.0.1", self._target)
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pump(near, on), self._pump(far, back))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while piece := await source.read(65536):
            sink.write(piece)
            await sink.drain()
        sink.close()


@only_real_redis
@pytest.mark.parametrize("from_seq", [0, 2])
@pytest.mark.parametrize(("cuts", "is_read"), [(4, True), (40, False)])
async def test_a_first_contact_is_tried_once_more(redis_url, writer, from_seq, cuts, is_read):
    generation_id = begun(writer, "a", "b")
    writer.finish(writer.finished(generation_id, "ab"))
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    async with CutsFirst(port, cuts) as way:
        settings = Settings(redis_url=redis_url.replace(f":{port}", f":{way.port}"), generators={})
        async with AsyncGenerationClient(settings) as client:
            reading = client.generation(generation_id).stream(from_seq)
            if is_read:
                assert "".join([chunk.text async for chunk in reading]) == ("ab" if not from_seq else "b")
            else:
                with pytest.raises(RedisUnavailableError):
                    await anext(reading)
