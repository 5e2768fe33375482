"""``genqueue capacity``: what a fleet of GPU hosts asks of one Redis, and which of its limits is met first.

Computed, in no time: what each step costs is in ``measured.json``, or in a file that ``python -m genqueue_lab scale``
wrote on another machine (docs/scaling.md).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.table import Table

from genqueue.cli import output
from genqueue_ops.capacity import Costs, Fleet, Limits, breaks_at, load

CostsFile = Annotated[
    Path | None,
    typer.Option("--costs", exists=True, help="Take costs from a file that python -m genqueue_lab scale --json wrote."),
]
NUMBERS_OF_HOSTS = (10, 100, 1000)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """A table on stdout; numbers stand to the right."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(each if isinstance(each, str) else _plain(each) for each in row))
    output.table(table)


CHANGES: Sequence[tuple[str, dict[str, Any]]] = (
    ("as it comes", {}),
    ("log_ttl_s 300, result_ttl_s 3600", {"log_ttl_s": 300.0, "result_ttl_s": 3600.0}),
    ("and flush_gap_s 0.1", {"flush_gap_s": 0.1}),
    ("and flush_gap_s 0.25", {"flush_gap_s": 0.25}),
)


def changed(fleet: Fleet) -> list[tuple[str, Fleet]]:
    """The fleet as it is, and with one change after the other."""
    fleets = []
    for words, change in CHANGES:
        fleet = replace(fleet, **change)
        fleets.append((words, fleet))
    return fleets


def show_fleet(costs: Costs, fleet: Fleet, limits: Limits, hosts: Sequence[int]) -> None:
    """What one Redis has to do, what gives out first, and what changes that."""
    rows: list[tuple[str | float, ...]] = []
    for number in hosts:
        needed = load(costs, replace(fleet, hosts=number))
        shares = needed.shares(limits)
        over = sorted(((name, share) for name, share in shares.items() if share > 1), key=lambda each: -each[1])
        heaviest = sorted(needed.cpu_of, key=lambda name: -needed.cpu_of[name])[:3]
        rows.append(
            (
                f"{number:,}",
                replace(fleet, hosts=number).generations_per_s,
                needed.commands_per_s,
                f"{needed.cpu:.0%}",
                needed.in_bytes_per_s / 1e6,
                needed.out_bytes_per_s / 1e6,
                needed.memory_bytes / 1e9,
                needed.connections,
                ", ".join(f"{name} {share:.0%}" for name, share in over),
                ", ".join(f"{name} {needed.cpu_of[name] / needed.cpu:.0%}" for name in heaviest),
            )
        )
    title = f"{fleet.streams} streams of {fleet.tokens_per_s:g} tokens/s a host, {fleet.tokens} tokens a generation"
    columns = ("hosts", "generations/s", "commands/s", "one thread", "MB/s in", "MB/s out", "GB", "connections")
    print_table(f"One Redis, {title}", (*columns, "over", "of the CPU"), rows)
    helped: list[tuple[str | float, ...]] = []
    for words, other in changed(fleet):
        broken = breaks_at(costs, other, limits)
        first, at = next(iter(broken.items()), ("nothing", max(hosts) + 1))
        redises = (math.ceil(number / max(1, at - 1)) for number in hosts)
        each = (broken.get(name, "") for name in ("memory", "CPU", "connections", "network"))
        helped.append((words, first, *each, *redises))
    headings = ("", "breaks first", "memory", "CPU", "connections", "network")
    print_table(
        "At how many hosts one Redis has too much of what, and how many Redises each fleet needs",
        (*headings, *(f"{number:,} hosts" for number in hosts)),
        helped,
    )


def measured(path: Path | None) -> Costs:
    """The costs in a file that ``--json`` wrote; of None those that come with this package."""
    source = files("genqueue_ops") / "measured.json" if path is None else path
    return TypeAdapter(Costs).validate_python(json.loads(source.read_text("utf-8"))["costs"])


def capacity(
    hosts: Annotated[list[int] | None, typer.Option(min=1, help="GPU hosts; may be repeated. 10, 100, 1000.")] = None,
    streams: Annotated[int, typer.Option(min=1, help="Generations at once on a host.")] = 32,
    tokens_per_s: Annotated[float, typer.Option(min=0.1, help="Of one stream.")] = 40.0,
    tokens: Annotated[int, typer.Option(min=1, help="Of one generation.")] = 200,
    readers: Annotated[float, typer.Option(min=0, help="Of one generation.")] = 1.0,
    producers: Annotated[float, typer.Option(min=0, help="Producer processes for each host.")] = 1.0,
    generators: Annotated[int, typer.Option(min=1, help="That each worker serves.")] = 1,
    flush_gap_s: Annotated[float, typer.Option(min=0.001, help="The workers' setting.")] = 0.02,
    log_ttl_s: Annotated[float, typer.Option(min=1, help="The setting.")] = 3600.0,
    result_ttl_s: Annotated[float, typer.Option(min=1, help="The setting.")] = 86_400.0,
    memory_gb: Annotated[float, typer.Option(min=0.1, help="What one Redis may hold.")] = 64.0,
    network_gbit_s: Annotated[float, typer.Option(min=0.1, help="What its network carries.")] = 10.0,
    max_connections: Annotated[int, typer.Option(min=1, help="Redis's maxclients.")] = 10_000,
    costs_file: CostsFile = None,
) -> None:
    """Say what a fleet of GPU hosts asks of one Redis, and what gives out first."""
    fleet = Fleet(
        1, streams, tokens_per_s, tokens, readers, producers, generators, 1, flush_gap_s, 3.0, log_ttl_s, result_ttl_s
    )
    limits = Limits(
        network_bytes_per_s=network_gbit_s / 8 * 1e9, memory_bytes=memory_gb * 1e9, connections=max_connections
    )
    show_fleet(measured(costs_file), fleet, limits, hosts or NUMBERS_OF_HOSTS)
