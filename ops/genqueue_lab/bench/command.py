"""``python -m genqueue_lab bench``: what the queue costs, against calling the model server directly.

All ways run in one go, in turns, on the same machine against the same stand-in, so that a busy machine
slows all of them: huggingface_hub's async client at its fastest, aiohttp with as little as can
read the events, and the queue, with a real worker and a real Redis.  Each is a process of its own;
unlike on a GPU host, all of them share the cores with the model server.  ``--against`` runs
another checkout's producer and worker in turns with them.

Here is the order of things.  Processes are in ``stack.py``, limits and verdicts in ``verdict.py``.
"""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import aiohttp
import celery
import huggingface_hub
import redis
import typer
from rich.table import Table

from genqueue import ConfigError, GenerationResult
from genqueue.cli import output
from genqueue_lab.bench.client import Load
from genqueue_lab.bench.stack import (
    Contestant,
    Queue,
    Sample,
    check_checkout,
    checkouts,
    environ_of,
    resident_mb,
    start_contestants,
    threads,
)
from genqueue_lab.bench.verdict import ON_DEMAND, Line, Part, lines, warnings
from genqueue_ops.local_redis import local_redis
from genqueue_ops.processes import ChildError

_CROWD = Load("kept", 200, 100)
_SLICES = 4

Taken = dict[str, list[Sample]]


def in_turns(
    found: dict[str, Contestant], names: tuple[str, ...], rounds: int, take: Callable[[Contestant], Sample]
) -> Taken:
    """Measure each of ``names``, and the other checkout if there is one, in each round; every other round backwards."""
    taking = [found[name] for name in (*names, "before") if name in found]
    taken: Taken = {contestant.name: [] for contestant in taking}
    for number in range(rounds):
        for contestant in taking if number % 2 == 0 else reversed(taking):
            taken[contestant.name].append(take(contestant))
    return taken


