"""What a chaos run calls lost, doubled, at fault, late and run twice, case by case."""

from dataclasses import replace

import pytest

from genqueue.lifecycle import State
from genqueue.messages import Cancelled, Chunk, Failed, Finished, Reset, Resumed, Started
from genqueue_ops.chaos_plan import Order
from genqueue_ops.chaos_verdict import (
    LATE_S,
    Call,
    Outages,
    Span,
    Trace,
    attempt_of,
    cancel_delay,
    differences,
    judge,
    recoveries,
    taken_from_the_living,
    takeovers,
    thrown_away,
)

ORDER = Order(
    number=1,
    seed=1,
    at_s=0.0,
    generator="left",
    tokens=20,
    itl_s=0.1,
    ends="length",
    again="continue",
    stream=True,
    split_characters=False,
    cancel_after_s=None,
    deadline_s=None,
    aways=(),
)
PIECES = ORDER.pieces
ONE, TWO = 11, 22  # process ids


def token(text):
    return (5, text, -0.5, False)


def trace_of(*bodies, order=ORDER, tokens=20, text=None, **changes):
    """A trace whose reader saw events at the given seconds: (at_s, kind of event, attempt, fields)."""
    log, times_s = [], []
    for seq, (at_s, kind, attempt, fields) in enumerate(bodies, 1):
        log.append(kind(seq=seq, attempt=attempt, **fields))
        times_s.append(at_s)
    known = {
        "generation_id": "id",
        "state": State.FINISHED,
        "ended_s": times_s[-1],
        "completion_tokens": tokens,
        "text": order.text if text is None else text,
        "finish_reason": order.ends,
    }
    return Trace(order, seen=list(zip(times_s, log, strict=True)), log=log, **known | changes)


def started(at_s, attempt=1, pid=ONE):
    return (at_s, Started, attempt, {"at": at_s, "worker": f"host:{pid}:abc"})


def chunk(at_s, first, last, attempt=1, text=None):
    """The tokens ``first`` to ``last - 1``."""
    pieces = PIECES[first:last]
    fields = {"text": "".join(pieces) if text is None else text, "tokens": [token(piece) for piece in pieces]}
    return (at_s, Chunk, attempt, fields)


def finished(at_s, attempt=1, tokens=20):
    return (at_s, Finished, attempt, {"finish_reason": "length", "completion_tokens": tokens})


def call(began_s, closed_s, tokens=20, pid=ONE, **fields):
    return Call(pid, began_s, closed_s, tokens, **fields)


NOTHING = Outages()
WHOLE = (started(1.0), chunk(1.1, 0, 10), chunk(2.0, 10, 20), finished(2.1))
TAKEN_OVER = (
    *(started(1.0), chunk(1.1, 0, 10), started(5.0, 2, TWO), (5.0, Resumed, 2, {})),
    *(chunk(5.1, 10, 20, 2), finished(6.0, 2)),
)


def test_what_nothing_befell_is_clean():
    assert judge(trace_of(*WHOLE), [call(1.0, 2.1)], NOTHING).is_clean


def test_what_a_living_worker_lost_is_counted():
    calls = [call(1.0, 5.5, 10), call(5.0, 6.0, 10, TWO)]
    assert taken_from_the_living(trace_of(*TAKEN_OVER), calls, NOTHING) == 1
    assert taken_from_the_living(trace_of(*TAKEN_OVER), calls, Outages(frozen={ONE: [Span(2.0, 5.4)]})) == 0
    assert taken_from_the_living(trace_of(*WHOLE), [call(1.0, 2.1)], NOTHING) == 0


def test_what_was_taken_over_is_clean():
    calls = [call(1.0, 2.0, 10), call(5.0, 6.0, 10, TWO)]
    assert judge(trace_of(*TAKEN_OVER), calls, NOTHING).is_clean


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        pytest.param("one two three", (0, 0), id="equal"),
        pytest.param("one three", (4, 0), id="lost"),
        pytest.param("one two two three", (0, 4), id="doubled"),
        pytest.param("one tXo three", (1, 1), id="wrong"),
        pytest.param("", (13, 0), id="nothing"),
    ],
)
def test_characters_are_counted_by_where_they_differ(got, expected):
    assert differences("one two three", got) == expected


