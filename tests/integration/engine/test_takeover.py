"""What a worker leaves when it dies, sleeps or is told to stop, another one ends; readers see one text."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from genqueue import GenerationExpiredError, Settings
from genqueue.keys import doorbell
from genqueue.keys import generation as generation_key
from genqueue.keys import text as text_key
from genqueue.registry import endings
from genqueue_ops.standin.prose import expected_tokens
from genqueue_worker.engine.loop import Engine
from genqueue_worker.engine.register import Ended, Relinquished
from genqueue_worker.upstream.client import ModelClient

from ...support.roles import as_role

# `make chaos` holds both to less.
TAKEOVER_S = 8.0
HANDOVER_S = 4.0


@pytest.fixture(scope="module")
def fleet(fleet_of, standin):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}, GENQUEUE_DRAIN_S="1") as opened:
        yield opened


def p95(values):
    return sorted(values)[int(0.95 * (len(values) - 1))]


def assert_whole(reading, prompt, attempts):
    """The reader and the result have the whole text, every token counted once."""
    assert reading.text() == prompt.answer
    result = reading.generation.result(timeout_s=5)
    assert result.replies == [prompt.answer]
    meta = result.meta[0]
    # The stand-in ends its text with a token of its own that has no text.
    assert (meta["attempts"], meta["usage"]["completion_tokens"]) == (attempts, prompt.tokens + 1)
    assert meta["finish_reason"] == "eos_token"


def test_killed_in_mid_stream_another_goes_on_without_a_seam(fleet, ask, read, eventually, standin):
    fleet.staff(2)
    prompts = [ask(tokens=120, itl_s=0.05, split_characters=number % 2 == 1) for number in range(10)]
    for number, prompt in enumerate(prompts):
        prompt.is_split = number % 2 == 1
    readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
    eventually(lambda: all(len(reading.events) > 20 for reading in readings))
    victim = fleet.holder(readings[0].generation)
    hit = [reading for reading in readings if fleet.holder(reading.generation) is victim]
    victim.process.kill()
    killed_s = time.time()
    eventually(lambda: all(reading.came("resumed", 2) for reading in hit))
    assert p95([reading.came("resumed", 2) - killed_s for reading in hit]) < TAKEOVER_S
    for prompt, reading in zip(prompts, readings, strict=True):
        answer = "".join(token.text for token in expected_tokens(prompt, 120, split_characters=prompt.is_split))
        assert reading.text() == answer
        result = reading.generation.result(timeout_s=5)
        assert result.replies == [answer]
        assert result.meta[0]["usage"]["completion_tokens"] == 121
        if reading in hit:
            assert reading.kinds() == ["1.started", "2.started", "2.resumed", "2.finished"]
            assert result.meta[0]["attempts"] == 2
            first, second = standin.attempts(prompt)
            assert second["body"]["inputs"] == prompt + answer[: len(second["body"]["inputs"]) - len(prompt)]
            assert first["state"] == "dropped"
        else:
            assert reading.kinds() == ["1.started", "1.finished"]


def test_one_that_slept_past_its_lease_writes_nothing_more(fleet, ask, read, eventually, standin):
    fleet.staff(2)
    prompt = ask(tokens=200, itl_s=0.05)
    reading = read(fleet.client.submit(prompt))
    eventually(lambda: len(reading.events) > 20)
    sleeper = fleet.holder(reading.generation)
    sleeper.process.send_signal(signal.SIGSTOP)
    eventually(lambda: reading.came("resumed", 2))
    assert standin.attempts(prompt)[0]["state"] == "running"
    woken_s = time.time()
    sleeper.process.send_signal(signal.SIGCONT)
    eventually(lambda: standin.attempts(prompt)[0]["state"] == "dropped")
    assert standin.attempts(prompt)[0]["closed_at_s"] - woken_s < 5.0
    assert_whole(reading, prompt, attempts=2)
    attempts = [event.attempt for _, event in reading.events]
    assert attempts == sorted(attempts)
    assert len(standin.attempts(prompt)) == 2
    eventually(lambda: [line["outcome"] for line in sleeper.outcomes(reading.generation.id)] == ["superseded"])


def test_a_text_that_redis_lost_in_mid_run_is_begun_anew(fleet, ask, read, eventually):
    """Evicted, or deleted by hand: what comes later is no text to go on behind, nor the reply."""
    fleet.staff(2)
    prompt = ask(tokens=120, itl_s=0.05)
    reading = read(fleet.client.submit(prompt))
    eventually(lambda: len(reading.events) > 20)
    text = text_key(reading.generation.id)
    with redis.Redis.from_url(fleet.redis.url) as db:
        db.delete(text)
        eventually(lambda: db.strlen(text) > 0)
    fleet.holder(reading.generation).process.kill()
    assert_whole(reading, prompt, attempts=2)
    assert "2.reset" in reading.kinds()
    assert "".join(chunk.text for chunk in reading.generation.stream()) == prompt.answer


def test_what_was_popped_and_never_claimed_is_run(fleet, ask, eventually):
    """Twelve doorbells: a frozen worker has one in its hands when it is killed, the others go the same way."""
    (only, *others) = fleet.staff(1)
    for other in others:
        other.process.kill()
        other.process.wait()
    prompts = [ask(tokens=5) for _ in range(15)]
    with redis.Redis.from_url(fleet.redis.url) as db:
        eventually(lambda: sum(entry["cmd"] == "brpop" for entry in db.client_list()) == 1)
        only.process.send_signal(signal.SIGSTOP)
        generations = [fleet.client.submit(prompt) for prompt in prompts[:12]]
        assert db.llen(doorbell("default", 5)) < 12  # one is in the frozen worker's hands
        only.process.kill()
        only.process.wait()
        while db.rpop(doorbell("default", 5)):  # as a worker that dies between its pop and its claim
            pass
        generations += [fleet.client.submit(prompt) for prompt in prompts[12:]]
        fleet.staff(1)
        for prompt, generation in zip(prompts, generations, strict=True):
            assert generation.result(timeout_s=10).replies == [prompt.answer]


def test_a_queue_whose_list_was_deleted_is_served(fleet, ask):
    for worker in fleet.workers:
        worker.process.kill()
        worker.process.wait()
    prompts = [ask(tokens=5) for _ in range(5)]
    generations = [fleet.client.submit(prompt, priority=number) for number, prompt in enumerate(prompts)]
    with redis.Redis.from_url(fleet.redis.url) as db:
        assert db.delete(*(doorbell("default", priority) for priority in range(5))) == 5
    fleet.staff(1)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.result(timeout_s=10).replies == [prompt.answer]


def with_white_space_at(position, ask, **script):
    """A prompt whose text has a token of nothing but white space there."""
    while True:
        prompt = ask(**script)
        if expected_tokens(prompt, position + 1)[position].text.isspace():
            return prompt


def tokens_of(reading):
    return sum(len(getattr(event, "tokens", ())) for _, event in reading.events)


def held_after(tokens, fleet, read, eventually, prompt, **options):
    """A reader of a generation whose server fell silent after so many tokens, and the worker that has it."""
    fleet.staff(2)
    reading = read(fleet.client.submit(prompt, **options))
    eventually(lambda: tokens_of(reading) == tokens)
    return reading, fleet.holder(reading.generation)


def silent_once_after(tokens):
    return {"faults": [{"kind": "stall", "after_tokens": tokens, "times": 1}]}


def test_killed_at_white_space_the_text_has_no_seam(fleet, ask, read, eventually):
    prompt = with_white_space_at(7, ask, tokens=20, **silent_once_after(8))
    reading, holder = held_after(8, fleet, read, eventually, prompt)
    assert prompt.beginning(8) != prompt.beginning(8).rstrip()
    holder.process.kill()
    assert_whole(reading, prompt, attempts=2)


def test_a_stop_sequence_across_the_seam_ends_the_text(fleet, ask, read, eventually, standin):
    """Its beginning came before the worker was killed: the next attempt's server sees the end of it only."""
    prompt = ask(tokens=60, **silent_once_after(8))
    end = len(prompt.beginning(9))  # as with TGI, where a token ends
    stop = prompt.answer[len(prompt.beginning(8)) - 3 : end]
    assert prompt.answer.index(stop) + len(stop) == end
    reading, holder = held_after(8, fleet, read, eventually, prompt, stop_words=[stop])
    holder.process.kill()
    result = reading.generation.result(timeout_s=15)
    assert result.replies == [prompt.answer[:end]]
    assert reading.text() == prompt.answer[:end]
    assert (result.meta[0]["finish_reason"], result.meta[0]["attempts"]) == ("stop_sequence", 2)
    eventually(lambda: standin.attempts(prompt)[-1]["state"] != "running")


