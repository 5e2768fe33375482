"""What a worker does with a request that a newer version wrote.

Pure.  A producer has checked every request by its own rules, so a field that this worker does not know, or a version
above its own, says that the worker is the older of the two.  It puts the generation back for others, later each time:
while a fleet is being upgraded a newer worker takes it within seconds, and a fleet without one is not kept busy.
After ``keep_s`` it ends: each try renews its record's life, and without a deadline nothing else would end it.
A bad value of a field that is known is nobody's to run, whatever its version.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from genqueue.wire.result import Outcome
from genqueue.wire.version import VERSION

_FIRST_S = 0.5
_MOST_S = 300.0
_MOST_ATTEMPTS = 100
"""More of them than rests of ``keep_s`` together allow, and the clock that said how long it waits went back."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,60}")


def unknown_here(error: ValidationError) -> str | None:
    """What of a request this version does not know, in words without its values; None where it is simply wrong."""
    unknown = set()
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            # Only what looks like a name is shown: whoever may write here may have put anything there.
            unknown.add(f"the field {place}" if _NAME.fullmatch(place) else "a field")
        elif problem["loc"] == ("v",) and type(problem["input"]) is int and problem["input"] > VERSION:
            unknown.add(f"version {min(problem['input'], 10**6)}")
    return ", ".join(sorted(unknown)) or None


def after_unknown(
    unknown: str, *, attempt: int, waited_s: float, keep_s: int, errors: Sequence[dict[str, Any]], draw: float
) -> float | Outcome:
    """For how many seconds it rests before it is offered again, or its end where it waited for ``keep_s``.

    Args:
        unknown: as :func:`unknown_here` says it.
        attempt: the newest; each worker that could not read it has begun one.
        waited_s: from its submission until now, by Redis's clock; below 0 where that went back.
        keep_s: for how long it may wait for a newer worker; its record lives so long from each try on.
        errors: what ended earlier attempts.
        draw: from [0, 1), spreads the rest.
    """
    if waited_s >= keep_s or attempt > _MOST_ATTEMPTS + keep_s / (_MOST_S / 2):
        message = f"no worker that took it within {keep_s} s (keep_s) knows {unknown}"
        return Outcome(error="failed", message=message, detail={"errors": list(errors)})
    rest_s = min(_MOST_S, _FIRST_S * 2.0 ** min(attempt, 20)) * (0.5 + draw / 2)
    return min(rest_s, max(_FIRST_S, keep_s - max(0.0, waited_s)), keep_s / 2)