def test_a_reader_that_misses_a_chunk_has_lost_its_characters():
    found = judge(trace_of(started(1.0), chunk(1.1, 0, 10), chunk(2.0, 12, 20), finished(2.1)), [], NOTHING)
    assert found.lost == len("".join(PIECES[10:12])) and found.doubled == 0


def test_a_reader_that_gets_a_chunk_twice_has_doubled_characters():
    found = judge(trace_of(*WHOLE[:2], chunk(1.2, 8, 10), *WHOLE[2:]), [], NOTHING)
    assert found.doubled == len("".join(PIECES[8:10])) and found.lost == 0


def test_a_result_that_lacks_what_readers_had_has_lost_it():
    assert judge(trace_of(*WHOLE, text=ORDER.text[:-3]), [], NOTHING).lost == 3


def test_reset_forgets_what_came_before():
    anew = (started(5.0, 2, TWO), (5.0, Reset, 2, {}), chunk(5.1, 0, 20, 2), finished(6.0, 2))
    assert judge(trace_of(*WHOLE[:2], *anew), [], NOTHING).is_clean


CANCELLED = {"state": State.CANCELLED, "finish_reason": "cancelled"}


def cancelled(text, **changes):
    bodies = (started(1.0), chunk(1.1, 0, 10), (2.0, Cancelled, 1, {}))
    return trace_of(*bodies, text=text, **CANCELLED | {"tokens": 10, "cancel_s": 1.9} | changes)


def test_of_what_was_cancelled_the_beginning_is_kept():
    assert judge(cancelled("".join(PIECES[:10])), [], NOTHING).is_clean
    assert judge(cancelled("".join(PIECES[1:11])), [], NOTHING).lost > 0


EXPIRED = {"state": State.FAILED, "finish_reason": "expired", "text": "", "tokens": 0}
GONE = (9.0, Failed, 0, {"error": "expired", "message": "the deadline passed"})
QUIET = replace(ORDER, stream=False)


@pytest.mark.parametrize(
    ("trace", "fault"),
    [
        pytest.param(trace_of(*WHOLE[:3]), "0 ends in its log", id="no end"),
        pytest.param(trace_of(*WHOLE, finished(2.2)), "2 ends in its log", id="two ends"),
        pytest.param(trace_of(*WHOLE, state=State.CANCELLED), "the registry says cancelled", id="another end"),
        pytest.param(trace_of(*WHOLE, finish_reason="eos_token"), "nobody asked for", id="another reason"),
        pytest.param(trace_of(GONE, **EXPIRED), "nobody asked for", id="expired without a deadline"),
        pytest.param(
            trace_of(GONE, order=replace(ORDER, deadline_s=20.0), **EXPIRED), "nobody asked for", id="expired too early"
        ),
        pytest.param(cancelled("".join(PIECES[:10]), cancel_s=None), "nobody asked for", id="cancelled by nobody"),
        pytest.param(cancelled("".join(PIECES[:10]), cancel_said=False), "cancel() said False", id="cancel said no"),
        pytest.param(trace_of(*WHOLE, tokens=21), "usage says 21", id="a token too many"),
        pytest.param(trace_of(*WHOLE[:3], finished(2.1, tokens=19)), "its end {19}", id="the end counts otherwise"),
        pytest.param(cancelled("".join(PIECES[:10]), tokens=11), "usage says 11", id="partial usage"),
        pytest.param(trace_of(*WHOLE, error="no end within the run's time"), "no end within", id="told an error"),
        pytest.param(trace_of(*TAKEN_OVER[:3], chunk(5.1, 10, 20, 1), finished(6.0, 2)), "behind a later", id="fence"),
    ],
)
def test_what_is_a_fault(trace, fault):
    assert any(fault in said for said in judge(trace, [], NOTHING).faults)


def test_an_event_that_came_twice_or_not_at_all_is_a_fault():
    for changed in (lambda seen: [*seen[:2], *seen[1:]], lambda seen: [*seen[:1], *seen[2:]]):
        trace = trace_of(*WHOLE)
        trace.seen = changed(trace.seen)
        assert any("numbered" in said for said in judge(trace, [], NOTHING).faults)
        assert any("disagree" in said for said in judge(trace, [], NOTHING).faults)


def silent_for(gap_s, attempt=1, order=ORDER):
    after_s = 1.1 + gap_s
    rest = (started(after_s, 2, TWO),) if attempt == 2 else ()
    return trace_of(
        started(1.0), chunk(1.1, 0, 10), *rest, chunk(after_s, 10, 20, attempt), finished(after_s, attempt), order=order
    )


