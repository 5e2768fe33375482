"""Whose fault an upstream error is, row by row."""

import pytest

from genqueue_worker.upstream.faults import Fault, UpstreamFacts, error_class, fault_of, shown

REQUEST, ENDPOINT, CAPACITY, SERVER = Fault.REQUEST, Fault.ENDPOINT, Fault.CAPACITY, Fault.SERVER


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
        (None, "unreached", CAPACITY),
        (None, "timeout", SERVER),
        (None, "transport", SERVER),
        # No word, or one that nobody knows: the status.
        (400, None, REQUEST),
        (401, None, ENDPOINT),
        (402, None, ENDPOINT),
        (403, None, ENDPOINT),
        (404, None, ENDPOINT),
        (405, None, ENDPOINT),
        (413, None, REQUEST),
        (415, None, REQUEST),
        (422, None, REQUEST),
        (422, "a later word", REQUEST),
        (429, None, CAPACITY),
        (503, None, CAPACITY),
        (529, None, CAPACITY),
        (500, None, SERVER),
        (502, None, SERVER),
        (504, None, SERVER),
        (408, None, SERVER),
        (418, None, SERVER),
        (None, None, SERVER),
        # OpenAI-compatible engines.
        (400, "invalid_request_error", REQUEST),
        (400, "exceed_context_size_error", REQUEST),
        (501, "not_supported_error", REQUEST),
        (503, "unavailable_error", CAPACITY),
        (500, "server_error", SERVER),
        (400, "BadRequestError", REQUEST),
        # OpenAI says of a wrong token what it says of a wrong request.
        (401, "invalid_request_error", ENDPOINT),
        (302, "redirect", ENDPOINT),
        (None, "web_page", ENDPOINT),
        # A quota that no waiting mends, and what is this host's.
        (429, "insufficient_quota", ENDPOINT),
        (None, "insufficient_quota", ENDPOINT),
        (429, "billing_hard_limit_reached", ENDPOINT),
        (429, "rate_limit_exceeded", CAPACITY),
        (None, "lack", CAPACITY),
        # The word wins over the status: a proxy may change the status.
        (500, "validation", REQUEST),
        (422, "overloaded", CAPACITY),
        (429, "generation", SERVER),
    ],
)
def test_each_error_has_its_fault(status, error_type, expected):
    assert fault_of(UpstreamFacts("words", status=status, error_type=error_type)) is expected


@pytest.mark.parametrize(
    ("message", "status", "expected"),
    [
        ("Model is overloaded", 422, CAPACITY),
        ("Request failed during generation: CUDA out of memory", 422, SERVER),
        ("Incomplete generation stream", 422, SERVER),
        ("Input validation error: `top_p` must be > 0.0 and < 1.0", 422, REQUEST),
        ("Template error: no messages", 422, REQUEST),
        ("image input is not supported - hint", 500, REQUEST),
        ("Failed to parse tools: type must be string", 500, REQUEST),
        ("the prompt says: Model is overloaded", 500, SERVER),
    ],
)
def test_in_the_stream_of_a_chat_the_words_tell(message, status, expected):
    """There TGI says 422 to everything, and llama.cpp 500 to some of what a caller got wrong."""
    assert fault_of(UpstreamFacts(message, status=status)) is expected


@pytest.mark.parametrize(
    ("status", "expected"), [(401, ENDPOINT), (402, ENDPOINT), (403, REQUEST), (404, REQUEST), (405, REQUEST)]
)
def test_where_the_address_is_right_it_is_what_was_asked(status, expected):
    assert fault_of(UpstreamFacts("words", status=status, is_address_right=True)) is expected


@pytest.mark.parametrize(
    ("message", "retry_after_s", "expected"),
    [
        ("You exceeded your current quota, please check your plan and billing details.", None, ENDPOINT),
        ("Your credit balance is too low to access the API. Please go to Plans & Billing.", None, ENDPOINT),
        ("Insufficient Balance", None, ENDPOINT),
        ("insufficient credits", None, ENDPOINT),
        ("You have exceeded your monthly included credits for Inference Providers. Subscribe to PRO.", None, ENDPOINT),
        ("You have used up your free quota", None, ENDPOINT),
        ("Your account is in arrears, please recharge and try again", None, ENDPOINT),
        ("slow down", None, CAPACITY),
        ("Too Many Requests", None, CAPACITY),
        ("Rate limit reached for m in organization o on tokens per min (TPM): Limit 6000", None, CAPACITY),
        ("Rate limit reached. You reached free usage limit (reset hourly). Please subscribe to PRO.", None, CAPACITY),
        ("You exceeded your current quota, please check your billing. Please retry in 32.5s.", None, CAPACITY),
        ("You exceeded your current quota, please check your plan and billing details.", 30.0, CAPACITY),
        (
            "exceeded token rate limit of your S0 pricing tier. Please retry after 20 seconds. Billing: x",
            None,
            CAPACITY,
        ),
        ("Quota exceeded for quota metric 'Requests' and limit 'Requests per minute'", None, CAPACITY),
        ("Model is overloaded", None, CAPACITY),
    ],
)
def test_a_429_that_no_waiting_mends_is_told_apart(message, retry_after_s, expected):
    assert fault_of(UpstreamFacts(message, status=429, retry_after_s=retry_after_s)) is expected


@pytest.mark.parametrize(
    ("status", "error_type", "expected"),
    [
        pytest.param(429, "overloaded", "overloaded", id="tgis-word"),
        pytest.param(None, "generation", "generation", id="in-a-stream"),
        pytest.param(None, "timeout", "timeout", id="ours"),
        pytest.param(503, None, "503", id="the-status"),
        pytest.param(400, "What's NLP? makes no sense", "400", id="a-word-that-nobody-knows-is-no-class"),
        pytest.param(799, None, "_OTHER", id="nor-is-a-status-that-nobody-knows"),
        pytest.param(None, None, "_OTHER", id="nothing"),
    ],
)
def test_an_error_has_one_of_few_classes(status, error_type, expected):
    assert error_class(UpstreamFacts("What's NLP?", status=status, error_type=error_type)) == expected


@pytest.mark.parametrize(
    ("status", "error_type", "expected"),
    [
        (422, None, "HTTP 422"),
        (422, "validation", "validation"),
        (500, "words of the server", "HTTP 500"),
        (None, "generation", "generation"),
        (None, "words of the server", "_OTHER"),
        (999, None, "_OTHER"),
    ],
)
def test_who_may_not_see_the_prompt_sees_the_class_of_an_error(status, error_type, expected):
    assert shown(UpstreamFacts("words of the server", status, error_type)) == expected
