"""The asyncio loop that runs every generation of a worker process.

A Celery thread hands a generation over (:meth:`Engine.run`) and sleeps; the loop claims it,
calls its generator, writes what comes, and ends it.  One generation is minutes of waiting
and microseconds of work, so one loop carries hundreds.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import ValidationError

from genqueue import keys
from genqueue.connection.hub import LiveHub
from genqueue.connection.store import AsyncStore, PatientStore, T
from genqueue.connection.tasks import end_tasks
from genqueue.errors import GenerationNotFoundError, InvalidRequestError, StoreError
from genqueue.registry import attempts, endings, reading, submitting, sweeping
from genqueue.registry.attempts import Claim, End, Flush, NotClaimed
from genqueue.registry.timing import Timings, timings
from genqueue.settings import Settings
from genqueue.tracing import valid_traceparent
from genqueue.wire.problems import describe
from genqueue.wire.request import PARTS, GenerationRequest, read_request
from genqueue.wire.result import GenerationResult, Outcome
from genqueue_worker.engine import final_text
from genqueue_worker.engine.attempt import (
    Done,
    Ended,
    Relinquished,
    Run,
    Work,
    ended_as,
    first_text_at,
    gave_up,
    not_ours,
    redis_time,
)
from genqueue_worker.engine.continuation import (
    FAILED,
    REFUSED,
    Begin,
    Complete,
    Continue,
    GiveUp,
    Progress,
    begins_anew,
    next_attempt,
)
from genqueue_worker.engine.newer import after_unknown, unknown_here
from genqueue_worker.engine.outbox import Outbox
from genqueue_worker.engine.retrying import AT_ONCE, Again, after_defect, after_failure, is_exhausted
from genqueue_worker.engine.seam import ContinuedSink, Seam
from genqueue_worker.engine.usage import Counts, uncounted, usage
from genqueue_worker.engine.writer import Writer
from genqueue_worker.observe.health import Pulse, turns
from genqueue_worker.observe.metrics import DEFERRED, HANDED_OVER, RETRIED, SUPERSEDED, AttemptMeter, Metrics, Now
from genqueue_worker.observe.report import IGNORED, Report, Show, show_nobody
from genqueue_worker.resources import lack_of, start_resolver
from genqueue_worker.upstream.client import Ending, ModelClient
from genqueue_worker.upstream.faults import UpstreamFacts, error_class
from genqueue_worker.upstream.pool import EndpointPool
from genqueue_worker.upstream.sink import ReplyTooLongError
from genqueue_worker.upstream.transport import UpstreamError, open_transport

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel for this platform
    from asyncio import new_event_loop  # type: ignore[assignment]  # a wider type

logger = logging.getLogger(__name__)

_LEAVING_S = 0.1
_BEAT_S = 0.25
_LOOK_S = 1.0
_LACK = Again(1.0, is_failure=False, is_charged=False)
"""Where this host lacks memory, or file descriptors: others may have some, or it has in a second."""
_MOST_UNKNOWN = 100
"""So many things that newer versions know are told of."""


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
        self._in_hand: set[str] = set()
        self._discarding: dict[str, asyncio.Task[None]] = {}
        self._noticed: dict[str, str] = {}  # why not to run what is in hand; told before its claim was answered
        self._unknown: set[str] = set()
        self._told: set[str] = set()  # cancels that were told of, which the registry has not been told yet
        self._running: dict[str, Run] = {}
        self._is_draining = False
        self._is_leaving = False
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="genqueue-engine", daemon=True)
        self._ready: Future[None] = Future()
        self._store: PatientStore
        self._writer: Writer

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
            ended = self._call(self._generate(report, foreign, valid_traceparent(traceparent)))
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
        self._soon(self._refuse_message(generation_id, generator, reason))

    def expire(self, generation_id: str, generator: str) -> None:
        """Answer a message whose sender wanted no answer after now, unless its id is one already; does not block."""
        self._soon(self._expire_message(generation_id, generator))

    def cancel(self, generation_ids: Iterable[str]) -> None:
        """Cancel generations wherever they are; any thread may ask, and does not wait."""
        for generation_id in generation_ids:
            self._soon(self._cancel(generation_id))

    def drain(self, within_s: float) -> None:
        """Begin nothing more, and hand over after ``within_s`` what still runs then; any thread may ask, and again."""
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._drain, within_s)

    def held(self) -> list[tuple[str, int]]:
        """The (generation id, attempt) pairs that run now; any thread may ask."""
        return [(generation_id, run.attempt) for generation_id, run in list(self._running.items())]

    def in_flight(self) -> dict[str, int]:
        """How many attempts run now, by generator; any thread may ask."""
        return dict(Counter(run.generator for run in list(self._running.values())))

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

    async def _generate(
        self, report: Report, foreign: dict[str, Any] | None, traceparent: str | None
    ) -> Done | Ended | Relinquished:
        generation_id = report.generation_id
        if generation_id in self._in_hand:
            return Relinquished("held")
        if self._is_draining:
            return Relinquished("draining")  # a sweeper rings again
        # From before the claim: to the registry, two doorbells of one worker are one that asks twice.
        self._in_hand.add(generation_id)
        try:
            return await self._attempt(report, foreign, traceparent)
        finally:
            self._in_hand.remove(generation_id)
            self._noticed.pop(generation_id, None)

    async def _attempt(
        self, report: Report, foreign: dict[str, Any] | None, traceparent: str | None
    ) -> Done | Ended | Relinquished:
        generation_id, generator = report.generation_id, report.generator
        if generator not in self.generators:
            if foreign is None:
                return Relinquished("elsewhere")
            rejected = endings.rejection(f"generator {generator!r} is not served by the worker that got the message")
            return await self._answered(generation_id, generator, rejected)
        if foreign is not None:
            adopted = await self._adopt(generation_id, generator, foreign, traceparent)
            if adopted is not None:
                return adopted
        admission = self.generators[generator].upstream.admission
        if self._is_draining or generator in self.unavailable or not await admission.enter():
            return await self._leave(generation_id)
        try:
            return await self._begin(report)
        finally:
            admission.leave()

    async def _begin(self, report: Report) -> Done | Ended | Relinquished:
        """Claim what there is room for, and run it."""
        generation_id, generator = report.generation_id, report.generator
        claim = await self._claim(generation_id, generator)
        if isinstance(claim, NotClaimed):
            if claim.reason not in {"held", "elsewhere"}:
                self._discard_soon(generator)  # where one rang for nothing there may be thousands
            if claim.reason == "expired":
                return await self._refuse(generation_id, generator, _expired("before an attempt could begin", claim))
            if claim.reason == "incomplete":
                return await self._refuse(generation_id, generator, endings.incomplete(claim.missing))
            return self._not_claimed(generation_id, generator, claim)
        try:
            request = GenerationRequest.model_validate_json(claim.request)
        except ValidationError as error:
            unknown = unknown_here(error)
            if unknown is not None:
                return await self._leave_to_newer(generation_id, generator, claim, unknown)
            return await self._refuse(generation_id, generator, endings.rejection("; ".join(describe(error, PARTS))))
        configured = self.generators[generator]
        max_attempts = configured.settings.max_attempts
        parameters = configured.parameters(request)
        start: Begin | Continue | Complete | GiveUp = Begin(forget=False)
        if claim.attempt > 1:
            is_last = is_exhausted(claim.failures + 1, len(claim.errors) + 1, max_attempts)
            anew = begins_anew(claim.errors, is_last=is_last)
            # Else it was handed over, or what was refused is ours.
            failed = any(error.get("continued") != REFUSED for error in claim.errors)
            on_failure = request.on_failure if failed else "continue"
            if anew and on_failure == "continue":
                on_failure = "restart"
            progress = Progress(claim.text_so_far, claim.solid_tokens, claim.reasoning_so_far)
            continues_chat = configured.settings.continues_chat
            start = next_attempt(request.given, parameters, on_failure, progress, continues_chat=continues_chat)
        gives_up = isinstance(start, GiveUp) or is_exhausted(claim.failures, len(claim.errors), max_attempts)
        if gives_up:
            start = GiveUp()
        # Unless it begins anew, what earlier attempts made counts.
        keeps = gives_up or self._is_leaving or isinstance(start, Continue | Complete)
        meter = AttemptMeter(self.metrics.of(generator), claim, keeps=keeps)
        outbox = Outbox(
            self._writer,
            generation_id,
            claim.attempt,
            publish=request.stream,
            earlier_text=claim.text_so_far if keeps else "",
            earlier_tokens=claim.solid_tokens if keeps else 0,
            max_reply_bytes=self.settings.max_reply_bytes,
            meter=meter,
        )
        work = Work(generation_id, generator, request, claim, outbox, self._loop.time(), meter, report)
        ends_s = None if claim.deadline_at is None else work.claimed_s + claim.deadline_at - claim.answered_at
        upstream = asyncio.timeout_at(ends_s)
        self._running[generation_id] = Run(generator, claim.attempt, upstream, self._noticed.get(generation_id))
        way = SUPERSEDED
        try:
            with report.attempt(claim, request):
                try:
                    ended = await self._run_attempt(work, start, parameters, upstream)
                except Exception as error:
                    ended = await self._after_defect(work, error)
            way = ended_as(ended)
            return ended
        except Exception:
            way = "failed"
            raise
        finally:
            del self._running[generation_id]
            report.note(completion_tokens=outbox.completion_tokens, timings=self._timings(work))
            outbox.measure()
            meter.ended(
                way,
                tokens=outbox.completion_tokens,
                unwritten_tokens=outbox.completion_tokens - outbox.written_tokens,
            )

    async def _run_attempt(
        self,
        work: Work,
        start: Begin | Continue | Complete | GiveUp,
        parameters: dict[str, Any],
        upstream: asyncio.Timeout,
    ) -> Done | Ended | Relinquished:
        """Make the call that ``start`` says, and write its end."""
        claim, outbox, request = work.claim, work.outbox, work.request
        configured = self.generators[work.generator]
        try:
            if self._is_leaving:  # the claim's answer came late
                return await self._release(work, AT_ONCE, None)
            if (lost := self._running[work.generation_id].lost) is not None:
                return not_ours(lost)
            match start:
                case GiveUp():
                    return await self._fail(work, gave_up(claim))
                case Complete(finish_reason):
                    ending = Ending(None, finish_reason, None, None, {})
                case Continue(prompt, rest, tail):
                    outbox.resume()
                    seam = Seam(claim.text_so_far, tail, parameters.get("stop", ()))
                    async with upstream:
                        ending = await configured.run(prompt, rest, ContinuedSink(outbox, seam))
                case Begin(forget):
                    if forget:
                        outbox.reset()
                    async with upstream:
                        ending = await configured.run(request.given, parameters, outbox)
            return await self._finish(work, ending)
        except UpstreamError as error:
            return await self._failed(work, error.facts, is_continued=isinstance(start, Continue))
        except ReplyTooLongError as error:
            return await self._fail(work, endings.rejection(str(error)))
        except TimeoutError:
            lost = self._running[work.generation_id].lost
            if lost is None:
                # What brought text was slow, whatever earlier attempts met.
                met = claim.met if outbox.completion_tokens == outbox.earlier_tokens else ()
                unreached = "" if configured.upstream.is_available else configured.upstream.unreached
                return await self._fail(work, endings.expired("while it ran", met, unreached))
            if lost == HANDED_OVER:
                return await self._release(work, AT_ONCE, None)
            # Nothing is left on its way: to a Redis that forgot, this worker's next attempt may have the same number.
            await self._writer.settle(outbox)
            return not_ours(lost)

    async def _after_defect(self, work: Work, error: Exception) -> Ended | Relinquished:
        """A defect of ours, or of a library: it is logged with where it was raised, and costs nobody a generation."""
        lack = lack_of(error)
        if lack and not isinstance(error, MemoryError):
            logger.warning("an attempt is put back: %s", lack)
            return await self._release(work, _LACK, None)
        message = lack or f"unexpected {type(error).__name__} in the worker"
        if not lack:
            work.report.defect(error)
        decision = after_defect(
            message,
            errors=len(work.claim.errors),
            max_attempts=self.generators[work.generator].settings.max_attempts,
            may_retry=work.request.on_failure != "fail",
            draw=random.random(),
        )
        try:
            if isinstance(decision, Outcome):
                return await self._fail(work, decision)
            return await self._release(work, decision, {"attempt": work.claim.attempt, "message": message})
        except StoreError as refusal:  # its lease runs out, and the next attempt finds what is written
            logger.error("an end cannot be written: %s", refusal, extra={"generation_id": work.generation_id})
            return Relinquished("unwritable")

    async def _adopt(
        self, generation_id: str, generator: str, foreign: dict[str, Any], traceparent: str | None
    ) -> Ended | Relinquished | None:
        """Register a generation whose request came in the Celery message; None when it can go on."""
        try:
            request = read_request({"generator": generator, **foreign}, self.settings.bounds)
            if request.generator != generator:
                raise InvalidRequestError(f"generator {request.generator!r} is not served from queue {generator!r}")
        except InvalidRequestError as error:
            rejected = endings.rejection(str(error))
            return await self._answered(generation_id, generator, rejected)
        if await self._store.run(reading.has_result(generation_id)):
            return Relinquished("known")  # another Celery task's id, or it ended before
        registration = submitting.submit(
            generation_id,
            request,
            keep_s=self.settings.keep_s,
            idempotency_key=None,
            idempotency_ttl_s=self.settings.result_ttl_s,
            max_queue_depth=-1,  # Celery accepted it long ago
            ring=False,
            traceparent=traceparent,
        )
        await self._store.run(registration)
        return None

    async def _refuse_message(self, generation_id: str, generator: str, reason: str) -> None:
        answer = await self._answer(generation_id, generator, endings.rejection(reason))
        self._tell_stillborn(generation_id, generator, "rejected", answer)

    async def _expire_message(self, generation_id: str, generator: str) -> None:
        expired = endings.expired("before a worker had the message (expires)")
        answer = await self._answer(generation_id, generator, expired)
        self._tell_stillborn(generation_id, generator, "expired", answer)

    def _tell_stillborn(self, generation_id: str, generator: str, way: str, answer: str) -> None:
        report = Report(generation_id, generator, self.owner)
        if answer == "ok":
            report.tell(way)
        else:
            report.tell(IGNORED, answer)

    async def _answer(self, generation_id: str, generator: str, reason: Outcome) -> str:
        """Register what is no request, or one too late, only to end it; what has that id already is left alone."""
        end = endings.failed(generation_id, generator, None, reason, date_done=_now_iso())
        return await self._end(None, replace(end, stillborn=True))

    async def _answered(self, generation_id: str, generator: str, rejected: Outcome) -> Ended | Relinquished:
        answer = await self._answer(generation_id, generator, rejected)
        return Ended(rejected) if answer == "ok" else Relinquished(answer)  # or Celery would store it over the true one

    async def _leave(self, generation_id: str) -> Relinquished:
        """Put a doorbell back: none of this worker's servers can be asked, and Celery is leaving the queue."""
        await asyncio.sleep(_LEAVING_S)  # not to be given the same one again before it has left
        # Of what cannot be read, a newer version's perhaps, a sweeper knows more.
        with contextlib.suppress(GenerationNotFoundError, StoreError, ValueError):
            record = await self._store.run(reading.read_record(generation_id))
            if not record.state.is_final:
                await self._store.run(sweeping.ring(generation_id, record.generator, record.priority))
        return Relinquished("its servers are down, full or asleep")

    async def _leave_to_newer(
        self, generation_id: str, generator: str, claim: Claim, unknown: str
    ) -> Ended | Relinquished:
        """Put back, for a worker that knows it, what a newer version submitted: uncharged, and later each time."""
        decision = after_unknown(
            unknown,
            attempt=claim.attempt,
            waited_s=claim.answered_at - claim.submitted_at,
            keep_s=self.settings.keep_s,
            errors=claim.errors,
            draw=random.random(),
        )
        if isinstance(decision, Outcome):
            return await self._refuse(generation_id, generator, decision)
        if unknown not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
            self._unknown.add(unknown)
            logger.warning(
                "%s: requests of a newer version are put back for newer workers, this one does not know %s",
                generator,
                unknown,
            )
        nothing = Flush(
            generation_id, claim.attempt, 1, claim.tokens_so_far, "", "", [], solid_tokens=claim.solid_tokens
        )
        call = attempts.release(
            nothing,
            generator,
            0,  # of a doorbell; after a delay whoever finds it due rings by the record's own
            delay_s=decision,
            failure=None,
            is_charged=False,
            keep_s=self.settings.keep_s,
            owner=self.owner,
            waits_for=f"a newer worker: one that took it does not know {unknown}",
        )
        answer = await self._store.run(call)
        return Relinquished("of a newer version") if answer == "ok" else not_ours(answer)

    async def _claim(self, generation_id: str, generator: str) -> Claim | NotClaimed:
        settings = self.settings
        return await self._store.run(
            attempts.claim(generation_id, generator, owner=self.owner, lease_s=settings.lease_s, keep_s=settings.keep_s)
        )

    def _not_claimed(self, generation_id: str, generator: str, found: NotClaimed) -> Ended | Relinquished:
        """What came of a doorbell that led to no attempt; a cancel is told by one, or by who ran what was cancelled."""
        if found.reason != "cancelled" or not found.is_untold or generation_id in self._told:
            return Relinquished(found.reason)
        self._told.add(generation_id)
        self.metrics.ended(generator, found.reason)
        return Ended(endings.CANCELLED)

    def _discard_soon(self, generator: str) -> None:
        if generator not in self._discarding:
            self._discarding[generator] = task = asyncio.create_task(self._discard(generator))
            task.add_done_callback(_log_failure)
            task.add_done_callback(lambda _: self._discarding.pop(generator))

    async def _discard(self, generator: str) -> None:
        """Throw away what rings for nothing in a generator's queue: no task of Celery's for each."""
        discarded = [("", False)]
        while discarded or self._told:
            told = sorted(self._told)
            call = sweeping.discard(generator, owner=self.owner, told=told, keep_s=self.settings.keep_s)
            discarded = await self._store.run(call)
            self._told.difference_update(told)
            for generation_id, is_untold in discarded:
                report = Report(generation_id, generator, self.owner)
                if is_untold:
                    self._told.add(generation_id)
                    self.metrics.ended(generator, "cancelled")
                    report.tell("cancelled")
                    self._show(generation_id, {"terminated": True, "signum": None, "expired": False}, "task-revoked")
                else:
                    report.tell(IGNORED, "it had ended")

    async def _finish(self, work: Work, ending: Ending) -> Done | Ended | Relinquished:
        claim, outbox, upstream = work.claim, work.outbox, self.generators[work.generator].upstream
        endpoint = ending.endpoint or upstream.endpoints[0]
        text, given = "".join(outbox.parts), work.request.given
        found = final_text.check(
            text[len(outbox.earlier_text.rstrip()) :],  # a continued attempt was sent the rest as a part of its prompt
            ending.generated_text,
            prompt=given if isinstance(given, str) else "",
            stops=ending.stops,
            specials=ending.specials,
        )
        if found.missing:
            outbox.push_text(found.missing)
            text = "".join(outbox.parts)
        if found.differs_at is not None:
            work.meter.contradicted()
        counts = Counts(
            ending.prompt_tokens,
            ending.completion_tokens,
            outbox.completion_tokens,
            outbox.earlier_tokens,
            are_deltas=outbox.has_deltas or work.request.messages is not None,
        )
        used = usage(counts)
        work.meter.produced(uncounted(counts))
        meta = {
            "model": upstream.model(endpoint),
            "finish_reason": ending.finish_reason,
            "usage": used,
            "completion_start_time": _iso(first_text_at(work)),
            "generator": work.generator,
            "endpoint": endpoint.address,
            "attempts": claim.attempt,
            "timings": self._timings(work),
            **ending.extra,
            **final_text.told(found, ending.generated_text),
        }
        work.report.note(
            finish_reason=ending.finish_reason,
            **used,
            timings=self._timings(work),
        )
        result = GenerationResult(replies=[text], meta=[meta])
        end = endings.finished(work.generation_id, work.generator, outbox.take(), result, date_done=_now_iso())
        answer = await self._end(outbox, end)
        return Done(result) if answer == "ok" else not_ours(answer)

    async def _failed(self, work: Work, facts: UpstreamFacts, *, is_continued: bool) -> Ended | Relinquished:
        """The upstream call failed: another attempt, or the end."""
        work.report.error_type = error_class(facts)
        configured = self.generators[work.generator]
        brought_nothing = work.outbox.completion_tokens == work.outbox.earlier_tokens
        decision = after_failure(
            facts,
            failures=work.claim.failures,
            errors=len(work.claim.errors),
            max_attempts=configured.settings.max_attempts,
            may_retry=work.request.on_failure != "fail",
            can_go_on=configured.upstream.can_go_on,
            may_another_take_it=configured.upstream.refuses_not_everywhere,
            draw=random.random(),
            was_continued=is_continued,
            brought_nothing=brought_nothing,
        )
        if isinstance(decision, Outcome):
            return await self._fail(work, decision)
        failure = {"attempt": work.claim.attempt, "message": facts.message} if decision.is_failure else None
        if failure and decision.anew:
            failure["continued"] = REFUSED
        elif failure and is_continued and brought_nothing:
            failure["continued"] = FAILED
        met = None if failure else {"attempt": work.claim.attempt, "message": facts.message}
        return await self._release(work, decision, failure, met)

    async def _release(
        self, work: Work, again: Again, failure: dict[str, Any] | None, met: dict[str, Any] | None = None
    ) -> Ended | Relinquished:
        way = RETRIED if failure else HANDED_OVER if self._is_leaving else DEFERRED
        call = attempts.release(
            work.outbox.take(),
            work.generator,
            work.request.priority,
            delay_s=again.delay_s,
            failure=failure,
            is_charged=again.is_charged,
            keep_s=self.settings.keep_s,
            owner=self.owner,
            met=met,
        )
        answer = await self._writer.last(work.outbox, call)
        if answer != "ok":
            return not_ours(answer)
        return Relinquished(way)

    async def _fail(self, work: Work, reason: Outcome) -> Ended | Relinquished:
        claim = work.claim
        detail = {
            "errors": [
                *(claim.met if reason.error == "expired" else claim.errors),
                {"attempt": claim.attempt, "message": reason.message},
            ],
            "timings": self._timings(work),
        }
        reason = reason.model_copy(update={"detail": detail | reason.detail})
        last = work.outbox.take()
        end = endings.failed(work.generation_id, work.generator, last, reason, date_done=_now_iso())
        answer = await self._end(work.outbox, end)
        return Ended(reason) if answer == "ok" else not_ours(answer)

    async def _refuse(self, generation_id: str, generator: str, reason: Outcome) -> Ended | Relinquished:
        """End a generation without an attempt."""
        answer = await self._end(None, endings.failed(generation_id, generator, None, reason, date_done=_now_iso()))
        return Ended(reason) if answer == "ok" else not_ours(answer)

    async def _end(self, outbox: Outbox | None, end: End) -> str:
        settings = self.settings
        if outbox is not None:
            end = replace(end, owner=self.owner)
        call = attempts.finish(
            end, log_ttl_s=settings.log_ttl_s, result_ttl_s=settings.result_ttl_s, keep_s=settings.keep_s
        )
        answer = await self._writer.last(outbox, call)
        if answer == "ok" and end.outcome != endings.CANCELLED:  # that is counted where it ran, or was to
            self.metrics.ended(end.generator, end.outcome.error if end.outcome else "finished")
        return answer

    def _timings(self, work: Work) -> Timings:
        """Until now; all by Redis's clock, since hosts' clocks may disagree."""
        claim, ended_at = work.claim, redis_time(work, self._loop.time())
        return timings(claim.submitted_at, claim.started_at, first_text_at(work), ended_at, work.outbox.waking_s)

    async def _cancel(self, generation_id: str) -> None:
        generator = "default"
        with contextlib.suppress(StoreError):  # its key is of another type: what can be done of the end will be
            generator = await self._store.run(reading.read_home(generation_id))
        end = endings.cancelled(generation_id, generator, date_done=_now_iso())
        if await self._end(None, end) == "gone":
            # Its message, which may bring the request itself, is still to come: it shall find it cancelled.
            await self._end(None, replace(end, stillborn=True))

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
        for generation_id, attempt in self.held():
            self._lose(generation_id, attempt, HANDED_OVER)

    def _lose(self, generation_id: str, attempt: int | None, reason: str) -> None:
        """Stop an attempt, or with None whichever runs: who says so may speak of one that ended meanwhile."""
        run = self._running.get(generation_id)
        if run is None and attempt is None and generation_id in self._in_hand:
            self._noticed[generation_id] = reason
        if run is not None and attempt in (None, run.attempt) and run.lost is None:
            run.lost = reason
            with contextlib.suppress(RuntimeError):  # the call has ended already; the fence has the last word
                run.upstream.reschedule(self._loop.time())

    # --- the thread ------------------------------------------------------------------

    def _soon(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have it done; who asked does not wait, so what fails is logged."""
        asyncio.run_coroutine_threadsafe(work, self._loop).add_done_callback(_log_failure)

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
        self._store = PatientStore(redis, self.metrics.round_trip)
        self._writer = Writer(
            self._store,
            owner=self.owner,
            keep_s=settings.keep_s,
            gap_s=settings.flush_gap_s,
            now_s=self._loop.time,
            on_lost=lambda outbox, reason: self._lose(outbox.generation_id, outbox.attempt, reason),
        )
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


def _expired(where: str, found: NotClaimed) -> Outcome:
    """The end of a generation that was too late for another attempt."""
    reason = endings.expired(where, found.met)
    return reason.model_copy(update={"detail": {"errors": found.met, **reason.detail}})


def _iso(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat()


def _now_iso() -> str:
    return datetime.now(UTC).isoformat()


def _log_failure(done: "Future[Any] | asyncio.Future[Any]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.error("what was asked of the engine failed", exc_info=error)


def _report(task: "asyncio.Task[Any]") -> None:
    """A worker without its writer serves nobody: it ends, its leases run out, and others go on."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the engine's %s died", task.get_coro(), exc_info=task.exception())
        logging.shutdown()
        os._exit(1)