@pytest.mark.parametrize(
    ("changed", "finish_reason"),
    [
        pytest.param(lambda text: {"generation_kwargs": {"max_new_tokens": 8}}, "length", id="max_new_tokens-reached"),
        pytest.param(lambda text: {"stop_words": [text[-3:]]}, "stop_sequence", id="ends-in-a-stop-word"),
    ],
)
def test_where_only_the_end_itself_was_lost_no_server_is_asked_again(
    fleet, ask, read, eventually, standin, changed, finish_reason
):
    """The worker died between its last token and the end: what it would have left is written by hand."""
    prompt = ask(tokens=60, **silent_once_after(8))
    reading, holder = held_after(8, fleet, read, eventually, prompt)
    holder.process.send_signal(signal.SIGSTOP)
    with redis.Redis.from_url(fleet.redis.url) as db:
        place = generation_key(reading.generation.id)
        request = json.loads(db.hget(place, "request")) | changed(prompt.beginning(8))
        db.hset(place, "request", json.dumps(request))
    holder.process.kill()
    result = reading.generation.result(timeout_s=15)
    assert result.replies == [prompt.beginning(8)]
    assert reading.text() == prompt.beginning(8)
    meta = result.meta[0]
    assert (meta["finish_reason"], meta["usage"]["completion_tokens"], meta["attempts"]) == (finish_reason, 8, 2)
    assert len(standin.attempts(prompt)) == 1
    assert reading.kinds() == ["1.started", "2.started", "2.finished"]


