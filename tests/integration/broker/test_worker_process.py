"""A worker process under load, at its end, and beside Flower."""

import asyncio
import contextlib
import json
import re
import signal

import pytest
import redis
from celery import Celery

from genqueue import AsyncGenerationClient, GenerationClient, GenerationError, Settings
from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.scripted import ScriptedEngine
from genqueue_ops.standin.server import serve

from ...support.roles import as_role

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def own_db(queue_redis, request):
    """A database that no other worker uses, empty."""
    url = queue_redis.url.removesuffix("/0") + "/4"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url


@pytest.fixture
def tgi(standin):
    return {"default": {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}}


class Together(ScriptedEngine):
    """Says the first word when ``calls`` wait for it."""

    def __init__(self, calls):
        super().__init__()
        self._all_here = asyncio.Barrier(calls)

    async def generate(self, job):
        await self._all_here.wait()
        async for step in super().generate(job):
            yield step


@pytest.mark.timeout(240)
async def test_500_streams_at_once_in_one_process_all_complete(start_worker, own_db, ask):
    async with serve(engine=Together(500), limits=Limits(max_concurrent_requests=1000)) as served:
        tgi = {"default": {"api_type": "text_generation_inference", "api_params": {"url": served.url}}}
        worker = start_worker(tgi, own_db, "-c", "512", "-l", "warning", wait=False)
        async with AsyncGenerationClient(Settings(redis_url=as_role(own_db, "producer"), generators=tgi)) as client:
            prompts = [ask(tokens=5, itl_s=0.05) for _ in range(500)]

            async def run(prompt):
                generation = await client.submit(prompt)
                return "".join([chunk.text async for chunk in generation.stream()])

            async with asyncio.timeout(180):
                texts = await asyncio.gather(*(run(prompt) for prompt in prompts))
        assert texts == [prompt.answer for prompt in prompts]
        assert len(served.requests()) == 500
        assert worker.process.poll() is None


def test_sigterm_lets_running_generations_finish(start_worker, own_db, tgi, ask, standin, eventually):
    worker = start_worker(tgi, own_db, "-c", "8")
    with GenerationClient(Settings(redis_url=as_role(own_db, "producer"), generators={})) as client:
        prompts = [ask(tokens=100, itl_s=0.03) for _ in range(4)]
        generations = [
            client.submit(prompt, stream=stream)
            for prompt, stream in zip(prompts, "1101", strict=True)
            for stream in [stream == "1"]
        ]
        for generation in generations:
            eventually(lambda generation=generation: generation.status().state == "running")
        worker.process.send_signal(signal.SIGTERM)
        with redis.Redis.from_url(own_db) as db:  # until then it may take one more
            eventually(lambda: not any(entry["cmd"] == "brpop" and entry["db"] == "4" for entry in db.client_list()))
        late = client.submit(ask())
        assert [generation.result(timeout_s=20).replies for generation in generations] == [
            [prompt.answer] for prompt in prompts
        ]
        assert worker.process.wait(timeout=20) == 0
        assert "Traceback" not in worker.log
        assert [generation.status().attempt for generation in generations] == [1, 1, 1, 1]
        # What it had not begun is left for the next worker.
        assert late.status().state == "queued"
        another = start_worker(tgi, own_db, "-c", "8")
        assert late.result(timeout_s=20).replies
        assert another.end() == 0


def test_an_idle_worker_ends_at_once(start_worker, own_db, tgi):
    worker = start_worker(tgi, own_db, "-c", "8")
    assert worker.end(within_s=10) == 0
    assert "Traceback" not in worker.log


def test_a_worker_outlives_every_order_of_celerys_that_it_does_not_know(start_worker, own_db, tgi, ask, eventually):
    worker = start_worker(tgi, own_db, "-c", "4")
    with (
        Celery(broker=as_role(own_db, "flower"), set_as_current=False) as app,
        GenerationClient(Settings(redis_url=as_role(own_db, "producer"), generators={})) as client,
    ):

        def ordered(name, **arguments):
            ((answer,),) = [
                each.values() for each in app.control.broadcast(name, arguments, reply=True, limit=1, timeout=5)
            ]
            return answer

        for name, arguments in (
            ("election", {"id": "x", "topic": "x"}),
            ("pool_grow", {"n": 1}),
            ("pool_shrink", {"n": 1}),
            ("autoscale", {"max": 9, "min": 1}),
            ("rate_limit", {"task_name": "genqueue.generate", "rate_limit": "1/h"}),
            ("objgraph", {}),
            ("hello", {"from_node": "a stranger", "revoked": {"some-id": 1.0}}),
            ("add_consumer", {"queue": "celery"}),
        ):
            assert "error" in ordered(name, **arguments), name
        assert "ok" in ordered("cancel_consumer", queue="generate.default")
        eventually(lambda: "generate.default" not in str(ordered("active_queues")))
        assert "ok" in ordered("add_consumer", queue="generate.default")
        prompt = ask()
        assert client.submit(prompt).result(timeout_s=10).replies == [prompt.answer]
    assert worker.end() == 0


