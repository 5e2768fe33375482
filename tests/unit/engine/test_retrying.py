"""What follows from an upstream error, row by row."""

from dataclasses import replace

import pytest

from genqueue.wire.result import Outcome
from genqueue_worker.engine.retrying import AT_ONCE, Again, after_defect, after_failure, is_exhausted
from genqueue_worker.upstream.faults import OUTGROWN, Fault, UpstreamFacts, fault_of

FULL = UpstreamFacts("words", status=429)
FORBIDDEN = UpstreamFacts("words", status=403)
WAKING = UpstreamFacts("words", status=503, retry_after_s=7.0)
INVALID = UpstreamFacts("words", status=422, error_type="validation")
BROKEN = UpstreamFacts("words", error_type="generation")
PAGE = UpstreamFacts("words", error_type="web_page")
UNREACHED = UpstreamFacts("words", error_type="unreached", was_unreached=True)
CUT = UpstreamFacts("words", error_type="transport", is_down=True)
NEVER = 0.999


def decide(
    facts,
    failures=0,
    errors=None,
    max_attempts=5,
    may_retry=True,
    can_go_on=False,
    may_another_take_it=False,
    draw=NEVER,
    was_continued=False,
    brought_nothing=False,
):
    return after_failure(
        facts,
        failures=failures,
        errors=failures if errors is None else errors,
        max_attempts=max_attempts,
        may_retry=may_retry,
        can_go_on=can_go_on,
        may_another_take_it=may_another_take_it,
        draw=draw,
        was_continued=was_continued,
        brought_nothing=brought_nothing,
    )


def waits(delay_s):
    return Again(pytest.approx(delay_s), is_failure=False, is_charged=False)


def charged(delay_s):
    return Again(pytest.approx(delay_s), is_failure=True, is_charged=True)


UNCHARGED = Again(0.0, is_failure=True, is_charged=False)
ANEW = Again(0.0, is_failure=True, is_charged=False, anew=True)


@pytest.mark.parametrize(
    ("facts", "circumstances", "expected"),
    [
        # Nobody's fault: it waits, for as long as it takes, whatever the caller says of failures.
        # At once: it is the worker that waits, until its server has room.
        pytest.param(FULL, {}, AT_ONCE, id="full"),
        pytest.param(FULL, {"failures": 4}, AT_ONCE, id="full-at-the-last-attempt"),
        pytest.param(FULL, {"max_attempts": 1, "may_retry": False}, AT_ONCE, id="full-and-no-retries-wanted"),
        pytest.param(WAKING, {"draw": 0.0}, waits(7.0), id="retry-after"),
        pytest.param(WAKING, {"draw": 0.5}, waits(8.0), id="retry-after-and-jitter"),
        pytest.param(WAKING, {"can_go_on": True}, AT_ONCE, id="retry-after-and-another-is-up"),
        pytest.param(UNREACHED, {"may_retry": False}, AT_ONCE, id="nothing-listens-and-no-probe-says-when"),
        pytest.param(replace(UNREACHED, is_down=True), {"may_retry": False}, AT_ONCE, id="down-before-it-was-asked"),
        # The endpoint's fault: another one may take it.
        pytest.param(FORBIDDEN, {"may_another_take_it": True}, charged(0.0), id="another-may-take-what-one-refuses"),
        pytest.param(replace(FORBIDDEN, is_down=True), {"may_retry": False}, AT_ONCE, id="it-refuses-whatever-comes"),
        # The server's fault: full jitter under a ceiling that doubles, up to 30 s.
        pytest.param(BROKEN, {"draw": 0.0}, charged(0.0), id="draw-0"),
        pytest.param(BROKEN, {}, charged(0.4995), id="first"),
        pytest.param(BROKEN, {"failures": 1}, charged(0.999), id="second"),
        pytest.param(BROKEN, {"failures": 3}, charged(3.996), id="fourth"),
        pytest.param(BROKEN, {"failures": 6, "max_attempts": 99}, charged(29.97), id="the-ceilings-end"),
        pytest.param(BROKEN, {"failures": 5000, "max_attempts": 9999}, charged(29.97), id="no-overflow"),
        pytest.param(BROKEN, {"failures": 3, "can_go_on": True}, charged(0.0), id="another-server-goes-on-at-once"),
        # A web page where an answer should be is the address's, or a proxy's that restarts: worth some seconds.
        pytest.param(PAGE, {"may_another_take_it": True}, charged(0.0), id="a-page-and-another-may-take-it"),
        pytest.param(PAGE, {"draw": 0.0}, charged(1.0), id="a-page"),
        pytest.param(PAGE, {}, charged(1.999), id="a-page-draw-1"),
        pytest.param(PAGE, {"failures": 3, "draw": 0.0}, charged(8.0), id="a-page-for-the-fourth-time"),
        pytest.param(PAGE, {"failures": 5000, "max_attempts": 9999}, charged(29.985), id="a-page-always"),
        pytest.param(PAGE, {"failures": 3, "can_go_on": True}, charged(0.0), id="a-page-and-another-is-up"),
        pytest.param(replace(PAGE, is_down=True), {"failures": 4}, AT_ONCE, id="a-page-to-whatever-comes"),
        # The server died: not charged, but not for ever, for this prompt may be what kills it.
        pytest.param(CUT, {"failures": 4}, UNCHARGED, id="died-at-the-last-attempt"),
        pytest.param(CUT, {"max_attempts": 1}, UNCHARGED, id="died-at-the-only-attempt"),
        pytest.param(CUT, {"errors": 13}, UNCHARGED, id="died-often"),
    ],
)
def test_what_may_succeed_later_is_tried_again(facts, circumstances, expected):
    assert decide(facts, **circumstances) == expected


