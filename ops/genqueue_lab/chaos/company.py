"""Everybody who asks and reads in a chaos run: as README shows it, by both clients.

A reader joins what ``stream()`` yields.  One that leaves, or is told that Redis does not answer, comes back with
``from_seq``.  One that is told that the text began anew takes the result's; one that is told that there is no such
generation submits it again, under the same key.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from genqueue import (
    AsyncGenerationClient,
    Generation,
    GenerationClient,
    GenerationError,
    GenerationNotFoundError,
    GenerationResult,
    GenqueueError,
    StoreError,
    StreamRestartedError,
)
from genqueue.connection.store import AsyncStore
from genqueue.registry import reading
from genqueue.wire.events import Chunk, Event, Reset, Started
from genqueue_lab.chaos.orders import Order, behind
from genqueue_lab.chaos.plan import DEEP, Evil, Kind
from genqueue_lab.chaos.trace import Clock, Span, Trace
from genqueue_lab.chaos.verdict import Storm

_RETRY_S = 0.3
_STORM = 300
_BLOCKERS = 8
_STORM_DEADLINE_S = 4.0
_AT_ONCE = 32
_BEHIND = 5
_THREADS = 256
_STORM_ENDS_WITHIN_S = 30.0
_ONCE_MORE_S = 60.0
"""For what runs again at the end of a run, because Redis forgot that it had ended."""
_LOOK_EVERY_S = 0.2
T = TypeVar("T")


class Handle(Protocol):
    """What a reader needs of a generation, awaited."""

    id: str

    def stream(self, from_seq: int = 0, *, resets: bool = False) -> AsyncIterator[Chunk]:
        """Its chunks."""
        ...

    async def result(self, timeout_s: float | None = None) -> GenerationResult:
        """Its result."""
        ...

    async def cancel(self) -> bool:
        """Cancel it."""
        ...


class InThreads:
    """The synchronous client's handle, awaited: each step in a thread, as a web server's workers would."""

    def __init__(self, generation: Generation, pool: ThreadPoolExecutor) -> None:
        self.id = generation.id
        self._generation = generation
        self._pool = pool

    async def stream(self, from_seq: int = 0, *, resets: bool = False) -> AsyncIterator[Chunk]:
        """As :meth:`genqueue.Generation.stream`."""
        chunks = self._generation.stream(from_seq, resets=resets)
        while (chunk := await self._run(next, chunks, None)) is not None:
            yield chunk

    async def result(self, timeout_s: float | None = None) -> GenerationResult:
        """As :meth:`genqueue.Generation.result`."""
        return await self._run(self._generation.result, timeout_s)

    async def cancel(self) -> bool:
        """As :meth:`genqueue.Generation.cancel`."""
        return await self._run(self._generation.cancel)

    async def _run(self, act: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, act, *arguments)


class Company:
    """Everybody who asks and reads.

    Args:
        client, sync_client: which ask and read; the second one's calls are made in threads.
        seed: the run's.
    """

    def __init__(self, client: AsyncGenerationClient, sync_client: GenerationClient, seed: int) -> None:
        self.storms: list[tuple[Storm, str]] = []
        self._client = client
        self._sync_client = sync_client
        self._seed = seed
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="chaos")

    async def see_through(self, order: Order, began_s: float) -> Trace:
        """Submit one order at its time, read it to its end, cancel it if it is to be; not longer than the run lasts."""
        trace = Trace(order)
        await asyncio.sleep(max(0.0, began_s + order.at_s - time.time()))
        canceller: asyncio.Task[None] | None = None
        try:
            generation = await self._submit(trace)
            canceller = asyncio.create_task(self._cancel(trace))
            await self._read(trace, generation)
        except asyncio.CancelledError:
            trace.errors.append("no end within the run's time")
        except Exception as error:
            trace.errors.append(f"was told {type(error).__name__}: {error}")
        trace.read_s = trace.read_s or time.time()
        if canceller is not None:
            if trace.cancel_s is None:
                canceller.cancel()
            (failure,) = await asyncio.gather(canceller, return_exceptions=True)
            if isinstance(failure, Exception):
                trace.errors.append(f"cancel() was told {type(failure).__name__}: {failure}")
        return trace

    def _handle(self, trace: Trace) -> Handle:
        if trace.order.is_sync:
            return InThreads(self._sync_client.generation(trace.generation_id), self._pool)
        return self._client.generation(trace.generation_id)

    async def _submit(self, trace: Trace) -> Handle:
        """Until it is accepted: the key makes one of many tries."""
        order, trace.asked_s = trace.order, trace.asked_s or time.time()
        client: Any = self._sync_client if order.is_sync else self._client
        submit, given = (client.submit_chat, order.messages) if order.is_chat else (client.submit, order.prompt)
        while True:
            try:
                if order.is_sync:
                    loop = asyncio.get_running_loop()
                    accepted = await loop.run_in_executor(self._pool, lambda: submit(given, **order.options))
                else:
                    accepted = await submit(given, **order.options)
            except StoreError as error:
                if not error.may_pass:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                trace.accepted_s, trace.generation_id = time.time(), accepted.id
                return self._handle(trace)

    async def _read(self, trace: Trace, generation: Handle) -> None:
        aways = sorted(trace.order.aways, key=lambda away: away.after_chunks)
        texts: list[str] = []
        last_seq, is_restarted = 0, False
        while True:
            try:
                if is_restarted:
                    texts = (await generation.result()).replies
                    break
                async for chunk in generation.stream(last_seq, resets=trace.order.resets):
                    if chunk.restarts:
                        trace.voided.append("".join(texts))
                        texts = []
                    texts.append(chunk.text)
                    last_seq = chunk.seq
                    trace.seen.append((time.time(), chunk))
                    if aways and len(trace.seen) >= aways[0].after_chunks:
                        break
                else:
                    break
            except StreamRestartedError as error:
                trace.voided.append("".join(texts))
                if error.generation is None or error.generation.id != generation.id:
                    trace.errors.append("an error that says that it began anew carries another generation")
                if error.delivered_text != trace.voided[-1]:
                    trace.contradicted.append(error.delivered_text)
                is_restarted = trace.waits_for_whole = True
                continue
            except GenerationNotFoundError:
                trace.gone_s.append((trace.accepted_s, time.time()))
                trace.voided.append("".join(texts))
                generation, texts, last_seq, is_restarted = await self._submit(trace), [], 0, False
                trace.waits_for_whole = False
                continue
            except GenerationError as error:
                trace.told = _kind(error)
                if is_restarted:
                    texts = [error.partial_text]
                break
            except StoreError as error:
                if not error.may_pass:
                    raise
                await asyncio.sleep(_RETRY_S)
                continue
            began_s = time.time()
            await asyncio.sleep(aways.pop(0).for_s)
            trace.away.append(Span(began_s, time.time()))
        trace.read, trace.read_s = "".join(texts), time.time()

    async def _cancel(self, trace: Trace) -> None:
        if trace.order.cancel_after_s is None:
            return
        await asyncio.sleep(trace.order.cancel_after_s)
        trace.cancel_s = time.time()
        while True:
            accepted_s = trace.accepted_s  # its reader may submit it again meanwhile
            try:
                trace.cancel_said = await self._handle(trace).cancel()
                return
            except GenerationNotFoundError:
                trace.gone_s.append((accepted_s, time.time()))
            except StoreError as error:
                if not error.may_pass:
                    raise
            await asyncio.sleep(_RETRY_S)

    # -- storms -----------------------------------------------------------------------------

    async def storm(self, evil: Evil, number: int, first_order: int) -> list[Trace]:
        """Let many wait in a queue, end them all at once, and ask for a few more behind them."""
        storm = Storm(evil.kind)
        due = "cancelled" if evil.kind is Kind.CANCELS else "expired"
        self.storms.append((storm, due))
        prefix = f"storm {self._seed} {number}"
        blocking = [await self._throw(storm, f"{prefix} blocker {k}", 2000, None) for k in range(_BLOCKERS)]
        deadline_s = None if evil.kind is Kind.CANCELS else _STORM_DEADLINE_S
        gate = asyncio.Semaphore(_AT_ONCE)

        async def throw(place: int) -> tuple[str, float]:
            async with gate:
                return await self._throw(storm, f"{prefix} {place}", 5, deadline_s)

        thrown = await asyncio.gather(*(throw(place) for place in range(_STORM)))
        if deadline_s is not None:
            await asyncio.sleep(deadline_s)
        ended = blocking + (thrown if deadline_s is None else [])

        async def end(generation_id: str) -> None:
            async with gate:
                await self._call_off(generation_id)

        await asyncio.gather(*(end(generation_id) for generation_id, _ in ended))
        orders = behind(self._seed, number, first_order, _BEHIND)
        traces = await asyncio.gather(*(self.see_through(order, 0.0) for order in orders))
        storm.asked = len(thrown)
        for generation_id, accepted_s in thrown:
            await self._look_after(storm, generation_id, accepted_s, due)
        return list(traces)

    async def _throw(self, storm: Storm, name: str, tokens: int, deadline_s: float | None) -> tuple[str, float]:
        while True:
            try:
                generation = await self._client.submit(
                    name,
                    generator=DEEP,
                    generation_kwargs={"max_new_tokens": tokens},
                    deadline_s=deadline_s,
                    idempotency_key=name,
                )
            except StoreError as error:
                if not error.may_pass:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return generation.id, time.time()

    async def _call_off(self, generation_id: str) -> None:
        while True:
            try:
                await self._client.generation(generation_id).cancel()
                return
            except GenerationNotFoundError:
                return
            except StoreError as error:
                if not error.may_pass:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def _look_after(self, storm: Storm, generation_id: str, accepted_s: float, due: str) -> None:
        """How one of a storm ended; what forgot its end is called off once more."""
        generation = self._client.generation(generation_id)
        until_s = time.monotonic() + _STORM_ENDS_WITHIN_S
        while time.monotonic() < until_s:
            try:
                await generation.result(timeout_s=5.0)
            except GenerationNotFoundError:
                storm.gone_s.append(accepted_s)
                return
            except GenerationError as error:
                storm.ends[_kind(error)] += 1
                return
            except TimeoutError:
                await self._call_off(generation_id)
            except StoreError:
                await asyncio.sleep(_RETRY_S)
            else:
                storm.ends["finished"] += 1
                return
        storm.errors.append(f"{generation_id} of {storm.kind} did not end")

    # -- afterwards -------------------------------------------------------------------------

    async def look_back(self, trace: Trace, store: AsyncStore, clock: Clock) -> None:
        """What registry, log and result say in the end, and what one who comes late is given."""
        if not trace.generation_id:
            return
        try:
            record = await _ended(store, trace.generation_id)
        except GenerationNotFoundError:
            trace.is_gone, trace.finish_reason = True, "forgotten"
            trace.gone_s.append((trace.accepted_s, time.time()))
            return
        trace.submitted_s = clock.moment_s(record.submitted_at, trace.asked_s)
        trace.completion_tokens = record.completion_tokens
        generation = self._handle(trace)
        page: list[Event] = await store.run(reading.read_log(trace.generation_id, 1, limit=100_000))
        trace.log = _on_our_clock(page, clock, trace.submitted_s)
        if not record.state.is_final:
            return
        assert record.ended_at is not None
        trace.state = record.state
        last_s = max([trace.submitted_s, *(started.at for started in trace.attempts.values())])
        trace.ended_s, trace.waited_s = clock.moment_s(record.ended_at, last_s), record.ended_at - record.submitted_at
        try:
            result = await generation.result(timeout_s=10)
            trace.text, trace.finish_reason = result.replies[0], result.meta[0]["finish_reason"]
            trace.completion_tokens = result.meta[0]["usage"]["completion_tokens"]
        except GenerationError as error:
            trace.text = error.partial_text
            trace.finish_reason = record.outcome.error if record.outcome else None
        try:
            await self._read_late(trace, generation)
        except GenqueueError as error:
            trace.errors.append(f"who came late was told {type(error).__name__}: {error}")

    async def _read_late(self, trace: Trace, generation: Handle) -> None:
        """Read the whole text, and the text from some place on, of what has ended."""
        whole = await _joined(generation, 0)
        if whole != trace.text:
            trace.errors.append(f"who came late was given {len(whole)} characters, {len(trace.text)} are kept")
        chunks = [event for event in trace.log if isinstance(event, Chunk)]
        begins = max((event.seq for event in trace.log if isinstance(event, Reset)), default=0)
        places = [chunk.seq for chunk in chunks if chunk.seq > begins]
        if places:
            place = places[int(trace.order.late_from * len(places))]
            trace.late = await _joined(generation, place), "".join(c.text for c in chunks if c.seq > place)


def _kind(error: GenerationError) -> str:
    return type(error).__name__.removeprefix("Generation").removesuffix("Error").lower()


async def _joined(generation: Handle, from_seq: int) -> str:
    texts: list[str] = []
    try:
        async for chunk in generation.stream(from_seq):
            texts.append(chunk.text)
    except StreamRestartedError:
        return (await generation.result()).replies[0]
    except GenerationError:
        pass
    return "".join(texts)


def _on_our_clock(log: list[Event], clock: Clock, after_s: float) -> list[Event]:
    moved: list[Event] = []
    for event in log:
        if isinstance(event, Started):
            after_s = clock.moment_s(event.at, after_s)
            event = event.model_copy(update={"at": after_s})
        moved.append(event)
    return moved


async def _ended(store: AsyncStore, generation_id: str) -> reading.Record:
    """Its record, once it has ended: where Redis forgot an end that a reader was told, it runs once more."""
    until_s = time.monotonic() + _ONCE_MORE_S
    while True:
        record = await store.run(reading.read_record(generation_id))
        if record.state.is_final or time.monotonic() > until_s:
            return record
        await asyncio.sleep(_LOOK_EVERY_S)
