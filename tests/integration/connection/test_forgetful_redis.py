"""A Redis that answered and then forgot, as after a crash or a failover: its last writes are taken back here."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from genqueue import keys


@pytest.mark.parametrize("events", [1, 25])
def test_what_it_forgot_is_written_again_and_no_reader_sees_a_seam(client, worker, ask, read, eventually, events):
    prompt = ask(tokens=250, itl_s=0.03)
    generation = client.submit(prompt, generation_kwargs={"max_new_tokens": 500})
    reading = read(generation)
    eventually(lambda: len(reading.events) > 10)
    names = [keys.generation(generation.id), keys.log(generation.id), keys.text(generation.id)]
    with redis.Redis.from_url(worker.redis_url) as db:
        with db.pipeline() as dumping:
            for name in names:
                dumping.dump(name)
            known = dumping.execute()
        seen = len(reading.events)
        eventually(lambda: len(reading.events) >= seen + events)
        with db.pipeline() as forgetting:
            for name, dumped in zip(names, known, strict=True):
                forgetting.restore(name, 60_000, dumped, replace=True)
            forgetting.execute()
    assert reading.text() == prompt.answer  # and every event has the number that follows the one before
    assert reading.kinds() == ["1.started", "1.finished"]
    late = read(generation)
    assert late.text() == prompt.answer
    assert [event for _, event in late.events] == [event for _, event in reading.events]
    assert generation.result(timeout_s=10).replies == [prompt.answer]
    assert f"flushes of generation {generation.id}" in worker.log


@pytest.fixture
def fleet(fleet_of, standin):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator}, GENQUEUE_DRAIN_S="1") as opened:
        yield opened


def log_sizes(server):
    """How long Redis's append-only log is, whichever its files are (Redis 7 has a folder of them)."""
    return {path: path.stat().st_size for path in server.data_dir.rglob("*.aof")}


def lose_power(server, known):
    """End Redis as its host's death does: what it wrote after ``known`` never reached the disk."""
    server.kill()
    for path, size in known.items():
        os.truncate(path, size)


ENDINGS = {
    "ended": {},
    "failed": {"faults": [{"kind": "reset", "after_tokens": 60, "times": 1}]},
    "fell-silent": {"faults": [{"kind": "cut", "after_tokens": 60, "times": 1}]},
    "drained": {},
}


@pytest.mark.parametrize("way", ENDINGS)
def test_what_its_host_lost_with_its_power_is_there_once(fleet, ask, read, eventually, standin, way):
    (worker,) = fleet.staff(1)
    length = 120 if way == "drained" else 70
    prompts = [ask(tokens=length, itl_s=0.03, **ENDINGS[way]) for _ in range(4)]
    generations = [fleet.client.submit(prompt, generation_kwargs={"max_new_tokens": 500}) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as threads:
        streamed = [
            threads.submit(lambda generation=generation: "".join(chunk.text for chunk in generation.stream()))
            for generation in generations
        ]
        readings = [read(generation) for generation in generations]
        eventually(lambda: all(len(reading.events) > 8 for reading in readings))
        known = log_sizes(fleet.redis)
        seen = [len(reading.events) for reading in readings]
        eventually(lambda: all(len(r.events) > before + 8 for r, before in zip(readings, seen, strict=True)))
        lose_power(fleet.redis, known)
        if way == "drained":
            worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: all(standin.attempts(prompt)[-1]["state"] != "running" for prompt in prompts))
        fleet.redis.start()
        if way == "drained":
            worker.process.wait(15)
            fleet.staff(1)
        for prompt, generation, text in zip(prompts, generations, streamed, strict=True):
            result = generation.result(timeout_s=30)
            assert result.replies == [prompt.answer]
            assert result.meta[0]["usage"]["completion_tokens"] == prompt.tokens + 1
            assert text.result(timeout=10) == prompt.answer
            sent = [entry["body"]["inputs"] for entry in standin.attempts(prompt)]
            assert all((prompt + prompt.answer).startswith(inputs) for inputs in sent)
        for prompt, generation in zip(prompts, generations, strict=True):
            assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
    assert "flushes of generation" in worker.log
