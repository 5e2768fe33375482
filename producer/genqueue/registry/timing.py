"""Durations of a generation's phases, from timestamps of Redis's clock alone."""

from typing import TypedDict


class Timings(TypedDict):
    """Seconds that a generation's phases took; None where the phase was not reached.

    ``queue_wait_s``: submitted to the newest attempt's start.  ``waking_s``: from there, how
    long its endpoint woke up (an Inference Endpoint scaled to zero).  ``first_text_s``: from
    there to the first chunk with text at the worker (the endpoint's prefill, and its own queue).
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


def _span(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else round(max(0.0, end_s - start_s), 6)
