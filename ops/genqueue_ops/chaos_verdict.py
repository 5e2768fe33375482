"""What came of each order of ``genqueue chaos``, judged from what readers, registry and model servers saw.

Pure.  Counted for each generation, all of which must be 0:

lost, doubled
    Characters.  The text that a reader assembles from the events (``reset`` forgets), and the
    one that is kept, are compared with the text that the order must have; a cancelled or
    expired one must have a beginning of it.  What differs counts where it is missing as lost,
    where it is too much (or another) as doubled.
faults
    Event numbers with a gap or a repeat, readers and log that disagree, no end or several, an
    end that the registry does not confirm or that nobody asked for, usage that is not the
    number of tokens of the text, an error that no outage explains.
late
    Gaps between two pieces of text (of a generation that shows none before its end: between
    two attempts) of more than ``LATE_S`` on top of the server's own pace, not counting the
    time that Redis or the generation's endpoint was down, or the reader itself away.
run twice
    Calls to a model server that were open for more than ``OVERLAP_S`` (a flush, and the close)
    after the generation had gone to another attempt or had ended, not counting the time
    that their worker was frozen or Redis was down, in which nobody could tell it; second
    calls in one attempt; and calls that no attempt made.

All times are epoch seconds of one machine, where Redis, servers and readers have the same clock.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise

from genqueue.lifecycle import State
from genqueue.messages import Cancelled, Chunk, Event, Failed, Finished, Reset, Started
from genqueue_ops.chaos_plan import Order

LATE_S = 10.0
OVERLAP_S = 1.0
_RECOVERY_S = 3.0
"""How long after an outage of Redis or of the subscriptions a cancel counts as one that fell into it."""
_TERMINAL: dict[type[Event], State] = {Finished: State.FINISHED, Failed: State.FAILED, Cancelled: State.CANCELLED}


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when."""

    began_s: float
    ended_s: float

    def overlap_s(self, other: "Span") -> float:
        """How much of both is the same time."""
        return max(0.0, min(self.ended_s, other.ended_s) - max(self.began_s, other.began_s))


@dataclass(slots=True)
class Outages:
    """What was done to the parts; workers by process id, endpoints by generator."""

    redis: list[Span] = field(default_factory=list)
    endpoints: dict[str, list[Span]] = field(default_factory=dict)
    frozen: dict[int, list[Span]] = field(default_factory=dict)
    killed_s: dict[int, float] = field(default_factory=dict)
    leaving_s: dict[int, float] = field(default_factory=dict)
    readers_cut_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model server, from its journal; ``closed_s`` is the server's death where it died."""

    worker_pid: int
    began_s: float
    closed_s: float
    tokens: int
    server_died: bool = False

    @property
    def span(self) -> Span:
        """While it was open."""
        return Span(self.began_s, self.closed_s)


@dataclass(slots=True)
class Trace:
    """What was seen of one generation.

    Attributes:
        seen: when which event reached its reader, over all returns of that reader.
        log: the events as read once more at the end.
        away: when its reader was away on purpose.
        state, ended_s, completion_tokens: the registry's; None where it did not end.
        text: the result's, or the partial one that the error carries.
        finish_reason: the result's; of what ended otherwise, the error's kind (expired, cancelled …).
        cancel_s, cancel_said: when ``cancel()`` was called, and what it returned.
        error: what a producer or reader was told that it should not have been.
    """

    order: Order
    generation_id: str = ""
    submitted_s: float = 0.0
    seen: list[tuple[float, Event]] = field(default_factory=list)
    log: list[Event] = field(default_factory=list)
    away: list[Span] = field(default_factory=list)
    state: State | None = None
    ended_s: float | None = None
    completion_tokens: int | None = None
    text: str = ""
    finish_reason: str | None = None
    cancel_s: float | None = None
    cancel_said: bool | None = None
    error: str | None = None

    @property
    def attempts(self) -> dict[int, Started]:
        """The attempts by number."""
        return {event.attempt: event for event in self.log if isinstance(event, Started)}


