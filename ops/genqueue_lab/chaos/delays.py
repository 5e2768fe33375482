"""How long things took in a chaos run, and where tokens went: figures, of which some have limits.

Pure.  Apart counts what fell into an outage of something else: it says nothing of what is measured.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from genqueue.registry.lifecycle import State
from genqueue.wire.events import Chunk, Reset
from genqueue_lab.chaos.trace import Call, Outages, Span, Trace
from genqueue_lab.chaos.verdict import attempt_of, covered_s

RECOVERY_S = 3.0
"""How long after an outage of Redis or of the subscriptions a cancel counts as one that fell into it."""
LEASE_S = 3.0
"""The lease that README's times are of; what a worker with another one took longer is taken off."""


@dataclass(slots=True)
class Delays:
    """Seconds of what went its way, and how many fell into an outage of something else and count apart."""

    seconds: list[float] = field(default_factory=list)
    apart: int = 0

    def add(self, delay_s: float, is_apart: bool) -> None:
        """Count one."""
        if is_apart:
            self.apart += 1
        else:
            self.seconds.append(delay_s)

    def extend(self, others: "Delays") -> None:
        """Count others, too."""
        self.seconds += others.seconds
        self.apart += others.apart


def takeovers(trace: Trace, calls: Sequence[Call], outages: Outages, *, drain_s: float) -> tuple[Delays, Delays]:
    """How long until the next attempt began: after a kill or a freeze, and after a drain's end.

    Of attempts whose call was open at that moment.  Apart are those during which Redis was down, and not long before:
    after an outage nothing is taken for one lease of whoever sweeps first.
    """
    sudden, planned = Delays(), Delays()
    grace_s = max(outages.leases_s.values(), default=LEASE_S)
    for call in calls:
        attempt, pid = attempt_of(trace, call), call.worker_pid
        if attempt is None or attempt + 1 not in trace.attempts:
            continue
        next_s = trace.attempts[attempt + 1].at
        moments = [(sudden, span.began_s) for span in outages.frozen.get(pid, ())]
        if pid in outages.killed_s:
            moments.append((sudden, outages.killed_s[pid]))
        if pid in outages.leaving_s:
            moments.append((planned, outages.leaving_s[pid] + drain_s))
        for delays, lost_s in moments:
            if call.began_s < lost_s <= call.closed_s + 0.2 and next_s > lost_s:
                before_s, longer_s = 0.0, 0.0
                if delays is sudden:
                    before_s, longer_s = grace_s, outages.leases_s.get(pid, LEASE_S) - LEASE_S
                is_apart = covered_s(Span(lost_s - before_s, next_s), outages.hard_times) > 0
                delays.add(next_s - lost_s - longer_s, is_apart)
    return sudden, planned


def recoveries(trace: Trace, outages: Outages) -> Delays:
    """How long after Redis came back a reader had the next text of a generation that was decoding when it went.

    Apart are those whose attempt did not outlive the outage, or whose reader was away.
    """
    delays = Delays()
    texts = [(at_s, chunk.attempt) for at_s, chunk in trace.seen if chunk.text]
    for outage in outages.redis:
        for (last_s, attempt), (next_s, next_attempt) in pairwise(texts):
            if outage.began_s - 1.0 < last_s < outage.ended_s <= next_s:
                silence = Span(last_s, next_s)
                apart = [*trace.away, *(span for span in outages.hard_times if span is not outage)]
                apart += outages.endpoints.get(trace.order.generator, ())
                is_apart = attempt != next_attempt or any(span.overlap_s(silence) for span in apart)
                is_apart = is_apart or bool(trace.order.mishaps)
                delays.add(next_s - outage.ended_s, is_apart)
    return delays


def taken_from_the_living(trace: Trace, calls: Sequence[Call], outages: Outages) -> int:
    """How many attempts were superseded although their worker ran on with its call open."""
    count = 0
    for call in calls:
        attempt, pid = attempt_of(trace, call), call.worker_pid
        if attempt is not None and attempt + 1 in trace.attempts:
            next_s = trace.attempts[attempt + 1].at
            is_frozen = any(span.began_s <= next_s <= span.ended_s for span in outages.frozen.get(pid, ()))
            count += next_s < call.closed_s - 0.001 and not is_frozen
    return count


def cancel_delay(trace: Trace, calls: Sequence[Call], outages: Outages) -> Delays:
    """How long after ``cancel()`` was called its open call was closed, if there was one.

    Apart are those for which Redis, the subscriptions or the worker were not there, or not long since.
    """
    delays = Delays()
    if trace.cancel_s is None or trace.state is not State.CANCELLED:
        return delays
    for call in calls:
        if call.began_s <= trace.cancel_s < call.closed_s:
            around = Span(trace.cancel_s - RECOVERY_S, call.closed_s)
            stunned = [*outages.hard_times, *outages.frozen.get(call.worker_pid, ())]
            moments_s = [*outages.readers_cut_s, outages.killed_s.get(call.worker_pid, math.inf)]
            is_apart = (
                any(span.overlap_s(around) for span in stunned)
                or any(around.began_s < moment_s < around.ended_s + 0.2 for moment_s in moments_s)
                or call.server_died
            )
            delays.add(call.closed_s - trace.cancel_s, is_apart)
    return delays


def thrown_away(trace: Trace, calls: Sequence[Call], outages: Outages, *, drain_s: float) -> Counter[str]:
    """Tokens that servers made and nobody keeps, by cause; what cannot be told is in ``otherwise``.

    What a call published is kept, unless a later attempt began anew.  Without publishing
    (``stream=False``) the text is written once a second, and it cannot be told which call's it is.
    """
    wasted: Counter[str] = Counter()
    resets = [event.attempt for event in trace.log if isinstance(event, Reset)]
    published: Counter[int] = Counter()
    for event in trace.log:
        if isinstance(event, Chunk):
            published[event.attempt] += len(event.tokens)
    for call in calls:
        attempt = attempt_of(trace, call) or 0
        if any(attempt < reset for reset in resets):
            wasted["begun anew"] += call.tokens
        elif trace.order.stream and call.tokens > published[attempt]:
            wasted[_cause(trace, call, attempt, outages, drain_s)] += call.tokens - published[attempt]
    rest = sum(call.tokens for call in calls) - (trace.completion_tokens or 0) - wasted.total()
    if rest:
        wasted["otherwise" if trace.order.stream else "not published"] += rest
    return wasted


def _cause(trace: Trace, call: Call, attempt: int, outages: Outages, drain_s: float) -> str:
    """Why not all of a call's tokens were published."""
    pid = call.worker_pid
    until_s = trace.attempts[attempt + 1].at if attempt + 1 in trace.attempts else call.closed_s
    held = Span(call.began_s, max(until_s, call.closed_s))
    if any(span.overlap_s(held) for span in outages.frozen.get(pid, ())):
        return "worker frozen"
    if held.began_s < outages.killed_s.get(pid, math.inf) < held.ended_s + 0.5:
        return "worker killed"
    if call.server_died:
        return "server killed"
    if abs(outages.leaving_s.get(pid, math.inf) + drain_s - call.closed_s) < 0.5:
        return "handed over"
    if attempt == max(trace.attempts, default=0) and trace.state is not State.FINISHED:
        return "cancel or deadline"
    return "otherwise"
