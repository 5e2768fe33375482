"""How tokens become round trips, on a real loop and a store in memory."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from genqueue import keys
from genqueue.connection.store import PatientStore
from genqueue.errors import RedisUnavailableError, StoreError
from genqueue.registry import attempts, endings
from genqueue.registry.attempts import Claim
from genqueue.registry.partial import encode_partial
from genqueue.registry.script import Call
from genqueue.settings import GeneratorSettings
from genqueue.wire.events import Token, ToolCallDelta
from genqueue.wire.result import Outcome
from genqueue_worker.engine.outbox import _CONGESTION_TOKENS, Outbox
from genqueue_worker.engine.writer import Writer
from genqueue_worker.observe.metrics import AttemptMeter, Metrics
from genqueue_worker.upstream.sink import ReplyTooLongError

A_LONG_GAP_S = 60.0
GENERATORS = {
    "default": GeneratorSettings.model_validate(
        {"api_type": "text_generation_inference", "api_params": {"url": "http://tgi"}}
    )
}


@dataclass
class Written:
    """One generation's part of an append, as append.lua would read it."""

    generation_id: str
    attempt: int
    number: int
    completion_tokens: int
    solid_tokens: int
    mark: str
    text: str
    events: list[dict[str, Any]]


@dataclass
class Shelf:
    """A store in memory: keeps what it is told, fails and waits on demand."""

    appends: list[list[Written]] = field(default_factory=list)
    others: list[Call[Any]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    tried: list[Call[Any]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0

    async def run(self, call: Call[Any]) -> Any:
        self.tried.append(call)
        if self.failures:
            raise self.failures.pop(0)
        if b"flush that arrives twice" not in (call.script.source.encode() if call.script else b""):
            self.others.append(call)
            return "ok"
        self.in_flight += 1
        assert self.in_flight == 1, "two flushes in flight"
        await self.open.wait()
        self.in_flight -= 1
        flushes = self.read(call)
        self.appends.append(flushes)
        return [self.answers.get(each.generation_id, "ok") for each in flushes]

    def read(self, call: Call[Any]) -> list[Written]:
        count, rest = int(call.arguments[0]), call.arguments[1:]
        key_list, values = rest[:count], rest[count + 2 :]
        flushes = []
        for generation_key in key_list[::3]:
            attempt, number, _, completion_tokens, solid_tokens, mark, text, bodies = map(_read, values[:8])
            events = [json.loads(b"{" + body) for body in values[8 : 8 + bodies]]
            generation_id = generation_key.removeprefix(keys.generation(""))
            flushes.append(Written(generation_id, attempt, number, completion_tokens, solid_tokens, mark, text, events))
            values = values[8 + bodies :]
        return flushes

    def text(self, generation_id: str) -> str:
        return "".join(each.text for flushes in self.appends for each in flushes if each.generation_id == generation_id)


def _read(word: str | bytes) -> Any:
    """Numbers are sent as text."""
    return int(word) if word.isdigit() else word


class Desk:
    """A writer at work."""

    def __init__(self, gap_s: float) -> None:
        self.metrics = Metrics(GENERATORS)
        self.shelf = Shelf()
        self.shelf.open.set()
        self.now_s = 0.0
        self.lost: list[tuple[str, str]] = []
        self.writer = Writer(
            PatientStore(self.shelf, self.metrics.round_trip),
            owner="worker-1",
            keep_s=60,
            gap_s=gap_s,
            now_s=lambda: self.now_s,
            on_lost=lambda outbox, reason: self.lost.append((outbox.generation_id, reason)),
        )
        self.working = asyncio.create_task(self.writer.run())

    def outbox(self, generation_id: str = "g", *, publish: bool = True, attempt: int = 1, **earlier: Any) -> Outbox:
        claim = Claim(attempt, b"", 0.0, 0.0, None, earlier.get("earlier_text", ""), 0, 0, [])
        meter = AttemptMeter(self.metrics.of("default"), claim, keeps=True)
        options = {"max_reply_bytes": 1_000_000, **earlier}
        return Outbox(self.writer, generation_id, attempt, publish=publish, meter=meter, **options)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                assert not self.working.done(), self.working
                await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def gap_s() -> float:
    return A_LONG_GAP_S


@pytest.fixture
async def desk(gap_s: float) -> AsyncIterator[Desk]:
    made = Desk(gap_s)
    yield made
    made.working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await made.working


def push(outbox: Outbox, *texts: str) -> None:
    for text in texts:
        outbox.push(Token(1, text, -0.5, False), text)


async def test_the_first_text_goes_out_at_once(desk: Desk):
    push(desk.outbox("g"), "It")
    await desk.until(lambda: desk.shelf.appends)
    ((only,),) = desk.shelf.appends
    assert (only.number, only.mark, only.text, only.completion_tokens) == (1, "first", "It", 1)
    assert only.events == [{"v": 1, "type": "chunk", "text": "It", "tokens": [[1, "It", -0.5, False]]}]


async def test_a_chats_text_thoughts_and_calls_are_told_apart(desk: Desk):
    outbox = desk.outbox("g")
    outbox.push_delta("It")
    await desk.until(lambda: desk.shelf.appends)
    outbox.push_delta("", "Hm")
    outbox.push_delta(" is", "!")
    outbox.push_delta("", "", [ToolCallDelta(0, "call", "f", '{"a"')])
    outbox.push_delta("", "", [ToolCallDelta(0, None, None, ":")])
    outbox.push_delta("", "", [ToolCallDelta(0, None, None, "é}"), ToolCallDelta(1, "other", "g", "")])
    flush = outbox.take()
    ((first,),) = desk.shelf.appends
    assert first.events == [{"v": 1, "type": "chunk", "text": "It", "tokens": []}]
    assert (first.text, first.mark, first.completion_tokens, first.solid_tokens) == ("It", "first", 1, 1)
    assert [json.loads(b"{" + body) for body in flush.bodies] == [
        {
            "v": 1,
            "type": "chunk",
            "text": " is",
            "tokens": [],
            "reasoning": "Hm!",
            "tool_calls": [[0, "call", "f", '{"a":é}'], [1, "other", "g", ""]],
        }
    ]
    calls = [ToolCallDelta(0, "call", "f", '{"a":é}'), ToolCallDelta(1, "other", "g", "")]
    assert flush.text == encode_partial(" is", "Hm!", calls)
    assert (flush.completion_tokens, flush.solid_tokens) == (6, 6)
    assert outbox.take().bodies == []


async def test_the_pieces_of_a_chats_text_can_be_told_apart(desk: Desk):
    outbox = desk.outbox("g")
    for text in ("It", " is", "é", ""):
        outbox.push_delta(text)
    (body,) = outbox.take().bodies
    assert json.loads(b"{" + body) == {"v": 1, "type": "chunk", "text": "It isé", "tokens": [], "pieces": [2, 3, 1, 0]}
    outbox.push_delta("")
    (end,) = outbox.take().bodies
    assert json.loads(b"{" + end) == {"v": 1, "type": "chunk", "text": "", "tokens": []}
    assert outbox.first_text_s is not None


async def test_the_first_thought_or_call_goes_out_at_once_too(desk: Desk):
    desk.outbox("thinks").push_delta("", "Hm")
    await desk.until(lambda: len(desk.shelf.appends) == 1)
    desk.outbox("calls").push_delta("", "", [ToolCallDelta(0, "1", "f", "")])
    await desk.until(lambda: len(desk.shelf.appends) == 2)
    assert [flushes[0].mark for flushes in desk.shelf.appends] == ["first", "first"]


async def test_white_space_of_a_chat_is_no_place_to_go_on_from(desk: Desk):
    outbox = desk.outbox("g")
    for text in ("a", "\n", " "):
        outbox.push_delta(text)
    assert (outbox.completion_tokens, outbox.solid_tokens) == (3, 1)


async def test_half_characters_of_a_chat_are_replaced(desk: Desk):
    outbox = desk.outbox("g")
    outbox.push_delta("\ud83d", "\ud83d", [ToolCallDelta(0, "1", "f", "\ud83d")])
    flush = outbox.take()
    event = json.loads(b"{" + flush.bodies[0])
    assert (event["text"], event["reasoning"], event["tool_calls"][0][3]) == ("\ufffd",) * 3


async def test_later_text_waits_for_its_turn_and_the_first_of_another_does_not(desk: Desk):
    one, other = desk.outbox("one"), desk.outbox("other")
    push(one, "a")
    await desk.until(lambda: len(desk.shelf.appends) == 1)
    push(one, "b")
    await desk.settle()
    assert len(desk.shelf.appends) == 1
    push(other, "x")
    await desk.until(lambda: len(desk.shelf.appends) == 2)
    assert {each.generation_id: each.text for each in desk.shelf.appends[1]} == {"one": "b", "other": "x"}


async def test_a_special_token_before_the_first_text_hurries_nobody(desk: Desk):
    one = desk.outbox("one")
    push(one, "a")
    await desk.until(lambda: desk.shelf.appends)
    desk.outbox("other").push(Token(2, "<s>", None, True), "")
    await desk.settle()
    assert len(desk.shelf.appends) == 1


async def test_one_flush_is_in_flight_and_the_next_carries_all_that_came_meanwhile(desk: Desk):
    outboxes = [desk.outbox(f"g{number}") for number in range(5)]
    desk.shelf.open.clear()
    push(outboxes[0], "first")
    await desk.until(lambda: desk.shelf.in_flight)
    for outbox in outboxes:
        push(outbox, *"abc")
    await desk.settle()
    assert len(desk.shelf.tried) == 1
    desk.shelf.open.set()
    await desk.until(lambda: len(desk.shelf.appends) == 2)
    second = {each.generation_id: each for each in desk.shelf.appends[1]}
    assert {name: each.text for name, each in second.items()} == {f"g{number}": "abc" for number in range(5)}
    assert [len(each.events) for each in second.values()] == [1] * 5
    assert (second["g0"].number, second["g1"].number) == (2, 1)
    assert (second["g0"].completion_tokens, second["g1"].completion_tokens) == (4, 3)


@pytest.mark.parametrize("gap_s", [0.0])
async def test_every_text_arrives_once_and_in_order(desk: Desk):
    outboxes = [desk.outbox(f"g{number}") for number in range(3)]
    for step in range(100):
        push(outboxes[step % 3], f"{step} ")
        if step % 7 == 0:
            await asyncio.sleep(0)
    expected = [" ".join(map(str, range(start, 100, 3))) + " " for start in range(3)]
    await desk.until(lambda: [desk.shelf.text(f"g{number}") for number in range(3)] == expected)
    for name in ("g0", "g1", "g2"):
        numbers = [each.number for flushes in desk.shelf.appends for each in flushes if each.generation_id == name]
        assert numbers == list(range(1, len(numbers) + 1))
    assert ["".join(outbox.parts) for outbox in outboxes] == expected


async def test_without_publishing_the_text_is_kept_and_no_chunk_sent(desk: Desk):
    quiet = desk.outbox("quiet", publish=False)
    push(quiet, "a", "b")
    push(desk.outbox("loud"), "x")
    await desk.until(lambda: desk.shelf.appends)
    assert [each.generation_id for each in desk.shelf.appends[0]] == ["loud"]
    desk.now_s += 1.0  # the longest that a worker's death may cost of such a text
    push(desk.outbox("other"), "y")
    await desk.until(lambda: len(desk.shelf.appends) == 2)
    written = {each.generation_id: each for each in desk.shelf.appends[1]}
    assert (written["quiet"].text, written["quiet"].events, written["quiet"].mark) == ("ab", [], "first")


async def test_a_generation_that_cannot_be_written_is_lost_and_harms_no_other(desk: Desk):
    desk.shelf.failures = [StoreError("WRONGTYPE"), StoreError("WRONGTYPE")]  # of both, then of the first alone
    push(desk.outbox("broken"), "a")
    push(desk.outbox("sound"), "b")
    await desk.until(lambda: desk.shelf.text("sound"))
    assert (desk.shelf.text("broken"), desk.shelf.text("sound")) == ("", "b")
    assert desk.lost == [("broken", "unwritable")]


@pytest.mark.parametrize(
    "error", [RedisUnavailableError("h", 1, "gone"), StoreError("OOM", may_pass=True)], ids=["away", "refuses"]
)
async def test_a_flush_that_was_not_answered_is_sent_again_as_it_was(desk: Desk, error: Exception):
    outbox = desk.outbox()
    desk.shelf.failures = [error]
    push(outbox, "a")
    await desk.until(lambda: desk.shelf.tried)
    push(outbox, "b")
    await desk.until(lambda: desk.shelf.appends)
    first, again = desk.shelf.tried
    assert again is first
    ((written,),) = desk.shelf.appends
    assert (written.number, written.text) == (1, "a")


async def test_a_flood_is_congestion_until_it_is_on_its_way(desk: Desk):
    outbox = desk.outbox()
    desk.shelf.open.clear()
    push(outbox, "first")
    await desk.until(lambda: desk.shelf.in_flight)
    for _ in range(_CONGESTION_TOKENS - 1):
        push(outbox, "x")
    assert not outbox.is_congested
    push(outbox, "x")
    assert outbox.is_congested
    waiting = asyncio.create_task(outbox.relief())
    await desk.settle()
    assert not waiting.done()
    other = desk.outbox("other")
    push(other, "y")  # a first text: the next flush goes out at once
    desk.shelf.open.set()
    await desk.until(waiting.done)
    assert not outbox.is_congested


@pytest.mark.parametrize("reason", ["superseded", "gone", "cancelled", "finished"])
async def test_a_refused_attempt_is_told_and_forgotten_and_the_others_go_on(desk: Desk, reason: str):
    lost, kept = desk.outbox("lost"), desk.outbox("kept")
    desk.shelf.answers["lost"] = reason
    desk.shelf.open.clear()
    push(lost, "a")
    push(kept, "a")
    await desk.until(lambda: desk.shelf.in_flight)
    push(lost, "more")
    push(kept, "b")
    desk.shelf.open.set()
    await desk.until(lambda: desk.lost)
    assert desk.lost == [("lost", reason)]
    push(desk.outbox("other"), "y")
    await desk.until(lambda: desk.shelf.text("kept") == "ab")
    assert desk.shelf.text("lost") == "a"


async def test_an_end_waits_for_what_is_in_flight_and_takes_what_is_not(desk: Desk):
    outbox = desk.outbox()
    desk.shelf.open.clear()
    push(outbox, "a")
    await desk.until(lambda: desk.shelf.in_flight)
    push(outbox, "b")
    end = endings.failed("g", "default", outbox.take(), Outcome(error="failed", message="m"), date_done="now")
    ending = asyncio.create_task(desk.writer.last(outbox, attempts.finish(end, log_ttl_s=1, result_ttl_s=1, keep_s=60)))
    await desk.settle()
    assert desk.shelf.others == []
    desk.shelf.open.set()
    async with asyncio.timeout(5):
        assert await ending == "ok"
    assert (desk.shelf.text("g"), end.text) == ("a", "b")
    push(desk.outbox("other"), "y")
    await desk.until(lambda: desk.shelf.text("other"))
    assert [each.generation_id for flushes in desk.shelf.appends for each in flushes] == ["g", "other"]


async def test_an_end_outlasts_a_redis_that_is_away(desk: Desk):
    desk.shelf.failures = [RedisUnavailableError("h", 1, "gone")]
    end = endings.cancelled("g", "default", date_done="now")
    async with asyncio.timeout(5):
        assert await desk.writer.last(None, attempts.finish(end, log_ttl_s=1, result_ttl_s=1, keep_s=60)) == "ok"
    assert len(desk.shelf.tried) == 2


async def test_a_reset_goes_before_the_new_text(desk: Desk):
    outbox = desk.outbox(attempt=2)
    outbox.reset()
    push(outbox, "new")
    await desk.until(lambda: desk.shelf.appends)
    ((written,),) = desk.shelf.appends
    assert (written.attempt, written.mark, written.text) == (2, "reset", "new")
    assert [event["type"] for event in written.events] == ["reset", "chunk"]


async def test_text_that_no_token_brought_is_a_chunk_without_tokens(desk: Desk):
    outbox = desk.outbox()
    outbox.push_text("tail")
    await desk.until(lambda: desk.shelf.appends)
    ((written,),) = desk.shelf.appends
    assert written.events == [{"v": 1, "type": "chunk", "text": "tail", "tokens": []}]
    assert outbox.completion_tokens == 0


@pytest.mark.parametrize(
    ("texts", "solid_tokens"),
    [
        pytest.param(["a", " b"], 2, id="text"),
        pytest.param(["a", "\n", " "], 1, id="white-space-at-the-end"),
        pytest.param(["a", "\n", "b"], 3, id="white-space-inside"),
        pytest.param(["\n", " "], 0, id="white-space-alone"),
        pytest.param(["a", ""], 1, id="the-first-half-of-a-character"),
        pytest.param(["a", "", "é"], 3, id="both-halves"),
        pytest.param(["a", "\n", ""], 1, id="half-a-character-behind-white-space"),
        pytest.param([], 0, id="nothing"),
    ],
)
@pytest.mark.parametrize("earlier_tokens", [0, 7])
async def test_a_later_attempt_goes_on_behind_the_last_token_with_more_than_white_space(
    desk: Desk, texts, solid_tokens, earlier_tokens
):
    outbox = desk.outbox(earlier_text="so far" if earlier_tokens else "", earlier_tokens=earlier_tokens)
    push(outbox, *texts)
    last = outbox.take()
    assert last.solid_tokens == outbox.solid_tokens == earlier_tokens + solid_tokens
    assert last.completion_tokens == outbox.completion_tokens == earlier_tokens + len(texts)


@pytest.mark.parametrize(
    ("texts", "solid_tokens"),
    [(["a", ""], 1), (["a", "\n", ""], 1), (["a", "", "b"], 3), (["", ""], 0), (["a", " ", "b", ""], 3)],
)
async def test_an_empty_delta_of_a_chat_is_no_more_solid_than_an_empty_token(desk: Desk, texts, solid_tokens):
    outbox = desk.outbox()
    for text in texts:
        outbox.push_delta(text)
    assert (outbox.solid_tokens, outbox.completion_tokens) == (solid_tokens, len(texts))


async def test_solid_tokens_go_out_with_each_flush(desk: Desk):
    outbox = desk.outbox()
    push(outbox, "a", "\n")
    await desk.until(lambda: desk.shelf.appends)
    ((written,),) = desk.shelf.appends
    assert (written.completion_tokens, written.solid_tokens) == (2, 1)


async def test_a_continued_attempt_has_the_earlier_text_and_does_not_write_it_again(desk: Desk):
    outbox = desk.outbox(attempt=2, earlier_text="It ", earlier_tokens=1)
    outbox.resume()
    push(outbox, "is")
    await desk.until(lambda: desk.shelf.text("g"))
    assert desk.shelf.text("g") == "is"
    assert "".join(outbox.parts) == "It is"
    events = [event for flushes in desk.shelf.appends for each in flushes for event in each.events]
    assert [event["type"] for event in events] == ["resumed", "chunk"]


async def test_what_is_pushed_with_the_end_is_written_with_the_end(desk: Desk):
    outbox = desk.outbox()
    push(outbox, "last")
    outbox.close()
    push(desk.outbox("other"), "x")
    await desk.until(lambda: desk.shelf.text("other"))
    assert desk.shelf.text("g") == ""
    assert outbox.take().text == "last"


async def test_a_token_that_cannot_be_encoded_harms_no_other_generation(desk: Desk):
    push(desk.outbox("odd"), "\ud83d")  # JSON can spell half of a surrogate pair, and Python's json reads it
    push(desk.outbox("other"), "fine")
    await desk.settle()
    assert desk.shelf.text("other") == "fine"


async def test_top_tokens_stay_beside_their_tokens(desk: Desk):
    outbox = desk.outbox()
    outbox.push(Token(1, "a", None, False), "a")
    outbox.push(Token(2, "b", None, False), "b", [Token(3, "c", None, False)])
    await desk.until(lambda: desk.shelf.appends)
    ((written,),) = desk.shelf.appends
    (chunk,) = written.events
    assert chunk["top_tokens"] == [[], [[3, "c", None, False]]]


def counted(desk: Desk) -> float:
    """The tokens that a scrape would see."""
    value = desk.metrics.registry.get_sample_value("genqueue_completion_tokens_total", {"generator": "default"})
    assert value is not None
    return value


async def test_tokens_are_counted_a_flush_at_a_time_and_once(desk):
    outbox = desk.outbox(earlier_tokens=5)
    push(outbox, "one", "two", "three")
    assert counted(desk) == 0
    await desk.until(lambda: desk.shelf.appends)
    assert counted(desk) == 3
    push(outbox, "four")
    outbox.take()
    outbox.measure()
    assert counted(desk) == 4


@pytest.mark.parametrize("gap_s", [0.0])
async def test_an_outbox_knows_what_the_registry_has(desk):
    outbox = desk.outbox(earlier_tokens=5)
    assert outbox.written_tokens == 5
    push(outbox, "one", "two")
    await desk.until(lambda: outbox.written_tokens == 7)
    desk.shelf.answers["g"] = "superseded"
    push(outbox, "three")
    await desk.until(lambda: desk.lost)
    assert (outbox.completion_tokens, outbox.written_tokens) == (8, 7)


async def test_an_attempt_that_is_dropped_late_takes_nothing_from_the_next_one(desk: Desk):
    earlier, later = desk.outbox(attempt=1), desk.outbox(attempt=2)
    desk.shelf.open.clear()
    push(earlier, "a")
    await desk.until(lambda: desk.shelf.in_flight)
    push(later, "b")
    desk.shelf.answers["g"] = "superseded"
    desk.writer.drop(earlier)
    desk.shelf.open.set()
    await desk.until(lambda: len(desk.shelf.appends) == 2)
    assert [each.attempt for flushes in desk.shelf.appends for each in flushes] == [1, 2]


async def test_nothing_of_an_attempt_is_on_its_way_once_it_is_settled(desk: Desk):
    outbox = desk.outbox()
    desk.shelf.open.clear()
    push(outbox, "a")
    await desk.until(lambda: desk.shelf.in_flight)
    push(outbox, "b")
    settling = asyncio.create_task(desk.writer.settle(outbox))
    await desk.settle()
    assert not settling.done()
    desk.shelf.open.set()
    await desk.until(settling.done)
    assert desk.shelf.text("g") == "a"


def as_token(outbox: Outbox, piece: str) -> None:
    outbox.push(Token(1, piece, None, False), piece)


def as_special_token(outbox: Outbox, piece: str) -> None:
    outbox.push(Token(1, piece, None, True), "")


def as_alternative(outbox: Outbox, piece: str) -> None:
    outbox.push(Token(1, "", None, False), "", [Token(2, piece, None, False)])


def as_delta(outbox: Outbox, piece: str) -> None:
    outbox.push_delta(piece)


def as_thought(outbox: Outbox, piece: str) -> None:
    outbox.push_delta("", piece)


def as_argument(outbox: Outbox, piece: str) -> None:
    outbox.push_delta("", "", [ToolCallDelta(0, None, None, piece)])


def as_the_end(outbox: Outbox, piece: str) -> None:
    outbox.push_text(piece)


@pytest.mark.parametrize("publish", [True, False], ids=["streamed", "one-shot"])
@pytest.mark.parametrize(
    "push_piece", [as_token, as_special_token, as_alternative, as_delta, as_thought, as_argument, as_the_end]
)
@pytest.mark.parametrize("piece", ["a" * 40, "é" * 20, "日" * 14, "🦜" * 10], ids=["ascii", "2", "3", "4"])
async def test_a_reply_is_bounded_in_bytes_and_not_in_characters(desk: Desk, publish, push_piece, piece):
    """Each piece has 40 bytes or two more, what some take beside it counts too: ten stay below 1000, 26 do not."""
    outbox = desk.outbox(publish=publish, max_reply_bytes=1000)
    for _ in range(10):
        push_piece(outbox, piece)
    with pytest.raises(ReplyTooLongError, match="more than 1000 bytes"):
        for _ in range(16):
            push_piece(outbox, piece)


async def test_the_text_of_earlier_attempts_is_bounded_in_bytes_too(desk: Desk):
    outbox = desk.outbox(attempt=2, earlier_text="日" * 333, earlier_tokens=333, max_reply_bytes=1000)
    outbox.push_delta("a")
    with pytest.raises(ReplyTooLongError):
        outbox.push_delta("日")


@pytest.mark.parametrize(
    ("deltas", "solid_tokens"),
    [
        pytest.param([("a", ""), ("", "")], 1, id="an-empty-delta"),
        pytest.param([("a", ""), ("\n", ""), ("", "")], 1, id="empty-behind-white-space"),
        pytest.param([("", "")], 0, id="empty-alone"),
        pytest.param([("a", ""), ("", " ")], 1, id="thinking-in-white-space"),
        pytest.param([(" ", "Hm")], 1, id="a-thought-beside-white-space"),
        pytest.param([("a", ""), ("", ""), ("b", "")], 3, id="empty-before-text"),
    ],
)
async def test_a_delta_is_solid_only_with_more_than_white_space(desk: Desk, deltas, solid_tokens):
    outbox = desk.outbox()
    for text, reasoning in deltas:
        outbox.push_delta(text, reasoning)
    assert (outbox.solid_tokens, outbox.completion_tokens) == (solid_tokens, len(deltas))
