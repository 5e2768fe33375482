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
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from genqueue import keys
from genqueue.connection.hub import LiveHub
from genqueue.connection.store import AsyncStore, PatientStore, T
from genqueue.connection.tasks import end_tasks
from genqueue.errors import StoreError
from genqueue.settings import Settings
from genqueue.tracing import valid_traceparent
from genqueue_worker.engine.attempt import Attempt
from genqueue_worker.engine.doorbells import Doorbells, log_failure
from genqueue_worker.engine.foreign import ForeignMessages
from genqueue_worker.engine.register import Done, Ended, Register, Relinquished, ended_as
from genqueue_worker.engine.writer import Writer
from genqueue_worker.observe.health import Pulse, turns
from genqueue_worker.observe.metrics import HANDED_OVER, SUPERSEDED, Metrics, Now
from genqueue_worker.observe.report import IGNORED, Report, Show, show_nobody
from genqueue_worker.resources import start_resolver
from genqueue_worker.upstream.client import ModelClient
from genqueue_worker.upstream.pool import EndpointPool
from genqueue_worker.upstream.transport import open_transport

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel for this platform
    from asyncio import new_event_loop  # type: ignore[assignment]  # a wider type

logger = logging.getLogger(__name__)

_BEAT_S = 0.25
_LOOK_S = 1.0


