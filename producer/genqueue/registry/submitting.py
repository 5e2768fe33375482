"""A generation is handed over, and a doorbell rung for it.

A doorbell is the Celery message that makes a worker look at a generation: its id and nothing else.
It is written out here and not sent through Celery.  So it goes to its list in the same Lua call that
registers the generation (nothing can die between the two), the asyncio client needs no
thread for it, and a producer needs no Celery.  The format is Celery's task message
protocol 2 (docs.celeryq.dev, "Message Protocol") in the envelope of kombu's Redis
transport; ``tests/contract/broker/test_celery.py`` holds it against what Celery itself sends.
"""

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from genqueue import keys
from genqueue.errors import (
    IdempotencyConflictError,
)
from genqueue.registry import signatures
from genqueue.registry.decoding import text_of
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
    ``ring`` False is for a worker that has the generation's message in hand.  ``traceparent`` belongs to the span
    that submits it (:func:`genqueue.tracing.valid_traceparent`).  The answer raises UnknownGeneratorError,
    QueueFullError or IdempotencyConflictError.
    """

    def decode(answer: list[Any]) -> Accepted:
        match [text_of(part) for part in answer]:
            case ["accepted", accepted_id]:
                return Accepted(accepted_id)
            case ["conflict", earlier_id]:
                raise IdempotencyConflictError(idempotency_key or "", earlier_id)
            case words:
                refuse("submit", request.generator, words)

    return scripted(
        signatures.Submit(
            generation=keys.generation(generation_id),
            waiting=keys.waiting(request.generator),
            doorbell=keys.doorbell(request.generator, request.priority),
            idempotency=None if idempotency_key is None else keys.idempotency(idempotency_key),
            id=generation_id,
            generator=request.generator,
            request=request.to_wire(),
            as_written="" if idempotency_key is None else request.fingerprint_as_written(),
            fingerprint="" if idempotency_key is None else request.fingerprint(),
            priority=request.priority,
            deadline_s=request.deadline_s,
            keep_s=keep_s,
            message=doorbell_message(generation_id, request.generator, request.priority) if ring else "",
            limit=max_queue_depth,
            idempotency_ttl_s=idempotency_ttl_s,
            traceparent=traceparent or "",
        ),
        decode,
    )


# base64 of [[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]
_BODY = "W1tdLCB7fSwgeyJjYWxsYmFja3MiOiBudWxsLCAiZXJyYmFja3MiOiBudWxsLCAiY2hhaW4iOiBudWxsLCAiY2hvcmQiOiBudWxsfV0="


def doorbell_message(generation_id: str, generator: str, priority: int) -> bytes:
    """The message for one generation, ready for ``LPUSH`` to :func:`genqueue.keys.doorbell`."""
    return to_json(
        {
            "body": _BODY,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": keys.TASK_NAME,
                "id": generation_id,
                "root_id": generation_id,
                "parent_id": None,
                "group": None,
                "retries": 0,
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
                "argsrepr": "()",
                "kwargsrepr": "{}",
                "origin": "genqueue",
                "ignore_result": False,
            },
            "properties": {
                "correlation_id": generation_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": keys.queue(generator)},
                "priority": priority,
                "body_encoding": "base64",
                "delivery_tag": generation_id,
            },
        }
    )


def doorbell_template() -> bytes:
    """The message with the places ``{id}``, ``{generator}`` and ``{priority}``, for a script that rings for many."""
    place: Any = "{priority}"
    return doorbell_message("{id}", "{generator}", place).replace(b'"{priority}"', b"{priority}")  # it is a number
