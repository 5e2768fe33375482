"""What came of each order of ``python -m genqueue_lab chaos``, judged from what readers, registry and model servers
saw.

Pure.  Counted for each generation, all of which must be 0:

lost, doubled
    Characters.  What a reader of ``stream()`` joined, what it was told to forget, and the text that is
    kept are compared with the text that the order must have; a cancelled or expired one must have a
    beginning of it.  What differs counts where it is missing as lost, where it is too much (or another)
    as doubled.
faults
    Event numbers with a gap or a repeat, readers and registry that disagree, no end or several, an
    end that the registry does not confirm or that nobody asked for, usage that is not the number of
    tokens of the text, a model that was sent what it never said, an error that no outage explains.
late
    Gaps between two pieces of text (of a generation that shows none before its end: between
    two attempts) of more than ``LATE_S`` on top of the server's own pace, not counting the
    time that Redis or the generation's endpoint was away, or the reader itself.  Nor is the time
    counted that Redis forgot, or that lies between two outages of Redis and was too short to take
    a generation over from a worker that was gone.
run twice
    Calls to a model server that were open for more than ``OVERLAP_S`` (a flush, and the close)
    after the generation had gone to another attempt or had ended, not counting the time
    that their worker was frozen or Redis was away, in which nobody could tell it; second
    calls in one attempt; and calls that no attempt made.

A Redis may forget what it answered in some spans of time: a submit, which its reader is then told; a cancel;
an attempt; an end, after which it is run again.  What it never may is a text that is wrong.

All times are epoch seconds of this machine; :class:`Clock` makes them of Redis's.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise

from genqueue.registry.lifecycle import State
from genqueue.wire.events import Cancelled, Event, Failed, Finished, Started
from genqueue_lab.chaos.trace import NEAR_S, Call, Finding, Outages, Span, Trace

OVERLAP_S = 1.0
_TERMINAL: dict[type[Event], State] = {Finished: State.FINISHED, Failed: State.FAILED, Cancelled: State.CANCELLED}


def judge(trace: Trace, calls: Sequence[Call], outages: Outages) -> Finding:
    """The verdict on one generation; ``calls`` are those made for it."""
    found = Finding()
    is_sure = not outages.may_forget_of(trace.life)
    whole = _whole_texts(trace, calls, outages)
    _judge_texts(trace, whole, is_sure, found)
    found.faults += [*trace.errors, *_sent(trace, calls, whole), *_forgotten(trace, outages)]
    if trace.is_gone:
        return found
    found.faults += [*_numbers(trace, is_sure), *_end(trace, outages), *_usage(trace, whole)]
    found.silent_s = _silent_s(trace, calls, outages)
    found.twice_s = _twice_s(trace, calls, outages)
    return found


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


def _whole_texts(trace: Trace, calls: Sequence[Call], outages: Outages) -> dict[str, str]:
    """The whole texts that it may have, by worker; the last one's attempt comes last."""
    pids = [*(call.worker_pid for call in calls), *(pid_of(started) for started in trace.attempts.values())]
    names = [outages.names.get(pid, "") for pid in pids]
    return {name: trace.order.text_by(name) for name in reversed(dict.fromkeys([*reversed(names), ""]))}


def _judge_texts(trace: Trace, whole: dict[str, str], is_sure: bool, found: Finding) -> None:
    texts = list(whole.values())
    last = texts[-1:] if is_sure else texts
    is_finished = trace.state is State.FINISHED
    _compare(trace.text, last if is_finished else _beginnings(texts, trace.text), found)
    for shown in [*trace.voided, *([trace.read] if trace.state is None else [])]:
        _compare(shown, _beginnings(texts, shown), found)
    if trace.state is None:
        return
    # Where that may be forgotten, what its reader was told is another end than the one that it has now.
    is_whole = is_finished if is_sure else trace.told is None
    _compare(trace.read, last if is_whole else _beginnings(texts, trace.read), found)
    if is_sure and is_finished != (trace.told is None):
        found.faults.append(f"its reader was told that it ended as {trace.told or 'finished'}")
    # Of what begins anew and breaks off the newest attempt's text is kept, of which its reader had more before.
    if is_sure and trace.read != trace.text and (is_finished or not trace.order.begins_anew):
        found.faults.append(f"its reader has {len(trace.read)} characters, {len(trace.text)} are kept")
    if is_sure and trace.contradicted:
        found.faults.append("the error that says that the text began anew has not what was delivered")
    got, due = trace.late
    _compare(got, [due], found)