def memory(contestant: Contestant, generations: int) -> Sample:
    """Measure the memory that short generations with prompts of 2 KB leave behind, in the worker and in Redis."""
    queue = contestant.queue
    assert queue is not None
    contestant.run(_short(generations // 4))
    before_mb, before_bytes = resident_mb(queue.worker.process.pid), queue.redis_info()["used_memory"]
    sample = contestant.run(_short(generations))
    redis_bytes = queue.redis_info()["used_memory"] - before_bytes
    return {
        **sample,
        "before_mb": before_mb,
        "after_mb": resident_mb(queue.worker.process.pid),
        "redis_kb": redis_bytes / generations / 1e3,
        "result_kb": _result_kb(queue),
    }


def _short(generations: int) -> Load:
    return Load("turns", generations, 3, instant=True, prompt_bytes=2000)


def _result_kb(queue: Queue) -> float:
    """What Redis takes for the reply of such a generation as a plain string with a TTL."""
    count, text = 1000, " 0:000000000000000" * 3
    meta = {"model": None, "finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 3}}
    result = GenerationResult(replies=[text], meta=[meta]).model_dump_json()
    with redis.Redis.from_url(queue.server.url) as client:
        before_bytes = client.info("memory")["used_memory"]
        for number in range(count):
            client.set(f"bench:result:{number:032}", result, ex=600)
        return float(client.info("memory")["used_memory"] - before_bytes) / count / 1e3


def thousand(contestant: Contestant) -> Sample:
    """1,000 streams at once."""
    sample = contestant.run(Load("at-once", 1000, 100))
    busy = 0 if contestant.queue is None else threads(contestant.queue.worker.process.pid)
    return {**sample, "threads": busy}


def submits(rounds: int, against: Path | None) -> Taken:
    """How fast one process submits, to a Redis where no worker runs."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="genqueue-bench-")))
        taken: Taken = {}
        environs = {}
        for name, checkout in checkouts(against).items():
            own = folder / name
            own.mkdir()
            environs[name] = environ_of(own, opened.enter_context(local_redis()).url, "http://127.0.0.1:1", checkout)
        for _ in range(rounds):
            for name, environ in environs.items():
                taken.setdefault(name, []).append(_submit(folder / name / "rates.json", environ))
    return taken


def _submit(path: Path, environ: dict[str, str]) -> Sample:
    command = [sys.executable, "-P", "-m", "genqueue_lab.bench.enqueue", str(_SLICES), str(path)]
    done = subprocess.run(command, env=environ, cwd=path.parent, capture_output=True, text=True)
    if done.returncode:
        raise ChildError(f"the submitting process failed:\n{done.stderr}")
    rates: Sample = json.loads(path.read_text())
    return {"streams": 0, **rates}


@contextmanager
def contestants(concurrency: int, against: Path | None, faults: list[str]) -> Iterator[dict[str, Contestant]]:
    """All ways, for the length of a ``with`` block; at its end ``faults`` gets what was wrong with a stream."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="genqueue-bench-")))
        found = start_contestants(opened, folder, concurrency, against)
        yield found
        faults += [f"{each.name}: {fault}" for each in found.values() for fault in each.faults]


def measure(
    wanted: set[Part], rounds: int, tokens: int, generations: int, against: Path | None
) -> tuple[dict[Part, Taken], list[str]]:
    """Measure the parts that are wanted; what was taken, and what was wrong with a stream."""
    taken: dict[Part, Taken] = {}
    faults: list[str] = []
    every, timed = ("direct", "raw", "queue"), ("direct", "queue")
    loads = {
        Part.STREAMS: (every, Load("at-once", 200, tokens)),
        Part.CHATS: (every, Load("at-once", 200, tokens, chat=True)),
        Part.IDLE: (timed, Load("alone", 15, 3)),
        Part.BESIDE: (timed, Load("alone", 15, 3)),
        Part.PACED: (timed, Load("paced", 40, 100, per_s=20.0)),
        Part.CEILING: (timed, Load("turns", 400, 3, instant=True)),
    }
    if wanted & {*loads, Part.MEMORY}:
        with contestants(256, against, faults) as found:
            for contestant in found.values():  # connections, threads, code
                contestant.run(Load("at-once", 200, 3))
            for part, (names, load) in loads.items():
                if part in wanted:
                    crowd = _CROWD if part is Part.BESIDE else None
                    taken[part] = in_turns(found, names, rounds, partial(Contestant.run, load=load, crowd=crowd))
            if Part.MEMORY in wanted:
                taken[Part.MEMORY] = in_turns(found, ("queue",), 1, partial(memory, generations=generations))
    if Part.ENQUEUE in wanted:
        taken[Part.ENQUEUE] = submits(rounds, against)
    if Part.THOUSAND in wanted:
        with contestants(1056, against, faults) as found:
            taken[Part.THOUSAND] = in_turns(found, ("raw", "queue"), min(rounds, 3), thousand)
    return taken, faults


def show(title: str, table: list[Line]) -> None:
    """Print the table."""
    has_before = any(each.before is not None for each in table)
    shown = Table(title=title, title_justify="left")
    headings = ["part", "figure", "queue", "control", "ratio", "of the rounds", "limit", ""]
    for heading in [*headings, *(["before", "now / before"] if has_before else [])]:
        shown.add_column(heading, justify="left" if heading in {"part", "figure", ""} else "right")
    for each in table:
        sign, verdict = ("≥ " if each.at_least else "≤ "), ("kept" if each.is_kept else "MISSED")
        cells = [
            each.part,
            each.name,
            f"{_short_number(each.value)} {each.unit}",
            f"{_short_number(each.of)} {each.unit}",
        ]
        cells += [_short_number(each.ratio), f"{_short_number(each.lowest)} – {_short_number(each.highest)}"]
        cells += ["", ""] if each.limit is None else [f"{sign}{each.limit:g}", verdict]
        if each.before is not None and each.to_before is not None:
            cells += [f"{_short_number(each.before)} {each.unit}", _short_number(each.to_before)]
        shown.add_row(*cells)
    output.table(shown)


def _short_number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def bench(
    parts: Annotated[
        list[Part] | None, typer.Argument(help="What to measure; everything but thousand if not said.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each measurement.")] = 5,
    tokens: Annotated[int, typer.Option(min=10, help="Of each text of streams and chats.")] = 100,
    generations: Annotated[int, typer.Option(min=100, help="Generations of the memory measurement.")] = 2000,
    against: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            resolve_path=True,
            help="A checkout whose producer and worker run in turns with these.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there, too.")] = None,
) -> None:
    """Measure what the queue costs, side by side with calling the model server directly.

    Exit code 1 when a figure misses its limit, or a text is not as it must be.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not Path("/proc/self/stat").exists():
        raise ConfigError("the benchmark reads what a process takes from /proc, which only Linux has")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most_files, most_files)
    )  # each stream has a connection; children inherit it
    if against is not None:
        check_checkout(against)
    wanted = set(parts or set(Part) - ON_DEMAND)
    began_s = time.monotonic()
    taken, faults = measure(wanted, rounds, tokens, generations, against)
    table = lines(taken, len(faults))
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(
        f"{package.__name__} {package.__version__}" for package in (celery, redis, huggingface_hub, aiohttp)
    )
    took_s = time.monotonic() - began_s
    show(f"python -m genqueue_lab bench ({machine}): {took_s:.0f} s, medians of {rounds} rounds", table)
    for words in [*sorted(set(faults))[:10], *warnings(table)]:
        output.remark(words)
    if json_file is not None:
        document = {"machine": machine, "lines": [asdict(each) for each in table], "samples": taken, "faults": faults}
        json_file.write_text(json.dumps(document, indent=2) + "\n")
    if not all(each.is_kept for each in table):
        raise typer.Exit(1)