def test_an_order_to_a_pattern_of_names_is_dropped_before_it_is_matched(start_worker, own_db, tgi, ask, eventually):
    """This one never ends: matching it, the worker would stand still, and be taken over by nobody."""
    worker = start_worker(tgi, own_db, "-c", "4", "-n", "w1@sec")
    pattern = "(.?){60}(.?){60}(.?){60}(.?){60}$X"
    with (
        Celery(broker=as_role(own_db, "flower"), set_as_current=False) as app,
        GenerationClient(Settings(redis_url=as_role(own_db, "producer"), generators={})) as client,
    ):
        for matcher in ("pcre", "regex", "glob"):
            app.control.broadcast("ping", pattern=pattern, matcher=matcher)
        assert app.control.ping(timeout=5) == [{"w1@sec": {"ok": "pong"}}]
        prompt = ask()
        assert client.submit(prompt).result(timeout_s=10).replies == [prompt.answer]
    assert worker.log.count("dropped an entry of celery.pidbox") == 3
    assert worker.end() == 0


def test_an_order_is_given_only_the_arguments_that_it_needs(start_worker, own_db, tgi):
    worker = start_worker(tgi, own_db, "-c", "4", "-n", "w1@sec")
    with Celery(broker=as_role(own_db, "flower"), set_as_current=False) as app:

        def answer(name, **arguments):
            (found,) = app.control.broadcast(name, arguments, reply=True, limit=1, timeout=5)
            return found["w1@sec"]

        plain = ["genqueue.generate"]
        assert answer("registered", taskinfoitems=["app", "request", "__dict__"] * 1000, builtins=True) == plain
        assert answer("dump_tasks", taskinfoitems=["backend"]) == plain
        assert "ok" in answer("ping", once="more", self=5)
        assert answer("query_task", ids=["nobody's"] * 1000) == {}
        assert "ok" in answer("report", more="x" * 10_000)
    assert worker.end() == 0


def test_what_a_worker_announces_is_what_it_serves(start_worker, own_db, tgi, closed_port, eventually):
    gone = {"api_type": "text_generation_inference", "api_params": {"url": f"http://127.0.0.1:{closed_port}"}}
    worker = start_worker({"aa": tgi["default"], "bb": gone}, own_db, "-c", "4", "-Q", "generate.aa")
    with (
        Celery(broker=as_role(own_db, "flower"), set_as_current=False) as app,
        GenerationClient(Settings(redis_url=as_role(own_db, "producer"), generators={})) as client,
    ):

        def served():
            (status,) = client.workers()
            return {name: [server["health"] for server in servers] for name, servers in status.generators.items()}

        def order(name, generator):
            app.control.broadcast(name, {"queue": f"generate.{generator}"}, reply=True, limit=1, timeout=5)

        assert served() == {"aa": ["up"]}
        assert set(client.places()) == {"aa"}
        assert set(client.generators()) == {"aa", "bb"}  # its limit and type: work may be handed in for another worker
        assert {queue.generator: queue.workers for queue in client.overview().queues} == {"aa": 1, "bb": 0}
        assert "bb: " not in worker.log  # nor does it look after servers that it never calls
        order("add_consumer", "bb")
        # The queue of a server that is down is left, and served all the same.
        eventually(lambda: served() == {"aa": ["up"], "bb": ["down"]})
        assert set(client.places()) == {"aa", "bb"}
        order("cancel_consumer", "aa")
        eventually(lambda: served() == {"bb": ["down"]})
        order("cancel_consumer", "bb")
        eventually(lambda: served() == {})
    assert worker.end() == 0


