"""An overview as tables for people and as JSON for programs.

Pure.  The JSON's names, and the units in them, stay; the tables may change.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from genqueue.durations import duration
from genqueue.registry.fleet import Overview, QueueStatus, WorkerStatus
from genqueue.terminal import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType


def as_json(overview: Overview) -> dict[str, Any]:
    """One object: ``at``, ``queues``, ``workers`` and the counts of :class:`Overview`; durations in seconds."""
    return asdict(overview)


def totals(overview: Overview) -> str:
    """One line of what belongs to no queue."""
    waiting = sum(queue.waiting for queue in overview.queues)
    parts = [
        f"waiting {waiting}",
        f"running {overview.running}",
        f"delayed {overview.delayed}",
        f"dead {overview.dead}",
    ]
    overdue = overview.running_overdue + overview.delayed_overdue
    parts += [f"overdue {overdue}: no worker looks after them"] if overdue else []
    return ", ".join([*parts, f"workers {len(overview.workers)}"])


def queue_row(queue: QueueStatus) -> tuple[str, ...]:
    """Generator, waiting of limit, oldest wait, running, dead, workers."""
    limit = queue.max_queue_depth
    full = "" if limit is None else f" of {limit}" if limit >= 0 else ", no limit"
    return (
        queue.generator,
        f"{queue.waiting}{full}",
        "" if queue.oldest_wait_s is None else duration(queue.oldest_wait_s),
        "?" if queue.running is None else str(queue.running),
        "?" if queue.dead is None else str(queue.dead),
        str(queue.workers) if queue.workers else "none",
    )


def worker_rows(worker: WorkerStatus, at: float) -> list[tuple[str, ...]]:
    """Worker, said so long ago, generator, health, running, address, trouble; a row for each endpoint."""
    heard = f"{max(0.0, at - worker.announced_at):.0f} s ago"
    return [
        (
            worker.name,
            heard,
            generator,
            endpoint["health"],
            str(endpoint["running"]),
            endpoint["address"],
            endpoint["trouble"],
        )
        for generator, endpoints in worker.generators.items()
        for endpoint in endpoints
    ] or [(worker.name, heard, "", "", "", "", "")]


def as_tables(overview: Overview) -> "RenderableType":
    """A line of totals, queues and workers."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(headings: tuple[str, ...], rows: list[tuple[str, ...]], styles: list[str]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in headings:
            right = heading in {"waiting", "oldest wait", "running", "dead", "workers", "heard"}
            made.add_column(heading, justify="right" if right else "left", overflow="fold")
        for row, style in zip(rows, styles, strict=True):
            made.add_row(*(Text(one_line(cell)) for cell in row), style=style)
        return made

    queues = table(
        ("queue", "waiting", "oldest wait", "running", "dead", "workers"),
        [queue_row(queue) for queue in overview.queues],
        ["red" if queue.waiting and not queue.workers else "" for queue in overview.queues],
    )
    rows = [row for worker in overview.workers for row in worker_rows(worker, overview.at)]
    workers = table(
        ("worker", "heard", "generator", "health", "running", "address", "trouble"),
        rows,
        [{"down": "red", "refuses": "red", "rests": "yellow", "waking": "yellow"}.get(row[3], "") for row in rows],
    )
    lines = [totals(overview), *(f"cannot be read: {key!r}: {words}" for key, words in overview.unreadable.items())]
    if not overview.workers:
        lines.append("no worker has announced itself in the last 30 s")
    # First what must be seen on a screen that is too small for all of it.
    return Group(
        *(Text(one_line(line)) for line in lines), *([queues] if overview.queues else []), *([workers] if rows else [])
    )
