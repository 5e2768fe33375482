"""What Redis spends, and where that was measured."""

import itertools
import os
import platform
import statistics
from dataclasses import dataclass, replace
from typing import Any

import redis

from genqueue_ops.capacity import Step


@dataclass(frozen=True, slots=True)
class Reading:
    """What Redis has spent since it began, and the bytes that it holds."""

    spent: Step
    memory_bytes: int
    commands: dict[str, int]
    connections: int


class Gauge:
    """Reads what Redis spends; what reading costs is taken off."""

    def __init__(self, url: str) -> None:
        self.redis: Any = redis.Redis.from_url(url)
        looks = [self._look() for _ in range(12)]
        self._own_cpu_us = statistics.median(
            later.spent.cpu_us - earlier.spent.cpu_us for earlier, later in itertools.pairwise(looks)
        )

    def read(self) -> Reading:
        """Now: what was spent since is from here on."""
        first, second = self._look(), self._look()
        # The second's own answer is counted after it; it is as long as the first's, which it has seen.
        own = replace(second.spent - first.spent, cpu_us=self._own_cpu_us)
        return replace(second, spent=second.spent + own)

    def since(self, earlier: Reading) -> Step:
        """What was spent since then."""
        return self._look().spent - earlier.spent

    def _look(self) -> Reading:
        said = self.redis.info("everything")
        spent = Step(
            (said["used_cpu_user"] + said["used_cpu_sys"]) * 1e6,
            said["total_commands_processed"],
            said["total_reads_processed"],
            said["total_net_input_bytes"],
            said["total_net_output_bytes"],
        )
        called = {
            name.removeprefix("cmdstat_"): each["calls"] for name, each in said.items() if name.startswith("cmdstat_")
        }
        return Reading(spent, said["used_memory"], called, said["connected_clients"])

    def close(self) -> None:
        """Close the connection."""
        self.redis.close()


def machine(url: str) -> str:
    """Where this runs: processor, cores, versions."""
    with redis.Redis.from_url(url) as client:
        server: Any = client.info("server")
    return f"{os.cpu_count()} cores {_processor()}, Redis {server['redis_version']}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
