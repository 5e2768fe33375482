"""Both clients against a log that this test writes: late, twice, at once, cut off, after the end."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from genqueue import (
    AsyncGenerationClient,
    GenerationCancelledError,
    GenerationClient,
    GenerationFailedError,
    GenerationNotFoundError,
    GenqueueError,
    InvalidRequestError,
    LogExpiredError,
    QueueFullError,
    ResultTimeoutError,
    Settings,
    ToolCallDelta,
    UnknownGeneratorError,
    keys,
)
from genqueue.connection.shared import LoopThread
from genqueue.connection.store import Store
from genqueue.discovery import location_digests
from genqueue.registry import fleet
from genqueue.registry.attempts import Flush
from genqueue.registry.lifecycle import State
from genqueue.registry.partial import encode_partial
from genqueue.wire.events import chunk_body
from genqueue_ops.local_redis import local_redis

from ...support.redis_servers import only_real_redis
from ...support.registry import Registry, flush
from ...support.waiting import wait_for

GENERATORS: dict[str, Any] = {
    "default": {
        "api_type": "text_generation_inference",
        "api_params": {"url": "http://127.0.0.1:1"},
        "max_queue_depth": 3,
    }
}


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each client in turn."""
    kind: str = request.param
    return kind


class Reader:
    """One client, sync or async, driven from threads: each method blocks until it is done."""

    def __init__(self, settings: Settings, loop_thread: LoopThread | None) -> None:
        self.settings = settings
        self._loop = loop_thread
        self.client: Any = GenerationClient(settings) if loop_thread is None else AsyncGenerationClient(settings)
        self._pool = ThreadPoolExecutor(64)

    def _wait(self, answer: Any) -> Any:
        return answer if self._loop is None else self._loop.call(answer)

    def submit(self, prompt: str = "p", **options: Any) -> str:
        generation_id: str = self._wait(self.client.submit(prompt, **options)).id
        return generation_id

    def collect(self, what: str, generation_id: str, from_seq: int, into: list[Any]) -> list[Any]:
        """Everything of ``stream`` or ``events``, put into a list as it comes."""
        items = getattr(self.client.generation(generation_id), what)(from_seq)
        if self._loop is None:
            for item in items:
                into.append(item)
            return into

        async def gather() -> list[Any]:
            async for item in items:
                into.append(item)
            return into

        return self._loop.call(gather())

    def start(self, generation_id: str, from_seq: int = 0, what: str = "stream") -> tuple[list[Any], Future[list[Any]]]:
        """Read in the background: the list that fills, and its future."""
        into: list[Any] = []
        return into, self._pool.submit(self.collect, what, generation_id, from_seq, into)

    def text(self, generation_id: str, from_seq: int = 0) -> str:
        return "".join(chunk.text for chunk in self.collect("stream", generation_id, from_seq, []))

    def result(self, generation_id: str, timeout_s: float | None = 10.0) -> Any:
        return self._wait(self.client.generation(generation_id).result(timeout_s))

    def status(self, generation_id: str) -> Any:
        return self._wait(self.client.generation(generation_id).status())

    def cancel(self, generation_id: str) -> bool:
        is_cancelled: bool = self._wait(self.client.generation(generation_id).cancel())
        return is_cancelled

    def generators(self) -> set[str]:
        found: set[str] = self._wait(self.client.generators())
        return found

    def places(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = self._wait(self.client.places())
        return found

    def close(self) -> None:
        self._wait(self.client.close())
        self._pool.shutdown()


@pytest.fixture(params=["sync", "async"])
def reader(request: pytest.FixtureRequest, redis_url: str, loop_thread: LoopThread) -> Iterator[Reader]:
    made = Reader(
        Settings(redis_url=redis_url, generators=GENERATORS), None if request.param == "sync" else loop_thread
    )
    yield made
    made.close()


def written(writer: Registry, *texts: str, end: bool = True) -> str:
    """A generation with one flush for each text."""
    generation_id = writer.running()
    for number, text in enumerate(texts, 1):
        writer.append(flush(generation_id, number, [text], mark="first" if number == 1 else ""))
    if end:
        writer.finish(writer.finished(generation_id, "".join(texts)))
    return generation_id


def listens(writer: Registry, generation_id: str) -> Callable[[], bool]:
    """Whether somebody has subscribed to a generation's channel."""
    channel = keys.live(generation_id).encode()
    return lambda: channel in writer.raw.pubsub_channels()


def test_a_reader_hears_each_chunk_as_it_is_written(reader, writer):
    generation_id = writer.submit()
    seen, reading = reader.start(generation_id)
    wait_for(listens(writer, generation_id))
    writer.claim(generation_id)
    for number, text in enumerate(["It ", "is ", "é🦜"], 1):
        writer.append(flush(generation_id, number, [text]))
        wait_for(lambda expected=number: len(seen) == expected)
    writer.finish(writer.finished(generation_id))
    assert [chunk.text for chunk in reading.result(10)] == ["It ", "is ", "é🦜"]
    assert [(chunk.seq, chunk.attempt, chunk.tokens[0].id) for chunk in seen] == [(2, 1, 1), (3, 1, 1), (4, 1, 1)]


def test_readers_before_in_the_middle_and_after_see_the_same_text(reader, writer):
    generation_id = writer.submit()
    readings = [reader.start(generation_id)]
    wait_for(listens(writer, generation_id))
    writer.claim(generation_id)
    for number in range(1, 6):
        writer.append(flush(generation_id, number, [f"{number} "]))
        readings.append(reader.start(generation_id))
    writer.finish(writer.finished(generation_id))
    readings.append(reader.start(generation_id))
    for _, reading in readings:
        assert "".join(chunk.text for chunk in reading.result(10)) == "1 2 3 4 5 "
    assert reader.text(generation_id) == reader.text(generation_id) == "1 2 3 4 5 "


@pytest.mark.parametrize(("from_seq", "expected"), [(0, "abc"), (1, "abc"), (2, "bc"), (4, ""), (5, ""), (99, "")])
def test_from_seq_resumes(reader, writer, from_seq, expected):
    assert reader.text(written(writer, "a", "b", "c"), from_seq) == expected


def test_events_are_all_events(reader, writer):
    generation_id = written(writer, "a")
    events = reader.collect("events", generation_id, 0, [])
    assert [event.type for event in events] == ["started", "chunk", "finished"]


def test_batches_are_the_events_that_came_together(reader, writer):
    generation_id = writer.submit()
    batches, reading = reader.start(generation_id, what="batches")
    wait_for(listens(writer, generation_id))
    writer.claim(generation_id)
    wait_for(lambda: len(batches) == 1)
    writer.append(flush(generation_id, 1, ["a", "b"]))
    wait_for(lambda: len(batches) == 2)
    writer.finish(writer.finished(generation_id))
    types = [[event.type for event in batch] for batch in reading.result(10)]
    assert types == [["started"], ["chunk", "chunk"], ["finished"]]
    whole = reader.collect("batches", generation_id, 0, [])
    assert [event.type for batch in whole for event in batch] == ["started", "chunk", "chunk", "finished"]


def test_the_generators_are_those_that_workers_announced_and_the_own_ones(reader, writer):
    facts = {"other": {"max_queue_depth": 1}}
    writer.run(fleet.announce(facts, "host:1:a", {}, worker_s=30.0, keep_s=60))
    assert reader.generators() == {"default", "other"}


def test_where_a_model_is_is_known_of_workers_and_of_the_own_settings(reader, writer):
    announced = {"default": ["theirs"], "other": ["elsewhere"]}
    writer.run(fleet.announce({}, "host:1:a", {}, worker_s=30.0, keep_s=60, places=announced))
    (own,) = location_digests(reader.settings.generators["default"])
    assert reader.places() == {"default": {own, "theirs"}, "other": {"elsewhere"}}


@only_real_redis
def test_a_reader_whose_connection_is_killed_misses_and_repeats_nothing(reader, writer):
    generation_id = writer.running()
    seen, reading = reader.start(generation_id)
    expected = ""
    for number in range(1, 31):
        writer.append(flush(generation_id, number, [f"{number} "]))
        expected += f"{number} "
        if number % 5 == 0:
            wait_for(lambda least=number - 4: len(seen) >= least)
            writer.raw.client_kill_filter(_type="pubsub")
        if number % 7 == 0:
            writer.raw.client_kill_filter(_type="normal", skipme=True)
    writer.finish(writer.finished(generation_id, expected))
    assert "".join(chunk.text for chunk in reading.result(20)) == expected


@only_real_redis
def test_fifty_readers_of_one_process_are_one_subscription(reader, writer):
    ids = [writer.running() for _ in range(10)]
    readings = [reader.start(generation_id) for generation_id in ids for _ in range(5)]
    for generation_id in ids:
        wait_for(listens(writer, generation_id))
    (connection,) = writer.raw.client_list(_type="pubsub")
    assert int(connection["sub"]) == 10
    for generation_id in ids:
        writer.append(flush(generation_id, 1, [generation_id]))
        writer.finish(writer.finished(generation_id, generation_id))
    texts = ["".join(chunk.text for chunk in reading.result(20)) for _, reading in readings]
    assert texts == [generation_id for generation_id in ids for _ in range(5)]


def test_without_chunks_the_text_comes_as_one(reader, writer):
    generation_id = writer.running(stream=False)
    quiet = flush(generation_id, 1, ["all of it"], mark="first")
    quiet.bodies = []
    writer.append(quiet)
    _, reading = reader.start(generation_id)
    writer.finish(writer.finished(generation_id, "all of it"))
    assert [chunk.text for chunk in reading.result(10)] == ["all of it"]


def test_after_the_log_the_text_comes_as_one_chunk_and_a_resume_is_refused(reader, writer):
    generation_id = written(writer, "a", "b")
    writer.raw.delete(keys.log(generation_id))
    assert [chunk.text for chunk in reader.collect("stream", generation_id, 0, [])] == ["ab"]
    with pytest.raises(LogExpiredError):
        reader.text(generation_id, 2)


def test_a_log_of_thousands_of_events_is_read_whole(reader, writer):
    generation_id = writer.running()
    texts = [f"{number} " for number in range(2500)]
    writer.append(flush(generation_id, 1, texts))
    writer.finish(writer.finished(generation_id))
    assert reader.text(generation_id) == "".join(texts)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_generation_gives_its_chunks_then_its_error(reader, writer, when):
    generation_id = writer.running()
    writer.append(flush(generation_id, 1, ["par"]))
    end = writer.failed(generation_id, text="tial")
    if when == "before":
        writer.finish(end)
    seen, reading = reader.start(generation_id)
    if when == "after":
        wait_for(lambda: seen)
        writer.finish(end)
    with pytest.raises(GenerationFailedError, match="words") as raised:
        reading.result(10)
    assert [chunk.text for chunk in seen] == ["par"]
    assert raised.value.partial_text == "partial"
    with pytest.raises(GenerationFailedError, match="words"):
        reader.result(generation_id)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_result_is_awaited(reader, writer, when):
    generation_id = writer.running()
    if when == "before":
        writer.finish(writer.finished(generation_id, "done"))
    waiting = reader._pool.submit(reader.result, generation_id)
    if when == "after":
        wait_for(lambda: keys.result(generation_id).encode() in writer.raw.pubsub_channels())
        writer.finish(writer.finished(generation_id, "done"))
    assert waiting.result(10).replies == ["done"]


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_a_result_that_does_not_come_in_time_says_so_and_the_generation_goes_on(reader, writer, timeout_s):
    generation_id = writer.running()
    began_s = time.monotonic()
    with pytest.raises(ResultTimeoutError, match=f"has not ended within {timeout_s:g} s"):
        reader.result(generation_id, timeout_s)
    assert time.monotonic() - began_s < 5
    assert reader.status(generation_id).state is State.RUNNING


@pytest.mark.parametrize("is_known", [True, False], ids=["used-before", "fresh"])
def test_a_silent_redis_does_not_outlast_the_callers_patience(real_redis, loop_thread, kind, is_known):
    """``redis_timeout_s`` is 30 s: who waits less for a result is told as soon."""
    with local_redis() as server:
        store = Store(server.url, 5.0)
        generation_id = Registry(store.run, redis.Redis.from_url(server.url)).running()
        reader = Reader(Settings(redis_url=server.url, redis_timeout_s=30.0), None if kind == "sync" else loop_thread)
        if is_known:
            reader.status(generation_id)
            with pytest.raises(ResultTimeoutError):
                reader.result(generation_id, 0.01)
        server.pause()
        try:
            began_s = time.monotonic()
            with pytest.raises(ResultTimeoutError, match=r"has not ended within 0.3 s"):
                reader.result(generation_id, 0.3)
            took_s = time.monotonic() - began_s
        finally:
            server.resume()
        assert 0.3 <= took_s < 20.0  # not 30
        with pytest.raises(ResultTimeoutError):  # and the connections are still of use
            reader.result(generation_id, 0.3)
        assert reader.status(generation_id).state is State.RUNNING
        reader.close()
        store.close()


CALL_UNDER_WAY_AT_EXIT = """
import contextlib, os, signal, sys
from genqueue import GenerationClient, ResultTimeoutError
from genqueue.registry import reading

client = GenerationClient()
with contextlib.suppress(ResultTimeoutError):
    client.generation(sys.argv[1]).result(timeout_s=0.01)
os.kill(int(sys.argv[2]), signal.SIGSTOP)
hub, thread = client._hub
thread.post(hub.store.run(reading.read_record(sys.argv[1])))
"""


def test_a_call_under_way_at_the_end_of_a_program_neither_holds_it_nor_shows(real_redis):
    with local_redis() as server:
        store = Store(server.url, 5.0)
        generation_id = Registry(store.run, redis.Redis.from_url(server.url)).running()
        try:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", CALL_UNDER_WAY_AT_EXIT, generation_id, str(server.pid)],
                env={**os.environ, "GENQUEUE_REDIS_URL": server.url},
                capture_output=True,
                text=True,
                timeout=60,
            )
        finally:
            server.resume()
        store.close()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_end_of_a_loops_thread_waits_for_what_it_cancels():
    steps, is_under_way = [], threading.Event()

    async def slow_to_leave() -> None:
        try:
            is_under_way.set()
            await asyncio.sleep(60)
        finally:
            for _ in range(100):
                await asyncio.sleep(0)
            steps.append("left")

    async def last() -> None:
        steps.append("last")

    thread = LoopThread("ends")
    thread.post(slow_to_leave())
    assert is_under_way.wait(10)
    thread.end(last())
    assert steps == ["left", "last"]
    thread.post(last())
    with pytest.raises(GenqueueError, match="the client was closed"):
        thread.call(last())
    assert steps == ["left", "last"]


