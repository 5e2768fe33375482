"""Which of a generator's servers is asked next, and which are left alone for a while.

Pure; the clock is an argument.  Down is a server that cannot be reached: nobody asks it before
a probe has found it again.  A server that failed, or was full, rests: it is asked only where
all others rest longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_REST_BASE_S = 1.0
_REST_MOST_S = 30.0


class Health(StrEnum):
    """How a server is to be treated."""

    UP = "up"
    RESTS = "rests"
    WAKING = "waking"
    DOWN = "down"


@dataclass(slots=True, eq=False)
class Endpoint:
    """One of a generator's servers.

    Attributes:
        url: where it is; None where huggingface_hub knows the way from the model's name.
        address: the same, fit for results, logs and status.
        running: calls under way.
        calls: calls begun since the worker started.
        failures: how many calls failed since one succeeded.
        rests_until_s: loop time before which others are asked first.
        is_down: whether it cannot be reached.
        is_waking: whether it has scaled to zero and is on its way back.
        trouble: what went wrong last, in our words; "" if nothing did since a call succeeded.
    """

    url: str | None
    address: str
    running: int = 0
    calls: int = 0
    failures: int = 0
    rests_until_s: float = 0.0
    is_down: bool = False
    is_waking: bool = False
    trouble: str = ""

    def health(self, now_s: float) -> Health:
        """How to treat it now."""
        if self.is_down:
            return Health.DOWN
        if self.is_waking:
            return Health.WAKING
        return Health.RESTS if self.rests_until_s > now_s else Health.UP

    def succeeded(self) -> None:
        """A call ended well."""
        self.failures, self.rests_until_s, self.trouble = 0, 0.0, ""

    def failed(self, now_s: float, trouble: str) -> None:
        """A call failed by its fault: rest 1, 2, 4 … 30 s."""
        self.rests_until_s = now_s + min(_REST_MOST_S, _REST_BASE_S * 2 ** min(self.failures, 10))
        self.failures += 1
        self.trouble = trouble

    def was_full(self, now_s: float, retry_after_s: float | None, trouble: str) -> None:
        """It took no call: rest for as long as it said."""
        self.rests_until_s = now_s + min(_REST_MOST_S, retry_after_s or _REST_BASE_S)
        self.trouble = trouble

    def went_down(self, trouble: str) -> None:
        """It cannot be reached."""
        self.is_down, self.trouble = True, trouble

    def came_back(self) -> None:
        """A probe has reached it."""
        self.is_down = False
        self.succeeded()


def choose(endpoints: Sequence[Endpoint], now_s: float) -> Endpoint | None:
    """The server for the next call: the least busy of those that are up; None when all are down."""
    reachable = [endpoint for endpoint in endpoints if not endpoint.is_down]
    # Of equally busy ones the one that was asked least: short calls shall not all go to the first.
    return min(
        reachable,
        key=lambda endpoint: (
            endpoint.is_waking,
            max(0.0, endpoint.rests_until_s - now_s),
            endpoint.running,
            endpoint.calls,
        ),
        default=None,
    )


def any_up(endpoints: Sequence[Endpoint], now_s: float) -> bool:
    """Whether one of them may be asked at once."""
    return any(endpoint.health(now_s) is Health.UP for endpoint in endpoints)
