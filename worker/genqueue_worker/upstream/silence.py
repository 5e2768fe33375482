"""How long an endpoint may be silent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genqueue_worker.observe.metrics import CallMeter
from genqueue_worker.upstream.endpoint import Endpoint
from genqueue_worker.upstream.faults import (
    UpstreamError,
    UpstreamFacts,
)


class Silence:
    """Ends a block of code with UpstreamError once its server has said nothing for too long.

    A timeout that each token pushed back would cost more than the token: this one looks only
    when it might be due.  ``meter`` and ``endpoint`` are told when the server says something: a token, or words, and
    not what only keeps the connection open.

    Attributes:
        first_s: seconds until it first said something; None if it has not.
    """

    def __init__(self, first_token_s: float, between_tokens_s: float, meter: CallMeter, endpoint: Endpoint) -> None:
        self._first_s = first_token_s
        self._between_s = between_tokens_s
        self.first_s: float | None = None
        self._heard_s: float | None = None
        self._began_s = 0.0
        self._meter = meter
        self._endpoint = endpoint
        self._is_paused = False
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._timeout = asyncio.timeout(None)

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """The block."""
        self._began_s = self._loop.time()
        self._arm(self._began_s + self._first_s)
        try:
            async with self._timeout:
                yield
        except TimeoutError:
            if not self._timeout.expired():
                raise
            limit_s, what = (
                (self._first_s, "no token") if self._heard_s is None else (self._between_s, "no more tokens")
            )
            raise UpstreamError(
                UpstreamFacts(f"the server fell silent: {what} within {limit_s:g} s", error_type="timeout")
            ) from None
        finally:
            if self._due is not None:
                self._due.cancel()

    def heard(self) -> None:
        """The server said a token."""
        before_s, self._heard_s = self._heard_s, self._loop.time()
        self._endpoint.heard_s = self._heard_s
        if before_s is None:
            self._endpoint.took(self._began_s, self._heard_s)
            self.first_s = self._heard_s - self._began_s
            self._meter.first_chunk.observe(self.first_s)
            self._arm(self._heard_s + self._between_s)
        else:
            self._meter.gaps.observe(self._heard_s - before_s)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Within this block nobody listens to the server."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self._heard_s = self._loop.time()

    def _arm(self, when_s: float) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = self._loop.call_at(when_s, self._look)

    def _look(self) -> None:
        now_s = self._loop.time()
        if self._is_paused:
            self._arm(now_s + self._between_s)
        elif self._heard_s is not None and self._heard_s + self._between_s > now_s:
            self._arm(self._heard_s + self._between_s)
        else:
            self._timeout.reschedule(now_s)