def _compare(text: str, allowed: Sequence[str], found: Finding) -> None:
    """Count what differs from the nearest of those that it may be."""
    if text in allowed:
        return
    lost, doubled = min((differences(expected, text) for expected in allowed), key=sum)
    found.lost, found.doubled = max(found.lost, lost), max(found.doubled, doubled)


def _beginnings(texts: Iterable[str], text: str) -> list[str]:
    return [whole[: len(text)] for whole in texts]


def _numbers(trace: Trace, is_sure: bool) -> list[str]:
    faults = []
    numbers = [event.seq for event in trace.log]
    if numbers != list(range(1, len(numbers) + 1)):
        faults.append(f"the log's events are not numbered 1, 2, 3 …: {_compact(numbers)}")
    shown = [chunk.seq for _, chunk in trace.seen]
    if is_sure and any(before >= after for before, after in pairwise(shown)):
        faults.append(f"its reader was given chunks out of order, or twice: {shown}")
    attempts = [event.attempt for event in trace.log]
    if attempts != sorted(attempts):
        faults.append("an earlier attempt wrote behind a later one")
    return faults


def _compact(numbers: list[int]) -> str:
    return ", ".join(
        f"{before}→{after}" for before, after in zip([0, *numbers], numbers, strict=False) if after != before + 1
    )


def _sent(trace: Trace, calls: Sequence[Call], whole: dict[str, str]) -> list[str]:
    """A continuation's prompt ends with the text so far, but for white space at its end."""
    return [
        f"the model was sent {len(call.sent)} characters that it never said"
        for call in calls
        if not any(text.startswith(call.sent) for text in whole.values())
    ]


def _forgotten(trace: Trace, outages: Outages) -> list[str]:
    return [
        f"it was accepted {told_s - accepted_s:.1f} s before somebody was told that there is none"
        for accepted_s, told_s in trace.gone_s
        if not outages.may_forget(accepted_s)
    ]


def _end(trace: Trace, outages: Outages) -> list[str]:
    order, faults = trace.order, []
    ends = [event for event in trace.log if type(event) in _TERMINAL]
    if len(ends) != 1 or trace.log[-1] is not ends[0]:
        return [f"{len(ends)} ends in its log, must be one and the last"]
    if trace.state is not _TERMINAL[type(ends[0])]:
        faults.append(f"its log ends with {ends[0].type}, the registry says {trace.state}")
    match trace.finish_reason:
        case "cancelled":
            is_due = trace.cancel_s is not None and trace.state is State.CANCELLED
        case "expired":
            waited_s = max(trace.waited_s, (trace.ended_s or 0.0) - trace.submitted_s)
            is_due = order.deadline_s is not None and waited_s > order.deadline_s - 0.5 and trace.state is State.FAILED
        case reason:
            is_due = reason == order.finish_reason and trace.state is State.FINISHED
    if not is_due:
        faults.append(f"it ended as {trace.state} ({trace.finish_reason}), which nobody asked for")
    is_cancelled = trace.state is State.CANCELLED
    if trace.cancel_said not in (None, is_cancelled) and not outages.may_forget_of(trace.life):
        faults.append(f"cancel() said {trace.cancel_said}, it ended as {trace.state}")
    return faults


