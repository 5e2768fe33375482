"""What a chaos run calls lost, doubled, at fault, late and run twice, case by case: each promise broken once."""

from collections import Counter
from dataclasses import replace

import pytest

from genqueue.registry.lifecycle import State
from genqueue.wire.events import Cancelled, Failed, Reset, Resumed
from genqueue_lab.chaos.orders import LOGIN
from genqueue_lab.chaos.trace import LATE_S, Clock, Outages, Span
from genqueue_lab.chaos.verdict import Storm, attempt_of, differences, judge, judge_storm

from ...support.chaos_history import (
    NAMES,
    NOTHING,
    ONE,
    ORDER,
    PIECES,
    RESTARTED,
    TAKEN_OVER,
    TWO,
    WHOLE,
    call,
    chunk,
    finished,
    silent_for,
    started,
    trace_of,
)


def faults_of(trace, calls=(), outages=NOTHING):
    return judge(trace, list(calls), outages).faults


def test_what_nothing_befell_is_clean():
    assert judge(trace_of(*WHOLE), [call(1.0, 2.1)], NOTHING).is_clean


def test_what_was_taken_over_is_clean():
    calls = [call(1.0, 2.0, 10), call(5.0, 6.0, 10, TWO, sent="".join(PIECES[:10]).rstrip())]
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


# -- texts ------------------------------------------------------------------------------------


def test_a_reader_that_misses_a_chunk_has_lost_its_characters():
    found = judge(trace_of(started(1.0), chunk(1.1, 0, 10), chunk(2.0, 12, 20), finished(2.1)), [], NOTHING)
    assert found.lost == len("".join(PIECES[10:12])) and found.doubled == 0


def test_a_reader_that_gets_a_chunk_twice_has_doubled_characters():
    found = judge(trace_of(*WHOLE[:2], chunk(1.2, 8, 10), *WHOLE[2:]), [], NOTHING)
    assert found.doubled == len("".join(PIECES[8:10])) and found.lost == 0


def test_a_result_that_lacks_what_readers_had_has_lost_it():
    assert judge(trace_of(*WHOLE, text=ORDER.text[:-3]), [], NOTHING).lost == 3


def test_a_result_that_is_doubled_is_so_also_where_redis_may_forget():
    trace = trace_of(*WHOLE, text=ORDER.text + ORDER.text[-9:])
    assert judge(trace, [], Outages(forgotten=[Span(1.5, 1.9)])).doubled == 9


def test_who_comes_late_is_given_what_follows_its_place():
    assert judge(trace_of(*WHOLE, late=("abc", "abc")), [], NOTHING).is_clean
    assert judge(trace_of(*WHOLE, late=("bc", "abc")), [], NOTHING).lost == 1


VARYING = replace(ORDER, again="asked", varies=True)
NAMED = Outages(names=NAMES)
FIRST_WORDS, OTHER_WORDS = VARYING.text_by("worker-1"), VARYING.text_by("worker-2")
BEGUN_ANEW = (
    *(started(1.0), chunk(1.1, 0, 1, text=FIRST_WORDS[:40]), started(5.0, 2, TWO), (5.0, Reset, 2, {})),
    *(chunk(5.1, 0, 1, 2, text=OTHER_WORDS), finished(6.0, 2)),
)


def test_reset_forgets_what_came_before():
    assert judge(trace_of(*RESTARTED), [], NOTHING).is_clean


@pytest.mark.parametrize(
    ("changes", "lost", "doubled"),
    [
        pytest.param({}, 0, 0, id="as it should"),
        pytest.param({"read": FIRST_WORDS[:40] + OTHER_WORDS, "voided": []}, 0, 40, id="parts of both joined"),
        pytest.param({"text": FIRST_WORDS}, 1, 1, id="the first one's text kept"),
        pytest.param({"read": FIRST_WORDS}, 1, 1, id="the first one's text read"),
        pytest.param({"voided": [FIRST_WORDS[1:40]]}, 1, 0, id="what was void had a hole"),
    ],
)
def test_of_two_texts_one_is_whole_and_of_the_other_the_beginning_was_shown(changes, lost, doubled):
    found = judge(trace_of(*BEGUN_ANEW, order=VARYING, **{"text": OTHER_WORDS} | changes), [], NAMED)
    assert (found.lost >= lost, found.doubled >= doubled) == (True, True)
    assert found.is_clean == (not (lost or doubled))


