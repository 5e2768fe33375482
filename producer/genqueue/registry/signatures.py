"""The keys and arguments of every script, by name and type.

A class has its script's name: :class:`Append` declares ``lua/append.lua``.  Its fields are sent in their order and are
the script's locals (:mod:`genqueue.registry.declaring`).  A field with a default is always sent like that, but for an
option that a caller may leave out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from genqueue import keys
from genqueue.registry.declaring import Channel, Joined, Key, Prefix, Row, Signature, Spelled
from genqueue.registry.lifecycle import FINAL, State, Transition, sources

SharedKey = Annotated[str, Key()]
GenerationKey = Annotated[str, Key(keys.generation("*"))]
LogKey = Annotated[str, Key(keys.log("*"))]
TextKey = Annotated[str, Key(keys.text("*"))]
WaitingKey = Annotated[str, Key(keys.waiting("*"))]
NewestClaimedKey = Annotated[str, Key(keys.newest_claimed("*"))]
UntoldKey = Annotated[str, Key(keys.untold("*"))]
IdempotencyKey = Annotated[str, Key(keys.idempotency("*"))]
DoorbellKey = Annotated[str, Key(keys.queue("*"))]
ResultKey = Annotated[str, Key(keys.result("*")), Channel(keys.result("*"))]
LiveChannel = Annotated[str, Channel(keys.live("*"))]
KeyPrefix = Annotated[str, Prefix(Key)]
ChannelPrefix = Annotated[str, Prefix(Channel)]
Payload = str | bytes

_FINALS = tuple(sorted(FINAL))
_MAY_START = tuple(sources(Transition.STARTED))
_PRIORITIES = len(keys.PRIORITIES)
_GENERATION_PREFIX, _WAITING_PREFIX, _CLAIMED_PREFIX, _QUEUE_PREFIX, _WORKER_PREFIX = (
    build("") for build in (keys.generation, keys.waiting, keys.newest_claimed, keys.queue, keys.worker)
)


@dataclass(kw_only=True, slots=True)
class FactRow(Row):
    """A generator that a worker announces; ``fact`` is JSON without its opening brace."""

    name: str
    fact: bytes


@dataclass(kw_only=True, slots=True)
class Announce(Signature):
    """``servers`` is JSON without its opening brace; ``calls_at`` a JSON list of "generator place"."""

    generators: SharedKey = keys.GENERATORS
    workers: SharedKey = keys.WORKERS
    places: SharedKey = keys.PLACES
    keep_s: int
    worker_s: float
    owner: str
    servers: bytes
    calls_at: bytes
    facts: Sequence[FactRow]


@dataclass(kw_only=True, slots=True)
class FlushRow(Row):
    """One attempt's :class:`genqueue.registry.attempts.Flush`; ``flush`` is its number."""

    generation: GenerationKey
    log: LogKey
    text: TextKey
    attempt: Spelled
    flush: int
    live: LiveChannel
    completion_tokens: Spelled
    solid_tokens: Spelled
    mark: str
    more: Payload
    bodies: Sequence[bytes]


@dataclass(kw_only=True, slots=True)
class Append(Signature):
    """An empty ``owner`` is not looked at."""

    keep_s: Spelled
    owner: str
    flushes: Sequence[FlushRow]


@dataclass(kw_only=True, slots=True)
class Claim(Signature):
    """A worker takes a generation."""

    generation: GenerationKey
    waiting: WaitingKey
    leases: SharedKey = keys.LEASES
    log: LogKey
    text: TextKey
    deadlines: SharedKey = keys.DEADLINES
    delayed: SharedKey = keys.DELAYED
    rung: SharedKey = keys.RUNG
    newest_claimed: NewestClaimedKey
    untold: UntoldKey
    id: str
    generator: str
    owner: str
    lease_s: float
    keep_s: Spelled
    may_start: Joined = _MAY_START
    live: LiveChannel
    finals: Joined = _FINALS
    priorities: int = _PRIORITIES


@dataclass(kw_only=True, slots=True)
class ListRow(Row):
    """A list of doorbells, and its doorbell with the place ``{id}``."""

    list: DoorbellKey
    template: bytes


@dataclass(kw_only=True, slots=True)
class Discard(Signature):
    """``limit`` messages of each list and ``most_bytes`` of them are looked at; ``told`` are ids."""

    untold: UntoldKey
    limit: int
    most_bytes: int
    generation_prefix: KeyPrefix = _GENERATION_PREFIX
    may_start: Joined = _MAY_START
    generator: str
    keep_s: Spelled
    lists: Sequence[ListRow]
    told: Sequence[str]


@dataclass(kw_only=True, slots=True)
class Drop(Signature):
    """A dead letter goes."""

    dead: SharedKey = keys.DEAD
    letter: GenerationKey
    text: TextKey
    id: str
    result_ttl_s: Spelled


@dataclass(kw_only=True, slots=True)
class EndRow(Row):
    """One generation's :class:`genqueue.registry.attempts.End`; the last of ``bodies`` is the end's own.

    ``attempt`` None ends it from outside; ``dead_ttl_s`` None makes no dead letter of it.
    """

    generation: GenerationKey
    log: LogKey
    text: TextKey
    waiting: WaitingKey
    result: ResultKey
    id: str
    attempt: Spelled | None
    may_end: Joined
    final: str
    live: LiveChannel
    outcome: str
    celery_result: bytes
    completion_tokens: Spelled | None
    more: Payload
    generator: str
    stillborn: bool
    mark: str
    dead_ttl_s: Spelled | None
    writer: str
    flush: int
    bodies: Sequence[bytes]


