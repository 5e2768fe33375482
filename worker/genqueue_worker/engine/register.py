"""How an attempt ends for its Celery task, and what a worker tells the registry besides tokens.

Claims, ends and whatever else is asked go out under the worker's name and with the lifetimes of its settings, until
Redis answers.  Tokens are :mod:`genqueue_worker.engine.writer`'s.
"""

import contextlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from genqueue.connection.store import PatientStore
from genqueue.errors import StoreError
from genqueue.registry import attempts, endings, reading
from genqueue.registry.attempts import Claim, End, NotClaimed
from genqueue.settings import Settings
from genqueue.wire.result import GenerationResult, Outcome
from genqueue_worker.engine.outbox import Outbox
from genqueue_worker.engine.writer import Writer
from genqueue_worker.observe.metrics import DEFERRED, HANDED_OVER, RETRIED, SUPERSEDED, Metrics


@dataclass(frozen=True, slots=True)
class Done:
    """The generation has its result."""

    result: GenerationResult


@dataclass(frozen=True, slots=True)
class Ended:
    """The generation ended without a result."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Relinquished:
    """Another attempt has it, or it had ended before; nothing may be stored for it."""

    reason: str


def ended_as(ended: Done | Ended | Relinquished) -> str:
    """How an attempt ended, in the words of :mod:`genqueue_worker.observe.metrics`."""
    match ended:
        case Done():
            return "finished"
        case Ended(reason):
            return reason.error
        case Relinquished(reason):
            return reason if reason in {RETRIED, DEFERRED, HANDED_OVER} else SUPERSEDED


def relinquished(reason: str) -> Ended | Relinquished:
    """What a task says whose generation somebody else ended or has taken over."""
    return Ended(endings.CANCELLED) if reason == "cancelled" else Relinquished(reason)


class Register:
    """The registry, as one worker speaks to it; lives on the engine's loop.

    Args:
        store: what carries a call, until Redis answers; also for whatever else is asked of Redis.
        writer: what an attempt's last words wait for: nothing of it may be in flight then.
        settings: how long what is written lives.
        owner: the worker's name in the registry.
        metrics: told of each end.
    """

    def __init__(self, store: PatientStore, writer: Writer, settings: Settings, owner: str, metrics: Metrics) -> None:
        self.settings = settings
        self.owner = owner
        self.store = store
        self._writer = writer
        self._metrics = metrics

    async def claim(self, generation_id: str, generator: str) -> Claim | NotClaimed:
        """Take a generation, for the next attempt at it."""
        lease_s, keep_s = self.settings.lease_s, self.settings.keep_s
        return await self.store.run(
            attempts.claim(generation_id, generator, owner=self.owner, lease_s=lease_s, keep_s=keep_s)
        )

    async def end(self, end: End, outbox: Outbox | None = None) -> str:
        """End a generation, with the last words of an attempt if one ends it; "ok", or whose it is by now."""
        settings = self.settings
        if outbox is not None:
            end = replace(end, owner=self.owner)
        call = attempts.finish(
            end, log_ttl_s=settings.log_ttl_s, result_ttl_s=settings.result_ttl_s, keep_s=settings.keep_s
        )
        answer = await (self.store.run(call) if outbox is None else self._writer.last(outbox, call))
        if answer == "ok" and end.outcome != endings.CANCELLED:  # that is counted where it ran, or was to
            self._metrics.ended(end.generator, end.outcome.error if end.outcome else "finished")
        return answer

    async def refuse(self, generation_id: str, generator: str, reason: Outcome) -> Ended | Relinquished:
        """End a generation without an attempt."""
        answer = await self.end(endings.failed(generation_id, generator, None, reason, date_done=now_iso()))
        return Ended(reason) if answer == "ok" else relinquished(answer)

    async def cancel(self, generation_id: str) -> None:
        """Cancel a generation wherever it is."""
        generator = "default"
        with contextlib.suppress(StoreError):  # its key is of another type: what can be done of the end will be
            generator = await self.store.run(reading.read_home(generation_id))
        end = endings.cancelled(generation_id, generator, date_done=now_iso())
        if await self.end(end) == "gone":
            # Its message, which may bring the request itself, is still to come: it shall find it cancelled.
            await self.end(replace(end, stillborn=True))


def now_iso() -> str:
    """The time as results have it."""
    return datetime.now(UTC).isoformat()