def test_a_result_that_is_there_is_given_also_without_patience(reader, writer):
    assert reader.result(written(writer, "a"), 0).replies == ["a"]


@pytest.mark.parametrize("verb", ["text", "result", "status", "cancel"])
def test_an_id_that_was_never_submitted_is_not_found(reader, verb):
    with pytest.raises(GenerationNotFoundError, match="nobody's"):
        getattr(reader, verb)("nobody's")


def test_a_cancel_ends_it_for_every_reader(reader, writer):
    generation_id = writer.running()
    writer.append(flush(generation_id, 1, ["partial"]))
    seen, reading = reader.start(generation_id)
    wait_for(lambda: seen)
    assert reader.cancel(generation_id)
    with pytest.raises(GenerationCancelledError) as raised:
        reading.result(10)
    assert raised.value.partial_text == "partial"
    assert reader.cancel(generation_id)  # again: it is cancelled now
    assert reader.status(generation_id).state is State.CANCELLED


def test_a_cancel_after_the_end_says_no_and_changes_nothing(reader, writer):
    generation_id = written(writer, "a")
    assert not reader.cancel(generation_id)
    assert reader.result(generation_id).replies == ["a"]


def test_a_status_tells_the_place_in_the_queue(reader, writer):
    first, second, urgent = reader.submit(), reader.submit(), reader.submit(priority=0)
    positions = {each: reader.status(each).position for each in (first, second, urgent)}
    assert positions[urgent] == 0
    assert set(positions.values()) == {0, 1, 2}
    writer.claim(urgent)
    status = reader.status(urgent)
    assert (status.state, status.position, status.attempt, status.priority) == (State.RUNNING, None, 1, 0)
    assert status.timings["queue_wait_s"] is not None


