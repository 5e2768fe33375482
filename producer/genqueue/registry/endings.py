"""Endings of a generation as values: what is stored at the end, and which error stands for it.

Pure.  A worker uses it, or a caller who cancels; :mod:`genqueue.client.views` shows the end to a caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from genqueue import errors
from genqueue.registry.attempts import End, Flush
from genqueue.registry.lifecycle import State, Transition
from genqueue.registry.sweeping import Overdue
from genqueue.wire.events import event_body
from genqueue.wire.finish_reasons import shown_reason
from genqueue.wire.result import GenerationResult, Outcome, celery_failure, celery_success

ENDINGS: dict[str, type[errors.GenerationError]] = {
    "rejected": errors.GenerationRejectedError,
    "failed": errors.GenerationFailedError,
    "expired": errors.GenerationExpiredError,
    "cancelled": errors.GenerationCancelledError,
}
"""The words of ``Outcome.error``, and the error that a reader raises; for another word GenerationFailedError."""

CANCELLED = Outcome(error="cancelled", message="cancelled")


def finished(generation_id: str, generator: str, last: Flush, result: GenerationResult, *, date_done: str) -> End:
    """The end with a result; ``last`` is what the attempt had not written yet."""
    meta = result.meta[0]
    completion_tokens = meta["usage"]["completion_tokens"]
    if completion_tokens is None:  # nobody knows: what came is the best there is for whoever needs a number
        completion_tokens = last.completion_tokens
    reason = shown_reason(meta["finish_reason"])
    body = event_body("finished", {"finish_reason": reason, "completion_tokens": completion_tokens})
    return End(
        generation_id,
        generator,
        last.attempt,
        Transition.FINISHED,
        State.FINISHED,
        [*last.bodies, body],
        celery_success(generation_id, result, date_done),
        completion_tokens=completion_tokens,
        mark="first" if last.mark and last.text else last.mark,  # a reset's text goes anyway: it is in the result
        number=last.number,
    )


def failed(
    generation_id: str,
    generator: str,
    last: Flush | None,
    outcome: Outcome,
    *,
    date_done: str,
    transition: Transition = Transition.FAILED,
) -> End:
    """The end without one; ``last`` is what the attempt had not written yet, None if there was no attempt."""
    error = ENDINGS[outcome.error]
    body = event_body("failed", {"error": outcome.error, "message": outcome.message})
    return End(
        generation_id,
        generator,
        last.attempt if last else None,
        transition,
        State.FAILED,
        [*(last.bodies if last else ()), body],
        celery_failure(generation_id, "FAILURE", error.__name__, error.__module__, outcome.message, date_done),
        completion_tokens=last.completion_tokens if last else None,
        text=last.text if last else "",
        outcome=outcome,
        mark=last.mark if last else "",
        number=last.number if last else 0,
    )


def cancelled(generation_id: str, generator: str, *, date_done: str) -> End:
    """The end that anybody may give a generation at any time before another one."""
    return End(
        generation_id,
        generator,
        None,
        Transition.CANCELLED,
        State.CANCELLED,
        [event_body("cancelled", {})],
        celery_failure(generation_id, "REVOKED", "TaskRevokedError", "celery.exceptions", CANCELLED.message, date_done),
        outcome=CANCELLED,
    )


def overdue(found: Overdue, *, date_done: str, trouble: str = "") -> End:
    """The end of a generation whose deadline passed while no worker had it; text and usage so far are kept.

    It is fenced: it is refused if somebody has begun a newer attempt.  ``trouble`` says why no attempt could begin, if
    that is known.
    """
    reason, errors = expired("in the queue", found.met, trouble), found.met
    if found.holder is not None:
        reason = expired("after its worker was lost")
        errors = [*errors, {"attempt": found.attempt, "message": f"the lease of {found.holder} ran out"}]
    reason = reason.model_copy(update={"detail": {"errors": errors, **reason.detail}})
    end = failed(found.generation_id, found.generator, None, reason, date_done=date_done, transition=Transition.EXPIRED)
    return replace(end, attempt=found.attempt)


def incomplete(missing: str) -> Outcome:
    """The outcome of a generation whose record lacks the fields ``missing``, so that nobody can run it."""
    return Outcome(
        error="failed",
        message=f"its record in Redis is incomplete, nobody can run it: {missing}",
        detail={"missing": missing.split(", ")},
    )


def rejection(message: str, **detail: Any) -> Outcome:
    """The outcome of a request that is itself at fault."""
    return Outcome(error="rejected", message=message, detail=detail)


def expired(where: str, met: Sequence[Mapping[str, Any]] = (), trouble: str = "") -> Outcome:
    """The outcome of a generation whose deadline passed; it names what the last attempt met, else ``trouble``."""
    cause = met[-1]["message"] if met else trouble
    message = f"the deadline passed {where}" + (f"; last error: {cause}" if cause else "")
    return Outcome(error="expired", message=message, detail={"finish_reason": "deadline"})
