"""What ends an attempt from outside, as one object."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

DEADLINE = "deadline"
"""The reason where the time is over; the others are the registry's words, and HANDED_OVER."""


class Interrupted(Exception):
    """An attempt is to stop; ``reason`` says why: its deadline, a hand-over, or whose the generation is by now."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Scope:
    """Whatever ends an attempt from outside: its deadline, a cancel, a lost lease, a hand-over.

    Attributes:
        reason: why it must stop; None while it may go on.  The first reason counts.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._timeout: asyncio.Timeout | None = None

    def interrupt(self, reason: str) -> None:
        """Stop what runs in it, or what is about to."""
        if self.reason is not None:
            return
        self.reason = reason
        if self._timeout is not None:
            with contextlib.suppress(RuntimeError):  # the call has ended already; the fence has the last word
                self._timeout.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise Interrupted if it must stop."""
        if self.reason is not None:
            raise Interrupted(self.reason)

    @contextlib.asynccontextmanager
    async def until(self, deadline_s: float | None) -> AsyncIterator[None]:
        """Within this block an interrupt, or the loop's time ``deadline_s``, raises Interrupted."""
        timeout = self._timeout = asyncio.timeout_at(deadline_s)
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise Interrupted(self.reason or DEADLINE) from error
