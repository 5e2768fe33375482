"""How a worker ends: by every signal, and by an error of Celery's loop; others go on with what it ran."""

import signal
import subprocess
import sys
import time

import pytest
import redis
from celery import Celery

from genqueue import RedisUnavailableError

from ...support.roles import as_role
from ...support.workers import clean_environment, toml_of

SOON_S = 10.0
"""How long a hand-over, and what an end needs besides, may take here: as docs/deploy.md has it."""


def signalled(*names):
    def send(worker, eventually):
        for number, name in enumerate(names):
            if number:  # the handler of the one before has run: it says so, or changes who hears the next
                eventually(lambda: "draining" in worker.log)
            worker.process.send_signal(getattr(signal, name))

    return send


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(signalled("SIGINT", "SIGINT"), id="ctrl-c-twice"),
        pytest.param(signalled("SIGQUIT"), id="quit"),
        pytest.param(signalled("SIGTERM", "SIGQUIT"), id="term-then-quit"),
        pytest.param(signalled("SIGINT", "SIGINT", "SIGINT", "SIGINT"), id="ctrl-c-again-and-again"),
    ],
)
def test_who_cannot_wait_hands_over_at_once(start_worker, own_redis, tgi, producer, ask, eventually, end):
    worker = start_worker(tgi, own_redis.url, "-c", "8", environ={"GENQUEUE_DRAIN_S": "60"})
    prompts = [ask(tokens=100, itl_s=0.1) for _ in range(3)]
    generations = [producer.submit(prompt) for prompt in prompts]
    for generation in generations:
        eventually(lambda generation=generation: generation.status().state == "running")
    end(worker, eventually)
    began_s = time.monotonic()
    worker.process.wait(30)
    assert time.monotonic() - began_s < SOON_S
    assert "Traceback" not in worker.log
    assert {generation.status().state for generation in generations} == {"queued"}
    ways = [line["outcome"] for generation in generations for line in worker.outcomes(generation.id)]
    assert ways == ["handed_over"] * 3
    assert worker.lines[-1]["message"] == "stopped"
    another = start_worker(tgi, own_redis.url, "-c", "8")
    assert [generation.result(timeout_s=40).replies for generation in generations] == [
        [prompt.answer] for prompt in prompts
    ]
    assert another.end() == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_an_idle_worker_says_that_nothing_runs_and_that_it_has_stopped(start_worker, own_redis, tgi, name):
    worker = start_worker(tgi, own_redis.url, "-c", "2")
    worker.process.send_signal(getattr(signal, name))
    worker.process.wait(SOON_S + 5)
    said = [line["message"] for line in worker.lines]
    assert "draining: nothing runs" in said
    assert said[-1] == "stopped"
    assert "Traceback" not in worker.log


@pytest.mark.parametrize(("count", "words"), [(1, "1 generation runs, others go on with it in 1 s"), (2, "2 generat")])
def test_a_drain_says_how_many_run(start_worker, own_redis, tgi, producer, ask, eventually, count, words):
    worker = start_worker(tgi, own_redis.url, "-c", "8", environ={"GENQUEUE_DRAIN_S": "1"})
    generations = [producer.submit(ask(tokens=60, itl_s=0.1)) for _ in range(count)]
    for generation in generations:
        # a text shows that the worker has heard the answer to its claim, and counts the generation
        eventually(lambda generation=generation: generation.status().completion_tokens > 0)
    worker.end(within_s=1 + SOON_S)
    assert f"draining: {words}" in worker.log
    assert {generation.status().state for generation in generations} == {"queued"}
    for generation in generations:
        generation.cancel()


def test_an_order_to_shut_down_is_a_drain_too(start_worker, own_redis, tgi, producer, ask, eventually):
    """Celery tells of no signal then, and would wait for what runs, however long that is."""
    worker = start_worker(tgi, own_redis.url, "-c", "8", environ={"GENQUEUE_DRAIN_S": "1"})
    generation = producer.submit(ask(tokens=300, itl_s=0.1))
    eventually(lambda: generation.status().state == "running")
    with Celery(broker=as_role(own_redis.url, "flower"), set_as_current=False) as app:
        app.control.shutdown()
    assert worker.process.wait(1 + SOON_S) == 0
    assert [line["outcome"] for line in worker.outcomes(generation.id)] == ["handed_over"]
    assert worker.lines[-1]["message"] == "stopped"
    generation.cancel()


