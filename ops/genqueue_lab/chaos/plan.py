"""What ``python -m genqueue_lab chaos`` breaks, and when, decided from a seed.

Pure: the same seed and length give the same evils.  They come in lanes, one for each kind of part.
Within a lane one is over before the next begins; lanes do not wait for each other, so a worker
dies while Redis is away.  :mod:`genqueue_lab.chaos.orders` decides what is asked for meanwhile,
:mod:`genqueue_lab.chaos.stage` does it, :mod:`genqueue_lab.chaos.verdict` judges.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

GENERATORS = ("left", "right")
"""Each has an endpoint of its own, and every worker serves both.  The right one continues chats."""
DEEP = "deep"
"""Its endpoint takes a few calls at once: what is asked of it waits in the queue."""
WORKERS = 3
LEASES_S = (2.0, 3.0, 4.0)
"""Of the workers' places; README's times are of 3 s."""
WORKER_CLOCKS_S = (0, 3600, -3600)
"""By how many seconds the clock of a worker's place is ahead."""


class Kind(StrEnum):
    """What is done to a part."""

    KILL = "kill -9 of a worker"
    KILL_TWO = "kill -9 of two workers at once"
    FREEZE = "SIGSTOP of a worker"
    LEAVE = "SIGTERM to a worker"
    REDIS_KILL = "kill -9 of Redis"
    REDIS_STOP = "SIGTERM to Redis"
    REDIS_FREEZE = "SIGSTOP of Redis"
    REDIS_FORGETS = "Redis's host loses power: its log cut back"
    REDIS_TORN = "Redis's host loses power: its log torn"
    FAILOVER = "a failover to a replica that lags"
    CLOCK_BACK = "Redis's clock set back 60 s"
    CLOCK_AHEAD = "Redis's clock set ahead 45 s"
    READERS = "all subscriptions cut (CLIENT KILL TYPE pubsub)"
    SLOW = "a slow network to Redis"
    STALL = "a stalled network to Redis"
    CUTS = "connections to Redis reset again and again"
    ENDPOINT = "kill -9 of a model server"
    FULL = "a model server says 429 to all"
    BROKEN = "a model server says 503 to all"
    LOGIN = "a model server shows a login page"
    RESETS = "a model server resets each connection"
    HALVES = "a model server ends each stream in half an event"
    CANCELS = "a storm of cancels behind a deep queue"
    DEADLINES = "a storm of deadlines behind a deep queue"


WORKER_EVILS = (Kind.KILL, Kind.KILL_TWO, Kind.FREEZE, Kind.LEAVE)
REDIS_EVILS = (
    *(Kind.REDIS_KILL, Kind.REDIS_STOP, Kind.REDIS_FREEZE, Kind.REDIS_FORGETS, Kind.REDIS_TORN, Kind.FAILOVER),
    *(Kind.READERS, Kind.SLOW, Kind.STALL, Kind.CUTS),
)
CLOCK_EVILS = (Kind.CLOCK_BACK, Kind.CLOCK_AHEAD)
ENDPOINT_EVILS = (Kind.ENDPOINT, Kind.FULL, Kind.BROKEN, Kind.LOGIN, Kind.RESETS, Kind.HALVES)
STORMS = (Kind.CANCELS, Kind.DEADLINES)

_BUSY_S = {Kind.KILL: 10.0, Kind.KILL_TWO: 12.0, Kind.FREEZE: 12.0, Kind.LEAVE: 12.0}
"""For how long a worker's place is left alone after its evil: until it is back, or another in its place."""
_LASTS_S = {
    Kind.FREEZE: (5.0, 8.0),
    Kind.REDIS_KILL: (0.2, 4.0),
    Kind.REDIS_STOP: (0.2, 4.0),
    Kind.REDIS_FREEZE: (0.2, 6.0),
    Kind.REDIS_FORGETS: (0.2, 2.5),
    Kind.REDIS_TORN: (0.2, 2.5),
    Kind.FAILOVER: (0.2, 1.5),
    Kind.CLOCK_BACK: (8.0, 10.0),
    Kind.CLOCK_AHEAD: (4.0, 8.0),
    Kind.SLOW: (3.0, 6.0),
    Kind.STALL: (0.5, 4.0),
    Kind.CUTS: (2.0, 4.0),
    Kind.ENDPOINT: (1.0, 4.0),
    Kind.FULL: (1.0, 3.0),
    Kind.BROKEN: (1.0, 3.0),
    Kind.LOGIN: (0.5, 2.0),
    Kind.RESETS: (1.0, 3.0),
    Kind.HALVES: (1.0, 3.0),
}
_BACK_S = (0.05, 1.8)
"""How much of its past a Redis forgets; ``everysec`` writes it to disk once a second, and may be a second late."""
_LAG_S = (0.05, 1.0)