def test_an_error_that_says_something_else_was_delivered_is_a_fault():
    trace = trace_of(*BEGUN_ANEW, order=VARYING, text=OTHER_WORDS, contradicted=["another"])
    assert any("not what was delivered" in fault for fault in faults_of(trace, outages=NAMED))


def test_a_model_that_is_sent_what_it_never_said_is_a_fault():
    doubled = "".join(PIECES[:10]) + "".join(PIECES[5:10])
    calls = [call(1.0, 2.0, 10), call(5.0, 6.0, 10, TWO, sent=doubled)]
    assert any("never said" in fault for fault in faults_of(trace_of(*TAKEN_OVER), calls))


CANCELLED = {"state": State.CANCELLED, "finish_reason": "cancelled"}
TEN = "".join(PIECES[:10])


def cancelled(text, **changes):
    bodies = (started(1.0), chunk(1.1, 0, 10), (2.0, Cancelled, 1, {}))
    return trace_of(*bodies, text=text, **CANCELLED | {"tokens": 10, "cancel_s": 1.9} | changes)


def test_of_what_was_cancelled_the_beginning_is_kept():
    assert judge(cancelled(TEN), [], NOTHING).is_clean
    assert judge(cancelled("".join(PIECES[1:11])), [], NOTHING).lost > 0


# -- faults -----------------------------------------------------------------------------------

EXPIRED = {"state": State.FAILED, "finish_reason": "expired", "text": "", "tokens": 0}
GONE = (9.0, Failed, 0, {"error": "expired", "message": "the deadline passed"})
PATIENT = replace(ORDER, deadline_s=20.0)


@pytest.mark.parametrize(
    ("trace", "fault"),
    [
        pytest.param(trace_of(*WHOLE[:3]), "0 ends in its log", id="no end"),
        pytest.param(trace_of(*WHOLE, finished(2.2)), "2 ends in its log", id="two ends"),
        pytest.param(trace_of(*WHOLE, state=State.CANCELLED), "the registry says cancelled", id="another end"),
        pytest.param(trace_of(*WHOLE, finish_reason="eos_token"), "nobody asked for", id="another reason"),
        pytest.param(trace_of(GONE, **EXPIRED), "nobody asked for", id="expired without a deadline"),
        pytest.param(trace_of(GONE, order=PATIENT, **EXPIRED), "nobody asked for", id="expired too early"),
        pytest.param(cancelled(TEN, cancel_s=None), "nobody asked for", id="cancelled by nobody"),
        pytest.param(cancelled(TEN, cancel_said=False), "cancel() said False", id="cancel said no"),
        pytest.param(trace_of(*WHOLE, cancel_s=1.5, cancel_said=True), "cancel() said True", id="not cancelled"),
        pytest.param(trace_of(*WHOLE, tokens=21), "usage says 21", id="a token too many"),
        pytest.param(trace_of(*WHOLE[:3], finished(2.1, tokens=19)), "its end {19}", id="the end counts otherwise"),
        pytest.param(cancelled(TEN, tokens=11), "usage says 11", id="partial usage"),
        pytest.param(trace_of(*WHOLE, errors=["no end within the run's time"]), "no end within", id="told an error"),
        pytest.param(trace_of(*TAKEN_OVER[:3], chunk(5.1, 10, 20, 1), finished(6.0, 2)), "behind a later", id="fence"),
        pytest.param(trace_of(*WHOLE, gone_s=[(1.0, 3.0)]), "told that there is none", id="gone for no reason"),
        pytest.param(trace_of(*WHOLE, read=ORDER.text[:-1]), "are kept", id="reader and result disagree"),
    ],
)
def test_what_is_a_fault(trace, fault):
    assert any(fault in said for said in faults_of(trace)), faults_of(trace)


def test_what_expired_late_enough_by_either_clock_is_due():
    ended = {"read_s": 9.0, "order": replace(PATIENT, deadline_s=15.0)}
    assert faults_of(trace_of(GONE, **EXPIRED, **ended, waited_s=15.1)) == []
    assert faults_of(trace_of(GONE, **EXPIRED, **ended, submitted_s=-6.5)) == []
    assert faults_of(trace_of(GONE, **EXPIRED, **ended, waited_s=8.0)) != []


