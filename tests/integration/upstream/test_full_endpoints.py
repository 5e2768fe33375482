"""A worker takes from the queue what its model server has room for, and what it refuses burns nothing."""

import signal
import time

import pytest
import redis

from genqueue import GenerationClient, GenerationRejectedError, QueueFullError, Settings
from genqueue.keys import doorbell

from ...support.standins import running_standin

TGI = "text_generation_inference"
ENDLESS = {"max_new_tokens": 5000}
SPENT = {
    "kind": "status",
    "status": 429,
    "body": {
        "error": {
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "type": "insufficient_quota",
            "code": "insufficient_quota",
        }
    },
}
PAGE = {"kind": "status", "status": 200, "body": "<html><title>Back soon</title></html>"}
UNAUTHORIZED = {"kind": "status", "status": 401, "body": {"error": "wrong token"}}


@pytest.fixture
def small():
    """``small.url``: a model server that takes two calls at once."""
    with running_standin("--max-concurrent-requests", "2") as served:
        yield served


@pytest.fixture
def large():
    with running_standin("--tokens", "8") as served:
        yield served


def endless(ask):
    return ask(tokens=100_000, itl_s=0.02)


def states(generations):
    return [generation.status().state for generation in generations]


def attempts(generations):
    return [generation.status().attempt for generation in generations]


def test_what_a_full_server_has_no_room_for_waits_in_the_queue(small, hosts, ask, eventually):
    fleet = hosts([[small.url]], places=16, max_queue_depth=12)
    generations = [fleet.client.submit(endless(ask), generation_kwargs=ENDLESS) for _ in range(12)]
    eventually(lambda: states(generations).count("running") == 2)
    # Whether there is room by now is tried with one at a time: the others are left alone.
    eventually(lambda: max(attempts(generations)) >= 3)
    assert sum(attempts(generations)) < 12 + 12  # the first find out that it is full; then one a second does
    overview = fleet.client.overview()
    assert overview.delayed == 0
    (queue,) = overview.queues
    assert queue.waiting in {9, 10}  # one may just be tried
    with redis.Redis.from_url(fleet.settings.redis_url) as db:
        eventually(lambda: db.llen(doorbell("default", 5)) >= 4)  # for others; few are just looked at here
    with pytest.raises(QueueFullError):
        for _ in range(4):
            fleet.client.submit(endless(ask), generation_kwargs=ENDLESS)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["rests"])
    for generation in generations:
        generation.cancel()


@pytest.mark.parametrize("generators", [1, 2])
def test_a_place_that_becomes_free_is_taken_at_once(generators, small, large, start_worker, queue_redis, ask):
    """Also where the worker listens to another queue meanwhile, which has nothing."""
    names = ["scarce", "idle"][:generators]
    configured = {
        name: {"api_type": TGI, "api_params": {"url": server.url}}
        for name, server in zip(names, (small, large), strict=False)
    }
    worker = start_worker(configured, queue_redis.url, "-c", "16")
    prompts = [ask(tokens=6, itl_s=0.015) for _ in range(60)]
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        generations = [client.submit(prompt, generator="scarce") for prompt in prompts]
        results = [generation.result(timeout_s=60) for generation in generations]
    assert [result.replies for result in results] == [[prompt.answer] for prompt in prompts]
    attempts = sum(result.meta[0]["attempts"] for result in results)
    # Each second that it takes, one more than there is room for is tried: 3 s if nothing is lost, 20 s if every
    # place waited for a second.
    assert attempts - 60 <= 16 + 10


def test_a_server_with_room_takes_what_waits_for_a_full_one(small, large, hosts, ask, eventually):
    fleet = hosts([[small.url], [large.url]], places=16)
    _, other = fleet.workers
    other.process.send_signal(signal.SIGSTOP)
    held = [fleet.client.submit(endless(ask), generation_kwargs=ENDLESS) for _ in range(4)]
    eventually(lambda: states(held).count("running") == 2)
    other.process.send_signal(signal.SIGCONT)
    prompts = [ask() for _ in range(20)]
    for prompt in prompts:
        assert fleet.client.submit(prompt).result(timeout_s=30).replies == [prompt.answer]
    eventually(lambda: states(held) == ["running"] * 4)
    for generation in held:
        generation.cancel()