@dataclass(slots=True)
class Finding:
    """The verdict on one generation.

    Attributes:
        lost, doubled: characters.
        silent_s: seconds of its longest gap that nothing excuses.
        twice_s: seconds that a call was open too long after another attempt or the end; at least a moment
            for a call that should not have been made.
    """

    lost: int = 0
    doubled: int = 0
    faults: list[str] = field(default_factory=list)
    silent_s: float = 0.0
    twice_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.faults or self.is_late or self.twice_s)

    @property
    def is_late(self) -> bool:
        """Whether the longest gap is too long."""
        return self.silent_s > LATE_S


def judge(trace: Trace, calls: Sequence[Call], outages: Outages) -> Finding:
    """The verdict on one generation; ``calls`` are those made for it."""
    found = Finding()
    _judge_text(trace, found)
    found.faults += [*_numbers(trace), *_end(trace)]
    found.silent_s = _silent_s(trace, outages)
    found.twice_s = _twice_s(trace, calls, outages)
    return found


def assembled(events: Iterable[Event]) -> str:
    """The text that a reader has who follows the events' rules."""
    parts: list[str] = []
    for event in events:
        if isinstance(event, Reset):
            parts = []
        elif isinstance(event, Chunk):
            parts.append(event.text)
    return "".join(parts)


def differences(expected: str, got: str) -> tuple[int, int]:
    """(characters of ``expected`` that are missing, characters of ``got`` that are too many or others)."""
    if expected == got:
        return 0, 0
    missing = extra = 0
    for kind, from_a, to_a, from_b, to_b in SequenceMatcher(None, expected, got, autojunk=False).get_opcodes():
        if kind != "equal":
            missing += to_a - from_a
            extra += to_b - from_b
    return missing, extra


def _judge_text(trace: Trace, found: Finding) -> None:
    texts = [trace.text]
    if trace.order.stream and trace.state is not None:
        texts.append(assembled(event for _, event in trace.seen))
    for text in texts:
        expected = trace.order.text
        if trace.state in (State.FAILED, State.CANCELLED):
            expected = expected[: len(text)]
        lost, doubled = differences(expected, text)
        found.lost, found.doubled = max(found.lost, lost), max(found.doubled, doubled)
    if texts[-1] != trace.text:
        found.faults.append(f"its reader has {len(texts[-1])} characters, {len(trace.text)} are kept")


def _numbers(trace: Trace) -> list[str]:
    faults = []
    for name, events in (("reader", [event for _, event in trace.seen]), ("log", trace.log)):
        numbers = [event.seq for event in events]
        if numbers != list(range(1, len(numbers) + 1)):
            faults.append(f"the {name}'s events are not numbered 1, 2, 3 …: {_compact(numbers)}")
    if [event for _, event in trace.seen] != trace.log:
        faults.append(f"reader ({len(trace.seen)} events) and log ({len(trace.log)}) disagree")
    attempts = [event.attempt for event in trace.log]
    if attempts != sorted(attempts):
        faults.append("an earlier attempt wrote behind a later one")
    return faults


def _compact(numbers: list[int]) -> str:
    return ", ".join(
        f"{before}→{after}" for before, after in zip([0, *numbers], numbers, strict=False) if after != before + 1
    )


def _end(trace: Trace) -> list[str]:
    order, faults = trace.order, []
    if trace.error is not None:
        faults.append(trace.error)
    ends = [event for event in trace.log if type(event) in _TERMINAL]
    if len(ends) != 1 or trace.log[-1] is not ends[0]:
        return [*faults, f"{len(ends)} ends in its log, must be one and the last"]
    if trace.state is not _TERMINAL[type(ends[0])]:
        faults.append(f"its log ends with {ends[0].type}, the registry says {trace.state}")
    match trace.finish_reason:
        case "cancelled":
            is_due = trace.cancel_s is not None and trace.state is State.CANCELLED
        case "expired":
            waited_s = (trace.ended_s or 0.0) - trace.submitted_s
            is_due = order.deadline_s is not None and waited_s > order.deadline_s - 0.5 and trace.state is State.FAILED
        case reason:
            is_due = reason == order.ends and trace.state is State.FINISHED
    if not is_due:
        faults.append(f"it ended as {trace.state} ({trace.finish_reason}), which nobody asked for")
    if trace.cancel_said is not None and trace.cancel_said != (trace.state is State.CANCELLED):
        faults.append(f"cancel() said {trace.cancel_said}, it ended as {trace.state}")
    tokens = trace.completion_tokens
    told = {ends[0].completion_tokens} if isinstance(ends[0], Finished) else set()
    if trace.state is State.FINISHED:
        if {order.completion_tokens, *told} != {tokens}:
            faults.append(f"usage says {tokens} tokens, its end {told}, it has {order.completion_tokens}")
    elif tokens is None or tokens >= len(order.text_after) or order.text_after[tokens] != trace.text:
        faults.append(f"usage says {tokens} tokens, which is not what its {len(trace.text)} characters have")
    return faults


