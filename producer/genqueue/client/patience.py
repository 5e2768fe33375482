"""How long a caller waits: for an end, and for a Redis that is away."""

import math


class Patience:
    """How long one reader bears that Redis is away: until it was there once, for one try more.

    Times are seconds of one monotonic clock.

    Args:
        again_until_s: the latest that a first contact which failed is tried once more.
    """

    def __init__(self, patience_s: float, *, again_until_s: float = -math.inf) -> None:
        self._patience_s = patience_s
        self._again_until_s = again_until_s
        self._was_there = False
        self._away_since_s: float | None = None

    def there(self) -> None:
        """Redis answered."""
        self._was_there = True
        self._away_since_s = None

    def ends(self, now_s: float) -> bool:
        """Redis did not answer: whether the reader gives up."""
        is_first = self._away_since_s is None
        if self._away_since_s is None:
            self._away_since_s = now_s
        if not self._was_there:
            return not is_first or now_s > self._again_until_s
        return now_s - self._away_since_s >= self._patience_s


_LEAST_ANSWER_S = 0.25


class Deadline:
    """Until when a caller waits for an end, and for Redis: not longer, but Redis has a moment in any case.

    Times are seconds of one monotonic clock; ``timeout_s`` None is no limit.
    """

    def __init__(self, timeout_s: float | None, now_s: float) -> None:
        self._end_s = math.inf if timeout_s is None else now_s + timeout_s
        self._answer_end_s = max(self._end_s, now_s + _LEAST_ANSWER_S)

    def wait_s(self, now_s: float, most_s: float) -> float:
        """How long to wait for a message, at most ``most_s``; 0 when the time is over."""
        return max(0.0, min(most_s, self._end_s - now_s))

    def answer_s(self, now_s: float) -> float | None:
        """How long Redis may take to answer; None where its own timeout is enough."""
        return None if self._answer_end_s == math.inf else max(0.0, self._answer_end_s - now_s)
