"""Wait for what happens elsewhere, and not for longer than that may take."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

_LOOK_AGAIN_S = 0.005


def wait_for(condition: Callable[[], Any], within_s: float = 30.0, what: str = "") -> Any:
    """The condition's first true value; an AssertionError once ``within_s`` have passed."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {what or condition}")
        time.sleep(_LOOK_AGAIN_S)
    return value


async def wait_beside(condition: Callable[[], Any], within_s: float = 10.0) -> Any:
    """As :func:`wait_for`, on a loop whose other tasks go on meanwhile."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {condition}")
        await asyncio.sleep(_LOOK_AGAIN_S)
    return value