def test_what_a_dead_worker_left_is_ended_at_its_deadline_though_nobody_serves_its_generator(
    fleet_of, ask, read, eventually, standin, launch_worker
):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}, GENQUEUE_LEASE_S="1") as fleet:
        fleet.workers.append(launch_worker({"other": generator}, fleet.redis.url, environ={"GENQUEUE_LEASE_S": "1"}))
        fleet.staff(2)
        reading = read(fleet.client.submit(ask(tokens=400, itl_s=0.05), deadline_s=4.0))
        eventually(lambda: len(reading.events) > 10)
        fleet.holder(reading.generation).process.kill()
        with pytest.raises(GenerationExpiredError, match="after its worker was lost") as ended:
            reading.generation.result(timeout_s=15)
        assert ended.value.partial_text == reading.text() != ""
        assert ended.value.usage["completion_tokens"] == tokens_of(reading)
        detail = ended.value.detail
        assert (detail["finish_reason"], len(detail["errors"])) == ("deadline", 1)
        assert 4.0 <= detail["timings"]["total_s"] < 4.0 + TAKEOVER_S
        assert reading.kinds() == ["1.started", "1.failed"]


def test_told_to_stop_it_hands_over_what_does_not_end_in_time(fleet, ask, read, eventually):
    """Among them texts that stand at white space in that moment, which a server trims off a prompt."""
    fleet.staff(2)
    stalls = {"faults": [{"kind": "stall", "after_tokens": 8, "times": 1}]}
    prompts = [with_white_space_at(7, ask, tokens=40, itl_s=0.02, **stalls) for _ in range(4)]
    prompts += [ask(tokens=100, itl_s=0.05) for _ in range(8)]
    readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
    eventually(lambda: all(tokens_of(reading) >= 5 for reading in readings))
    leaver = fleet.holder(readings[0].generation)
    leaves = [reading for reading in readings if fleet.holder(reading.generation) is leaver]
    told_s = time.time()
    leaver.process.send_signal(signal.SIGTERM)
    eventually(lambda: all(reading.came("resumed", 2) or reading.came("finished", 1) for reading in leaves))
    over = [reading for reading in leaves if reading.came("resumed", 2)]
    waits_s = [reading.came("resumed", 2) - told_s - 1.0 for reading in over]  # drain_s is 1
    assert all(0.0 <= wait_s < HANDOVER_S for wait_s in waits_s), waits_s
    assert leaver.process.wait(10) == 0
    for prompt, reading in zip(prompts, readings, strict=True):
        if reading not in leaves and "stall" in prompt:
            reading.generation.cancel()  # its worker stays, and its server is silent for ever
            continue
        assert_whole(reading, prompt, attempts=2 if reading in over else 1)
        assert fleet.record(reading.generation).get("failures", "0") == "0"
        assert "errors" not in fleet.record(reading.generation)


