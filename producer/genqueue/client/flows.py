"""The steps of a reader, without doing them: shared by both clients.

A flow is a generator.  It yields what it needs - a :class:`~genqueue.registry.script.Call` to Redis, or
:data:`WAIT` for the next message on its channel - and is sent the answer; everything else
it yields is for the caller.  A client carries the steps out, waiting in its own way.
"""

from collections.abc import Generator, Mapping
from enum import Enum
from typing import Any, TypeVar

from pydantic import ValidationError

from genqueue.client import views
from genqueue.client.delivery import Continuing, Delivery, Marking
from genqueue.client.follower import Follower
from genqueue.client.views import DeadLetter, DeadLetterDetail, GenerationStatus
from genqueue.errors import (
    GenerationNotFoundError,
    LogBrokenError,
    LogExpiredError,
    NotDeadError,
    StreamRestartedError,
)
from genqueue.registry import attempts, endings, reading
from genqueue.registry import dead_letters as registry_dead_letters
from genqueue.registry.lifecycle import State
from genqueue.registry.partial import PartialOutput
from genqueue.registry.reading import Record
from genqueue.registry.script import Call
from genqueue.registry.submitting import Accepted
from genqueue.wire.events import Cancelled, Chunk, Event, Failed, Finished, Reset, read_events
from genqueue.wire.request import GenerationRequest
from genqueue.wire.result import GenerationResult

ItemT = TypeVar("ItemT")

_PAGE = 500
"""Dead letters that are read at once."""
_PAGE_EVENTS = 1000
"""Events that a reader who comes late keeps before it hands any out."""
_MOST_CONTRADICTIONS = 2
"""Readings of a log from its beginning, one upon the other, that find no one history: then none will."""


class Wait(Enum):
    """The step that waits."""

    FOR_MESSAGE = "the next message; answered by its bytes, or None after a silence or a lost connection"


WAIT = Wait.FOR_MESSAGE
Flow = Generator[Call[Any] | Wait | ItemT, Any, None]


def follow(generation_id: str, from_seq: int) -> Flow[list[Event]]:
    """Every event after number ``from_seq``, in order, once each, until the terminal one; a list of what came together.

    The channel is listened to before the first step, so what the log does not hold yet
    comes as a message.  Raises LogExpiredError when events are asked for that are gone.

    Where Redis has forgotten events that were handed out (a crash, a failover), and others have their
    numbers now, a ``reset`` of number 0 comes, and then every event from number 1 on.  Raises LogBrokenError
    the second time that the log, read from its beginning, is no one history, and where it ends without an end.
    """
    follower = Follower(from_seq)
    message: bytes | None = None
    is_from_beginning, contradictions = from_seq == 0, 0
    while True:
        if heard := follower.hear(_events_in(message)):
            yield heard
        if message is None:
            follower.lost_sight()
        is_doubtful = follower.doubts_history
        while follower.is_whole and follower.terminal is None and (message is None or follower.has_gap):
            page: list[Event] = yield reading.read_log(generation_id, follower.read_from)
            is_last = not page or page[-1].seq < follower.next_seq
            if not is_last and page[0].seq > follower.next_seq:
                # Events are logged in order: what is not there now never comes.
                raise LogExpiredError(generation_id, follower.next_seq - 1)
            if ready := follower.feed(page):
                yield ready
            if is_last:
                follower.read_to_end()
                break
        if follower.terminal is not None:
            return
        record: Record
        if (message is None or is_doubtful) and follower.is_whole:
            record = yield reading.read_record(generation_id)
            if record.state.is_final or is_doubtful:
                follower.ends_at(record.seq)
            elif record.seq < from_seq:  # the reader has had events that Redis has forgotten
                follower.is_whole = False
        if not follower.is_whole:
            contradictions += is_from_beginning
            if contradictions == _MOST_CONTRADICTIONS:
                raise LogBrokenError(generation_id)
            follower, message, is_from_beginning, from_seq = Follower(), None, True, 0
            yield [Reset(seq=0, attempt=0)]
            continue
        if message is None:
            if record.state.is_final and follower.next_seq > record.seq:
                if from_seq >= record.seq or follower.ends_strangely:
                    return  # the reader had the last event already
                raise LogBrokenError(generation_id)
            if record.state.is_final and not (yield reading.read_log(generation_id, follower.next_seq, limit=1)):
                raise LogExpiredError(generation_id, follower.next_seq - 1)
            if record.state.is_final:
                continue  # it ended between the two looks
        message = yield WAIT
        is_from_beginning, contradictions = False, 0


