"""``python -m genqueue_lab scale``: what a generation costs Redis, for how many GPU hosts that suffices, and whether
that is so.

Measures, in this order and each by itself: the steps of the protocol (``costs``), a real worker
beside a stand-in (``worker``), sweeps beside many that wait (``sweep``).  Then the model says what
gives out first (``fleet``), and ``check`` drives one Redis until it does.  What is not measured in a
run is taken from ``genqueue_ops/measured.json``, or from the file that an earlier run wrote.
"""

import asyncio
import json
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from genqueue import AsyncGenerationClient, Settings, load_settings
from genqueue.connection.store import AsyncStore
from genqueue.registry import sweeping
from genqueue_lab.scale import costs as scale_costs
from genqueue_lab.scale.drive import Driven, drive
from genqueue_lab.scale.gauge import Gauge
from genqueue_lab.scale.report import Ran, Swept, Worked, show_check, show_costs, show_sweeps, show_worker
from genqueue_ops.capacity import Costs, Fleet, Limits, breaks_at, load, spent
from genqueue_ops.capacity_command import NUMBERS_OF_HOSTS, CostsFile, changed, measured, show_fleet
from genqueue_ops.local_redis import local_redis
from genqueue_ops.processes import Child, started
from genqueue_ops.stack import running_stack

SIZES = (20, 200)


class Part(StrEnum):
    """What can be had by itself."""

    COSTS = "costs"
    WORKER = "worker"
    SWEEP = "sweep"
    FLEET = "fleet"
    CHECK = "check"


async def _run(client: AsyncGenerationClient, tokens: int, at_once: int, count: int) -> None:
    left = iter(range(count))

    async def some() -> None:
        for number in left:
            generation = await client.submit(
                f"{number} {'x' * scale_costs.PROMPT_BYTES}"[: scale_costs.PROMPT_BYTES],
                generation_kwargs={"max_new_tokens": tokens},
            )
            async for _ in generation.stream():
                pass

    await asyncio.gather(*(some() for _ in range(at_once)))


def _start_standin(opened: ExitStack, folder: Path) -> tuple[Child, None]:
    limits = ["--max-concurrent-requests", "2000", "--max-batch", "2000"]
    return started(opened, folder, ["tgi-standin", "--itl-s", "0.02", *limits], "listening on "), None


async def worker(settings: Settings, costs: Costs, shapes: Sequence[tuple[int, int]], rest_s: float) -> Worked:
    """Have a real worker do nothing, and then so many generations of each size: (at once, in all)."""
    gauge = Gauge(settings.redis_url)
    async with AsyncGenerationClient(settings) as client:
        await _run(client, 5, max(at_once for at_once, _ in shapes), 2 * max(at_once for at_once, _ in shapes))
    await asyncio.sleep(1.0)
    before = gauge.read()
    await asyncio.sleep(rest_s)
    at_rest, after = gauge.since(before) * (1 / rest_s), gauge.read()
    commands = {
        name: (called - before.commands.get(name, 0)) / rest_s
        for name, called in after.commands.items()
        if name != "info" and called > before.commands.get(name, 0)
    }
    runs, producer = [], 0
    for at_once, count in shapes:
        for tokens in SIZES:
            async with AsyncGenerationClient(settings) as client:
                await _run(client, 5, at_once, at_once)  # connects
                before, began_s = gauge.read(), time.monotonic()
                await _run(client, tokens, at_once, count)
                cost, took_s, after = gauge.since(before), time.monotonic() - began_s, gauge.read()
                producer = max(producer, after.connections)
                did = {name: after.commands.get(name, 0) - before.commands.get(name, 0) for name in after.commands}
                each = (cost - at_rest * took_s) * (1 / count)
                flushes = did["xadd"] / count - 2
                scripts = (did["evalsha"] - commands.get("evalsha", 0) * took_s) / count
                steps = {"submit": 1, "brpop": 1, "claim": 1, "finish": 1, "reader": 1, "delivery": flushes + 2}
                steps |= {"flush": flushes, "token": tokens - flushes, "append": scripts - 3}
                runs.append(Ran(tokens, at_once, count, each, flushes, spent(costs, steps).cpu_us))
    connections = gauge.read().connections
    gauge.close()
    return Worked(at_rest, commands, connections - 1, producer - connections, runs)


