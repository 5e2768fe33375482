"""What is left after a chaos run, when everybody has gone: descriptors, threads, memory, keys, subscriptions.

Pure but for :func:`usage_of` and :func:`look`, which read what there is.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import redis

from genqueue import keys

_MORE_DESCRIPTORS = 80
"""Beyond those at its start: the pools of connections to Redis and to the endpoints.  A connection of a pool that its
peer has closed stays open until its turn comes."""
_MORE_THREADS = 24
"""Beyond those at its start and its pool's."""
_MORE_MEMORY_BYTES = 64 << 20
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CELERY = re.compile(r"_kombu\.binding.*|generate\..*|unacked(_index|_mutex)?")
"""Keys of Celery's own, which have no TTL."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has: descriptors, threads, and bytes of resident memory (proc(5))."""

    descriptors: int
    threads: int
    memory_bytes: int


def usage_of(pid: int) -> Usage:
    """What a process has now."""
    process = Path(f"/proc/{pid}")
    status = (process / "status").read_text()
    threads = int(status.split("Threads:")[1].split()[0])
    pages = int((process / "statm").read_text().split()[1])
    return Usage(len(os.listdir(process / "fd")), threads, pages * os.sysconf("SC_PAGE_SIZE"))


_STATES = {"01": "established", "06": "time wait", "08": "close wait", "0A": "listening"}


def sockets_of(pid: int) -> Counter[str]:
    """To which ports of this host a process has connections, and in which state (proc(5), net/tcp)."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed since
        inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    found: Counter[str] = Counter()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes:
            found[f"{int(fields[2].split(':')[1], 16)} {_STATES.get(fields[3], fields[3])}"] += 1
    return found


def grown(name: str, at_start: Usage, now: Usage, *, pool_threads: int) -> list[str]:
    """What a worker that is idle again has too much of."""
    faults = []
    if now.descriptors > at_start.descriptors + _MORE_DESCRIPTORS:
        faults.append(f"{name} has {now.descriptors} descriptors, had {at_start.descriptors} at its start")
    if now.threads > at_start.threads + pool_threads + _MORE_THREADS:
        faults.append(f"{name} has {now.threads} threads, had {at_start.threads} at its start")
    if now.memory_bytes > at_start.memory_bytes + _MORE_MEMORY_BYTES:
        megabytes = (now.memory_bytes - at_start.memory_bytes) >> 20
        faults.append(f"{name} has {megabytes} MB more memory than at its start")
    return faults


@dataclass(frozen=True, slots=True)
class Left:
    """What a Redis holds when all has ended.

    Attributes:
        ttls_s: of each key, -1 where it has none.
        sizes: of the lists and sorted sets that must be empty then.
        channels: those that somebody listens to.
    """

    ttls_s: dict[str, int]
    sizes: dict[str, int]
    channels: list[str]


def look(client: redis.Redis) -> Left:
    """What there is; the client decodes."""
    names = sorted(client.scan_iter(count=1000))
    sizes = {}
    for name in names:
        if name in (keys.LEASES, keys.DELAYED, keys.DEADLINES) or name.startswith("genqueue:waiting:"):
            sizes[name] = int(client.zcard(name))
        elif name.startswith(keys.QUEUE_PREFIX) and client.type(name) == "list":
            sizes[name] = int(client.llen(name))
    channels = [str(channel) for channel in client.pubsub_channels()]
    return Left({name: client.ttl(name) for name in names}, sizes, channels)


def left_over(left: Left) -> list[str]:
    """What should not be there."""
    faults = [f"{name} still has {size} entries" for name, size in left.sizes.items() if size]
    kinds = Counter(
        _IDS.sub("<id>", name) for name, ttl_s in left.ttls_s.items() if ttl_s == -1 and not _CELERY.fullmatch(name)
    )
    faults += [f"{count} keys {kind} have no TTL" for kind, count in kinds.items()]
    readers = Counter(
        _IDS.sub("<id>", channel)
        for channel in left.channels
        if (channel.endswith(":live") and channel != keys.SILENT) or channel.startswith("celery-task-meta-")
    )
    return faults + [f"{count} channels {kind} are still listened to" for kind, count in readers.items()]
