"""Metrics and probes of a real worker, over HTTP, as Prometheus and Kubernetes ask for them."""

import json
import re
import socket
import textwrap
import time
import urllib.error
import urllib.request

import pytest
import redis
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families

from genqueue import GenerationClient, GenerationError, Settings
from genqueue.keys import doorbell
from genqueue.registry.submitting import doorbell_message

from ...support.roles import as_role, guarded_redis
from ...support.standins import running_standin

TGI = "text_generation_inference"
WASTED = "genqueue_wasted_tokens_total"
STUCK_ENGINE_S, STUCK_CONSUMER_S = 13.0, 15.0
STARVED_S = 16.0


class Monitored:
    """A worker's HTTP server."""

    def __init__(self, worker, eventually, orders=None):
        self.worker = worker
        self._orders = orders
        found = eventually(lambda: re.search(r"metrics and probes: (http://127\.0\.0\.1:\d+)/metrics", worker.log))
        self.url = found[1]

    def hold_up(self, part, seconds):
        """Have a part of the worker do nothing for so long."""
        written = self._orders / "order"
        written.write_text(str(seconds))
        written.rename(self._orders / part)

    def get(self, path):
        """(status, body)"""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def probe(self, path):
        """(status, what is wrong)"""
        status, body = self.get(path)
        checks = json.loads(body)["checks"]
        return status, {name: why for name, why in checks.items() if why != "ok"}

    def scrape(self):
        """A look-up ``value(name, **labels)``: the sum of what has that name and those labels."""
        samples = [
            sample for family in text_string_to_metric_families(self.get("/metrics")[1]) for sample in family.samples
        ]

        def value(name, **labels):
            return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

        return value

    def grows(self, since, name, **labels):
        return self.scrape()(name, **labels) - since(name, **labels)


@pytest.fixture(scope="module")
def served(standin, closed_port):
    return {
        "default": {"api_type": TGI, "api_params": {"url": standin.url, "model": "our/model"}},
        "once": {"api_type": TGI, "api_params": {"url": standin.url}, "max_attempts": 1},
        "silent": {"api_type": TGI, "api_params": {"url": f"http://user:secret@127.0.0.1:{closed_port}/v1?key=secret"}},
    }


@pytest.fixture(scope="module")
def monitored(launch_worker, own_redis, served, eventually):
    """A worker for most tests below."""
    worker = launch_worker(served, own_redis.url, "-c", "32", environ={"GENQUEUE_MONITOR_PORT": "0"})
    try:
        yield Monitored(worker, eventually)
    finally:
        worker.end()


@pytest.fixture(scope="module")
def hampered_redis(real_redis, tmp_path_factory):
    with guarded_redis(tmp_path_factory.mktemp("hampered-redis")) as server:
        yield server


