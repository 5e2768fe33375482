"""Timestamps to the field's figures: queue wait, TTFT, inter-token gaps, TPOT.

Plain arithmetic on seconds that somebody else measured.  Durations of a generation's
phases come from Redis's clock alone; a reader's figures from its own monotonic clock.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict


class Timings(TypedDict):
    """Seconds that a generation's phases took; None where the phase was not reached.

    ``queue_wait_s``: submitted to the newest attempt's start.  ``waking_s``: from there, how
    long its server woke up (an Inference Endpoint scaled to zero).  ``first_text_s``: from
    there to the first chunk with text at the worker (the server's prefill, and its own queue).
    ``decode_s``: that chunk to the end.  ``total_s``: submitted to the end.
    """

    queue_wait_s: float | None
    waking_s: float | None
    first_text_s: float | None
    decode_s: float | None
    total_s: float | None


def timings(
    submitted_at: float,
    started_at: float | None,
    first_text_at: float | None,
    ended_at: float | None,
    waking_s: float | None = None,
) -> Timings:
    """Phases from epoch seconds of one clock; see :class:`Timings`."""
    awake_at = None if started_at is None else started_at + (waking_s or 0.0)
    return Timings(
        queue_wait_s=_span(submitted_at, started_at),
        waking_s=None if waking_s is None else round(waking_s, 6),
        first_text_s=_span(awake_at, first_text_at),
        decode_s=_span(first_text_at, ended_at),
        total_s=_span(submitted_at, ended_at),
    )


def inter_chunk_gaps_s(arrivals_s: Sequence[float]) -> list[float]:
    """Gaps between consecutive chunks with text, as one reader saw them.

    Args:
        arrivals_s: n seconds of a monotonic clock, ascending, one for each chunk with
            text; n may be 0.

    Returns:
        max(n - 1, 0) gaps in seconds.  A chunk may carry several tokens, so these are
        inter-token latencies only where each carries one.

    Raises:
        ValueError: ``arrivals_s`` goes backwards.

    Empty chunks do not count, as in NVIDIA's definition of TTFT and ITL
    (docs.nvidia.com/nim/benchmarking/llm, "Metrics").
    """
    gaps = [later - earlier for earlier, later in pairwise(arrivals_s)]
    if any(gap < 0 for gap in gaps):
        raise ValueError("arrivals go backwards: the clock is not monotonic")
    return gaps


def tpot_s(first_s: float, last_s: float, completion_tokens: int) -> float | None:
    """Time per output token: (last - first chunk) / (tokens - 1), or None below two tokens."""
    return None if completion_tokens < 2 else (last_s - first_s) / (completion_tokens - 1)


def _span(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else round(max(0.0, end_s - start_s), 6)
