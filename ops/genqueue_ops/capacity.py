"""What a fleet asks of one Redis, and which of its limits is met first.

Pure: what each step costs was measured by ``make scale`` and is an argument, as the fleet is.  Costs add up: a load is
    the sum, over all steps, of how often a second each is
taken and what it costs.  What a sum cannot see (how latency grows as the thread fills up, a
network that is shared) is left out; ``make scale`` holds the sum beside a real Redis (docs/scaling.md).
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

ANNOUNCE_EVERY_S = 10.0
"""How often a worker says what it serves (:mod:`genqueue_worker.engine.leases`)."""
BEATS_A_S = 0.5
"""Celery's heartbeat events of one worker."""
EVENT_BATCHES_A_S = 10.0
"""Batches of task events that one worker sends at most (:mod:`genqueue_worker.broker.transport`)."""
IDLE_BRPOPS_A_S = 1.0
"""Of a worker with room that is given nothing: kombu asks again each second."""
_LOOKS_IN_A_LEASE = 12.0
"""How often a queue is looked through in a lease's length, by all workers together (``sweep.lua``)."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step costs Redis; what a script does inside counts as commands, and as one round trip."""

    cpu_us: float = 0.0
    commands: float = 0.0
    trips: float = 0.0
    in_bytes: float = 0.0
    out_bytes: float = 0.0

    def __add__(self, other: "Step") -> "Step":
        return Step(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Step)))

    def __sub__(self, other: "Step") -> "Step":
        return self + other * -1.0

    def __mul__(self, times: float) -> "Step":
        return Step(*(getattr(self, field.name) * times for field in fields(Step)))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that Redis holds for one generation: fixed, for each flush and for each token.

    ``running`` while it runs, with its log; ``log`` for ``log_ttl_s`` after the end, and ``rest``
    (the hash and Celery's result) for ``result_ttl_s``.
    """

    running: float
    running_flush: float
    running_token: float
    log: float
    log_flush: float
    log_token: float
    rest: float
    rest_token: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured, and where.

    Attributes:
        steps: by name, as :func:`rates` has them.
        worker_connections, producer_connections: of one process, busy.
    """

    machine: str
    prompt_bytes: int
    steps: Mapping[str, Step]
    memory: Memory
    worker_connections: float
    producer_connections: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """GPU hosts with one worker each, all busy, and who asks them.

    Attributes:
        streams: generations at once on each host.
        tokens_per_s: of one stream, evenly.
        tokens: of one generation.
        readers: of each generation.
        producers: processes for each host.
        generators: that each worker serves, all the same.
        redises: among which hosts and generators are divided.
        flush_gap_s: the workers' setting.
    """

    hosts: int
    streams: int = 32
    tokens_per_s: float = 40.0
    tokens: int = 200
    readers: float = 1.0
    producers: float = 1.0
    generators: int = 1
    redises: int = 1
    flush_gap_s: float = 0.02
    lease_s: float = 3.0
    log_ttl_s: float = 3600.0
    result_ttl_s: float = 86_400.0

    @property
    def hosts_each(self) -> int:
        """Hosts behind one Redis, the fullest."""
        return math.ceil(self.hosts / self.redises)

    @property
    def generations_per_s(self) -> float:
        """That begin, and end, behind one Redis."""
        return self.hosts_each * self.streams * self.tokens_per_s / self.tokens

    @property
    def flushes(self) -> float:
        """Of one generation, in each of which its readers get one message."""
        return self.tokens * min(1.0, 1.0 / (self.flush_gap_s * self.tokens_per_s))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one Redis has.

    Attributes:
        cpu: share of its one thread; what comes behind waits longer and longer.
        network_bytes_per_s: in each direction; 10 Gbit/s by default.
        memory_bytes: ``maxmemory``.
        connections: ``maxclients``.
    """

    cpu: float = 0.8
    network_bytes_per_s: float = 1.25e9
    memory_bytes: float = 64e9
    connections: float = 10_000


@dataclass(frozen=True, slots=True)
class Load:
    """What one Redis has to do for its part of a fleet, each second, and to hold."""

    cpu: float
    cpu_of: Mapping[str, float]
    commands_per_s: float
    trips_per_s: float
    in_bytes_per_s: float
    out_bytes_per_s: float
    memory_bytes: float
    connections: float

    def shares(self, limits: Limits) -> dict[str, float]:
        """Of each limit, how much is used; 1 is all."""
        return {
            "CPU": self.cpu / limits.cpu,
            "network": max(self.in_bytes_per_s, self.out_bytes_per_s) / limits.network_bytes_per_s,
            "memory": self.memory_bytes / limits.memory_bytes,
            "connections": self.connections / limits.connections,
        }


def rates(fleet: Fleet) -> dict[str, float]:
    """How often a second each step is taken at one Redis.

    ``append`` is a worker's call and ``flush`` what one generation has in it, with one token;
    ``token`` is each further one.  ``delivery`` is one message to one reader, ``reader`` what else a
    reader asks.  ``lease`` is one in a ``renew``.  ``sweep`` is a worker's call, ``queue`` what each
    generator adds to it, ``look`` a queue that is looked through.  ``celery`` is a message of Celery's events.
    """
    hosts, begun = fleet.hosts_each, fleet.generations_per_s
    rounds = hosts / (fleet.lease_s / 3)
    flushes = begun * fleet.flushes
    # A first text does not wait for its turn.
    appends = min(hosts / fleet.flush_gap_s + begun, flushes)
    return {
        "submit": begun,
        "brpop": begun + hosts * IDLE_BRPOPS_A_S,
        "claim": begun,
        "append": appends,
        "flush": flushes,
        "token": begun * fleet.tokens - flushes,
        "finish": begun,
        "reader": begun * fleet.readers,
        "delivery": (flushes + 2 * begun) * fleet.readers,  # and what started, and the end
        "renew": rounds,
        "lease": rounds * fleet.streams,
        "sweep": rounds,
        "queue": rounds * fleet.generators,
        "look": fleet.generators * min(rounds, _LOOKS_IN_A_LEASE / fleet.lease_s),
        "announce": hosts / ANNOUNCE_EVERY_S,
        "celery": hosts * (min(EVENT_BATCHES_A_S, begun / hosts) + BEATS_A_S),
    }


def spent(costs: Costs, taken: Mapping[str, float]) -> Step:
    """What so many steps cost together."""
    return sum((costs.steps[name] * times for name, times in taken.items()), Step())


def load(costs: Costs, fleet: Fleet) -> Load:
    """What one Redis has to do for a fleet."""
    taken = rates(fleet)
    total = spent(costs, taken)
    memory, flushes, tokens = costs.memory, fleet.flushes, fleet.tokens
    half_done = memory.running + (memory.running_flush * flushes + memory.running_token * tokens) / 2
    log = memory.log + memory.log_flush * flushes + memory.log_token * tokens
    rest = memory.rest + memory.rest_token * tokens
    ended = fleet.generations_per_s * (fleet.log_ttl_s * log + fleet.result_ttl_s * rest)
    per_host = costs.worker_connections + fleet.producers * costs.producer_connections
    return Load(
        cpu=total.cpu_us / 1e6,
        cpu_of={name: costs.steps[name].cpu_us * times / 1e6 for name, times in taken.items()},
        commands_per_s=total.commands,
        trips_per_s=total.trips,
        in_bytes_per_s=total.in_bytes,
        out_bytes_per_s=total.out_bytes,
        memory_bytes=fleet.hosts_each * fleet.streams * half_done + ended,
        connections=fleet.hosts_each * per_host,
    )


def breaks_at(costs: Costs, fleet: Fleet, limits: Limits) -> dict[str, int]:
    """For each limit of one Redis the number of hosts that is too many for it, the least first.

    What a million hosts do not reach is left out.
    """

    def is_too_much(name: str, hosts: int) -> bool:
        return load(costs, replace(fleet, hosts=hosts, redises=1)).shares(limits)[name] > 1

    numbers = range(1, 1_000_001)
    found = {}
    for name in ("CPU", "network", "memory", "connections"):
        index = bisect_left(numbers, True, key=partial(is_too_much, name))
        if index < len(numbers):
            found[name] = numbers[index]
    return dict(sorted(found.items(), key=lambda each: each[1]))
