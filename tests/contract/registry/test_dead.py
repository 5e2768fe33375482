"""Dead letters: what failed and might not another time is listed, looked at, tried again once, or dropped."""

from dataclasses import replace

import pytest

from genqueue import (
    AsyncGenerationClient,
    GenerationClient,
    GenerationFailedError,
    GenerationNotFoundError,
    NotDeadError,
    QueueFullError,
    Settings,
    UnknownGeneratorError,
    keys,
)
from genqueue.registry import dead_letters, fleet, reading
from genqueue.registry.attempts import Claim
from genqueue.registry.lifecycle import State

from ...support.registry import KEEP_S, RESULT_TTL_S, flush
from ...support.waiting import wait_for

TGI = {"api_type": "text_generation_inference", "api_params": {"url": "http://127.0.0.1:1"}}
GENERATORS = {"default": {**TGI, "max_queue_depth": 3}, "chat": TGI}
PROMPT = "a prompt of its own"


class Operator:
    """One client, sync or async; each method blocks until it is done."""

    def __init__(self, settings, loop_thread):
        self._loop = loop_thread
        self.client = GenerationClient(settings) if loop_thread is None else AsyncGenerationClient(settings)

    def __getattr__(self, verb):
        def call(*arguments, **options):
            answer = getattr(self.client, verb)(*arguments, **options)
            return answer if self._loop is None else self._loop.call(answer)

        return call

    def status(self, generation_id):
        answer = self.client.generation(generation_id).status()
        return answer if self._loop is None else self._loop.call(answer)

    def ids(self, *arguments, **options):
        return [letter.id for letter in self.dead_letters(*arguments, **options)]


@pytest.fixture(params=["sync", "async"])
def operator(request, redis_url, loop_thread):
    settings = Settings(redis_url=redis_url, generators=GENERATORS, keep_s=KEEP_S, result_ttl_s=RESULT_TTL_S)
    made = Operator(settings, None if request.param == "sync" else loop_thread)
    yield made
    made.close()


def failed(writer, *texts, error="failed", generator="default", **fields):
    """A generation that failed in its first attempt, after ``texts``."""
    generation_id = writer.submit(prompt=PROMPT, generator=generator, **fields)
    assert isinstance(writer.claim(generation_id, generator=generator), Claim)
    for number, text in enumerate(texts, 1):
        writer.append(flush(generation_id, number, [text]))
    assert writer.finish(writer.failed(generation_id, error=error)) == "ok"
    wait_for(lambda now_ms=writer.now_ms: writer.now_ms > now_ms + 1)  # the list is ordered by milliseconds
    return generation_id


def announce(writer, limit):
    facts = {"theirs": {"max_queue_depth": limit}}
    writer.run(fleet.announce(facts, "host:1:a", {"theirs": []}, worker_s=30.0, keep_s=KEEP_S))


def has_request(writer, generation_id):
    return "request" in writer.hash(generation_id)


# --- what is one ---------------------------------------------------------------------------


def test_what_failed_is_listed_the_newest_first_without_prompt_and_text(operator, writer):
    first, second = failed(writer, "some", " text"), failed(writer, generator="chat")
    newest, oldest = operator.dead_letters()
    assert (newest.id, oldest.id) == (second, first)
    assert (oldest.generator, oldest.attempts, oldest.completion_tokens, oldest.message) == ("default", 1, 2, "words")
    assert oldest.ended_at == pytest.approx(writer.now_ms / 1e3, abs=60)
    assert (operator.ids("chat"), operator.ids("default"), operator.ids("nobody's")) == ([second], [first], [])
    assert (operator.ids(limit=1), operator.ids(limit=0), operator.ids("default", 1)) == ([second], [], [first])
    assert PROMPT not in repr(operator.dead_letters())


