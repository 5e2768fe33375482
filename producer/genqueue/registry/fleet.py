"""Workers announce their generators and endpoints; an overview shows all that waits and runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic_core import to_json

from genqueue import keys
from genqueue.registry import signatures
from genqueue.registry.decoding import object_of, pairs_of, text_of
from genqueue.registry.script import Call, scripted

_OVERDUE_S = 10.0
"""A living sweeper would have found it within this time."""
_COUNT_LIMIT = 2000
"""An overview tells running generations, and dead letters, by generator up to this number."""


class Health(StrEnum):
    """The state of an endpoint, which says how to treat it."""

    UP = "up"
    RESTS = "rests"
    WAKING = "waking"
    REFUSES = "refuses"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The last announcement of a worker.

    Attributes:
        name: host, process id and a number of its own.
        announced_at: epoch seconds of Redis's clock.
        generators: for each generator it serves, its endpoints: ``address``, ``health`` ("up",
            "rests" after a failure or while it is full, "waking", "refuses" whatever it is asked, "down"),
            ``running`` calls, ``trouble`` (the last one).
    """

    name: str
    announced_at: float
    generators: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One generator's queue.

    Attributes:
        waiting: accepted generations that no worker has claimed; a backoff's are not among them.
        max_queue_depth: the limit that a worker announced; None if none did for ``keep_s``.
        oldest_wait_s: how long the first submitted of them has been waiting; None if none waits.
        doorbells: Celery messages in its lists; beside ``waiting`` those of plain Celery
            producers, and of generations that ended before a worker took the message.
        running: None where there are too many to tell whose they are; so is ``dead``.
        dead: dead letters.
        workers: how many announced lately that they serve it.
        api_type: as a worker announced it.
    """

    generator: str
    waiting: int
    max_queue_depth: int | None
    oldest_wait_s: float | None
    doorbells: int
    running: int | None
    dead: int | None
    workers: int
    api_type: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at a glance, of one moment.

    Attributes:
        at: epoch seconds of Redis's clock.
        queues: of every generator that is known, by name.
        workers: those that announced themselves in the last 30 s.
        running: generations that a worker holds, or held when it died.
        running_overdue: those whose lease ran out more than 10 s ago: no worker looks after them.
        delayed: generations that wait for their next attempt.
        delayed_overdue: those that were due more than 10 s ago.
        dead: dead letters.
        unreadable: keys that could not be read, and Redis's words.
    """

    at: float
    queues: list[QueueStatus]
    workers: list[WorkerStatus]
    running: int
    running_overdue: int
    delayed: int
    delayed_overdue: int
    dead: int
    unreadable: dict[str, str]


def announce(
    facts: dict[str, dict[str, Any]],
    owner: str,
    servers: dict[str, list[dict[str, Any]]],
    *,
    worker_s: float,
    keep_s: int,
    places: Mapping[str, Sequence[str]] | None = None,
) -> Call[None]:
    """Announce which generators a worker serves, where, and how their endpoints are.

    ``facts`` are a generator's, the same from every worker, and need ``max_queue_depth``.  ``servers`` are its
    endpoints as in :class:`WorkerStatus`, which lives ``worker_s``.  ``places`` are those that this worker calls
    (:mod:`genqueue.discovery`), by generator; those of several workers add up.
    """
    calls_at = [f"{name} {place}" for name, found in (places or {}).items() for place in found]
    parameters = signatures.Announce(
        keep_s=keep_s,
        worker_s=worker_s,
        owner=owner,
        servers=to_json({"generators": servers})[1:],
        calls_at=to_json(calls_at),
        facts=[signatures.FactRow(name=name, fact=to_json(fact)[1:]) for name, fact in facts.items()],
    )
    return scripted(parameters, lambda answer: None)


def retire(owner: str) -> Call[None]:
    """Forget the announcement of a worker that ends."""
    return Call(("HDEL", keys.WORKERS, owner), lambda answer: None)


def known_generators() -> Call[set[str]]:
    """The generators that workers announced."""
    return Call(("HKEYS", keys.GENERATORS), lambda answer: {text_of(name) for name in answer})


def known_places() -> Call[dict[str, set[str]]]:
    """For each generator the places that its workers call or, while it has none, called when it had."""

    def decode(answer: dict[bytes, bytes]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for entry in answer:
            name, _, place = text_of(entry).partition(" ")
            found.setdefault(name, set()).add(place)
        return found

    return Call(("HGETALL", keys.PLACES), decode)


def read_workers() -> Call[list[WorkerStatus]]:
    """The workers that announced themselves lately, by name."""

    return Call(("HGETALL", keys.WORKERS), _workers)


def _workers(answer: Mapping[bytes, bytes]) -> list[WorkerStatus]:
    found = [_worker(text_of(owner), about) for owner, about in answer.items()]
    return sorted((worker for worker in found if worker is not None), key=lambda worker: worker.name)


def _worker(name: str, about: bytes) -> WorkerStatus | None:
    """The announcement of a worker of any version.  Unknown facts are passed over; None for what no worker wrote."""
    facts = object_of(about)
    announced_at, generators = facts.get("announced_at"), facts.get("generators")
    if not isinstance(announced_at, int | float) or not isinstance(generators, dict):
        return None
    servers_of = {
        generator: [_SERVER | _of_their_kind(server, _SERVER) for server in servers if isinstance(server, dict)]
        for generator, servers in generators.items()
        if isinstance(servers, list)
    }
    return WorkerStatus(name, announced_at, servers_of)


_SERVER: dict[str, Any] = {"address": "", "health": "?", "running": 0, "trouble": ""}
"""The facts of an endpoint where its worker announces none."""


def _of_their_kind(facts: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """``facts`` without what is of another type than in ``known``."""
    return {name: value for name, value in facts.items() if type(value) is type(known.get(name, value))}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None


def overview(generators: Sequence[str]) -> Call[Overview]:
    """Queues, workers and generators: those that were announced, and ``generators``; changes nothing."""

    def decode(answer: list[Any]) -> Overview:
        at, announced, about_workers, rows, counts, unreadable = answer
        workers = _workers(pairs_of(about_workers))
        facts = {text_of(name): object_of(fact) for name, fact in pairs_of(announced).items()}
        queues = []
        for name, waiting, oldest_wait_s, doorbells, running, dead in rows:
            generator = text_of(name)
            fact = facts.get(generator, {})
            queues.append(
                QueueStatus(
                    generator=generator,
                    waiting=waiting,
                    max_queue_depth=_count(fact.get("max_queue_depth")),
                    oldest_wait_s=float(oldest_wait_s) if oldest_wait_s else None,
                    doorbells=doorbells,
                    running=None if running < 0 else running,
                    dead=None if dead < 0 else dead,
                    workers=sum(generator in worker.generators for worker in workers),
                    api_type=_word(fact.get("api_type")),
                )
            )
        running, running_overdue, delayed, delayed_overdue, dead = counts
        return Overview(
            at=float(at),
            queues=sorted(queues, key=lambda queue: queue.generator),
            workers=workers,
            running=running,
            running_overdue=running_overdue,
            delayed=delayed,
            delayed_overdue=delayed_overdue,
            dead=dead,
            unreadable={text_of(key): text_of(words) for key, words in pairs_of(unreadable).items()},
        )

    return scripted(signatures.Overview(overdue_s=_OVERDUE_S, most=_COUNT_LIMIT, wanted=generators), decode)
