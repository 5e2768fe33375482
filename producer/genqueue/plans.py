"""What a reader does, step by step, without doing it: shared by both clients.

A plan is a generator.  It yields what it needs - a :class:`~genqueue.calls.Call` to Redis, or
:data:`WAIT` for the next message on its channel - and is sent the answer; everything else
it yields is for the caller.  A client carries the steps out, waiting in its own way.
"""

import math
from collections.abc import Generator, Mapping
from enum import Enum
from typing import Any, TypeVar

from pydantic import ValidationError

from genqueue import calls, outcome
from genqueue.calls import Accepted, Call, Record, Said
from genqueue.errors import GenerationNotFoundError, LogExpiredError, NotDeadError
from genqueue.lifecycle import State
from genqueue.messages import Chunk, Event, GenerationRequest, GenerationResult, Reset, read_events
from genqueue.outcome import DeadLetter, DeadLetterDetail, GenerationStatus
from genqueue.sequence import Follower

ItemT = TypeVar("ItemT")

_PAGE = 500
"""Dead letters that are read at once."""


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


_LEAST_ANSWER_S = 0.25


class Deadline:
    """Until when a caller waits for an end, and for Redis: not longer, but Redis has a moment in any case.

    Times are seconds of one monotonic clock; ``timeout_s`` None is no limit.
    """

    def __init__(self, timeout_s: float | None, now_s: float) -> None:
        self._end_s = math.inf if timeout_s is None else now_s + timeout_s
        self._answer_end_s = max(self._end_s, now_s + _LEAST_ANSWER_S)

    def wait_s(self, now_s: float, most_s: float) -> float:
        """How long to wait for a message, at most ``most_s``; 0 when the time is over."""
        return max(0.0, min(most_s, self._end_s - now_s))

    def answer_s(self, now_s: float) -> float | None:
        """How long Redis may take to answer; None where its own timeout is enough."""
        return None if self._answer_end_s == math.inf else max(0.0, self._answer_end_s - now_s)


def follow(generation_id: str, from_seq: int) -> Plan[Event]:
    """Every event after number ``from_seq``, in order, once each, until the terminal one.

    The channel is listened to before the first step, so what the log does not hold yet
    comes as a message.  Raises LogExpiredError when events are asked for that are gone.

    Where Redis has forgotten events that were handed out (a crash, a failover), and others have their
    numbers now, a ``reset`` of number 0 comes, and then every event from number 1 on.
    """
    follower = Follower(from_seq)
    message: bytes | None = None
    while True:
        yield from follower.hear(_events_in(message))
        is_doubtful = follower.doubts_history
        while follower.is_whole and follower.terminal is None and (message is None or follower.has_gap):
            page: list[Event] = yield calls.read_log(generation_id, follower.read_from)
            if not page or page[-1].seq < follower.next_seq:
                yield from follower.feed(page)
                follower.read_to_end()
                break
            if page[0].seq > follower.next_seq:  # events are logged in order: what is not there now never comes
                raise LogExpiredError(generation_id, follower.next_seq - 1)
            yield from follower.feed(page)
        if follower.terminal is not None:
            return
        record: Record
        if (message is None or is_doubtful) and follower.is_whole:
            record = yield calls.read_record(generation_id)
            if record.state.is_final or is_doubtful:
                follower.ends_at(record.seq)
        if not follower.is_whole:
            follower, message = Follower(), None
            yield Reset(seq=0, attempt=0)
            continue
        if message is None:
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
        said: Said = yield calls.read_said(generation_id)
        if not got_chunk:
            yield from outcome.whole_text_chunk(record, said)
        raise outcome.error_of(record, said)
    if not got_chunk:
        found: GenerationResult | None = yield calls.read_result(generation_id)
        if found is None:
            raise GenerationNotFoundError(generation_id)
        meta = found.meta[0]
        said = Said(found.replies[0], meta.get("reasoning", ""), meta.get("tool_calls", ()))
        yield from outcome.whole_text_chunk(record, said)


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
                raise outcome.error_of(record, (yield calls.read_said(generation_id)))
        if found is not None:
            yield found
            return
        yield WAIT


