"""What fails the benchmark: a ratio past its limit, and any stream that is not as it must be."""

import pytest

from genqueue_lab.bench.client import Caller, Load
from genqueue_lab.bench.verdict import (
    ITSELF,
    MEASURES,
    STANDIN,
    STANDIN_US,
    Measure,
    Part,
    line,
    lines,
    ratios,
    warnings,
)
from genqueue_lab.bench.wire import token_text

EVERY = [measure for measures in MEASURES.values() for measure in measures] + [STANDIN]
LIMITED = Measure("wall", "wall_s", "direct", "wall_s", 1.5)
FLOOR = Measure("rate", "streams_per_s", "direct", "streams_per_s", 0.5, at_least=True)


def samples(queue, direct, figure="wall_s", before=()):
    found = {"queue": [{figure: value} for value in queue], "direct": [{figure: value} for value in direct]}
    return found | ({"before": [{figure: value} for value in before]} if before else {})


def at_their_limits():
    """Samples of every part in which each ratio is within 1 % of the limit, on the right side, or 1."""
    found = {}
    for part, measures in MEASURES.items():
        figures = {name for measure in [*measures, STANDIN] for name in (measure.figure, measure.control_figure)}
        control = dict.fromkeys(figures, 10.0) | {"standin_us": 1.0, "streams": 10.0}
        queue = dict(control)
        for figure, kept in sorted(((each.figure, just_kept(each)) for each in measures), reverse=True):
            queue[figure] = kept * 10.0  # of two limits of one figure the lower one
        found[part] = {"queue": [queue], "direct": [control], "raw": [control]}
    return found


def just_kept(measure):
    if measure.limit is None:
        return 1.0
    return measure.limit * (1.01 if measure.at_least else 0.99)


@pytest.mark.parametrize("measure", EVERY, ids=lambda measure: measure.name)
def test_every_limit_is_of_a_ratio_to_a_control_of_the_same_run(measure):
    assert measure.control in {"direct", "raw", ITSELF}
    assert (measure.control, measure.figure) != (ITSELF, measure.control_figure)
    units = [figure.rpartition("_")[2] for figure in (measure.figure, measure.control_figure)]
    assert units[0] == units[1] or not {"s", "ms", "us", "mb", "kb"} & set(units)


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
@pytest.mark.parametrize(
    ("queue_s", "is_kept"), [pytest.param(1.4, True, id="kept"), pytest.param(1.6, False, id="missed")]
)
def test_a_machine_of_any_speed_has_the_same_verdict(factor, queue_s, is_kept):
    found = line(Part.STREAMS, LIMITED, samples([queue_s * factor] * 3, [factor] * 3))
    assert found.is_kept is is_kept


@pytest.mark.parametrize(
    ("measure", "queue", "direct", "is_kept"),
    [
        pytest.param(LIMITED, [1.5], [1.0], True, id="at its limit"),
        pytest.param(LIMITED, [1.51], [1.0], False, id="past its limit"),
        pytest.param(LIMITED, [1.0, 9.0, 1.2], [1.0, 1.0, 1.0], True, id="one bad round of three"),
        pytest.param(LIMITED, [1.0, 9.0, 9.0], [1.0, 1.0, 1.0], False, id="two bad rounds of three"),
        pytest.param(LIMITED, [3.0, 1.0, 1.0], [3.0, 1.0, 1.0], True, id="a round in which all were slow"),
        pytest.param(LIMITED, [1.0], [0.0], False, id="a control of nothing"),
        pytest.param(FLOOR, [0.5], [1.0], True, id="at its floor"),
        pytest.param(FLOOR, [0.4], [1.0], False, id="below its floor"),
        pytest.param(FLOOR, [9.0], [1.0], True, id="far above its floor"),
    ],
)
def test_the_median_of_the_rounds_ratios_is_held(measure, queue, direct, is_kept):
    assert line(Part.STREAMS, measure, samples(queue, direct, measure.figure)).is_kept is is_kept


def test_rounds_are_compared_with_their_own_control():
    assert ratios([1.0, 4.0], [2.0, 4.0]) == [0.5, 1.0]


def test_another_checkout_stands_beside():
    found = line(Part.STREAMS, LIMITED, samples([2.0, 2.0, 2.0], [2.0] * 3, before=[1.0, 2.0, 4.0]))
    assert (found.before, found.to_before) == (2.0, 1.0)
    assert line(Part.STREAMS, LIMITED, samples([2.0], [2.0])).before is None


def test_a_table_whose_limits_are_kept_passes():
    assert [each.name for each in lines(at_their_limits(), 0) if not each.is_kept] == []


def test_one_stream_at_fault_is_too_many():
    assert [each.name for each in lines(at_their_limits(), 1) if not each.is_kept] == [
        "streams at fault, direct and raw too"
    ]


def test_submits_alone_read_no_stream():
    rates = {"streams": 0.0, "bare_per_s": 9.0, "sync_per_s": 9.0, "at_once_per_s": 9.0}
    assert all(each.is_kept for each in lines({Part.ENQUEUE: {"queue": [rates]}}, 0))


@pytest.mark.parametrize(("standin_us", "count"), [(STANDIN_US - 0.1, 0), (STANDIN_US + 0.1, 1)])
def test_a_standin_that_took_part_itself_is_said(standin_us, count):
    raw = {"standin_us": standin_us, "client_us": 40.0, "streams": 1.0}
    assert len(warnings([line(Part.STREAMS, STANDIN, {"raw": [raw]}, "raw")])) == count


class Told:
    """A way that yields what it was told, and whose result is what it was told."""

    def __init__(self, pieces, result=None):
        self._pieces = pieces
        self._result = result

    async def read(self, prompt, load, into):
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            into.take(piece)
        if self._result is not None:

            async def compare(text, tokens):
                return None if text == self._result else "the result is not what was streamed"

            into.result = compare

    async def close(self):
        pass


ONE, TWO = token_text(0, 1), token_text(1, 2)


@pytest.mark.parametrize(
    ("way", "faults"),
    [
        pytest.param(Told([ONE, TWO]), [], id="two pieces"),
        pytest.param(Told([ONE + TWO], ONE + TWO), [], id="one piece, and its result"),
        pytest.param(Told([ONE]), ["1 tokens of 2"], id="a token is missing"),
        pytest.param(Told([ONE, ONE, TWO]), ["token 0 where token 1 of 2 belongs"], id="a token is repeated"),
        pytest.param(Told([ONE, " wrong"]), ["' wrong' after token 0 of 2"], id="a wrong text"),
        pytest.param(Told([]), ["0 tokens of 2"], id="nothing"),
        pytest.param(Told([ONE, TWO], ONE + ONE + TWO), ["the result is not what was streamed"], id="another result"),
        pytest.param(Told([ONE, OSError("gone")]), ["'<OSError: gone>' after token 0 of 2"], id="an error"),
    ],
)
async def test_a_caller_reports_each_stream_that_is_not_as_it_must_be(way, faults):
    caller = Caller(way)
    await caller.run(Load("at-once", 3, 2))
    report = await caller.report()
    assert report.faults == faults * 3
    assert (report.streams, report.tokens) == (3, 6)


async def test_a_report_is_of_what_came_since_the_last_one():
    caller = Caller(Told([ONE]))
    await caller.run(Load("at-once", 3, 2))
    await caller.report()
    await caller.run(Load("turns", 4, 1, callers=2))
    report = await caller.report()
    assert (report.streams, report.faults) == (4, [])
