"""One attempt at one generation: :meth:`Attempt.run` is the whole of it, on one screen.

The decisions are pure and elsewhere: where an attempt begins in :mod:`genqueue_worker.engine.continuation`, what an
error means for the generation in :mod:`genqueue_worker.engine.retrying`.  Here is the shell: the clock, the dice, the
call, and what is written at the end.
"""

import asyncio
import contextlib
import logging
import random
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from genqueue.errors import StoreError
from genqueue.registry import attempts, endings
from genqueue.registry.attempts import Claim, NotClaimed
from genqueue.registry.timing import Timings, timings
from genqueue.wire.request import GenerationRequest, Given
from genqueue.wire.result import GenerationResult, Outcome
from genqueue_worker.engine import final_text
from genqueue_worker.engine.continuation import (
    FAILED,
    REFUSED,
    Begin,
    Complete,
    Continue,
    GiveUp,
    Start,
    where_to_begin,
)
from genqueue_worker.engine.doorbells import Doorbells
from genqueue_worker.engine.outbox import Outbox
from genqueue_worker.engine.register import Done, Ended, Register, Relinquished, ended_as, now_iso, relinquished
from genqueue_worker.engine.retrying import AT_ONCE, LACKING, Again, after_defect, after_failure
from genqueue_worker.engine.scope import DEADLINE, Interrupted, Scope
from genqueue_worker.engine.seam import ContinuedSink, Seam
from genqueue_worker.engine.usage import Counts, uncounted, usage
from genqueue_worker.engine.writer import Writer
from genqueue_worker.observe.metrics import DEFERRED, HANDED_OVER, RETRIED, SUPERSEDED, AttemptMeter, Metrics
from genqueue_worker.observe.report import Report
from genqueue_worker.resources import lack_of
from genqueue_worker.upstream.client import Ending, ModelClient
from genqueue_worker.upstream.faults import UpstreamError, UpstreamFacts, error_class
from genqueue_worker.upstream.sink import ReplyTooLongError, Sink

logger = logging.getLogger(__name__)


