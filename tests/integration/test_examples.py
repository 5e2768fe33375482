"""Each file of examples/ runs as its first lines say, against a worker and a stand-in."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def fleet(fleet_of, standin):
    with fleet_of({"default": {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}}) as fleet:
        fleet.staff(1)
        yield fleet


@pytest.fixture(scope="module")
def environ(fleet):
    return {**os.environ, "GENQUEUE_REDIS_URL": fleet.producer_url, "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def run(environ):
    def run(name, *arguments):
        command = [sys.executable, "-W", "error", EXAMPLES / name, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    return run


@contextmanager
def serving(command, environ, pattern):
    """A server in a process of its own, and its address: the first of its lines that has ``pattern``."""
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(pattern, line):
                break
        else:
            pytest.fail("".join(lines))
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)
        drain.join(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def fastapi_url(environ):
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_stream:app", "--port", "0"]
    with serving(command, environ, r"running on (\S+)") as url:
        yield url


@contextmanager
def serving_django(environ):
    """The Django example's address; test_restarts.py has it too."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, EXAMPLES / "django_view.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
    with serving(command, environ, r"server at (http://127\.0\.0\.1:\d+)") as url:
        yield url


@pytest.fixture(scope="module")
def django_url(environ):
    with serving_django(environ) as url:
        yield url


def opened(url, data=None, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30)


@contextmanager
def refused(status):
    """A request that is answered with ``status``; gives a function that gives the answer's text."""
    answer = []
    with pytest.raises(urllib.error.HTTPError) as raised:
        yield lambda: answer[0]
    with raised.value:
        assert raised.value.code == status
        answer.append(raised.value.read().decode())


@contextmanager
def frozen(fleet):
    """While the worker does nothing."""
    (worker,) = fleet.workers
    worker.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.process.send_signal(signal.SIGCONT)


@contextmanager
def full(fleet):
    """While the generator takes nothing; its worker is kept from announcing otherwise."""
    with frozen(fleet), redis.Redis.from_url(fleet.redis.url) as db:
        facts = db.hget("genqueue:generators", "default")
        db.hset("genqueue:generators", "default", json.dumps({**json.loads(facts), "max_queue_depth": 0}))
        try:
            yield
        finally:
            db.hset("genqueue:generators", "default", facts)


def submit(url, prompt):
    with opened(f"{url}/generations", json.dumps(prompt).encode(), **{"content-type": "application/json"}) as answer:
        return json.load(answer)


