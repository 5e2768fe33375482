"""Model servers die and come back; nobody who waits for a text is the worse for it."""

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest
import trustme

from genqueue import GenerationClient, GenerationExpiredError, Settings

from ...support.roles import as_role, guarded_redis
from ...support.standins import running_standin

TGI = "text_generation_inference"


@pytest.fixture
def servers():
    """Two stand-ins; a test may kill them."""
    with running_standin() as first, running_standin() as second:
        yield first, second


@pytest.fixture
def back():
    """``back(standin)``: another one at the address of a dead one."""
    with contextlib.ExitStack() as stack:
        yield lambda dead: stack.enter_context(running_standin("--port", str(urlsplit(dead.url).port)))


def kill(server):
    server.process.kill()
    server.process.wait()


def record_of(hosts, generation, *names):
    import redis

    with redis.Redis.from_url(hosts.settings.redis_url, decode_responses=True) as db:
        return db.hmget(f"genqueue:generation:{generation.id}", *names)


def test_several_urls_share_the_work(servers, hosts, ask, eventually):
    first, second = servers
    fleet = hosts([[first.url, second.url]])
    prompts = [ask(tokens=40, itl_s=0.02) for _ in range(10)]
    generations = [fleet.client.submit(prompt) for prompt in prompts]
    results = [generation.result(timeout_s=20) for generation in generations]
    assert [result.replies for result in results] == [[prompt.answer] for prompt in prompts]
    assert [len(first.requests()), len(second.requests())] == [5, 5]
    assert sorted({result.meta[0]["endpoint"] for result in results}) == sorted([first.url, second.url])


def test_what_ran_on_a_server_that_dies_goes_on_on_the_other_one(servers, hosts, ask, read, eventually):
    first, second = servers
    fleet = hosts([[first.url, second.url]], max_attempts=1)
    prompts = [ask(tokens=100, itl_s=0.03) for _ in range(8)]
    readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
    eventually(lambda: all(len(reading.events) > 10 for reading in readings))
    hit = {entry["body"]["inputs"] for entry in first.requests()}
    assert len(hit) == 4
    kill(first)
    for prompt, reading in zip(prompts, readings, strict=True):
        assert reading.text() == prompt.answer
        meta = reading.generation.result(timeout_s=5).meta[0]
        assert (meta["attempts"], meta["endpoint"]) == (2 if prompt in hit else 1, second.url)
        assert meta["usage"]["completion_tokens"] == prompt.tokens + 1
        assert record_of(fleet, reading.generation, "failures") == [None]
    assert fleet.health(fleet.workers[0]) is not None
    eventually(lambda: fleet.health(fleet.workers[0]) == ["down", "up"])
    # Nothing is sent to where nothing listens, and no attempt is lost by finding that out.
    assert fleet.client.submit(ask()).result(timeout_s=10).meta[0]["attempts"] == 1


def test_where_nothing_listens_the_next_one_is_asked_in_the_same_attempt(servers, hosts, ask, closed_port, eventually):
    first, _ = servers
    fleet = hosts([[f"http://127.0.0.1:{closed_port}", first.url]])
    meta = fleet.client.submit(ask()).result(timeout_s=10).meta[0]
    assert (meta["attempts"], meta["endpoint"]) == (1, first.url)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["down", "up"])


def test_the_death_of_one_of_two_hosts_model_servers_costs_no_attempt(servers, hosts, ask, read, eventually, back):
    first, second = servers
    fleet = hosts([[first.url], [second.url]], max_attempts=1, places=30)  # so neither takes all
    prompts = [ask(tokens=60, itl_s=0.03) for _ in range(40)]
    readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
    eventually(lambda: len(first.requests()) > 5 and all(len(reading.events) > 5 for reading in readings))
    kill(first)
    more = [ask(tokens=4) for _ in range(40)]
    later = [fleet.client.submit(prompt) for prompt in more]
    for prompt, reading in zip(prompts, readings, strict=True):
        assert reading.text() == prompt.answer
        assert record_of(fleet, reading.generation, "failures") == [None]
    for prompt, generation in zip(more, later, strict=True):
        assert generation.result(timeout_s=20).replies == [prompt.answer]
        assert record_of(fleet, generation, "failures") == [None]
    eventually(lambda: fleet.health(fleet.workers[0]) == ["down"] and fleet.health(fleet.workers[1]) == ["up"])
    assert f"default: {first.url} is down" in fleet.workers[0].log

    # Its server comes back, and the worker with it, though nobody told it.
    again = back(first)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up"])
    assert f"default: {first.url} is back" in fleet.workers[0].log
    kill(second)
    prompt = ask()
    assert fleet.client.submit(prompt).result(timeout_s=20).replies == [prompt.answer]
    assert again.only(prompt)