def test_a_full_server_keeps_no_other_generator_waiting(small, large, start_worker, queue_redis, ask, eventually):
    generators = {
        name: {"api_type": TGI, "api_params": {"url": server.url}}
        for name, server in (("crowded", small), ("roomy", large))
    }
    worker = start_worker(generators, queue_redis.url, "-c", "8")
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        crowd = [client.submit(endless(ask), generator="crowded", generation_kwargs=ENDLESS) for _ in range(30)]
        eventually(lambda: states(crowd).count("running") == 2)
        for _ in range(20):
            prompt = ask()
            assert client.submit(prompt, generator="roomy").result(timeout_s=10).replies == [prompt.answer]
        for generation in crowd:
            generation.cancel()


def test_what_waits_at_hand_for_room_goes_back_when_the_worker_is_told_to_stop(small, large, hosts, ask, eventually):
    fleet = hosts([[small.url], [large.url]], places=16)
    stops, other = fleet.workers
    other.process.send_signal(signal.SIGSTOP)
    held = [fleet.client.submit(endless(ask), generation_kwargs=ENDLESS) for _ in range(2)]
    eventually(lambda: states(held) == ["running"] * 2)
    prompts = [ask() for _ in range(3)]
    waiting = [fleet.client.submit(prompt) for prompt in prompts]
    eventually(lambda: max(attempts(waiting)) >= 2)  # tried, and found that there is no room
    stops.process.terminate()
    other.process.send_signal(signal.SIGCONT)
    for prompt, generation in zip(prompts, waiting, strict=True):
        assert generation.result(timeout_s=15).replies == [prompt.answer]
    for generation in held:
        generation.cancel()


# --- servers that refuse whatever comes ----------------------------------------------------------


def test_one_of_two_urls_with_a_wrong_token_costs_no_generation(large, hosts, ask, eventually):
    with running_standin("--api-key", "another") as locked:
        fleet = hosts([[locked.url, large.url]])
        prompts = [ask(itl_s=0.01) for _ in range(60)]
        generations = [fleet.client.submit(prompt) for prompt in prompts]
        for prompt, generation in zip(prompts, generations, strict=True):
            result = generation.result(timeout_s=30)
            assert (result.replies, result.meta[0]["endpoint"]) == ([prompt.answer], large.url)
        assert len(locked.requests()) < 40
        eventually(lambda: fleet.health(fleet.workers[0]) in (["refuses", "up"], ["rests", "up"]))
    assert fleet.client.dead_letters() == []


def test_what_one_url_refuses_waits_for_another_that_is_full(small, hosts, ask, eventually):
    with running_standin("--api-key", "another") as locked:
        fleet = hosts([[locked.url, small.url]])
        prompts = [ask(itl_s=0.05) for _ in range(12)]
        generations = [fleet.client.submit(prompt) for prompt in prompts]
        for prompt, generation in zip(prompts, generations, strict=True):
            assert generation.result(timeout_s=60).replies == [prompt.answer]


