"""The asyncio loop that runs every generation of a worker process.

A Celery thread hands a generation over (:meth:`Engine.run`) and sleeps; the loop claims it,
calls its generator, writes what comes, and ends it.  One generation is minutes of waiting
and microseconds of work, so one loop carries hundreds.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from genqueue import calls, keys, outcome
from genqueue.calls import Claim, End, NotClaimed
from genqueue.errors import InvalidRequestError
from genqueue.messages import GenerationRequest, GenerationResult, Outcome, describe, read_request
from genqueue.settings import Settings
from genqueue.store import AsyncStore, LiveHub, T
from genqueue.timing import timings
from genqueue_worker.generators import Ending, TextGeneration
from genqueue_worker.policy import outcome_of
from genqueue_worker.transport import UpstreamError, open_transport
from genqueue_worker.writer import Outbox, Writer

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel for this platform
    from asyncio import new_event_loop  # type: ignore[assignment]  # a wider type

logger = logging.getLogger(__name__)

_FLUSH_GAP_S = 0.02


@dataclass(frozen=True, slots=True)
class Done:
    """The generation has its result."""

    result: GenerationResult


@dataclass(frozen=True, slots=True)
class Ended:
    """The generation ended without a result."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class NotOurs:
    """Another attempt has it, or it had ended before; nothing may be stored for it."""

    reason: str


@dataclass(slots=True)
class Run:
    """One attempt under way: its upstream call, and why it must stop if it must."""

    attempt: int
    upstream: asyncio.Timeout
    lost: str | None = None