def test_a_chat_is_registered_as_it_was_asked_and_read_back_whole(reader, writer):
    messages = [{"role": "user", "content": "Hi"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    generation_id = reader._wait(reader.client.submit_chat(messages, tools=tools, stop_words=["."])).id
    claim = writer.claim(generation_id)
    assert json.loads(claim.request) == {
        "messages": messages,
        "tools": tools,
        "generator": "default",
        "generation_kwargs": {},
        "stop_words": ["."],
        "stream": True,
        "priority": 5,
        "on_failure": "continue",
    }
    call = ToolCallDelta(0, "1", "f", "{}")
    body = chunk_body("", [], reasoning="Hm", tool_calls=[call])
    writer.append(Flush(generation_id, 1, 1, 2, encode_partial("", "Hm", [call]), "first", [body], 2))
    assert writer.finish(writer.failed(generation_id, text="par")) == "ok"
    seen = []
    with pytest.raises(GenerationFailedError, match="words") as raised:
        reader.collect("stream", generation_id, 0, seen)
    assert [(chunk.text, chunk.reasoning, chunk.tool_calls) for chunk in seen] == [("", "Hm", (call,))]
    partial = ("par", "Hm", [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}])
    error = raised.value
    assert (error.partial_text, error.partial_reasoning, error.partial_tool_calls) == partial
    with pytest.raises(GenerationFailedError) as raised:
        reader.result(generation_id)
    error = raised.value
    assert (error.partial_text, error.partial_reasoning, error.partial_tool_calls) == partial


def test_a_full_queue_and_an_unknown_generator_are_refused(reader, writer):
    for _ in range(3):
        reader.submit()
    with pytest.raises(QueueFullError, match="holds 3 generations, limit 3"):
        reader.submit()
    with pytest.raises(UnknownGeneratorError, match="unknown generator 'other'"):
        reader.submit(generator="other")


@pytest.mark.parametrize(
    "key", ["", "a" * 513, "\ud83d", 17, b"key"], ids=["empty", "long", "surrogate", "int", "bytes"]
)
def test_an_idempotency_key_that_cannot_be_one_is_refused(reader, writer, key):
    with pytest.raises(InvalidRequestError, match="idempotency_key"):
        reader.submit(idempotency_key=key)
    assert writer.everything() == {}


@pytest.mark.parametrize(
    "generation_id", [None, 17, b"id", "", "a" * 513, "\ud83d"], ids=["none", "int", "bytes", "empty", "long", "half"]
)
@pytest.mark.parametrize("verb", ["generation", "dead_letter", "retry", "drop"])
def test_an_id_that_cannot_be_one_is_refused(reader, verb, generation_id):
    with pytest.raises(InvalidRequestError, match=r"^generation_id: "):
        answer = getattr(reader.client, verb)(generation_id)
        reader._wait(answer)


@pytest.mark.parametrize("from_seq", [None, "1", 1.5, -1, True], ids=str)
@pytest.mark.parametrize("what", ["stream", "events"])
def test_a_from_seq_that_is_no_number_of_an_event_is_refused(reader, what, from_seq):
    with pytest.raises(InvalidRequestError, match=r"^from_seq: must be a whole number of at least 0$"):
        reader.collect(what, "id", from_seq, [])


@pytest.mark.parametrize("timeout_s", ["1", float("nan"), [1], pytest.param(10**400, id="no-float")])
def test_a_timeout_that_is_no_time_is_refused(reader, timeout_s):
    with pytest.raises(InvalidRequestError, match=r"^timeout_s: must be a number of seconds, or None$"):
        reader.result("id", timeout_s)


@pytest.mark.parametrize("timeout_s", [None, float("inf"), 10])
def test_a_result_may_be_waited_for_without_end(reader, writer, timeout_s):
    assert reader.result(written(writer, "a"), timeout_s).replies == ["a"]


@pytest.mark.parametrize("limit", ["1", 1.5, -1], ids=str)
def test_a_limit_that_is_no_number_is_refused(reader, limit):
    with pytest.raises(InvalidRequestError, match=r"^limit: must be a whole number of at least 0$"):
        reader._wait(reader.client.dead_letters(limit=limit))


def test_an_async_client_on_another_loop_says_so_and_may_move_there_once_it_is_closed(redis_url, writer):
    generation_id = written(writer, "a")
    client = AsyncGenerationClient(Settings(redis_url=redis_url, generators=GENERATORS))

    async def read() -> str:
        return "".join([chunk.text async for chunk in client.generation(generation_id).stream()])

    async def use() -> None:
        assert await read() == "a"
        await client.submit("p")

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(use())
        for verb in (read, client.generation(generation_id).status, lambda: client.submit("p"), client.close):
            with pytest.raises(GenqueueError, match="belongs to the event loop that first used it"):
                second.run(verb())
        first.run(client.close())
        second.run(use())
        second.run(client.close())


def test_a_stream_that_waits_on_another_loop_says_so_and_keeps_its_place(redis_url, writer):
    generation_id = written(writer, "a", end=False)
    client = AsyncGenerationClient(Settings(redis_url=redis_url, generators=GENERATORS))
    chunks = client.generation(generation_id).stream()

    async def first_text() -> str:
        return (await anext(chunks)).text

    async def no_more_within_a_moment() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(chunks), 0.05)

    async def end() -> None:
        await chunks.aclose()
        await client.close()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(first_text()) == "a"
        first.run(no_more_within_a_moment())
        with pytest.raises(GenqueueError, match="belongs to the event loop that first used it"):
            second.run(first_text())
        first.run(no_more_within_a_moment())
        first.run(end())