@pytest.mark.parametrize("answers_after_s", [0.0, 1.5], ids=["at-once", "slowly"])
def test_a_server_that_refuses_whatever_comes_burns_no_queue(answers_after_s, large, hosts, ask, eventually):
    """Whatever else it was asked until then goes back; then one is tried after each rest, however long that takes."""
    large.script(faults=[{**UNAUTHORIZED, "delay_s": answers_after_s}])
    fleet = hosts([[large.url]], places=8)
    prompts = [ask() for _ in range(40)]
    generations = [fleet.client.submit(prompt) for prompt in prompts]
    eventually(lambda: fleet.health(fleet.workers[0]) == ["refuses"])
    ended = [generation for generation in generations if generation.status().state == "failed"]
    assert 3 <= len(ended) <= 6  # and one after each rest of 4, 8, 16 … s
    with pytest.raises(GenerationRejectedError, match="wrong token") as refused:
        ended[0].result(timeout_s=5)
    assert refused.value.detail["status"] == 401
    large.script(faults=[])
    by_id = {generation.id: prompt for generation, prompt in zip(generations, prompts, strict=True)}
    letters = fleet.client.dead_letters()
    assert {letter.id for letter in letters} >= {generation.id for generation in ended}
    again = {letter.id: fleet.client.retry(letter.id) for letter in letters}
    for generation in generations:
        result = again.get(generation.id, generation).result(timeout_s=40)
        assert result.replies == [by_id[generation.id].answer]
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up"])


def test_a_quota_that_no_waiting_mends_is_told_and_not_asked_for_once_a_second(large, hosts, ask, eventually):
    """A 429 as of a full server, but for its words: these go to the caller, and the server is left to rest."""
    large.script(faults=[SPENT])
    fleet = hosts([[large.url]], places=8)
    generations = [fleet.client.submit(ask()) for _ in range(12)]
    eventually(lambda: fleet.health(fleet.workers[0]) == ["refuses"])
    ended = next(generation for generation in generations if generation.status().state == "failed")
    assert "You exceeded your current quota" in ended.status().error
    with pytest.raises(GenerationRejectedError, match="You exceeded your current quota") as refused:
        ended.result(timeout_s=5)
    assert refused.value.detail["status"] == 429
    eventually(lambda: "running" not in states(generations))
    asked, began_s = len(large.requests()), time.monotonic()
    eventually(lambda: len(large.requests()) > asked + 1, within_s=30)
    assert time.monotonic() - began_s > 5  # after rests of 4 and 8 s
    for generation in generations:
        generation.cancel()


def test_a_proxy_that_shows_a_page_while_it_restarts_costs_no_generation(large, hosts, ask, eventually):
    """Its generator has no other server: few are tried until it is back, and those once more."""
    large.script(faults=[PAGE])
    fleet = hosts([[large.url]], places=8)
    prompts = [ask() for _ in range(40)]
    generations = [fleet.client.submit(prompt) for prompt in prompts]
    eventually(lambda: fleet.health(fleet.workers[0]) == ["refuses"])
    assert not any(generation.status().state == "failed" for generation in generations)
    large.script(faults=[])
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.result(timeout_s=40).replies == [prompt.answer]
    assert sum(len(large.requests(prompt)) for prompt in prompts) < 60
    assert fleet.client.dead_letters() == []
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up"])


def test_what_another_host_can_do_is_left_to_it(large, hosts, ask, eventually):
    with running_standin("--api-key", "another") as locked:
        fleet = hosts([[locked.url], [large.url]], places=8)
        generations = [fleet.client.submit(ask()) for _ in range(100)]
        rejected = 0
        for generation in generations:
            try:
                generation.result(timeout_s=30)
            except GenerationRejectedError:
                rejected += 1
        assert rejected <= 8
        assert len(fleet.client.dead_letters()) == rejected


def test_a_route_that_a_server_does_not_have_is_the_matter_of_who_asks_for_it(large, hosts, ask, eventually):
    fleet = hosts([[large.url]], places=8)
    nowhere = {"kind": "status", "status": 404}
    refused = [fleet.client.submit(ask(faults=[nowhere])) for _ in range(8)]
    for generation in refused:
        with pytest.raises(GenerationRejectedError):
            generation.result(timeout_s=15)
    assert fleet.client.dead_letters() == []
    prompt = ask()
    assert fleet.client.submit(prompt).result(timeout_s=15).replies == [prompt.answer]
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up"])
