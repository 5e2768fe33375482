"""The benchmark's limits: each figure as a ratio to a control of the same run.

Pure.  A machine that is twice as fast, or shared with others, moves a figure and its control alike, so
no limit is a time.  A ratio is taken within each round, and the median of the rounds is held;
one stream that is not as it must be fails the run.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

ITSELF = "itself"
"""A measure whose control is another figure of the same contestant."""

Samples = Mapping[str, Sequence[Mapping[str, float]]]
"""For each contestant what it took, round by round."""


class Part(StrEnum):
    """A part that can be measured by itself."""

    STREAMS = "streams"
    CHATS = "chats"
    IDLE = "idle"
    BESIDE = "beside"
    PACED = "paced"
    CEILING = "ceiling"
    ENQUEUE = "enqueue"
    MEMORY = "memory"
    THOUSAND = "thousand"


ON_DEMAND = frozenset({Part.THOUSAND})
"""Not measured unless named: it takes a worker of its own and more connections than some hosts allow."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure, its control and the limit of their ratio.

    Attributes:
        name: for people.
        figure: of a sample; its unit is the end of this name.
        control: which contestant, or ``ITSELF``.
        control_figure: of a sample of the control.
        limit: that the ratio must not pass; None for a figure that is only shown.
        at_least: the ratio must not be below the limit, but may be above.
    """

    name: str
    figure: str
    control: str
    control_figure: str
    limit: float | None
    at_least: bool = False


def _first_text(p50: float | None, p95: float | None, control: str = "direct") -> tuple[Measure, Measure]:
    """The time to a first text beyond the endpoint's own 50 ms."""
    return (
        Measure("first text after the endpoint's 50 ms, p50", "ttft_p50_ms", control, "ttft_p50_ms", p50),
        Measure("first text after the endpoint's 50 ms, p95", "ttft_p95_ms", control, "ttft_p95_ms", p95),
    )


def _of_streams(wall: float, first_p50: float, first_p95: float, worker: float) -> tuple[Measure, ...]:
    """The measures of 200 streams at once, with their limits."""
    return (
        Measure("wall / direct", "wall_s", "direct", "wall_s", wall),
        Measure("wall / raw", "wall_s", "raw", "wall_s", 1.8),
        *_first_text(first_p50, first_p95),
        Measure("chunk, endpoint to reader, p50", "chunk_p50_ms", "direct", "chunk_p50_ms", None),
        Measure("chunk, endpoint to reader, p95", "chunk_p95_ms", "direct", "chunk_p95_ms", None),
        Measure("worker's CPU a token / direct client's", "worker_us", "direct", "client_us", worker),
        Measure("reader's CPU a token / raw client's", "client_us", "raw", "client_us", 1.2),
        Measure("Redis's CPU a token / direct client's", "redis_us", "direct", "client_us", 0.22),
        Measure("Redis round trips a token", "trips", ITSELF, "tokens", 0.15),
        Measure("stand-in's CPU a token, queued / raw client's", "standin_us", "raw", "client_us", 0.6),
    )


MEASURES: Mapping[Part, Sequence[Measure]] = {
    Part.STREAMS: _of_streams(wall=1.3, first_p50=8.0, first_p95=8.0, worker=1.05),
    Part.CHATS: _of_streams(wall=1.4, first_p50=8.0, first_p95=8.0, worker=1.05),
    Part.IDLE: _first_text(4.5, 5.0),
    Part.BESIDE: _first_text(100.0, 250.0),
    Part.PACED: (
        *_first_text(4.0, 6.0),
        Measure("chunk, endpoint to reader, p50", "chunk_p50_ms", "direct", "chunk_p50_ms", 25.0),
        Measure("chunk, endpoint to reader, p95", "chunk_p95_ms", "direct", "chunk_p95_ms", 20.0),
        Measure("worker's CPU a token / direct client's", "worker_us", "direct", "client_us", 1.3),
    ),
    Part.CEILING: (
        Measure("generations a second / direct", "streams_per_s", "direct", "streams_per_s", 0.2, at_least=True),
    ),
    Part.ENQUEUE: (
        Measure("submits a second, sync / bare redis-py", "sync_per_s", ITSELF, "bare_per_s", 0.25, at_least=True),
        Measure("submits a second, 500 at once / bare", "at_once_per_s", ITSELF, "bare_per_s", 0.3, at_least=True),
    ),
    Part.MEMORY: (
        Measure("worker after all / after a fifth", "after_mb", ITSELF, "before_mb", 1.05),
        Measure("Redis, an ended generation / its result alone", "redis_kb", ITSELF, "result_kb", 25.0),
    ),
    Part.THOUSAND: (
        Measure("wall / raw", "wall_s", "raw", "wall_s", 8.0),
        *_first_text(None, None, "raw"),
        Measure("worker's CPU a token / raw client's", "worker_us", "raw", "client_us", None),
        Measure("worker's threads / streams", "threads", ITSELF, "streams", 1.2),
    ),
}