def test_a_continued_chat_may_be_counted_by_its_events_with_text():
    chat = replace(ORDER, number=2, is_chat=True, split_characters=True)
    with_text = sum(map(bool, chat.pieces))
    assert with_text < chat.tokens

    def is_fault(tokens, bodies):
        trace = trace_of(*bodies, order=chat, tokens=tokens, read=chat.text)
        return any("usage" in fault for fault in faults_of(trace))

    for tokens, is_right in ((20, True), (with_text, True), (21, False), (with_text - 1, False)):
        assert is_fault(tokens, (*TAKEN_OVER[:-1], finished(6.0, 2, tokens=tokens))) != is_right
    assert is_fault(with_text, (*WHOLE[:-1], finished(2.1, tokens=with_text)))  # its server said how many


def test_nobody_is_rejected_whatever_its_server_shows():
    ended = (2.0, Failed, 1, {"error": "rejected", "message": "a web page"})
    rejected = {"state": State.FAILED, "finish_reason": "rejected", "text": TEN, "tokens": 10}
    greeted = replace(ORDER, mishaps=({**LOGIN, "times": 1},))
    for order in (ORDER, greeted):
        trace = trace_of(*WHOLE[:2], ended, **rejected, order=order)
        assert any("(rejected), which nobody asked for" in fault for fault in faults_of(trace))


def test_an_event_that_the_log_lacks_or_has_twice_is_a_fault():
    for changed in (lambda log: [*log[:2], *log[1:]], lambda log: [*log[:1], *log[2:]]):
        trace = trace_of(*WHOLE)
        trace.log = changed(trace.log)
        assert any("numbered" in said for said in faults_of(trace))


def test_chunks_out_of_order_are_a_fault():
    trace = trace_of(*WHOLE)
    trace.seen.reverse()
    assert any("out of order" in said for said in faults_of(trace))


# -- what Redis may forget --------------------------------------------------------------------


def forgetting(began_s, ended_s):
    return Outages(forgotten=[Span(began_s, ended_s)], redis=[Span(ended_s, ended_s + 0.5)])


@pytest.mark.parametrize(
    ("trace", "span"),
    [
        pytest.param(trace_of(*WHOLE, gone_s=[(0.5, 1.0)]), (0.4, 0.8), id="a submit"),
        pytest.param(trace_of(*WHOLE, cancel_s=1.5, cancel_said=True), (1.4, 1.8), id="a cancel"),
    ],
)
def test_what_may_be_forgotten_is_no_fault_then_and_only_then(trace, span):
    assert faults_of(trace, outages=forgetting(*span)) == []
    assert faults_of(trace, outages=forgetting(8.0, 9.0)) != []


def test_what_is_gone_in_the_end_has_shown_a_right_text():
    gone = trace_of(*WHOLE, state=None, is_gone=True, gone_s=[(1.5, 9.0)], text="")
    gone.log = []
    assert judge(gone, [], forgetting(1.4, 1.8)).is_clean
    assert not judge(gone, [], NOTHING).is_clean
    gone.read = gone.read[:-1] + "?"
    assert judge(gone, [], forgetting(1.4, 1.8)).doubled == 1


def test_an_attempt_that_may_be_forgotten_may_have_made_its_call():
    calls = [call(1.0, 2.1), call(1.5, 2.0, 3, TWO)]
    assert judge(trace_of(*WHOLE), calls, forgetting(1.4, 1.8)).twice_s == 0
    assert judge(trace_of(*WHOLE), calls, forgetting(8.0, 9.0)).twice_s > 0


@pytest.mark.parametrize(
    ("changes", "is_clean"),
    [
        pytest.param({"told": "cancelled", "read": TEN}, True, id="told that it was cancelled"),
        pytest.param({"told": "cancelled", "read": TEN + "?"}, False, id="told so with a wrong text"),
        pytest.param({"told": None, "read": TEN}, False, id="not told"),
    ],
)
def test_a_reader_that_was_told_an_end_that_is_forgotten_has_a_beginning(changes, is_clean):
    trace = trace_of(*WHOLE, cancel_s=1.5, cancel_said=True, **changes)
    assert judge(trace, [], forgetting(1.4, 1.8)).is_clean == is_clean
    assert not judge(trace, [], NOTHING).is_clean


def test_a_reader_may_have_another_text_than_is_kept_only_if_an_end_may_be_forgotten():
    trace = trace_of(*BEGUN_ANEW, order=VARYING, text=OTHER_WORDS, read=FIRST_WORDS, voided=[])
    assert judge(trace, [], replace(forgetting(1.4, 1.8), names=NAMES)).is_clean
    assert not judge(trace, [], replace(forgetting(18.0, 19.0), names=NAMES)).is_clean


