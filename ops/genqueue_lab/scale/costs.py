"""Measure what each step of a generation costs Redis: CPU, commands, bytes, memory.

Every step is a call of :mod:`genqueue.registry` carried out by the real store against a real Redis
with the real scripts; what differs between a call with one generation in it and one with many is
the cost of one more.  Redis itself is asked what it spent (``INFO``).  Here no model server and no
worker process takes part: :mod:`genqueue_lab.scale.command` measures those by themselves.
"""

import asyncio
import functools
import itertools
import statistics
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from genqueue import AsyncGenerationClient, Settings, keys
from genqueue.connection.store import AsyncStore
from genqueue.registry import attempts, endings, fleet, submitting, sweeping
from genqueue.registry.attempts import End, Flush
from genqueue.registry.script import Call
from genqueue.wire.events import Token, chunk_body
from genqueue.wire.request import GenerationRequest, read_request
from genqueue.wire.result import GenerationResult
from genqueue_lab.scale.gauge import Gauge, machine
from genqueue_ops.capacity import Costs, Memory, Step

KEEP_S, LOG_TTL_S, RESULT_TTL_S = 7 * 86_400, 3600, 86_400
LEASE_S = 3.0
PROMPT_BYTES = 2000
WORKER = "gpu-host-0001:12345:0123abcd"
SERVERS = {"default": [{"address": "http://tgi:8080", "health": "up", "running": 32, "trouble": ""}]}
FACTS = {"default": {"api_type": "text_generation_inference", "max_queue_depth": 10_000}}
WORD = " word"
_AT_ONCE = 8
_MANY = 32
_FLEET = 2048
_DONE_AT = "2026-01-01T00:00:00+00:00"


def request() -> GenerationRequest:
    """One with a prompt of 2,000 bytes."""
    return read_request({"prompt": "x" * PROMPT_BYTES})


def submit(generation_id: str, asked: GenerationRequest) -> Call[Any]:
    """As a producer does."""
    return submitting.submit(
        generation_id,
        asked,
        keep_s=KEEP_S,
        idempotency_key=None,
        idempotency_ttl_s=RESULT_TTL_S,
        max_queue_depth=-1,
    )


def claim(generation_id: str, owner: str = WORKER) -> Call[Any]:
    """As a worker does; its lease outlasts everything measured here."""
    return attempts.claim(generation_id, "default", owner=owner, lease_s=600.0, keep_s=KEEP_S)


def flush(generation_id: str, number: int, tokens: int = 1) -> Flush:
    """The ``number``-th of an attempt, with tokens of five characters."""
    made = number * tokens
    return Flush(generation_id, 1, number, made, WORD * tokens, "first" if number == 1 else "", [_body(tokens)], made)


@functools.cache
def _body(tokens: int) -> bytes:
    return chunk_body(WORD * tokens, [Token(12_345, WORD, -0.52, False)] * tokens)


def append(flushes: Sequence[Flush], owner: str = WORKER) -> Call[list[str]]:
    """One flush of a worker."""
    return attempts.append(flushes, keep_s=KEEP_S, owner=owner)


def finish(generation_id: str, flushes: int, tokens: int, owner: str = WORKER) -> Call[str]:
    """The end of a generation of that many flushes and tokens, with the meta that a worker writes."""
    meta = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 400, "completion_tokens": tokens},
        "completion_start_time": _DONE_AT,
        "generator": "default",
        "endpoint": "http://tgi:8080",
        "attempts": 1,
        "timings": {"queue_wait_s": 0.1, "waking_s": None, "first_text_s": 0.2, "decode_s": 5.0, "total_s": 5.3},
    }
    result = GenerationResult(replies=[WORD * tokens], meta=[meta])
    last = Flush(generation_id, 1, flushes + 1, tokens, "", "", [], tokens)
    end: End = endings.finished(generation_id, "default", last, result, date_done=_DONE_AT)
    end = replace(end, owner=owner, number=flushes + 1)
    return attempts.finish(end, log_ttl_s=LOG_TTL_S, result_ttl_s=RESULT_TTL_S, keep_s=KEEP_S)


