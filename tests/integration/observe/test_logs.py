"""A worker's log: one line for each end, JSON where nobody reads it on a terminal, no prompt and no secret."""

import contextlib
import json
import os
import pty
import re
import sys

import pytest
from celery import Celery

from genqueue import GenerationClient, GenerationError, Settings

from ...support.roles import as_role

TGI = "text_generation_inference"


@pytest.fixture(scope="module")
def logging_worker(launch_worker, standin, queue_redis, closed_port):
    generators = {
        "logged": {"api_type": TGI, "api_params": {"url": standin.url}, "max_attempts": 1},
        "logged-again": {"api_type": TGI, "api_params": {"url": standin.url}, "max_attempts": 2},
    }
    worker = launch_worker(generators, queue_redis.url, "-c", "16")
    yield worker
    assert worker.end() == 0
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in worker.lines)


@pytest.fixture
def client(logging_worker):
    with GenerationClient(Settings(redis_url=logging_worker.producer_url, generators={})) as made:
        yield made


def ended(generation):
    with contextlib.suppress(GenerationError):
        generation.result(timeout_s=20)


def test_a_finished_generation_is_one_line_of_json(client, ask, logging_worker, eventually):
    generation = client.submit(ask(tokens=5, itl_s=0.01), generator="logged")
    meta = generation.result(timeout_s=15).meta[0]
    (line,) = eventually(lambda: logging_worker.outcomes(generation.id))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    timings = {name: value for name, value in meta["timings"].items() if value is not None}
    assert line == {
        "level": "info",
        "logger": "genqueue_worker.observe.report",
        "message": "finished",
        "outcome": "finished",
        "generation_id": generation.id,
        "generator": "logged",
        "attempt": 1,
        "finish_reason": meta["finish_reason"],
        "prompt_tokens": meta["usage"]["prompt_tokens"],
        "completion_tokens": meta["usage"]["completion_tokens"],
        **{name: pytest.approx(value, abs=0.1) for name, value in timings.items()},
    }
    assert {"queue_wait_s", "first_text_s", "total_s"} <= line.keys()
    said = [line["message"] for line in logging_worker.lines if generation.id in json.dumps(line)]
    assert said == ["finished"]  # Celery says nothing of it beside


@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        pytest.param(
            {"faults": [{"kind": "error", "after_tokens": 2}]}, {}, ("failed", "error", "generation", 1), id="failed"
        ),
        pytest.param(
            {}, {"generation_kwargs": {"top_p": 1.0}}, ("rejected", "warning", "validation", 1), id="rejected"
        ),
        pytest.param(
            {"tokens": 500, "itl_s": 0.02}, {"deadline_s": 2.0}, ("expired", "warning", None, 1), id="expired"
        ),
    ],
)
def test_an_end_without_a_result_is_one_line_with_its_class(
    client, ask, logging_worker, eventually, script, options, expected
):
    generation = client.submit(ask(**script), generator="logged", **options)
    ended(generation)
    (line,) = eventually(lambda: logging_worker.outcomes(generation.id))
    assert (line["outcome"], line["level"], line.get("error_type"), line["attempt"]) == expected


def test_each_attempt_has_a_line(client, ask, logging_worker, eventually):
    prompt = ask(tokens=4, faults=[{"kind": "status", "status": 500, "body": "broken", "times": 1}])
    generation = client.submit(prompt, generator="logged-again")
    generation.result(timeout_s=20)
    eventually(lambda: len(logging_worker.outcomes(generation.id)) == 2)
    first, second = logging_worker.outcomes(generation.id)
    assert (first["outcome"], first["error_type"], first["attempt"]) == ("retried", "500", 1)
    assert (second["outcome"], second["attempt"]) == ("finished", 2)


def test_a_cancel_is_one_line(client, ask, logging_worker, eventually):
    generation = client.submit(ask(tokens=5000, itl_s=0.02), generator="logged")
    eventually(lambda: generation.status().completion_tokens > 2)
    generation.cancel()
    (line,) = eventually(lambda: logging_worker.outcomes(generation.id))
    assert (line["outcome"], line["level"]) == ("cancelled", "info")
    assert line["completion_tokens"] > 2


def test_a_foreign_message_is_logged_alike(client, ask, logging_worker, eventually):
    app = Celery("plain", broker=client.settings.redis_url, set_as_current=False)
    secret = ask(tokens=3)
    with app:
        bad = app.send_task("genqueue.generate", kwargs={"prompt": secret, "max": 1}, queue="generate.logged")
        late = app.send_task("genqueue.generate", kwargs={"prompt": secret}, queue="generate.logged", expires=-5)
        alien = app.send_task("genqueue.generat", kwargs={"prompt": secret}, queue="generate.logged")
    for sent, outcome in ((bad, "rejected"), (late, "expired"), (alien, "rejected")):
        (line,) = eventually(lambda sent=sent: logging_worker.outcomes(sent.id))
        assert line["outcome"] == outcome
    assert secret.split()[-1] not in logging_worker.log


def test_the_words_of_a_server_are_not_logged_as_they_may_quote_the_prompt(client, ask, logging_worker, eventually):
    words = "you said: my secret diary"
    for status in (422, 500, 502):
        prompt = ask(faults=[{"kind": "status", "status": status, "body": json.dumps({"error": words})}])
        generation = client.submit(prompt, generator="logged")
        with pytest.raises(GenerationError, match=words):
            generation.result(timeout_s=15)
        eventually(lambda found=generation: logging_worker.outcomes(found.id))
    assert "secret diary" not in logging_worker.log


@pytest.mark.parametrize(("log_format", "is_json"), [("json", True), ("text", False), ("auto", True)])
def test_the_format_can_be_said(start_worker, ask, standin, queue_redis, eventually, log_format, is_json):
    name = f"format-{log_format}"
    generators = {name: {"api_type": TGI, "api_params": {"url": standin.url}}}
    worker = start_worker(
        generators, queue_redis.url, environ={"GENQUEUE_LOG_FORMAT": log_format, "GENQUEUE_LEASE": "9"}
    )
    assert "nobody reads the variable GENQUEUE_LEASE; is it GENQUEUE_LEASE_S?" in worker.log
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        generation = client.submit(ask(), generator=name)
        generation.result(timeout_s=15)
    (said,) = eventually(lambda: [line for line in worker.log.splitlines() if generation.id in line])
    if is_json:
        assert json.loads(said)["outcome"] == "finished"
        assert [line for line in worker.log.splitlines() if not line.startswith("{")] == []
    else:
        assert f"generation_id={generation.id} generator={name} attempt=1 " in said
        assert "INFO" in said


def test_on_a_terminal_lines_are_for_eyes(standin, queue_redis, tmp_path, eventually):
    import subprocess

    (tmp_path / "genqueue.toml").write_text(
        f'[generators.eyes]\napi_type = "{TGI}"\napi_params = {{ url = "{standin.url}" }}\n'
    )
    primary, secondary = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENQUEUE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "genqueue", "worker", "-c", "2"],
        cwd=tmp_path,
        env={**environ, "GENQUEUE_REDIS_URL": as_role(queue_redis.url, "worker")},
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    seen = b""
    try:
        while b" ready." not in seen:
            seen += os.read(primary, 4096)
    finally:
        process.terminate()
        with contextlib.suppress(OSError):  # the terminal is gone with its process
            while more := os.read(primary, 4096):
                seen += more
        process.wait(30)
        os.close(primary)
    (ready,) = [line for line in seen.decode().splitlines() if line.endswith(" ready.")]
    assert re.match(r"\[\d{4}-\d\d-\d\d .*: INFO/MainProcess\] ", ready)
