"""Every conversation with Redis as a value: what goes out and how the answer is read.

Pure: :mod:`genqueue.connection.store` carries the calls out, synchronously or not.  The scripts are in
``lua/``; each call's docstring says what is atomic and what comes back when the key is gone.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.resources import files
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from genqueue import keys
from genqueue.errors import (
    GenerationNotFoundError,
    IdempotencyConflictError,
    NotDeadError,
    QueueFullError,
    StoreError,
    UnknownGeneratorError,
)
from genqueue.registry.doorbell import doorbell_message, doorbell_template
from genqueue.registry.lifecycle import FINAL, State, Transition, sources
from genqueue.tracing import valid_traceparent
from genqueue.wire.events import Event, ToolCallDelta, join_tool_calls, read_event
from genqueue.wire.problems import describe
from genqueue.wire.request import PARTS, VERSION, GenerationRequest
from genqueue.wire.result import GenerationResult, Outcome

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
_OVERDUE_S = 10.0
"""After so long a sweeper that lives would have found it."""
_DISCARD_LIMIT, _DISCARD_BYTES = 100, 1_000_000
"""Messages of one list, and their bytes, that are looked through at once for those that ring for nothing."""
_COUNT_LIMIT = 2000
"""Running generations, and dead letters, up to which an overview says whose they are."""

_NEWER = "a newer genqueue wrote it; upgrade genqueue where this error is raised"

T_co = TypeVar("T_co", covariant=True)
_Plain = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, its name in ``lua/``, and the digest that Redis caches it by."""

    name: str
    source: str
    sha1: str


def _read_scripts() -> dict[str, Script]:
    """All scripts of ``lua/`` by name, each behind the functions that all share."""
    folder = files("genqueue.registry") / "lua"
    common = (folder / "common.lua").read_text("utf-8")
    sources = {
        file.name.removesuffix(".lua"): common + file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua") and file.name != "common.lua"
    }
    return {
        name: Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        for name, source in sources.items()
    }


# Read at import: at its first use, under full load, a process may have no file descriptor left to read one with.
_SCRIPTS = _read_scripts()


def script(name: str) -> Script:
    """The script ``lua/<name>.lua`` behind the functions that all share."""
    return _SCRIPTS[name]


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One round trip: a command, or a script with its keys first in ``arguments``.

    No numbers among them: hiredis crashes the process when a signal's handler raises while it
    packs one (3.5.0, ``pack.c`` does not look whether ``PyObject_Repr`` failed).
    """

    arguments: Sequence[str | bytes]
    decode: Callable[[Any], T_co]
    script: Script | None = None

    @property
    def name(self) -> str:
        """What it does, in one word of few: the script's name, or the command's."""
        return self.script.name if self.script is not None else str(self.arguments[0]).lower()


def _scripted(
    name: str, key_list: Sequence[str], arguments: Iterable[_Plain], decode: Callable[[Any], T_co]
) -> Call[T_co]:
    words = [each if isinstance(each, str | bytes) else str(each) for each in arguments]
    return Call((str(len(key_list)), *key_list, *words), decode, script(name))


@dataclass(frozen=True, slots=True)
class Claim:
    """A generation that one worker now holds.

    Attributes:
        attempt: 1, 2, 3 …
        request: the request's JSON, as :meth:`GenerationRequest.to_wire` made it.
        submitted_at, started_at, deadline_at: epoch seconds of Redis's clock.
        text_so_far: what earlier attempts produced.
        solid_tokens: how many tokens that took, up to its last character that is not white space.
        failures: how many attempts failed by their own or their server's fault.
        errors: what ended earlier attempts: ``attempt``, ``message`` and what else is known.
        reasoning_so_far: what earlier attempts thought, of a chat.
        tokens_so_far: how many tokens all of that took.
        traceparent: of the span that submitted it, if that was traced.
        answered_at: when Redis said so; later than ``started_at`` where its first answer was lost.
        met: ``errors``, and what put the newest attempt back without being one: a server that cannot be reached.
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
        is_untold: whether it was cancelled while nobody ran it, and no other owner is to tell of that.
        missing: what an incomplete record lacks, or has wrongly: names of fields.
        met: of one that expired, as in :class:`Claim`.
    """

    reason: str
    is_untold: bool = False
    missing: str = ""
    met: list[dict[str, Any]] = field(default_factory=list)


class Said(NamedTuple):
    """What a generation has produced so far; the last of ``tool_calls`` (as OpenAI has them) may break off."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True)
