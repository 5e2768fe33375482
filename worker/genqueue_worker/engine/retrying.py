"""Decide what an upstream error means for the generation: another attempt, and when, or its end.

Pure.  :mod:`genqueue_worker.upstream.faults` says whose fault the error is.
"""

from dataclasses import dataclass

from genqueue.wire.result import Outcome
from genqueue_worker.upstream.faults import OUTGROWN, WEB_PAGE, WORDLESS, Fault, UpstreamFacts, fault_of, refuses_text


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt after ``delay_s``.

    ``is_failure``: whether this one failed, and its error is kept; ``is_charged``: whether it
    counts against ``max_attempts``; ``anew``: whether the text so far may be what was refused,
    so that it is not sent again (:func:`genqueue_worker.engine.continuation.begins_anew`).
    """

    delay_s: float
    is_failure: bool
    is_charged: bool
    anew: bool = False


AT_ONCE = Again(0.0, is_failure=False, is_charged=False)
LACKING = Again(1.0, is_failure=False, is_charged=False)
"""Where this host lacks memory, or file descriptors: others may have some, or it has in a second."""

_JITTER_S = 2.0
_CAPACITY_MOST_S = 300.0
"""No server may have a generation rest until it is forgotten (``keep_s``)."""
_RETRY_BASE_S = 0.5
_RETRY_MOST_S = 30.0
_PAGE_BASE_S = 2.0
"""A proxy that restarts, or waits for its server, shows a page of its own for some seconds, not for one."""
_ERRORS_PER_ATTEMPT = 3
"""A server's death is not charged to the generations that it ran, but one of them may be its cause."""


def is_exhausted(failures: int, errors: int, max_attempts: int) -> bool:
    """Whether a generation has failed often enough: by itself, or with whatever server took it."""
    return failures >= max_attempts or errors >= _ERRORS_PER_ATTEMPT * max_attempts


def after_failure(
    facts: UpstreamFacts,
    *,
    failures: int,
    errors: int,
    max_attempts: int,
    may_retry: bool,
    can_go_on: bool,
    may_another_take_it: bool,
    draw: float,
    was_continued: bool = False,
    brought_nothing: bool = False,
) -> Again | Outcome:
    """What an upstream error means for the generation: another attempt, or its end.

    Args:
        facts: of the error.
        failures: charged attempts before this one.
        errors: failed attempts before this one, charged or not.
        max_attempts: charged attempts in all.
        may_retry: whether the caller wants failures tried again.
        can_go_on: whether another server may be asked at once.
        may_another_take_it: whether one may take what this one refused, at once or when it has room.
        draw: from [0, 1); spreads retries (full jitter, as in the AWS Architecture Blog's
            "Exponential Backoff And Jitter"); after a web page half of the wait is fixed.
        was_continued: whether it was sent the text so far beside what the caller sent: an attempt before it was
            accepted without, so what is refused is ours, and the next one begins anew.
        brought_nothing: whether it added nothing to that text.  Then even a failure in the server's words may
            be a refusal: before it ends a generation, one more attempt begins anew.
    """
    if was_continued and refuses_text(facts):
        return Again(0.0, is_failure=True, is_charged=False, anew=True)
    match fault_of(facts):
        case Fault.REQUEST:
            return _outcome("rejected", facts.message, facts)
        case Fault.ENDPOINT if facts.is_down:  # it is known to refuse whatever comes: this one too is no news
            return AT_ONCE
        case Fault.ENDPOINT if may_another_take_it and may_retry and failures + 1 < max_attempts:
            return Again(0.0, is_failure=True, is_charged=True)
        case Fault.ENDPOINT if facts.error_type != WEB_PAGE:
            return _outcome("rejected", facts.message, facts, fault=Fault.ENDPOINT)
        case Fault.CAPACITY if facts.error_type == OUTGROWN:
            return after_defect(facts.message, errors=errors, max_attempts=max_attempts, may_retry=may_retry, draw=draw)
        # A worker whose servers are all down, or full, leaves the queue to others.
        case Fault.CAPACITY if can_go_on or facts.is_down or facts.retry_after_s is None:
            return AT_ONCE
        case Fault.CAPACITY:
            delay_s = min(_CAPACITY_MOST_S, facts.retry_after_s or 0.0) + draw * _JITTER_S
            return Again(delay_s, is_failure=False, is_charged=False)
        case Fault.SERVER | Fault.ENDPOINT:
            is_charged = not facts.is_down
            is_last = is_exhausted(failures + is_charged, errors + 1, max_attempts)
            if not may_retry:
                return _outcome("failed", facts.message, facts)
            may_be_refusal = was_continued and brought_nothing and facts.error_type not in WORDLESS
            if is_last and may_be_refusal and not is_exhausted(failures, errors + 1, max_attempts):
                return Again(_delay_s(facts, failures, draw), is_failure=True, is_charged=False, anew=True)
            if is_last and max_attempts == 1:
                return _outcome("failed", facts.message, facts)
            if is_last:
                return _outcome("failed", f"gave up after {errors + 1} attempts: {facts.message}", facts)
            delay_s = 0.0 if can_go_on or facts.is_down else _delay_s(facts, failures, draw)
            return Again(delay_s, is_failure=True, is_charged=is_charged)


def _delay_s(facts: UpstreamFacts, failures: int, draw: float) -> float:
    is_page = facts.error_type == WEB_PAGE
    doubled = 2.0 ** min(failures, 10)  # beyond the ceiling; a float's end is 2**1024
    most_s = min(_RETRY_MOST_S, (_PAGE_BASE_S if is_page else _RETRY_BASE_S) * doubled)
    return most_s * ((1 + draw) / 2 if is_page else draw)  # a page is not over at once


def after_defect(words: str, *, errors: int, max_attempts: int, may_retry: bool, draw: float) -> Again | Outcome:
    """What a defect of ours, or of a library, means for a generation: another attempt, uncharged, or its end.

    So does a lack that the generation itself may have caused.

    Args:
        words: of it, with nothing of what the generation is about.
        errors: failed attempts before this one, charged or not.
        max_attempts, may_retry, draw: as in :func:`after_failure`.
    """
    if not may_retry:
        return Outcome(error="failed", message=words)
    if is_exhausted(0, errors + 1, max_attempts):
        return Outcome(error="failed", message=f"gave up after {errors + 1} attempts: {words}")
    delay_s = draw * min(_RETRY_MOST_S, _RETRY_BASE_S * 2 ** min(errors, 10))
    return Again(delay_s, is_failure=True, is_charged=False)


def _outcome(error: str, message: str, facts: UpstreamFacts, **more: str) -> Outcome:
    return Outcome(
        error=error, message=message, detail={"status": facts.status, "error_type": facts.error_type, **more}
    )