def test_a_generation_is_run_once_however_long_it_takes(fleet_of, ask, read, standin):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}, GENQUEUE_LEASE_S="0.5") as fleet:
        fleet.staff(2)
        prompts = [ask(tokens=200, itl_s=0.05) for _ in range(4)]  # 20 lease lengths
        readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
        for prompt, reading in zip(prompts, readings, strict=True):
            assert_whole(reading, prompt, attempts=1)
            assert len(standin.attempts(prompt)) == 1


def test_leases_are_renewed_although_redis_refuses_what_the_worker_announces(fleet_of, ask, read, standin, eventually):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}, GENQUEUE_LEASE_S="0.5") as fleet, redis.Redis.from_url(fleet.redis.url) as db:
        (worker,) = fleet.staff(1)
        db.delete("genqueue:places")
        db.set("genqueue:places", "of another type")
        eventually(lambda: "this worker cannot be announced" in worker.log, within_s=15)
        assert "leases cannot be renewed" not in worker.log
        prompt = ask(tokens=60, itl_s=0.05)
        reading = read(fleet.client.submit(prompt))
        eventually(lambda: len(reading.events) > 30)  # three lease lengths
        eventually(lambda: db.zscore("genqueue:leases", reading.generation.id) > time.time() * 1000)
        assert_whole(reading, prompt, attempts=1)
        db.delete("genqueue:places")


def test_what_is_claimed_only_after_it_should_have_been_handed_over_is_given_back_at_once(
    fleet_of, ask, standin, eventually
):
    """The claim's answer is late; a worker that is to leave must not run it to its end."""
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}) as fleet, ThreadPoolExecutor() as threads:
        settings = Settings(
            redis_url=as_role(fleet.redis.url, "worker"), generators={"default": generator}, drain_s=0.0
        )
        engine = Engine(settings, {})
        engine.start()
        prompt = ask(tokens=50, itl_s=0.05)
        generation = fleet.client.submit(prompt)
        fleet.redis.pause()
        running = threads.submit(engine.run, generation.id, "default", None)
        eventually(lambda: generation.id in engine._in_hand)  # the claim is on its way
        engine.drain(0.0)
        eventually(lambda: engine._is_leaving)  # drain_s is over
        fleet.redis.resume()
        assert running.result(timeout=10) == Relinquished("handed_over")
        assert fleet.record(generation)["state"] == "queued"
        assert standin.requests(prompt) == []
        engine.stop()


def test_news_of_an_attempt_that_is_over_stops_no_later_one(fleet_of, ask, standin, eventually):
    """A renewal, or a flush, that was on its way may be refused once the same worker runs the next attempt."""
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}) as fleet, ThreadPoolExecutor() as threads:
        engine = Engine(Settings(redis_url=as_role(fleet.redis.url, "worker"), generators={"default": generator}), {})
        engine.start()
        prompt = ask(tokens=20, itl_s=0.02)
        generation = fleet.client.submit(prompt)
        running = threads.submit(engine.run, generation.id, "default", None)
        eventually(lambda: standin.requests(prompt))
        engine.lose(generation.id, 0, "superseded")
        assert running.result(timeout=10).result.replies == [prompt.answer]
        other = fleet.client.submit(ask(tokens=200, itl_s=0.05))
        running = threads.submit(engine.run, other.id, "default", None)
        eventually(lambda: engine.held() == [(other.id, 1)])
        engine.lose(other.id, 1, "superseded")
        assert running.result(timeout=5) == Relinquished("superseded")
        engine.stop()


TOO_LONG = {
    "kind": "status",
    "status": 422,
    "body": {
        "error": "Input validation error: `inputs` must have less than 4 tokens. Given: 9",
        "error_type": "validation",
    },
}
NO_PREFIX = {"kind": "status", "status": 500, "body": "Cannot have an assistant message at the end of the list"}


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([{**TOO_LONG, "times": 1}], id="refused"),
        pytest.param([{**NO_PREFIX, "times": 2}], id="failed-twice"),
        pytest.param(
            [{**TOO_LONG, "times": 1}, {"kind": "cut", "after_tokens": 3, "times": 1}], id="and-cut-off-once-more"
        ),
    ],
)
def test_a_text_that_its_server_does_not_continue_begins_anew(fleet, ask, read, standin, faults):
    fleet.staff(1)
    cut = {"kind": "cut", "after_tokens": 5, "times": 1}
    prompt = ask(tokens=12, faults=[cut, *faults])
    reading = read(fleet.client.submit(prompt))
    assert reading.text() == prompt.answer
    kinds = [kind for _, _, kind in (each.partition(".") for each in reading.kinds())]
    assert (kinds.count("reset"), kinds[-1]) == (1 + ("cut" in str(faults)), "finished")
    result = reading.generation.result(timeout_s=5)
    assert result.replies == [prompt.answer]
    assert result.meta[0]["usage"]["completion_tokens"] == prompt.tokens + 1
    inputs = [entry["body"]["inputs"] for entry in standin.attempts(prompt)]
    continued = [sent for sent in inputs if sent != prompt]
    assert len(continued) == sum(fault["times"] for fault in faults if fault["kind"] == "status")
    assert inputs[-1] == prompt  # and no other continuation is tried