@pytest.mark.parametrize(
    ("trace", "outages", "late_s"),
    [
        pytest.param(silent_for(LATE_S), NOTHING, 0.0, id="in time"),
        pytest.param(silent_for(LATE_S + 5.1), NOTHING, 5.0, id="late"),
        pytest.param(silent_for(LATE_S + 5.1), Outages(redis=[Span(2.0, 7.1)]), 0.0, id="redis down"),
        pytest.param(silent_for(LATE_S + 5.1), Outages(redis=[Span(0.0, 3.1)]), 3.0, id="redis down for a part"),
        pytest.param(
            silent_for(LATE_S + 5.1, attempt=2),
            Outages(endpoints={"left": [Span(2.0, 4.0)]}),
            3.0,
            id="server down",
        ),
        pytest.param(silent_for(LATE_S + 5.1), Outages(endpoints={"right": [Span(2.0, 6.0)]}), 5.0, id="not its own"),
        pytest.param(
            silent_for(LATE_S + 5.1),
            Outages(redis=[Span(2.0, 4.0)], endpoints={"left": [Span(3.0, 5.0)]}),
            2.0,
            id="the same time counts once",
        ),
        pytest.param(silent_for(LATE_S + 5.1, order=QUIET), NOTHING, 3.1, id="one that shows nothing needs its time"),
    ],
)
def test_what_is_late(trace, outages, late_s):
    if trace.order.stream is False:
        trace.submitted_s = trace.seen[0][0]
    found = judge(trace, [], outages)
    assert found.silent_s == pytest.approx(LATE_S + late_s, abs=0.11)
    assert found.is_late == (late_s > 0)


def test_a_reader_that_was_away_itself_is_not_late():
    trace = silent_for(LATE_S + 5.1)
    trace.away = [Span(2.0, 8.0)]
    assert not judge(trace, [], NOTHING).is_late


FIRST, SECOND = call(1.0, 9.0, 80), call(5.0, 6.0, 10, TWO)


@pytest.mark.parametrize(
    ("calls", "outages", "twice_s"),
    [
        pytest.param([call(1.0, 5.9), SECOND], NOTHING, 0.0, id="closed within a second"),
        pytest.param([FIRST, SECOND], NOTHING, 3.0, id="went on beside another"),
        pytest.param([FIRST, SECOND], Outages(frozen={ONE: [Span(2.0, 8.5)]}), 0.0, id="its worker slept"),
        pytest.param([FIRST, SECOND], Outages(frozen={TWO: [Span(2.0, 8.5)]}), 3.0, id="another worker slept"),
        pytest.param([FIRST, SECOND], Outages(redis=[Span(4.0, 8.0)]), 0.0, id="nobody could tell it"),
        pytest.param([call(1.0, 2.0), call(5.0, 9.0, 10, TWO)], NOTHING, 2.0, id="went on behind the end"),
        pytest.param([call(1.0, 2.0), call(1.5, 2.0), SECOND], NOTHING, 0.001, id="twice in one attempt"),
        pytest.param([call(1.0, 2.0, pid=33), SECOND], NOTHING, 1.0, id="nobody's attempt"),
    ],
)
def test_what_is_run_twice(calls, outages, twice_s):
    assert judge(trace_of(*TAKEN_OVER), calls, outages).twice_s == pytest.approx(twice_s)


def test_a_call_belongs_to_its_workers_newest_attempt():
    trace = trace_of(started(1.0), started(3.0, 2, TWO), started(5.0, 3, ONE), finished(6.0, 3))
    owners = [attempt_of(trace, one) for one in (call(1.1, 2.0), call(3.1, 4.0, pid=TWO), call(5.1, 6.0))]
    assert owners == [1, 2, 3]
    assert attempt_of(trace, call(0.5, 6.0)) is None


