"""What the measurements say, as tables."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from genqueue.cli import output
from genqueue_lab.scale.drive import Driven
from genqueue_lab.scale.model import Costs, Fleet, Limits, Step, breaks_at, load

_WORDS = {"cpu_us": "Redis CPU, us", "commands": "commands", "trips": "round trips", "in_bytes": "bytes in"}
_WORDS |= {"out_bytes": "bytes out"}


@dataclass(frozen=True, slots=True)
class Ran:
    """Generations through a real worker, with one reader each, of one size and so many at once.

    Attributes:
        each: what one cost Redis, what the worker costs at rest taken off.
        flushes: of each.
        predicted_cpu_us: of each, by the model, for the same steps.
    """

    tokens: int
    at_once: int
    count: int
    each: Step
    flushes: float
    predicted_cpu_us: float


@dataclass(frozen=True, slots=True)
class Worked:
    """A real worker.

    Attributes:
        at_rest: what it costs Redis each second while it has nothing to do.
        at_rest_commands: round trips and what scripts do inside, each second, by name.
        worker_connections: after it was busy; ``producer_connections`` those of one process of readers.
    """

    at_rest: Step
    at_rest_commands: dict[str, float]
    worker_connections: int
    producer_connections: int
    runs: list[Ran]


@dataclass(frozen=True, slots=True)
class Swept:
    """Sweeps beside so many that wait and that run."""

    waiting: int
    running: int
    generators: int
    each: Step
    look: Step


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(each if isinstance(each, str) else _plain(each) for each in row))
    output.table(table)


def _show_steps(title: str, steps: dict[str, Step]) -> None:
    rows = [(name, *(getattr(step, field) for field in _WORDS)) for name, step in steps.items()]
    _table(title, ("", *_WORDS.values()), rows)


def show_costs(costs: Costs) -> None:
    """What each step costs, and what a generation holds."""
    _show_steps(f"One step, at Redis ({costs.machine})", dict(costs.steps))
    _table("Memory of one generation, bytes", ("", *asdict(costs.memory)), [("", *asdict(costs.memory).values())])


def fixed_and_marginal(runs: Sequence[Ran]) -> dict[int, tuple[Step, Step]]:
    """For each number at once what a generation costs without its tokens, and what each token adds."""
    found = {}
    for at_once in sorted({run.at_once for run in runs}):
        short, long = sorted((run for run in runs if run.at_once == at_once), key=lambda run: run.tokens)
        token = (long.each - short.each) * (1 / (long.tokens - short.tokens))
        found[at_once] = (short.each - token * short.tokens, token)
    return found


def show_worker(worked: Worked) -> None:
    """What a real worker cost."""
    steps = {"a worker at rest, each second": worked.at_rest}
    for run in worked.runs:
        steps[f"a generation of {run.tokens} tokens, {run.at_once} at once"] = run.each
    for at_once, (generation, token) in fixed_and_marginal(worked.runs).items():
        steps[f"fixed, of each generation, {at_once} at once"] = generation
        steps[f"each token, {at_once} at once"] = token
    _show_steps("A real worker, and one reader of each generation", steps)
    _table(
        "Flushes, and the model beside it",
        ("tokens", "at once", "flushes a token", "CPU, us", "the model says", "measured / model"),
        [
            (
                str(run.tokens),
                run.at_once,
                run.flushes / run.tokens,
                run.each.cpu_us,
                run.predicted_cpu_us,
                run.each.cpu_us / run.predicted_cpu_us,
            )
            for run in worked.runs
        ],
    )
    at_rest = ", ".join(f"{name} {rate:.1f}" for name, rate in sorted(worked.at_rest_commands.items()))
    told = f"connections: {worked.worker_connections} of a worker, {worked.producer_connections} of a producer"
    output.line(told)
    output.line(f"at rest, each second: {at_rest}")


def show_sweeps(found: Sequence[Swept]) -> None:
    """What sweeps cost."""
    _table(
        "One sweep",
        ("waiting", "running", "generators", "CPU, us", "commands", "CPU when it looks, us", "commands when it looks"),
        [
            (
                f"{each.waiting:,}",
                each.running,
                each.generators,
                each.each.cpu_us,
                each.each.commands,
                each.look.cpu_us,
                each.look.commands,
            )
            for each in found
        ],
    )


CHANGES: Sequence[tuple[str, dict[str, Any]]] = (
    ("as it comes", {}),
    ("log_ttl_s 300, result_ttl_s 3600", {"log_ttl_s": 300.0, "result_ttl_s": 3600.0}),
    ("and flush_gap_s 0.1", {"flush_gap_s": 0.1}),
    ("and flush_gap_s 0.25", {"flush_gap_s": 0.25}),
)


def changed(fleet: Fleet) -> list[tuple[str, Fleet]]:
    """The fleet as it is, and with one change after the other."""
    found = []
    for words, change in CHANGES:
        fleet = replace(fleet, **change)
        found.append((words, fleet))
    return found


def show_fleet(costs: Costs, fleet: Fleet, limits: Limits, hosts: Sequence[int]) -> None:
    """What one Redis has to do, what gives out first, and what changes that."""
    rows: list[tuple[str | float, ...]] = []
    for number in hosts:
        asked = load(costs, replace(fleet, hosts=number))
        shares = asked.shares(limits)
        over = sorted(((name, share) for name, share in shares.items() if share > 1), key=lambda each: -each[1])
        heaviest = sorted(asked.cpu_of, key=lambda name: -asked.cpu_of[name])[:3]
        rows.append(
            (
                f"{number:,}",
                replace(fleet, hosts=number).generations_per_s,
                asked.commands_per_s,
                f"{asked.cpu:.0%}",
                asked.in_bytes_per_s / 1e6,
                asked.out_bytes_per_s / 1e6,
                asked.memory_bytes / 1e9,
                asked.connections,
                ", ".join(f"{name} {share:.0%}" for name, share in over),
                ", ".join(f"{name} {asked.cpu_of[name] / asked.cpu:.0%}" for name in heaviest),
            )
        )
    told = f"{fleet.streams} streams of {fleet.tokens_per_s:g} tokens/s a host, {fleet.tokens} tokens a generation"
    asked_for = ("hosts", "generations/s", "commands/s", "one thread", "MB/s in", "MB/s out", "GB", "connections")
    _table(f"One Redis, {told}", (*asked_for, "over", "of the CPU"), rows)
    helped: list[tuple[str | float, ...]] = []
    for words, other in changed(fleet):
        broken = breaks_at(costs, other, limits)
        first, at = next(iter(broken.items()), ("nothing", max(hosts) + 1))
        redises = (math.ceil(number / max(1, at - 1)) for number in hosts)
        each = (broken.get(name, "") for name in ("memory", "CPU", "connections", "network"))
        helped.append((words, first, *each, *redises))
    headings = ("", "breaks first", "memory", "CPU", "connections", "network")
    _table(
        "At how many hosts one Redis has too much of what, and how many Redises each fleet needs",
        (*headings, *(f"{number:,} hosts" for number in hosts)),
        helped,
    )


def show_check(driven: Sequence[Driven]) -> None:
    """The model beside a real Redis."""
    _table(
        "Synthetic workers at one real Redis",
        (
            "workers",
            "tokens/s",
            "flushes/s",
            "expected",
            "flush p50, ms",
            "p95",
            "Redis",
            "the model says",
            "measured / model",
            "drivers",
            "flushes/s of a core",
            "gave out",
        ),
        [
            (
                str(each.workers),
                each.tokens_per_s,
                each.flushes_per_s,
                each.expected_per_s,
                *each.flush_ms,
                f"{each.redis_cpu:.0%}",
                f"{each.predicted_cpu:.0%}",
                each.ratio,
                f"{each.drivers_cpu:.0%}",
                each.flushes_of_a_core,
                each.gave_out or "",
            )
            for each in driven
        ],
    )