def test_the_same_idempotency_key_gives_the_same_generation(reader):
    assert reader.submit(idempotency_key="é" * 256) == reader.submit(idempotency_key="é" * 256)


def test_a_reader_that_stops_early_leaves_its_channel(reader, writer):
    generation_id = written(writer, "a", "b", end=False)
    if reader._loop is None:
        for _ in reader.client.generation(generation_id).stream():
            break
    else:

        async def look() -> None:
            chunks = reader.client.generation(generation_id).stream()
            async for _ in chunks:
                break
            await chunks.aclose()

        reader._loop.call(look())
    wait_for(lambda: not listens(writer, generation_id)())


def test_a_client_can_be_used_again_after_it_was_closed(reader, writer):
    generation_id = written(writer, "a")
    for _ in range(2):
        assert reader.text(generation_id) == "a"
        reader._wait(reader.client.close())


def test_threads_share_a_client(redis_url, writer):
    ids = [written(writer, f"{number}") for number in range(20)]
    with GenerationClient(Settings(redis_url=redis_url)) as client:
        texts: dict[str, str] = {}

        def read(generation_id: str) -> None:
            texts[generation_id] = "".join(chunk.text for chunk in client.generation(generation_id).stream())

        threads = [threading.Thread(target=read, args=[generation_id]) for generation_id in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {generation_id: f"{number}" for number, generation_id in enumerate(ids)}


async def test_a_task_that_is_cancelled_while_it_reads_leaves_the_others_alone(redis_url, writer):
    generation_id = writer.running()
    async with AsyncGenerationClient(Settings(redis_url=redis_url)) as client:

        async def read() -> str:
            return "".join([chunk.text async for chunk in client.generation(generation_id).stream()])

        tasks = [asyncio.create_task(read()) for _ in range(6)]
        await asyncio.to_thread(wait_for, listens(writer, generation_id))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])
        writer.append(flush(generation_id, 1, ["a"]))
        writer.finish(writer.finished(generation_id))
        assert await asyncio.gather(*tasks[1::2]) == ["a"] * 3