class Flush:
    """What one attempt produced since its last flush.

    ``bodies`` are event bodies; ``text`` is what they add to the text so far, as :func:`said`
    writes it (it is kept also where no chunks are published), ``solid_tokens`` are those up to its last character
    that is not white space; ``mark`` is "reset" when the text so far must go
    first, "first" when this is the first text, else "".
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
    """How a generation ends.

    ``attempt`` None is an end from outside (cancel).  ``stillborn`` ends one that was never
    registered, so that whoever sent an unreadable message gets an answer.  ``mark`` is as in
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


@dataclass(frozen=True, slots=True)
class Record:
    """What the registry knows of one generation."""

    state: State
    generator: str
    priority: int
    attempt: int
    seq: int
    submitted_at: float
    started_at: float | None
    first_text_at: float | None
    ended_at: float | None
    completion_tokens: int
    outcome: Outcome | None
    retried_as: str | None = None
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker said of itself last.

    Attributes:
        name: host, process id and a number of its own.
        announced_at: epoch seconds of Redis's clock.
        generators: for each generator it serves, its servers: ``address``, ``health`` ("up",
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
        oldest_wait_s: since when the first submitted of them waits; None if none does.
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
        match [_text(part) for part in answer]:
            case ["accepted", accepted_id]:
                return Accepted(accepted_id)
            case ["conflict", earlier_id]:
                raise IdempotencyConflictError(idempotency_key or "", earlier_id)
            case words:
                _refuse("submit", request.generator, words)

    return _scripted("submit", key_list, arguments, decode)


def _refuse(name: str, generator: str, words: list[str]) -> NoReturn:
    match words:
        case ["unknown", *known]:
            raise UnknownGeneratorError(generator, known)
        case ["full", depth, limit]:
            raise QueueFullError(generator, int(depth), int(limit))
    raise StoreError(f"{name}.lua answered {words!r}")


def claim(generation_id: str, generator: str, *, owner: str, lease_s: float, keep_s: int) -> Call[Claim | NotClaimed]:
    """Take a generation: attempt + 1, owner, lease and the ``started`` event, atomically.

    A generation that is gone, elsewhere, held by a living lease or ended answers NotClaimed, and so does one whose
    record lacks what it takes to run it, for the caller to end; one that was
    cancelled while nobody ran it answers the first owner who asks that it is untold, until that says that it was told
    (:func:`discard`).
    The same owner asking twice gets the same attempt twice.
    """

    def decode(answer: list[Any]) -> Claim | NotClaimed:
        reason = _text(answer[0])
        if reason == "incomplete":
            return NotClaimed(reason, missing=_text(answer[1]))
        if reason == "expired":
            return NotClaimed(reason, met=_met(*answer[1:]))
        if reason != "claimed":
            return NotClaimed(reason, is_untold=answer[1:] == [b"untold"])
        _, attempt, request, submitted_at, started_at, deadline_at, so_far, solid_tokens, failures, *rest = answer
        errors, tokens, traceparent, answered_at, met = rest
        try:
            said_so_far = _heard(so_far)
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
            errors=_errors(errors),
            reasoning_so_far=said_so_far.reasoning,
            tokens_so_far=int(tokens),
            traceparent=valid_traceparent(traceparent.decode("ascii", "replace")),
            answered_at=float(answered_at),
            met=_met(errors, met),
        )

    return _scripted(
        "claim",
        [
            keys.generation(generation_id),
            keys.waiting(generator),
            keys.LEASES,
            keys.log(generation_id),
            keys.text(generation_id),
            keys.DEADLINES,
            keys.DELAYED,
            keys.RUNG,
            keys.newest_claimed(generator),
            keys.untold(owner),
        ],
        (
            generation_id,
            generator,
            owner,
            lease_s,
            keep_s,
            ",".join(sources(Transition.STARTED)),
            keys.live(generation_id),
            ",".join(sorted(FINAL)),
            len(keys.PRIORITIES),
        ),
        decode,
    )