def deliver(generation_id: str, from_seq: int, given: Delivery) -> Flow[list[Event]]:
    """:func:`follow` as ``given`` has it, without the event ``reset``: what came together stays together.

    The last chunk of a generation is published in one message with its end, so whoever reads in batches
    knows it for the last when it comes.  What another attempt has made void by now is not handed out.
    """
    gathered: list[Event] = []
    void_before, is_looked_ahead, answer = 0, False, None
    following = follow(generation_id, from_seq)
    while True:
        try:
            step = following.send(answer)
        except StopIteration:
            break
        answer = None
        if isinstance(step, list):
            if step[0].seq == 0:  # Redis has forgotten: the numbers are other events' now
                void_before, is_looked_ahead = 0, False
            gathered = gathered + step if gathered else step
            continue
        if isinstance(step, Wait):
            if len(gathered) == 1 and isinstance(gathered[0], Chunk):  # nearly always
                if delivered := given.take(gathered[0]):
                    yield [*delivered]
            elif gathered:
                yield from _delivered(generation_id, from_seq, given, gathered)
            gathered = []
        elif len(gathered) >= _PAGE_EVENTS:  # a long log, too long to be kept until its end
            if not is_looked_ahead:
                is_looked_ahead = True
                void_before = yield from _last_reset(generation_id, gathered[-1].seq + 1)
            gathered = [event for event in gathered if event.seq >= void_before or not isinstance(event, Chunk)]
            yield from _delivered(generation_id, from_seq, given, gathered[:-1])
            del gathered[:-1]
        answer = yield step
    yield from _delivered(generation_id, from_seq, given, gathered)


def _delivered(generation_id: str, from_seq: int, given: Delivery, events: list[Event]) -> Flow[list[Event]]:
    """The events as ``given`` has them, in one list, if there are any."""
    resets = [place for place, event in enumerate(events) if isinstance(event, Reset)]
    first_chunk = resets[-1] if resets else 0
    delivered: list[Event] = []
    try:
        for place, event in enumerate(events):
            if isinstance(event, Chunk):
                if place >= first_chunk:
                    delivered += given.take(event)
            elif not isinstance(event, Reset):
                if isinstance(event, Finished):
                    delivered += given.finish()
                elif isinstance(event, Failed | Cancelled):
                    delivered += given.fail()
                delivered.append(event)
            elif place == first_chunk:
                if isinstance(given, Continuing) and given.lacks_beginning and event.seq > 0:
                    given.remember((yield from _chunks_until(generation_id, from_seq)))
                given.begin_anew(event)
    except StreamRestartedError:
        if delivered:
            yield delivered
        raise
    if delivered:
        yield delivered


def _last_reset(generation_id: str, from_seq: int) -> Generator[Call[Any], Any, int]:
    """The number of the last ``reset`` that the log holds from ``from_seq`` on; 0 where it holds none."""
    record: Record = yield reading.read_record(generation_id)
    last = 0
    while record.attempt > 1 and from_seq <= record.seq:  # a first attempt begins nothing anew
        page: list[Event] = yield reading.read_log(generation_id, from_seq)
        if not page:
            break
        last = max([last, *(event.seq for event in page if isinstance(event, Reset))])
        from_seq = page[-1].seq + 1
    return last


