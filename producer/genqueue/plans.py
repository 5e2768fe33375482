"""What a reader does, step by step, without doing it: shared by both clients.

A plan is a generator.  It yields what it needs - a :class:`~genqueue.calls.Call` to Redis, or
:data:`WAIT` for the next message on its channel - and is sent the answer; everything else
it yields is for the caller.  A client carries the steps out, waiting in its own way.
"""

from collections.abc import Generator
from enum import Enum
from typing import Any, TypeVar

from pydantic import ValidationError

from genqueue import calls, outcome
from genqueue.calls import Call, Record
from genqueue.errors import GenerationNotFoundError, LogExpiredError
from genqueue.lifecycle import State
from genqueue.messages import Chunk, Event, GenerationResult, Reset, read_events
from genqueue.outcome import GenerationStatus
from genqueue.sequence import Follower

ItemT = TypeVar("ItemT")


class Wait(Enum):
    """The step that waits."""

    FOR_MESSAGE = "the next message; answered by its bytes, or None after a silence or a lost connection"


WAIT = Wait.FOR_MESSAGE
Plan = Generator[Call[Any] | Wait | ItemT, Any, None]


class Patience:
    """How long one reader bears that Redis is away: not at all until it was there once."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._was_there = False
        self._away_since_s: float | None = None

    def there(self) -> None:
        """Redis answered."""
        self._was_there = True
        self._away_since_s = None

    def ends(self, now_s: float) -> bool:
        """Redis did not answer: whether the reader gives up."""
        if self._away_since_s is None:
            self._away_since_s = now_s
        return not self._was_there or now_s - self._away_since_s >= self._patience_s


def follow(generation_id: str, from_seq: int) -> Plan[Event]:
    """Every event after number ``from_seq``, in order, once each, until the terminal one.

    The channel is listened to before the first step, so what the log does not hold yet
    comes as a message.  Raises LogExpiredError when events are asked for that are gone.
    """
    follower = Follower(from_seq)
    message: bytes | None = None
    while True:
        yield from follower.feed(_events_in(message))
        while follower.terminal is None and (message is None or follower.has_gap):
            page: list[Event] = yield calls.read_log(generation_id, follower.next_seq)
            if not page:
                break
            if page[0].seq > follower.next_seq:  # events are logged in order: what is not there now never comes
                raise LogExpiredError(generation_id, follower.next_seq - 1)
            yield from follower.feed(page)
        if follower.terminal is not None:
            return
        if message is None:
            record: Record = yield calls.read_record(generation_id)
            if record.state.is_final and follower.next_seq > record.seq:
                return  # the reader had the last event already
            if record.state.is_final and not (yield calls.read_log(generation_id, follower.next_seq, limit=1)):
                raise LogExpiredError(generation_id, follower.next_seq - 1)
            if record.state.is_final:
                continue  # it ended between the two looks
        message = yield WAIT


def stream(generation_id: str, from_seq: int) -> Plan[Chunk]:
    """The chunks of :func:`follow`, then the end: nothing, or the typed error.

    Who gets no chunk from the log (none were published, or it is gone) gets the text as one.
    """
    got_chunk, reset = from_seq > 0, None
    try:
        answer = None
        following = follow(generation_id, from_seq)
        while True:
            step = following.send(answer)
            answer = None
            if isinstance(step, Call | Wait):
                answer = yield step
            elif isinstance(step, Reset):
                reset = step
            elif isinstance(step, Chunk):
                got_chunk = True
                yield step.model_copy(update={"restarts": True}) if reset else step
                reset = None
    except StopIteration:
        pass
    except LogExpiredError:
        if got_chunk:
            raise
    if reset and got_chunk:  # it ended before the new text began
        yield Chunk(seq=reset.seq, attempt=reset.attempt, text="", restarts=True)
    record: Record = yield calls.read_record(generation_id)
    while not record.state.is_final:  # its log went before its end
        yield WAIT
        record = yield calls.read_record(generation_id)
    if record.state is not State.FINISHED:
        text: str = yield calls.read_text(generation_id)
        if not got_chunk:
            yield from outcome.whole_text_chunk(record, text)
        raise outcome.error_of(record, text)
    if not got_chunk:
        found: GenerationResult | None = yield calls.read_result(generation_id)
        if found is None:
            raise GenerationNotFoundError(generation_id)
        yield from outcome.whole_text_chunk(record, found.replies[0])


def result(generation_id: str) -> Plan[GenerationResult]:
    """The result, once it is there; raises the typed error of a generation that ended otherwise."""
    while True:
        found: GenerationResult | None = yield calls.read_result(generation_id)
        if found is None:
            record: Record = yield calls.read_record(generation_id)
            if record.state is State.FINISHED:  # between the two looks
                found = yield calls.read_result(generation_id)
                if found is None:
                    raise GenerationNotFoundError(generation_id)
            elif record.state.is_final:
                raise outcome.error_of(record, (yield calls.read_text(generation_id)))
        if found is not None:
            yield found
            return
        yield WAIT


def status(generation_id: str) -> Plan[GenerationStatus]:
    """Where it is now."""
    record: Record = yield calls.read_record(generation_id)
    position: int | None = yield calls.queue_position(generation_id, record.generator)
    yield outcome.status(generation_id, record, position)


def cancel(generation_id: str, *, date_done: str, log_ttl_s: int, result_ttl_s: int) -> Plan[bool]:
    """Whether it is cancelled now; False when it had ended otherwise before."""
    record: Record = yield calls.read_record(generation_id)
    end = outcome.cancelled(generation_id, record.generator, date_done=date_done)
    answer: str = yield calls.finish(end, log_ttl_s=log_ttl_s, result_ttl_s=result_ttl_s)
    if answer == "gone":
        raise GenerationNotFoundError(generation_id)
    yield answer == "ok"


def _events_in(message: bytes | None) -> list[Event]:
    """The events of one message; what is none of ours is passed over, the log has the truth."""
    try:
        return [] if message is None else read_events(message)
    except ValidationError:
        return []