def test_an_idle_server_that_dies_is_noticed_although_nobody_asks_it(servers, hosts, eventually):
    first, second = servers
    fleet = hosts([[first.url, second.url]])
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up", "up"])
    kill(first)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["down", "up"], within_s=20)


def test_what_waits_for_a_server_runs_once_it_is_there(hosts, ask, back, eventually):
    with running_standin() as gone:
        pass
    fleet = hosts([[gone.url]], max_attempts=1)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["down"])
    prompts = [ask() for _ in range(5)]
    generations = [fleet.client.submit(prompt) for prompt in prompts]
    with pytest.raises(GenerationExpiredError) as expired:
        fleet.client.submit(ask(), deadline_s=0.5).result(timeout_s=10)
    assert expired.value.attempts == 0
    assert {generation.status().state for generation in generations} == {"queued"}
    back(gone)
    for prompt, generation in zip(prompts, generations, strict=True):
        result = generation.result(timeout_s=20)
        assert (result.replies, result.meta[0]["attempts"]) == ([prompt.answer], 1)


def test_a_deadline_that_passes_while_no_server_can_be_reached_names_the_cause(servers, hosts, ask, read, eventually):
    first, _ = servers
    fleet = hosts([[first.url]])
    began = read(fleet.client.submit(ask(tokens=500, itl_s=0.02), deadline_s=6))
    eventually(lambda: len(began.events) > 5)
    kill(first)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["down"])
    never_begun = fleet.client.submit(ask(), deadline_s=0.5)
    with pytest.raises(GenerationExpiredError, match="in the queue; last error: ") as expired:
        never_begun.result(timeout_s=10)
    assert f"no server of 'default' can be reached: {first.url}: " in str(expired.value)
    assert never_begun.status().error == str(expired.value)
    with pytest.raises(GenerationExpiredError, match="in the queue; last error: ") as expired:
        began.generation.result(timeout_s=20)
    assert str(expired.value).partition("last error: ")[2] == expired.value.detail["errors"][-1]["message"]
    assert expired.value.attempts >= 1


def test_a_frozen_server_is_found_out_by_its_silence(servers, hosts, ask, read, eventually):
    first, second = servers
    timeouts = {"first_token_s": 3.0, "between_tokens_s": 3.0}
    fleet = hosts([[first.url, second.url]], max_attempts=1, timeouts=timeouts)
    prompts = [ask(tokens=200, itl_s=0.03) for _ in range(4)]
    readings = [read(fleet.client.submit(prompt)) for prompt in prompts]
    eventually(lambda: all(len(reading.events) > 10 for reading in readings))
    first.process.send_signal(signal.SIGSTOP)
    try:
        for prompt, reading in zip(prompts, readings, strict=True):
            assert reading.text() == prompt.answer
            assert record_of(fleet, reading.generation, "failures") == [None]
    finally:
        first.process.send_signal(signal.SIGCONT)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up", "up"])


@pytest.mark.parametrize(
    ("script", "timeouts", "words"),
    [
        pytest.param({"ttft_s": 30.0}, {"first_token_s": 0.5}, "no token within 0.5 s", id="first-token"),
        pytest.param(
            {"faults": [{"kind": "stall", "after_tokens": 4}]},
            {"between_tokens_s": 2.0},
            "no more tokens within 2 s",
            id="between-tokens",
        ),
    ],
)
def test_keep_alive_comments_are_no_tokens(hosts, ask, script, timeouts, words):
    with running_standin("--keep-alive-s", "0.1") as chatty:
        fleet = hosts([[chatty.url]], max_attempts=1, timeouts=timeouts)
        generation = fleet.client.submit(ask(tokens=20, **script))
        with pytest.raises(Exception, match=words) as failed:
            generation.result(timeout_s=20)
        assert type(failed.value).__name__ == "GenerationFailedError"
        # A slow answer is none: 2.8 s in all.
        slow = ask(tokens=8, ttft_s=0.4, itl_s=0.3)
        if "between_tokens_s" in timeouts:
            assert fleet.client.submit(slow).result(timeout_s=20).replies == [slow.answer]