STANDIN_US = 15.0
"""The stand-in's CPU for a token, read raw, above which the benchmark says that it took part itself."""
STANDIN = Measure("stand-in's CPU a token, read raw / raw client's", "standin_us", ITSELF, "client_us", 0.4)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        part: where it was measured.
        name: see :class:`Measure`.
        unit: of ``value`` and ``of``.
        value: the figure, the median of the rounds.
        of: the control's, likewise.
        ratio: the median of the rounds' ratios, which lie between ``lowest`` and ``highest``.
        rounds: how many.
        limit, at_least: see :class:`Measure`.
        before: the other checkout's figure; None without one.
        to_before: the median of the rounds' ratios to it.
    """

    part: str
    name: str
    unit: str
    value: float
    of: float
    ratio: float
    lowest: float
    highest: float
    rounds: int
    limit: float | None
    at_least: bool = False
    before: float | None = None
    to_before: float | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the limit holds."""
        if self.limit is None:
            return True
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def ratios(figures: Sequence[float], controls: Sequence[float]) -> list[float]:
    """Round by round the figure by its control; infinite where the control is nothing and the figure is something."""
    return [
        figure / control if control > 0 else 0.0 if figure <= 0 else float("inf")
        for figure, control in zip(figures, controls, strict=True)
    ]


def line(part: Part, measure: Measure, samples: Samples, contestant: str = "queue") -> Line:
    """One line of the table, with the other checkout beside it if ``samples`` has it as ``before``."""
    figures = [sample[measure.figure] for sample in samples[contestant]]
    controller = contestant if measure.control == ITSELF else measure.control
    controls = [sample[measure.control_figure] for sample in samples[controller]]
    by_round = ratios(figures, controls)
    before = [sample[measure.figure] for sample in samples.get("before", ())] if contestant == "queue" else []
    return Line(
        part=part,
        name=measure.name,
        unit=_unit(measure.figure),
        value=statistics.median(figures),
        of=statistics.median(controls),
        ratio=statistics.median(by_round),
        lowest=min(by_round),
        highest=max(by_round),
        rounds=len(figures),
        limit=measure.limit,
        at_least=measure.at_least,
        before=statistics.median(before) if before else None,
        to_before=statistics.median(ratios(figures, before)) if before else None,
    )


def faults_line(faults: int, streams: int) -> Line:
    """The line of streams, of all contestants, that were not as they must be; one is too many."""
    share = faults / max(1, streams)  # submits alone read none
    return Line("all", "streams at fault, direct and raw too", "", faults, streams, share, share, share, 1, 0.0)


def lines(samples: Mapping[Part, Samples], faults: int) -> list[Line]:
    """The whole table, in the order of the parts."""
    found = [line(part, measure, samples[part]) for part in Part if part in samples for measure in MEASURES[part]]
    for part in (Part.STREAMS, Part.CHATS):
        if part in samples:
            found.append(line(part, STANDIN, samples[part], "raw"))
    streams = sum(int(sample["streams"]) for part in samples.values() for rounds in part.values() for sample in rounds)
    return [*found, faults_line(faults, streams)]


def warnings(table: Sequence[Line]) -> list[str]:
    """Why the table is not to be trusted."""
    return [
        f"the stand-in took {each.value:.1f} us of a core for a token, more than {STANDIN_US:g}: it took part itself"
        for each in table
        if each.name == STANDIN.name and each.value > STANDIN_US
    ]


def _unit(figure: str) -> str:
    return {"wall_s": "s", "ms": "ms", "us": "us", "per_s": "/s", "mb": "MB", "kb": "KB"}.get(
        "per_s" if figure.endswith("per_s") else figure if figure == "wall_s" else figure.rpartition("_")[2], ""
    )