def append(flushes: Sequence[Flush], *, keep_s: int, owner: str = "") -> Call[list[str]]:
    """Write many attempts' events; each generation's own are atomic, and fenced.

    Answers, in order: "ok", "superseded" by another attempt, "gone", or the final state
    that somebody else gave it.  A flush sent twice is written once.  With an ``owner`` also "behind N":
    Redis has lost what it had answered, N is the last flush it knows, those behind it must come again.
    """
    key_list: list[str] = []
    arguments: list[Any] = [keep_s, owner]
    for flush in flushes:
        generation_id = flush.generation_id
        key_list += (keys.generation(generation_id), keys.log(generation_id), keys.text(generation_id))
        arguments += (
            flush.attempt,
            flush.number,
            keys.live(generation_id),
            flush.completion_tokens,
            flush.solid_tokens,
            flush.mark,
            flush.text,
            len(flush.bodies),
        )
        arguments += flush.bodies
    return _scripted("append", key_list, arguments, lambda answer: [_text(part) for part in answer])


def finish(end: End, *, log_ttl_s: int, result_ttl_s: int, keep_s: int) -> Call[str]:
    """End a generation: last events, final state, Celery's result; all or nothing, fenced.

    What failed and is worth another try becomes a dead letter: with its request and its text it rests for
    ``keep_s``.  Of anything else the request is forgotten.

    Answers "ok" (also when it is sent a second time), "superseded", "gone", the final state that somebody
    else gave it first, or "behind N" as :func:`append`.
    """
    key_list, arguments = _endings([end], log_ttl_s, result_ttl_s, keep_s)
    return _scripted("finish", key_list, arguments, lambda answer: _ended([end], answer)[0])


def finish_all(ends: Sequence[End], *, log_ttl_s: int, result_ttl_s: int, keep_s: int) -> Call[list[str]]:
    """As :func:`finish`, of many in one round trip; their answers are in their order."""
    key_list, arguments = _endings(ends, log_ttl_s, result_ttl_s, keep_s)
    return _scripted("finish", key_list, arguments, lambda answer: _ended(ends, answer))


def _endings(
    ends: Sequence[End], log_ttl_s: int, result_ttl_s: int, keep_s: int
) -> tuple[list[str], list[str | bytes | int | float]]:
    key_list: list[str] = [keys.LEASES, keys.DEADLINES, keys.DELAYED, keys.RUNG, keys.DEAD]
    arguments: list[str | bytes | int | float] = [log_ttl_s, result_ttl_s, keys.worker(""), ",".join(sorted(FINAL))]
    for end in ends:
        generation_id = end.generation_id
        key_list += (
            keys.generation(generation_id),
            keys.log(generation_id),
            keys.text(generation_id),
            keys.waiting(end.generator),
            keys.result(generation_id),
        )
        arguments += (
            generation_id,
            "" if end.attempt is None else end.attempt,
            ",".join(sources(end.transition)),
            end.state,
            keys.live(generation_id),
            end.outcome.model_dump_json() if end.outcome else "",
            end.celery_result,
            "" if end.completion_tokens is None else end.completion_tokens,
            end.text,
            end.generator,
            int(end.stillborn),
            end.mark,
            keep_s if end.outcome and end.outcome.is_worth_another_try else "",
            end.owner,
            end.number,
            len(end.bodies),
        )
        arguments += end.bodies

    return key_list, arguments


