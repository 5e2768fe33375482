"""Histories of one generation, as a chaos run would have seen them, to be broken by its tests."""

from genqueue.registry.lifecycle import State
from genqueue.wire.events import Chunk, Finished, Reset, Resumed, Started
from genqueue_lab.chaos.orders import Order
from genqueue_lab.chaos.trace import Call, Outages, Trace

ORDER = Order(
    number=1,
    seed=1,
    at_s=0.0,
    generator="left",
    tokens=20,
    itl_s=0.1,
    ends="length",
    again="continue",
    stream=True,
    split_characters=False,
    cancel_after_s=None,
    deadline_s=None,
    aways=(),
)
PIECES = ORDER.pieces
ONE, TWO = 11, 22  # process ids
NAMES = {ONE: "worker-1", TWO: "worker-2"}
NOTHING = Outages()


def token(text):
    return (5, text, -0.5, False)


def trace_of(*bodies, order=ORDER, tokens=20, text=None, **changes):
    """A trace of events at the given seconds: (at_s, kind of event, attempt, fields); its reader asked for resets."""
    log, seen, read, voided = [], [], [], []
    for seq, (at_s, kind, attempt, fields) in enumerate(bodies, 1):
        event = kind(seq=seq, attempt=attempt, **fields)
        log.append(event)
        if kind is Reset and read:
            voided.append("".join(read))
            read = []
        if kind is Chunk:
            seen.append((at_s, event))
            read.append(event.text)
    ended_s = bodies[-1][0]
    known = {
        "generation_id": "id",
        "asked_s": bodies[0][0],
        "submitted_s": bodies[0][0],
        "state": State.FINISHED,
        "ended_s": ended_s,
        "read_s": ended_s,
        "completion_tokens": tokens,
        "text": order.text if text is None else text,
        "read": "".join(read),
        "voided": voided,
        "finish_reason": order.ends,
    }
    known |= changes
    known.setdefault("told", None if known["state"] is State.FINISHED else known["finish_reason"])
    return Trace(order, seen=seen, log=log, **known)


def started(at_s, attempt=1, pid=ONE):
    return (at_s, Started, attempt, {"at": at_s, "worker": f"host:{pid}:abc"})


def chunk(at_s, first, last, attempt=1, text=None, pieces=PIECES):
    """The tokens ``first`` to ``last - 1``."""
    said = pieces[first:last]
    fields = {"text": "".join(said) if text is None else text, "tokens": [token(piece) for piece in said]}
    return (at_s, Chunk, attempt, fields)


def finished(at_s, attempt=1, tokens=20):
    return (at_s, Finished, attempt, {"finish_reason": "length", "completion_tokens": tokens})


def call(began_s, closed_s, tokens=20, pid=ONE, **fields):
    return Call(pid, began_s, closed_s, tokens, **fields)


def silent_for(gap_s, attempt=1, order=ORDER):
    """Nothing comes for so long behind the first ten tokens."""
    after_s = 1.1 + gap_s
    rest = (started(after_s, 2, TWO),) if attempt == 2 else ()
    return trace_of(
        started(1.0), chunk(1.1, 0, 10), *rest, chunk(after_s, 10, 20, attempt), finished(after_s, attempt), order=order
    )


WHOLE = (started(1.0), chunk(1.1, 0, 10), chunk(2.0, 10, 20), finished(2.1))
TAKEN_OVER = (
    *(started(1.0), chunk(1.1, 0, 10), started(5.0, 2, TWO), (5.0, Resumed, 2, {})),
    *(chunk(5.1, 10, 20, 2), finished(6.0, 2)),
)
RESTARTED = (
    *(started(1.0), chunk(1.1, 0, 10), started(5.0, 2, TWO), (5.0, Reset, 2, {})),
    *(chunk(5.1, 0, 20, 2), finished(6.0, 2)),
)
