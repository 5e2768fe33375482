"""Whose fault an upstream error is, row by row."""

import pytest

from genqueue_worker.policy import Fault, UpstreamFacts, fault_of, outcome_of

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


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        (UpstreamFacts("words", status=422, error_type="validation"), "rejected"),
        (UpstreamFacts("words", status=429), "failed"),
        (UpstreamFacts("words", error_type="generation"), "failed"),
    ],
)
def test_an_outcome_is_in_the_servers_words(facts, error):
    ended = outcome_of(facts)
    assert (ended.error, ended.message) == (error, "words")
    assert ended.detail == {"status": facts.status, "error_type": facts.error_type}
