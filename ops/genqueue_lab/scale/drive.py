"""Drive one Redis as many workers would, to see where it really gives out.

Workers without model servers: tokens come by the clock, everything else is the real store's with
the real scripts.  Like the real writer each has one flush in flight, ``flush_gap_s`` apart at
least, which takes what has come by then: the slower Redis is, the more a flush carries.
``python -m genqueue_lab.scale.drive`` is one process of them, for :mod:`genqueue_lab.scale.command`.
"""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from genqueue.connection.store import AsyncStore
from genqueue.registry import attempts, sweeping
from genqueue_lab.scale import costs as scale_costs
from genqueue_lab.scale.gauge import Gauge
from genqueue_ops.capacity import ANNOUNCE_EVERY_S, Costs, Fleet, Step, rates, spent
from genqueue_ops.processes import Child

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel for this platform
    from asyncio import new_event_loop  # type: ignore[assignment]  # a wider type

SATURATED = 0.9
"""Of a core: who uses so much of it has no time left."""
_UNDRIVEN = {"brpop", "celery", "reader"}
"""Steps that take a real worker or reader."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one process of workers is told.

    Attributes:
        fleet: that it is a part of.
        begin: a file that will hold the epoch second at which all begin.
    """

    url: str
    process: int
    workers: int
    fleet: Fleet
    begin: str
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Driven:
    """What came of it.

    Attributes:
        workers: how many there were.
        taken: steps in all, by name.
        flush_ms: of the workers' flushes, what half of them took, and what 95 of 100 did.
        redis_cpu: measured, as a share of one core; ``predicted_cpu`` is the model's for the same steps,
            ``fleet_cpu`` what the model says of such a fleet before it runs.
        drivers_cpu: of the busiest process of workers.
        flushes_per_s: of all generations; ``expected_per_s`` is how many the fleet would have if nobody were late.
        tokens_per_s: that were written.
    """

    workers: int
    taken: dict[str, float]
    flush_ms: tuple[float, float]
    redis_cpu: float
    predicted_cpu: float
    fleet_cpu: float
    drivers_cpu: float
    flushes_per_s: float
    expected_per_s: float
    tokens_per_s: float

    @property
    def ratio(self) -> float:
        """Measured beside predicted, for the steps that were taken."""
        return self.redis_cpu / self.predicted_cpu

    @property
    def gave_out(self) -> str | None:
        """Who had no time left; None if nobody."""
        if self.redis_cpu >= SATURATED:
            return "Redis"
        if self.drivers_cpu >= SATURATED:
            return "the drivers"
        return "the machine" if self.flushes_per_s < 0.8 * self.expected_per_s else None

    @property
    def flushes_of_a_core(self) -> float:
        """What this Redis would write in a second, had it a core of its own."""
        return self.flushes_per_s / self.redis_cpu


class _Stream:
    def __init__(self, generation_id: str, began_s: float) -> None:
        self.id, self.began_s, self.made, self.flushes = generation_id, began_s, 0, 0

    def come(self, now_s: float, fleet: Fleet) -> int:
        """How many tokens there are beyond ``made``; none where a sleep ended a moment early."""
        return max(0, min(fleet.tokens, int((now_s - self.began_s) * fleet.tokens_per_s)) - self.made)