def read_in_a_child(client: GenerationClient, generation_id: str, answers: Any) -> None:
    answers.put("".join(chunk.text for chunk in client.generation(generation_id).stream()))
    client.close()
    answers.put("closed")


def test_a_forked_child_reads_with_its_parents_client(redis_url, writer):
    generation_id = written(writer, "a", "b")
    with GenerationClient(Settings(redis_url=redis_url)) as client:
        assert "".join(chunk.text for chunk in client.generation(generation_id).stream()) == "ab"
        forking = multiprocessing.get_context("fork")
        answers = forking.Queue()
        child = forking.Process(target=read_in_a_child, args=(client, generation_id, answers))
        child.start()
        try:
            assert answers.get(timeout=10) == "ab"
            assert answers.get(timeout=10) == "closed"
            child.join(10)
            assert child.exitcode == 0
        finally:
            child.kill()
            child.join()
        assert "".join(chunk.text for chunk in client.generation(generation_id).stream()) == "ab"


class LateAnswers:
    """A TCP way to Redis on which answers to the connections there are can be held up, while commands arrive."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._held: set[socket.socket] = set()
        self._fars: list[socket.socket] = []
        self._flows = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._fars.append(far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if source in self._held:
                    self._flows.wait(10)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def hold(self) -> None:
        """No answer to the connections of now until :meth:`release`."""
        self._held.update(self._fars)

    def release(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self.release()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def late(redis_url: str) -> Iterator[LateAnswers]:
    """The way of a client whose answers can be late."""
    made = LateAnswers(urlsplit(redis_url).port or 0)
    yield made
    made.close()


def far(redis_url: str, late: LateAnswers) -> Settings:
    """Settings of a client on that way, to the same database."""
    address = urlsplit(redis_url)
    return Settings(redis_url=address._replace(netloc=f"127.0.0.1:{late.port}").geturl(), generators=GENERATORS)


def waiting_ids(raw: redis.Redis) -> set[str]:
    return {found.decode() for found in raw.zrange(keys.waiting("default"), 0, -1)}


@pytest.mark.parametrize("key", [None, "a key"])
async def test_a_submit_that_is_cancelled_before_its_answer_leaves_nothing_running(redis_url, raw, late, key):
    async with AsyncGenerationClient(far(redis_url, late)) as client:
        first = (await client.submit("p")).id  # connected, and Redis has the script
        late.hold()
        submitting = asyncio.create_task(client.submit("p", idempotency_key=key))
        async with asyncio.timeout(10):
            while not (accepted := waiting_ids(raw) - {first}):
                await asyncio.sleep(0.005)
        submitting.cancel()
        asyncio.get_running_loop().call_later(0.1, late.release)
        with pytest.raises(asyncio.CancelledError):
            await submitting
        # By its key the caller can have it still.
        state = (await client.generation(accepted.pop()).status()).state
        assert state == ("cancelled" if key is None else "queued")
        assert (await (await client.submit("p", idempotency_key="other")).status()).state == "queued"


class TimeIsUp(Exception):
    """Raised by a signal's handler, as Celery's SoftTimeLimitExceeded is."""


def _time_is_up(*_: object) -> None:
    raise TimeIsUp


@pytest.mark.parametrize("key", [None, "a key"])
@pytest.mark.parametrize(
    ("handler", "error"), [(signal.default_int_handler, KeyboardInterrupt), (_time_is_up, TimeIsUp)]
)
def test_a_submit_that_is_interrupted_before_its_answer_leaves_nothing_running(
    redis_url, raw, late, key, handler, error, request
):
    earlier = signal.signal(signal.SIGINT, handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, earlier))
    accepted: set[str] = set()

    def interrupt() -> None:
        accepted.update(wait_for(lambda: waiting_ids(raw) - {first}))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with GenerationClient(far(redis_url, late)) as client:
        first = client.submit("p").id  # connected, and Redis has the script
        late.hold()
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(error):
            client.submit("p", idempotency_key=key)
        interrupter.join()
        state = client.generation(accepted.pop()).status().state
        assert state == ("cancelled" if key is None else "queued")
        assert client.submit("p", idempotency_key="other").status().state == "queued"