class Attempt:
    """One attempt at one generation, from before its claim to its end; on the engine's loop.

    Args:
        report: of the doorbell that it came of; says which generation, and hears how it went.
        model: the generator's.
        register: claims and ends it.
        writer: writes its tokens.
        doorbells: knows what to do where there is nothing to run.
        metrics: told how it went.

    Attributes:
        number: 1, 2, 3 …; None until it has begun.
        scope: what interrupts it from outside.
    """

    _claim: Claim
    _request: GenerationRequest
    _parameters: dict[str, Any]
    _start: Start
    _outbox: Outbox
    _meter: AttemptMeter
    _began_s: float

    def __init__(
        self,
        report: Report,
        model: ModelClient,
        register: Register,
        writer: Writer,
        doorbells: Doorbells,
        metrics: Metrics,
    ) -> None:
        self.generation_id = report.generation_id
        self.generator = report.generator
        self.number: int | None = None
        self.scope = Scope()
        self._report = report
        self._model = model
        self._register = register
        self._writer = writer
        self._doorbells = doorbells
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._span = contextlib.ExitStack()

    async def run(self) -> Done | Ended | Relinquished:
        """One attempt: claim, call, write the end."""
        claim = await self._register.claim(self.generation_id, self.generator)
        if isinstance(claim, NotClaimed):
            return await self._doorbells.not_claimed(self.generation_id, self.generator, claim)
        try:
            request = GenerationRequest.model_validate_json(claim.request)
        except ValidationError as error:
            return await self._doorbells.unreadable(self.generation_id, self.generator, claim, error)
        start = self._begin(claim, request)
        try:
            self.scope.check()  # for news that came before the claim's answer
            match start:
                case GiveUp():
                    return await self._fail(_gave_up(claim))
                case Complete(finish_reason):
                    ending = Ending(finish_reason=finish_reason)
                case Begin() | Continue():
                    async with self.scope.until(self._deadline_s):
                        ending = await self._model.run(*self._call(start))
            return await self._finish(ending)
        except UpstreamError as error:
            return await self._after(error.facts)
        except ReplyTooLongError as error:
            return await self._fail(endings.rejection(str(error)))
        except Interrupted as interrupt:
            return await self._interrupted(interrupt.reason)

    async def recorded_run(self) -> Done | Ended | Relinquished:
        """The same; it is logged, traced and counted, and a defect costs nobody a generation."""
        way = SUPERSEDED
        try:
            with self._span:
                try:
                    ended = await self.run()
                except Exception as error:
                    if self.number is None:
                        raise
                    ended = await self._after_defect(error)
            way = ended_as(ended)
            return ended
        except Exception:
            way = "failed"
            raise
        finally:
            if self.number is not None:
                self._record(way)

    def _record(self, way: str) -> None:
        outbox = self._outbox
        tokens = outbox.completion_tokens
        self._report.note(completion_tokens=tokens, timings=self._timings())
        outbox.measure()
        self._meter.ended(way, tokens=tokens, unwritten_tokens=tokens - outbox.written_tokens)

    def _begin(self, claim: Claim, request: GenerationRequest) -> Start:
        """Where the attempt begins; from here on it counts, and its lease is renewed."""
        settings = self._model.settings
        parameters = self._model.parameters(request)
        start = where_to_begin(claim, request, parameters, settings)
        # Unless it begins anew, what earlier attempts made counts.
        keeps = self._is_handed_over or not isinstance(start, Begin)
        self._claim, self._request, self._parameters, self._start = claim, request, parameters, start
        self._meter = AttemptMeter(self._metrics.of(self.generator), claim, keeps=keeps)
        self._outbox = Outbox(
            self._writer,
            self.generation_id,
            claim.attempt,
            publish=request.stream,
            earlier_text=claim.text_so_far if keeps else "",
            earlier_tokens=claim.solid_tokens if keeps else 0,
            max_reply_bytes=self._register.settings.max_reply_bytes,
            meter=self._meter,
        )
        self._began_s = self._loop.time()
        self.number = claim.attempt
        self._span.enter_context(self._report.attempt(claim, request))
        return start

    def _call(self, start: Begin | Continue) -> tuple[Given, dict[str, Any], Sink]:
        """What the model is called with; readers hear first whether their text goes on, or must go."""
        match start:
            case Continue(prompt, parameters, tail):
                self._outbox.resume()
                seam = Seam(self._claim.text_so_far, tail, self._parameters.get("stop", ()))
                return prompt, parameters, ContinuedSink(self._outbox, seam)
            case Begin(forget):
                if forget:
                    self._outbox.reset()
                return self._request.given, self._parameters, self._outbox

    async def _finish(self, ending: Ending) -> Done | Ended | Relinquished:
        """It is whole: write its result."""
        result = self._result(ending)
        end = endings.finished(self.generation_id, self.generator, self._outbox.take(), result, date_done=now_iso())
        answer = await self._register.end(end, self._outbox)
        return Done(result) if answer == "ok" else relinquished(answer)

    async def _after(self, facts: UpstreamFacts) -> Ended | Relinquished:
        """The call failed: another attempt, or the end."""
        self._report.error_type = error_class(facts)
        claim, endpoints = self._claim, self._model.upstream
        is_continued = isinstance(self._start, Continue)
        decision = after_failure(
            facts,
            failures=claim.failures,
            errors=len(claim.errors),
            max_attempts=self._model.settings.max_attempts,
            may_retry=self._request.on_failure != "fail",
            can_go_on=endpoints.can_go_on,
            may_another_take_it=endpoints.refuses_not_everywhere,
            draw=random.random(),
            was_continued=is_continued,
            brought_nothing=self._has_brought_nothing,
        )
        if isinstance(decision, Outcome):
            return await self._fail(decision)
        error = {"attempt": claim.attempt, "message": facts.message}
        if not decision.is_failure:
            return await self._release(decision, met=error)
        if decision.anew:
            error["continued"] = REFUSED
        elif is_continued and self._has_brought_nothing:
            error["continued"] = FAILED
        return await self._release(decision, failure=error)

    async def _interrupted(self, reason: str) -> Ended | Relinquished:
        """Something outside stopped it: it is too late, others go on with it, or it is theirs already."""
        if reason == DEADLINE:
            # What brought text was slow, whatever earlier attempts met.
            met = self._claim.met if self._has_brought_nothing else ()
            endpoints = self._model.upstream
            unreached = "" if endpoints.is_available else endpoints.unreached
            return await self._fail(endings.expired("while it ran", met, unreached))
        if reason == HANDED_OVER:
            return await self._release(AT_ONCE)
        # Nothing is left on its way: to a Redis that forgot, this worker's next attempt may have the same number.
        await self._writer.settle(self._outbox)
        return relinquished(reason)

    async def _after_defect(self, error: Exception) -> Ended | Relinquished:
        """A defect of ours, or of a library: it is logged with where it was raised, and costs nobody a generation."""
        lack = lack_of(error)
        if lack and not isinstance(error, MemoryError):
            logger.warning("an attempt is put back: %s", lack)
            return await self._release(LACKING)
        message = lack or f"unexpected {type(error).__name__} in the worker"
        if not lack:
            self._report.defect(error)
        decision = after_defect(
            message,
            errors=len(self._claim.errors),
            max_attempts=self._model.settings.max_attempts,
            may_retry=self._request.on_failure != "fail",
            draw=random.random(),
        )
        try:
            if isinstance(decision, Outcome):
                return await self._fail(decision)
            return await self._release(decision, failure={"attempt": self._claim.attempt, "message": message})
        except StoreError as refusal:  # its lease runs out, and the next attempt finds what is written
            logger.error("an end cannot be written: %s", refusal, extra={"generation_id": self.generation_id})
            return Relinquished("unwritable")

    async def _release(
        self, again: Again, *, failure: dict[str, Any] | None = None, met: dict[str, Any] | None = None
    ) -> Ended | Relinquished:
        """Put it back into the queue, for another attempt."""
        call = attempts.release(
            self._outbox.take(),
            self.generator,
            self._request.priority,
            delay_s=again.delay_s,
            failure=failure,
            is_charged=again.is_charged,
            keep_s=self._register.settings.keep_s,
            owner=self._register.owner,
            met=met,
        )
        answer = await self._writer.last(self._outbox, call)
        if answer != "ok":
            return relinquished(answer)
        return Relinquished(RETRIED if failure else HANDED_OVER if self._is_handed_over else DEFERRED)

    async def _fail(self, reason: Outcome) -> Ended | Relinquished:
        """End the generation without a result."""
        claim = self._claim
        detail = {
            "errors": [
                *(claim.met if reason.error == "expired" else claim.errors),
                {"attempt": claim.attempt, "message": reason.message},
            ],
            "timings": self._timings(),
        }
        reason = reason.model_copy(update={"detail": detail | reason.detail})
        last = self._outbox.take()
        end = endings.failed(self.generation_id, self.generator, last, reason, date_done=now_iso())
        answer = await self._register.end(end, self._outbox)
        return Ended(reason) if answer == "ok" else relinquished(answer)

    def _result(self, ending: Ending) -> GenerationResult:
        """The reply, and what is known of it; text that only the end brought goes out with it."""
        outbox, endpoints, given = self._outbox, self._model.upstream, self._request.given
        endpoint = ending.endpoint or endpoints.endpoints[0]
        text = "".join(outbox.parts)
        checked = final_text.check(
            text[len(outbox.earlier_text.rstrip()) :],  # a continued attempt was sent the rest as a part of its prompt
            ending.generated_text,
            prompt=given if isinstance(given, str) else "",
            stops=ending.stops,
            specials=ending.specials,
        )
        if checked.missing:
            outbox.push_text(checked.missing)
            text = "".join(outbox.parts)
        if checked.differs_at is not None:
            self._meter.contradicted()
        counts = Counts(
            ending.prompt_tokens,
            ending.completion_tokens,
            outbox.completion_tokens,
            outbox.earlier_tokens,
            are_deltas=outbox.has_deltas or self._request.messages is not None,
        )
        used = usage(counts)
        self._meter.produced(uncounted(counts))
        self._report.note(finish_reason=ending.finish_reason, **used, timings=self._timings())
        meta = {
            "model": endpoints.model(endpoint),
            "finish_reason": ending.finish_reason,
            "usage": used,
            "completion_start_time": _iso(self._first_text_at),
            "generator": self.generator,
            "endpoint": endpoint.address,
            "attempts": self._claim.attempt,
            "timings": self._timings(),
            **ending.extra,
            **final_text.told(checked, ending.generated_text),
        }
        return GenerationResult(replies=[text], meta=[meta])

    @property
    def _deadline_s(self) -> float | None:
        """The loop's time at which it is too late."""
        deadline_at = self._claim.deadline_at
        return None if deadline_at is None else self._began_s + deadline_at - self._claim.answered_at

    @property
    def _is_handed_over(self) -> bool:
        """Whether this worker is leaving, and others go on."""
        return self.scope.reason == HANDED_OVER

    @property
    def _has_brought_nothing(self) -> bool:
        """Whether no token came of it."""
        return self._outbox.completion_tokens == self._outbox.earlier_tokens

    def _redis_time(self, loop_s: float) -> float:
        """The loop's time in epoch seconds of Redis's clock."""
        return self._claim.answered_at + loop_s - self._began_s

    @property
    def _first_text_at(self) -> float | None:
        first_text_s = self._outbox.first_text_s
        return None if first_text_s is None else self._redis_time(first_text_s)

    def _timings(self) -> Timings:
        """Until now; all by Redis's clock, since hosts' clocks may disagree."""
        claim, ended_at = self._claim, self._redis_time(self._loop.time())
        return timings(claim.submitted_at, claim.started_at, self._first_text_at, ended_at, self._outbox.waking_s)


def _gave_up(claim: Claim) -> Outcome:
    """The end of a generation whose earlier attempts failed often enough."""
    last = claim.errors[-1]["message"] if claim.errors else "nothing is known"
    return Outcome(error="failed", message=f"gave up after {claim.attempt - 1} attempts: {last}")


def _iso(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat()
