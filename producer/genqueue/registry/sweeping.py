"""The workers' work for everybody: lost leases, due delays, deadlines, lost doorbells.

And the doorbells that one worker puts back, or throws away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from genqueue import keys
from genqueue.registry import signatures
from genqueue.registry.decoding import errors_met, text_of
from genqueue.registry.script import Call, scripted
from genqueue.registry.submitting import doorbell_message, doorbell_template

_SWEEP_LIMIT = 500
"""Generations of one kind (of one queue, where it is a queue's) that one sweep looks at."""
_END_LIMIT = 200
"""Generations past their deadline that one sweep takes: all are ended by one call, which Redis may take 20 ms for."""
_LONGEST_LEASE_S = 60.0
_LONGEST_DELAY_S = 3600.0
"""What is believed of a lease, and of a delay, whose length its record does not say: an older worker's."""
_SWEEP_GRACE_S = 1.0
"""How long a doorbell may be on its way to a claim."""
_LOOK_AGAIN_S = 3.0
"""When another sweeper may look after what one has rung for, or was to end."""
_TURNS = 12.0
"""In a lease's length a queue is looked through so often at most, by all sweepers together: four times a second."""
_DISCARD_LIMIT, _DISCARD_BYTES = 100, 1_000_000
"""Messages of one list, and their bytes, that are looked through at once for those that ring for nothing."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A generation that passed its deadline while no worker had it.

    Attributes:
        attempt: the newest; 0 when none was started.
        holder: the worker that left it running, None if it waited.
        met: what earlier attempts met, as in :class:`genqueue.registry.attempts.Claim`.
    """

    generation_id: str
    generator: str
    attempt: int
    holder: str | None
    met: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A generation that nobody can run; ``missing`` are the fields that its record lacks, or has wrongly."""

    generation_id: str
    generator: str
    missing: str


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for one generator.

    Attributes:
        depth: how many accepted generations.
        oldest_s: seconds since the oldest of them was submitted; 0 if there is none.
        messages: doorbells that nobody has taken, of a second ago at most.  Among them are plain Celery's, which
            are accepted when a worker takes them, and those of generations that were cancelled meanwhile.
    """

    depth: int
    oldest_s: float
    messages: int


@dataclass(frozen=True, slots=True)
class Found:
    """What one sweep found, and only this sweeper did.

    ``astray`` are the ids that were rung for, in the order in which they are to be taken;
    ``expired`` must be ended (:func:`genqueue.registry.endings.overdue`), and so must ``incomplete``, whose records
    lack what it takes to run them (:func:`genqueue.registry.endings.incomplete`).
    """

    astray: list[str]
    expired: list[Overdue]
    incomplete: list[Incomplete] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep's answer: what it found, and what every sweeper is told.

    Attributes:
        queues: those of the generators that it was asked for.
        dead_letters: how many there are, of all generators.
        has_more: whether there may be more to find: it looked at as many of a kind as one sweep may.
    """

    found: Found
    queues: dict[str, Queue]
    dead_letters: int
    has_more: bool = False


def sweep(generators: Sequence[str], *, lease_s: float, keep_s: int) -> Call[Swept]:
    """Look for generations that nobody looks after and ring for them; one round trip however many there are.

    Leases, delays and deadlines are everybody's, lost doorbells are looked for in those of ``generators`` in which
    nobody just did.  After a time
    without any sweep Redis was away, or all workers were: no lease is taken for ``lease_s`` then, within
    which whoever lives renews its own.
    """

    def decode(answer: list[Any]) -> Swept:
        astray, expired, queues, dead_letters, incomplete, has_more = answer
        found = Found(
            [text_of(generation_id) for generation_id in astray],
            [
                Overdue(
                    text_of(generation_id),
                    text_of(generator),
                    attempt,
                    text_of(holder) or None,
                    errors_met(errors, met),
                )
                for generation_id, generator, attempt, holder, errors, met in expired
            ],
            [
                Incomplete(text_of(generation_id), text_of(name) or "default", text_of(lacks))
                for generation_id, name, lacks in incomplete
            ],
        )
        told = zip(generators, queues, strict=True)
        return Swept(
            found,
            {name: Queue(depth, float(oldest_s), more) for name, (depth, oldest_s, more) in told},
            dead_letters,
            has_more=bool(has_more),
        )

    return scripted(
        signatures.Sweep(
            limit=_SWEEP_LIMIT,
            end_limit=_END_LIMIT,
            grace_s=_SWEEP_GRACE_S,
            look_again_s=_LOOK_AGAIN_S,
            lease_s=lease_s,
            keep_s=keep_s,
            template=doorbell_template(),
            turn_s=lease_s / _TURNS,
            longest_lease_s=_LONGEST_LEASE_S,
            longest_delay_s=_LONGEST_DELAY_S,
            generators=generators,
        ),
        decode,
    )


def ring(generation_id: str, generator: str, priority: int) -> Call[None]:
    """Put a doorbell back to the front of its queue: whoever took it leaves the queue to others."""
    message = doorbell_message(generation_id, generator, priority)
    return Call(("RPUSH", keys.doorbell(generator, priority), message), lambda answer: None)


def discard(generator: str, *, owner: str, told: Sequence[str], keep_s: int) -> Call[list[tuple[str, bool]]]:
    """Throw away doorbells of a queue that ring for nothing: of those that come next, whose generation has ended.

    Answers ids, and of each whether ``owner`` is to tell of it: it was cancelled while nobody ran it.  What an owner is
    to tell of is answered until it comes in ``told``, so that no answer can get lost, and to no other owner.
    [] when there are no more among the next.  A message that brings its own request stays.
    """

    def decode(answer: list[bytes]) -> list[tuple[str, bool]]:
        return [(text_of(found), untold == b"untold") for found, untold in zip(answer[::2], answer[1::2], strict=True)]

    lists = [
        signatures.ListRow(
            list=keys.doorbell(generator, priority), template=doorbell_message("{id}", generator, priority)
        )
        for priority in keys.PRIORITIES
    ]
    return scripted(
        signatures.Discard(
            untold=keys.untold(owner),
            limit=_DISCARD_LIMIT,
            most_bytes=_DISCARD_BYTES,
            generator=generator,
            keep_s=keep_s,
            lists=lists,
            told=told,
        ),
        decode,
    )
