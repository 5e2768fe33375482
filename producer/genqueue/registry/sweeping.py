"""The sweep, which every worker makes for all: lost leases, due delays, deadlines, lost doorbells.

Here are also the doorbells that one worker puts back or throws away.
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
"""One sweep looks at so many generations of one kind, of one queue where the kind is a queue's."""
_END_LIMIT = 200
"""One sweep takes so many that are past their deadline: one call ends them all, in up to 20 ms of Redis's time."""
_LONGEST_LEASE_S = 60.0
_LONGEST_DELAY_S = 3600.0
"""The longest lease and delay that are believed where the record of an older worker does not say the length."""
_SWEEP_GRACE_S = 1.0
"""How long a doorbell may be on its way to a claim."""
_LOOK_AGAIN_S = 3.0
"""After this time another sweeper may look for what one has rung for, or was to end."""
_TURNS = 12.0
"""All sweepers together look through a queue so often in a lease's length: four times a second."""
_DISCARD_LIMIT, _DISCARD_BYTES = 100, 1_000_000
"""So many messages of one list, and bytes of them, are looked through at once."""


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
    """The generations and messages that wait for one generator.

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
    """The generations that one sweep found; no other sweeper has found them.

    ``astray`` are the ids that were rung for, in the order in which they are to be taken.
    ``expired`` must be ended (:func:`genqueue.registry.endings.overdue`), and so must ``incomplete``
    (:func:`genqueue.registry.endings.incomplete`): their records lack what is needed to run them.
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

    Leases, delays and deadlines are looked at for all generators, lost doorbells in those of ``generators`` where no
    other sweeper just looked.  After a time without any sweep Redis was away, or all workers were.  Then no lease is
    taken for ``lease_s``, within which living workers renew their own.
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
    """Put a doorbell back to the front of its queue; the worker that took it leaves the queue to others."""
    message = doorbell_message(generation_id, generator, priority)
    return Call(("RPUSH", keys.doorbell(generator, priority), message), lambda answer: None)


def discard(generator: str, *, owner: str, told: Sequence[str], keep_s: int) -> Call[list[tuple[str, bool]]]:
    """Throw away doorbells that ring for nothing: those next in the queue whose generation has ended.

    The answer holds each id, and whether ``owner`` is to tell of it: it was cancelled while nobody ran it.  Such an id
    is answered until it comes in ``told``, so that no answer can get lost, and to no other owner.  The answer is []
    when no more are next.  A message that brings its own request stays.
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