# -- late -------------------------------------------------------------------------------------

QUIET = replace(ORDER, stream=False)


@pytest.mark.parametrize(
    ("trace", "outages", "late_s"),
    [
        pytest.param(silent_for(LATE_S), NOTHING, 0.0, id="in time"),
        pytest.param(silent_for(LATE_S + 5.1), NOTHING, 5.0, id="late"),
        pytest.param(silent_for(LATE_S + 5.1), Outages(redis=[Span(2.0, 7.1)]), 0.0, id="redis away"),
        pytest.param(silent_for(LATE_S + 5.1), Outages(redis=[Span(0.0, 3.1)]), 3.0, id="redis away for a part"),
        pytest.param(
            silent_for(LATE_S + 5.1),
            Outages(redis=[Span(4.0, 6.0)], forgotten=[Span(2.5, 4.0)]),
            1.5,
            id="what was done before Redis went away is forgotten",
        ),
        pytest.param(
            silent_for(LATE_S + 5.1),
            Outages(redis=[Span(2.0, 4.0)], forgotten=[Span(0.0, 1.0)]),
            3.0,
            id="what is forgotten of the time before the last text is no excuse",
        ),
        pytest.param(silent_for(LATE_S + 5.1), Outages(slow=[Span(2.0, 7.1)]), 5.0, id="a slow way is no excuse"),
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
    found = judge(trace, [], outages)
    assert found.silent_s == pytest.approx(LATE_S + late_s, abs=0.11)
    assert found.is_late == (late_s > 0)


def test_a_reader_that_was_away_itself_is_not_late():
    trace = silent_for(LATE_S + 5.1)
    trace.away = [Span(2.0, 8.0)]
    assert not judge(trace, [], NOTHING).is_late


@pytest.mark.parametrize(
    ("waits", "begun_s", "ended_s", "silent_s"),
    [
        pytest.param(False, 8.0, 14.0, 12.9 - 0.1, id="a reader of chunks sees no attempt begin"),
        pytest.param(True, 8.0, 14.0, 6.9 - 2.0, id="one who waits for the whole text does"),
        pytest.param(True, 15.0, 16.0, 13.9 - 2.0, id="but is late where none began in time"),
        pytest.param(True, 8.0, 22.0, 14.0 - 2.0, id="or where it took too long"),
    ],
)
def test_a_reader_of_a_text_that_began_anew_waits_for_the_whole_of_it(waits, begun_s, ended_s, silent_s):
    trace = trace_of(started(1.0), chunk(1.1, 0, 10), started(begun_s, 2, TWO), finished(ended_s, 2))
    trace.waits_for_whole = waits
    found = judge(trace, [], NOTHING)
    assert found.silent_s == pytest.approx(silent_s)
    assert found.is_late == (silent_s > LATE_S)


LEASES_S = {ONE: 3.0, TWO: 4.0}
TWO_OUTAGES = [Span(2.0, 5.0), Span(10.0, 12.0)]
"""After the first one leases rest for 4 s, and are looked for 1.3 s later at most; the second comes after 5."""
DIES = Outages(redis=TWO_OUTAGES, killed_s={ONE: 2.5}, leases_s=LEASES_S)
HELD = [call(1.0, 2.5)]
"""What the first attempt's worker was at when it died."""


@pytest.mark.parametrize(
    ("outages", "calls", "excused_s"),
    [
        pytest.param(DIES, HELD, 10.0, id="nobody might take it before Redis went away again"),
        pytest.param(
            replace(DIES, killed_s={}, frozen={ONE: [Span(2.4, 10.1)]}), HELD, 10.0, id="its worker slept meanwhile"
        ),
        pytest.param(
            replace(DIES, redis=[Span(2.0, 5.0), Span(11.0, 12.0)], forgotten=[Span(10.2, 11.0)]),
            HELD,
            10.0,
            id="or forgot that somebody had",
        ),
        pytest.param(
            replace(DIES, redis=[Span(2.0, 5.0), Span(10.4, 12.0)]), HELD, 4.6, id="there was time to take it"
        ),
        pytest.param(
            replace(DIES, redis=[Span(3.0, 5.0), Span(10.0, 12.0)]), HELD, 4.0, id="leases did not rest so long"
        ),
        pytest.param(replace(DIES, killed_s={}), HELD, 5.0, id="its worker lived"),
        pytest.param(replace(DIES, killed_s={TWO: 2.5}), HELD, 5.0, id="another worker died"),
        pytest.param(replace(DIES, killed_s={ONE: 7.0}), [call(1.0, 7.0)], 5.0, id="its worker died later"),
        pytest.param(
            replace(DIES, killed_s={}, frozen={ONE: [Span(2.4, 9.0)]}), HELD, 5.0, id="its worker woke before"
        ),
        pytest.param(DIES, [call(1.0, 1.5)], 5.0, id="nobody held it"),
        pytest.param(replace(DIES, redis=TWO_OUTAGES[:1]), HELD, 3.0, id="Redis stayed"),
    ],
)
def test_of_a_worker_that_is_gone_nobody_takes_over_between_two_outages(outages, calls, excused_s):
    found = judge(silent_for(LATE_S + excused_s + 0.2, attempt=2), calls, outages)
    assert found.silent_s == pytest.approx(LATE_S + 0.2 - 0.1, abs=0.001)
    assert found.is_late


def test_what_was_taken_over_between_two_outages_had_the_time_for_it():
    again = (started(9.0, 2, TWO), started(18.0, 3, TWO), chunk(18.0, 10, 20, 3), finished(18.0, 3))
    found = judge(trace_of(started(1.0), chunk(1.1, 0, 10), *again), HELD, DIES)
    assert found.silent_s == pytest.approx(16.9 - 5.0 - 0.1)
    assert found.is_late


def test_one_that_never_ended_was_silent_until_its_reader_gave_up():
    assert judge(trace_of(*WHOLE[:2], state=None, read_s=40.0), [], NOTHING).is_late


# -- run twice --------------------------------------------------------------------------------

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
        pytest.param([call(1.0, 1.2, 0), call(1.3, 2.0), SECOND], NOTHING, 0.0, id="once more for one of nothing"),
        pytest.param([call(1.0, 1.2, 3), call(1.3, 2.0), SECOND], NOTHING, 0.001, id="once more for one with text"),
        pytest.param([call(1.0, 1.5, 0), call(1.3, 2.0), SECOND], NOTHING, 0.001, id="two at once"),
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


# -- clocks and storms ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp_s", "after_s", "moment_s"),
    [
        pytest.param(50.0, 0.0, 50.0, id="before it was set"),
        pytest.param(120.0, 0.0, 180.0, id="set back"),
        pytest.param(90.0, 0.0, 90.0, id="twice: the first time"),
        pytest.param(90.0, 110.0, 150.0, id="twice: the second time"),
        pytest.param(500.0, 0.0, 500.0, id="right again"),
        pytest.param(190.0, 30.0, 30.0, id="never"),
    ],
)
def test_when_a_clock_that_was_set_back_showed_a_time(stamp_s, after_s, moment_s):
    clock = Clock(((0.0, 0.0), (100.0, -60.0), (220.0, 0.0)))
    assert clock.moment_s(stamp_s, after_s) == moment_s


@pytest.mark.parametrize(
    ("storm", "fault"),
    [
        pytest.param(Storm("s", 3, Counter(cancelled=2, finished=1)), None, id="clean"),
        pytest.param(Storm("s", 3, Counter(cancelled=2, expired=1)), "expired", id="another end"),
        pytest.param(Storm("s", 3, Counter(cancelled=2)), "of 2 the end is known", id="one without an end"),
        pytest.param(Storm("s", 3, Counter(cancelled=2), [5.0]), "1 are gone", id="gone for no reason"),
        pytest.param(Storm("s", 3, Counter(cancelled=2), [1.5]), None, id="forgotten"),
        pytest.param(Storm("s", 0, errors=["it did not end"]), "did not end", id="told"),
    ],
)
def test_each_of_a_storm_ends_as_it_is_due(storm, fault):
    faults = judge_storm(storm, "cancelled", Outages(forgotten=[Span(1.0, 2.0)]))
    assert (faults == []) if fault is None else any(fault in said for said in faults)


def test_resumed_is_no_reset():
    assert not any(event.type == "reset" for event in trace_of(*TAKEN_OVER).log)
    assert any(isinstance(event, Resumed) for event in trace_of(*TAKEN_OVER).log)
