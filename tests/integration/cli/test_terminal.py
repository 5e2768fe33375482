"""Real commands on a real terminal, fed by a model server and a record of Redis that would like to steer it."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys

import pytest

from genqueue.cli.exits import ExitCode

from ...support.small_servers import Answering, served

STEERS = "\x1b]0;PWN\a\x1b[31m\x9b2J\r\u202e\u2028\nstate              forged"
TEXT = f"one {STEERS} two\tthree"
OURS = re.compile(
    "\x1b\\[(2m|0m|31m|33m|1m|1;31m)"  # what the commands and rich themselves style with
)


class Hostile(Answering):
    """Answers a prompt that holds FAIL with an error, and others with a text; escapes and line breaks in all of it."""

    def do_GET(self):
        self.answer(200, "text/plain", b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if b"FAIL" in body:
            self.answer(500, "application/json", json.dumps({"error": f"no {STEERS}"}).encode())
            return
        events = [{"token": {"id": 1, "text": TEXT, "logprob": -1.0, "special": False}, "index": 1}]
        events += [{"token": {"id": 2, "text": ".", "logprob": -1.0, "special": False}, "index": 2}]
        details = {"finish_reason": f"length{STEERS}", "generated_tokens": 2, "seed": None, "input_length": 3}
        events[-1] |= {"generated_text": f"{TEXT}.", "details": details}
        self.answer(200, "text/event-stream", b"".join(b"data:%s\n\n" % json.dumps(each).encode() for each in events))


@pytest.fixture(scope="module")
def hostile_url():
    with served(Hostile) as url:
        yield url


@pytest.fixture(scope="module")
def hostile_worker(launch_worker, hostile_url, own_redis):
    generators = {
        "hostile": {
            "api_type": "text_generation_inference",
            "api_params": {"url": hostile_url},
            "max_attempts": 1,
        }
    }
    running = launch_worker(generators, own_redis.url, "-c", "4")
    yield running
    running.end()


@pytest.fixture
def genqueue(hostile_worker, tmp_path):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENQUEUE_")}
    environ |= {"GENQUEUE_REDIS_URL": hostile_worker.producer_url, "TERMINAL_WIDTH": "300", "COLUMNS": "300"}

    def on_terminal(*arguments):
        """(exit code, what the terminal was sent)."""
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "genqueue", *arguments], cwd=tmp_path, env=environ, stdout=follower, stderr=follower
        )
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while read := os.read(leader, 4096):
                shown += read
        os.close(leader)
        return process.wait(30), shown.decode().replace("\r\n", "\n")

    def piped(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "genqueue", *arguments], cwd=tmp_path, env=environ, capture_output=True, timeout=60
        )

    on_terminal.piped = piped
    return on_terminal


def assert_steers_nothing(shown):
    plain = OURS.sub("", shown).replace("\n", "").replace("\t", "")
    assert [each for each in plain if not each.isprintable()] == []


def test_a_text_and_its_figures(genqueue):
    code, shown = genqueue("submit", "hi", "-g", "hostile")
    assert code == ExitCode.OK
    assert "one \ufffd]0;PWN" in shown
    assert re.search("forged two[\t ]+three.\n", shown)  # a terminal may make spaces of a tab
    assert_steers_nothing(shown)
    text, figures = shown.removesuffix("\n").rsplit("\n", 1)
    assert text.count("\n") == TEXT.count("\n")
    assert "finish_reason" in figures
    (generation_id,) = re.findall(r"[0-9a-f-]{36}", figures)
    code, shown = genqueue("tail", generation_id)
    assert code == ExitCode.OK
    assert_steers_nothing(shown)
    code, shown = genqueue("tail", generation_id, "--json")
    assert_steers_nothing(shown)
    texts = [event["text"] for event in map(json.loads, shown.splitlines()) if event["type"] == "chunk"]
    assert "".join(texts) == f"{TEXT}."


def test_a_text_that_is_no_terminals_is_exact(genqueue):
    done = genqueue.piped("submit", "hi", "-g", "hostile")
    assert done.stdout.decode() == f"{TEXT}.\n"
    assert b"\x1b" not in done.stderr


@pytest.fixture
def failed_id(genqueue):
    code, shown = genqueue("submit", "FAIL", "-g", "hostile")
    assert code == ExitCode.FAILED
    assert_steers_nothing(shown)
    (line,) = shown.splitlines()
    assert line.startswith("genqueue: ")
    return re.search(r"[0-9a-f-]{36}", line)[0]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["status", "{id}"], id="status"),
        pytest.param(["status", "{id}", "--json"], id="status-json"),
        pytest.param(["dead", "list"], id="dead-list"),
        pytest.param(["dead", "list", "--json"], id="dead-list-json"),
        pytest.param(["dead", "show", "{id}"], id="dead-show"),
        pytest.param(["dead", "show", "{id}", "--json"], id="dead-show-json"),
    ],
)
@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_the_words_of_a_server_forge_no_line(genqueue, failed_id, arguments, is_terminal):
    arguments = [each.format(id=failed_id) for each in arguments]
    shown = genqueue(*arguments)[1] if is_terminal else genqueue.piped(*arguments).stdout.decode()
    assert "PWN" in shown
    assert not re.search("^state +forged", shown, re.MULTILINE)
    if is_terminal:
        assert_steers_nothing(shown)


@pytest.mark.parametrize("words", ["status", "status --json", "status --workers", "doctor"])
def test_a_worker_that_announces_anything_steers_nothing(genqueue, own_redis, words):
    import redis

    server = {"address": f"http://a{STEERS}", "health": f"down{STEERS}", "running": 1, "trouble": f"no {STEERS}"}
    about = {"announced_at": 9e9, "generators": {f"hostile{STEERS}": [server]}}
    name = f"w{STEERS}"
    with redis.Redis.from_url(own_redis.url) as operator:
        operator.hset("genqueue:workers", name, json.dumps(about))
        try:
            _, shown = genqueue(*words.split())
        finally:
            operator.hdel("genqueue:workers", name)
            operator.acl_log_reset()  # doctor asks for what a producer may not see
    assert "PWN" in shown
    assert_steers_nothing(shown)
    assert not re.search("^state +forged", shown, re.MULTILINE)
