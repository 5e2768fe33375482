"""What a result says of its tokens after a takeover."""

import pytest

from genqueue_worker.engine.usage import Counts, uncounted, usage


def counts(prompt=None, completion=None, pushed=0, earlier=0, are_deltas=False):
    return Counts(prompt, completion, pushed, earlier, are_deltas)


@pytest.mark.parametrize(
    ("counted", "prompt_tokens", "completion_tokens"),
    [
        pytest.param(counts(7, 50, 50), 7, 50, id="one-attempt"),
        pytest.param(counts(7, None, 50), 7, 50, id="its-server-counts-no-completion"),
        pytest.param(counts(None, None, 50), None, 50, id="its-server-counts-nothing"),
        pytest.param(counts(0, 0, 0), 0, 0, id="nothing"),
        pytest.param(counts(7, 50, 20, are_deltas=True), 7, 50, id="a-chat-of-one-attempt"),
        pytest.param(counts(7, None, 20, are_deltas=True), 7, 20, id="a-chat-that-nobody-counted"),
        pytest.param(counts(37, 20, 50, earlier=30), 7, 50, id="continued"),
        pytest.param(counts(37, None, 50, earlier=30), 7, 50, id="continued-and-no-completion-counted"),
        pytest.param(counts(None, 20, 50, earlier=30), None, 50, id="continued-and-no-prompt-counted"),
        pytest.param(counts(None, None, 30, earlier=30), None, 30, id="only-the-end-was-lost"),
        pytest.param(counts(29, 20, 50, earlier=30), None, 50, id="tokenized-anew-into-fewer"),
        pytest.param(counts(30, 20, 50, earlier=30), None, 50, id="no-prompt-has-no-token"),
        pytest.param(counts(0, 20, 50, earlier=30), None, 50, id="the-prompt-is-not-counted-at-all"),
        pytest.param(counts(40, 20, 12, earlier=5, are_deltas=True), None, None, id="a-chat-that-was-continued"),
        pytest.param(counts(40, None, 12, earlier=5, are_deltas=True), None, 12, id="deltas-alone-add-up"),
        pytest.param(counts(40, 20, 25, earlier=5, are_deltas=True), 35, 25, id="each-delta-is-a-token"),
        pytest.param(counts(40, 3, 8, earlier=5, are_deltas=True), None, None, id="too-few-to-tell"),
        pytest.param(counts(40, 20, 30, earlier=5, are_deltas=True), None, None, id="more-deltas-than-tokens"),
        pytest.param(counts(None, 20, 12, earlier=5, are_deltas=True), None, None, id="deltas-and-tokens-do-not"),
    ],
)
def test_usage_is_what_is_known_and_never_negative(counted, prompt_tokens, completion_tokens):
    assert usage(counted) == {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}


@pytest.mark.parametrize(
    ("counted", "more"),
    [
        pytest.param(counts(7, 50, 20, are_deltas=True), 30, id="several-tokens-in-a-delta"),
        pytest.param(counts(7, 50, 52), 0, id="fewer-than-came"),
        pytest.param(counts(7, None, 20), 0, id="not-counted"),
        pytest.param(counts(7, 20, 12, earlier=5, are_deltas=True), 13, id="of-the-last-attempt-only"),
    ],
)
def test_tokens_that_came_in_one_delta_are_metered_too(counted, more):
    assert uncounted(counted) == more