def test_the_shell_shows_workers_and_their_servers(servers, hosts, closed_port, eventually):
    first, _ = servers
    fleet = hosts([[first.url, f"http://127.0.0.1:{closed_port}"]])
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up", "down"])

    def shell(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "genqueue", "status", *arguments],
            env={"GENQUEUE_REDIS_URL": fleet.settings.redis_url, "PATH": ""},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    shown = shell("--workers")
    assert shown.returncode == 0, shown.stderr
    up, down = shown.stdout.splitlines()
    assert (f":{fleet.workers[0].process.pid}:" in up, " up " in up, first.url in up) == (True, True, True)
    assert " down " in down
    assert "cannot be reached" in down or "no answer to /health" in down
    (worker,) = json.loads(shell("--workers", "--json").stdout)
    assert [server["health"] for server in worker["generators"]["default"]] == ["up", "down"]
    fleet.workers[0].end()
    gone = shell("--workers")
    assert (gone.returncode, gone.stdout) == (0, "")
    assert "no worker" in gone.stderr
    assert shell("--workers", "--watch").returncode == 2


@pytest.fixture
def wrong_addresses(tmp_path, closed_port, servers):
    """Addresses at which no model server can be asked, and what is to be said of each."""
    authority, server_side = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    with contextlib.ExitStack() as stack:

        def listening(*answer):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            if answer:
                threading.Thread(target=_answer_each, args=(listener, *answer), daemon=True).start()
            return port

        yield {
            f"http://127.0.0.1:{closed_port}": "no answer to /health: connection refused",
            f"http://127.0.0.1:{listening()}": "no answer to /health: timed out",
            f"https://127.0.0.1:{listening()}": "no answer to /health: timed out",
            f"http://127.0.0.1:{listening(b'')}": "no answer to /health: closed before it answered",
            f"http://127.0.0.1:{listening(b'SECRET')}": "no answer to /health: its answer is no HTTP",
            f"http://127.0.0.1:{listening(b'HTTP/1.1 502 SECRET')}": "/health answers with HTTP 502",
            servers[0].url.replace("http:", "https:"): (
                "no answer to /health: wrong version number: no TLS is spoken there"
            ),
            f"https://127.0.0.1:{listening(b'', server_side)}": (
                "no answer to /health: certificate verify failed: its issuer is not trusted here"
            ),
            "http://no-such-host.invalid": "no answer to /health: name or service not known",
        }


def _answer_each(listener, answer, tls=None):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                if tls is not None:
                    tls.wrap_socket(connection, server_side=True).close()
                    continue
                connection.recv(65536)
                connection.sendall(answer + b"\r\ncontent-length: 0\r\n\r\n" if answer else b"")


def test_why_a_server_cannot_be_asked_is_shown_where_servers_are_and_logged_once(wrong_addresses, fleet_of, eventually):
    """In words of ours: none of such a server's reaches the log."""
    tgi = "text_generation_inference"
    generators = {
        f"g{number}": {"api_type": tgi, "api_params": {"url": url}} for number, url in enumerate(wrong_addresses)
    }
    with fleet_of({"default": generators["g0"], **generators}) as fleet:
        (worker,) = fleet.staff(1)

        def shown():
            (found,) = fleet.client.workers()
            servers = [server for name, (server,) in found.generators.items() if name != "default"]
            return {server["address"]: server["trouble"] for server in servers if server["health"] == "down"}

        eventually(lambda: shown() == wrong_addresses, within_s=20)
        for number, (url, words) in enumerate(wrong_addresses.items()):
            assert worker.log.count(f"g{number}: {url} is down: {words}") == 1
        assert "SECRET" not in worker.log


def test_another_generator_of_the_same_worker_is_served_on(
    servers, launch_worker, real_redis, ask, eventually, tmp_path
):
    first, second = servers
    generators = {
        name: {"api_type": TGI, "api_params": {"url": server.url}}
        for name, server in (("default", first), ("other", second))
    }
    with guarded_redis(tmp_path) as redis_server:
        worker = launch_worker(generators, redis_server.url, "-c", "8")
        with GenerationClient(Settings(redis_url=as_role(redis_server.url, "producer"), generators={})) as client:
            kill(first)
            waits = client.submit(ask())
            eventually(lambda: f"default: {first.url} is down" in worker.log)
            began_s = time.monotonic()
            for _ in range(3):
                prompt = ask()
                assert client.submit(prompt, generator="other").result(timeout_s=10).replies == [prompt.answer]
            assert time.monotonic() - began_s < 10
            assert waits.status().state == "queued"
            waits.cancel()
        worker.end()


# --- scaled to zero -----------------------------------------------------------------------------

ENDPOINT = {"api_type": "inference_endpoints", "token_env": []}


