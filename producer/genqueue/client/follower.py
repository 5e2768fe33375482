"""Put a generation's events in order, once each, whatever the wire does.

A reader subscribes first, reads the log, then follows the channel.  So it sees some events
twice, and after a lost connection it misses some.  This module decides which events reach
the caller and when the log must be read (again).  It holds no connection and no clock;
:mod:`genqueue.client.flows` feeds it.

A Redis that crashed, or gave way to its replica, may have forgotten its last writes; then
another attempt writes other events under numbers that this reader has seen.  An attempt
begins with ``started``, and attempts are numbered upwards: that tells.

The log is the truth, the channel only fast: whoever knows the id may publish there.  What comes there and does
not fit is not believed, but has the log read; where that knows nothing of it, ever more of its like
is passed over unread.
"""

from collections.abc import Iterable

from genqueue.wire.events import Cancelled, Event, Failed, Finished, OtherEvent, Started, Terminal

_MOST_PASSED_OVER = 1024
_ENDS = (Finished, Failed, Cancelled)


class Follower:
    """One reader's place in one generation's events.

    Attributes:
        next_seq: the number of the next event to hand out.
        terminal: the last event, once it has been handed out.
        is_whole: whether all that was handed out is of one history; once it is not, nothing more is.
    """

    def __init__(self, from_seq: int = 0) -> None:
        """Begin after the event ``from_seq``; 0 is the beginning."""
        if from_seq < 0:
            raise ValueError(f"from_seq is {from_seq}, must be at least 0")
        self.next_seq = from_seq + 1
        self.terminal: Terminal | None = None
        self.is_whole = True
        self._attempt: int | None = None
        self._started_at: float | None = None
        self._last: Event | None = None
        self._is_unsure = False
        self._early: dict[int, Event] = {}
        self._doubts_history = False
        self._false_alarms = 0
        self._pass_over = 0

    @property
    def has_gap(self) -> bool:
        """Whether an event is missing that others came after: read the log from ``read_from`` on."""
        return bool(self._early) or self._doubts_history

    @property
    def doubts_history(self) -> bool:
        """Whether something was heard that says that what was handed out is of the past."""
        return self._doubts_history

    @property
    def read_from(self) -> int:
        """The number from which to read the log: the next, or the last once more where that is in doubt."""
        return max(1, self.next_seq - 1) if self._doubts_history or self._is_unsure else self.next_seq

    @property
    def ends_strangely(self) -> bool:
        """Whether the last that was handed out is of a kind that came later, which may be a newer worker's end."""
        return isinstance(self._last, OtherEvent)

    def lost_sight(self) -> None:
        """Something may have been missed, another history's start too: take no more before the log has the last event.

        A log that is shorter than what was handed out says nothing yet: its writer may write it again, or another.
        """
        self._is_unsure = self._last is not None

    def hear(self, events: Iterable[Event]) -> list[Event]:
        """Take what came on the channel, as :meth:`feed`; what does not fit is only a reason to read the log."""
        ready: list[Event] = []
        for event in events:
            if self.terminal is not None or not self.is_whole:
                break
            fits = event.seq == self.next_seq and self._follows(event)
            if fits and not (self._early or self._is_unsure):  # nearly always
                self._take(event)
                ready.append(event)
            elif fits and self._is_unsure:
                self._early[event.seq] = event
            elif fits:
                ready += self.feed([event])
            elif event.seq >= self.next_seq or self._is_another(event):
                if self._pass_over > 0:
                    self._pass_over -= 1
                elif event.seq > self.next_seq:
                    self._early[event.seq] = event
                else:
                    self._doubts_history = True
        return ready

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """Take events of the log in any order, any number of times; return those whose turn has come."""
        for event in events:
            if self.terminal is not None:
                break
            if event.seq >= self.next_seq:
                self._early[event.seq] = event
            elif self._is_another(event):
                self.is_whole = False
            elif event.seq == self.next_seq - 1:
                if self._attempt not in {None, event.attempt} or (self._is_unsure and event != self._last):
                    self.is_whole = False  # what was handed out as the last one is not what is logged
                self._is_unsure = False
        ready: list[Event] = []
        while self.is_whole and (next_event := self._early.pop(self.next_seq, None)) is not None:
            if not self._follows(next_event):
                self.is_whole = False
                break
            self._take(next_event)
            ready.append(next_event)
        return ready

    def _take(self, event: Event) -> None:
        """It is the next to be handed out."""
        if isinstance(event, Started):
            self._started_at = event.at
        elif isinstance(event, _ENDS):
            self.terminal = event
            self._early.clear()
        self._attempt, self._last = event.attempt, event
        self.next_seq += 1

    def read_to_end(self) -> None:
        """The log holds no more: what is still early is in no log, and what was doubted stands."""
        if self.has_gap:
            self._false_alarms += 1
            self._pass_over = min(2**self._false_alarms, _MOST_PASSED_OVER)
        self._early.clear()
        self._doubts_history = False

    def ends_at(self, seq: int) -> None:
        """The log's last event has this number: more cannot have been handed out."""
        if self._attempt is not None and self.next_seq > seq + 1:
            self.is_whole = False

    def _is_another(self, event: Event) -> bool:
        """Whether an event with a number that was handed out is not the one that was."""
        if self._attempt is None or event.attempt < self._attempt:
            return False
        if event.attempt > self._attempt:
            return True
        return isinstance(event, Started) and self._started_at is not None and event.at != self._started_at

    def _follows(self, event: Event) -> bool:
        """Whether it may come after what was handed out."""
        if isinstance(event, Started):
            return self._attempt is None or event.attempt > self._attempt
        return self._attempt is None or self._attempt == event.attempt
