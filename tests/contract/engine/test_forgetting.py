"""A Redis that forgot what it had answered: no text is lost, and none is there twice."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from genqueue import keys
from genqueue.connection.store import AsyncStore, PatientStore, T
from genqueue.errors import RedisUnavailableError
from genqueue.registry import attempts, endings, reading
from genqueue.registry.attempts import Claim
from genqueue.registry.lifecycle import State
from genqueue.registry.script import Call
from genqueue.settings import GeneratorSettings
from genqueue.wire.events import Token
from genqueue.wire.result import GenerationResult, Outcome
from genqueue_worker.engine.outbox import Outbox
from genqueue_worker.engine.writer import Writer
from genqueue_worker.observe.metrics import AttemptMeter, Metrics

from ...support.registry import DONE, KEEP_S, LOG_TTL_S, RESULT_TTL_S, Registry, flush

OWNER = "worker-1"
GENERATORS = {
    "default": GeneratorSettings.model_validate(
        {"api_type": "text_generation_inference", "api_params": {"url": "http://tgi"}}
    )
}


def ended(registry: Registry, way: str, last: attempts.Flush) -> str:
    """What the registry answers to an attempt's last word, sent by the worker that holds it."""
    if way == "released":
        call = attempts.release(
            last, "default", 5, delay_s=0.0, failure=None, is_charged=False, keep_s=KEEP_S, owner=OWNER
        )
    else:
        end = registry.finished(last.generation_id, "abc", last=last) if way == "finished" else failed(last)
        call = ending(end)
    answer: str = registry.run(call)
    return answer


def failed(last: attempts.Flush) -> attempts.End:
    return endings.failed(last.generation_id, "default", last, Outcome(error="failed", message="words"), date_done=DONE)


def ending(end: attempts.End) -> Call[str]:
    return attempts.finish(
        dataclasses.replace(end, owner=OWNER), log_ttl_s=LOG_TTL_S, result_ttl_s=RESULT_TTL_S, keep_s=KEEP_S
    )


WAYS = ["finished", "failed", "released"]
LAST_EVENTS = {"finished": ["4.1 finished"], "failed": ["4.1 failed"], "released": []}


@pytest.mark.parametrize("way", WAYS)
def test_a_last_word_does_not_say_again_what_is_written(registry, way):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["ab"], mark="first"), flush(generation_id, 2, ["c"]))
    answers = [ended(registry, way, flush(generation_id, 2, ["c"], tokens=2)) for _ in range(2)]
    assert answers == (["ok", "queued"] if way == "released" else ["ok", "ok"])
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk ab", "3.1 chunk c", *LAST_EVENTS[way]]
    assert registry.text(generation_id) == ("" if way == "finished" else "abc")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mark", ["first", "reset"])
def test_nor_does_it_throw_away_what_is_written(registry, way, mark):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["ab"], mark=mark), flush(generation_id, 2, ["c"]))
    before = registry.hash(generation_id).get("first_text_at")
    ended(registry, way, flush(generation_id, 1, ["ab"], mark=mark))
    assert registry.text(generation_id) == ("" if way == "finished" else "abc")
    assert registry.hash(generation_id).get("first_text_at") == before


@pytest.mark.parametrize("way", WAYS)
def test_a_last_word_whose_flushes_were_forgotten_says_from_where_they_are_needed(registry, way):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["ab"], mark="first"))
    stored = registry.everything()
    assert ended(registry, way, flush(generation_id, 3, ["d"])) == "behind 1"
    assert registry.everything() == stored


