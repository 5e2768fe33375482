"""What becomes of a doorbell that leads to no attempt.

It is put back for workers that can take its generation, or its generation ends, or it rang for nothing: then so may
the thousands behind it, which are thrown away here without a Celery task for each.
"""

import asyncio
import contextlib
import logging
import random
from concurrent.futures import Future
from typing import Any

from pydantic import ValidationError

from genqueue.errors import GenerationNotFoundError, StoreError
from genqueue.registry import attempts, endings, reading, sweeping
from genqueue.registry.attempts import Claim, Flush, NotClaimed
from genqueue.wire.problems import describe
from genqueue.wire.request import PARTS
from genqueue.wire.result import Outcome
from genqueue_worker.engine.newer import after_unknown, unknown_here
from genqueue_worker.engine.register import Ended, Register, Relinquished, relinquished
from genqueue_worker.observe.metrics import Metrics
from genqueue_worker.observe.report import IGNORED, Report, Show

logger = logging.getLogger(__name__)

_LEAVING_S = 0.1
_MOST_UNKNOWN = 100
"""So many things that newer versions know are told of."""


class Doorbells:
    """Answers those that lead to no attempt; on the engine's loop.

    Args:
        register: where their generations are looked up, put back and ended.
        metrics: told of each generation that ended so.
        show: told of each that was cancelled, for Flower.
    """

    def __init__(self, register: Register, metrics: Metrics, show: Show) -> None:
        self._register = register
        self._metrics = metrics
        self._show = show
        self._discarding: dict[str, asyncio.Task[None]] = {}
        self._unknown: set[str] = set()
        self._told: set[str] = set()  # cancels that were told of, which the registry has not been told yet

    async def put_back(self, generation_id: str) -> Relinquished:
        """Ring again for others: none of this worker's endpoints can be asked, and Celery is leaving the queue."""
        await asyncio.sleep(_LEAVING_S)  # not to be given the same one again before it has left
        store = self._register.store
        # Of what cannot be read, a newer version's perhaps, a sweeper knows more.
        with contextlib.suppress(GenerationNotFoundError, StoreError, ValueError):
            record = await store.run(reading.read_record(generation_id))
            if not record.state.is_final:
                await store.run(sweeping.ring(generation_id, record.generator, record.priority))
        return Relinquished("its endpoints are down, full or asleep")

    async def not_claimed(self, generation_id: str, generator: str, refusal: NotClaimed) -> Ended | Relinquished:
        """The registry has nothing to run for it."""
        if refusal.reason not in {"held", "elsewhere"}:
            self._discard_soon(generator)  # where one rang for nothing there may be thousands
        match refusal.reason:
            case "expired":
                return await self._register.refuse(generation_id, generator, _expired(refusal))
            case "incomplete":
                return await self._register.refuse(generation_id, generator, endings.incomplete(refusal.missing))
            # It is told by one doorbell, or by whoever ran what was cancelled.
            case "cancelled" if refusal.is_untold and generation_id not in self._told:
                self._told.add(generation_id)
                self._metrics.ended(generator, refusal.reason)
                return Ended(endings.CANCELLED)
        return Relinquished(refusal.reason)

    async def unreadable(
        self, generation_id: str, generator: str, claim: Claim, error: ValidationError
    ) -> Ended | Relinquished:
        """Its request was claimed, and is none; or one of a newer version, which newer workers can read."""
        unknown = unknown_here(error)
        if unknown is None:
            rejected = endings.rejection("; ".join(describe(error, PARTS)))
            return await self._register.refuse(generation_id, generator, rejected)
        decision = after_unknown(
            unknown,
            attempt=claim.attempt,
            waited_s=claim.answered_at - claim.submitted_at,
            keep_s=self._register.settings.keep_s,
            errors=claim.errors,
            draw=random.random(),
        )
        if isinstance(decision, Outcome):
            return await self._register.refuse(generation_id, generator, decision)
        return await self._leave_to_newer(generation_id, generator, claim, unknown, delay_s=decision)

    async def _leave_to_newer(
        self, generation_id: str, generator: str, claim: Claim, unknown: str, *, delay_s: float
    ) -> Ended | Relinquished:
        """Put back, for a worker that knows it, what a newer version submitted: uncharged, and later each time."""
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
            delay_s=delay_s,
            failure=None,
            is_charged=False,
            keep_s=self._register.settings.keep_s,
            owner=self._register.owner,
            waits_for=f"a newer worker: one that took it does not know {unknown}",
        )
        answer = await self._register.store.run(call)
        return Relinquished("of a newer version") if answer == "ok" else relinquished(answer)

    def _discard_soon(self, generator: str) -> None:
        if generator not in self._discarding:
            self._discarding[generator] = task = asyncio.create_task(self._discard(generator))
            task.add_done_callback(log_failure)
            task.add_done_callback(lambda _: self._discarding.pop(generator))

    async def _discard(self, generator: str) -> None:
        """Throw away what rings for nothing in a generator's queue: no task of Celery's for each."""
        owner, keep_s = self._register.owner, self._register.settings.keep_s
        discarded = [("", False)]
        while discarded or self._told:
            told = sorted(self._told)
            call = sweeping.discard(generator, owner=owner, told=told, keep_s=keep_s)
            discarded = await self._register.store.run(call)
            self._told.difference_update(told)
            for generation_id, is_untold in discarded:
                report = Report(generation_id, generator, owner)
                if is_untold:
                    self._told.add(generation_id)
                    self._metrics.ended(generator, "cancelled")
                    report.tell("cancelled")
                    self._show(generation_id, {"terminated": True, "signum": None, "expired": False}, "task-revoked")
                else:
                    report.tell(IGNORED, "it had ended")


def _expired(refusal: NotClaimed) -> Outcome:
    """The end of a generation that was too late for another attempt."""
    reason = endings.expired("before an attempt could begin", refusal.met)
    return reason.model_copy(update={"detail": {"errors": refusal.met, **reason.detail}})


def log_failure(done: "Future[Any] | asyncio.Future[Any]") -> None:
    """Log what fails and nobody waits for."""
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.error("what was asked of the engine failed", exc_info=error)
