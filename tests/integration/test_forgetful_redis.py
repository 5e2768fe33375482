"""A Redis that answered and then forgot, as after a crash or a failover: its last writes are taken back here."""

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
