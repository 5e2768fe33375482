"""What was seen of a chaos run: one generation's trace, the calls made for it, the outages, and the finding."""

from dataclasses import dataclass, field

from genqueue.registry.lifecycle import State
from genqueue.wire.events import Chunk, Event, Started
from genqueue_lab.chaos.orders import Order

LATE_S = 10.0
NEAR_S = 0.2
"""How exactly the moments are known at which a clock was set, or something was forgotten."""


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when."""

    began_s: float
    ended_s: float

    @property
    def length_s(self) -> float:
        """How long that is."""
        return self.ended_s - self.began_s

    def overlap_s(self, other: "Span") -> float:
        """How much of both is the same time."""
        return max(0.0, min(self.ended_s, other.ended_s) - max(self.began_s, other.began_s))

    def has(self, moment_s: float) -> bool:
        """Whether a moment is in it, or near it."""
        return self.began_s - NEAR_S <= moment_s <= self.ended_s + NEAR_S


@dataclass(frozen=True, slots=True)
class Clock:
    """Redis's clock: from which moments on by how many seconds it was ahead; the first moment is 0."""

    changes: tuple[tuple[float, float], ...] = ((0.0, 0.0),)

    def moment_s(self, stamp_s: float, after_s: float) -> float:
        """When it showed this, not before ``after_s``; one that was set back shows some times twice."""
        ends_s = [*(began_s for began_s, _ in self.changes[1:]), float("inf")]
        for (began_s, ahead_s), ended_s in zip(self.changes, ends_s, strict=True):
            moment_s = stamp_s - ahead_s
            if Span(began_s, ended_s).has(moment_s) and moment_s >= after_s - NEAR_S:
                return moment_s
        return after_s


@dataclass(slots=True)
class Outages:
    """What was done to the parts; workers by process id, endpoints by generator.

    Attributes:
        redis: when it was away, for all or for those whose connections were cut.
        slow: when the way to it was slow, or its clock was set.
        forgotten: of which time it may have forgotten what it answered.
        leases_s, names: of each worker.
    """

    redis: list[Span] = field(default_factory=list)
    slow: list[Span] = field(default_factory=list)
    forgotten: list[Span] = field(default_factory=list)
    endpoints: dict[str, list[Span]] = field(default_factory=dict)
    frozen: dict[int, list[Span]] = field(default_factory=dict)
    killed_s: dict[int, float] = field(default_factory=dict)
    leaving_s: dict[int, float] = field(default_factory=dict)
    readers_cut_s: list[float] = field(default_factory=list)
    leases_s: dict[int, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    @property
    def hard_times(self) -> list[Span]:
        """When no figure says anything of what it measures."""
        return [*self.redis, *self.slow]

    def may_forget(self, moment_s: float | None) -> bool:
        """Whether what was answered then may be forgotten."""
        return moment_s is not None and any(span.has(moment_s) for span in self.forgotten)

    def may_forget_of(self, life: Span) -> bool:
        """Whether anything that was answered meanwhile may be forgotten."""
        return any(span.overlap_s(Span(life.began_s - NEAR_S, life.ended_s + NEAR_S)) for span in self.forgotten)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model server, from its journal; ``closed_s`` is the server's death where it died.

    ``sent`` is the text that came behind the prompt, as if the model had said it.
    """

    worker_pid: int
    began_s: float
    closed_s: float
    tokens: int
    server_died: bool = False
    sent: str = ""

    @property
    def span(self) -> Span:
        """While it was open."""
        return Span(self.began_s, self.closed_s)


@dataclass(slots=True)
class Trace:
    """What was seen of one generation.

    Attributes:
        asked_s, accepted_s: when it was submitted, and when that was answered; the last time, of several.
        gone_s: when somebody was told that there is no such generation: (accepted, told).
        is_gone: whether there is none in the end, though its reader knew one.
        seen: when which chunk reached its reader, over all returns of that reader.
        read: what its reader has in the end: the chunks' texts joined, or the new text where it was given one.
        read_s: when its reader knew the end.
        told: as what the generation ended that its reader was told (cancelled, expired …); None for a whole text.
        voided: what its reader had when it was told that another text takes its place.
        waits_for_whole: whether its reader then waited for the whole of the new text.
        contradicted: what the error had as delivered, where that was something else.
        late: what one who came at the end was given from its place on, and what that must be.
        log: the events as read at the end, their moments of our clock.
        away: when its reader was away on purpose.
        state, submitted_s, ended_s, completion_tokens: the registry's; None where it did not end.
        waited_s: from submit to end by Redis's clock.
        text: the result's, or the partial one that the error carries.
        finish_reason: the result's; of what ended otherwise, the error's kind (expired, cancelled …).
        cancel_s, cancel_said: when ``cancel()`` was called, and what it returned.
        errors: what a producer or reader was told that it should not have been.
    """

    order: Order
    generation_id: str = ""
    asked_s: float = 0.0
    accepted_s: float = 0.0
    gone_s: list[tuple[float, float]] = field(default_factory=list)
    is_gone: bool = False
    submitted_s: float = 0.0
    seen: list[tuple[float, Chunk]] = field(default_factory=list)
    read: str = ""
    read_s: float = 0.0
    told: str | None = None
    voided: list[str] = field(default_factory=list)
    waits_for_whole: bool = False
    contradicted: list[str] = field(default_factory=list)
    late: tuple[str, str] = ("", "")
    log: list[Event] = field(default_factory=list)
    away: list[Span] = field(default_factory=list)
    state: State | None = None
    ended_s: float | None = None
    waited_s: float = 0.0
    completion_tokens: int | None = None
    text: str = ""
    finish_reason: str | None = None
    cancel_s: float | None = None
    cancel_said: bool | None = None
    errors: list[str] = field(default_factory=list)

    @property
    def attempts(self) -> dict[int, Started]:
        """The attempts by number."""
        return {event.attempt: event for event in self.log if isinstance(event, Started)}

    @property
    def life(self) -> Span:
        """From its submit to its end, or to what its reader last saw."""
        return Span(self.asked_s, max(self.ended_s or 0.0, self.read_s, self.cancel_s or 0.0))


@dataclass(slots=True)
class Finding:
    """The verdict on one generation.

    Attributes:
        lost, doubled: characters.
        silent_s: seconds of its longest gap that nothing excuses.
        twice_s: seconds that a call was open too long after another attempt or the end; at least a moment
            for a call that should not have been made.
    """

    lost: int = 0
    doubled: int = 0
    faults: list[str] = field(default_factory=list)
    silent_s: float = 0.0
    twice_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.faults or self.is_late or self.twice_s)

    @property
    def is_late(self) -> bool:
        """Whether the longest gap is too long."""
        return self.silent_s > LATE_S