def _usage(trace: Trace, whole: dict[str, str]) -> list[str]:
    if trace.state is None:
        return []
    order, tokens, is_finished = trace.order, trace.completion_tokens, trace.state is State.FINISHED
    texts = [order.text_after(worker) for worker in whole]
    right: set[int | None] = (
        {order.completion_tokens} if is_finished else {n for after in texts for n in _places(after, trace.text)}
    )
    if order.is_chat and right and (not is_finished or len(trace.attempts) > 1):
        # Of a part of a chat no server says how many tokens it took: its events with text are counted, or nothing said.
        least = min(len({said for said in after if said and trace.text.startswith(said)}) for after in texts)
        right = {None, *range(least, max(filter(None, right), default=0) + 1)}
    told = {event.completion_tokens for event in trace.log if isinstance(event, Finished)}
    if tokens in right and (tokens is None or told <= {tokens}):
        return []
    return [f"usage says {tokens} tokens, its end {told}, of its {len(trace.text)} characters; right: {right}"]


def _places(texts: Sequence[str], text: str) -> Iterable[int]:
    """After how many tokens a text is this one."""
    return (tokens for tokens, said in enumerate(texts) if said == text)


def _silent_s(trace: Trace, calls: Sequence[Call], outages: Outages) -> float:
    order = trace.order
    # Redis forgot what was done in that time, as if it had been away since.
    away = [*outages.redis, *outages.forgotten, *_rests_cut_off(trace, calls, outages), *trace.away]
    texts_s = [] if order.is_quiet else [at_s for at_s, chunk in trace.seen if chunk.text]
    # From when on an attempt that begins is all that its reader sees of the text, until it has all of it.
    quiet_from_s = math.inf
    if order.is_quiet or order.begins_anew:  # a reader who has the beginning waits for the rest of it
        quiet_from_s = 0.0
    elif trace.waits_for_whole:
        quiet_from_s = max(texts_s, default=0.0)
    begun_s = [started.at for started in trace.attempts.values() if started.at >= quiet_from_s]
    worst_s = 0.0
    for began_s, ended_s in pairwise(sorted([trace.submitted_s, trace.read_s, *texts_s, *begun_s])):
        pace_s = order.decode_s if began_s >= quiet_from_s else order.itl_s
        gap = Span(began_s, ended_s)
        down = [span for span in outages.endpoints.get(order.generator, ()) if span.overlap_s(gap)]
        excused_s = covered_s(gap, [*away, *down])
        worst_s = max(worst_s, ended_s - began_s - excused_s - pace_s)
    return worst_s


def _rests_cut_off(trace: Trace, calls: Sequence[Call], outages: Outages) -> list[Span]:
    """The times between two outages of Redis in which nobody might take it over, though its worker was gone.

    After an outage the workers that live renew first.  A sweeper that finds the last sweep more than 2/3 of its lease
    ago lets all leases rest for the length of its own, and the next sweep comes within a third of the longest.  The
    time between two outages is excused only if it is no longer than these two together: then the wait begins anew.
    The rest after the last outage is not excused.
    """
    leases_s = outages.leases_s.values()
    sweep_s = max(leases_s, default=0.0) / 3
    cut_off = []
    for before, after in pairwise(_joined([*outages.redis, *outages.forgotten])):
        between = Span(before.ended_s, after.began_s)
        rest_s = max((lease_s for lease_s in leases_s if before.length_s > lease_s * 2 / 3), default=0.0)
        if rest_s and between.length_s <= rest_s + sweep_s and _is_deserted(trace, calls, outages, between):
            cut_off.append(between)
    return cut_off


