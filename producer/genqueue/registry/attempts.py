"""A worker claims an attempt, writes what it produces, gives it back or ends it.  Every write is fenced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from genqueue import keys
from genqueue.registry import signatures
from genqueue.registry.decoding import errors_met, errors_of, text_of
from genqueue.registry.lifecycle import State, Transition, sources
from genqueue.registry.partial import decode_partial
from genqueue.registry.script import Call, scripted
from genqueue.registry.submitting import doorbell_message
from genqueue.tracing import valid_traceparent
from genqueue.wire.result import Outcome


@dataclass(frozen=True, slots=True)
class Claim:
    """A generation that one worker now holds.

    Attributes:
        attempt: 1, 2, 3 …
        request: the request's JSON, as :meth:`genqueue.wire.request.GenerationRequest.to_wire` made it.
        submitted_at, started_at, deadline_at: epoch seconds of Redis's clock.
        text_so_far: what earlier attempts produced.
        solid_tokens: how many tokens that took, up to its last character that is not white space.
        failures: how many attempts failed by their own or their endpoint's fault.
        errors: why earlier attempts ended: ``attempt``, ``message`` and what else is known.
        reasoning_so_far: the reasoning of earlier attempts, of a chat.
        tokens_so_far: how many tokens all of that took.
        traceparent: of the span that submitted it, if that was traced.
        answered_at: when Redis answered; later than ``started_at`` where its first answer was lost.
        met: ``errors``, and why the newest attempt was put back if that was no error: an endpoint out of reach.
    """

    attempt: int
    request: bytes
    submitted_at: float
    started_at: float
    deadline_at: float | None
    text_so_far: str
    solid_tokens: int
    failures: int
    errors: list[dict[str, Any]]
    reasoning_so_far: str = ""
    tokens_so_far: int = 0
    traceparent: str | None = None
    answered_at: float = 0.0
    met: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """Why not: "held", "gone", "elsewhere", "expired", "incomplete", or the final state.

    Attributes:
        is_untold: whether it was cancelled while nobody ran it, and this owner is the one to tell of that.
        missing: the fields that an incomplete record lacks, or has wrongly.
        met: of one that expired, as in :class:`Claim`.
    """

    reason: str
    is_untold: bool = False
    missing: str = ""
    met: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Flush:
    """The output of one attempt since its last flush.

    ``bodies`` are event bodies.  ``text`` is what they add to the text so far, as
    :func:`genqueue.registry.partial.encode_partial` writes it; it is kept also where no chunks are published.
    ``solid_tokens`` counts tokens up to its last character that is not white space.  ``mark`` is "reset" when
    the text so far must go first, "first" when this is the first text, else "".
    """

    generation_id: str
    attempt: int
    number: int
    completion_tokens: int
    text: str | bytes
    mark: str
    bodies: list[bytes]
    solid_tokens: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """The end of a generation.

    ``attempt`` None is an end from outside (cancel).  ``stillborn`` ends one that was never
    registered, so that the sender of an unreadable message gets an answer.  ``mark`` is as in
    :class:`Flush`.  ``owner`` and ``number`` are the attempt's worker and the number of its last flush.
    """

    generation_id: str
    generator: str
    attempt: int | None
    transition: Transition
    state: State
    bodies: Sequence[bytes]
    celery_result: bytes
    completion_tokens: int | None = None
    text: str | bytes = ""
    outcome: Outcome | None = None
    stillborn: bool = False
    mark: str = ""
    owner: str = ""
    number: int = 0


def claim(generation_id: str, generator: str, *, owner: str, lease_s: float, keep_s: int) -> Call[Claim | NotClaimed]:
    """Take a generation: attempt + 1, owner, lease and the ``started`` event, atomically.

    The answer is NotClaimed for a generation that is gone, elsewhere, held by a living lease or ended, and for one
    whose record lacks what is needed to run it; the caller ends that one.  A generation that was cancelled while
    nobody ran it is untold: the first owner who asks hears so, until it says that it told of the cancel
    (:func:`genqueue.registry.sweeping.discard`).  An owner that asks twice gets the same attempt twice.
    """

    def decode(answer: list[Any]) -> Claim | NotClaimed:
        reason = text_of(answer[0])
        if reason == "incomplete":
            return NotClaimed(reason, missing=text_of(answer[1]))
        if reason == "expired":
            return NotClaimed(reason, met=errors_met(*answer[1:]))
        if reason != "claimed":
            return NotClaimed(reason, is_untold=answer[1:] == [b"untold"])
        _, attempt, request, submitted_at, started_at, deadline_at, so_far, solid_tokens, failures, *rest = answer
        errors, tokens, traceparent, answered_at, met = rest
        try:
            said_so_far = decode_partial(so_far)
        except ValueError:
            return NotClaimed("incomplete", missing="text")
        return Claim(
            attempt=int(attempt),
            request=request,
            submitted_at=float(submitted_at),
            started_at=float(started_at),
            deadline_at=float(deadline_at) if deadline_at else None,
            text_so_far=said_so_far.text,
            solid_tokens=int(solid_tokens),
            failures=int(failures),
            errors=errors_of(errors),
            reasoning_so_far=said_so_far.reasoning,
            tokens_so_far=int(tokens),
            traceparent=valid_traceparent(traceparent.decode("ascii", "replace")),
            answered_at=float(answered_at),
            met=errors_met(errors, met),
        )

    return scripted(
        signatures.Claim(
            generation=keys.generation(generation_id),
            waiting=keys.waiting(generator),
            log=keys.log(generation_id),
            text=keys.text(generation_id),
            newest_claimed=keys.newest_claimed(generator),
            untold=keys.untold(owner),
            id=generation_id,
            generator=generator,
            owner=owner,
            lease_s=lease_s,
            keep_s=keep_s,
            live=keys.live(generation_id),
        ),
        decode,
    )


def append(flushes: Sequence[Flush], *, keep_s: int, owner: str = "") -> Call[list[str]]:
    """Write many attempts' events; each generation's own are atomic, and fenced.

    The answers, in order: "ok", "superseded" by another attempt, "gone", or the final state that somebody else
    gave it.  A flush that is sent twice is written once.  With an ``owner`` also "behind N": Redis has lost
    flushes that it had answered.  N is the last that it knows; the later ones must be sent again.
    """
    rows = [
        signatures.FlushRow(
            generation=keys.generation(flush.generation_id),
            log=keys.log(flush.generation_id),
            text=keys.text(flush.generation_id),
            attempt=flush.attempt,
            flush=flush.number,
            live=keys.live(flush.generation_id),
            completion_tokens=flush.completion_tokens,
            solid_tokens=flush.solid_tokens,
            mark=flush.mark,
            more=flush.text,
            bodies=flush.bodies,
        )
        for flush in flushes
    ]
    parameters = signatures.Append(keep_s=keep_s, owner=owner, flushes=rows)
    return scripted(parameters, lambda answer: [text_of(part) for part in answer])


def finish(end: End, *, log_ttl_s: int, result_ttl_s: int, keep_s: int) -> Call[str]:
    """End a generation: last events, final state, Celery's result; all or nothing, fenced.

    A failed generation that is worth another try becomes a dead letter: it rests for ``keep_s`` with its request and
    its text.  The request of any other is forgotten.

    The answer is "ok" (also when it is sent a second time), "superseded", "gone", the final state that somebody
    else gave it first, or "behind N" as in :func:`append`.
    """
    parameters = _endings([end], log_ttl_s, result_ttl_s, keep_s)
    return scripted(parameters, lambda answer: _ended([end], answer)[0])


def finish_all(ends: Sequence[End], *, log_ttl_s: int, result_ttl_s: int, keep_s: int) -> Call[list[str]]:
    """End many as :func:`finish` does, in one round trip; the answers have their order."""
    parameters = _endings(ends, log_ttl_s, result_ttl_s, keep_s)
    return scripted(parameters, lambda answer: _ended(ends, answer))


def _endings(ends: Sequence[End], log_ttl_s: int, result_ttl_s: int, keep_s: int) -> signatures.Finish:
    rows = [
        signatures.EndRow(
            generation=keys.generation(end.generation_id),
            log=keys.log(end.generation_id),
            text=keys.text(end.generation_id),
            waiting=keys.waiting(end.generator),
            result=keys.result(end.generation_id),
            id=end.generation_id,
            attempt=end.attempt,
            may_end=sources(end.transition),
            final=end.state,
            live=keys.live(end.generation_id),
            outcome=end.outcome.model_dump_json() if end.outcome else "",
            celery_result=end.celery_result,
            completion_tokens=end.completion_tokens,
            more=end.text,
            generator=end.generator,
            stillborn=end.stillborn,
            mark=end.mark,
            dead_ttl_s=keep_s if end.outcome and end.outcome.is_worth_another_try else None,
            writer=end.owner,
            flush=end.number,
            bodies=end.bodies,
        )
        for end in ends
    ]
    return signatures.Finish(log_ttl_s=log_ttl_s, result_ttl_s=result_ttl_s, ends=rows)


def _ended(ends: Sequence[End], answer: list[Any]) -> list[str]:
    """The answer for each.  The same call, sent before, has ended one that has that end already."""
    return ["ok" if text_of(word) == end.state else text_of(word) for end, word in zip(ends, answer, strict=True)]


def release(
    last: Flush,
    generator: str,
    priority: int,
    *,
    delay_s: float,
    failure: dict[str, Any] | None,
    is_charged: bool,
    keep_s: int,
    owner: str = "",
    waits_for: str = "",
    met: dict[str, Any] | None = None,
) -> Call[str]:
    """Put a running generation back into its queue, after ``delay_s`` or at once at its front; fenced.

    ``last`` is what the attempt had not written yet.  ``failure`` ended it, and counts against ``max_attempts`` only
    if ``is_charged``.  ``waits_for`` says what it waits for beside its turn; ``met`` is what the attempt met where
    that is no failure.  The answers are those of :func:`finish`; a release that is sent twice answers "queued" the
    second time.
    """
    generation_id = last.generation_id
    return scripted(
        signatures.Release(
            generation=keys.generation(generation_id),
            log=keys.log(generation_id),
            text=keys.text(generation_id),
            waiting=keys.waiting(generator),
            doorbell=keys.doorbell(generator, priority),
            id=generation_id,
            attempt=last.attempt,
            live=keys.live(generation_id),
            keep_s=keep_s,
            delay_s=delay_s,
            failure=to_json(failure) if failure else "",
            is_charged=is_charged,
            message=doorbell_message(generation_id, generator, priority),
            completion_tokens=last.completion_tokens,
            solid_tokens=last.solid_tokens,
            mark=last.mark,
            more=last.text,
            owner=owner,
            flush=last.number,
            waits_for=waits_for,
            met=to_json(met) if met else "",
            bodies=last.bodies,
        ),
        text_of,
    )


def renew(held: Sequence[tuple[str, int]], *, lease_s: float, keep_s: int, owner: str = "") -> Call[dict[str, str]]:
    """Renew the leases of (generation id, attempt) pairs; their keys live ``keep_s`` from now on.

    The answer holds the ids that are lost, and why: "superseded", "gone", or the final state.
    """

    def decode(answer: list[bytes]) -> dict[str, str]:
        words = [text_of(part) for part in answer]
        return dict(zip(words[::2], words[1::2], strict=True))

    rows = [
        signatures.HeldRow(
            generation=keys.generation(generation_id),
            log=keys.log(generation_id),
            text=keys.text(generation_id),
            id=generation_id,
            attempt=attempt,
        )
        for generation_id, attempt in held
    ]
    return scripted(signatures.Renew(lease_s=lease_s, keep_s=keep_s, owner=owner, held=rows), decode)
