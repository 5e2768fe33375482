"""What lets us in is in no error."""

import pytest

from genqueue_worker.upstream.credentials import secrets_among, without
from genqueue_worker.upstream.faults import UpstreamFacts

HEADERS = ["hf_ABCDEF", "Bearer of-a-header", "hf_ABC", "1"]
URLS = ["http://me:p%40ss@tgi/?key=of-a-query"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("CUDA error: 1 of 2", "CUDA error: 1 of 2", id="nothing-secret"),
        pytest.param("auth=Bearer hf_ABCDEF.", "auth=Bearer ***.", id="token"),
        pytest.param("hf_ABCDEF hf_ABC hf_ABCDEF", "*** *** ***", id="one-within-another"),
        pytest.param("got Bearer of-a-header", "got ***", id="header"),
        pytest.param("got of-a-header", "got ***", id="header-without-its-scheme"),
        pytest.param("me:p%40ss p@ss bWU6cEBzcw== /?key=of-a-query", "me:*** *** *** /?***", id="address"),
        pytest.param("cut: Bearer hf_ABCD", "cut: Bearer ***", id="cut-in-the-middle"),
        pytest.param("it says x hf_ABCD …", "it says x *** …", id="cut-and-marked"),
        pytest.param("packed (hf_ABCD), not", "packed (***), not", id="cut-within-brackets"),
        pytest.param("it is hf_ABCD; it says hf_ABCDE …", "it is ***; it says *** …", id="cut-twice"),
        pytest.param("ended with 'hf_ABCD'", "ended with '***'", id="cut-and-quoted"),
        pytest.param("hf_ABXY; hf_ABXY", "hf_ABXY; hf_ABXY", id="another-that-begins-so"),
        pytest.param('no "Bearer", no', 'no "Bearer", no', id="a-scheme-alone"),
        pytest.param("", "", id="empty"),
    ],
)
def test_no_error_holds_what_lets_us_in(words, expected):
    told = without(secrets_among(HEADERS, URLS), UpstreamFacts(words, 500, words or None))
    assert (told.message, told.status, told.error_type) == (expected, 500, expected or None)
