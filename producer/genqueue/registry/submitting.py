"""A generation is handed over."""

from dataclasses import dataclass
from typing import Any

from genqueue import keys
from genqueue.errors import (
    IdempotencyConflictError,
)
from genqueue.registry.decoding import text_of
from genqueue.registry.doorbell import doorbell_message
from genqueue.registry.script import Call, refuse, scripted
from genqueue.wire.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Accepted:
    """A submit went through; ``generation_id`` is an earlier one's if the idempotency key was used before."""

    generation_id: str


def submit(
    generation_id: str,
    request: GenerationRequest,
    *,
    keep_s: int,
    idempotency_key: str | None,
    idempotency_ttl_s: int,
    max_queue_depth: int | None,
    ring: bool = True,
    traceparent: str | None = None,
) -> Call[Accepted]:
    """Register a generation and ring for it, atomically; sending it twice accepts it once.

    ``max_queue_depth`` None takes the limit that a worker announced; -1 is no limit.
    ``ring`` False is for a worker that has the generation's message in hand.  ``traceparent`` is of the span that
    submits it (:func:`genqueue.tracing.valid_traceparent`).  The answer
    raises UnknownGeneratorError, QueueFullError or IdempotencyConflictError.
    """
    key_list = [
        keys.generation(generation_id),
        keys.waiting(request.generator),
        keys.GENERATORS,
        keys.doorbell(request.generator, request.priority),
        keys.DEADLINES,
    ]
    if idempotency_key is not None:
        key_list.append(keys.idempotency(idempotency_key))
    arguments = (
        generation_id,
        request.generator,
        request.to_wire(),
        "" if idempotency_key is None else request.fingerprint_as_written(),
        "" if idempotency_key is None else request.fingerprint(),
        request.priority,
        "" if request.deadline_s is None else request.deadline_s,
        keep_s,
        doorbell_message(generation_id, request.generator, request.priority) if ring else "",
        "" if max_queue_depth is None else max_queue_depth,
        idempotency_ttl_s,
        traceparent or "",
    )

    def decode(answer: list[Any]) -> Accepted:
        match [text_of(part) for part in answer]:
            case ["accepted", accepted_id]:
                return Accepted(accepted_id)
            case ["conflict", earlier_id]:
                raise IdempotencyConflictError(idempotency_key or "", earlier_id)
            case words:
                refuse("submit", request.generator, words)

    return scripted("submit", key_list, arguments, decode)
