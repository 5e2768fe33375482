"""Put a generation's events in order, once each, whatever the wire does.

A reader subscribes first, reads the log, then follows the channel.  So it sees some events
twice, and after a lost connection it misses some.  This module decides which events reach
the caller and when the log must be read (again).  It holds no connection and no clock;
:mod:`genqueue.client` feeds it.
"""

from collections.abc import Iterable

from genqueue.messages import Cancelled, Event, Failed, Finished, Terminal


class Follower:
    """One reader's place in one generation's events.

    Attributes:
        next_seq: the number of the next event to hand out.
        terminal: the last event, once it has been handed out.
    """

    def __init__(self, from_seq: int = 0) -> None:
        """Begin after the event ``from_seq``; 0 is the beginning."""
        if from_seq < 0:
            raise ValueError(f"from_seq is {from_seq}, must be at least 0")
        self.next_seq = from_seq + 1
        self.terminal: Terminal | None = None
        self._early: dict[int, Event] = {}

    @property
    def has_gap(self) -> bool:
        """Whether an event is missing that others came after: read the log from ``next_seq`` on."""
        return bool(self._early)

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """Take events in any order, any number of times; return those whose turn has come."""
        for event in events:
            if event.seq >= self.next_seq and self.terminal is None:
                self._early[event.seq] = event
        ready: list[Event] = []
        while (next_event := self._early.pop(self.next_seq, None)) is not None:
            ready.append(next_event)
            self.next_seq += 1
            if isinstance(next_event, Finished | Failed | Cancelled):
                self.terminal = next_event
                self._early.clear()
        return ready