@pytest.mark.parametrize(
    ("facts", "circumstances", "error", "message"),
    [
        pytest.param(INVALID, {}, "rejected", "words", id="the-callers-fault"),
        pytest.param(INVALID, {"failures": 4, "may_retry": False}, "rejected", "words", id="the-callers-fault-later"),
        pytest.param(BROKEN, {"max_attempts": 1}, "failed", "words", id="one-attempt"),
        pytest.param(BROKEN, {"may_retry": False, "can_go_on": True}, "failed", "words", id="no-retries-wanted"),
        pytest.param(CUT, {"may_retry": False}, "failed", "words", id="died-and-no-retries-wanted"),
        pytest.param(BROKEN, {"failures": 4}, "failed", "gave up after 5 attempts: words", id="the-last-attempt"),
        pytest.param(
            BROKEN, {"failures": 7}, "failed", "gave up after 8 attempts: words", id="fewer-allowed-than-made"
        ),
        pytest.param(PAGE, {"failures": 4}, "failed", "gave up after 5 attempts: words", id="pages-to-the-end"),
        pytest.param(
            PAGE,
            {"failures": 4, "may_another_take_it": True},
            "failed",
            "gave up after 5 attempts: words",
            id="pages-to-the-end-and-another-was-up",
        ),
        pytest.param(PAGE, {"max_attempts": 1}, "failed", "words", id="a-page-to-the-only-attempt"),
        pytest.param(PAGE, {"may_retry": False}, "failed", "words", id="a-page-and-no-retries-wanted"),
        pytest.param(CUT, {"errors": 14}, "failed", "gave up after 15 attempts: words", id="died-too-often"),
        pytest.param(BROKEN, {"errors": 14}, "failed", "gave up after 15 attempts: words", id="and-now-failed"),
    ],
)
def test_what_cannot_succeed_ends_in_the_servers_words(facts, circumstances, error, message):
    ended = decide(facts, **circumstances)
    assert isinstance(ended, Outcome)
    assert (ended.error, ended.message) == (error, message)
    assert ended.detail == {"status": facts.status, "error_type": facts.error_type}


@pytest.mark.parametrize(
    "circumstances",
    [
        pytest.param({"can_go_on": True}, id="nobody-else-to-ask"),
        pytest.param({"may_another_take_it": True, "may_retry": False}, id="no-retries-wanted"),
        pytest.param({"may_another_take_it": True, "failures": 4}, id="the-last-attempt"),
        pytest.param({"may_another_take_it": True, "max_attempts": 1}, id="the-only-attempt"),
    ],
)
def test_what_an_endpoint_refused_whatever_it_was_is_rejected_and_worth_another_try(circumstances):
    ended = decide(FORBIDDEN, **circumstances)
    assert isinstance(ended, Outcome)
    assert (ended.error, ended.message, ended.is_worth_another_try) == ("rejected", "words", True)
    refused = decide(INVALID)
    assert isinstance(refused, Outcome)
    assert not refused.is_worth_another_try


def test_nobody_waits_longer_than_a_server_may_ask_for():
    assert decide(UpstreamFacts("words", status=503, retry_after_s=1e12), draw=0.0) == waits(300.0)


@pytest.mark.parametrize(
    ("failures", "errors", "expected"), [(0, 0, False), (2, 8, False), (3, 3, True), (0, 9, True), (4, 4, True)]
)
def test_a_generation_may_fail_so_often_by_itself_and_so_often_with_its_server(failures, errors, expected):
    assert is_exhausted(failures, errors, max_attempts=3) is expected