def sse(response):
    """(event, id, data) of each server-sent event, as they come."""
    fields = {}
    for raw in response:
        name, _, value = raw.decode().rstrip("\n").partition(":")
        if name:
            fields[name] = value.strip()
        else:
            yield fields.get("event", "message"), fields.get("id"), json.loads(fields["data"])
            fields = {}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_on_a_screen(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_celery_producer_knows_nothing_of_genqueue_and_gets_its_answers(run, ask):
    assert not re.search(
        r"import genqueue|from genqueue", (EXAMPLES / "celery_producer.py").read_text(encoding="utf-8")
    )
    prompts = [ask(tokens=5), ask(tokens=50)]
    done = run("celery_producer.py", *prompts)
    assert (done.returncode, done.stderr) == (0, "")
    texts = (prompts[0].answer, prompts[1].beginning(40))
    figures = ("eos_token, 6 tokens", "length, 40 tokens")
    expected = "".join(
        f"{re.escape(p + t)}\n  {f}, [0-9.]+ s\n" for p, t, f in zip(prompts, texts, figures, strict=True)
    )
    assert re.fullmatch(expected, done.stdout)  # a text may have more than one line


def test_the_celery_producer_is_told_what_went_wrong_and_gets_its_other_answers(run, ask):
    wrong, right = ask(faults=[{"kind": "status", "status": 422, "body": "no such thing"}]), ask(tokens=5)
    done = run("celery_producer.py", wrong, right)
    assert done.returncode == 1
    assert "no such thing" in done.stderr
    assert right.answer in done.stdout


def test_the_celery_producer_leaves_nothing_running_when_it_gives_up(run, ask, fleet, standin, tmp_path):
    text = (EXAMPLES / "celery_producer.py").read_text(encoding="utf-8")
    hurried = tmp_path / "celery_producer.py"
    hurried.write_text(text.replace("timeout=130", "timeout=1.5").replace("expires=60.0", "expires=1.0"))
    standin.clear()
    with frozen(fleet):
        done = run(hurried, ask(), ask())
    assert (done.returncode, done.stdout) == (1, "")
    assert "does a worker run?" in done.stderr
    # Behind them in the queue, so that they were looked at when this is answered.
    assert fleet.client.submit(last := ask(), priority=9).result(30).replies == [last.answer]
    assert standin.requests() == standin.requests(last)


def test_the_haystack_pipeline_answers_from_what_it_found(run, standin):
    standin.clear()
    done = run("haystack_rag.py", "What is the capital of France?")
    assert done.returncode == 0, done.stderr
    (asked,) = [entry["body"]["inputs"] for entry in standin.requests()]
    assert "- Paris is the capital of France.\n- " in asked
    assert asked.endswith("Question: What is the capital of France?\nAnswer:")
    *_, text, meta = [line for line in done.stdout.splitlines() if line]
    assert "-0000" in text
    assert "'completion_tokens': 9" in meta


def test_a_browser_gets_the_page_that_reads_the_stream(fastapi_url):
    with opened(fastapi_url) as answer:
        assert "new EventSource" in answer.read().decode()


def test_a_browser_that_lost_its_connection_goes_on_behind_what_it_saw(fastapi_url, ask):
    prompt = ask(tokens=12, itl_s=0.05)
    url = f"{fastapi_url}/generations/{submit(fastapi_url, prompt)}"
    seen = []
    with opened(url) as first:
        assert first.headers["content-type"].startswith("text/event-stream")
        assert (first.headers["cache-control"], first.headers["x-accel-buffering"]) == ("no-cache", "no")
        for event in sse(first):
            seen.append(event)
            if len(seen) == 3:
                break
    with opened(url, **{"last-event-id": seen[-1][1]}) as second:
        seen += sse(second)
    *chunks, end = seen
    assert "".join(data for _, _, data in chunks) == prompt.answer
    assert len({seq for _, seq, _ in chunks}) == len(chunks) >= 6
    assert (end[0], end[2]) == ("end", {"finish_reason": "eos_token", "usage": end[2]["usage"]})
    assert end[2]["usage"]["completion_tokens"] == 13
    with opened(url, **{"last-event-id": chunks[-1][1]}) as after_the_end:
        assert [kind for kind, _, _ in sse(after_the_end)] == ["end"]


def test_a_browser_is_told_of_a_text_that_begins_anew(fastapi_url, fleet, ask):
    prompt = ask(tokens=8, itl_s=0.02, faults=[{"kind": "reset", "after_tokens": 4, "times": 1}])
    generation = fleet.client.submit(prompt, on_failure="restart")
    text = ""
    with opened(f"{fastapi_url}/generations/{generation.id}") as answer:
        for kind, _, data in sse(answer):
            text = data if kind == "restart" else text + data if kind == "message" else text
    assert text == prompt.answer
    assert generation.status().attempt == 2


def test_a_browser_is_told_of_a_generation_that_nobody_submitted(fastapi_url):
    with opened(f"{fastapi_url}/generations/none") as answer:
        ((kind, _, end),) = sse(answer)
    assert kind == "end"
    assert "no generation none" in end["error"]


def test_a_browser_is_told_what_cannot_be_taken(fastapi_url, fleet):
    with refused(400) as words:
        submit(fastapi_url, "")
    assert "prompt: " in words()
    with full(fleet), refused(503) as words:
        submit(fastapi_url, "x")
    assert "limit 0" in words()


def test_the_django_view_streams(django_url, ask, standin):
    prompt = ask(tokens=20, itl_s=0.2)
    with opened(django_url, urllib.parse.urlencode({"prompt": prompt}).encode()) as answer:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        first = answer.read1()
        state = standin.only(prompt)["state"]
        rest = answer.read()
    assert state == "running"
    assert (first + rest).decode() == prompt.answer


def test_who_leaves_the_django_view_stops_the_model(django_url, ask, standin, eventually):
    prompt = ask(tokens=5000, itl_s=0.01)
    with opened(django_url, urllib.parse.urlencode({"prompt": prompt}).encode()) as answer:
        answer.read1()
    eventually(lambda: standin.only(prompt)["state"] == "dropped")


def test_who_leaves_the_django_view_in_the_queue_stops_the_model_with_its_first_texts(
    django_url, ask, standin, fleet, eventually
):
    prompt = ask(tokens=5000, itl_s=0.01)
    place = urllib.parse.urlsplit(django_url)
    asked = urllib.parse.urlencode({"prompt": prompt})
    with frozen(fleet), socket.create_connection((place.hostname, place.port)) as client:
        client.sendall(
            f"POST / HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(asked)}\r\n\r\n{asked}".encode()
        )
        eventually(lambda: fleet.client.overview().queues[0].waiting == 1)
    eventually(lambda: [entry["state"] for entry in standin.requests(prompt)] == ["dropped"])


def test_the_django_view_says_what_it_cannot_take(django_url, fleet):
    with refused(400) as words:
        opened(django_url, b"prompt=")
    assert "prompt: " in words()
    with full(fleet), refused(503) as words:
        opened(django_url, b"prompt=x")
    assert "limit 0" in words()