@pytest.mark.parametrize("error", ["rejected", "expired", "cancelled"])
def test_what_no_other_try_mends_is_none_and_keeps_no_prompt(operator, writer, error):
    generation_id = failed(writer, error=error)
    assert operator.ids() == []
    assert not has_request(writer, generation_id)
    for verb in (operator.dead_letter, operator.retry, operator.drop):
        with pytest.raises(NotDeadError, match=f"generation {generation_id} is no dead letter: it is {error}"):
            verb(generation_id)


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.FINISHED, State.CANCELLED])
def test_what_has_not_failed_is_none_and_is_left_alone(operator, writer, state):
    generation_id = writer.into(state)
    stored = writer.everything()
    for verb in (operator.dead_letter, operator.retry, operator.drop):
        with pytest.raises(NotDeadError, match=state):
            verb(generation_id)
    assert writer.everything() == stored


def test_an_id_that_nobody_knows_is_not_found(operator, writer):
    for verb in (operator.dead_letter, operator.retry, operator.drop):
        with pytest.raises(GenerationNotFoundError, match="nobody's"):
            verb("nobody's")
    assert writer.everything() == {}


def test_more_than_a_page_is_listed_whole_and_once(operator, writer):
    letters = [failed(writer) for _ in range(3)]
    for number in range(600):
        writer.raw.zadd(keys.DEAD, {f"forgotten-{number}": writer.now_ms})
    assert operator.ids(limit=None) == operator.ids() == operator.ids("default", 3) == letters[::-1]


def test_one_whose_time_is_over_leaves_the_list_with_the_next(writer):
    writer.raw.zadd(keys.DEAD, {"old": writer.now_ms - KEEP_S * 1e3 - 1})
    generation_id = failed(writer)
    assert writer.raw.zrange(keys.DEAD, 0, -1) == [generation_id.encode()]


def test_a_second_end_adds_none(writer):
    generation_id = writer.running()
    assert writer.finish(writer.cancelled(generation_id)) == "ok"
    assert writer.finish(writer.failed(generation_id)) == "cancelled"
    assert not writer.raw.exists(keys.DEAD)


# --- show ------------------------------------------------------------------------------------


def test_all_of_it_can_be_looked_at(operator, writer):
    generation_id = writer.running(prompt=PROMPT, stop_words=["x"])
    writer.release(flush(generation_id, 1, ["par"]), failure="first words", is_charged=True)
    claim = writer.claim(generation_id)
    end = writer.failed(generation_id, 2, text="tial")
    errors = [*claim.errors, {"attempt": 2, "message": "words"}]
    writer.finish(replace(end, outcome=end.outcome.model_copy(update={"detail": {"errors": errors}})))
    found = operator.dead_letter(generation_id)
    assert found.letter == operator.dead_letters()[0]
    assert [(one["attempt"], one["message"]) for one in found.errors] == [(1, "first words"), (2, "words")]
    assert (found.partial_text, found.request.prompt, found.request.stop_words) == ("partial", PROMPT, ("x",))
    assert found.usage == {"prompt_tokens": None, "completion_tokens": 2}
    assert found.timings["total_s"] is not None
    assert PROMPT not in repr(found)
    assert "partial" not in repr(found)


# --- retry -----------------------------------------------------------------------------------


def test_a_retry_is_a_new_generation_of_the_same_request(operator, writer):
    options = {"priority": 2, "deadline_s": 90.0, "stop_words": ["x"], "generation_kwargs": {"seed": 1}}
    old_id = failed(writer, "partial", **options)
    writer.raw.delete(keys.doorbell("default", 2))
    new_id = operator.retry(old_id).id
    assert new_id != old_id
    assert writer.doorbells(2) == [new_id]
    claim = writer.claim(new_id)
    assert claim.attempt == 1
    assert claim.text_so_far == ""
    assert claim.deadline_at == pytest.approx(claim.submitted_at + 90, abs=1e-3)
    request = writer.run(reading.read_request(new_id))
    assert request.model_dump(exclude_unset=True, exclude_none=True) == {
        "prompt": PROMPT,
        "generator": "default",
        **options,
        "stop_words": ("x",),
    }