async def test_nothing_is_imported_once_a_worker_is_ready(start_worker, own_db, tgi, ask, eventually, standin):
    """Where a process has no descriptor left a module cannot be read any more, and what needs it is lost."""
    generators = {
        **tgi,
        "hub": {"api_type": "inference_endpoints", "api_params": {"url": standin.url}},
        "serverless": {
            "api_type": "serverless_inference_api",
            "api_params": {"model": standin.url, "provider": "hf-inference"},
        },
    }
    generators = {name: {**options, "max_attempts": 2} for name, options in generators.items()}
    worker = start_worker(generators, own_db, "-c", "8", environ={"PYTHONPROFILEIMPORTTIME": "1"})
    async with AsyncGenerationClient(Settings(redis_url=as_role(own_db, "producer"), generators={})) as client:
        for generator in generators:
            for options in (
                {},
                {"stream": False},
                {"generation_kwargs": {"best_of": 2, "do_sample": True, "max_new_tokens": 4}},
                {"generation_kwargs": {"max_new_tokens": 4, "top_n_tokens": 2}},
                {"stop_words": ["e"]},
            ):
                await ended(await client.submit(ask(tokens=4), generator=generator, **options))
            for options in ({}, {"tools": [WEATHER]}, {"generation_kwargs": {"logprobs": True, "top_logprobs": 2}}):
                message = {"role": "user", "content": ask(tokens=4)}
                await ended(await client.submit_chat([message], generator=generator, **options))
            for fault in (
                {"kind": "status", "status": 422, "body": "no"},
                {"kind": "status", "status": 500},
                {"kind": "reset", "after_tokens": 2},
            ):
                await ended(await client.submit(ask(tokens=4, faults=[fault]), generator=generator))
        running = await client.submit(ask(tokens=100, itl_s=0.1))
        while (await running.status()).completion_tokens < 2:
            await asyncio.sleep(0.01)
        await running.cancel()
        await ended(await client.submit(ask(tokens=100, itl_s=0.1), deadline_s=0.3))
    with Celery(broker=as_role(own_db, "producer"), set_as_current=False) as app:
        for options in ({}, {"expires": -5}, {"countdown": 60}):
            app.send_task("genqueue.generate", kwargs={"prompt": ask()}, queue="generate.default", **options)
        app.send_task("nobody's", queue="generate.default")
    eventually(lambda: worker.log.count('"outcome": "rejected"') >= 2 + len(generators))
    early, late = (
        re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", part, re.MULTILINE)
        for part in worker.log.split(" ready.", 1)
    )
    assert "celery" in early
    assert late == []
    assert worker.end() == 0


async def ended(generation):
    with contextlib.suppress(GenerationError):
        await generation.result(timeout_s=15)


def test_no_worker_is_sent_the_heartbeats_of_the_others(start_worker, own_db, tgi):
    """By Celery's own command too, which would have every worker listen to every other."""
    start_worker(tgi, own_db, "-c", "1")
    with redis.Redis.from_url(own_db) as client:
        assert client.publish("/4.celeryev/worker.heartbeat", "no event") == 0


async def test_with_a_longer_gap_a_flush_carries_more_and_the_first_text_still_goes_out_at_once(
    start_worker, own_db, tgi, ask
):
    start_worker(tgi, own_db, "-c", "4", environ={"GENQUEUE_FLUSH_GAP_S": "0.5"})
    async with AsyncGenerationClient(Settings(redis_url=as_role(own_db, "producer"), **{"generators": tgi})) as client:
        prompt = ask(tokens=12, itl_s=0.1)  # 1.2 s
        chunks = [chunk async for chunk in (await client.submit(prompt)).stream()]
    assert "".join(chunk.text for chunk in chunks) == prompt.answer
    assert len(chunks[0].tokens) == 1
    assert len(chunks) <= 6


def test_flower_starts_with_our_app_and_shows_the_generation(start_worker, own_db, tgi, ask, eventually, flower_of):
    start_worker(tgi, own_db, "-c", "4", "-n", "flowered@%h")
    with (
        flower_of(own_db, tgi) as flower,
        GenerationClient(Settings(redis_url=as_role(own_db, "producer"), generators={})) as client,
    ):
        prompt = ask()
        generation = client.submit(prompt)
        generation.result(timeout_s=10)
        shown = eventually(
            lambda: (task := flower.ask(f"task/info/{generation.id}")) and task["state"] == "SUCCESS" and task
        )
        assert shown["name"] == "genqueue.generate"
        assert shown["args"] == "()"
        assert shown["kwargs"] == "{}"
        assert prompt.answer.strip()[:12] not in json.dumps(shown)
        assert "9 tokens" in shown["result"]