def announce(owner: str) -> Call[None]:
    """What a worker says of itself every ten seconds."""
    where = {"default": ["http://tgi:8080"]}
    return fleet.announce(FACTS, owner, SERVERS, worker_s=600.0, keep_s=KEEP_S, places=where)


def new_ids(count: int) -> list[str]:
    """Ids as producers make them."""
    return [str(uuid.uuid4()) for _ in range(count)]


async def all_of(store: AsyncStore, wanted: Iterable[Call[Any]]) -> list[Any]:
    """Carry out many calls, a few at a time, as many workers would."""
    left = iter(wanted)
    answers = []

    async def some() -> None:
        for call in left:
            answers.append(await store.run(call))

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    return answers


@asynccontextmanager
async def listening(url: str, ids: Sequence[str]) -> Any:
    """One connection that is sent every event of these generations, and does nothing with them."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    words = [b"SUBSCRIBE", *(keys.live(each).encode() for each in ids)]
    writer.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
    await writer.drain()
    answered = 0
    while answered < len(ids):
        answered += (await reader.read(1 << 20)).count(b"subscribe\r\n")

    async def drain() -> None:
        while await reader.read(1 << 20):
            pass

    draining = asyncio.create_task(drain())
    try:
        yield
    finally:
        draining.cancel()
        writer.close()


Run = Callable[[int], Awaitable[object]]
"""Takes a step so often."""


class Measure:
    """Takes one step after the other, each so often and in so many repetitions; medians are kept."""

    def __init__(self, url: str, repeats: int, scale: float) -> None:
        self._url = url
        self._gauge = Gauge(url)
        self._store = AsyncStore(url, 30.0)
        self._repeats = repeats
        self._scale = scale
        self._raw: Any = self._gauge.redis

    def _times(self, count: int) -> int:
        return max(_AT_ONCE, int(count * self._scale))

    async def _median(self, count: int, run: Run) -> Step:
        """Of several runs of ``count`` steps each, what one step costs."""
        (only,) = await self._medians((count, run))
        return only

    async def _medians(self, *ways: tuple[int, Run]) -> list[Step]:
        """The same of several ways, in turns, so that a busy machine makes all of them slower."""
        found: list[list[Step]] = [[] for _ in ways]
        for _, run in ways:
            await run(_AT_ONCE)  # loads the scripts, opens the connections
        for _ in range(self._repeats):
            for (count, run), steps in zip(ways, found, strict=True):
                before = self._gauge.read()
                await run(count)
                steps.append(self._gauge.since(before) * (1 / count))
        return [
            Step(*(statistics.median(getattr(step, name) for step in steps) for name in Step.__dataclass_fields__))
            for steps in found
        ]

    async def _running(self, count: int) -> list[str]:
        ids, asked = new_ids(count), request()
        await all_of(self._store, (submit(each, asked) for each in ids))
        await all_of(self._store, (claim(each) for each in ids))
        return ids

    async def steps(self) -> dict[str, Step]:
        """What each step costs, by its name in :func:`genqueue_ops.capacity.rates`."""
        found: dict[str, Step] = {}
        asked = request()
        fresh: list[str] = []

        async def submits(count: int) -> None:
            ids = new_ids(count)
            fresh.extend(ids)
            await all_of(self._store, (submit(each, asked) for each in ids))

        async def claims(count: int) -> None:
            await all_of(self._store, (claim(fresh.pop()) for _ in range(count)))

        times = self._times(1500)
        found["submit"] = await self._median(times, submits)
        words = ("BRPOP", *(keys.doorbell("default", each) for each in keys.PRIORITIES), "1")
        brpop: Call[Any] = Call(words, lambda answer: None)
        found["brpop"] = await self._median(times, lambda count: all_of(self._store, [brpop] * count))
        found["claim"] = await self._median(times, claims)
        self._raw.flushall()

        ids, heard_ids = await self._running(_FLEET), await self._running(_FLEET)
        number = dict.fromkeys([*ids, *heard_ids], 1)
        await all_of(self._store, (append([flush(each, 1)]) for each in number))  # a first text costs more

        def appends(ids: Sequence[str], of: int, tokens: int) -> Run:
            # Never the same ones twice in a row: their keys are not in the processor's caches, as in a fleet.
            groups = itertools.cycle([ids[first : first + of] for first in range(0, _FLEET, of)])

            def one() -> Call[Any]:
                group = next(groups)
                for each in group:
                    number[each] += 1
                return append([flush(each, number[each], tokens) for each in group])

            return lambda count: all_of(self._store, (one() for _ in range(count)))

        some = self._times(300)
        async with listening(self._url, heard_ids):
            one, many, longer, heard = await self._medians(
                (self._times(1500), appends(ids, 1, 1)),
                (some, appends(ids, _MANY, 1)),
                (some, appends(ids, _MANY, 11)),
                (some, appends(heard_ids, _MANY, 1)),
            )
        found["flush"] = (many - one) * (1 / (_MANY - 1))
        found["append"] = one - found["flush"]
        found["token"] = (longer - many) * (1 / (_MANY * 10))
        found["delivery"] = (heard - many) * (1 / _MANY)
        self._raw.flushall()

        ended = new_ids(times * self._repeats + _AT_ONCE)
        await all_of(self._store, (submit(each, asked) for each in ended))
        await all_of(self._store, (claim(each) for each in ended))
        await all_of(self._store, (append([flush(each, 1)]) for each in ended))
        found["finish"] = await self._median(
            times, lambda count: all_of(self._store, [finish(ended.pop(), 1, 200) for _ in range(count)])
        )
        self._raw.flushall()

        ids = await self._running(_FLEET)

        def renew(of: int) -> Run:
            groups = itertools.cycle([ids[first : first + of] for first in range(0, _FLEET, of)])

            def one() -> Call[Any]:
                return attempts.renew([(each, 1) for each in next(groups)], lease_s=600.0, keep_s=KEEP_S, owner=WORKER)

            return lambda count: all_of(self._store, (one() for _ in range(count)))

        one, many = await self._medians((self._times(1000), renew(1)), (self._times(400), renew(_MANY)))
        found["lease"] = (many - one) * (1 / (_MANY - 1))
        found["renew"] = one - found["lease"]
        found |= await self.sweeps()

        await all_of(self._store, (announce(f"{WORKER}-{number}") for number in range(100)))
        found["announce"] = await self._median(
            self._times(500), lambda count: all_of(self._store, [announce(WORKER)] * count)
        )
        event: Call[Any] = Call(("PUBLISH", "/0.celeryev/worker.heartbeat", "x" * 1000), lambda answer: None)
        found["celery"] = await self._median(times, lambda count: all_of(self._store, [event] * count))
        self._raw.flushall()
        found["reader"] = await self._reader(found)
        # A difference of two times that are alike may come out below nothing.
        return {name: replace(step, cpu_us=max(0.0, step.cpu_us)) for name, step in found.items()}

    async def sweeps(self) -> dict[str, Step]:
        """``sweep``, ``queue`` and ``look``: a call, what a queue adds to it, and one that is looked through."""

        def sweep(of: int, *, in_turn: bool) -> Run:
            # Of a lease that short it is always somebody's turn.
            lease_s = 0.001 if in_turn else 600.0
            call = sweeping.sweep([f"generator-{each}" for each in range(of)], lease_s=lease_s, keep_s=KEEP_S)
            return lambda count: all_of(self._store, [call] * count)

        none, ten, looked = await self._medians(
            (self._times(1000), sweep(0, in_turn=False)),
            (self._times(1000), sweep(10, in_turn=False)),
            (self._times(300), sweep(10, in_turn=True)),
        )
        return {"sweep": none, "queue": (ten - none) * 0.1, "look": (looked - ten) * 0.1}

    async def _reader(self, known: dict[str, Step]) -> Step:
        """What a reader costs beside the events: two beside none, of generations that run meanwhile."""
        settings = Settings(redis_url=self._url)

        async def run(client: AsyncGenerationClient, readers: int, count: int) -> None:
            async def one() -> None:
                generation_id = new_ids(1)[0]
                await self._store.run(submit(generation_id, request()))
                reading = [asyncio.create_task(_read(client, generation_id)) for _ in range(readers)]
                await asyncio.sleep(0.03)  # they are there before it begins
                await self._store.run(claim(generation_id))
                for number in range(1, 4):
                    await self._store.run(append([flush(generation_id, number)]))
                await self._store.run(finish(generation_id, 3, 3))
                await asyncio.gather(*reading)

            for _ in range(max(1, count // _AT_ONCE)):
                await asyncio.gather(*(one() for _ in range(_AT_ONCE)))

        count = max(_AT_ONCE, self._times(240) // _AT_ONCE * _AT_ONCE)
        async with AsyncGenerationClient(settings) as client:
            none, two = await self._medians(
                (count, lambda times: run(client, 0, times)), (count, lambda times: run(client, 2, times))
            )
        # Of two readers in one process only the first has the events sent: the process holds one subscription.
        return (two - none - known["delivery"] * 5) * 0.5

    async def memory(self) -> Memory:
        """What a generation holds, by what Redis's memory grows; three shapes of it give what each part adds."""
        small, long, thick = [await self._held(*shape) for shape in ((20, 1), (200, 1), (20, 10))]
        per_flush_and_token = [(more - less) / 180 for less, more in zip(small, long, strict=True)]
        per_token = [(more - less) / 180 for less, more in zip(small, thick, strict=True)]
        per_flush = [both - token for both, token in zip(per_flush_and_token, per_token, strict=True)]
        running, log, rest = (held - 20 * each for held, each in zip(small, per_flush_and_token, strict=True))
        return Memory(
            running, per_flush[0], per_token[0], log, per_flush[1], per_token[1], rest, per_flush_and_token[2]
        )

    async def _held(self, flushes: int, tokens: int) -> list[float]:
        """Bytes of one generation while it runs, of its log after the end, and of the rest."""
        self._raw.flushall()
        count = self._times(400)

        def held_bytes() -> int:
            return self._gauge.read().memory_bytes

        await self._running(_AT_ONCE)
        empty = held_bytes()
        ids = await self._running(count)
        for number in range(1, flushes + 1):
            await all_of(self._store, (append([flush(each, number, tokens)]) for each in ids))
        for priority in keys.PRIORITIES:
            self._raw.delete(keys.doorbell("default", priority))
        running = held_bytes() - empty
        await all_of(self._store, (finish(each, flushes, flushes * tokens) for each in ids))
        ended = held_bytes() - empty
        self._raw.delete(*(keys.log(each) for each in ids))
        rest = held_bytes() - empty
        self._raw.flushall()
        return [running / count, (ended - rest) / count, rest / count]

    async def close(self) -> None:
        """Close the connections."""
        await self._store.close()
        self._gauge.close()


async def _read(client: AsyncGenerationClient, generation_id: str) -> None:
    generation = client.generation(generation_id)
    async for _ in generation.stream():
        pass
    await generation.result()


async def measure(url: str, repeats: int, scale: float, worker: float, producer: float) -> Costs:
    """All of it.

    Args:
        repeats: of each step, so often; medians are kept.
        scale: how many steps of each, 1 for some 30 s of all.
        worker, producer: connections that one such process was seen to have.
    """
    measuring = Measure(url, repeats, scale)
    try:
        return Costs(machine(url), PROMPT_BYTES, await measuring.steps(), await measuring.memory(), worker, producer)
    finally:
        await measuring.close()
