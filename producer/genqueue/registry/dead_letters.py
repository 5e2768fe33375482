"""Generations that rest with their request: listed, tried again, dropped."""

from typing import Any

from genqueue import keys
from genqueue.errors import (
    GenerationNotFoundError,
    NotDeadError,
)
from genqueue.registry import signatures
from genqueue.registry.decoding import text_of
from genqueue.registry.script import Call, refuse, scripted
from genqueue.registry.submitting import Accepted, doorbell_message


def retry(
    generation_id: str,
    new_id: str,
    generator: str,
    priority: int,
    *,
    max_queue_depth: int | None,
    keep_s: int,
    result_ttl_s: int,
) -> Call[Accepted]:
    """Submit a dead letter's request again under ``new_id``; it leaves the list in the same call.

    The answer is the id under which it was retried first, however often it is sent.  Limits and errors are those of
    :func:`genqueue.registry.submitting.submit`.  The answer raises GenerationNotFoundError when the dead letter is
    gone, NotDeadError when it never was one or was dropped.
    """

    def decode(answer: list[Any]) -> Accepted:
        match [text_of(part) for part in answer]:
            case ["accepted", accepted_id]:
                return Accepted(accepted_id)
            case ["gone"]:
                raise GenerationNotFoundError(generation_id)
            case ["not dead"]:
                raise NotDeadError(generation_id, "it was dropped")
            case ["incomplete"]:
                raise NotDeadError(generation_id, "its request is lost")
            case words:
                refuse("retry", generator, words)

    return scripted(
        signatures.Retry(
            letter=keys.generation(generation_id),
            text=keys.text(generation_id),
            generation=keys.generation(new_id),
            waiting=keys.waiting(generator),
            doorbell=keys.doorbell(generator, priority),
            id=generation_id,
            new_id=new_id,
            generator=generator,
            limit=max_queue_depth,
            keep_s=keep_s,
            result_ttl_s=result_ttl_s,
            message=doorbell_message(new_id, generator, priority),
        ),
        decode,
    )


def drop(generation_id: str, *, result_ttl_s: int) -> Call[None]:
    """Take a dead letter from the list and forget its request; any other generation is left alone."""
    return scripted(
        signatures.Drop(
            letter=keys.generation(generation_id),
            text=keys.text(generation_id),
            id=generation_id,
            result_ttl_s=result_ttl_s,
        ),
        lambda answer: None,
    )


def dead_letters(first: int, limit: int) -> Call[list[str]]:
    """The ids of up to ``limit`` dead letters, the newest (0) first; some may be forgotten already."""
    return Call(
        ("ZREVRANGE", keys.DEAD, str(first), str(first + limit - 1)), lambda answer: [text_of(part) for part in answer]
    )
