"""Errors as values that cross process borders."""

import pickle

import pytest

from genqueue import errors

ERRORS = [
    errors.UnknownGeneratorError("chat", ["default"]),
    errors.IdempotencyConflictError("key", "id"),
    errors.QueueFullError("default", 5, 4),
    errors.RedisUnavailableError("host", 6379, "gone"),
    errors.StoreError("OOM", may_pass=True),
    errors.GenerationNotFoundError("id"),
    errors.LogExpiredError("id", 3),
    errors.LogBrokenError("id"),
    errors.StreamRestartedError("id", delivered_text="so far", delivered_reasoning="Hm", restart_seq=7),
    errors.ResultTimeoutError("id", 1.5),
    errors.GenerationFailedError("why", partial_text="so far", attempts=2, detail={"errors": []}),
    errors.GenerationCancelledError("cancelled"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_with_its_numbers(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_handle_stays_in_its_process():
    error = errors.StreamRestartedError("id")
    error.generation = lambda: None  # what cannot be pickled
    assert pickle.loads(pickle.dumps(error)).generation is None


def test_the_tree_of_errors_is_the_one_in_its_docstring():
    assert errors.__doc__ is not None
    drawn = errors.__doc__
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [kind.__name__ for kind in classes if kind.__name__ not in drawn] == []
    assert all(issubclass(kind, errors.GenqueueError) for kind in classes)
    assert issubclass(errors.InvalidRequestError, ValueError)
    assert issubclass(errors.RedisUnavailableError, ConnectionError)
    assert issubclass(errors.ResultTimeoutError, TimeoutError)