def _ended(ends: Sequence[End], answer: list[Any]) -> list[str]:
    """What became of each; what is ended so already, was ended by the same call sent before."""
    return ["ok" if _text(word) == end.state else _text(word) for end, word in zip(ends, answer, strict=True)]


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

    ``last`` is what the attempt had not written yet, ``failure`` what ended it; it counts
    against ``max_attempts`` only if ``is_charged``; ``waits_for`` is what it waits for beside its turn, for whoever
    asks; ``met`` is what the attempt met where that is no failure.  Answers as :func:`finish`; a release that
    is sent twice answers "queued" the second time.
    """
    generation_id = last.generation_id
    return _scripted(
        "release",
        [
            keys.generation(generation_id),
            keys.log(generation_id),
            keys.text(generation_id),
            keys.waiting(generator),
            keys.LEASES,
            keys.DEADLINES,
            keys.DELAYED,
            keys.RUNG,
            keys.doorbell(generator, priority),
        ],
        (
            generation_id,
            last.attempt,
            ",".join(sources(Transition.RELEASED)),
            keys.live(generation_id),
            keep_s,
            delay_s,
            to_json(failure) if failure else "",
            int(is_charged),
            doorbell_message(generation_id, generator, priority),
            last.completion_tokens,
            last.solid_tokens,
            last.mark,
            last.text,
            owner,
            last.number,
            waits_for,
            to_json(met) if met else "",
            *last.bodies,
        ),
        _text,
    )


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

    Answers the id under which it was retried first, however often it is asked.  Limits and errors are
    :func:`submit`'s; GenerationNotFoundError when it is gone, NotDeadError when it never was a dead
    letter or was dropped.
    """

    def decode(answer: list[Any]) -> Accepted:
        match [_text(part) for part in answer]:
            case ["accepted", accepted_id]:
                return Accepted(accepted_id)
            case ["gone"]:
                raise GenerationNotFoundError(generation_id)
            case ["not dead"]:
                raise NotDeadError(generation_id, "it was dropped")
            case ["incomplete"]:
                raise NotDeadError(generation_id, "its request is lost")
            case words:
                _refuse("retry", generator, words)

    return _scripted(
        "retry",
        [
            keys.DEAD,
            keys.generation(generation_id),
            keys.text(generation_id),
            keys.generation(new_id),
            keys.waiting(generator),
            keys.GENERATORS,
            keys.doorbell(generator, priority),
            keys.DEADLINES,
        ],
        (
            generation_id,
            new_id,
            generator,
            "" if max_queue_depth is None else max_queue_depth,
            keep_s,
            result_ttl_s,
            doorbell_message(new_id, generator, priority),
        ),
        decode,
    )


def drop(generation_id: str, *, result_ttl_s: int) -> Call[None]:
    """Take a dead letter from the list and forget its request; what is none is left alone."""
    return _scripted(
        "drop",
        [keys.DEAD, keys.generation(generation_id), keys.text(generation_id)],
        (generation_id, result_ttl_s),
        lambda answer: None,
    )


def dead_letters(first: int, limit: int) -> Call[list[str]]:
    """The ids of up to ``limit`` dead letters, the newest (0) first; some may be forgotten already."""
    return Call(
        ("ZREVRANGE", keys.DEAD, str(first), str(first + limit - 1)), lambda answer: [_text(part) for part in answer]
    )