async def sweeps(url: str, crowds: Sequence[tuple[int, int]], repeats: int) -> list[Swept]:
    """What a sweep costs beside (waiting, running) generations of one generator, and where it serves ten."""
    gauge, store, found = Gauge(url), AsyncStore(url, 30.0), []
    lease_s = {"out of turn": 600.0, "in turn": 0.001}  # of a lease that short it is always somebody's turn
    for waiting, running in crowds:
        gauge.redis.flushall()
        ids = scale_costs.new_ids(running)
        await scale_costs.all_of(store, (scale_costs.submit(each, scale_costs.request()) for each in ids))
        await scale_costs.all_of(store, (scale_costs.claim(each) for each in ids))
        others = scale_costs.new_ids(waiting)
        await scale_costs.all_of(store, (scale_costs.submit(each, scale_costs.request()) for each in others))
        for generators in (1, 10):
            names = ["default", *(f"other-{number}" for number in range(1, generators))]
            each = {}
            for which, lasts_s in lease_s.items():
                call = sweeping.sweep(names, lease_s=lasts_s, keep_s=scale_costs.KEEP_S)
                await scale_costs.all_of(store, [call] * 8)
                before = gauge.read()
                await scale_costs.all_of(store, [call] * repeats)
                each[which] = gauge.since(before) * (1 / repeats)
            found.append(Swept(waiting, running, generators, each["out of turn"], each["in turn"]))
    await store.close()
    gauge.close()
    return found


def check(costs: Costs, fleet: Fleet, ladder: Sequence[int], processes: int, lasts_s: float) -> list[Driven]:
    """Drive one Redis with more and more workers, until it or they have no time left."""
    found = []
    with local_redis() as server, tempfile.TemporaryDirectory(prefix="genqueue-scale-") as folder:
        gauge = Gauge(server.url)
        for workers in ladder:
            driven = drive(
                server.url,
                gauge,
                Path(folder),
                costs,
                replace(fleet, hosts=workers),
                processes=processes,
                lasts_s=lasts_s,
            )
            found.append(driven)
            if driven.gave_out in {"Redis", "the drivers"}:
                break
        gauge.close()
    return found


def scale(
    parts: Annotated[list[Part] | None, typer.Argument(help="What to do; everything if not said.")] = None,
    costs_file: CostsFile = None,
    thoroughness: Annotated[float, typer.Option(min=0.01, max=10, help="1: two minutes of measuring.")] = 1.0,
    workers: Annotated[
        list[int] | None, typer.Option(min=1, help="Synthetic workers of check; may be repeated, ascending.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that they are in.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything there, too.")] = None,
) -> None:
    """Measure what a generation costs Redis, say for how many GPU hosts that suffices, and try it.

    Nothing leaves this machine: servers, workers and readers are started here, on 127.0.0.1.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = set(parts or Part)
    fleet, limits = Fleet(1), Limits()
    costs = measured(costs_file)
    document: dict[str, Any] = {}
    if Part.COSTS in wanted:
        with local_redis() as server:
            connections = costs.worker_connections, costs.producer_connections
            costs = asyncio.run(scale_costs.measure(server.url, 5, thoroughness, *connections))
    if Part.WORKER in wanted:
        with running_stack(_start_standin, concurrency=256, max_queue_depth=1_000_000):
            settings = load_settings()
            shapes = [(1, max(2, round(10 * thoroughness))), (64, max(64, round(256 * thoroughness)))]
            worked = asyncio.run(worker(settings, costs, shapes, max(2.0, 10 * thoroughness)))
        costs = replace(
            costs, worker_connections=worked.worker_connections, producer_connections=worked.producer_connections
        )
        document["worker"] = asdict(worked)
    if Part.COSTS in wanted:
        show_costs(costs)
    if Part.WORKER in wanted:
        show_worker(worked)
    if Part.SWEEP in wanted:
        many = max(100, round(100_000 * thoroughness))
        crowds = [(0, 0), (many // 100, many // 100), (many, many // 100)]
        with local_redis() as server:
            swept = asyncio.run(sweeps(server.url, crowds, max(50, round(500 * thoroughness))))
        document["sweep"] = [asdict(each) for each in swept]
        show_sweeps(swept)
    if Part.FLEET in wanted:
        show_fleet(costs, fleet, limits, NUMBERS_OF_HOSTS)
        document["fleet"] = {
            "of": asdict(fleet),
            "loads": {number: asdict(load(costs, replace(fleet, hosts=number))) for number in NUMBERS_OF_HOSTS},
            "breaks_at": {words: breaks_at(costs, other, limits) for words, other in changed(fleet)},
        }
    if Part.CHECK in wanted:
        ladder = workers or [5, 20, 40, 80, 120]
        lasts_s = min(6.0, max(1.0, 5.0 * thoroughness))
        driven = check(costs, fleet, ladder, processes, lasts_s)
        extra = [{"ratio": each.ratio, "gave_out": each.gave_out} for each in driven]
        document["check"] = [asdict(each) | more for each, more in zip(driven, extra, strict=True)]
        show_check(driven)
    if json_file is not None:
        document = {"machine": costs.machine, "costs": asdict(costs), **document}
        json_file.write_text(json.dumps(document, indent=2) + "\n")
