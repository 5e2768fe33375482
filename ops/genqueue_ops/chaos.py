"""``genqueue chaos``: break everything that can break, under load, and show that nobody notices.

This module starts the parts (a Redis, two TGI stand-ins, three workers), submits and reads
what :mod:`genqueue_ops.chaos_plan` orders, does the evils that it has, and prints what
:mod:`genqueue_ops.chaos_verdict` finds.  Producer and readers are this process, on one asyncio
loop.  A worker that is killed or told to stop is replaced, as a supervisor would.

Redis is run with ``appendfsync always``: a ``kill -9`` then loses nothing that it had answered.
With ``everysec`` it may put off writing for 2 s, and what it forgets nobody else can know.

Which worker made a call is known from a header that each has in its own settings; the journal of a
stand-in is fetched right before it is killed, so the tokens of its last milliseconds are not counted.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import redis.asyncio
import typer

from genqueue import AsyncGenerationClient, GenerationError, LogExpiredError, Settings, StoreError, output
from genqueue import calls as registry
from genqueue.client import AsyncGeneration
from genqueue.lifecycle import State
from genqueue.messages import Event
from genqueue.store import AsyncStore
from genqueue_ops.chaos_plan import GENERATORS, WORKERS, Evil, Kind, Order, evils, orders
from genqueue_ops.chaos_verdict import (
    LATE_S,
    Call,
    Delays,
    Finding,
    Outages,
    Span,
    Trace,
    cancel_delay,
    judge,
    recoveries,
    taken_from_the_living,
    takeovers,
    thrown_away,
)
from genqueue_ops.figures import Figure, show
from genqueue_ops.local_redis import LocalRedis, free_port, local_redis
from genqueue_ops.processes import Child

_DRAIN_S = 2.0
_READY_WITHIN_S = 60.0
_END_WITHIN_S = 120.0
"""After the last submit and the last evil."""
_LEAVES_WITHIN_S = 30.0
_RETRY_S = 0.3
_SHOWN = 10
_JUDGED_FROM = 10
"""Of fewer values the 95th percentile is the worst one, and a machine's hiccup no verdict."""
_PROMPT = re.compile(r"Chaos \d+, order (\d+): ")
_TERMINAL = ("finished", "failed", "cancelled")


@dataclass(slots=True)
class Endpoint:
    """A stand-in, and what it was asked in all its lives: (entry of its journal, when it was killed)."""

    generator: str
    child: Child
    url: str
    entries: list[tuple[dict[str, Any], float | None]] = field(default_factory=list)

    def journal(self) -> list[dict[str, Any]]:
        """What it was asked in this life."""
        with urllib.request.urlopen(f"{self.url}/standin/requests", timeout=10) as response:
            found: list[dict[str, Any]] = json.loads(response.read())
        return found

    def start(self) -> None:
        """Start it, again at the same address."""
        self.child.start()
        self.child.wait_until(lambda logged: "listening on " in logged and logged.endswith("\n"), _READY_WITHIN_S)


@dataclass(slots=True)
class Place:
    """Where a worker runs: one after the other."""

    child: Child
    is_well: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pid(self) -> int:
        """The process that runs there, or the last one."""
        return self.child.process.pid