@dataclass(frozen=True, slots=True)
class Evil:
    """One thing that is done.

    Attributes:
        at_s: seconds after the first submit.
        targets: the workers' places or the generator's number; () where there is one only.
        lasts_s: how long the part stays away, or bad; 0 where it is replaced at once, or comes back by itself.
        back_s: how much of what was answered is forgotten.
    """

    at_s: float
    kind: Kind
    targets: tuple[int, ...] = ()
    lasts_s: float = 0.0
    back_s: float = 0.0


def least_span_s(*, has_clock: bool) -> float:
    """How long a run must last for every kind to come once."""
    return 95.0 if has_clock else 75.0


def evils(seed: int, span_s: float, *, has_clock: bool) -> list[Evil]:
    """The evils of a run, in order; in each lane each kind comes before any comes a third time.

    One worker at least is well at each moment, and one of the two endpoints.

    Args:
        seed: decides.
        span_s: of the submits, from the first to the last.
        has_clock: whether Redis's clock can be set.
    """
    redis = REDIS_EVILS + (CLOCK_EVILS if has_clock else ())
    ease = min(
        2.0, span_s / least_span_s(has_clock=has_clock)
    )  # longer runs have times in which nothing is wrong with Redis
    lanes = [
        _workers(random.Random(f"workers {seed}"), span_s),
        _one_by_one(random.Random(f"redis {seed}"), span_s, redis, at_s=3.0, rest_s=(2.0 * ease, 4.0 * ease)),
        _one_by_one(random.Random(f"endpoints {seed}"), span_s, ENDPOINT_EVILS, at_s=5.0, rest_s=(6.0, 10.0)),
        _one_by_one(random.Random(f"storms {seed}"), span_s, STORMS, at_s=8.0, rest_s=(22.0, 30.0)),
    ]
    return sorted((evil for lane in lanes for evil in lane), key=lambda evil: evil.at_s)


def _deck(dice: random.Random, kinds: tuple[Kind, ...]) -> Iterator[Kind]:
    while True:
        yield from dice.sample(kinds, len(kinds))


def _one_by_one(
    dice: random.Random, span_s: float, kinds: tuple[Kind, ...], *, at_s: float, rest_s: tuple[float, float]
) -> Iterator[Evil]:
    for kind in _deck(dice, kinds):
        at_s += dice.uniform(0.0, 1.0)
        if at_s >= span_s:
            return
        lasts_s = dice.uniform(*_LASTS_S.get(kind, (0.0, 0.0)))
        back_s = 0.0
        if kind in (Kind.REDIS_FORGETS, Kind.REDIS_TORN):
            back_s = dice.uniform(*_BACK_S)
        elif kind is Kind.FAILOVER:
            back_s = dice.uniform(*_LAG_S)
        targets = (dice.randrange(len(GENERATORS)),) if kind in ENDPOINT_EVILS else ()
        yield Evil(at_s, kind, targets, lasts_s, back_s)
        at_s += back_s * (kind is Kind.FAILOVER) + lasts_s + dice.uniform(*rest_s)


def _workers(dice: random.Random, span_s: float) -> Iterator[Evil]:
    free_at_s = [0.0] * WORKERS
    at_s = 4.0
    for kind in _deck(dice, (*WORKER_EVILS, Kind.KILL)):
        hits = 2 if kind is Kind.KILL_TWO else 1
        # One more than are hit: the last one that is well is left alone until another is.
        at_s = max(at_s, sorted(free_at_s)[hits])
        if at_s >= span_s:
            return
        free = [place for place in range(WORKERS) if free_at_s[place] <= at_s]
        targets = tuple(dice.sample(free, hits))
        for place in targets:
            free_at_s[place] = at_s + _BUSY_S[kind]
        yield Evil(at_s, kind, targets, dice.uniform(*_LASTS_S.get(kind, (0.0, 0.0))))
        at_s += dice.uniform(3.0, 7.0)
