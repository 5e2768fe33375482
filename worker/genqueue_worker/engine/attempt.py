"""One attempt at one generation, and how it ended."""

import asyncio
from dataclasses import dataclass

from genqueue.registry import endings
from genqueue.registry.attempts import Claim
from genqueue.wire.request import GenerationRequest
from genqueue.wire.result import GenerationResult, Outcome
from genqueue_worker.engine.outbox import Outbox
from genqueue_worker.observe.metrics import DEFERRED, HANDED_OVER, RETRIED, SUPERSEDED, AttemptMeter
from genqueue_worker.observe.report import Report


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


@dataclass(slots=True)
class Run:
    """One attempt under way: its upstream call, and why it must stop if it must."""

    generator: str
    attempt: int
    upstream: asyncio.Timeout
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt at one generation; ``claimed_s`` is the loop's time at which it began."""

    generation_id: str
    generator: str
    request: GenerationRequest
    claim: Claim
    outbox: Outbox
    claimed_s: float
    meter: AttemptMeter
    report: Report


def gave_up(claim: Claim) -> Outcome:
    """The end of a generation whose earlier attempts failed often enough."""
    last = claim.errors[-1]["message"] if claim.errors else "nothing is known"
    return Outcome(error="failed", message=f"gave up after {claim.attempt - 1} attempts: {last}")


def redis_time(work: Work, loop_s: float) -> float:
    """The loop's time in epoch seconds of Redis's clock."""
    return work.claim.answered_at + loop_s - work.claimed_s


def first_text_at(work: Work) -> float | None:
    """When its first text came, in the same seconds; None before."""
    first_text_s = work.outbox.first_text_s
    return None if first_text_s is None else redis_time(work, first_text_s)


def ended_as(ended: Done | Ended | Relinquished) -> str:
    """How an attempt ended, in the words of :mod:`genqueue_worker.observe.metrics`."""
    match ended:
        case Done():
            return "finished"
        case Ended(reason):
            return reason.error
        case Relinquished(reason):
            return reason if reason in {RETRIED, DEFERRED, HANDED_OVER} else SUPERSEDED


def not_ours(reason: str) -> Ended | Relinquished:
    """What a task says whose generation somebody else ended or has taken over."""
    return Ended(endings.CANCELLED) if reason == "cancelled" else Relinquished(reason)