@dataclass(frozen=True, slots=True)
class Overdue:
    """A generation that passed its deadline while no worker had it.

    Attributes:
        attempt: the newest; 0 when none was started.
        holder: the worker that left it running, None if it waited.
        met: what earlier attempts met, as in :class:`Claim`.
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
            [_text(generation_id) for generation_id in astray],
            [
                Overdue(_text(generation_id), _text(generator), attempt, _text(holder) or None, _met(errors, met))
                for generation_id, generator, attempt, holder, errors, met in expired
            ],
            [
                Incomplete(_text(generation_id), _text(name) or "default", _text(lacks))
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

    arguments: tuple[_Plain, ...] = (
        _SWEEP_LIMIT,
        _END_LIMIT,
        _SWEEP_GRACE_S,
        _LOOK_AGAIN_S,
        lease_s,
        keep_s,
        len(keys.PRIORITIES),
        State.RUNNING,
        State.QUEUED,
        ",".join(sources(Transition.EXPIRED)),
        doorbell_template(),
        keys.generation(""),
        keys.waiting(""),
        keys.newest_claimed(""),
        keys.queue(""),
        keys.PRIORITY_SEPARATOR,
        lease_s / _TURNS,
        _LONGEST_LEASE_S,
        _LONGEST_DELAY_S,
        ",".join(State),
        *generators,
    )
    key_list = [keys.LEASES, keys.DELAYED, keys.DEADLINES, keys.RUNG, keys.DEAD, keys.SWEPT]
    return _scripted("sweep", key_list, arguments, decode)


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
        return [(_text(found), untold == b"untold") for found, untold in zip(answer[::2], answer[1::2], strict=True)]

    return _scripted(
        "discard",
        [keys.untold(owner), *(keys.doorbell(generator, priority) for priority in keys.PRIORITIES)],
        (
            _DISCARD_LIMIT,
            _DISCARD_BYTES,
            keys.generation(""),
            ",".join(sources(Transition.STARTED)),
            generator,
            keep_s,
            *(doorbell_message("{id}", generator, priority) for priority in keys.PRIORITIES),
            *told,
        ),
        decode,
    )


def renew(held: Sequence[tuple[str, int]], *, lease_s: float, keep_s: int, owner: str = "") -> Call[dict[str, str]]:
    """Renew the leases of (generation id, attempt) pairs; their keys live ``keep_s`` from now on.

    Answers the ids that are lost, and why: "superseded", "gone", or the final state.
    """

    def decode(answer: list[bytes]) -> dict[str, str]:
        words = [_text(part) for part in answer]
        return dict(zip(words[::2], words[1::2], strict=True))

    key_list = [keys.LEASES, keys.RUNG, keys.DEADLINES]
    for generation_id, _ in held:
        key_list += (keys.generation(generation_id), keys.log(generation_id), keys.text(generation_id))
    return _scripted(
        "renew",
        key_list,
        [lease_s, keep_s, keys.waiting(""), owner, *(part for pair in held for part in pair)],
        decode,
    )


def announce(
    facts: dict[str, dict[str, Any]],
    owner: str,
    servers: dict[str, list[dict[str, Any]]],
    *,
    worker_s: float,
    keep_s: int,
    places: Mapping[str, Sequence[str]] | None = None,
) -> Call[None]:
    """Tell everybody which generators a worker serves, where, and how their servers are.

    ``facts`` are a generator's, the same whoever serves it, and need ``max_queue_depth``;
    ``servers`` as in :class:`WorkerStatus`, which lives ``worker_s``; ``places`` are those that
    this worker calls (:mod:`genqueue.discovery`), by generator: of several workers they add up.
    """
    calls_at = [f"{name} {place}" for name, found in (places or {}).items() for place in found]
    arguments: list[Any] = [keep_s, worker_s, owner, to_json({"generators": servers})[1:], to_json(calls_at)]
    for name, fact in facts.items():
        arguments += (name, to_json(fact)[1:])
    return _scripted("announce", [keys.GENERATORS, keys.WORKERS, keys.PLACES], arguments, lambda answer: None)


def retire(owner: str) -> Call[None]:
    """A worker ends: forget what it announced of itself."""
    return Call(("HDEL", keys.WORKERS, owner), lambda answer: None)


def read_workers() -> Call[list[WorkerStatus]]:
    """The workers that announced themselves lately, by name."""

    return Call(("HGETALL", keys.WORKERS), _workers)


def _workers(answer: Mapping[bytes, bytes]) -> list[WorkerStatus]:
    found = [_worker(_text(owner), about) for owner, about in answer.items()]
    return sorted((worker for worker in found if worker is not None), key=lambda worker: worker.name)


def _worker(name: str, about: bytes) -> WorkerStatus | None:
    """What a worker of any version announced: what we do not know is passed over, so is what no worker wrote."""
    facts = _object(about)
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
"""What is said of a server, where its worker does not say it."""


def _of_their_kind(facts: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """``facts`` without what is of another type than in ``known``."""
    return {name: value for name, value in facts.items() if type(value) is type(known.get(name, value))}


def _object(raw: bytes) -> dict[str, Any]:
    """A JSON object; {} for anything else."""
    try:
        found = from_json(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None


def overview(generators: Sequence[str]) -> Call[Overview]:
    """Queues, workers and generators: those that were announced, and ``generators``; changes nothing."""

    def decode(answer: list[Any]) -> Overview:
        at, announced, about_workers, rows, counts, unreadable = answer
        workers = _workers(_pairs(about_workers))
        facts = {_text(name): _object(fact) for name, fact in _pairs(announced).items()}
        queues = []
        for name, waiting, oldest_wait_s, doorbells, running, dead in rows:
            generator = _text(name)
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
            unreadable={_text(key): _text(words) for key, words in _pairs(unreadable).items()},
        )

    arguments: tuple[str | int | float, ...] = (
        keys.generation(""),
        keys.waiting(""),
        keys.queue(""),
        keys.PRIORITY_SEPARATOR,
        len(keys.PRIORITIES),
        _OVERDUE_S,
        _COUNT_LIMIT,
        *generators,
    )
    key_list = [keys.LEASES, keys.DELAYED, keys.DEAD, keys.GENERATORS, keys.WORKERS]
    return _scripted("overview", key_list, arguments, decode)


def hello() -> Call[dict[str, str]]:
    """``server``, ``version``, ``mode`` and ``role``, which even a user with the fewest rights may see."""
    return Call(("HELLO", "2"), lambda answer: {_text(key): _text(value) for key, value in _pairs(answer).items()})


def clock() -> Call[float]:
    """Epoch seconds of Redis's clock."""
    return Call(("TIME",), lambda answer: int(answer[0]) + int(answer[1]) / 1e6)