def test_a_retry_takes_it_off_the_list_and_is_remembered(operator, writer):
    old_id = failed(writer, "partial")
    new_id = operator.retry(old_id).id
    assert operator.ids() == []
    assert not has_request(writer, old_id)
    assert (operator.status(old_id).state, operator.status(old_id).retried_as) == (State.FAILED, new_id)
    assert operator.status(new_id).retried_as is None
    for key in (keys.generation(old_id), keys.text(old_id)):
        assert writer.raw.ttl(key) == pytest.approx(RESULT_TTL_S, abs=2)
    assert writer.raw.ttl(keys.generation(new_id)) == pytest.approx(KEEP_S, abs=2)
    for verb in (operator.dead_letter, operator.drop):
        with pytest.raises(NotDeadError, match=f"it was retried as {new_id}"):
            verb(old_id)


def test_who_retries_twice_gets_the_same_generation_whatever_became_of_it(operator, writer):
    old_id = failed(writer)
    new_id = operator.retry(old_id).id
    assert operator.retry(old_id).id == new_id
    assert len(writer.doorbells()) == 2  # the old one's own, and one
    writer.claim(new_id)
    writer.finish(writer.failed(new_id))
    assert operator.retry(old_id).id == new_id
    assert operator.ids() == [new_id]  # dead as well, and to be retried by its own id
    assert operator.retry(new_id).id not in {old_id, new_id}


def test_a_retry_that_is_sent_twice_is_carried_out_once(registry):
    """As a connection that breaks after the answer has it."""
    old_id = failed(registry)
    again = dead_letters.retry(
        old_id, "new", "default", 5, max_queue_depth=-1, keep_s=KEEP_S, result_ttl_s=RESULT_TTL_S
    )
    assert registry.run(again).generation_id == "new"
    stored = registry.everything()
    assert registry.run(again).generation_id == "new"
    assert registry.everything() == stored


def test_the_readers_of_the_old_one_keep_its_end(operator, writer):
    old_id = failed(writer, "partial")
    before = writer.events(old_id)
    operator.retry(old_id)
    assert writer.events(old_id) == before
    with (
        GenerationClient(operator.client.settings) as client,
        pytest.raises(GenerationFailedError, match="words") as raised,
    ):
        client.generation(old_id).result(5)
    assert raised.value.partial_text == "partial"


def test_a_full_queue_takes_no_retry_and_the_letter_stays(operator, writer):
    old_id = failed(writer)
    for _ in range(3):
        writer.submit()
    stored = writer.everything()
    with pytest.raises(QueueFullError, match="queue 'default' holds 3 generations, limit 3"):
        operator.retry(old_id)
    assert writer.everything() == stored
    assert operator.ids() == [old_id]


def test_the_limit_of_a_generator_that_is_not_ours_is_the_announced_one(operator, writer):
    old_id = failed(writer, generator="theirs")
    with pytest.raises(UnknownGeneratorError, match="unknown generator 'theirs'"):
        operator.retry(old_id)
    announce(writer, 0)
    with pytest.raises(QueueFullError, match="limit 0"):
        operator.retry(old_id)
    announce(writer, 1)
    assert operator.retry(old_id).id != old_id


# --- drop ------------------------------------------------------------------------------------


def test_what_is_dropped_is_forgotten_but_for_its_end(operator, writer):
    generation_id, other = failed(writer, "partial"), failed(writer)
    operator.drop(generation_id)
    assert operator.ids() == [other]
    assert not has_request(writer, generation_id)
    assert has_request(writer, other)
    assert operator.status(generation_id).error == "words"
    for key in (keys.generation(generation_id), keys.text(generation_id)):
        assert writer.raw.ttl(key) == pytest.approx(RESULT_TTL_S, abs=2)
    for verb in (operator.dead_letter, operator.retry):
        with pytest.raises(NotDeadError, match="it was dropped"):
            verb(generation_id)
    stored = writer.everything()
    operator.drop(generation_id)  # a second time changes nothing
    assert writer.everything() == stored
