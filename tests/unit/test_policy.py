"""Whose fault an upstream error is and what follows from it, row by row."""

import pytest

from genqueue.messages import Outcome
from genqueue_worker.policy import Again, Fault, UpstreamFacts, after_failure, fault_of

REQUEST, CAPACITY, SERVER = Fault.REQUEST, Fault.CAPACITY, Fault.SERVER


@pytest.mark.parametrize(
    ("status", "error_type", "expected"),
    [
        # TGI's own word (tgi-protocol A6), with the status that it answers and in a stream, where there is none.
        (422, "validation", REQUEST),
        (None, "validation", REQUEST),
        (429, "overloaded", CAPACITY),
        (None, "overloaded", CAPACITY),
        (424, "generation", SERVER),
        (None, "generation", SERVER),
        (500, "incomplete_generation", SERVER),
        (500, "incomplete_generation_stream", SERVER),
        (None, "incomplete_generation_stream", SERVER),
        (422, "template_error", REQUEST),
        (422, "missing_template_variable", REQUEST),
        (422, "tool_error", REQUEST),
        (500, "stream_serialization_error", SERVER),
        (503, "healthcheck", CAPACITY),
        # Our own words.
        (None, "timeout", SERVER),
        (None, "transport", SERVER),
        # No word, or one that nobody knows: the status.
        (400, None, REQUEST),
        (401, None, REQUEST),
        (403, None, REQUEST),
        (404, None, REQUEST),
        (405, None, REQUEST),
        (413, None, REQUEST),
        (415, None, REQUEST),
        (422, None, REQUEST),
        (422, "a later word", REQUEST),
        (429, None, CAPACITY),
        (503, None, CAPACITY),
        (500, None, SERVER),
        (502, None, SERVER),
        (504, None, SERVER),
        (408, None, SERVER),
        (418, None, SERVER),
        (None, None, SERVER),
        # The word wins over the status: a proxy may change the status.
        (500, "validation", REQUEST),
        (422, "overloaded", CAPACITY),
        (429, "generation", SERVER),
    ],
)
def test_each_error_has_its_fault(status, error_type, expected):
    assert fault_of(UpstreamFacts("words", status=status, error_type=error_type)) is expected


FULL = UpstreamFacts("words", status=429)
WAKING = UpstreamFacts("words", status=503, retry_after_s=7.0)
INVALID = UpstreamFacts("words", status=422, error_type="validation")
BROKEN = UpstreamFacts("words", error_type="generation")
NEVER = 0.999


@pytest.mark.parametrize(
    ("facts", "failures", "max_attempts", "may_retry", "draw", "expected"),
    [
        # Nobody's fault: it waits, for as long as it takes, whatever the caller says of failures.
        pytest.param(FULL, 0, 5, True, 0.0, Again(0.0, is_charged=False), id="full"),
        pytest.param(FULL, 0, 5, True, NEVER, Again(1.998, is_charged=False), id="full-jitter"),
        pytest.param(FULL, 4, 5, True, 0.5, Again(1.0, is_charged=False), id="full-at-the-last-attempt"),
        pytest.param(FULL, 0, 1, True, 0.5, Again(1.0, is_charged=False), id="full-with-one-attempt"),
        pytest.param(FULL, 0, 5, False, 0.5, Again(1.0, is_charged=False), id="full-and-no-retries-wanted"),
        pytest.param(WAKING, 0, 5, True, 0.0, Again(7.0, is_charged=False), id="retry-after"),
        pytest.param(WAKING, 0, 5, True, 0.5, Again(8.0, is_charged=False), id="retry-after-and-jitter"),
        # The server's fault: full jitter under a ceiling that doubles, up to 30 s.
        pytest.param(BROKEN, 0, 5, True, 0.0, Again(0.0, is_charged=True), id="draw-0"),
        pytest.param(BROKEN, 0, 5, True, NEVER, Again(0.4995, is_charged=True), id="first"),
        pytest.param(BROKEN, 1, 5, True, NEVER, Again(0.999, is_charged=True), id="second"),
        pytest.param(BROKEN, 3, 5, True, NEVER, Again(3.996, is_charged=True), id="fourth"),
        pytest.param(BROKEN, 6, 99, True, NEVER, Again(29.97, is_charged=True), id="the-ceilings-end"),
        pytest.param(BROKEN, 5000, 9999, True, NEVER, Again(29.97, is_charged=True), id="no-overflow"),
    ],
)
def test_what_may_succeed_later_is_tried_again(facts, failures, max_attempts, may_retry, draw, expected):
    decision = after_failure(facts, failures=failures, max_attempts=max_attempts, may_retry=may_retry, draw=draw)
    assert isinstance(decision, Again)
    assert (decision.delay_s, decision.is_charged) == (pytest.approx(expected.delay_s), expected.is_charged)


@pytest.mark.parametrize(
    ("facts", "failures", "max_attempts", "may_retry", "error", "message"),
    [
        pytest.param(INVALID, 0, 5, True, "rejected", "words", id="the-callers-fault"),
        pytest.param(INVALID, 4, 5, False, "rejected", "words", id="the-callers-fault-later"),
        pytest.param(BROKEN, 0, 1, True, "failed", "words", id="one-attempt"),
        pytest.param(BROKEN, 0, 5, False, "failed", "words", id="no-retries-wanted"),
        pytest.param(BROKEN, 4, 5, True, "failed", "gave up after 5 attempts: words", id="the-last-attempt"),
        pytest.param(BROKEN, 7, 5, True, "failed", "gave up after 8 attempts: words", id="fewer-allowed-than-made"),
    ],
)
def test_what_cannot_succeed_ends_in_the_servers_words(facts, failures, max_attempts, may_retry, error, message):
    ended = after_failure(facts, failures=failures, max_attempts=max_attempts, may_retry=may_retry, draw=NEVER)
    assert isinstance(ended, Outcome)
    assert (ended.error, ended.message) == (error, message)
    assert ended.detail == {"status": facts.status, "error_type": facts.error_type}


def test_nobody_waits_longer_than_a_server_may_ask_for():
    for_ever = UpstreamFacts("words", status=503, retry_after_s=1e12)
    decision = after_failure(for_ever, failures=0, max_attempts=5, may_retry=True, draw=0.0)
    assert decision == Again(300.0, is_charged=False)