def info() -> Call[dict[str, str]]:
    """What Redis says of itself: version, memory, persistence, replication and what else it counts."""

    def decode(answer: Any) -> dict[str, str]:
        if isinstance(answer, dict):  # redis-py takes it apart
            return {_text(key): _text(value) for key, value in answer.items()}
        lines = _text(answer).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    return Call(("INFO",), decode)


def may_say(*command: str) -> Call[bool]:
    """Whether our user may: asked without a line in the ACL log, which Redis 7 or newer can; an older one refuses."""
    return Call(("EVAL", "return redis.acl_check_cmd(unpack(ARGV)) and 1 or 0", "0", *command), bool)


def snapshot_rules() -> Call[str]:
    """``save``: after how many seconds and changes Redis writes a snapshot; "" for never."""

    def decode(answer: Any) -> str:
        pairs = answer if isinstance(answer, dict) else _pairs(answer)
        return next((_text(value) for key, value in pairs.items() if _text(key) == "save"), "")

    return Call(("CONFIG", "GET", "save"), decode)


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def read_log(generation_id: str, from_seq: int, limit: int = 1000) -> Call[list[Event]]:
    """Up to ``limit`` events with a number of at least ``from_seq``; [] when the log is gone.

    What is no event under its own number was not written by a worker, and is passed over.
    Raises StoreError for an event of a later version; one of a kind that came later is an OtherEvent.
    """

    def decode(answer: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Event]:
        events = []
        for entry_id, fields in answer:
            raw = fields.get(b"e", b"")
            try:
                event = read_event(raw)
            except ValidationError as error:
                if entry_id.endswith(b"-0") and _is_newer(raw):
                    problems = _NEWER if _is_of_newer_version(raw) else "; ".join(describe(error))
                    raise StoreError(
                        f"the log of generation {generation_id} holds an event we cannot read: {problems}"
                    ) from None
                continue
            if entry_id == b"%d-0" % event.seq:
                events.append(event)
        return events

    return Call(("XRANGE", keys.log(generation_id), f"{from_seq}-0", "+", "COUNT", str(limit)), decode)


def _is_newer(raw: bytes) -> bool:
    """Whether an event that cannot be read is one of a later version."""
    event = _object(raw)
    return isinstance(event.get("v"), int) and isinstance(event.get("type"), str)


