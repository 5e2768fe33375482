"""Tasks that end when they are told to."""

import asyncio
from typing import Any


def end_if_cancelled(cancels: int = 0) -> None:
    """Raise the cancel that somebody below swallowed; every loop that is not to outlive its cancel asks.

    Before Python 3.12 ``asyncio.wait_for``, with which redis-py sends, may swallow one.  ``cancels`` are those that
    the task had before what it awaited.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling() > cancels:
        raise asyncio.CancelledError


async def end_tasks(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel them until they have ended: a cancel may be swallowed, see :func:`end_if_cancelled`."""
    while left := [task for task in tasks if task is not None and not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