@pytest.mark.parametrize("may_retry", [True, False])
@pytest.mark.parametrize("failures", [0, 4, 9])
@pytest.mark.parametrize("refusal", [INVALID, UpstreamFacts("words", status=413), UpstreamFacts("w", status=400)])
def test_what_is_refused_of_a_continuation_is_ours(refusal, failures, may_retry):
    """An attempt before it was accepted: the caller's request is none that is refused."""
    again = decide(refusal, failures, was_continued=True, may_retry=may_retry)
    assert again == ANEW
    assert decide(refusal, failures, may_retry=may_retry).error == "rejected"


@pytest.mark.parametrize("status", [406, 410, 411, 412, 414, 416, 417, 421, 426, 428, 431, 451, 460])
def test_any_client_error_refuses_a_continuation(status):
    """Proxies have their own words for too long a text; of another call it is still the server's failure."""
    facts = UpstreamFacts("words", status=status)
    assert decide(facts, 4, was_continued=True) == ANEW
    assert decide(facts, 1) == charged(NEVER)


@pytest.mark.parametrize(
    "facts",
    [
        *(UpstreamFacts("words", status=status) for status in (408, 409, 423, 424, 425, 499, 500, 502, 504)),
        UpstreamFacts("Request failed during generation: x", status=422),
        UpstreamFacts("words", status=424, error_type="generation"),
    ],
    ids=repr,
)
def test_a_failure_is_no_refusal_of_a_continuation(facts):
    assert decide(facts, 1, was_continued=True, brought_nothing=True) == charged(NEVER)


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
@pytest.mark.parametrize("facts", [BROKEN, UpstreamFacts("prefix too long", status=500)], ids=repr)
def test_a_continuation_that_brought_nothing_ends_nothing_without_a_call_of_the_prompt_alone(facts, max_attempts):
    last = {"failures": max_attempts - 1, "max_attempts": max_attempts}
    again = decide(facts, was_continued=True, brought_nothing=True, draw=0.0, **last)
    assert again == ANEW
    assert decide(facts, was_continued=True, **last).error == "failed"
    assert decide(facts, brought_nothing=True, **last).error == "failed"
    assert decide(facts, was_continued=True, brought_nothing=True, may_retry=False, **last).error == "failed"
    assert decide(facts, errors=3 * max_attempts, was_continued=True, brought_nothing=True, **last).error == "failed"


@pytest.mark.parametrize("error_type", ["timeout", "transport", "incomplete_generation_stream"])
def test_a_server_that_said_nothing_refused_no_continuation(error_type):
    facts = UpstreamFacts("words", error_type=error_type)
    assert decide(facts, 4, was_continued=True, brought_nothing=True).error == "failed"


def test_pages_are_waited_for_longer_than_a_proxy_takes_to_restart():
    waits_s = [decide(PAGE, failures, draw=0.0).delay_s for failures in range(4)]
    assert sum(waits_s) == pytest.approx(15.0)


@pytest.mark.parametrize("facts", [FULL, WAKING, BROKEN, PAGE, UNREACHED, CUT])
def test_what_else_becomes_of_a_continuation_is_as_of_any_call(facts):
    assert decide(facts, was_continued=True) == decide(facts)


def defect(errors=0, max_attempts=5, may_retry=True, draw=NEVER):
    words = "unexpected KeyError in the worker"
    return after_defect(words, errors=errors, max_attempts=max_attempts, may_retry=may_retry, draw=draw)


def test_a_defect_of_ours_costs_another_attempt_and_no_failure():
    delays_s = [defect(errors, max_attempts=99).delay_s for errors in range(10)]
    assert delays_s == sorted(delays_s)
    assert delays_s[-1] == pytest.approx(30.0, rel=0.01)
    assert defect() == Again(pytest.approx(0.4995), is_failure=True, is_charged=False)


def test_a_defect_that_is_met_again_and_again_ends_it():
    assert isinstance(defect(errors=13), Again)
    end = defect(errors=14)
    assert (end.error, end.message) == ("failed", "gave up after 15 attempts: unexpected KeyError in the worker")
    assert end.is_worth_another_try


def test_an_answer_that_this_host_has_no_memory_for_is_asked_for_a_few_times_only():
    facts = UpstreamFacts("this host is out of memory", error_type=OUTGROWN)
    assert fault_of(facts) is Fault.CAPACITY
    assert decide(facts) == Again(pytest.approx(0.4995), is_failure=True, is_charged=False)
    assert decide(facts, errors=14).message == "gave up after 15 attempts: this host is out of memory"
    assert decide(facts, may_retry=False).message == "this host is out of memory"


def test_who_wants_nothing_tried_twice_is_told_of_a_defect():
    assert defect(may_retry=False).message == "unexpected KeyError in the worker"