def _chunks_until(generation_id: str, last_seq: int) -> Generator[Call[Any], Any, list[Chunk]]:
    """What the log holds up to this number of the text that its next event belongs to."""
    chunks: list[Chunk] = []
    seq = 1
    while seq <= last_seq:
        page: list[Event] = yield reading.read_log(generation_id, seq)
        if not page or page[0].seq > seq:
            raise LogExpiredError(generation_id, seq - 1)
        for event in page:
            if event.seq > last_seq:
                break
            if isinstance(event, Reset):
                chunks = []
            elif isinstance(event, Chunk):
                chunks.append(event)
        seq = page[-1].seq + 1
    return chunks


def stream(generation_id: str, from_seq: int, *, resets: bool = False) -> Flow[list[Chunk]]:
    """The chunks of :func:`deliver`, then the end: nothing, or the typed error.

    Where the log has no chunk (none were published, or it is gone), or is no one history, the text comes as one chunk.
    """
    given: Delivery = Marking(from_seq) if resets else Continuing(generation_id, from_seq)
    is_log_whole = True
    try:
        answer = None
        delivering = deliver(generation_id, from_seq, given)
        while True:
            step = delivering.send(answer)
            answer = None
            if isinstance(step, Call | Wait):
                answer = yield step
            elif len(step) == 1 and isinstance(step[0], Chunk):  # nearly always
                yield [step[0]]
            elif chunks := [event for event in step if isinstance(event, Chunk)]:
                yield chunks
    except StopIteration:
        pass
    except (LogExpiredError, LogBrokenError):
        if from_seq > 0:
            raise
        is_log_whole = False
    record: Record = yield reading.read_record(generation_id)
    while not record.state.is_final:  # its log went before its end
        message: bytes | None = yield WAIT
        if message is None or any(isinstance(event, Finished | Failed | Cancelled) for event in _events_in(message)):
            record = yield reading.read_record(generation_id)
    if record.state is not State.FINISHED:
        partial: PartialOutput = yield reading.read_said(generation_id)
        if given.is_empty and (chunks := views.whole_text_chunk(record, partial)):
            yield chunks
        raise views.error_of(record, partial)
    if given.is_empty or not is_log_whole:
        result: GenerationResult | None = yield reading.read_result(generation_id)
        if result is None:
            raise GenerationNotFoundError(generation_id)
        given.begin_anew(Reset(seq=0, attempt=record.attempt))
        whole_text = views.whole_text_chunk(record, views.output_of(result))
        rest = [chunk for whole in whole_text for chunk in given.take(whole)]
        if rest := rest + given.finish():
            yield rest


def batches(generation_id: str, from_seq: int, *, resets: bool = False) -> Flow[list[list[Event]]]:
    """What :func:`deliver` gives, or with ``resets`` all that :func:`follow` does, a list for what came together."""
    flow = in_batches(follow(generation_id, from_seq)) if resets else None
    flow = flow or deliver(generation_id, from_seq, Continuing(generation_id, from_seq))
    answer = None
    while True:
        try:
            step = flow.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(step, list):
            yield [step]
        else:
            answer = yield step


def result(generation_id: str) -> Flow[list[GenerationResult]]:
    """The result, once it is there; raises the typed error of a generation that ended otherwise."""
    while True:
        result: GenerationResult | None = yield reading.read_result(generation_id)
        if result is None:
            record: Record = yield reading.read_record(generation_id)
            if record.state is State.FINISHED:  # between the two looks
                result = yield reading.read_result(generation_id)
                if result is None:
                    raise GenerationNotFoundError(generation_id)
            elif record.state.is_final:
                raise views.error_of(record, (yield reading.read_said(generation_id)))
        if result is not None:
            yield [result]
            return
        yield WAIT


def status(generation_id: str) -> Flow[GenerationStatus]:
    """Where it is now."""
    record: Record = yield reading.read_record(generation_id)
    position: int | None = yield reading.queue_position(generation_id, record.generator)
    yield views.status(generation_id, record, position)


