"""What a worker does with a request that a newer version wrote.

Pure.  A producer has checked every request by its own rules, so a field that this worker does not know, or a version
above its own, says that the worker is the older of the two.  It puts the generation back for others, later each time:
while a fleet is being upgraded a newer worker takes it within seconds, and a fleet without one is not kept busy.
A bad value of a field that is known is nobody's to run, whatever its version.
"""

import re

from pydantic import ValidationError

from genqueue.messages import VERSION

_FIRST_S = 0.5
_MOST_S = 300.0
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


def rests_s(attempt: int, draw: float) -> float:
    """For how long it rests before it is offered again; ``draw`` from [0, 1) spreads it.

    Attempts are the count: each worker that could not read it has begun one.
    """
    return min(_MOST_S, _FIRST_S * 2.0 ** min(attempt, 20)) * (0.5 + draw / 2)