def status(generation_id: str) -> Plan[GenerationStatus]:
    """Where it is now."""
    record: Record = yield calls.read_record(generation_id)
    position: int | None = yield calls.queue_position(generation_id, record.generator)
    yield outcome.status(generation_id, record, position)


def cancel(generation_id: str, *, date_done: str, log_ttl_s: int, result_ttl_s: int, keep_s: int) -> Plan[bool]:
    """Whether it is cancelled now; False when it had ended otherwise before."""
    record: Record = yield calls.read_record(generation_id)
    end = outcome.cancelled(generation_id, record.generator, date_done=date_done)
    answer: str = yield calls.finish(end, log_ttl_s=log_ttl_s, result_ttl_s=result_ttl_s, keep_s=keep_s)
    if answer == "gone":
        raise GenerationNotFoundError(generation_id)
    yield answer == "ok"


def dead_letters(generator: str | None, limit: int | None) -> Plan[DeadLetter]:
    """Up to ``limit`` dead letters, the newest first; others may come and go meanwhile."""
    first, given = 0, set[str]()
    while limit is None or len(given) < limit:
        size = _PAGE if limit is None or generator is not None else min(_PAGE, limit - len(given))
        page: list[str] = yield calls.dead_letters(first, size)
        if not page:
            return
        records: list[Record | None] = yield calls.read_records(page)
        for generation_id, record in zip(page, records, strict=True):
            if len(given) == limit:
                return
            if record is None or record.retried_as or generation_id in given:
                continue  # it went, or the list moved, since the page was read
            if generator in {None, record.generator}:
                given.add(generation_id)
                yield outcome.dead_letter(generation_id, record)
        first += len(page)


def dead_letter(generation_id: str) -> Plan[DeadLetterDetail]:
    """All that is kept of one; raises NotDeadError for a generation that is none."""
    record: Record = yield calls.read_record(generation_id)
    letter = outcome.dead_letter(generation_id, record)
    text: str = yield calls.read_text(generation_id)
    request: GenerationRequest | None = yield calls.read_request(generation_id)
    if request is None:
        raise NotDeadError(generation_id, "it was dropped")
    yield outcome.dead_letter_detail(letter, record, text, request)


def retry(
    generation_id: str, new_id: str, *, max_queue_depths: Mapping[str, int], keep_s: int, result_ttl_s: int
) -> Plan[str]:
    """The id of the generation that a dead letter is tried again as; raises as :func:`genqueue.calls.retry`."""
    record: Record = yield calls.read_record(generation_id)
    if record.retried_as is None:
        outcome.dead_letter(generation_id, record)  # or it says why it is none
    accepted: Accepted = yield calls.retry(
        generation_id,
        new_id,
        record.generator,
        record.priority,
        max_queue_depth=max_queue_depths.get(record.generator),
        keep_s=keep_s,
        result_ttl_s=result_ttl_s,
    )
    yield accepted.generation_id


def drop(generation_id: str, *, result_ttl_s: int) -> Plan[None]:
    """Drop a dead letter, or do nothing if it was dropped before; raises NotDeadError for what never was one."""
    outcome.dead_letter(generation_id, (yield calls.read_record(generation_id)))
    yield calls.drop(generation_id, result_ttl_s=result_ttl_s)


def in_batches(plan: Plan[ItemT]) -> Plan[list[ItemT]]:
    """What a plan yields, gathered for as long as it does not wait: what came together stays together.

    The last chunk of a generation is published in one message with its end, so whoever reads in batches
    knows it for the last when it comes.
    """
    gathered: list[ItemT] = []
    answer = None
    while True:
        try:
            step = plan.send(answer)
        except StopIteration:
            break
        answer = None
        if isinstance(step, Wait) and gathered:
            yield gathered
            gathered = []
        if isinstance(step, Call | Wait):
            answer = yield step
        else:
            gathered.append(step)
    if gathered:
        yield gathered


def _events_in(message: bytes | None) -> list[Event]:
    """The events of one message; what is none of ours is passed over, the log has the truth."""
    try:
        return [] if message is None else read_events(message)
    except ValidationError:
        return []