def _is_deserted(trace: Trace, calls: Sequence[Call], outages: Outages, span: Span) -> bool:
    """Whether the worker that held it was dead or frozen all this time, and had its call open when that befell it."""
    numbers = [number for number, started in trace.attempts.items() if started.at < span.ended_s]
    if not numbers:
        return False
    newest = max(numbers)
    pid = pid_of(trace.attempts[newest])
    own_calls = [call for call in calls if attempt_of(trace, call) == newest]
    absences = [*outages.frozen.get(pid, ()), Span(outages.killed_s.get(pid, math.inf), math.inf)]
    return any(
        absence.began_s <= span.began_s
        and absence.ended_s >= span.ended_s
        and any(call.began_s <= absence.began_s <= call.closed_s + NEAR_S for call in own_calls)
        for absence in absences
    )


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans in order, of which no two touch."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: span.began_s):
        if joined and span.began_s <= joined[-1].ended_s + NEAR_S:
            before = joined.pop()
            span = Span(before.began_s, max(before.ended_s, span.ended_s))
        joined.append(span)
    return joined


def _twice_s(trace: Trace, calls: Sequence[Call], outages: Outages) -> float:
    worst_s = 0.0
    made: dict[int, Call] = {}
    for call in sorted(calls, key=lambda call: call.began_s):
        if outages.may_forget(call.began_s):
            continue  # so may be that it began: nobody can know it
        attempt = attempt_of(trace, call)
        if attempt is None:
            worst_s = max(worst_s, call.closed_s - call.began_s, 0.001)
            continue
        before = made.setdefault(attempt, call)
        if before is not call and (before.tokens or before.closed_s > call.began_s + 0.01):
            worst_s = max(worst_s, 0.001)  # one that came to nothing may be made once more
        over_s = trace.attempts[attempt + 1].at if attempt + 1 in trace.attempts else trace.ended_s
        if over_s is None or over_s > call.closed_s:
            continue
        since = Span(over_s, call.closed_s)
        untold = [*outages.redis, *outages.frozen.get(call.worker_pid, ())]
        too_long_s = call.closed_s - over_s - covered_s(since, untold) - OVERLAP_S
        worst_s = max(worst_s, too_long_s)
    return worst_s


def attempt_of(trace: Trace, call: Call) -> int | None:
    """The attempt that made a call: the newest that its worker had begun by then; None if there is none."""
    made_by = [
        number
        for number, started in trace.attempts.items()
        if pid_of(started) == call.worker_pid and started.at <= call.began_s + 0.005
    ]
    return max(made_by, default=None)


def pid_of(started: Started) -> int:
    """The process that began an attempt."""
    return int(started.worker.split(":")[-2])


def covered_s(gap: Span, spans: Iterable[Span]) -> float:
    """How much of a gap lies in any of the spans."""
    covered, until_s = 0.0, gap.began_s
    for span in sorted(spans, key=lambda span: span.began_s):
        covered += span.overlap_s(Span(until_s, gap.ended_s)) if gap.ended_s > until_s else 0.0
        until_s = max(until_s, span.ended_s)
    return covered


@dataclass(slots=True)
class Storm:
    """Many that end at once in a deep queue.

    Attributes:
        asked: how many were accepted.
        ends: how many are known to have ended as what; what is gone is not among them.
        gone_s: when those were accepted that nobody knows any more.
        errors: what did not end at all.
    """

    kind: str
    asked: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    gone_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def judge_storm(storm: Storm, due: str, outages: Outages) -> list[str]:
    """What is wrong with a storm: each must have ended as it was due, or with its text if it came first."""
    faults = list(storm.errors)
    others = {end: count for end, count in storm.ends.items() if end not in (due, "finished")}
    if others:
        faults.append(f"{storm.kind}: ended as {others}, due was {due}")
    unexplained = [moment_s for moment_s in storm.gone_s if not outages.may_forget(moment_s)]
    if unexplained:
        faults.append(f"{storm.kind}: {len(unexplained)} are gone that no Redis may have forgotten")
    if storm.ends.total() + len(storm.gone_s) != storm.asked:
        faults.append(f"{storm.kind}: {storm.asked} were accepted, of {storm.ends.total()} the end is known")
    return faults
