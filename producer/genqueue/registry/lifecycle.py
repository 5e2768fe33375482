"""The states of a generation and the edges between them.

The Lua scripts change states; they are handed the states they may leave
(:func:`sources`), so this table is the only place that knows the edges.

queued ──started──▶ running ──finished──▶ finished
  │                    ├─────failed─────▶ failed
  │                    ├────cancelled────▶ cancelled
  │                    ├─────expired─────▶ failed (its holder is gone)
  │                    └────released─────▶ queued (a later attempt goes on)
  ├────────failed (unreadable request), expired──▶ failed
  └────────cancelled──▶ cancelled

A lease that runs out puts nothing into another state by itself: a running generation
whose holder is gone is started again under the next attempt.
"""

from enum import StrEnum


class State(StrEnum):
    """The state of a generation; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen to the generation any more."""
        return self in FINAL


class Transition(StrEnum):
    """A step of a generation; readers are told of it by an event of the same name, but for the last two."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RELEASED = "released"
    EXPIRED = "expired"


FINAL = frozenset({State.FINISHED, State.FAILED, State.CANCELLED})

EDGES: dict[tuple[State, Transition], State] = {
    (State.QUEUED, Transition.STARTED): State.RUNNING,
    (State.RUNNING, Transition.STARTED): State.RUNNING,  # only once the lease has run out
    (State.RUNNING, Transition.FINISHED): State.FINISHED,
    (State.RUNNING, Transition.RELEASED): State.QUEUED,
    (State.QUEUED, Transition.EXPIRED): State.FAILED,
    (State.RUNNING, Transition.EXPIRED): State.FAILED,  # only once the lease has run out
    (State.QUEUED, Transition.FAILED): State.FAILED,
    (State.RUNNING, Transition.FAILED): State.FAILED,
    (State.QUEUED, Transition.CANCELLED): State.CANCELLED,
    (State.RUNNING, Transition.CANCELLED): State.CANCELLED,
}


def sources(transition: Transition) -> list[State]:
    """The states that ``transition`` may leave, in the order of :class:`State`."""
    return [state for state in State if (state, transition) in EDGES]