class _Worker:
    """One worker's conversation with Redis."""

    def __init__(self, part: Part, number: int, ids: Sequence[str]) -> None:
        self._part, self._fleet = part, part.fleet
        self._owner = f"gpu-host-{part.process}-{number:04}:12345:0123abcd"
        self._ids = iter(ids)
        self._store = AsyncStore(part.url, 30.0)
        self._generators = ["default", *(f"other-{each}" for each in range(1, part.fleet.generators))]
        self._streams: list[_Stream] = []
        self._begins_at = 0.0
        self.taken: Counter[str] = Counter()
        self.tokens = 0
        self.flush_s: list[float] = []

    async def prepare(self) -> None:
        for _ in range(self._fleet.streams):
            await self._begin(0.0)
        await self._store.run(scale_costs.announce(self._owner))
        self.taken.clear()

    async def run(self, number: int, begins_at: float) -> None:
        self._begins_at = begins_at
        # As if all had begun in the past, at different times: their ends are spread as well.
        lasts_s = self._fleet.tokens / self._fleet.tokens_per_s
        for index, stream in enumerate(self._streams):
            stream.began_s = begins_at - lasts_s * index / self._fleet.streams
            stream.made = int((begins_at - stream.began_s) * self._fleet.tokens_per_s)
        ends_s = begins_at + self._part.lasts_s
        period_s = self._fleet.lease_s / 3
        offset_s = number * 0.618 % 1.0  # neither their rounds nor their flushes are in step
        await asyncio.gather(
            self._write(ends_s, offset_s * self._fleet.flush_gap_s), self._keep(ends_s, period_s, offset_s)
        )

    async def close(self) -> None:
        await self._store.close()

    async def _begin(self, began_s: float) -> _Stream:
        stream = _Stream(next(self._ids), began_s)
        await self._store.run(scale_costs.submit(stream.id, scale_costs.request()))
        await self._store.run(scale_costs.claim(stream.id, self._owner))
        self._streams.append(stream)
        self.taken.update(("submit", "claim"))
        return stream

    async def _write(self, ends_s: float, offset_s: float) -> None:
        fleet = self._fleet
        due_s = self._begins_at + offset_s
        while due_s < ends_s:
            # By the clock and not after the last answer: or a moment's halt of this process, in which all these
            # workers are, would have them in step ever after, as hosts of their own would not be.
            await asyncio.sleep(due_s - time.time())
            now_s = time.time()
            due_s = max(due_s + fleet.flush_gap_s, now_s)
            flushes, ended = [], []
            for stream in self._streams:
                come = stream.come(now_s, fleet)
                if come:
                    stream.made += come
                    stream.flushes += 1
                    flushes.append(scale_costs.flush(stream.id, stream.flushes, come))
                    self.tokens += come
                if stream.made == fleet.tokens:
                    ended.append(stream)
            if flushes:
                began_s = time.perf_counter()
                answers = await self._store.run(scale_costs.append(flushes, self._owner))
                self.flush_s.append(time.perf_counter() - began_s)
                assert set(answers) == {"ok"}, answers
                self.taken.update({"append": 1, "flush": len(flushes)})
            for stream in ended:
                self._streams.remove(stream)
                call = scale_costs.finish(stream.id, stream.flushes, fleet.tokens, self._owner)
                assert await self._store.run(call) == "ok"
                self.taken["finish"] += 1
                await self._begin(time.time())

    async def _keep(self, ends_s: float, period_s: float, offset_s: float) -> None:
        await asyncio.sleep(max(0.0, self._begins_at - time.time()) + offset_s * period_s)
        announced_s = time.time() - offset_s * ANNOUNCE_EVERY_S
        while (now_s := time.time()) < ends_s:
            if now_s - announced_s >= ANNOUNCE_EVERY_S:
                announced_s = now_s
                await self._store.run(scale_costs.announce(self._owner))
                self.taken["announce"] += 1
            held = [(stream.id, 1) for stream in self._streams]
            lease_s, keep_s = self._fleet.lease_s, scale_costs.KEEP_S
            await self._store.run(attempts.renew(held, lease_s=lease_s, keep_s=keep_s, owner=self._owner))
            await self._store.run(sweeping.sweep(self._generators, lease_s=lease_s, keep_s=keep_s))
            self.taken.update({"renew": 1, "lease": len(held), "sweep": 1, "queue": self._fleet.generators})
            await asyncio.sleep(period_s)


