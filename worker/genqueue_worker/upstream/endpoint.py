"""Which of a generator's servers is asked next, and which are left alone for a while.

Pure; the clock is an argument.  Down is a server that cannot be reached: nobody asks it before
a probe has found it again.  A server that failed, or was full, rests: it is asked only where
all others rest longer.

How many calls a server takes at once it does not say: a worker finds out where it refuses one more,
and tries again whether it takes more by now: one after a second, twice as many as soon as that was taken.  Where it
refuses though none of ours runs there, our load is not why, and each second twice as many are tried until one is taken.
One that refuses whatever comes takes none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from genqueue.registry.fleet import Health

_REST_BASE_S = 1.0
_REST_MOST_S = 30.0
_TRY_MORE_S = 1.0
_MOST_TRIED_IDLE = 16
"""So many calls at once ask a server that refuses though none of ours runs there."""
_FORGET_S = 30.0
"""How long it counts how many calls a server once took."""
_REFUSALS = 3
"""So many in a row, and it is not the requests that are refused: each of them may have been a bad one."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One of a generator's servers.

    Attributes:
        url: where it is; None where huggingface_hub knows the way from the model's name.
        address: the same, fit for results, logs and status.
        running: calls under way.
        calls: calls begun since the worker started.
        failures: how many calls failed since one succeeded.
        refusals: how many calls it refused, whatever they asked for, since one succeeded.
        refuses_since_s: loop time since which it refuses all; None if it does not.
        rests_until_s: loop time before which others are asked first.
        limit: how many calls it took at once when it last refused one more; None if that is not known.
        more: how many beyond that are tried next.
        full_until_s: loop time before which they are not.
        tried_s: loop time at which calls beyond the limit were made; None once one was refused since.
        idle_refusals: how often it was full while it ran none of ours, since it took a call.
        heard_s: loop time of the last token of any call.
        unanswered: how many questions in a row it left unanswered while it ran calls.
        is_down: whether it cannot be reached.
        is_waking: whether it has scaled to zero and is on its way back.
        cause: why it gave no answer when it was last asked, in words of a closed list; "" if it gave one.
        trouble: what went wrong last, in our words; "" if nothing did since a call succeeded.
    """

    url: str | None
    address: str
    running: int = 0
    calls: int = 0
    failures: int = 0
    refusals: int = 0
    refuses_since_s: float | None = None
    rests_until_s: float = 0.0
    limit: int | None = None
    more: int = 1
    full_until_s: float = 0.0
    tried_s: float | None = None
    idle_refusals: int = 0
    heard_s: float = -math.inf
    unanswered: int = 0
    is_down: bool = False
    is_waking: bool = False
    cause: str = ""
    trouble: str = ""

    def health(self, now_s: float) -> Health:
        """How to treat it now."""
        if self.is_down:
            return Health.DOWN
        if self.is_waking:
            return Health.WAKING
        if self.refuses_since_s is not None:
            return Health.REFUSES
        return Health.RESTS if self.rests_until_s > now_s or not self.room(now_s) else Health.UP

    def room(self, now_s: float) -> float:
        """How many more calls may be made now; infinite where no limit is known."""
        if self.is_down:
            return 0
        if self.limit is None or self._is_long_ago(now_s):
            return math.inf
        return max(0, self.limit + (self.more if now_s >= self.full_until_s else 0) - self.running)

    def _is_long_ago(self, now_s: float) -> bool:
        return self.refuses_since_s is None and now_s >= self.full_until_s + _FORGET_S

    def began(self, now_s: float) -> None:
        """A call is made.  If it is one more than the server is known to take, next time it is twice as many."""
        self.running += 1
        self.calls += 1
        if self.limit is None or self.running <= self.limit or self.refuses_since_s is not None:
            return
        if self._is_long_ago(now_s):
            self.limit = None
        else:
            self.limit, self.more, self.full_until_s = self.limit + self.more, self.more * 2, now_s + _TRY_MORE_S
            self.tried_s = now_s

    def took(self, began_s: float, now_s: float) -> None:
        """A call that began then has brought its first token, or its end: where it was one more, more may follow."""
        self.idle_refusals = 0
        if self.tried_s is not None and began_s >= self.tried_s and self.refuses_since_s is None:
            self.full_until_s = min(self.full_until_s, now_s)

    def succeeded(self, began_s: float = math.inf) -> None:
        """A call that began then ended well; before the server refused all it says nothing of what it does now."""
        if self.refuses_since_s is not None:
            if began_s < self.refuses_since_s:
                return
            self.refuses_since_s = self.limit = None
        self.failures, self.refusals, self.rests_until_s, self.trouble = 0, 0, 0.0, ""

    def failed(self, now_s: float, trouble: str) -> None:
        """A call failed by its fault: rest 1, 2, 4 … 30 s."""
        self.rests_until_s = now_s + _rest_s(self.failures)
        self.failures += 1
        self.trouble = trouble

    def was_full(self, now_s: float, retry_after_s: float | None, trouble: str) -> None:
        """It took no call beside those that run: try one more after as long as it said."""
        self.limit, self.more, self.tried_s = max(0, self.running - 1), 1, None
        self.full_until_s = now_s + min(_REST_MOST_S, retry_after_s or _TRY_MORE_S)
        if self.limit == 0 and not retry_after_s:
            self.more = min(_MOST_TRIED_IDLE, 2 ** min(self.idle_refusals, 10))
            self.idle_refusals += 1
        self.trouble = trouble

    def refused(self, now_s: float, trouble: str) -> None:
        """It refused a call as it would any other: a wrong token, a wrong address.  Rest as after a failure.

        Where that goes on no call is made but one after each rest.
        """
        self.rests_until_s = now_s + _rest_s(self.refusals)
        self.refusals += 1
        self.trouble = trouble
        if self.refusals >= _REFUSALS:
            self.refuses_since_s = self.refuses_since_s or now_s
            self.limit, self.more, self.full_until_s = 0, 1, self.rests_until_s

    def went_down(self, trouble: str) -> None:
        """It cannot be reached."""
        self.is_down, self.trouble = True, trouble

    def came_back(self) -> None:
        """A probe has reached it."""
        self.is_down, self.limit, self.idle_refusals, self.unanswered = False, None, 0, 0
        self.succeeded()


def _rest_s(times: int) -> float:
    return float(min(_REST_MOST_S, _REST_BASE_S * 2 ** min(times, 10)))


def choose(endpoints: Sequence[Endpoint], now_s: float) -> Endpoint | None:
    """The server for the next call: the least busy of those that have room; None when all are down."""
    reachable = [endpoint for endpoint in endpoints if not endpoint.is_down]
    # Of equally busy ones the one that was asked least: short calls shall not all go to the first.
    return min(
        reachable,
        key=lambda endpoint: (
            endpoint.is_waking,
            not endpoint.room(now_s),
            max(0.0, endpoint.rests_until_s - now_s),
            endpoint.running,
            endpoint.calls,
        ),
        default=None,
    )


def any_up(endpoints: Sequence[Endpoint], now_s: float) -> bool:
    """Whether one of them may be asked at once."""
    return any(endpoint.health(now_s) is Health.UP for endpoint in endpoints)