def cancel(generation_id: str, *, date_done: str, log_ttl_s: int, result_ttl_s: int, keep_s: int) -> Flow[bool]:
    """Whether it is cancelled now; False when it had ended otherwise before."""
    generator: str = yield reading.read_home(generation_id)  # a record that cannot be read is cancelled as any
    end = endings.cancelled(generation_id, generator, date_done=date_done)
    answer: str = yield attempts.finish(end, log_ttl_s=log_ttl_s, result_ttl_s=result_ttl_s, keep_s=keep_s)
    if answer == "gone":
        raise GenerationNotFoundError(generation_id)
    yield answer == "ok"


def dead_letters(generator: str | None, limit: int | None) -> Flow[DeadLetter]:
    """Up to ``limit`` dead letters, the newest first; others may come and go meanwhile."""
    first, given = 0, set[str]()
    while limit is None or len(given) < limit:
        size = _PAGE if limit is None or generator is not None else min(_PAGE, limit - len(given))
        page: list[str] = yield registry_dead_letters.dead_letters(first, size)
        if not page:
            return
        records: list[Record | None] = yield reading.read_records(page)
        for generation_id, record in zip(page, records, strict=True):
            if len(given) == limit:
                return
            if record is None or record.retried_as or generation_id in given:
                continue  # it went, or the list moved, since the page was read
            if generator in {None, record.generator}:
                given.add(generation_id)
                yield views.dead_letter(generation_id, record)
        first += len(page)


def dead_letter(generation_id: str) -> Flow[DeadLetterDetail]:
    """All that is kept of one; raises NotDeadError for a generation that is none."""
    record: Record = yield reading.read_record(generation_id)
    letter = views.dead_letter(generation_id, record)
    text: str = yield reading.read_text(generation_id)
    request: GenerationRequest | None = yield reading.read_request(generation_id)
    if request is None:
        raise NotDeadError(generation_id, "it was dropped")
    yield views.dead_letter_detail(letter, record, text, request)


def retry(
    generation_id: str, new_id: str, *, max_queue_depths: Mapping[str, int], keep_s: int, result_ttl_s: int
) -> Flow[str]:
    """The id of the generation that a dead letter is tried again as.

    Raises as :func:`genqueue.registry.dead_letters.retry`.
    """
    record: Record = yield reading.read_record(generation_id)
    if record.retried_as is None:
        views.dead_letter(generation_id, record)  # or it says why it is none
    accepted: Accepted = yield registry_dead_letters.retry(
        generation_id,
        new_id,
        record.generator,
        record.priority,
        max_queue_depth=max_queue_depths.get(record.generator),
        keep_s=keep_s,
        result_ttl_s=result_ttl_s,
    )
    yield accepted.generation_id


def drop(generation_id: str, *, result_ttl_s: int) -> Flow[None]:
    """Drop a dead letter, or do nothing if it was dropped before; raises NotDeadError for what never was one."""
    views.dead_letter(generation_id, (yield reading.read_record(generation_id)))
    yield registry_dead_letters.drop(generation_id, result_ttl_s=result_ttl_s)


def in_batches(flow: Flow[list[ItemT]]) -> Flow[list[ItemT]]:
    """What a flow yields, gathered for as long as it does not wait: what came together stays together."""
    gathered: list[ItemT] = []
    answer = None
    while True:
        try:
            step = flow.send(answer)
        except StopIteration:
            break
        answer = None
        if isinstance(step, list):
            gathered += step
            continue
        if isinstance(step, Wait) and gathered:
            yield gathered
            gathered = []
        answer = yield step
    if gathered:
        yield gathered


def _events_in(message: bytes | None) -> list[Event]:
    """The events of one message; what is none of ours is passed over, the log has the truth."""
    try:
        return [] if message is None else read_events(message)
    except ValidationError:
        return []
