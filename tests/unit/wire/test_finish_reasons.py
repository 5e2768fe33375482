"""Which word for an end is shown to everybody."""

import pytest

from genqueue.wire.finish_reasons import shown_reason


@pytest.mark.parametrize(
    "word", [None, "length", "eos_token", "stop_sequence", "stop", "tool_calls", "content_filter", "STOP", "abort"]
)
def test_a_finish_reason_that_is_known_is_shown(word):
    assert shown_reason(word) == word


@pytest.mark.parametrize(
    "word",
    ["", "Bearer hf_token", "stop ", "stop\n", "stop: a prompt", "length\u202e", "eos_to\u212aen", "x" * 200, "_"],
)
def test_another_is_not(word):
    assert shown_reason(word) == "_OTHER"