class Forgetful:
    """A Redis that can be away, and comes back as it was before one of the writer's calls."""

    def __init__(self, store: AsyncStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._known: list[dict[bytes, bytes]] = []
        self.is_away = False
        self.refused = asyncio.Event()
        self.losses: list[int] = []
        """For each of the next calls: how many of the calls before it are forgotten."""

    async def run(self, call: Call[T]) -> T:
        if self.is_away:
            self.refused.set()
            raise RedisUnavailableError("h", 1, "away")
        lost = self.losses.pop(0) if self.losses else 0
        if lost:
            self._restore(self._known[-lost])
            del self._known[-lost:]
        self._known.append(self._registry.everything())
        return await self._store.run(call)

    def _restore(self, dumped: dict[bytes, bytes]) -> None:
        raw = self._registry.raw
        for key in list(raw.scan_iter()):
            raw.delete(key)
        for key, value in dumped.items():
            raw.restore(key, 60_000, value)


@dataclasses.dataclass
class Desk:
    writer: Writer
    store: Forgetful
    metrics: Metrics
    lost: list[str]

    def outbox(self, claim: Claim, generation_id: str) -> Outbox:
        return Outbox(
            self.writer,
            generation_id,
            claim.attempt,
            publish=True,
            max_reply_bytes=1000,
            meter=AttemptMeter(self.metrics.of("default"), claim, keeps=True),
        )


@pytest.fixture
async def desk(redis_url: str, writer: Registry) -> AsyncIterator[Desk]:
    """A writer at work on a Redis that forgets."""
    store = AsyncStore(redis_url, 5.0)
    metrics, lost = Metrics(GENERATORS), []
    forgetful = Forgetful(store, writer)
    made = Writer(
        PatientStore(forgetful, metrics.round_trip),
        owner=OWNER,
        keep_s=KEEP_S,
        gap_s=0.0,
        now_s=asyncio.get_running_loop().time,
        on_lost=lambda outbox, reason: lost.append(reason),
    )
    working = asyncio.create_task(made.run())
    yield Desk(made, forgetful, metrics, lost)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await store.close()


@pytest.mark.parametrize("redis_server", ["redis"], indirect=True)  # fakeredis restores no stream
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_in_flight", [True, False], ids=["with-a-flush-in-flight", "with-none"])
@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([], id="nothing-forgotten"),
        pytest.param([1], id="the-last-flush"),
        pytest.param([3], id="several"),
        pytest.param([3, 0, 1], id="and-what-was-written-again-too"),
        pytest.param([2, 1, 1], id="and-again-at-each-step"),
    ],
)
async def test_an_attempt_that_ends_while_redis_is_away_leaves_its_text_once(desk, writer, way, is_in_flight, losses):
    generation_id = writer.submit()
    claim = writer.claim(generation_id, OWNER)
    outbox = desk.outbox(claim, generation_id)
    words = [f"w{number} " for number in range(8)]

    def push(word: str) -> None:
        outbox.push(Token(1, word, None, False), word)

    for number, word in enumerate(words[:6], 1):
        push(word)
        async with asyncio.timeout(30):
            while outbox.written_tokens < number:
                await asyncio.sleep(0.001)
    desk.store.is_away = True
    if is_in_flight:
        push(words[6])
        async with asyncio.timeout(30):
            await desk.store.refused.wait()
    else:
        push(words[6])
    push(words[7])
    last = outbox.take()
    if way == "released":
        call = attempts.release(
            last, "default", 5, delay_s=0.0, failure=None, is_charged=False, keep_s=KEEP_S, owner=OWNER
        )
    elif way == "failed":
        call = ending(failed(last))
    else:
        meta = {"finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 8}}
        result = GenerationResult(replies=["".join(words)], meta=[meta])
        call = ending(endings.finished(generation_id, "default", last, result, date_done=DONE))
    ending_it = asyncio.create_task(desk.writer.last(outbox, call))
    async with asyncio.timeout(30):
        await desk.store.refused.wait()
    desk.store.losses = list(losses)
    desk.store.is_away = False
    async with asyncio.timeout(30):
        assert await ending_it == "ok"
    assert desk.lost == []
    logged = "".join(event.text for event in writer.run(reading.read_log(generation_id, 0)) if event.type == "chunk")
    assert logged == "".join(words)
    record = writer.run(reading.read_record(generation_id))
    assert record.state == (State.QUEUED if way == "released" else way)
    assert record.completion_tokens == 8
    if way != "finished":
        assert writer.text(generation_id) == "".join(words)
    seqs = [event.seq for event in writer.run(reading.read_log(generation_id, 0))]
    assert seqs == list(range(1, record.seq + 1))
    assert writer.raw.exists(keys.text(generation_id)) == (way != "finished")


def last_text(registry: Registry, generation_id: str) -> tuple[str, bool]:
    """What the next attempt is given to go on behind, and whether anything was delivered before."""
    registry.lose_lease(generation_id)
    claim = registry.claim(generation_id, owner="worker-2")
    assert isinstance(claim, Claim)
    return claim.text_so_far, claim.solid_tokens > 0


@pytest.mark.parametrize("way", ["flushed", "released"])
@pytest.mark.parametrize("left", ["nothing", "nothing but white space", "what came later", "something else"])
def test_nobody_goes_on_behind_a_text_of_which_a_part_was_lost(registry, way, left):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["\n" if "white" in left else "It is"], mark="first"))
    registry.raw.delete(keys.text(generation_id))
    if left == "something else":
        registry.raw.hset(keys.text(generation_id), "a", "b")
    if left in {"what came later", "something else"}:
        registry.append(flush(generation_id, 2, [" mild"]))
    if way == "released":
        registry.release(flush(generation_id, 3, []))
    assert last_text(registry, generation_id) == ("", True)
    # Nor does the one after next, whose worker died before its first word.
    assert last_text(registry, generation_id) == ("", True)


def test_a_text_that_begins_anew_is_gone_on_with_whatever_was_lost_before(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["It is"], mark="first"))
    registry.raw.delete(keys.text(generation_id))
    assert last_text(registry, generation_id) == ("", True)
    begun = flush(generation_id, 1, ["Mild"], attempt=2, mark="reset")
    assert registry.append(begun, begun) == ["ok", "ok"]
    assert last_text(registry, generation_id) == ("Mild", True)


def test_a_text_of_a_worker_of_the_version_before_is_gone_on_with(registry):
    """It adds to the text, and says nowhere how long that is now."""
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["It is"], mark="first"))
    registry.raw.append(keys.text(generation_id), " mild")
    assert last_text(registry, generation_id) == ("It is mild", True)
    registry.raw.hdel(keys.generation(generation_id), "text_bytes")
    assert last_text(registry, generation_id) == ("It is mild", True)
