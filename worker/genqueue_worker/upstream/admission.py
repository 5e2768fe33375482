"""How many attempts a worker begins of one generator: as many as its endpoints have room for.

What is taken from the queue and cannot run is kept from hosts that could run it.  So while all
endpoints are full a worker leaves the queue; but where everybody's are, a few attempts wait at hand,
that an endpoint with room again need not wait for the broker.  What an endpoint has room for is
:mod:`genqueue_worker.upstream.endpoint`'.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from genqueue_worker.upstream.endpoint import Endpoint

_LOOK_AGAIN_S = 0.1
"""While all are full: whether more may be tried by now, or others wait."""
_ADMITTED_FOR_ONE_AT_HAND = 8


class Admission:
    """Lets attempts in, on the engine's loop.

    Args:
        endpoints: all that the generator has.
        backlog: how many generations wait for it, those at hand here among them.
        on_change: told when :attr:`is_closed` has changed.

    Attributes:
        is_closed: whether no more attempts should come.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], backlog: Callable[[], int], on_change: Callable[[], None]
    ) -> None:
        self.is_closed = False
        self._endpoints = endpoints
        self._backlog = backlog
        self._on_change = on_change
        self._admitted = 0
        self._at_hand: deque[asyncio.Future[bool]] = deque()
        self._look_again: asyncio.TimerHandle | None = None

    async def enter(self) -> bool:
        """Wait until there is room for one more attempt, which is in until :meth:`leave`.

        Returns:
            False where it should not wait: enough do already, or nobody should.
        """
        if not self._at_hand and self._free() > 0:
            self._admitted += 1
            self._decide()
            return True
        if self.is_closed:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._at_hand.append(answer)
        self._decide()
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.result():
                self.leave()
            raise

    def leave(self) -> None:
        """An attempt that was let in has ended."""
        self._admitted -= 1
        self._decide()

    def dismiss(self) -> None:
        """Send away whoever waits at hand."""
        while self._at_hand:
            self._tell(self._at_hand.popleft(), may_enter=False)
        self._decide()

    def _free(self) -> float:
        """How many more there is room for, those aside that are in and make no call yet."""
        now_s = asyncio.get_running_loop().time()
        idle = self._admitted - sum(endpoint.running for endpoint in self._endpoints)
        # One that wakes up is asked last: it has room for whoever parks there only while no other is awake.
        awake = [endpoint for endpoint in self._endpoints if not (endpoint.is_down or endpoint.is_waking)]
        return sum(endpoint.room(now_s) for endpoint in awake or self._endpoints) - idle

    def _decide(self) -> None:
        """Let in who has waited longest, as far as there is room, and say whether more should come."""
        while self._at_hand and self._free() > 0:
            self._admitted += self._tell(self._at_hand.popleft(), may_enter=True)
        is_closed = self._free() <= 0
        if is_closed:
            # Where nothing runs nothing ends: what is at hand would wait for a rest to pass.
            is_of_use = self._admitted > 0 and self._backlog() > len(self._at_hand)
            most = max(1, self._admitted // _ADMITTED_FOR_ONE_AT_HAND) if is_of_use else 0
            while len(self._at_hand) > most:
                self._tell(self._at_hand.pop(), may_enter=False)
            # Once closed it opens when half of those at hand are in: not for each of them.
            is_closed = len(self._at_hand) >= (most // 2 + 1 if self.is_closed and most else most)
            if self._look_again is None:
                self._look_again = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look)
        if is_closed != self.is_closed:
            self.is_closed = is_closed
            self._on_change()

    def _look(self) -> None:
        self._look_again = None
        self._decide()

    @staticmethod
    def _tell(answer: asyncio.Future[bool], *, may_enter: bool) -> bool:
        if answer.done():  # who waited is gone
            return False
        answer.set_result(may_enter)
        return may_enter
