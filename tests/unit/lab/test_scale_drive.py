"""The pace of a synthetic worker."""

from genqueue_lab.scale.drive import _Stream
from genqueue_ops.capacity import Fleet


def test_a_worker_that_wakes_a_moment_early_takes_nothing_back():
    stream = _Stream("id", began_s=100.0)
    stream.made = 4  # at 40 tokens/s: until 100.1
    assert [stream.come(at_s, Fleet(1)) for at_s in (100.099, 100.101, 100.126)] == [0, 0, 1]