def test_one_question_wakes_an_endpoint_for_all_that_wait(servers, hosts, ask, read, eventually):
    server, _ = servers
    server.script(asleep_s=5.0)
    fleet = hosts([[server.url]], **ENDPOINT, max_attempts=1)
    prompts = [ask() for _ in range(20)]
    readings = [read(fleet.client.submit(prompts[0]))]
    eventually(lambda: readings[0].came("waking", 1))
    assert fleet.health(fleet.workers[0]) is not None
    eventually(lambda: fleet.health(fleet.workers[0]) == ["waking"])
    readings += [read(fleet.client.submit(prompt)) for prompt in prompts[1:]]
    for prompt, reading in zip(prompts, readings, strict=True):
        assert reading.text() == prompt.answer
        assert reading.kinds() == ["1.started", "1.waking", "1.finished"]
        timings = reading.generation.result(timeout_s=5).meta[0]["timings"]
        assert timings["waking_s"] > 0
        phases = [timings[name] for name in ("queue_wait_s", "waking_s", "first_text_s", "decode_s")]
        assert sum(phases) == pytest.approx(timings["total_s"], abs=1e-3)
    asleep = [entry for entry in server.requests() if entry["fault"] == "asleep"]
    assert (len(asleep), len(server.requests())) == (1, 21)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up"])


def test_each_server_that_sleeps_wakes_up_and_is_asked_again(servers, hosts, ask, eventually):
    first, second = servers
    for server in servers:
        server.script(asleep_s=1.0)
    fleet = hosts([[first.url, second.url]], **ENDPOINT)
    generations = [fleet.client.submit(ask()) for _ in range(6)]
    for generation in generations:
        generation.result(timeout_s=20)
    eventually(lambda: fleet.health(fleet.workers[0]) == ["up", "up"])
    results = [generation.result(timeout_s=20) for generation in [fleet.client.submit(ask()) for _ in range(8)]]
    assert {result.meta[0]["endpoint"] for result in results} == {first.url, second.url}


@pytest.mark.parametrize("places", [1, 6])
def test_who_waits_for_a_server_to_wake_up_leaves_places_to_others(
    servers, real_redis, launch_worker, ask, read, eventually, places, tmp_path
):
    asleep, awake = servers
    asleep.script(asleep_s=6.0)
    generators = {
        "asleep": {**ENDPOINT, "api_params": {"url": asleep.url}},
        "awake": {"api_type": TGI, "api_params": {"url": awake.url}},
    }
    with guarded_redis(tmp_path) as redis_server:
        worker = launch_worker(generators, redis_server.url, "-c", str(places))
        with GenerationClient(Settings(redis_url=as_role(redis_server.url, "producer"), generators={})) as client:
            sleepers = [
                (prompt, read(client.submit(prompt, generator="asleep"))) for prompt in (ask() for _ in range(9))
            ]
            eventually(lambda: any(reading.came("waking", 1) for _, reading in sleepers))
            for _ in range(3):
                prompt = ask()
                assert client.submit(prompt, generator="awake").result(timeout_s=5).replies == [prompt.answer]
            assert {reading.generation.status().state for _, reading in sleepers} <= {"queued", "running"}
            for prompt, reading in sleepers:
                assert reading.text() == prompt.answer
                assert reading.generation.result(timeout_s=5).meta[0]["usage"]["completion_tokens"] > 0
        assert worker.end() == 0


def test_the_deadline_and_a_cancel_rule_while_an_endpoint_wakes_up(servers, hosts, ask, read, eventually):
    server, _ = servers
    server.script(asleep_s=60.0)
    fleet = hosts([[server.url]], **ENDPOINT)
    late, unwanted = (read(fleet.client.submit(ask(), deadline_s=deadline_s)) for deadline_s in (4.0, None))
    eventually(lambda: late.came("waking", 1) and unwanted.came("waking", 1))
    unwanted.generation.cancel()
    assert unwanted.text() == ""
    assert unwanted.kinds()[-1] == "1.cancelled"
    with pytest.raises(GenerationExpiredError, match="while it ran") as expired:
        late.generation.result(timeout_s=10)
    timings = expired.value.detail["timings"]
    assert 2.0 < timings["waking_s"] <= timings["total_s"]


def test_an_endpoint_that_is_awake_and_still_full_is_asked_again_later(servers, hosts, ask):
    server, _ = servers
    fleet = hosts([[server.url]], **ENDPOINT, max_attempts=1)
    prompt = ask(faults=[{"kind": "status", "status": 503, "times": 3}])
    result = fleet.client.submit(prompt).result(timeout_s=20)
    # The first 503 of an attempt may be sleep; the second is not, and ends the attempt.
    assert (result.replies, result.meta[0]["attempts"]) == ([prompt.answer], 2)
