"""How long things took in a chaos run, what counts apart, and whose fault it is that tokens are thrown away."""

from dataclasses import replace

import pytest

from genqueue.registry.lifecycle import State
from genqueue.wire.events import Cancelled
from genqueue_lab.chaos.delays import cancel_delay, recoveries, taken_from_the_living, takeovers, thrown_away
from genqueue_lab.chaos.trace import Outages, Span

from ...support.chaos_history import (
    NOTHING,
    ONE,
    ORDER,
    RESTARTED,
    TAKEN_OVER,
    TWO,
    WHOLE,
    call,
    chunk,
    silent_for,
    started,
    trace_of,
)

QUIET = replace(ORDER, stream=False)
CANCELLED = trace_of(
    *(started(1.0), chunk(1.1, 0, 10), (2.0, Cancelled, 1, {})),
    state=State.CANCELLED,
    finish_reason="cancelled",
    cancel_s=1.9,
)


def test_what_a_living_worker_lost_is_counted():
    calls = [call(1.0, 5.5, 10), call(5.0, 6.0, 10, TWO)]
    assert taken_from_the_living(trace_of(*TAKEN_OVER), calls, NOTHING) == 1
    assert taken_from_the_living(trace_of(*TAKEN_OVER), calls, Outages(frozen={ONE: [Span(2.0, 5.4)]})) == 0
    assert taken_from_the_living(trace_of(*WHOLE), [call(1.0, 2.1)], NOTHING) == 0


@pytest.mark.parametrize(
    ("outages", "sudden_s", "planned_s", "apart"),
    [
        pytest.param(Outages(killed_s={ONE: 2.0}), [3.0], [], 0, id="killed"),
        pytest.param(Outages(frozen={ONE: [Span(1.5, 9.0)]}), [3.5], [], 0, id="frozen"),
        pytest.param(Outages(leaving_s={ONE: 1.2}), [], [3.3], 0, id="drained"),
        pytest.param(Outages(killed_s={ONE: 2.0}, leases_s={ONE: 4.5}), [1.5], [], 0, id="a longer lease is taken off"),
        pytest.param(Outages(killed_s={ONE: 2.0}, redis=[Span(3.0, 4.0)]), [], [], 1, id="redis was away"),
        pytest.param(Outages(killed_s={ONE: 2.0}, slow=[Span(3.0, 4.0)]), [], [], 1, id="its clock was set"),
        pytest.param(
            Outages(killed_s={ONE: 2.0}, leases_s={TWO: 4.5}, redis=[Span(-3.0, -2.3)]),
            *([], [], 1),
            id="a lease of the other ago redis was away",
        ),
        pytest.param(Outages(killed_s={ONE: 2.0}, redis=[Span(-3.0, -2.3)]), [3.0], [], 0, id="an outage before"),
        pytest.param(
            Outages(leaving_s={ONE: 1.2}, redis=[Span(-0.5, 0.0)]), [], [3.3], 0, id="a drain needs no lease to end"
        ),
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
    delays = cancel_delay(CANCELLED, [call(1.0, 1.95)], outages)
    assert delays.seconds == pytest.approx(seconds)
    assert delays.apart == apart
    assert cancel_delay(CANCELLED, [call(1.0, 1.5)], outages).seconds == []  # nothing was open


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