@pytest.mark.parametrize(
    ("outages", "sudden_s", "planned_s", "apart"),
    [
        pytest.param(Outages(killed_s={ONE: 2.0}), [3.0], [], 0, id="killed"),
        pytest.param(Outages(frozen={ONE: [Span(1.5, 9.0)]}), [3.5], [], 0, id="frozen"),
        pytest.param(Outages(leaving_s={ONE: 1.2}), [], [3.3], 0, id="drained"),
        pytest.param(Outages(killed_s={ONE: 2.0}, redis=[Span(3.0, 4.0)]), [], [], 1, id="redis was down"),
        pytest.param(Outages(killed_s={ONE: 4.0}), [], [], 0, id="killed when it had no call"),
        pytest.param(Outages(killed_s={TWO: 5.5}), [], [], 0, id="nobody had to go on"),
    ],
)
def test_how_long_a_takeover_takes(outages, sudden_s, planned_s, apart):
    calls = [call(1.0, 2.0, 10), call(5.0, 6.0, 10, TWO)]
    sudden, planned = takeovers(trace_of(*TAKEN_OVER), calls, outages, drain_s=0.5)
    assert sudden.seconds == pytest.approx(sudden_s)
    assert planned.seconds == pytest.approx(planned_s)
    assert sudden.apart + planned.apart == apart


@pytest.mark.parametrize(
    ("trace", "redis", "seconds", "apart"),
    [
        pytest.param(silent_for(6.0), Span(1.5, 5.1), [2.0], 0, id="the next text"),
        pytest.param(silent_for(6.0, attempt=2), Span(1.5, 5.1), [], 1, id="another attempt's"),
        pytest.param(silent_for(6.0), Span(3.0, 5.1), [], 0, id="silent before"),
        pytest.param(silent_for(6.0), Span(1.5, 9.0), [], 0, id="ended before"),
    ],
)
def test_how_long_it_takes_after_redis_came_back(trace, redis, seconds, apart):
    delays = recoveries(trace, Outages(redis=[redis]))
    assert delays.seconds == pytest.approx(seconds)
    assert delays.apart == apart


@pytest.mark.parametrize(
    ("outages", "seconds", "apart"),
    [
        pytest.param(NOTHING, [0.05], 0, id="usual"),
        pytest.param(Outages(redis=[Span(0.5, 1.0)]), [], 1, id="just after an outage"),
        pytest.param(Outages(readers_cut_s=[1.0]), [], 1, id="subscriptions cut"),
        pytest.param(Outages(frozen={ONE: [Span(1.5, 9.0)]}), [], 1, id="its worker slept"),
        pytest.param(Outages(frozen={TWO: [Span(1.5, 9.0)]}), [0.05], 0, id="another slept"),
    ],
)
def test_how_long_a_cancel_takes(outages, seconds, apart):
    delays = cancel_delay(cancelled(""), [call(1.0, 1.95)], outages)
    assert delays.seconds == pytest.approx(seconds)
    assert delays.apart == apart
    assert cancel_delay(cancelled(""), [call(1.0, 1.5)], outages).seconds == []  # nothing was open


RESTARTED = (
    *(started(1.0), chunk(1.1, 0, 10), started(5.0, 2, TWO), (5.0, Reset, 2, {})),
    *(chunk(5.1, 0, 20, 2), finished(6.0, 2)),
)


@pytest.mark.parametrize(
    ("trace", "first_tokens", "outages", "wasted"),
    [
        pytest.param(trace_of(*TAKEN_OVER), 10, NOTHING, {}, id="nothing"),
        pytest.param(
            trace_of(*TAKEN_OVER), 12, Outages(killed_s={ONE: 2.0}), {"worker killed": 2}, id="not flushed when killed"
        ),
        pytest.param(
            trace_of(*TAKEN_OVER),
            70,
            Outages(frozen={ONE: [Span(1.5, 1.9)]}),
            {"worker frozen": 60},
            id="made for one that slept",
        ),
        pytest.param(trace_of(*TAKEN_OVER), 11, Outages(leaving_s={ONE: 1.5}), {"handed over": 1}, id="drained"),
        pytest.param(trace_of(*TAKEN_OVER), 11, Outages(killed_s={ONE: 9.0}), {"otherwise": 1}, id="killed much later"),
        pytest.param(trace_of(*RESTARTED), 12, Outages(killed_s={ONE: 2.0}), {"begun anew": 12}, id="all of it"),
        pytest.param(trace_of(*TAKEN_OVER, order=QUIET), 13, NOTHING, {"not published": 3}, id="cannot be told"),
    ],
)
def test_whose_fault_it_is_that_tokens_are_thrown_away(trace, first_tokens, outages, wasted):
    second_tokens = 20 if trace.log[3].type == "reset" else 10
    calls = [call(1.0, 2.0, first_tokens), call(5.0, 6.0, second_tokens, TWO)]
    assert dict(thrown_away(trace, calls, outages, drain_s=0.5)) == wasted