class Engine:
    """Runs generations; one for each worker process.

    Args:
        settings: which generators, and the registry's dials.
        environ: where generators look up their tokens.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        self.settings = settings
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.generators = {
            name: TextGeneration(name, configured, environ) for name, configured in settings.generators.items()
        }
        self._in_hand: set[str] = set()
        self._running: dict[str, Run] = {}
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="genqueue-engine", daemon=True)
        self._ready: Future[None] = Future()
        self._store: AsyncStore
        self._writer: Writer

    def start(self) -> None:
        """Start the loop; returns once it runs."""
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """End the loop; generations that still run are let go."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def run(self, generation_id: str, generator: str, foreign: dict[str, Any] | None) -> Done | Ended | NotOurs:
        """Run one generation from claim to end; blocks the calling thread.

        Args:
            generation_id: its id, which is the Celery task's.
            generator: whose queue it came from.
            foreign: the request's fields, when the message brought them itself because its
                sender does not know this library; the generation is then registered first.
        """
        return self._call(self._generate(generation_id, generator, foreign))

    def refuse(self, generation_id: str, generator: str, reason: str) -> None:
        """Answer a message that cannot become a generation, unless its id is one already; does not block."""
        end = replace(self._failure(generation_id, generator, outcome.rejection(reason)), stillborn=True)
        asyncio.run_coroutine_threadsafe(self._end(None, end), self._loop)

    def held(self) -> list[tuple[str, int]]:
        """The (generation id, attempt) pairs that run now; any thread may ask."""
        return [(generation_id, run.attempt) for generation_id, run in list(self._running.items())]

    def lose(self, generation_id: str, reason: str) -> None:
        """Stop running a generation that is no longer ours; any thread may say so."""
        self._loop.call_soon_threadsafe(self._lose, generation_id, reason)

    # --- on the loop -----------------------------------------------------------------

    async def _generate(
        self, generation_id: str, generator: str, foreign: dict[str, Any] | None
    ) -> Done | Ended | NotOurs:
        if generation_id in self._in_hand:
            return NotOurs("held")
        # From before the claim: to the registry, two doorbells of one worker are one that asks twice.
        self._in_hand.add(generation_id)
        try:
            return await self._attempt(generation_id, generator, foreign)
        finally:
            self._in_hand.remove(generation_id)

    async def _attempt(
        self, generation_id: str, generator: str, foreign: dict[str, Any] | None
    ) -> Done | Ended | NotOurs:
        if foreign is not None:
            adopted = await self._adopt(generation_id, generator, foreign)
            if adopted is not None:
                return adopted
        claim = await self._claim(generation_id, generator)
        if isinstance(claim, NotClaimed):
            if claim.reason == "expired":
                return await self._fail(generation_id, generator, None, _expired("in the queue"))
            return _not_ours(claim.reason)
        try:
            request = GenerationRequest.model_validate_json(claim.request)
        except ValidationError as error:
            outbox = Outbox(self._writer, generation_id, claim.attempt, publish=False)
            return await self._fail(generation_id, generator, outbox, outcome.rejection("; ".join(describe(error))))

        outbox = Outbox(self._writer, generation_id, claim.attempt, publish=request.stream)
        if claim.text_so_far:
            outbox.reset()
        claimed_s = self._loop.time()
        ends_s = None if claim.deadline_at is None else claimed_s + claim.deadline_at - claim.started_at
        upstream = asyncio.timeout_at(ends_s)
        self._running[generation_id] = Run(claim.attempt, upstream)
        try:
            async with upstream:
                ending = await self.generators[generator].run(request, outbox)
            return await self._finish(generator, outbox, claim, claimed_s, ending)
        except UpstreamError as error:
            return await self._fail(generation_id, generator, outbox, outcome_of(error.facts))
        except TimeoutError:
            lost = self._running[generation_id].lost
            if lost is None:
                return await self._fail(generation_id, generator, outbox, _expired("while it ran"))
            self._writer.drop(outbox)
            return _not_ours(lost)
        finally:
            del self._running[generation_id]

    async def _adopt(self, generation_id: str, generator: str, foreign: dict[str, Any]) -> Ended | None:
        """Register a generation whose request came in the Celery message; None when it can go on."""
        try:
            request = read_request({"generator": generator, **foreign})
            if request.generator != generator:
                raise InvalidRequestError(f"generator {request.generator!r} is not served from queue {generator!r}")
        except InvalidRequestError as error:
            rejected = outcome.rejection(str(error))
            await self._end(None, replace(self._failure(generation_id, generator, rejected), stillborn=True))
            return Ended(rejected)
        registration = calls.submit(
            generation_id,
            request,
            keep_s=self.settings.keep_s,
            idempotency_key=None,
            idempotency_ttl_s=self.settings.result_ttl_s,
            max_queue_depth=-1,  # Celery accepted it long ago
            ring=False,
        )
        await self._writer.insist(registration)
        return None

    async def _claim(self, generation_id: str, generator: str) -> Claim | NotClaimed:
        settings = self.settings
        return await self._writer.insist(
            calls.claim(generation_id, generator, owner=self.owner, lease_s=settings.lease_s, keep_s=settings.keep_s)
        )

    async def _finish(
        self, generator: str, outbox: Outbox, claim: Claim, claimed_s: float, ending: Ending
    ) -> Done | Ended | NotOurs:
        text = "".join(outbox.parts)
        whole = ending.generated_text or ""
        if len(whole) > len(text) and whole.startswith(text):  # text that no token brought
            outbox.push_text(whole[len(text) :])
            text = "".join(outbox.parts)
        first_text_at = None
        if outbox.first_text_s is not None:
            first_text_at = claim.started_at + outbox.first_text_s - claimed_s
        ended_at = claim.started_at + self._loop.time() - claimed_s
        configured = self.generators[generator]
        meta = {
            "model": configured.model,
            "finish_reason": ending.finish_reason,
            "usage": {
                "prompt_tokens": ending.prompt_tokens,
                "completion_tokens": outbox.completion_tokens
                if ending.completion_tokens is None
                else ending.completion_tokens,
            },
            "completion_start_time": _iso(first_text_at),
            "generator": generator,
            "endpoint": configured.address,
            "attempts": claim.attempt,
            "timings": timings(claim.submitted_at, claim.started_at, first_text_at, ended_at),
            **ending.extra,
        }
        result = GenerationResult(replies=[text], meta=[meta])
        end = outcome.finished(outbox.generation_id, generator, outbox.take(), result, date_done=_now_iso())
        answer = await self._end(outbox, end)
        return Done(result) if answer == "ok" else _not_ours(answer)

    async def _fail(
        self, generation_id: str, generator: str, outbox: Outbox | None, reason: Outcome
    ) -> Ended | NotOurs:
        answer = await self._end(outbox, self._failure(generation_id, generator, reason, outbox))
        return Ended(reason) if answer == "ok" else _not_ours(answer)

    def _failure(self, generation_id: str, generator: str, reason: Outcome, outbox: Outbox | None = None) -> End:
        last = outbox.take() if outbox else None
        return outcome.failed(generation_id, generator, last, reason, date_done=_now_iso())

    async def _end(self, outbox: Outbox | None, end: End) -> str:
        return await self._writer.finish(
            outbox, end, log_ttl_s=self.settings.log_ttl_s, result_ttl_s=self.settings.result_ttl_s
        )

    def _lose(self, generation_id: str, reason: str) -> None:
        run = self._running.get(generation_id)
        if run is not None and run.lost is None:
            run.lost = reason
            with contextlib.suppress(RuntimeError):  # the call has ended already; the fence has the last word
                run.upstream.reschedule(self._loop.time())

    # --- the thread ------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        settings = self.settings
        self._stopped = asyncio.Event()
        self._store = AsyncStore(settings.redis_url, settings.redis_timeout_s)
        self._writer = Writer(
            self._store,
            keep_s=settings.keep_s,
            gap_s=_FLUSH_GAP_S,
            now_s=self._loop.time,
            on_lost=lambda outbox, reason: self._lose(outbox.generation_id, reason),
        )
        transport = open_transport()
        await asyncio.gather(*(generator.warm_up() for generator in self.generators.values()))
        hub = LiveHub(settings.redis_url, settings.redis_timeout_s)
        helpers = [asyncio.create_task(self._writer.run()), asyncio.create_task(self._hear_cancels(hub))]
        for helper in helpers:
            helper.add_done_callback(_report)
        self._ready.set_result(None)
        await self._stopped.wait()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await hub.close()
        await transport.close()
        await self._store.close()

    async def _hear_cancels(self, hub: LiveHub) -> None:
        """Cancel what this worker is told to; a notice that gets lost is made good by the lease's renewal."""
        inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        while True:
            with contextlib.suppress(ConnectionError):
                async with hub.listen(keys.worker(self.owner), inbox.put_nowait):
                    while True:
                        notice = await inbox.get()
                        if notice is not None:
                            self._lose(notice.decode("utf-8", "replace"), "cancelled")
            await asyncio.sleep(self.settings.lease_s / 3)


def _expired(where: str) -> Outcome:
    return Outcome(error="expired", message=f"the deadline passed {where}")


def _iso(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat()


def _now_iso() -> str:
    return datetime.now(UTC).isoformat()


def _not_ours(reason: str) -> Ended | NotOurs:
    """What a task says whose generation somebody else ended or has taken over."""
    return Ended(outcome.CANCELLED) if reason == "cancelled" else NotOurs(reason)


def _report(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the engine's %s died", task.get_coro(), exc_info=task.exception())
