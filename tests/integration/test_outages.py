"""Redis goes away under load and comes back: nothing is lost, nothing runs twice, new work is taken."""

import time

import pytest

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


def freeze(seconds):
    def freeze(fleet):
        fleet.redis.pause()
        time.sleep(seconds)
        fleet.redis.resume()

    return freeze


@pytest.mark.parametrize(
    "outage",
    [
        pytest.param(restart, id="restarted-after-4-s"),
        pytest.param(freeze(6.0), id="frozen-for-6-s"),
        pytest.param(freeze(3.5), id="frozen-for-less-than-its-timeout"),
    ],
)
def test_streams_outlast_it_and_new_work_is_taken(fleet, ask, read, eventually, standin, outage):
    prompts = [ask(tokens=150, itl_s=0.05) for _ in range(20)]
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
        assert result.meta[0]["usage"]["completion_tokens"] == 151
    attempts = [reading.generation.result(timeout_s=5).meta[0]["attempts"] for reading in readings]
    assert attempts == [1] * 20
    assert [len(standin.attempts(prompt)) for prompt in prompts] == [1] * 20


def test_a_producer_hears_of_it_at_once_and_a_reader_waits_as_long_as_it_was_told(fleet, ask, read, eventually):
    settings = Settings(redis_url=fleet.redis.url, generators={}, redis_timeout_s=1.0, outage_patience_s=1.0)
    with GenerationClient(settings) as client:
        generation = client.submit(ask(tokens=400, itl_s=0.05))
        reading = read(generation)
        eventually(lambda: len(reading.events) > 3)
        fleet.redis.stop()
        began_s = time.monotonic()
        with pytest.raises(RedisUnavailableError):
            client.submit(ask())
        assert time.monotonic() - began_s < 1.0
        with pytest.raises(RedisUnavailableError):
            reading.text(within_s=10)
        assert 1.0 <= time.monotonic() - began_s < 4.0  # before a silent channel is looked after, every 5 s
        fleet.redis.start()