async def _be(part: Part) -> None:
    rounds = int(part.lasts_s * part.fleet.tokens_per_s / part.fleet.tokens) + 3
    ids = [scale_costs.new_ids(part.fleet.streams * rounds) for _ in range(part.workers)]
    workers = [_Worker(part, number, own) for number, own in enumerate(ids)]
    readers = [each for own in ids for each in own] if part.fleet.readers else []
    async with scale_costs.listening(part.url, readers):
        await asyncio.gather(*(worker.prepare() for worker in workers))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        begin = Path(part.begin)
        while not begin.exists():
            await asyncio.sleep(0.01)
        begins_at = float(begin.read_text())
        await asyncio.sleep(begins_at - time.time())
        began_s = time.process_time()
        await asyncio.gather(*(worker.run(number, begins_at) for number, worker in enumerate(workers)))
        cpu_s = time.process_time() - began_s
    taken: Counter[str] = sum((worker.taken for worker in workers), Counter())
    told = {
        "taken": taken,
        "flush_s": [each for worker in workers for each in worker.flush_s],
        "tokens": sum(worker.tokens for worker in workers),
        "cpu": cpu_s / part.lasts_s,
    }
    sys.stdout.write(f"driven {json.dumps(told)}\n")
    for worker in workers:
        await worker.close()


def drive(
    url: str, gauge: Gauge, folder: Path, costs: Costs, fleet: Fleet, *, processes: int, lasts_s: float
) -> Driven:
    """Have ``fleet.hosts`` workers at one Redis for so long, and hold what it spent beside the model."""
    gauge.redis.flushall()
    begin = folder / "begin"
    begin.unlink(missing_ok=True)
    with ExitStack() as opened:
        children = []
        for number in range(processes):
            workers = fleet.hosts // processes + (number < fleet.hosts % processes)
            part = Part(url, number, workers, fleet, str(begin), lasts_s)
            words = [sys.executable, "-P", "-m", "genqueue_lab.scale.drive", json.dumps(asdict(part))]
            child = Child(f"driver {number}", words, folder / f"driver-{number}.log")
            child.start()
            opened.callback(child.end)
            children.append(child)
        for child in children:
            child.wait_until(lambda logged: "ready\n" in logged, 60.0)
        begins_at = time.time() + 0.3
        (folder / "begin.part").write_text(str(begins_at))
        (folder / "begin.part").rename(begin)
        time.sleep(max(0.0, begins_at - time.time()))
        before = gauge.read()
        time.sleep(max(0.0, begins_at + lasts_s - time.time()))
        redis = gauge.since(before)
        told = []
        for child in children:
            child.process.wait(60)
            found = child.logged().rpartition("driven ")[2]
            if child.process.returncode != 0 or not found:
                child.check()
            told.append(json.loads(found))
    taken: Counter[str] = sum((Counter(each["taken"]) for each in told), Counter())
    begun = taken["claim"]
    tokens = sum(each["tokens"] for each in told)
    steps: dict[str, float] = {
        **taken,
        "token": tokens - taken["flush"],
        "delivery": (taken["flush"] + begun + taken["finish"]) * min(fleet.readers, 1),
        "look": rates(fleet)["look"] * lasts_s,
    }
    took_ms = [each * 1e3 for part in told for each in part["flush_s"]]
    driven_fleet = {name: times for name, times in rates(fleet).items() if name not in _UNDRIVEN}
    return Driven(
        workers=fleet.hosts,
        taken=steps,
        flush_ms=(statistics.median(took_ms), statistics.quantiles(took_ms, n=20)[-1]),
        redis_cpu=redis.cpu_us / 1e6 / lasts_s,
        predicted_cpu=spent(costs, steps).cpu_us / 1e6 / lasts_s,
        fleet_cpu=sum((costs.steps[name] * times for name, times in driven_fleet.items()), Step()).cpu_us / 1e6,
        drivers_cpu=max(each["cpu"] for each in told),
        flushes_per_s=taken["flush"] / lasts_s,
        expected_per_s=rates(fleet)["flush"],
        tokens_per_s=tokens / lasts_s,
    )


if __name__ == "__main__":
    _told = json.loads(sys.argv[1])
    with asyncio.Runner(loop_factory=new_event_loop) as _runner:
        _runner.run(_be(Part(**{**_told, "fleet": Fleet(**_told["fleet"])})))