class Engine:
    """Runs generations; one for each worker process.

    Args:
        settings: which generators, and the registry's dials.
        environ: where generators look up their tokens.
        is_served: whether work of a generator is taken; servers that none was taken for are not looked after.
        on_change: told, on the loop, when a model server went down or came back.
        on_room: told, on the loop, when the servers of a generator are full, and when they are no longer.
        backlog: how many generations wait for a generator; may be a little old.
        look: what a scrape of :attr:`metrics` finds.
        show: told more of a generation as it becomes known.

    Attributes:
        metrics: what it counts.
        pulse: when the loop last came round.
        places: how many generations may wait here for servers that wake up; None is no limit.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] = os.environ,
        is_served: Callable[[str], bool] = lambda _: True,
        on_change: Callable[[], None] = lambda: None,
        on_room: Callable[[], None] = lambda: None,
        backlog: Callable[[str], int] = lambda generator: 0,
        look: Callable[[], Now] = Now,
        show: Show = show_nobody,
    ) -> None:
        self.settings = settings
        self._is_served = is_served
        self._show = show
        self.metrics = Metrics(settings.generators, look)
        self.pulse = Pulse()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.places: int | None = None
        self.generators = {
            name: ModelClient(
                EndpointPool(
                    name, configured, environ, on_change, on_room, partial(backlog, name), lambda: self._may_park
                ),
                self.metrics.of(name),
                settings.max_reply_bytes,
            )
            for name, configured in settings.generators.items()
        }
        self._in_hand: dict[str, Attempt] = {}
        self._is_draining = False
        self._is_leaving = False
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="genqueue-engine", daemon=True)
        self._ready: Future[None] = Future()
        self._writer: Writer
        self._register: Register
        self._doorbells: Doorbells
        self._foreign: ForeignMessages

    def start(self) -> None:
        """Start the loop; returns once it runs."""
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """End the loop; generations that still run are let go."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def run(
        self, generation_id: str, generator: str, foreign: dict[str, Any] | None, traceparent: object = None
    ) -> Done | Ended | Relinquished:
        """Run one generation from claim to end, and log it; blocks the calling thread.

        Args:
            generation_id: its id, which is the Celery task's.
            generator: whose queue it came from.
            foreign: the request's fields, when the message brought them itself because its
                sender does not know this library; the generation is then registered first.
            traceparent: what such a message says of the span that sent it, valid or not.
        """
        report = Report(generation_id, generator, self.owner, self._show)
        way, reason = SUPERSEDED, None
        try:
            ended = self._call(self._take(report, foreign, valid_traceparent(traceparent)))
            way = ended_as(ended)
            if isinstance(ended, Relinquished):
                way, reason = (
                    (way, ended.reason if way == SUPERSEDED else None)
                    if report.has_attempt
                    else (IGNORED, ended.reason)
                )
            return ended
        except CancelledError:
            reason = "the worker ends"
            raise
        except Exception as error:
            way = "failed"
            report.defect(error)
            raise
        finally:
            report.tell(way, reason)

    def refuse(self, generation_id: str, generator: str, reason: str) -> None:
        """Answer a message that cannot become a generation, unless its id is one already; does not block."""
        self._soon(self._foreign.refuse(generation_id, generator, reason))

    def expire(self, generation_id: str, generator: str) -> None:
        """Answer a message whose sender wanted no answer after now, unless its id is one already; does not block."""
        self._soon(self._foreign.expire(generation_id, generator))

    def cancel(self, generation_ids: Iterable[str]) -> None:
        """Cancel generations wherever they are; any thread may ask, and does not wait."""
        for generation_id in generation_ids:
            self._soon(self._register.cancel(generation_id))

    def drain(self, within_s: float) -> None:
        """Begin nothing more, and hand over after ``within_s`` what still runs then; any thread may ask, and again."""
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._drain, within_s)

    def held(self) -> list[tuple[str, int]]:
        """The (generation id, attempt) pairs that run now; any thread may ask."""
        return [(attempt.generation_id, attempt.number) for attempt in self._running if attempt.number is not None]

    def in_flight(self) -> dict[str, int]:
        """How many attempts run now, by generator; any thread may ask."""
        return dict(Counter(attempt.generator for attempt in self._running))

    @property
    def _running(self) -> list[Attempt]:
        return [attempt for attempt in list(self._in_hand.values()) if attempt.number is not None]

    @property
    def unavailable(self) -> set[str]:
        """The generators of which nothing can be taken on now; any thread may ask.

        Their servers are all down; or full, or asleep, and as many generations wait for them here as may.
        """
        may_park = self._may_park
        upstreams = {name: generator.upstream for name, generator in self.generators.items()}
        return {
            name
            for name, upstream in upstreams.items()
            if not upstream.is_available or upstream.admission.is_closed or (upstream.is_asleep and not may_park)
        }

    @property
    def _may_park(self) -> bool:
        parked = sum(generator.upstream.parked for generator in self.generators.values())
        return self.places is None or parked < self.places

    def servers(self) -> dict[str, list[dict[str, Any]]]:
        """For each generator ``address``, ``health``, ``running``, ``calls`` and ``trouble`` of its servers.

        Any thread may ask.
        """
        now_s = self._loop.time()
        return {
            name: [
                {
                    "address": endpoint.address,
                    "health": endpoint.health(now_s),
                    "running": endpoint.running,
                    "calls": endpoint.calls,
                    "trouble": endpoint.trouble,
                }
                for endpoint in generator.upstream.endpoints
            ]
            for name, generator in self.generators.items()
        }

    def lose(self, generation_id: str, attempt: int, reason: str) -> None:
        """Stop an attempt that is no longer ours, but none that began here meanwhile; any thread may say so."""
        self._loop.call_soon_threadsafe(self._lose, generation_id, attempt, reason)

    # --- on the loop -----------------------------------------------------------------

    async def _take(
        self, report: Report, foreign: dict[str, Any] | None, traceparent: str | None
    ) -> Done | Ended | Relinquished:
        """Answer one doorbell: with an attempt, where there is room for one."""
        generation_id, generator = report.generation_id, report.generator
        if generation_id in self._in_hand:
            return Relinquished("held")
        if self._is_draining:
            return Relinquished("draining")  # a sweeper rings again
        if generator not in self.generators:
            if foreign is None:
                return Relinquished("elsewhere")
            reason = f"generator {generator!r} is not served by the worker that got the message"
            return await self._foreign.reject(generation_id, generator, reason)
        model = self.generators[generator]
        attempt = Attempt(report, model, self._register, self._writer, self._doorbells, self.metrics)
        # From before the claim: to the registry, two doorbells of one worker are one that asks twice.
        self._in_hand[generation_id] = attempt
        try:
            if foreign is not None:
                adopted = await self._foreign.adopt(generation_id, generator, foreign, traceparent)
                if adopted is not None:
                    return adopted
            admission = model.upstream.admission
            if self._is_draining or generator in self.unavailable or not await admission.enter():
                return await self._doorbells.put_back(generation_id)
            try:
                return await attempt.recorded_run()
            finally:
                admission.leave()
        finally:
            del self._in_hand[generation_id]

    def _drain(self, within_s: float) -> None:
        if self._is_leaving:
            return
        if not self._is_draining:
            self._is_draining = True
            for generator in self.generators.values():
                generator.upstream.admission.dismiss()
            logger.info("draining: %s", _drains(len(self._running), within_s))
        if within_s > 0:
            self._loop.call_later(within_s, self._hand_over)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        self._is_leaving = True
        for attempt in self._in_hand.values():
            attempt.scope.interrupt(HANDED_OVER)

    def _lose(self, generation_id: str, number: int | None, reason: str) -> None:
        """Stop an attempt, or with None whichever is in hand: who says so may speak of one that ended meanwhile."""
        attempt = self._in_hand.get(generation_id)
        if attempt is not None and number in (None, attempt.number):
            attempt.scope.interrupt(reason)

    # --- the thread ------------------------------------------------------------------

    def _soon(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have it done; who asked does not wait, so what fails is logged."""
        asyncio.run_coroutine_threadsafe(work, self._loop).add_done_callback(log_failure)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # to whoever starts the engine
        finally:
            self._loop.close()

    async def _live(self) -> None:
        settings = self.settings
        await start_resolver(self._loop)
        self._stopped = asyncio.Event()
        redis = AsyncStore(settings.redis_url, settings.redis_timeout_s)
        store = PatientStore(redis, self.metrics.round_trip)
        self._writer = Writer(
            store,
            owner=self.owner,
            keep_s=settings.keep_s,
            gap_s=settings.flush_gap_s,
            now_s=self._loop.time,
            on_lost=lambda outbox, reason: self._lose(outbox.generation_id, outbox.attempt, reason),
        )
        self._register = Register(store, self._writer, settings, self.owner, self.metrics)
        self._doorbells = Doorbells(self._register, self.metrics, self._show)
        self._foreign = ForeignMessages(self._register)
        transport = open_transport()
        await asyncio.gather(*(generator.warm_up() for generator in self.generators.values()))
        hub = LiveHub(settings.redis_url, settings.redis_timeout_s)
        lasting = [self._writer.run(), self._hear_cancels(hub), self._beat()]
        lasting += [self._watch(name) for name in self.generators]
        helpers = [asyncio.create_task(work) for work in lasting]
        for helper in helpers:
            helper.add_done_callback(_report)
        self._ready.set_result(None)
        await self._stopped.wait()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await end_tasks(*others)
        await asyncio.gather(*others, return_exceptions=True)  # or asyncio says that nobody asked for their errors
        await hub.close()
        await transport.close()
        await redis.close()
        await self._loop.shutdown_default_executor()  # Python waits for its threads, which may wait for a name

    async def _watch(self, generator: str) -> None:
        """Look after a generator's servers, once it is served: ``add_consumer`` may come late."""
        while not self._is_served(generator):
            await asyncio.sleep(_LOOK_S)
        await self.generators[generator].upstream.watch()

    async def _beat(self) -> None:
        """Show that others' work makes progress on the loop, and how late it comes round."""
        while True:
            due_s = self._loop.time() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self.metrics.loop_lag.observe(max(0.0, self._loop.time() - due_s))
            await turns()
            self.pulse.beat()

    async def _hear_cancels(self, hub: LiveHub) -> None:
        """Cancel what this worker is told to; a notice that gets lost is made good by the lease's renewal."""
        inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        trouble = ""
        while True:
            try:
                async with hub.listen(keys.worker(self.owner), inbox.put_nowait):
                    while True:
                        notice = await inbox.get()
                        if notice is not None:
                            self._lose(notice.decode("utf-8", "replace"), None, "cancelled")
            except (ConnectionError, StoreError) as error:
                if trouble != str(error):
                    trouble = str(error)
                    logger.warning("cancels are heard of with the next renewal only: %s", trouble)
            await asyncio.sleep(self.settings.lease_s / 3)


def _drains(running: int, within_s: float) -> str:
    """What becomes of what runs when a worker is to end."""
    if not running:
        return "nothing runs"
    runs, it = ("1 generation runs", "it") if running == 1 else (f"{running} generations run", "them")
    return f"{runs}, others go on with {it} {f'in {within_s:g} s' if within_s else 'now'}"


def _report(task: "asyncio.Task[Any]") -> None:
    """A worker without its writer serves nobody: it ends, its leases run out, and others go on."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the engine's %s died", task.get_coro(), exc_info=task.exception())
        logging.shutdown()
        os._exit(1)