def refused(*commands):
    def begin(db):
        for command in commands:
            db.execute_command(*command)

    return begin


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        pytest.param(
            refused(("REPLICAOF", "127.0.0.1", "1")), refused(("REPLICAOF", "NO", "ONE")), id="made-a-replica"
        ),
        pytest.param(
            refused(("CONFIG", "SET", "replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", "1")),
            refused(("REPLICAOF", "NO", "ONE"), ("CONFIG", "SET", "replica-serve-stale-data", "yes")),
            id="a-replica-without-its-master",
        ),
        pytest.param(
            refused(("CONFIG", "SET", "min-replicas-to-write", "1")),
            refused(("CONFIG", "SET", "min-replicas-to-write", "0")),
            id="without-its-replicas",
        ),
    ],
)
def test_a_redis_that_takes_no_command_for_a_while_ends_no_worker(
    start_worker, own_redis, tgi, producer, ask, eventually, begin, end
):
    worker = start_worker(tgi, own_redis.url, "-c", "8")
    prompt = ask(tokens=60, itl_s=0.05)
    generation = producer.submit(prompt)
    eventually(lambda: generation.status().completion_tokens > 0)
    with redis.Redis.from_url(own_redis.url) as db:
        begin(db)
        try:
            eventually(lambda: "Connection to broker lost" in worker.log or worker.process.poll() is not None)
            with pytest.raises(RedisUnavailableError):
                producer.submit("meanwhile")
        finally:
            end(db)
    assert worker.process.poll() is None
    assert generation.result(timeout_s=20).replies == [prompt.answer]
    after = ask(tokens=3)
    assert producer.submit(after).result(timeout_s=20).replies == [after.answer]
    assert worker.end() == 0


def test_an_error_that_ends_celerys_loop_ends_the_worker_within_the_drain(
    start_worker, own_redis, tgi, producer, ask, eventually
):
    """The queue is no list: an error of BRPOP's that Celery knows no way on from."""
    worker = start_worker(tgi, own_redis.url, "-c", "8", environ={"GENQUEUE_DRAIN_S": "2"})
    prompt = ask(tokens=100, itl_s=0.1)
    generation = producer.submit(prompt)
    eventually(lambda: generation.status().state == "running")
    with redis.Redis.from_url(own_redis.url) as db:
        db.set("generate.default", "no list")
        began_s = time.monotonic()
        assert worker.process.wait(30) != 0
        assert time.monotonic() - began_s < 2 + SOON_S
        db.delete("generate.default")
    assert worker.lines[-1]["message"] == "stopped"
    another = start_worker(tgi, own_redis.url, "-c", "8")
    assert generation.result(timeout_s=40).replies == [prompt.answer]
    assert another.end() == 0


@pytest.mark.timeout(120)
def test_a_stop_while_many_run_and_connections_are_cut_loses_nothing(
    start_worker, own_redis, tgi, producer, ask, read, eventually
):
    """Each hand-over is sent over a connection that may be cut before its answer comes."""
    leaver = start_worker(tgi, own_redis.url, "-c", "64", environ={"GENQUEUE_DRAIN_S": "1"})
    prompts = [ask(tokens=300, itl_s=0.05) for _ in range(48)]
    readings = [read(producer.submit(prompt)) for prompt in prompts]
    eventually(lambda: all(len(reading.events) > 3 for reading in readings), within_s=30)
    another = start_worker(tgi, own_redis.url, "-c", "64")
    leaver.process.send_signal(signal.SIGTERM)
    began_s = time.monotonic()
    with redis.Redis.from_url(own_redis.url) as db:
        while leaver.process.poll() is None and time.monotonic() - began_s < 30:
            for kind in ("normal", "pubsub"):
                db.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            time.sleep(0.25)  # Celery calls more than five a second a defect, and says so
        assert leaver.process.wait(1) in (0, 1)  # 1: what could not be handed over in time is left to others
        assert time.monotonic() - began_s < 1 + 8 + SOON_S
        assert [reading.text(within_s=40) for reading in readings] == [prompt.answer for prompt in prompts]
        assert {reading.generation.status().attempt for reading in readings} == {2}
        assert db.zcard("genqueue:leases") == 0
    assert "Traceback" not in leaver.log
    assert another.end() == 0
    assert "Traceback" not in another.log


EMBEDDING = """
import sys, time
from genqueue_worker import app, runtime

worker = app.app.Worker(pool_cls="threads", concurrency=2, loglevel="info", hostname="embedded@here")
worker.start()
print("it ended", flush=True)
time.sleep(runtime._HAND_OVER_S + 2)
print("goes on", flush=True)
sys.exit(7)
"""


def test_a_program_outlives_the_worker_that_it_embeds(own_redis, tgi, producer, ask, eventually, tmp_path):
    """Whatever would end a worker that hangs at its end lets a program be whose worker has ended."""
    (tmp_path / "genqueue.toml").write_text(toml_of(tgi))
    (tmp_path / "program.py").write_text(EMBEDDING)
    log_path = tmp_path / "log"
    environ = {"GENQUEUE_REDIS_URL": as_role(own_redis.url, "worker"), "GENQUEUE_DRAIN_S": "1"}
    with log_path.open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**clean_environment(tmp_path), **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: " ready." in log_path.read_text(), within_s=30)
        prompt = ask(tokens=2)
        assert producer.submit(prompt).result(timeout_s=10).replies == [prompt.answer]
        running = producer.submit(ask(tokens=300, itl_s=0.1))
        eventually(lambda: running.status().completion_tokens > 0)
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 7, log_path.read_text()
    finally:
        program.kill()
        program.wait()
    assert log_path.read_text().endswith("it ended\ngoes on\n")
    running.cancel()
