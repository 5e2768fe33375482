"""What Redis answers about dead letters."""

import pytest

from genqueue.errors import (
    GenerationNotFoundError,
    NotDeadError,
    QueueFullError,
    StoreError,
    UnknownGeneratorError,
)
from genqueue.registry import dead_letters
from genqueue.registry.submitting import Accepted


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ([b"full", 7, 5], QueueFullError, "queue 'chat' holds 7 generations, limit 5"),
        ([b"unknown", b"code"], UnknownGeneratorError, "unknown generator 'chat'; known: code"),
        ([b"gone"], GenerationNotFoundError, "no generation id"),
        ([b"not dead"], NotDeadError, "generation id is no dead letter: it was dropped"),
        ([b"what"], StoreError, "retry.lua answered"),
    ],
)
def test_a_refused_retry_raises_its_error(answer, error, words):
    call = dead_letters.retry("id", "new", "chat", 3, max_queue_depth=None, keep_s=60, result_ttl_s=9)
    assert call.decode([b"accepted", b"earlier"]) == Accepted("earlier")
    with pytest.raises(error, match=words):
        call.decode(answer)
