"""What a reader does step by step, driven with scripted answers: no Redis, no clock."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_core import to_json

from genqueue import errors
from genqueue.client import flows
from genqueue.client.flows import WAIT, Flow
from genqueue.client.patience import Deadline, Patience
from genqueue.registry import fleet
from genqueue.registry.lifecycle import State
from genqueue.registry.partial import PartialOutput
from genqueue.registry.reading import Record
from genqueue.registry.script import Call
from genqueue.wire.events import Chunk, Event, read_event
from genqueue.wire.result import GenerationResult, Outcome

ID = "some-id"


class Registry:
    """One generation as Redis would hold it, and the answers to a flow's calls.

    ``on_wait`` are what happens at each wait: a callable changes the registry, and what it
    returns (or is) goes to the reader as its message.
    """

    def __init__(self) -> None:
        self.state: State | None = State.RUNNING
        self.log: list[Event] = []
        self.seq = 0
        self.attempt = 1
        self.text = ""
        self.result: GenerationResult | None = None
        self.outcome: Outcome | None = None
        self.on_wait: list[Any] = []
        self.before_record: list[Callable[[], object]] = []
        self.asked: list[str] = []

    def add(self, *texts: str) -> bytes:
        return self.emit(*({"type": "chunk", "text": text} for text in texts))

    def emit(self, *fields: dict[str, Any]) -> bytes:
        """Log events; the message that was published with them."""
        added = []
        for field in fields:
            self.seq += 1
            added.append(read_event(to_json({"v": 1, "seq": self.seq, "attempt": self.attempt, **field})))
            self.attempt = max(self.attempt, added[-1].attempt)
            self.text += field.get("text", "")
        self.log += added
        return b"[" + b",".join(event.model_dump_json().encode() for event in added) + b"]"

    def finish(self, state: State = State.FINISHED) -> bytes:
        self.state = state
        if state is State.FINISHED:
            self.result = GenerationResult(replies=[self.text], meta=[{}])
            return self.emit({"type": "finished", "finish_reason": "length", "completion_tokens": 1})
        if state is State.CANCELLED:
            return self.emit({"type": "cancelled"})
        self.outcome = self.outcome or Outcome(error="failed", message="the server's words")
        return self.emit({"type": "failed", "error": self.outcome.error, "message": self.outcome.message})

    def forget_log(self) -> None:
        self.log = []

    def record(self) -> Record:
        if self.state is None:
            raise errors.GenerationNotFoundError(ID)
        return Record(self.state, "chat", 5, self.attempt, self.seq, 1.0, 2.0, 3.0, math.nan, 4, self.outcome)

    def answer(self, step: Call[Any]) -> Any:
        command, key = step.arguments[0], step.arguments[1]
        if command == "XRANGE":
            self.asked.append("log")
            first, count = int(step.arguments[2].removesuffix("-0")), int(step.arguments[5])
            return [event for event in self.log if event.seq >= first][:count]
        if command == "HMGET":
            self.asked.append("record")
            for happening in self.before_record:
                happening()
            self.before_record = []
            return self.record()
        assert command == "GET"
        self.asked.append("text" if key.endswith(":text") else "result")
        return PartialOutput(self.text) if key.endswith(":text") else self.result

    def read(self, flow: Flow[Any], items: list[Any] | None = None) -> list[Any]:
        """Everything the flow has for its caller, added to ``items``; fails when it asks for ever."""
        items = [] if items is None else items
        answer: Any = None
        while len(self.asked) < 100:
            try:
                step = flow.send(answer)
            except StopIteration:
                return items
            answer = None
            if step is WAIT:
                self.asked.append("wait")
                happening = self.on_wait.pop(0)
                answer = happening() if isinstance(happening, Callable) else happening
            elif isinstance(step, Call):
                answer = self.answer(step)
            else:
                items += step if isinstance(step, list) else [step]
        raise AssertionError(f"the flow never ends: {self.asked[-10:]}")


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_a_reader_from_the_beginning_hears_each_message_and_asks_no_more_than_needed(registry):
    registry.on_wait = [lambda: registry.add("a"), lambda: registry.add("b", "c"), registry.finish]
    assert texts(registry.read(flows.stream(ID, 0))) == ["a", "b", "c"]
    assert registry.asked == ["log", "record", "wait", "wait", "wait", "record"]


def test_a_late_reader_gets_the_log_and_then_the_messages(registry):
    registry.add("a", "b")
    registry.on_wait = [lambda: registry.add("c"), registry.finish]
    assert texts(registry.read(flows.stream(ID, 0))) == ["a", "b", "c"]


def test_a_reader_after_the_end_gets_all_of_it_and_never_waits(registry):
    registry.add("a", "b")
    registry.finish()
    assert texts(registry.read(flows.stream(ID, 0))) == ["a", "b"]
    assert "wait" not in registry.asked


def test_a_log_of_many_pages_is_read_to_its_end(registry):
    registry.add(*(f"{number} " for number in range(2500)))
    registry.finish()
    assert "".join(texts(registry.read(flows.stream(ID, 0)))) == registry.text
    assert registry.asked.count("log") == 3


@pytest.mark.parametrize("from_seq", [1, 2, 3, 4])
def test_from_seq_resumes_behind_what_was_read(registry, from_seq):
    registry.add("a", "b", "c")
    registry.finish()
    assert texts(registry.read(flows.stream(ID, from_seq))) == ["a", "b", "c"][from_seq:]


def test_a_lost_message_is_made_good_from_the_log(registry):
    def lose_one() -> bytes:
        registry.add("lost")
        return registry.add("b")

    registry.on_wait = [lambda: registry.add("a"), lose_one, registry.finish]
    assert texts(registry.read(flows.stream(ID, 0))) == ["a", "lost", "b"]


@pytest.mark.parametrize("swallowed", [1, 3])
def test_a_silence_makes_the_reader_look_for_itself(registry, swallowed):
    def happen_unheard() -> None:
        registry.add("a")
        registry.finish()

    registry.on_wait = [None] * swallowed + [happen_unheard]
    assert texts(registry.read(flows.stream(ID, 0))) == ["a"]


def test_a_lost_connection_in_the_middle_repeats_nothing(registry):
    def reconnect() -> None:
        registry.add("b")

    registry.on_wait = [lambda: registry.add("a"), reconnect, lambda: registry.add("c"), registry.finish]
    assert texts(registry.read(flows.stream(ID, 0))) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "alien",
    [b"", b"garbage", b"{}", b"[5]", b"\xff\xfe", b'[{"v":2,"type":"chunk","seq":1,"attempt":1,"text":"x"}]', b"[]"],
)
def test_an_alien_message_on_the_channel_is_passed_over(registry, alien):
    registry.on_wait = [alien, lambda: registry.add("a"), alien, registry.finish]
    assert texts(registry.read(flows.stream(ID, 0))) == ["a"]


def test_a_generation_that_ends_between_two_looks_is_read_to_its_end(registry):
    def end() -> None:
        registry.add("b")
        registry.finish()

    registry.add("a")
    registry.before_record = [end]
    assert [event.type for event in registry.read(flows.follow(ID, 0))] == ["chunk", "chunk", "finished"]
    assert "wait" not in registry.asked


def test_a_generation_without_chunks_gives_its_text_as_one(registry):
    registry.text = "all of it"
    registry.on_wait = [registry.finish]
    (only,) = registry.read(flows.stream(ID, 0))
    assert (only.text, only.seq, only.tokens) == ("all of it", 1, ())


def test_an_empty_text_is_no_chunk(registry):
    registry.on_wait = [registry.finish]
    assert registry.read(flows.stream(ID, 0)) == []


def test_who_comes_after_the_log_is_gone_gets_the_text_as_one_chunk(registry):
    registry.add("a", "b")
    registry.finish()
    registry.forget_log()
    assert texts(registry.read(flows.stream(ID, 0))) == ["ab"]


def test_who_resumes_in_a_log_that_is_gone_is_told_so(registry):
    registry.add("a", "b")
    registry.finish()
    registry.forget_log()
    with pytest.raises(errors.LogExpiredError, match="cannot resume from seq 1") as told:
        registry.read(flows.stream(ID, 1))
    assert told.value.from_seq == 1


def test_who_had_the_last_event_already_needs_no_log(registry):
    registry.add("a")
    registry.finish()
    registry.forget_log()
    assert registry.read(flows.stream(ID, 2)) == []
    assert registry.read(flows.follow(ID, 2)) == []


def test_who_read_half_of_a_log_that_then_goes_gets_the_rest_of_the_result(registry):
    def end_unheard_and_long_ago() -> None:
        registry.add("b")
        registry.finish()
        registry.forget_log()

    registry.on_wait = [lambda: registry.add("a"), end_unheard_and_long_ago]
    assert texts(registry.read(flows.stream(ID, 0))) == ["a", "b"]


def test_a_log_that_lost_its_beginning_is_not_asked_for_ever(registry):
    registry.add("a", "b")
    registry.log = registry.log[1:]
    with pytest.raises(errors.LogExpiredError):
        registry.read(flows.follow(ID, 0))


def test_who_got_nothing_of_a_log_that_lost_its_beginning_gets_the_text_at_the_end(registry):
    registry.add("a", "b")
    registry.log = registry.log[1:]
    registry.on_wait = [lambda: registry.add("c"), registry.finish]
    assert texts(registry.read(flows.stream(ID, 0))) == ["abc"]


def test_events_include_what_a_stream_leaves_out(registry):
    registry.emit({"type": "started", "at": 1.0, "worker": "w"}, {"type": "resumed"}, {"type": "reset"})
    registry.finish()
    seen = registry.read(flows.follow(ID, 0))
    assert [event.type for event in seen] == ["started", "resumed", "reset", "finished"]


@pytest.mark.parametrize("flow", [flows.stream(ID, 0), flows.follow(ID, 0), flows.result(ID), flows.status(ID)])
def test_an_id_that_was_never_submitted_is_not_found(registry, flow):
    registry.state = None
    with pytest.raises(errors.GenerationNotFoundError, match=ID):
        registry.read(flow)


ENDINGS = [
    pytest.param(State.FAILED, "rejected", errors.GenerationRejectedError, id="rejected"),
    pytest.param(State.FAILED, "failed", errors.GenerationFailedError, id="failed"),
    pytest.param(State.FAILED, "expired", errors.GenerationExpiredError, id="expired"),
    pytest.param(State.CANCELLED, "cancelled", errors.GenerationCancelledError, id="cancelled"),
]


@pytest.mark.parametrize(("state", "error", "expected"), ENDINGS)
@pytest.mark.parametrize("late", [False, True], ids=["live", "late"])
def test_a_stream_that_ends_badly_gives_its_chunks_and_then_the_error(registry, state, error, expected, late):
    registry.outcome = Outcome(error=error, message="words")
    registry.add("par", "tial")
    if late:
        registry.finish(state)
    else:
        registry.on_wait = [lambda: registry.finish(state)]
    seen: list[Chunk] = []
    with pytest.raises(expected) as raised:
        registry.read(flows.stream(ID, 0), seen)
    assert texts(seen) == ["par", "tial"]
    assert raised.value.partial_text == "partial"
    assert raised.value.usage["completion_tokens"] == 4


@pytest.mark.parametrize(("state", "error", "expected"), ENDINGS)
def test_a_result_that_will_not_come_is_the_error_with_the_partial_text(registry, state, error, expected):
    registry.outcome = Outcome(error=error, message="words")
    registry.add("partial")
    registry.on_wait = [b"whatever is published", lambda: registry.finish(state)]
    with pytest.raises(expected, match="words") as raised:
        registry.read(flows.result(ID))
    assert raised.value.partial_text == "partial"


def test_a_result_is_waited_for_and_then_read(registry):
    registry.add("a")
    registry.on_wait = [None, b"alien", registry.finish]
    assert registry.read(flows.result(ID)) == [GenerationResult(replies=["a"], meta=[{}])]


def test_a_result_that_is_there_needs_one_look(registry):
    registry.finish()
    assert len(registry.read(flows.result(ID))) == 1
    assert registry.asked == ["result"]


def test_a_result_that_expired_before_its_record_is_not_found(registry):
    registry.finish()
    registry.result = None
    with pytest.raises(errors.GenerationNotFoundError):
        registry.read(flows.result(ID))


def test_a_negative_from_seq_is_refused(registry):
    with pytest.raises(ValueError, match="from_seq is -1"):
        registry.read(flows.stream(ID, -1))


# --- how long a reader bears that Redis is away ----------------------------------------------


@pytest.mark.parametrize(
    ("now_s", "ends"),
    [
        pytest.param([0.1, 0.5], [False, True], id="once-more"),
        pytest.param([1.1], [True], id="but-not-where-that-took-long"),
    ],
)
def test_who_never_found_redis_tries_once_more(now_s, ends):
    patience = Patience(60.0, again_until_s=1.0)
    assert [patience.ends(each) for each in now_s] == ends


def test_who_is_to_have_no_patience_gives_up_at_once():
    assert Patience(0.0).ends(0.0) is True


@pytest.mark.parametrize(
    ("patience_s", "away_s", "ends"), [(60.0, 0.0, False), (60.0, 59.9, False), (60.0, 60.0, True), (0.0, 0.0, True)]
)
def test_who_found_it_once_waits_for_its_return(patience_s, away_s, ends):
    patience = Patience(patience_s)
    patience.there()
    if away_s:
        patience.ends(1000.0)
    assert patience.ends(1000.0 + away_s) is ends


def test_each_outage_is_timed_by_itself():
    patience = Patience(60.0)
    patience.there()
    assert [patience.ends(now_s) for now_s in (0.0, 30.0, 59.0)] == [False] * 3
    patience.there()
    assert [patience.ends(now_s) for now_s in (70.0, 129.0, 130.0)] == [False, False, True]


@pytest.mark.parametrize(
    ("timeout_s", "now_s", "wait_s", "answer_s"),
    [
        pytest.param(None, 1000.0, 5.0, None, id="no-limit"),
        pytest.param(math.inf, 1000.0, 5.0, None, id="infinite"),
        pytest.param(30.0, 100.0, 5.0, 30.0, id="long"),
        pytest.param(30.0, 127.0, 3.0, 3.0, id="soon-over"),
        pytest.param(30.0, 131.0, 0.0, 0.0, id="over"),
        pytest.param(0.0, 100.0, 0.0, 0.25, id="none-but-redis-has-a-moment"),
        pytest.param(0.125, 100.125, 0.0, 0.125, id="the-moment-is-not-added"),
        pytest.param(-5.0, 100.0, 0.0, 0.25, id="negative"),
    ],
)
def test_a_deadline_bounds_the_wait_and_the_answer(timeout_s, now_s, wait_s, answer_s):
    deadline = Deadline(timeout_s, 100.0)
    assert (deadline.wait_s(now_s, 5.0), deadline.answer_s(now_s)) == (wait_s, answer_s)


def test_what_comes_together_stays_together():
    def flow():
        yield ["a"]
        assert (yield fleet.read_workers()) == "found"
        yield ["b"]
        assert (yield WAIT) == b"1"
        yield ["c"]
        yield WAIT
        yield WAIT
        yield ["d"]

    steps, answer, batches = flows.in_batches(flow()), None, []
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            break
        answer = None
        if isinstance(step, list):
            batches.append(step)
        else:
            answer = b"1" if step is WAIT else "found"
    assert batches == [["a", "b"], ["c"], ["d"]]


# --- another attempt begins anew -----------------------------------------------------------------


def restarted(registry: Registry, *texts: str) -> bytes:
    """What is published when a second attempt begins anew with these texts."""
    registry.text = ""
    chunks = ({"type": "chunk", "attempt": 2, "text": text} for text in texts)
    return registry.emit(
        {"type": "started", "attempt": 2, "at": 2.0, "worker": "b"}, {"type": "reset", "attempt": 2}, *chunks
    )


def finished(registry: Registry) -> bytes:
    registry.state = State.FINISHED
    registry.result = GenerationResult(replies=[registry.text], meta=[{}])
    return registry.emit({"type": "finished", "attempt": 2, "finish_reason": "length", "completion_tokens": 1})


@pytest.fixture
def begun(registry: Registry) -> Registry:
    """A first attempt that said "abc"; its reader has heard that."""
    registry.emit({"type": "started", "at": 1.0, "worker": "a"})
    registry.add("a", "b", "c")
    registry.on_wait = []
    return registry


@pytest.mark.parametrize(
    ("again", "delivered"),
    [
        pytest.param(["abcd", "e"], ["a", "b", "c", "d", "e"], id="the-same-and-more"),
        pytest.param(["ab", "cd", "e"], ["a", "b", "c", "d", "e"], id="the-seam-in-the-middle-of-a-chunk"),
        pytest.param(["abc", "d"], ["a", "b", "c", "d"], id="the-seam-between-two-chunks"),
        pytest.param(["abc"], ["a", "b", "c"], id="the-same"),
        pytest.param(["", "abcd"], ["a", "b", "c", "d"], id="an-empty-chunk-first"),
    ],
)
def test_a_stream_goes_on_behind_what_was_delivered(begun, again, delivered):
    begun.on_wait = [lambda: restarted(begun), *(lambda text=text: more(begun, text) for text in again)]
    begun.on_wait.append(lambda: finished(begun))
    chunks = begun.read(flows.stream(ID, 0))
    assert [chunk.text for chunk in chunks] == delivered
    assert "".join(delivered) == begun.result.replies[0]
    assert not any(chunk.restarts for chunk in chunks)


def more(registry: Registry, text: str) -> bytes:
    return registry.emit({"type": "chunk", "attempt": 2, "text": text})


@pytest.mark.parametrize(
    ("again", "heard"),
    [
        pytest.param(["x"], 1, id="another-text"),
        pytest.param(["abx", "never heard"], 1, id="as-soon-as-that-is-certain"),
        pytest.param(["ab"], 2, id="it-ends-short-of-it"),
        pytest.param([], 1, id="it-is-empty"),
    ],
)
def test_a_stream_whose_text_becomes_another_one_says_so(begun, again, heard):
    begun.on_wait = [lambda: restarted(begun), *(lambda text=text: more(begun, text) for text in again)]
    begun.on_wait.append(lambda: finished(begun))
    left, seen = len(begun.on_wait) - 1 - heard, []
    with pytest.raises(errors.StreamRestartedError) as raised:
        begun.read(flows.stream(ID, 0), seen)
    assert texts(seen) == ["a", "b", "c"]
    assert (raised.value.delivered_text, raised.value.generation_id, raised.value.restart_seq) == ("abc", ID, 6)
    assert len(begun.on_wait) == left


def test_the_new_text_is_read_from_where_the_error_says(begun):
    restarted(begun, "x", "y")
    finished(begun)
    assert texts(begun.read(flows.stream(ID, 6))) == ["x", "y"]


def test_a_text_that_begins_anew_twice_while_the_reader_is_silent(begun):
    begun.on_wait = [
        lambda: restarted(begun, "ab"),
        lambda: restarted(begun, "abc"[:1]),
        lambda: more(begun, "bcd"),
        lambda: finished(begun),
    ]
    begun.read(flows.stream(ID, 0), seen := [])
    assert "".join(texts(seen)) == "abcd"


def test_who_comes_after_a_restart_never_sees_what_it_made_void(begun):
    restarted(begun, "x", "y")
    finished(begun)
    for resets in (False, True):
        assert texts(begun.read(flows.stream(ID, 0, resets=resets))) == ["x", "y"]


def test_who_comes_after_a_restart_far_down_a_long_log_never_sees_what_it_made_void(registry):
    registry.emit({"type": "started", "at": 1.0, "worker": "a"})
    registry.add(*(f"{number} " for number in range(2500)))
    restarted(registry, *(f"x{number} " for number in range(2500)))
    finished(registry)
    assert "".join(texts(registry.read(flows.stream(ID, 0)))) == registry.text


def test_the_last_chunk_of_a_long_log_comes_with_the_end(registry):
    registry.emit({"type": "started", "at": 1.0, "worker": "a"})
    registry.add(*(f"{number} " for number in range(2998)))
    registry.finish()
    (*_, last) = registry.read(flows.batches(ID, 0))
    assert [event.type for event in last[-2:]] == ["chunk", "finished"]


@pytest.mark.parametrize(("again", "expected"), [(["abcd"], "cd"), (["axx"], None)], ids=["the-same", "another"])
def test_who_resumes_before_a_restart_is_compared_with_what_an_earlier_reader_got(begun, again, expected):
    restarted(begun, *again)
    finished(begun)
    seen: list[Chunk] = []
    if expected is None:
        with pytest.raises(errors.StreamRestartedError):
            begun.read(flows.stream(ID, 3), seen)
    else:
        begun.read(flows.stream(ID, 3), seen)
    assert "".join(texts(seen)) == (expected or "")


def test_who_resumes_in_a_history_that_redis_has_forgotten_is_told_so(begun):
    with pytest.raises(errors.StreamRestartedError):
        begun.read(flows.stream(ID, 9))


def test_a_stream_that_asked_for_it_is_told_where_the_text_begins_anew(begun):
    begun.on_wait = [lambda: restarted(begun, "c", "d"), lambda: finished(begun)]
    chunks = begun.read(flows.stream(ID, 0, resets=True))
    assert [(chunk.text, chunk.restarts) for chunk in chunks] == [
        *((text, False) for text in "abc"),
        ("c", True),
        ("d", False),
    ]


@pytest.mark.parametrize("resets", [False, True])
def test_a_stream_that_ends_before_the_new_text_gives_the_error_it_ended_with(begun, resets):
    begun.on_wait = [lambda: restarted(begun), lambda: begun.finish(State.CANCELLED)]
    seen: list[Chunk] = []
    with pytest.raises(errors.GenerationCancelledError):
        begun.read(flows.stream(ID, 0, resets=resets), seen)
    told = [(chunk.text, chunk.restarts) for chunk in seen]
    assert told == [("a", False), ("b", False), ("c", False), *([("", True)] if resets else [])]


def test_batches_join_to_one_text_unless_asked_for_resets(begun):
    begun.on_wait = [lambda: restarted(begun, "ab"), lambda: more(begun, "cd"), lambda: finished(begun)]
    batches = begun.read(flows.batches(ID, 0))
    assert [[getattr(event, "text", event.type) for event in batch] for batch in batches] == [
        ["started", "a", "b", "c"],
        ["started"],
        ["d"],
        ["finished"],
    ]
    assert [event.type for batch in begun.read(flows.batches(ID, 0, resets=True)) for event in batch] == [
        event.type for event in begun.log
    ]


def test_batches_of_another_text_end_with_the_error(begun):
    begun.on_wait = [lambda: restarted(begun, "x")]
    seen: list[list[Event]] = []
    with pytest.raises(errors.StreamRestartedError):
        begun.read(flows.batches(ID, 0), seen)
    assert [event.type for event in seen[-1]] == ["started"]


@pytest.mark.parametrize("is_heard", [True, False], ids=["heard", "in-the-log"])
def test_an_event_of_a_kind_that_came_later_is_told_by_events_and_passed_over_by_streams(registry, is_heard):
    def happen() -> bytes | None:
        message = registry.emit({"type": "chunk", "text": "a"}, {"type": "paused", "for_s": 3})
        return message if is_heard else None

    for flow, seen in (
        (flows.stream(ID, 0), ["a", "b"]),
        (flows.follow(ID, 0), ["chunk", "paused", "chunk", "finished"]),
    ):
        registry.__init__()
        registry.on_wait = [happen, lambda: registry.add("b"), registry.finish]
        items = registry.read(flow)
        assert [item.text if seen[0] == "a" else item.type for item in items] == seen


# --- a log that contradicts itself -----------------------------------------------------------------


@pytest.fixture
def contradictory(registry: Registry) -> Registry:
    """Two starts of one attempt: half of a transaction, carried out again."""
    registry.emit({"type": "started", "at": 1.0, "worker": "a"}, {"type": "chunk", "text": "a"})
    registry.emit({"type": "started", "at": 2.0, "worker": "b"}, {"type": "chunk", "text": "b"})
    return registry


def test_the_second_time_that_a_log_is_no_one_history_is_an_error(contradictory):
    for flow in (flows.follow(ID, 0), flows.batches(ID, 0)):
        contradictory.asked = []
        with pytest.raises(errors.LogBrokenError, match=ID):
            contradictory.read(flow)
        assert contradictory.asked.count("log") <= 4


@pytest.mark.parametrize("resets", [False, True])
def test_a_stream_of_a_log_that_is_no_one_history_gives_the_text_of_the_result(contradictory, resets):
    contradictory.on_wait = [None, lambda: more(contradictory, "c"), contradictory.finish]
    assert texts(contradictory.read(flows.stream(ID, 0, resets=resets))) == ["abc"]
    assert contradictory.asked.count("log") <= 4
    assert contradictory.asked.count("record") == 3  # at first, after a silence, and at the end


def test_a_stream_that_has_read_on_is_told_that_the_log_is_no_one_history(contradictory):
    with pytest.raises(errors.LogBrokenError):
        contradictory.read(flows.stream(ID, 1))


def test_a_log_that_ends_without_an_end_is_no_whole_one(registry):
    registry.emit({"type": "started", "at": 1.0, "worker": "a"}, {"type": "chunk", "text": "a"})
    registry.finish()
    registry.log, registry.seq = registry.log[:-1], registry.seq - 1
    for flow in (flows.follow(ID, 0), flows.batches(ID, 0)):
        with pytest.raises(errors.LogBrokenError):
            registry.read(flow)
    registry.result = GenerationResult(replies=["abc"], meta=[{}])
    assert texts(registry.read(flows.stream(ID, 0))) == ["abc"]
    assert registry.read(flows.follow(ID, 2)) == []


def test_an_end_of_a_kind_that_came_later_is_one(registry):
    registry.emit({"type": "chunk", "text": "a"}, {"type": "concluded"})
    registry.state = State.FINISHED
    assert [event.type for event in registry.read(flows.follow(ID, 0))] == ["chunk", "concluded"]


@pytest.mark.parametrize("is_told", [True, False], ids=["while-listening", "by-the-log-only"])
def test_a_reader_of_a_history_that_redis_forgot_begins_anew(registry, is_told):
    message = registry.emit(
        {"type": "started", "at": 1.0, "worker": "a"}, *({"type": "chunk", "text": t} for t in "abcdef")
    )

    def forget() -> bytes | None:
        registry.log, registry.seq, registry.text = registry.log[:3], 3, "ab"
        came = registry.emit(
            {"type": "started", "attempt": 2, "at": 2.0, "worker": "b"},
            {"type": "chunk", "attempt": 2, "text": "CD"},
            {"type": "finished", "attempt": 2, "finish_reason": "length", "completion_tokens": 3},
        )
        registry.state = State.FINISHED
        registry.result = GenerationResult(replies=["abCD"], meta=[{}])
        return came if is_told else None

    registry.on_wait = [message, forget]
    chunks = registry.read(flows.stream(ID, 0, resets=True))
    assert texts(chunks) == ["a", "b", "c", "d", "e", "f", "a", "b", "CD"]
    assert [chunk.restarts for chunk in chunks] == [False] * 6 + [True, False, False]


@pytest.mark.parametrize(("new", "expected"), [("cdefg", "abcdefg"), ("CD", None)], ids=["the-same", "another"])
def test_a_reader_of_a_history_that_redis_forgot_goes_on_behind_it_or_is_told(registry, new, expected):
    message = registry.emit({"type": "started", "at": 1.0, "worker": "a"})
    for text in "abcdef":
        message = registry.add(text)
    seen: list[Chunk] = []

    def forget() -> bytes:
        registry.log, registry.seq, registry.text = registry.log[:3], 3, "ab"
        return registry.emit(
            {"type": "started", "attempt": 2, "at": 2.0, "worker": "b"},
            {"type": "resumed", "attempt": 2},
            {"type": "chunk", "attempt": 2, "text": new},
        )

    registry.on_wait = [message, forget, lambda: finished(registry)]
    if expected is None:
        with pytest.raises(errors.StreamRestartedError) as raised:
            registry.read(flows.stream(ID, 0), seen)
        assert (raised.value.delivered_text, raised.value.restart_seq) == ("abcdef", 0)
    else:
        registry.read(flows.stream(ID, 0), seen)
        assert "".join(texts(seen)) == expected


def test_a_reader_that_missed_the_beginning_of_another_history_joins_no_part_of_it_to_the_first(registry):
    """Both attempts are number 2; the second one's start is published while the reader is connecting anew."""

    def begin(attempt: int, at: float, *said: str) -> bytes:
        registry.attempt = attempt
        chunks = [{"type": "chunk", "text": text} for text in said]
        return registry.emit({"type": "started", "at": at, "worker": f"{at}"}, *chunks)

    begin(1, 1.0, "a", "b")

    def forget() -> None:
        registry.log, registry.seq, registry.text = registry.log[:3], 3, "ab"
        begin(2, 3.0)

    registry.on_wait = [
        lambda: begin(2, 2.0, "c", "d"),
        forget,
        *(lambda text=text: registry.add(text) for text in ("cd", "e", "f")),
        lambda: finished(registry),
    ]
    assert "".join(texts(registry.read(flows.stream(ID, 0)))) == "abcdef"
