"""Whether a worker is alive, and whether it is ready: what its probes answer.

A worker is alive while its parts make progress: the engine's loop, Celery's consumer, the thread that keeps the
leases.  A loop makes progress while what waits in it has its turn: that it comes round now and then is not enough.
That Redis or a model server is away is no reason to restart a worker, only one not to count on it: ready is a worker
that has both.  Pure but for :class:`Pulse`, which reads the clock, and :func:`turns`.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genqueue.registry.fleet import Health

ENGINE, CONSUMER, LEASES = "engine", "consumer", "leases"

_ENGINE_STUCK_S = 10.0
_STUCK_S = 10.0
_WAITS_FOR_REDIS = 4
"""So often in a row the other two may have to wait for a Redis that is slow."""


_TURNS = 40
"""About as many as a short call takes of a loop, from its claim to its end."""


async def turns() -> None:
    """Wait for as many turns of the running loop as a short call takes: where one call has them all, that is long."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class Pulse:
    """When something last came round; its beginning counts."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def beat(self) -> None:
        """It came round."""
        self._last_s = time.monotonic()

    @property
    def age_s(self) -> float:
        """Since then; any thread may ask."""
        return time.monotonic() - self._last_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe answers.

    Attributes:
        checks: for each thing looked at why it is not as it should be; "" if it is.
    """

    checks: Mapping[str, str]

    @property
    def is_ok(self) -> bool:
        """Whether all of it is."""
        return not any(self.checks.values())

    def body(self) -> dict[str, Any]:
        """For whoever reads it."""
        return {"ok": self.is_ok, "checks": {name: why or "ok" for name, why in self.checks.items()}}


def liveness(silent_s: Mapping[str, float], *, redis_up_s: float, redis_timeout_s: float, is_draining: bool) -> Verdict:
    """Whether every part of a worker comes round.

    Args:
        silent_s: for each part how long it has not.
        redis_up_s: for how long Redis has answered: Celery's consumer stands still while it does not.
        redis_timeout_s: for how long a call may wait for Redis.
        is_draining: whether the worker was told to stop: then its consumer takes nothing, and rests.
    """
    patience_s = _STUCK_S + _WAITS_FOR_REDIS * redis_timeout_s
    limits_s = {ENGINE: _ENGINE_STUCK_S, CONSUMER: patience_s, LEASES: patience_s}

    def trouble(part: str, age_s: float) -> str:
        counts_s = age_s
        if part == CONSUMER:
            counts_s = 0.0 if is_draining else min(age_s, redis_up_s)
        return "" if counts_s <= limits_s[part] else f"silent for {age_s:.1f} s, limit {limits_s[part]:g} s"

    return Verdict({part: trouble(part, age_s) for part, age_s in silent_s.items()})


def readiness(
    redis_trouble: str,
    endpoints: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    is_started: bool,
    is_draining: bool,
) -> Verdict:
    """Whether a worker can be counted on: Redis answers, and an endpoint of some generator can be asked.

    Args:
        redis_trouble: why Redis does not answer; "" if it does.
        endpoints: for each generator that is served ``address`` and ``health`` of its endpoints.
        is_started: whether Celery consumes.
        is_draining: whether the worker was told to stop.
    """
    consumer = "told to stop" if is_draining else "" if is_started else "not started yet"
    served = [endpoint for of_one in endpoints.values() for endpoint in of_one]
    useless = [endpoint for endpoint in served if endpoint["health"] in {Health.DOWN, Health.REFUSES}]
    words = ", ".join(f"{endpoint['address']} ({endpoint['health']})" for endpoint in useless)
    any_of_use = len(useless) < len(served)
    endpoints_trouble = "" if any_of_use else f"none can be asked: {words}" if words else "none is served"
    return Verdict({CONSUMER: consumer, "redis": redis_trouble, "endpoints": endpoints_trouble})