def refusal(status, words):
    return {"kind": "status", "status": status, "body": words}


@pytest.mark.parametrize("max_attempts", [2, 3])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(refusal(411, ""), id="411"),
        pytest.param(refusal(414, ""), id="414"),
        pytest.param(refusal(431, ""), id="431"),
        pytest.param(refusal(500, "prefix too long"), id="500"),
    ],
)
def test_a_refused_continuation_uses_no_attempts_up(fleet_of, ask, standin, fault, max_attempts):
    """It begins anew while there is an attempt left for that, however the refusal is called."""
    generator = {
        "api_type": "text_generation_inference",
        "api_params": {"url": standin.url},
        "max_attempts": max_attempts,
    }
    with fleet_of({"default": generator}) as fleet:
        fleet.staff(1)
        prompt = ask(tokens=12, faults=[{"kind": "cut", "after_tokens": 5, "times": 1}, {**fault, "times": 1}])
        result = fleet.client.submit(prompt).result(timeout_s=30)
        assert result.replies == [prompt.answer]
        inputs = [entry["body"]["inputs"] for entry in standin.attempts(prompt)]
        assert [sent == prompt for sent in inputs] == [True, False, True]


def test_what_is_cancelled_while_its_claim_is_on_its_way_is_asked_of_no_server(fleet_of, ask, standin, eventually):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}) as fleet, ThreadPoolExecutor() as threads:
        engine = Engine(Settings(redis_url=as_role(fleet.redis.url, "worker"), generators={"default": generator}), {})
        engine.start()
        prompt = ask(tokens=50, itl_s=0.05)
        generation = fleet.client.submit(prompt)
        fleet.redis.pause()
        running = threads.submit(engine.run, generation.id, "default", None)
        eventually(lambda: generation.id in engine._in_hand)  # the claim is on its way
        engine._loop.call_soon_threadsafe(engine._lose, generation.id, None, "cancelled")
        eventually(lambda: engine._in_hand[generation.id].scope.reason)
        fleet.redis.resume()
        assert running.result(timeout=10) == Ended(endings.CANCELLED)
        assert standin.requests(prompt) == []
        assert engine._in_hand == {}
        engine.stop()


class Defective(ModelClient):
    """A generator with a defect of ours, whose words quote the prompt."""

    async def run(self, prompt, *_, **__):
        raise KeyError(prompt)


def test_a_defect_of_ours_costs_an_attempt_and_never_the_generation(fleet_of, ask, standin, caplog):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}) as fleet:
        settings = Settings(redis_url=as_role(fleet.redis.url, "worker"), generators={"default": generator})
        engine = Engine(settings, {})
        engine.start()
        whole = engine.generators["default"]
        defective = Defective(whole.upstream, engine.metrics.of("default"), settings.max_reply_bytes)
        prompt = ask(tokens=5)
        generation = fleet.client.submit(prompt)
        engine.generators["default"] = defective
        with caplog.at_level("INFO"):
            assert engine.run(generation.id, "default", None) == Relinquished("retried")
        record = fleet.record(generation)
        assert (record["state"], record.get("failures")) == ("queued", None)
        assert json.loads(record["errors"]) == {"attempt": 1, "message": "unexpected KeyError in the worker"}
        (line,) = [each for each in caplog.records if getattr(each, "outcome", None) == "retried"]
        assert "in run" in line.stack
        assert prompt not in caplog.text + line.stack
        engine.generators["default"] = whole
        assert engine.run(generation.id, "default", None).result.replies == [prompt.answer]

        engine.generators["default"] = defective
        hasty = fleet.client.submit(ask(), on_failure="fail")
        assert engine.run(hasty.id, "default", None).outcome.error == "failed"
        engine.stop()