def _is_of_newer_version(raw: bytes) -> bool:
    version = _object(raw).get("v")
    return isinstance(version, int) and version > VERSION


_RECORD = tuple(field.name for field in dataclasses.fields(Record))


def _record(generation_id: str, answer: Sequence[bytes | None]) -> Record | None:
    """The record; None where there is none.  Raises StoreError for one that nobody of our version wrote."""
    field = dict(zip(_RECORD, answer, strict=True))
    if field["state"] is None:
        return None
    started_at, first_text_at, ended_at = field["started_at"], field["first_text_at"], field["ended_at"]
    outcome, retried_as = field["outcome"], field["retried_as"]
    try:
        return Record(
            state=State(_text(field["state"])),
            generator=_text(field["generator"], "strict"),
            priority=int(field["priority"] or 0),
            attempt=int(field["attempt"] or 0),
            seq=int(field["seq"] or 0),
            submitted_at=float(field["submitted_at"] or math.nan),
            started_at=float(started_at) if started_at else None,
            first_text_at=float(first_text_at) if first_text_at else None,
            ended_at=float(ended_at) if ended_at else None,
            completion_tokens=int(field["completion_tokens"] or 0),
            outcome=Outcome.model_validate_json(outcome) if outcome else None,
            retried_as=_text(retried_as, "strict") if retried_as else None,
            waits_for=_text(field["waits_for"], "strict") if field["waits_for"] else None,
        )
    except ValueError:  # which would quote it
        why = f": {_NEWER}" if outcome and _is_of_newer_version(outcome) else ""
        raise StoreError(f"the record of generation {generation_id} cannot be read{why}") from None


def read_record(generation_id: str) -> Call[Record]:
    """The registry's entry; raises GenerationNotFoundError when it is gone, StoreError when it cannot be read."""

    def decode(answer: list[bytes | None]) -> Record:
        record = _record(generation_id, answer)
        if record is None:
            raise GenerationNotFoundError(generation_id)
        return record

    return Call(("HMGET", keys.generation(generation_id), *_RECORD), decode)


def read_home(generation_id: str) -> Call[str]:
    """The generator of a generation, whatever else its record says, for whoever ends it; "default" if it says none."""
    return Call(("HGET", keys.generation(generation_id), "generator"), lambda answer: _text(answer or b"default"))


def read_records(generation_ids: Sequence[str]) -> Call[list[Record | None]]:
    """The registry's entries in that order; None for one that is gone, or cannot be read."""

    def decode(answer: list[list[bytes | None]]) -> list[Record | None]:
        records: list[Record | None] = []
        for generation_id, one in zip(generation_ids, answer, strict=True):
            try:
                records.append(_record(generation_id, one))
            except StoreError:  # it keeps nobody from the others
                records.append(None)
        return records

    return _scripted("read", [keys.generation(generation_id) for generation_id in generation_ids], _RECORD, decode)


def read_request(generation_id: str) -> Call[GenerationRequest | None]:
    """The request of a generation that waits, runs or is a dead letter; None once it is forgotten.

    Raises StoreError for a request that a newer version wrote.
    """

    def decode(answer: bytes | None) -> GenerationRequest | None:
        try:
            return None if answer is None else GenerationRequest.model_validate_json(answer)
        except ValidationError as error:
            problems = "; ".join(describe(error, PARTS))
            raise StoreError(f"the request of generation {generation_id} cannot be read: {problems}") from None

    return Call(("HGET", keys.generation(generation_id), "request"), decode)


def read_result(generation_id: str) -> Call[GenerationResult | None]:
    """The result of a finished generation; None while there is none, or when it ended otherwise."""

    def decode(answer: bytes | None) -> GenerationResult | None:
        try:
            meta = from_json(answer or b"null")
            result = GenerationResult.model_validate(meta["result"]) if meta["status"] == "SUCCESS" else None
            return result if result is not None and result.replies and result.meta else None
        except (ValueError, TypeError, KeyError):
            return None  # none of ours: the id is another Celery task's

    return Call(("GET", keys.result(generation_id)), decode)