class Stage:
    """All parts, and what is done to them.

    Args:
        folder: for everybody's files.
        opened: ends what is started.
    """

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.outages = Outages()
        self.pids: dict[str, int] = {}
        self.done: Counter[Kind] = Counter()
        self.faults: list[str] = []
        self._folder = folder
        self._opened = opened
        (folder / "redis").mkdir()
        self.redis: LocalRedis = opened.enter_context(local_redis(appendonly=True, data_dir=folder / "redis"))
        self.endpoints = [self._new_endpoint(generator) for generator in GENERATORS]
        self.places = [Place(self._new_worker()) for _ in range(WORKERS)]
        for place in self.places:
            self._wait_until_ready(place.child)
            place.is_well = True

    def _child(self, name: str, arguments: Sequence[str]) -> Child:
        (self._folder / name).mkdir()
        command = [sys.executable, "-P", "-m", "genqueue", *arguments]
        child = Child(name, command, self._folder / name / f"{name}.log")
        self._opened.callback(child.end, signal.SIGKILL)
        return child

    def _new_endpoint(self, generator: str) -> Endpoint:
        port = free_port()
        child = self._child(generator, ["tgi-standin", "--port", str(port), "--max-concurrent-requests", "2000"])
        endpoint = Endpoint(generator, child, f"http://127.0.0.1:{port}")
        endpoint.start()
        return endpoint

    def settings_toml(self, worker: str) -> str:
        """A worker's ``genqueue.toml``."""
        lines = [f'redis_url = "{self.redis.url}"', f"drain_s = {_DRAIN_S}"]
        for endpoint in self.endpoints:
            lines += [
                f"[generators.{endpoint.generator}]",
                'api_type = "text_generation_inference"',
                f'api_params = {{ url = "{endpoint.url}", headers = {{ x-worker = "{worker}" }} }}',
            ]
        return "\n".join(lines) + "\n"

    def _new_worker(self) -> Child:
        name = f"worker-{len(self.pids) + 1}"
        child = self._child(name, ["worker", "--concurrency", "128", "--hostname", f"{name}@%h"])
        (child.log.parent / "genqueue.toml").write_text(self.settings_toml(name))
        child.start()
        self.pids[name] = child.process.pid
        return child

    def _wait_until_ready(self, child: Child) -> None:
        child.wait_until(lambda logged: " ready." in logged, _READY_WITHIN_S)

    async def do(self, evil: Evil) -> None:
        """Do one evil, and see to it that the part comes back."""
        self.done[evil.kind] += 1
        match evil.kind:
            case Kind.KILL | Kind.FREEZE | Kind.LEAVE:
                place = self.places[evil.target]
                async with place.lock:
                    while not any(other.is_well for other in self.places if other is not place):
                        await asyncio.sleep(0.05)
                    place.is_well = False
                    self._check(place.child)
                    await self._hit(place, evil)
                    place.is_well = True
            case Kind.REDIS_KILL | Kind.REDIS_STOP | Kind.REDIS_FREEZE:
                server = self.redis
                end, begin = {
                    Kind.REDIS_KILL: (server.kill, server.start),
                    Kind.REDIS_STOP: (server.stop, server.start),
                    Kind.REDIS_FREEZE: (server.pause, server.resume),
                }[evil.kind]
                began_s = time.time()
                await asyncio.to_thread(end)
                await asyncio.sleep(evil.lasts_s)
                await asyncio.to_thread(begin)
                self.outages.redis.append(Span(began_s, time.time()))
            case Kind.ENDPOINT:
                endpoint = self.endpoints[evil.target]
                entries = await asyncio.to_thread(endpoint.journal)
                died_s = time.time()
                await asyncio.to_thread(endpoint.child.end, signal.SIGKILL)
                endpoint.entries += [(entry, died_s) for entry in entries]
                await asyncio.sleep(evil.lasts_s)
                await asyncio.to_thread(endpoint.start)
                self.outages.endpoints.setdefault(endpoint.generator, []).append(Span(died_s, time.time()))
            case Kind.READERS:
                async with redis.asyncio.Redis.from_url(self.redis.url) as client:
                    with contextlib.suppress(redis.RedisError, OSError):  # it may be down, and they with it
                        await client.client_kill_filter(_type="pubsub")
                self.outages.readers_cut_s.append(time.time())

    async def _hit(self, place: Place, evil: Evil) -> None:
        child, now_s = place.child, time.time()
        match evil.kind:
            case Kind.FREEZE:
                child.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(evil.lasts_s)
                # Before it wakes: what it does then is not excused.
                self.outages.frozen.setdefault(place.pid, []).append(Span(now_s, time.time()))
                child.process.send_signal(signal.SIGCONT)
                return
            case Kind.KILL:
                self.outages.killed_s[place.pid] = now_s
                child.process.kill()
            case Kind.LEAVE:
                self.outages.leaving_s[place.pid] = now_s
                child.process.send_signal(signal.SIGTERM)
        place.child = self._new_worker()
        await asyncio.to_thread(self._wait_until_ready, place.child)
        try:
            status = await asyncio.to_thread(child.process.wait, _LEAVES_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.faults.append(f"{child.name} has not ended {_LEAVES_WITHIN_S:g} s after its SIGTERM")
        else:
            if evil.kind is Kind.LEAVE and status != 0:
                self.faults.append(f"{child.name} ended with status {status} when told to stop")

    def check(self) -> None:
        """Note who ended though nobody told it to."""
        for child in [*(place.child for place in self.places), *(endpoint.child for endpoint in self.endpoints)]:
            self._check(child)

    def _check(self, child: Child) -> None:
        if (status := child.process.poll()) is not None:
            self.faults.append(f"{child.name} ended by itself with status {status}")

    def calls(self) -> dict[int, list[Call]]:
        """Every request to the stand-ins, by order."""
        found: dict[int, list[Call]] = {}
        now_s = time.time()
        for endpoint in self.endpoints:
            for entry, died_s in [*endpoint.entries, *((entry, None) for entry in endpoint.journal())]:
                if not isinstance(entry["body"], dict):
                    continue  # its worker died before the whole request was there
                number = int(_PROMPT.match(entry["body"]["inputs"])[1])  # type: ignore[index]  # all are ours
                closed_s = entry["closed_at_s"]
                call = Call(
                    worker_pid=self.pids[entry["headers"]["x-worker"]],
                    began_s=entry["started_at_s"],
                    closed_s=closed_s or died_s or now_s,
                    tokens=entry["tokens_sent"],
                    server_died=closed_s is None and died_s is not None,
                )
                found.setdefault(number, []).append(call)
        return found


class Company:
    """Everybody who asks and reads."""

    def __init__(self, client: AsyncGenerationClient) -> None:
        self._client = client

    async def see_through(self, order: Order, began_s: float) -> Trace:
        """Submit one order at its time, read it to its end, cancel it if it is to be; not longer than the run lasts."""
        trace = Trace(order)
        await asyncio.sleep(max(0.0, began_s + order.at_s - time.time()))
        canceller: asyncio.Task[None] | None = None
        try:
            generation = await self._submit(order)
            trace.generation_id = generation.id
            canceller = asyncio.create_task(self._cancel(trace, generation))
            await self._read(trace, generation)
        except asyncio.CancelledError:
            trace.error = "no end within the run's time"
        except Exception as error:
            trace.error = f"was told {type(error).__name__}: {error}"
        if canceller is not None:
            if trace.cancel_s is None:
                canceller.cancel()
            (failure,) = await asyncio.gather(canceller, return_exceptions=True)
            if isinstance(failure, Exception):
                trace.error = f"cancel() was told {type(failure).__name__}: {failure}"
        return trace

    async def _submit(self, order: Order) -> AsyncGeneration:
        """Until it is accepted: the key makes one of many tries."""
        while True:
            try:
                return await self._client.submit(order.prompt, **order.options)
            except StoreError as error:
                if not error.may_pass:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def _read(self, trace: Trace, generation: AsyncGeneration) -> None:
        aways = sorted(trace.order.aways, key=lambda away: away.after_events)
        while True:
            seq, came = len(trace.seen), 0
            try:
                async with contextlib.aclosing(generation.events(from_seq=seq)) as events:
                    async for event in events:
                        came += 1
                        trace.seen.append((time.time(), event))
                        if aways and len(trace.seen) >= aways[0].after_events and event.type not in _TERMINAL:
                            break
                    else:
                        return
            except StoreError as error:
                if came or not error.may_pass:  # who has read once waits for Redis, who begins is told
                    raise
                await asyncio.sleep(_RETRY_S)
                continue
            began_s = time.time()
            await asyncio.sleep(aways.pop(0).for_s)
            trace.away.append(Span(began_s, time.time()))

    async def _cancel(self, trace: Trace, generation: AsyncGeneration) -> None:
        if trace.order.cancel_after_s is None:
            return
        await asyncio.sleep(trace.order.cancel_after_s)
        trace.cancel_s = time.time()
        while True:
            try:
                trace.cancel_said = await generation.cancel()
                return
            except StoreError as error:
                if not error.may_pass:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def look_back(self, trace: Trace, store: AsyncStore) -> None:
        """What registry, log and result say in the end."""
        if not trace.generation_id:
            return
        record = await store.run(registry.read_record(trace.generation_id))
        trace.state, trace.ended_s = record.state, record.ended_at
        trace.submitted_s, trace.completion_tokens = record.submitted_at, record.completion_tokens
        generation = self._client.generation(trace.generation_id)
        page: list[Event] = await store.run(registry.read_log(trace.generation_id, 1, limit=100_000))
        trace.log = page
        if not record.state.is_final:
            trace.state = None
            return
        late: list[str] = []
        try:
            async for chunk in generation.stream():
                late = [*([] if chunk.restarts else late), chunk.text]
            result = await generation.result(timeout_s=10)
            trace.text, trace.finish_reason = result.replies[0], result.meta[0]["finish_reason"]
            trace.completion_tokens = result.meta[0]["usage"]["completion_tokens"]
        except GenerationError as error:
            trace.text = error.partial_text
            trace.finish_reason = record.outcome.error if record.outcome else None
        except LogExpiredError as error:
            trace.error = str(error)
        if "".join(late) != trace.text:
            trace.error = "a reader after the end gets another text"


async def run(stage: Stage, ordered: list[Order], planned: list[Evil]) -> list[Trace]:
    """The orders and the evils, side by side, to the end of both."""
    settings = Settings(redis_url=stage.redis.url, generators={})
    async with AsyncGenerationClient(settings) as client:
        company = Company(client)
        began_s = time.time()
        readers = [asyncio.create_task(company.see_through(order, began_s)) for order in ordered]
        deeds = [asyncio.create_task(_later(stage, evil, began_s)) for evil in planned]
        await asyncio.gather(*deeds)
        await asyncio.sleep(max(0.0, began_s + max(order.at_s for order in ordered) - time.time()))
        _, left = await asyncio.wait(readers, timeout=_END_WITHIN_S)
        for reader in left:
            reader.cancel()
        traces = await asyncio.gather(*readers)
        store = AsyncStore(settings.redis_url, settings.redis_timeout_s)
        try:
            for trace in traces:
                await company.look_back(trace, store)
        finally:
            await store.close()
    return traces


async def _later(stage: Stage, evil: Evil, began_s: float) -> None:
    await asyncio.sleep(max(0.0, began_s + evil.at_s - time.time()))
    which = f" {evil.target + 1}" if evil.kind.endswith(("worker", "server")) else ""
    away = f", {evil.lasts_s:.1f} s" if evil.lasts_s else ""
    output.remark(f"{time.time() - began_s:6.1f} s  {evil.kind}{which}{away}")
    await stage.do(evil)


def figures(
    traces: list[Trace],
    calls: dict[int, list[Call]],
    outages: Outages,
    findings: list[Finding],
    others: list[str],
) -> list[Figure]:
    """The lines of the table; ``others`` are faults that are no generation's."""
    ends = Counter(trace.finish_reason if trace.state is not State.FINISHED else "finished" for trace in traces)
    attempts = [len(trace.attempts) for trace in traces]
    told = ", ".join(f"{count} {reason or 'without an end'}" for reason, count in ends.most_common())
    several = sum(count > 1 for count in attempts)
    sudden, planned, cancels, returns = Delays(), Delays(), Delays(), Delays()
    wasted, robbed = Counter[str](), 0
    for trace in traces:
        own = calls.get(trace.order.number, [])
        for total, more in zip((sudden, planned), takeovers(trace, own, outages, drain_s=_DRAIN_S), strict=True):
            total.extend(more)
        returns.extend(recoveries(trace, outages))
        cancels.extend(cancel_delay(trace, own, outages))
        wasted += thrown_away(trace, own, outages, drain_s=_DRAIN_S)
        robbed += taken_from_the_living(trace, own, outages)
    faults = len(others) + sum(len(found.faults) for found in findings)
    generated = sum(call.tokens for own in calls.values() for call in own)
    kept = sum(trace.completion_tokens or 0 for trace in traces)
    causes = ", ".join(f"{cause} {tokens}" for cause, tokens in wasted.most_common())
    return [
        Figure("generations", len(traces), None, told),
        Figure("attempts", sum(attempts), None, f"{several} generations took more than one, one took {max(attempts)}"),
        Figure("characters lost", sum(found.lost for found in findings), 0, f"of {sum(len(t.text) for t in traces)}"),
        Figure("characters doubled or wrong", sum(found.doubled for found in findings), 0, ""),
        Figure("faults", faults, 0, "event numbers, ends, usage, errors told, processes that died or did not"),
        Figure("generations late", sum(found.is_late for found in findings), 0, f"{LATE_S:g} s without text"),
        Figure("generations run twice", sum(f.twice_s > 0 for f in findings), 0, "a call open 1 s after its attempt"),
        Figure("longest time without text, s", max(f.silent_s for f in findings), LATE_S, "outages and pace apart"),
        Figure("attempts taken from a worker that lived", robbed, None, "and was not frozen"),
        *_quantiles("next attempt after kill -9 or SIGSTOP", "s", sudden, 5.0, "Redis down"),
        *_quantiles("next attempt after a drain's end", "s", planned, 1.0, "Redis down"),
        *_quantiles("text again after Redis came back", "s", returns, 5.0, "another evil"),
        *_quantiles("call closed after cancel()", "ms", cancels, 100.0, "in an outage"),
        Figure("tokens generated", generated, None, f"{kept} kept"),
        Figure("of them thrown away, %", 100 * (generated - kept) / max(1, generated), None, causes),
    ]


def _quantiles(name: str, unit: str, delays: Delays, limit: float | None, apart: str) -> list[Figure]:
    values = sorted(seconds * (1000 if unit == "ms" else 1) for seconds in delays.seconds)
    if not values:
        return [Figure(f"{name}, {unit}", 0, None, f"none ({delays.apart} apart: {apart})")]
    p50, p95 = (values[round(part * (len(values) - 1))] for part in (0.5, 0.95))
    told = f"{len(values)}; p50 {p50:.3g}, max {values[-1]:.3g}; apart, {apart}: {delays.apart}"
    is_judged = len(values) >= _JUDGED_FROM
    return [Figure(f"{name}, p95, {unit}", p95, limit if is_judged else None, told)]


def chaos(
    count: Annotated[int, typer.Argument(min=1, metavar="N", help="Generations.")] = 200,
    seed: Annotated[int | None, typer.Option(help="Decides what is asked and what breaks; random if not said.")] = None,
) -> None:
    """Kill, freeze and restart workers, Redis and model servers under load, and check every text.

    The model servers' text is a function of the prompt, so each generation's verdict is exact.
    Exit code 1 when one is lost, doubled, late or run twice, or a limit is missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.randrange(1_000_000) if seed is None else seed
    span_s = 20.0 + 0.35 * count
    output.remark(f"genqueue chaos {count} --seed {seed}: {span_s:.0f} s of submits, then the rest")
    for name in [name for name in os.environ if name.startswith("GENQUEUE_")]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="genqueue-chaos-"))
    began_s = time.monotonic()
    is_kept = False
    try:
        with ExitStack() as opened:
            stage = Stage(folder, opened)
            traces = asyncio.run(run(stage, orders(seed, count, span_s), evils(seed, span_s)))
            calls = stage.calls()
            stage.check()
        findings = [judge(trace, calls.get(trace.order.number, []), stage.outages) for trace in traces]
        lines = figures(traces, calls, stage.outages, findings, stage.faults)
        did = ", ".join(f"{times} {kind}" for kind, times in stage.done.most_common())
        show(f"genqueue chaos {count} --seed {seed}: {time.monotonic() - began_s:.0f} s; {did}", lines)
        broken = [(trace, found) for trace, found in zip(traces, findings, strict=True) if not found.is_clean]
        for fault in stage.faults:
            output.excerpt(fault)
        for trace, found in broken[:_SHOWN]:
            output.excerpt(f"{trace.order}\n    {trace.generation_id}: {found}")
        is_kept = all(line.is_kept for line in lines)
    finally:
        if is_kept:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            output.remark(f"what the parts logged is in {folder}")
    if not is_kept:
        raise typer.Exit(1)
