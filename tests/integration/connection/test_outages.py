"""Redis goes away under load and comes back: nothing is lost, nothing runs twice, new work is taken."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from genqueue import GenerationClient, RedisUnavailableError, Settings

BACK_WITHIN_S = 5.0


@pytest.fixture
def fleet(fleet_of, standin):
    tgi = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": tgi}) as opened:
        opened.staff(2)
        yield opened


def restart(fleet):
    fleet.redis.stop()
    time.sleep(4.0)  # the length of the outage is what is tested
    fleet.redis.start()


def crash(fleet):
    """Its append-only file is not synced at every write: a process's death loses nothing of it all the same."""
    fleet.redis.kill()
    fleet.redis.start()


def freeze(seconds):
    def freeze(fleet):
        fleet.redis.pause()
        time.sleep(seconds)
        fleet.redis.resume()

    return freeze


def keep(seconds):
    """Somebody's script that does not end: Redis answers everybody, and does nothing."""

    def keep(fleet):
        with redis.Redis.from_url(fleet.redis.url) as db:
            db.config_set("lua-time-limit", 100)
            connection = db.connection_pool.get_connection()
            connection.send_command("EVAL", "while true do end", "0")
            time.sleep(seconds)
            db.script_kill()
            connection.disconnect()
            db.connection_pool.release(connection)

    return keep


@pytest.mark.parametrize(
    "outage",
    [
        pytest.param(keep(4.0), id="kept-by-a-script-for-4-s"),
        pytest.param(restart, id="restarted-after-4-s"),
        pytest.param(crash, id="killed-and-restarted"),
        pytest.param(freeze(10.0), id="frozen-for-10-s"),
        pytest.param(freeze(3.5), id="frozen-for-less-than-its-timeout"),
    ],
)
def test_streams_outlast_it_and_new_work_is_taken(fleet, ask, read, eventually, standin, outage):
    prompts = [ask(tokens=250, itl_s=0.05) for _ in range(20)]
    readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
    eventually(lambda: all(len(reading.events) > 10 for reading in readings))
    outage(fleet)
    back_s = time.monotonic()
    prompt = ask()
    new = fleet.client.submit(prompt)
    assert new.result(timeout_s=10).replies == [prompt.answer]
    assert time.monotonic() - back_s < BACK_WITHIN_S
    for prompt, reading in zip(prompts, readings, strict=True):
        assert reading.text() == prompt.answer
        result = reading.generation.result(timeout_s=5)
        assert result.replies == [prompt.answer]
        assert result.meta[0]["usage"]["completion_tokens"] == 251
    attempts = [reading.generation.result(timeout_s=5).meta[0]["attempts"] for reading in readings]
    assert attempts == [1] * 20
    assert [len(standin.attempts(prompt)) for prompt in prompts] == [1] * 20


def test_what_was_accepted_just_before_it_is_run_and_who_submits_meanwhile_is_told_or_waits(
    fleet, ask, read, eventually, standin
):
    """Frozen for 10 s with work queued, accepted and submitted; afterwards the workers take all of it, and more."""
    busy = [read(fleet.client.submit(ask(tokens=300, itl_s=0.05))) for _ in range(10)]
    eventually(lambda: all(len(reading.events) > 5 for reading in busy))
    accepted = [(prompt := ask(), fleet.client.submit(prompt)) for _ in range(20)]
    settings = {"redis_url": fleet.producer_url, "generators": {}}
    with (
        GenerationClient(Settings(**settings, redis_timeout_s=1.0)) as hasty,
        GenerationClient(Settings(**settings, redis_timeout_s=20.0)) as patient,
        ThreadPoolExecutor() as threads,
    ):
        assert hasty.submit(ask()) and patient.submit(ask())  # both are connected
        fleet.redis.pause()
        frozen_s = time.monotonic()
        waits = ask()
        waiting = threads.submit(patient.submit, waits)
        with pytest.raises(RedisUnavailableError, match=r"127\.0\.0\.1"):
            hasty.submit(ask())
        assert time.monotonic() - frozen_s < 6.0
        time.sleep(frozen_s + 10.0 - time.monotonic())
        fleet.redis.resume()
        back_s = time.monotonic()
        accepted.append((waits, waiting.result(timeout=BACK_WITHIN_S)))
        accepted += [(prompt := ask(), hasty.submit(prompt)) for _ in range(20)]
        for prompt, generation in accepted:
            assert generation.result(timeout_s=10).replies == [prompt.answer]
        assert time.monotonic() - back_s < BACK_WITHIN_S
        assert [len(standin.attempts(prompt)) for prompt, _ in accepted] == [1] * len(accepted)
        for reading in busy:
            reading.text(within_s=30)
            assert reading.kinds() == ["1.started", "1.finished"]


@pytest.mark.parametrize("away", ["frozen", "dead"])
def test_a_worker_that_is_told_to_stop_meanwhile_leaves_in_time(fleet, ask, read, eventually, standin, away):
    leaver = fleet.staff(3, GENQUEUE_DRAIN_S="1")[-1]
    with redis.Redis.from_url(fleet.redis.url) as db:  # so that each gets some
        eventually(lambda: sum(entry["cmd"] == "brpop" for entry in db.client_list()) == 3)
    prompts = [ask(tokens=400, itl_s=0.05) for _ in range(12)]
    readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
    eventually(lambda: all(len(reading.events) > 3 for reading in readings))
    left = [
        prompt for prompt, reading in zip(prompts, readings, strict=True) if fleet.holder(reading.generation) is leaver
    ]
    fleet.redis.pause() if away == "frozen" else fleet.redis.stop()
    leaver.process.send_signal(signal.SIGTERM)
    eventually(lambda: all(standin.only(prompt)["state"] == "dropped" for prompt in left), within_s=5)
    began_s = time.monotonic()
    leaver.process.wait(12)  # docs/deploy.md: 10 s beside the drain
    assert "left to others" in leaver.log
    fleet.redis.resume() if away == "frozen" else fleet.redis.start()
    for prompt, reading in zip(prompts, readings, strict=True):
        assert reading.text(within_s=40) == prompt.answer
    assert time.monotonic() - began_s < 45


def test_a_producer_hears_of_it_at_once_and_a_reader_waits_as_long_as_it_was_told(fleet, ask, read, eventually):
    settings = Settings(redis_url=fleet.producer_url, generators={}, redis_timeout_s=1.0, outage_patience_s=1.0)
    with GenerationClient(settings) as client:
        generation = client.submit(ask(tokens=400, itl_s=0.05))
        reading = read(generation)
        eventually(lambda: len(reading.events) > 3)
        fleet.redis.stop()
        began_s = time.monotonic()
        with pytest.raises(RedisUnavailableError):
            client.submit(ask())
        assert time.monotonic() - began_s < 3.0
        with pytest.raises(RedisUnavailableError):
            reading.text(within_s=10)
        assert 1.0 <= time.monotonic() - began_s < 4.9  # before a silent channel is looked after, every 5 s
        fleet.redis.start()
