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


def as_json(found: Overview) -> dict[str, Any]:
    """One object: ``at``, ``queues``, ``workers`` and the counts of :class:`Overview`; durations in seconds."""
    return asdict(found)


def totals(found: Overview) -> str:
    """One line of what belongs to no queue."""
    waiting = sum(queue.waiting for queue in found.queues)
    parts = [f"waiting {waiting}", f"running {found.running}", f"delayed {found.delayed}", f"dead {found.dead}"]
    overdue = found.running_overdue + found.delayed_overdue
    parts += [f"overdue {overdue}: no worker looks after them"] if overdue else []
    return ", ".join([*parts, f"workers {len(found.workers)}"])


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
    """Worker, said so long ago, generator, health, running, address, trouble; a row for each server."""
    heard = f"{max(0.0, at - worker.announced_at):.0f} s ago"
    return [
        (worker.name, heard, generator, server["health"], str(server["running"]), server["address"], server["trouble"])
        for generator, servers in worker.generators.items()
        for server in servers
    ] or [(worker.name, heard, "", "", "", "", "")]


def as_tables(found: Overview) -> "RenderableType":
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
        [queue_row(queue) for queue in found.queues],
        ["red" if queue.waiting and not queue.workers else "" for queue in found.queues],
    )
    rows = [row for worker in found.workers for row in worker_rows(worker, found.at)]
    workers = table(
        ("worker", "heard", "generator", "health", "running", "address", "trouble"),
        rows,
        [{"down": "red", "refuses": "red", "rests": "yellow", "waking": "yellow"}.get(row[3], "") for row in rows],
    )
    lines = [totals(found), *(f"cannot be read: {key!r}: {words}" for key, words in found.unreadable.items())]
    if not found.workers:
        lines.append("no worker has announced itself in the last 30 s")
    # First what must be seen on a screen that is too small for all of it.
    return Group(
        *(Text(one_line(line)) for line in lines), *([queues] if found.queues else []), *([workers] if rows else [])
    )