@dataclass(kw_only=True, slots=True)
class Finish(Signature):
    """A worker whose generation is ended from outside is told on its channel."""

    leases: SharedKey = keys.LEASES
    deadlines: SharedKey = keys.DEADLINES
    delayed: SharedKey = keys.DELAYED
    rung: SharedKey = keys.RUNG
    dead: SharedKey = keys.DEAD
    log_ttl_s: Spelled
    result_ttl_s: Spelled
    worker_channel_prefix: ChannelPrefix = _WORKER_PREFIX
    finals: Joined = _FINALS
    ends: Sequence[EndRow]


@dataclass(kw_only=True, slots=True)
class Overview(Signature):
    """``wanted`` are generators that are counted beside those that were announced."""

    leases: SharedKey = keys.LEASES
    delayed: SharedKey = keys.DELAYED
    dead: SharedKey = keys.DEAD
    generators: SharedKey = keys.GENERATORS
    workers: SharedKey = keys.WORKERS
    generation_prefix: KeyPrefix = _GENERATION_PREFIX
    waiting_prefix: KeyPrefix = _WAITING_PREFIX
    queue_prefix: KeyPrefix = _QUEUE_PREFIX
    separator: str = keys.PRIORITY_SEPARATOR
    priorities: int = _PRIORITIES
    overdue_s: float
    most: int
    wanted: Sequence[str]


@dataclass(kw_only=True, slots=True)
class Read(Signature):
    """``names`` are fields of a record."""

    generations: Annotated[Sequence[str], Key(keys.generation("*"))]
    names: Sequence[str]


@dataclass(kw_only=True, slots=True)
class Release(Signature):
    """``failure`` and ``met`` are JSON, or empty."""

    generation: GenerationKey
    log: LogKey
    text: TextKey
    waiting: WaitingKey
    leases: SharedKey = keys.LEASES
    deadlines: SharedKey = keys.DEADLINES
    delayed: SharedKey = keys.DELAYED
    rung: SharedKey = keys.RUNG
    doorbell: DoorbellKey
    id: str
    attempt: Spelled
    may_release: Joined = tuple(sources(Transition.RELEASED))
    live: LiveChannel
    keep_s: Spelled
    delay_s: float
    failure: Payload
    is_charged: bool
    message: bytes
    completion_tokens: Spelled
    solid_tokens: Spelled
    mark: str
    more: Payload
    owner: str
    flush: int
    waits_for: str
    met: Payload
    bodies: Sequence[bytes]


@dataclass(kw_only=True, slots=True)
class HeldRow(Row):
    """An attempt whose lease is renewed."""

    generation: GenerationKey
    log: LogKey
    text: TextKey
    id: str
    attempt: Spelled


@dataclass(kw_only=True, slots=True)
class Renew(Signature):
    """An empty ``owner`` is not looked at."""

    leases: SharedKey = keys.LEASES
    rung: SharedKey = keys.RUNG
    deadlines: SharedKey = keys.DEADLINES
    lease_s: float
    keep_s: Spelled
    waiting_prefix: KeyPrefix = _WAITING_PREFIX
    owner: str
    held: Sequence[HeldRow]


@dataclass(kw_only=True, slots=True)
class Retry(Signature):
    """A dead letter (``letter``, ``id``) is submitted again (``generation``, ``new_id``)."""

    dead: SharedKey = keys.DEAD
    letter: GenerationKey
    text: TextKey
    generation: GenerationKey
    waiting: WaitingKey
    generators: SharedKey = keys.GENERATORS
    doorbell: DoorbellKey
    deadlines: SharedKey = keys.DEADLINES
    id: str
    new_id: str
    generator: str
    limit: int | None
    keep_s: Spelled
    result_ttl_s: Spelled
    message: bytes


@dataclass(kw_only=True, slots=True)
class Submit(Signature):
    """``as_written`` and ``fingerprint`` are empty without an idempotency key, ``message`` where nothing rings."""

    generation: GenerationKey
    waiting: WaitingKey
    generators: SharedKey = keys.GENERATORS
    doorbell: DoorbellKey
    deadlines: SharedKey = keys.DEADLINES
    idempotency: IdempotencyKey | None
    generation_prefix: KeyPrefix = _GENERATION_PREFIX
    id: str
    generator: str
    request: bytes
    as_written: str
    fingerprint: str
    priority: int
    deadline_s: float | None
    keep_s: Spelled
    message: Payload
    limit: int | None
    idempotency_ttl_s: Spelled
    traceparent: str


@dataclass(kw_only=True, slots=True)
class Sweep(Signature):
    """``template`` is a doorbell with the places ``{id}``, ``{generator}`` and ``{priority}``."""

    leases: SharedKey = keys.LEASES
    delayed: SharedKey = keys.DELAYED
    deadlines: SharedKey = keys.DEADLINES
    rung: SharedKey = keys.RUNG
    dead: SharedKey = keys.DEAD
    swept: SharedKey = keys.SWEPT
    limit: int
    end_limit: int
    grace_s: float
    look_again_s: float
    lease_s: float
    keep_s: Spelled
    priorities: int = _PRIORITIES
    running: str = State.RUNNING
    queued: str = State.QUEUED
    may_expire: Joined = tuple(sources(Transition.EXPIRED))
    template: bytes
    generation_prefix: KeyPrefix = _GENERATION_PREFIX
    waiting_prefix: KeyPrefix = _WAITING_PREFIX
    claimed_prefix: KeyPrefix = _CLAIMED_PREFIX
    queue_prefix: KeyPrefix = _QUEUE_PREFIX
    separator: str = keys.PRIORITY_SEPARATOR
    turn_s: float
    longest_lease_s: float
    longest_delay_s: float
    states: Joined = tuple(State)
    generators: Sequence[str]