@pytest.fixture(scope="module")
def hampered(launch_worker, hampered_redis, served, eventually, tmp_path_factory):
    """A worker that soon gives Redis up, with a module of its user's that can hold its loops up."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "holdup.py").write_text(
        textwrap.dedent("""
            import threading
            import time
            from pathlib import Path

            from genqueue_worker import app

            def starve(loop, until_s):
                time.sleep(0.4)
                if time.monotonic() < until_s:
                    loop.call_soon(starve, loop, until_s)

            HOLDUPS = {
                "turns": lambda seconds: (loop := app.runtime().engine._loop).call_soon_threadsafe(
                    starve, loop, time.monotonic() + seconds
                ),
                "engine": lambda seconds: app.runtime().engine._loop.call_soon_threadsafe(time.sleep, seconds),
                "consumer": lambda seconds: app._runtime.consumer.call_soon(time.sleep, seconds),
            }

            def follow():
                while True:
                    for name, hold_up in HOLDUPS.items():
                        order = Path(__file__).with_name(name)
                        if order.exists():
                            hold_up(float(order.read_text()))
                            order.unlink()
                    time.sleep(0.05)

            threading.Thread(target=follow, daemon=True).start()
            """)
    )
    environ = {"GENQUEUE_MONITOR_PORT": "0", "GENQUEUE_REDIS_TIMEOUT_S": "0.5", "PYTHONPATH": str(folder)}
    worker = launch_worker(served, hampered_redis.url, "--include", "holdup", environ=environ)
    try:
        yield Monitored(worker, eventually, folder)
    finally:
        worker.end()


@pytest.fixture(scope="module")
def asker(own_redis, monitored):
    with GenerationClient(Settings(redis_url=as_role(own_redis.url, "producer"), generators={})) as client:
        yield client


# --- /metrics --------------------------------------------------------------------------------------------


def test_generations_that_finish_are_counted_with_their_tokens(monitored, asker, ask, eventually):
    before = monitored.scrape()
    prompts = [ask(tokens=20, itl_s=0.02) for _ in range(3)]
    generations = [asker.submit(prompt) for prompt in prompts]
    usages = [generation.result(timeout_s=20).meta[0]["usage"] for generation in generations]
    grown = monitored.grows
    eventually(lambda: grown(before, "genqueue_attempts_total", generator="default", ended="finished") == 3)
    assert grown(before, "genqueue_generations_total", generator="default", outcome="finished") == 3
    assert grown(before, "genqueue_attempts_total", generator="default") == 3
    completion_tokens = sum(usage["completion_tokens"] for usage in usages)
    prompt_tokens = sum(usage["prompt_tokens"] for usage in usages)
    assert grown(before, "genqueue_completion_tokens_total", generator="default") == completion_tokens > 60
    assert grown(before, "genqueue_prompt_tokens_total", generator="default") == prompt_tokens > 0
    assert grown(before, WASTED, generator="default") == 0
    call = {
        "generator": "default",
        "gen_ai_operation_name": "text_completion",
        "gen_ai_provider_name": "hugging_face",
        "gen_ai_request_model": "our/model",
    }
    usage = "gen_ai_client_token_usage"
    assert grown(before, f"{usage}_sum", **call, gen_ai_token_type="output") == completion_tokens
    assert grown(before, f"{usage}_sum", **call, gen_ai_token_type="input") == prompt_tokens
    assert grown(before, "gen_ai_client_operation_time_to_first_chunk_seconds_count", **call) == 3
    assert grown(before, "gen_ai_client_operation_duration_seconds_count", **call, error_type="") == 3
    gaps = "gen_ai_client_operation_time_per_output_chunk_seconds"
    chunks = grown(before, f"{gaps}_count", **call)
    assert 3 * 10 < chunks <= 3 * 21
    assert 0.3 < grown(before, f"{gaps}_sum", **call) < grown(before, "gen_ai_client_operation_duration_seconds_sum")
    assert grown(before, "genqueue_queue_wait_seconds_count", generator="default") == 3
    assert grown(before, "genqueue_time_to_first_text_seconds_count", generator="default") == 3
    assert grown(before, "genqueue_endpoint_calls_total", generator="default") == 3
    for round_trip in ("claim", "finish"):
        assert grown(before, "genqueue_redis_round_trip_seconds_count", call=round_trip) == 3
    assert grown(before, "genqueue_redis_round_trip_seconds_count", call="append") > 3


def test_chats_count_apart_and_what_does_not_stream_has_no_first_chunk(monitored, asker, ask, eventually):
    before = monitored.scrape()
    chat = asker.submit_chat([{"role": "user", "content": ask(tokens=10)}])
    best = asker.submit(ask(tokens=10), generation_kwargs={"best_of": 2, "do_sample": True})
    usages = [generation.result(timeout_s=20).meta[0]["usage"] for generation in (chat, best)]
    eventually(lambda: monitored.grows(before, "genqueue_attempts_total", ended="finished") == 2)
    first = "gen_ai_client_operation_time_to_first_chunk_seconds_count"
    assert monitored.grows(before, first, gen_ai_operation_name="chat") == 1
    assert monitored.grows(before, first, gen_ai_operation_name="text_completion") == 0
    for kind, usage in zip(("chat", "text_completion"), usages, strict=True):
        call = {"gen_ai_operation_name": kind}
        used = "gen_ai_client_token_usage_sum"
        assert monitored.grows(before, "gen_ai_client_operation_duration_seconds_count", **call) == 1
        assert monitored.grows(before, used, **call, gen_ai_token_type="input") == usage["prompt_tokens"] > 0
        assert monitored.grows(before, used, **call, gen_ai_token_type="output") == usage["completion_tokens"] > 0
    made = sum(usage["completion_tokens"] for usage in usages)
    assert monitored.grows(before, "genqueue_completion_tokens_total", generator="default") == made


def test_what_runs_is_in_flight(monitored, asker, ask, eventually):
    generation = asker.submit(ask(tokens=2000, itl_s=0.05))
    before = monitored.scrape()
    eventually(lambda: monitored.scrape()("genqueue_in_flight", generator="default") == 1)
    eventually(lambda: monitored.grows(before, "genqueue_completion_tokens_total", generator="default") > 5)
    assert monitored.scrape()("genqueue_endpoint_in_flight", generator="default") == 1
    assert monitored.grows(before, "genqueue_attempts_total") == 0
    generation.cancel()
    eventually(lambda: monitored.scrape()("genqueue_in_flight", generator="default") == 0)
    assert monitored.scrape()("genqueue_endpoint_in_flight", generator="default") == 0


def test_the_tokens_of_a_cancelled_one_are_wasted(monitored, asker, ask, eventually):
    before = monitored.scrape()
    generation = asker.submit(ask(tokens=2000, itl_s=0.02))
    eventually(lambda: generation.status().completion_tokens > 10)
    generation.cancel()
    eventually(lambda: monitored.grows(before, "genqueue_attempts_total", ended="cancelled") == 1)
    assert monitored.grows(before, "genqueue_generations_total", generator="default", outcome="cancelled") == 1
    wasted = monitored.grows(before, WASTED, generator="default", cause="cancelled")
    assert wasted >= generation.status().completion_tokens > 10
    assert wasted == monitored.grows(before, "genqueue_completion_tokens_total", generator="default")
    ended = {"gen_ai_operation_name": "text_completion", "error_type": "cancelled"}
    assert monitored.grows(before, "gen_ai_client_operation_duration_seconds_count", **ended) == 1


def test_an_endpoint_that_fails_is_counted_by_whose_fault_it_is(monitored, asker, ask, standin, eventually):
    before = monitored.scrape()
    faults = [{"kind": "error", "after_tokens": 3, "error": "What's wrong?", "error_type": "generation"}]
    generation = asker.submit(ask(faults=faults), generator="once")
    with pytest.raises(GenerationError):
        generation.result(timeout_s=10)
    refused = asker.submit(ask(faults=[{"kind": "status", "status": 422, "body": "no such thing"}]), generator="once")
    with pytest.raises(GenerationError):
        refused.result(timeout_s=10)
    eventually(lambda: monitored.grows(before, "genqueue_attempts_total", generator="once") == 2)
    name = "genqueue_upstream_errors_total"
    at = {"generator": "once", "endpoint": standin.url}
    assert monitored.grows(before, name, **at, fault="server", error_type="generation") == 1
    assert monitored.grows(before, name, **at, fault="request", error_type="422") == 1
    assert monitored.grows(before, name) == 2
    assert monitored.grows(before, "genqueue_generations_total", generator="once", outcome="failed") == 1
    assert monitored.grows(before, "genqueue_generations_total", generator="once", outcome="rejected") == 1
    assert monitored.grows(before, WASTED, generator="once", cause="failed") == 3


def test_another_attempt_that_begins_anew_wastes_what_the_first_one_made(monitored, asker, ask, eventually):
    before = monitored.scrape()
    cut = {"kind": "cut", "after_tokens": 6, "times": 1}
    prompt = ask(tokens=12, faults=[cut])
    result = asker.submit(prompt, on_failure="restart").result(timeout_s=20)
    assert (result.replies, result.meta[0]["attempts"]) == ([prompt.answer], 2)
    eventually(lambda: monitored.grows(before, "genqueue_attempts_total", ended="finished") == 1)
    assert monitored.grows(before, "genqueue_attempts_total", ended="retried") == 1
    assert monitored.grows(before, "genqueue_generations_total") == 1
    assert monitored.grows(before, WASTED, cause="restarted") == 6
    made = result.meta[0]["usage"]["completion_tokens"] + 6
    assert monitored.grows(before, "genqueue_completion_tokens_total") == made
    assert monitored.grows(before, "genqueue_queue_wait_seconds_count") == 1


def test_what_waits_is_shown_and_why(monitored, asker, ask, closed_port, eventually):
    eventually(lambda: monitored.scrape()("genqueue_endpoint_health", generator="silent", health="down") == 1)
    eventually(lambda: monitored.scrape()("genqueue_endpoint_health", generator="default", health="up") == 1)
    waiting = [asker.submit(ask(), generator="silent", priority=priority) for priority in (0, 5, 9)]
    eventually(lambda: monitored.scrape()("genqueue_queue_depth", generator="silent") == 3)
    eventually(lambda: monitored.scrape()("genqueue_queue_oldest_wait_seconds", generator="silent") > 1)
    assert monitored.scrape()("genqueue_queue_depth", generator="default") == 0
    for generation in waiting:
        generation.cancel()
    eventually(lambda: monitored.scrape()("genqueue_queue_depth", generator="silent") == 0)
    assert monitored.scrape()("genqueue_queue_oldest_wait_seconds", generator="silent") == 0


def test_the_worker_itself_is_shown(monitored, eventually):
    shown = monitored.scrape()
    assert shown("genqueue_concurrency") == 32
    assert shown("genqueue_redis_up") == 1
    assert shown("genqueue_worker_info") == 1
    assert shown("process_resident_memory_bytes") > 0
    eventually(lambda: monitored.grows(shown, "genqueue_engine_loop_lag_seconds_count") > 2)
    for part in ("engine", "consumer", "leases"):
        assert 0 < monitored.scrape()("genqueue_heartbeat_age_seconds", part=part) < 5


def test_no_prompt_no_id_and_no_secret_is_shown(monitored, asker, ask, closed_port):
    prompt = ask("Canary")
    generation = asker.submit(prompt)
    generation.result(timeout_s=20)
    assert f'endpoint="http://127.0.0.1:{closed_port}/v1"' in monitored.get("/metrics")[1]
    for path in ("/metrics", "/livez", "/readyz"):
        _, body = monitored.get(path)
        for word in ("Canary", prompt.split()[1], generation.id, "secret", "user:"):
            assert word not in body


# --- /livez, /readyz -----------------------------------------------------------------------------------------


def test_a_worker_that_works_is_alive_and_ready(monitored):
    assert monitored.get("/livez") == (
        200,
        '{"ok": true, "checks": {"engine": "ok", "consumer": "ok", "leases": "ok"}}\n',
    )
    assert monitored.probe("/readyz") == (200, {})


def test_what_is_no_probe_is_not_found(monitored):
    status, body = monitored.get("/health")
    assert (status, "/livez" in body) == (404, True)


def test_whose_engine_and_whose_consumer_are_stuck_is_not_alive(hampered, eventually):
    hampered.hold_up("engine", STUCK_ENGINE_S)
    hampered.hold_up("consumer", STUCK_CONSUMER_S)
    seen = {}

    def both():
        status, wrong = hampered.probe("/livez")
        assert status == (503 if wrong else 200)
        seen.update(wrong)
        return seen.keys() >= {"engine", "consumer"}

    eventually(both, within_s=25)
    assert re.fullmatch(r"silent for 1\d\.\d s, limit 10 s", seen["engine"])
    assert re.fullmatch(r"silent for 1\d\.\d s, limit 12 s", seen["consumer"])
    eventually(lambda: hampered.probe("/livez") == (200, {}), within_s=20)


def test_whose_loop_comes_round_and_leaves_others_no_turn_is_not_alive(hampered, eventually):
    """Something takes most of it, a piece at a time: a beat alone would go on, and generations would not."""
    hampered.hold_up("turns", STARVED_S)
    wrong = eventually(lambda: hampered.probe("/livez")[1].get("engine"), within_s=STARVED_S)
    assert re.fullmatch(r"silent for 1\d\.\d s, limit 10 s", wrong)
    eventually(lambda: hampered.probe("/livez") == (200, {}), within_s=20)


def test_without_redis_a_worker_is_not_ready_but_alive(hampered, hampered_redis, eventually):
    hampered_redis.pause()
    try:
        eventually(lambda: hampered.probe("/readyz")[0] == 503)
        status, wrong = hampered.probe("/readyz")
        assert (status, wrong.keys()) == (503, {"redis"})
        assert hampered.scrape()("genqueue_redis_up") == 0
        until_s = time.monotonic() + 14  # longer than the consumer may be silent
        while time.monotonic() < until_s:
            assert hampered.probe("/livez") == (200, {})
            assert hampered.probe("/readyz")[0] == 503
            time.sleep(0.2)
        # Nobody knows how much waits now: a scaler must not follow what was.
        assert "genqueue_queue_depth{" not in hampered.get("/metrics")[1]
    finally:
        hampered_redis.resume()
    eventually(lambda: hampered.probe("/readyz") == (200, {}))
    eventually(lambda: "genqueue_queue_depth{" in hampered.get("/metrics")[1])
    eventually(lambda: hampered.scrape()("genqueue_heartbeat_age_seconds", part="consumer") < 2)
    assert hampered.probe("/livez") == (200, {})
    assert hampered.scrape()("genqueue_redis_errors_total", error_type="unavailable") > 0


def test_without_a_model_server_a_worker_is_not_ready_but_alive(start_worker, own_redis, ask, eventually):
    environ = {"GENQUEUE_MONITOR_PORT": "0", "GENQUEUE_DRAIN_S": "10"}
    with running_standin("--itl-s", "0.1") as server:
        address = server.url
        worker = start_worker(
            {"lonely": {"api_type": TGI, "api_params": {"url": address}}}, own_redis.url, environ=environ
        )
        monitored = Monitored(worker, eventually)
        eventually(lambda: monitored.probe("/readyz") == (200, {}))
        server.process.kill()
        server.process.wait()
        with GenerationClient(Settings(redis_url=as_role(own_redis.url, "producer"), generators={})) as client:
            generation = client.submit(ask(tokens=50), generator="lonely")
            eventually(
                lambda: monitored.probe("/readyz") == (503, {"endpoints": f"none can be asked: {address} (down)"})
            )
            assert monitored.probe("/livez") == (200, {})
            with running_standin("--itl-s", "0.1", "--port", address.rpartition(":")[2]):
                eventually(lambda: monitored.probe("/readyz") == (200, {}))
                eventually(lambda: generation.status().completion_tokens > 0)
                worker.process.terminate()
                eventually(lambda: monitored.probe("/readyz") == (503, {"consumer": "told to stop"}))
                assert monitored.probe("/livez") == (200, {})
                generation.result(timeout_s=20)
                assert worker.end() == 0


def test_a_port_that_is_taken_ends_the_start(launch_worker, own_redis, served, eventually):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        worker = launch_worker(served, own_redis.url, environ={"GENQUEUE_MONITOR_PORT": str(port)}, wait=False)
        assert worker.process.wait(30) != 0
    assert (
        f"genqueue: monitor_host, monitor_port: cannot listen on 127.0.0.1:{port}: Address already in use" in worker.log
    )
    assert "Traceback" not in worker.log


def test_a_worker_listens_nowhere_unless_it_is_told_to(worker):
    assert "metrics and probes" not in worker.log


# --- what is cancelled before it runs --------------------------------------------------------------------


def told(worker, generation):
    return [line["outcome"] for line in worker.outcomes(generation.id)]


@pytest.fixture
def fleet_with_one_place(fleet_of, served, launch_worker, eventually):
    """A fleet, and what starts its worker: one that has done with a doorbell before it takes the next."""
    with fleet_of({"default": served["default"]}) as fleet:

        def staff():
            environ = {"GENQUEUE_MONITOR_PORT": "0"}
            worker = launch_worker({"default": served["default"]}, fleet.redis.url, "-c", "1", environ=environ)
            fleet.workers.append(worker)
            return Monitored(worker, eventually)

        yield fleet, staff


def test_a_cancel_in_the_queue_is_counted_and_logged_once(fleet_with_one_place, ask, eventually):
    """By the worker that comes to its doorbell, of which there may be several."""
    fleet, staff = fleet_with_one_place
    generation = fleet.client.submit(ask())
    assert generation.cancel()
    monitored = staff()
    worker = monitored.worker
    eventually(lambda: told(worker, generation) == ["cancelled"])
    (line,) = worker.outcomes(generation.id)
    assert (line["generator"], line["level"], line.get("attempt")) == ("default", "info", None)
    with redis.Redis.from_url(fleet.redis.url) as db:
        db.lpush(doorbell("default", 5), doorbell_message(generation.id, "default", 5))
    fleet.client.submit(ask()).result(timeout_s=20)  # came behind it
    value = monitored.scrape()
    assert value("genqueue_generations_total", generator="default", outcome="cancelled") == 1
    assert value("genqueue_attempts_total", ended="cancelled") == 0
    assert told(worker, generation) == ["cancelled"]


def test_a_cancel_of_what_runs_is_counted_by_who_ran_it_alone(fleet_with_one_place, ask, eventually):
    fleet, staff = fleet_with_one_place
    monitored = staff()
    generation = fleet.client.submit(ask(tokens=5000, itl_s=0.02))
    eventually(lambda: generation.status().completion_tokens > 2)
    generation.cancel()
    eventually(lambda: told(monitored.worker, generation) == ["cancelled"])
    with redis.Redis.from_url(fleet.redis.url) as db:
        db.lpush(doorbell("default", 5), doorbell_message(generation.id, "default", 5))
    fleet.client.submit(ask()).result(timeout_s=20)  # came behind it
    assert monitored.scrape()("genqueue_generations_total", generator="default", outcome="cancelled") == 1
    assert told(monitored.worker, generation) == ["cancelled"]


def test_a_message_that_expires_is_counted_and_logged_once(monitored, own_redis, ask, eventually):
    """Celery revokes it by itself, and no task of ours sees it."""
    before = monitored.scrape()
    with Celery("plain", broker=as_role(own_redis.url, "producer"), set_as_current=False) as app:
        late = app.send_task("genqueue.generate", kwargs={"prompt": ask()}, queue="generate.default", expires=-5)
    eventually(lambda: told(monitored.worker, late) == ["expired"])
    assert monitored.grows(before, "genqueue_generations_total", generator="default", outcome="expired") == 1
