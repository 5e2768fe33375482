"""Wait for what happens elsewhere, and not for longer than that may take."""

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What ``condition`` gives as soon as that is true; fails if it is not in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.005)
    return found


def wait_for(condition: Callable[[], Any], within_s: float = 30.0, what: str = "") -> Any:
    """The condition's first true value; an AssertionError once ``within_s`` have passed."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {what or condition}")
        time.sleep(0.005)