def has_result(generation_id: str) -> Call[bool]:
    """Whether Celery's result key of that id is there, whoever wrote it."""
    return Call(("GET", keys.result(generation_id)), lambda answer: answer is not None)


def read_text(generation_id: str) -> Call[str]:
    """The text so far of a generation that runs or that ended without a result; "" when there is none."""
    return Call(("GET", keys.text(generation_id)), lambda answer: _heard_if_readable(answer).text)


def read_said(generation_id: str) -> Call[Said]:
    """The text so far and, of a chat, what was thought and called beside it, there for as long."""
    return Call(("GET", keys.text(generation_id)), _heard_if_readable)


def queue_position(generation_id: str, generator: str) -> Call[int | None]:
    """How many accepted generations come before this one; None when it no longer waits."""
    return Call(("ZRANK", keys.waiting(generator), generation_id), lambda answer: answer)


def _errors(value: bytes) -> list[dict[str, Any]]:
    """What ended earlier attempts; what is no such thing was not written by a worker, and is passed over."""
    try:
        found: list[Any] = from_json(b"[" + value + b"]")
    except ValueError:
        return []
    return [error for error in found if isinstance(error, dict) and isinstance(error.get("message"), str)]


def _met(errors: bytes, met: bytes) -> list[dict[str, Any]]:
    """What attempts met: their errors and, if it is newer than those, what was none."""
    known = _errors(errors)
    newest = max(map(_attempt, known), default=0)
    return [*known, *(each for each in _errors(met) if _attempt(each) > newest)]


def _attempt(error: dict[str, Any]) -> int:
    attempt = error.get("attempt")
    return attempt if isinstance(attempt, int) else 0


def known_generators() -> Call[set[str]]:
    """The generators that workers announced."""
    return Call(("HKEYS", keys.GENERATORS), lambda answer: {_text(name) for name in answer})


def known_places() -> Call[dict[str, set[str]]]:
    """For each generator the places that its workers call or, while it has none, called when it had."""

    def decode(answer: dict[bytes, bytes]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for entry in answer:
            name, _, place = _text(entry).partition(" ")
            found.setdefault(name, set()).add(place)
        return found

    return Call(("HGETALL", keys.PLACES), decode)


_REASONING, _TOOL_CALLS = b"\xff", b"\xfe"
"""Stand before and after what was thought, and what was called: bytes that no UTF-8 holds."""


def said(text: str, reasoning: str, tool_calls: Sequence[ToolCallDelta] = ()) -> str | bytes:
    """What a flush adds to the text so far: the text, and what was thought and called in one string with it."""
    if not (reasoning or tool_calls):
        return text
    thought = (_REASONING, reasoning.encode(), _REASONING) if reasoning else ()
    called = (_TOOL_CALLS, to_json(tool_calls), _TOOL_CALLS) if tool_calls else ()
    return b"".join((*called, *thought, text.encode()))


_DELTAS = TypeAdapter(list[ToolCallDelta])


def _heard(raw: bytes | None) -> Said:
    """Out of the flushes of :func:`said`; raises ValueError for what is none."""
    parts = (raw or b"").split(_TOOL_CALLS)
    deltas = [delta for part in parts[1::2] for delta in _DELTAS.validate_json(part)]
    parts = b"".join(parts[::2]).split(_REASONING)
    return Said(b"".join(parts[::2]).decode(), b"".join(parts[1::2]).decode(), join_tool_calls(deltas))


def _heard_if_readable(raw: bytes | None) -> Said:
    """The same for a caller, who has an error or a cancel besides: nothing where nobody of ours wrote it."""
    try:
        return _heard(raw)
    except ValueError:
        return Said()


def _text(value: Any, errors: str = "backslashreplace") -> str:
    """A word of Redis's; one that is no UTF-8, which nobody of ours wrote, keeps no other from being read."""
    return value.decode(errors=errors) if isinstance(value, bytes) else str(value)


class Health(StrEnum):
    """How a server is to be treated."""

    UP = "up"
    RESTS = "rests"
    WAKING = "waking"
    REFUSES = "refuses"
    DOWN = "down"