def _silent_s(trace: Trace, outages: Outages) -> float:
    order = trace.order
    marks = [trace.submitted_s]
    for at_s, event in trace.seen:
        shows = isinstance(event, Started) if order.is_quiet else isinstance(event, Chunk) and event.text
        if shows or type(event) in _TERMINAL:
            marks.append(at_s)
    pace_s = order.decode_s if order.is_quiet else order.itl_s
    worst_s = 0.0
    for began_s, ended_s in pairwise(marks):
        gap = Span(began_s, ended_s)
        down = [span for span in outages.endpoints.get(order.generator, ()) if span.overlap_s(gap)]
        excused_s = _covered_s(gap, [*outages.redis, *down, *trace.away])
        worst_s = max(worst_s, ended_s - began_s - excused_s - pace_s)
    return worst_s


def _twice_s(trace: Trace, calls: Sequence[Call], outages: Outages) -> float:
    worst_s = 0.0
    made: Counter[int] = Counter()
    for call in calls:
        attempt = attempt_of(trace, call)
        made[attempt or 0] += 1
        if attempt is None:
            worst_s = max(worst_s, call.closed_s - call.began_s, 0.001)
            continue
        over_s = trace.attempts[attempt + 1].at if attempt + 1 in trace.attempts else trace.ended_s
        if over_s is None or over_s > call.closed_s:
            continue
        since = Span(over_s, call.closed_s)
        untold = [*outages.redis, *outages.frozen.get(call.worker_pid, ())]
        too_long_s = call.closed_s - over_s - _covered_s(since, untold) - OVERLAP_S
        worst_s = max(worst_s, too_long_s)
    if any(count > 1 for count in made.values()):
        worst_s = max(worst_s, 0.001)
    return worst_s


def attempt_of(trace: Trace, call: Call) -> int | None:
    """The attempt that made a call: the newest that its worker had begun by then; None if there is none."""
    made_by = [
        number
        for number, started in trace.attempts.items()
        if _pid(started) == call.worker_pid and started.at <= call.began_s + 0.005
    ]
    return max(made_by, default=None)


def _pid(started: Started) -> int:
    return int(started.worker.split(":")[-2])


def _covered_s(gap: Span, spans: Iterable[Span]) -> float:
    """How much of a gap lies in any of the spans."""
    covered_s, until_s = 0.0, gap.began_s
    for span in sorted(spans, key=lambda span: span.began_s):
        covered_s += span.overlap_s(Span(until_s, gap.ended_s)) if gap.ended_s > until_s else 0.0
        until_s = max(until_s, span.ended_s)
    return covered_s


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

    Of attempts whose call was open at that moment; apart are those during which Redis was down.
    """
    sudden, planned = Delays(), Delays()
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
                delays.add(next_s - lost_s, _covered_s(Span(lost_s, next_s), outages.redis) > 0)
    return sudden, planned


def recoveries(trace: Trace, outages: Outages) -> Delays:
    """How long after Redis came back a reader had the next text of a generation that was decoding when it went.

    Apart are those whose attempt did not outlive the outage, or whose reader was away.
    """
    delays = Delays()
    texts = [(at_s, event.attempt) for at_s, event in trace.seen if isinstance(event, Chunk) and event.text]
    for outage in outages.redis:
        for (last_s, attempt), (next_s, next_attempt) in pairwise(texts):
            if outage.began_s - 1.0 < last_s < outage.ended_s <= next_s:
                silence = Span(last_s, next_s)
                is_apart = attempt != next_attempt or any(span.overlap_s(silence) for span in trace.away)
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
            around = Span(trace.cancel_s - _RECOVERY_S, call.closed_s)
            stunned = [*outages.redis, *outages.frozen.get(call.worker_pid, ())]
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
    if attempt == max(trace.attempts) and trace.state is not State.FINISHED:
        return "cancel or deadline"
    return "otherwise"
