"""The ``genqueue`` command as a process of its own, against a real Redis, worker and stand-in."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import redis

from genqueue import keys
from genqueue.cli import app
from genqueue.cli.exits import ExitCode
from genqueue_ops.local_redis import local_redis
from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import expected_text

from ...support.roles import as_role

STARTED = '{"v": 1, "seq": 1, "attempt": 1, "type": "started", "at": 0, "worker": "x"}'
NO_SUCH_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def environ(worker, tmp_path):
    """A producer's: where Redis is, and nothing else of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GENQUEUE_")}
    return {**kept, "GENQUEUE_REDIS_URL": worker.producer_url, "TERMINAL_WIDTH": "200"}


@pytest.fixture
def genqueue(environ, tmp_path):
    """Runs ``python -m genqueue`` to its end."""

    def run(*arguments, stdin="", python_options=(), **changed):
        return subprocess.run(
            [sys.executable, *python_options, "-m", "genqueue", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**environ, **changed},
        )

    return run


@pytest.fixture
def start(environ, tmp_path):
    """Starts ``python -m genqueue`` and ends it with the test."""
    with contextlib.ExitStack() as started:

        def run(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **changed):
            process = subprocess.Popen(
                [sys.executable, "-m", "genqueue", *map(str, arguments)],
                cwd=tmp_path,
                env={**environ, **changed},
                stdout=stdout,
                stderr=stderr,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield run


class Terminal:
    """A process whose stdout is a terminal."""

    def __init__(self, start, *arguments):
        self._leader, follower = pty.openpty()
        self.process = start(*arguments, stdout=follower)
        os.close(follower)
        self.poll = self.process.poll

    def read1(self):
        """What comes next; "" at the end."""
        try:
            return os.read(self._leader, 4096).decode().replace("\r\n", "\n")
        except OSError:  # EIO: the other side has closed
            return ""

    def communicate(self):
        """(the rest of stdout, stderr)."""
        rest = "".join(iter(self.read1, ""))
        _, told = self.process.communicate(timeout=30)
        return rest, told.decode()

    def close(self):
        os.close(self._leader)


@pytest.fixture
def terminal(start):
    """As ``start``, but stdout is a terminal."""
    with contextlib.ExitStack() as opened:

        def run(*arguments):
            return opened.enter_context(contextlib.closing(Terminal(start, *arguments)))

        yield run


def submitted(genqueue, *arguments):
    """The id of a generation nobody waits for."""
    done = genqueue("submit", *arguments, "--detach")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def only_line(done):
    """What stderr says, which must be one line of ours."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("genqueue: ")
    return line.removeprefix("genqueue: ")


# --- submit ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [pytest.param([], id="streamed"), pytest.param(["--no-stream"], id="not-streamed")])
def test_submit_prints_the_text_and_beside_it_one_line_of_figures(genqueue, ask, how):
    prompt = ask(tokens=12)
    done = genqueue("submit", prompt, *how)
    assert (done.returncode, done.stdout) == (0, prompt.answer + "\n")
    (line,) = done.stderr.splitlines()
    assert re.match(r"[0-9a-f-]{36}: 13 tokens, finish_reason eos_token, queue_wait_s .*, attempts 1$", line)


def test_who_queues_for_a_generator_that_nobody_serves_is_told_and_waits(genqueue):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": "http://h"}}
    done = genqueue("submit", "x", "-g", "idle", "--detach", GENQUEUE_GENERATORS=json.dumps({"idle": generator}))
    assert done.returncode == 0
    assert only_line(done) == "no worker has announced itself for generator 'idle' in the last 30 s; it waits for one"
    assert json.loads(genqueue("status", done.stdout.strip(), "--json").stdout)["state"] == "queued"
    assert genqueue("cancel", done.stdout.strip()).returncode == 0


def test_a_terminal_gets_the_text_while_it_comes(terminal, ask):
    prompt = ask(tokens=40, itl_s=0.2)
    process = terminal("submit", prompt)
    begun = process.read1()
    assert begun
    assert prompt.answer.startswith(begun)
    assert process.poll() is None


def test_the_prompt_may_come_from_stdin_less_its_final_newline(genqueue, ask):
    prompt = ask()
    assert genqueue("submit", "-", stdin=f"{prompt}\n").stdout == prompt.answer + "\n"


def test_options_reach_the_request(genqueue, ask, standin):
    prompt = ask()
    options = ["--max-new-tokens", 5, "--kwargs", '{"temperature": 0.5, "max_new_tokens": 9}']
    done = genqueue("submit", prompt, "-g", "tuned", *options, "--stop-word", "one", "--stop-word", "two", "--json")
    sent = standin.only(prompt)["body"]["parameters"]
    assert (sent["max_new_tokens"], sent["temperature"]) == (5, 0.5)
    assert sent["stop"] == ["own-stop", "generator-word", "one", "two"]
    assert json.loads(done.stdout)["meta"][0]["generator"] == "tuned"


def test_a_chat_is_a_users_message_with_what_the_model_is_told_first(genqueue, ask, standin):
    prompt = ask(tokens=12)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    done = genqueue("submit", prompt, "--chat", "--system", "Be brief.", "--max-new-tokens", 5)
    assert (done.returncode, done.stdout) == (0, expected_text(render(messages), 5) + "\n")
    (sent,) = [each["body"] for each in standin.requests() if each["body"].get("messages") == messages]
    assert sent["max_tokens"] == 5
    done = genqueue("submit", "-", "--chat", stdin=prompt + "\n")
    assert done.stdout == expected_text(render(messages[1:]), 12) + "\n"


def test_json_is_the_id_and_the_result(genqueue, ask):
    prompt = ask()
    done = genqueue("submit", prompt, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert answer.keys() == {"id", "replies", "meta"}
    assert answer["replies"] == [prompt.answer]


def test_json_of_a_failure_is_its_error_and_partial_text(genqueue, ask):
    prompt = ask(tokens=20, faults=[{"kind": "error", "after_tokens": 6}])
    done = genqueue("submit", prompt, "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == ExitCode.FAILED
    assert answer["error"] == "GenerationFailedError"
    assert answer["message"] == only_line(done)
    assert answer["partial_text"] == prompt.beginning(6)


def test_a_failure_is_the_text_so_far_and_one_line_with_the_id(genqueue, ask):
    prompt = ask(tokens=20, faults=[{"kind": "error", "after_tokens": 6}])
    done = genqueue("submit", prompt)
    assert (done.returncode, done.stdout) == (ExitCode.FAILED, prompt.beginning(6) + "\n")
    generation_id = only_line(done).partition(": ")[0]
    assert genqueue("tail", generation_id).stderr == done.stderr


def test_the_same_idempotency_key_is_the_same_generation(genqueue, ask):
    prompt = ask()
    first, second = (submitted(genqueue, prompt, "--idempotency-key", f"key of {prompt}") for _ in range(2))
    assert first == second
    other = genqueue("submit", ask(), "--idempotency-key", f"key of {prompt}")
    assert other.returncode == ExitCode.INVALID_REQUEST


# --- tail, status, cancel ----------------------------------------------------------------


def test_tail_tells_the_text_again_or_from_an_event_on(genqueue, ask):
    prompt = ask(tokens=8, itl_s=0.03)
    generation_id = submitted(genqueue, prompt)
    whole = genqueue("tail", generation_id)
    assert (whole.returncode, whole.stdout) == (0, prompt.answer + "\n")
    events = [json.loads(line) for line in genqueue("tail", generation_id, "--json").stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["type"], events[-1]["type"]) == ("started", "finished")
    chunks = [event for event in events if event["type"] == "chunk"]
    rest = genqueue("tail", generation_id, "--from-seq", chunks[0]["seq"])
    assert rest.stdout == "".join(chunk["text"] for chunk in chunks[1:]) + "\n"


def test_tail_of_a_text_whose_log_is_gone_prints_it_whole(genqueue, ask, db):
    prompt = ask()
    generation_id = submitted(genqueue, prompt)
    assert genqueue("tail", generation_id).returncode == 0
    db.delete(f"genqueue:generation:{generation_id}:log")
    assert genqueue("tail", generation_id).stdout == prompt.answer + "\n"
    assert genqueue("tail", generation_id, "--from-seq", 2).returncode == ExitCode.NOT_FOUND


def test_a_result_of_another_version_may_lack_what_is_told_beside_its_text(genqueue, ask, db):
    prompt = ask(tokens=3)
    generation_id = submitted(genqueue, prompt)
    genqueue("tail", generation_id)
    stored = json.loads(db.get(keys.result(generation_id)))
    for meta in (
        {},
        {"usage": 5, "timings": [1]},
        {"usage": {"completion_tokens": 3}, "timings": {"x_s": "y", "z_s": 1}},
    ):
        stored["result"]["meta"] = [meta]
        db.set(keys.result(generation_id), json.dumps(stored), keepttl=True)
        done = genqueue("tail", generation_id)
        assert (done.returncode, done.stdout) == (0, f"{prompt.answer}\n")
        tokens = 3 if isinstance(meta.get("usage"), dict) else None
        assert done.stderr.startswith(f"{generation_id}: {tokens} tokens, finish_reason None, ")


def test_status_without_an_id_shows_queues_and_workers_at_a_glance(genqueue, ask, worker, standin):
    running = submitted(genqueue, ask(tokens=400, itl_s=0.05))
    try:
        for _ in range(100):
            found = json.loads(genqueue("status", "--json").stdout)
            (queue,) = [queue for queue in found["queues"] if queue["generator"] == "default"]
            if queue["running"]:
                break
        assert queue["running"] >= 1
        assert (queue["waiting"], queue["oldest_wait_s"], queue["workers"]) == (0, None, 1)
        assert queue["max_queue_depth"] == 10_000
        assert [f":{worker.process.pid}:" in each["name"] for each in found["workers"]] == [True]
        shown = genqueue("status")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert re.search(r"^default +0 of 10000 +[1-9]", shown.stdout, re.MULTILINE)
        assert standin.url in shown.stdout
        assert "\x1b" not in shown.stdout
    finally:
        genqueue("cancel", running)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["tables", "json"])
def test_status_watch_shows_one_after_another_until_ctrl_c(start, options):
    process = start("status", "--watch", *options)
    shown = [process.stdout.readline() for _ in range(2 if options else 60)]
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert process.stderr.read() == b""
    if options:
        first, second = map(json.loads, shown)
        assert 0.5 < second["at"] - first["at"] < 10
    else:
        assert sum(line.startswith(b"queue ") for line in shown) >= 2


def test_status_watch_repaints_a_terminal_and_leaves_it_whole(start):
    leader, follower = pty.openpty()
    process = start("status", "--watch", stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while shown.count(b"waiting 0") < 2:
        shown += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # EIO: the other side has closed
        while read := os.read(leader, 4096):
            shown += read
    os.close(leader)
    assert process.wait(10) == 0
    assert b"Traceback" not in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is back


def test_status_watch_outlives_a_redis_that_restarts(start):
    with local_redis() as server:
        process = start("status", "--watch", "--json", GENQUEUE_REDIS_URL=server.url, GENQUEUE_REDIS_TIMEOUT_S="1")
        assert json.loads(process.stdout.readline())["queues"] == []
        server.stop()
        stopped_s = time.time()
        assert b"no answer from Redis" in process.stderr.readline()
        server.start()
        while (shown := json.loads(process.stdout.readline()))["at"] < stopped_s:  # it had looked again before
            pass
        assert shown["queues"] == []


def test_status_says_where_a_generation_is(genqueue, ask):
    generation_id = submitted(genqueue, ask(), "--priority", 3)
    genqueue("tail", generation_id)
    told = genqueue("status", generation_id)
    assert re.search(r"^state +finished\n", told.stdout, re.MULTILINE)
    found = json.loads(genqueue("status", generation_id, "--json").stdout)
    assert (found["id"], found["state"], found["priority"], found["attempt"]) == (generation_id, "finished", 3, 1)
    assert found["timings"].keys() == {"queue_wait_s", "waking_s", "first_text_s", "decode_s", "total_s"}


def test_cancel_ends_it_for_whoever_reads(genqueue, start, terminal, ask):
    prompt = ask(tokens=500, itl_s=0.1)
    generation_id = submitted(genqueue, prompt)
    piped = start("tail", generation_id)
    reader = terminal("tail", generation_id)
    begun = reader.read1()
    assert genqueue("cancel", generation_id).returncode == 0
    rest, told = reader.communicate()
    assert (reader.process.returncode, told) == (ExitCode.CANCELLED, f"genqueue: {generation_id}: cancelled\n")
    assert prompt.answer.startswith((begun + rest).removesuffix("\n"))
    printed, told = piped.communicate(timeout=30)
    assert (piped.returncode, printed.decode()) == (ExitCode.CANCELLED, begun + rest), told
    assert genqueue("cancel", generation_id).returncode == 0
    assert genqueue("tail", generation_id).returncode == ExitCode.CANCELLED


def test_what_has_ended_cannot_be_cancelled(genqueue, ask):
    generation_id = submitted(genqueue, ask())
    genqueue("tail", generation_id)
    done = genqueue("cancel", generation_id)
    assert (done.returncode, only_line(done)) == (
        ExitCode.TOO_LATE,
        f"too late: generation {generation_id} has finished",
    )


# --- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "changed", "code", "says"),
    [
        pytest.param([], {}, ExitCode.USAGE, None, id="no-command"),
        pytest.param(["sbmit"], {}, ExitCode.USAGE, "No such command 'sbmit'", id="typo"),
        pytest.param(["submit", "x", "--nope"], {}, ExitCode.USAGE, "No such option: --nope", id="option"),
        pytest.param(["submit", "x", "--kwargs", "{"], {}, ExitCode.USAGE, "--kwargs is no JSON", id="kwargs"),
        pytest.param(["submit", "x", "--kwargs", "[]"], {}, ExitCode.USAGE, "JSON object", id="kwargs-array"),
        pytest.param(
            ["submit", "x"], {"GENQUEUE_LEASE_S": "soon"}, ExitCode.CONFIG, "lease_s: Input should be", id="setting"
        ),
        pytest.param(
            ["submit", "x"], {"GENQUEUE_CONFIG": "/no/such"}, ExitCode.CONFIG, "cannot read /no/such", id="no-file"
        ),
        pytest.param(["submit", ""], {}, ExitCode.INVALID_REQUEST, "prompt: ", id="empty-prompt"),
        pytest.param(["submit", "x", "-g", "nobody"], {}, ExitCode.INVALID_REQUEST, "known: default", id="generator"),
        pytest.param(
            ["submit", "x", "--kwargs", '{"mx": 1}'], {}, ExitCode.INVALID_REQUEST, "known: adapter_id", id="unknown"
        ),
        pytest.param(["submit", "x", "--priority", "10"], {}, ExitCode.INVALID_REQUEST, "priority", id="priority"),
        pytest.param(
            ["status", NO_SUCH_ID],
            {"GENQUEUE_REDIS_URL": "redis://me:hushhush@127.0.0.1:1/0"},
            ExitCode.REDIS,
            "no answer from Redis at 127.0.0.1:1",
            id="no-redis",
        ),
        pytest.param(["status", NO_SUCH_ID], {}, ExitCode.NOT_FOUND, f"no generation {NO_SUCH_ID}", id="status"),
        pytest.param(["tail", NO_SUCH_ID], {}, ExitCode.NOT_FOUND, f"no generation {NO_SUCH_ID}", id="tail"),
        pytest.param(["cancel", NO_SUCH_ID], {}, ExitCode.NOT_FOUND, f"no generation {NO_SUCH_ID}", id="cancel"),
        pytest.param(["worker", "--nope"], {}, ExitCode.USAGE, "No such option: --nope", id="option-of-another"),
        pytest.param(["worker"], {}, ExitCode.CONFIG, "no generators", id="nothing-to-serve"),
    ],
)
def test_an_error_is_one_line_and_a_code(genqueue, arguments, changed, code, says):
    done = genqueue(*arguments, **changed)
    assert done.returncode == code, done.stderr
    if says is None:
        assert "Usage" in done.stdout + done.stderr
    else:
        assert says in only_line(done)
        assert done.stdout == ""
    assert "hushhush" not in done.stderr


# --- dead letters ------------------------------------------------------------------------

# The generator ``default`` of these tests makes one attempt only.
ONE_FAULT = {"kind": "error", "after_tokens": 3, "error": "CUDA\nerror", "times": 1}
GATEWAY = {"kind": "status", "status": 502, "body": "bad gateway"}


@pytest.fixture
def dead(genqueue, db):
    """``genqueue dead …``, with no dead letter of an earlier test."""
    db.delete("genqueue:dead")
    return lambda *arguments: genqueue("dead", *arguments)


def dies(genqueue, prompt, *arguments):
    """The id of a generation that has failed."""
    generation_id = submitted(genqueue, prompt, *arguments)
    assert genqueue("tail", generation_id).returncode == ExitCode.FAILED
    return generation_id


def test_dead_letters_are_listed_the_newest_first_and_without_prompts(genqueue, dead, ask):
    for none in (dead("list"), dead("retry", "--all"), dead("drop", "--all")):
        assert (none.returncode, none.stdout, only_line(none)) == (0, "", "no dead letters")
    prompt = ask(tokens=9, faults=[ONE_FAULT])
    first, second = dies(genqueue, prompt), dies(genqueue, ask(faults=[GATEWAY]), "-g", "endpoint")
    told = dead("list")
    assert (told.returncode, told.stderr) == (0, "")
    newest, oldest = told.stdout.splitlines()
    assert re.fullmatch(rf"{second}  \S+\+00:00  endpoint  attempts 1, tokens 0: .+", newest)
    assert re.fullmatch(rf"{first}  \S+\+00:00  default  attempts 1, tokens 3: .*CUDA error.*", oldest)
    (only,) = [json.loads(line) for line in dead("list", "--generator", "default", "--json").stdout.splitlines()]
    assert (only["id"], only["completion_tokens"]) == (first, 3)
    assert prompt not in told.stdout + str(only)
    cut = dead("list", "--limit", 1)
    assert (cut.stdout, only_line(cut)) == (newest + "\n", "there are more; these are the newest 1 (--limit)")


def test_a_dead_letter_is_shown_whole_but_its_prompt_only_if_asked(genqueue, dead, ask):
    prompt = ask("Say é", tokens=9, faults=[ONE_FAULT])
    generation_id = dies(genqueue, prompt)
    told = dead("show", generation_id)
    assert (told.returncode, told.stderr) == (0, "")
    facts = dict(
        re.split("  +", line, maxsplit=1) for line in told.stdout.splitlines() if not line.startswith("error of")
    )
    assert (facts["id"], facts["state"], facts["attempts"]) == (generation_id, "failed", "1")
    assert json.loads(facts["partial_text"]) == prompt.beginning(3)
    assert re.search(r"^error of attempt 1 .*CUDA error", told.stdout, re.MULTILINE)
    found = json.loads(dead("show", generation_id, "--json").stdout)
    assert (found["id"], found["partial_text"]) == (generation_id, prompt.beginning(3))
    assert found["prompt_characters"] == len(prompt)
    assert found["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest() == facts["prompt_sha256"]
    assert [error["attempt"] for error in found["errors"]] == [1]
    assert found["timings"]["total_s"] > 0
    assert prompt not in told.stdout + str(found)
    assert dead("show", generation_id, "--prompt").stdout == prompt
    assert json.loads(dead("show", generation_id, "--prompt", "--json").stdout)["prompt"] == prompt


def test_dead_letters_are_retried_as_new_generations(genqueue, dead, ask):
    prompts = [ask(tokens=9, faults=[ONE_FAULT]) for _ in range(3)]
    ids = [dies(genqueue, prompt) for prompt in prompts]
    one = dead("retry", ids[0])
    assert (one.returncode, one.stderr) == (0, "")
    assert dead("retry", ids[0]).stdout == one.stdout
    rest = dead("retry", "--all", "--generator", "default")
    assert (rest.returncode, rest.stderr) == (0, "")
    new_ids = [*one.stdout.split(), *rest.stdout.split()]
    assert len(set(new_ids)) == 3
    assert [genqueue("tail", new_id).stdout for new_id in new_ids] == [prompt.answer + "\n" for prompt in prompts]
    assert dead("list").stdout == ""
    assert re.search(rf"^retried_as +{new_ids[0]}$", genqueue("status", ids[0]).stdout, re.MULTILINE)


def test_dead_letters_are_dropped(genqueue, dead, ask):
    ids = [dies(genqueue, ask(faults=[GATEWAY]), "-g", "endpoint") for _ in range(3)]
    done = dead("drop", ids[1])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [line.split()[0] for line in dead("list").stdout.splitlines()] == [ids[2], ids[0]]
    assert dead("drop", "--all").returncode == 0
    assert dead("list").stdout == ""
    assert dead("show", ids[0]).returncode == ExitCode.NOT_FOUND


def test_one_that_is_no_dead_letter_keeps_none_of_the_others(genqueue, dead, ask):
    generation_id, finished = dies(genqueue, ask(faults=[GATEWAY]), "-g", "endpoint"), submitted(genqueue, ask())
    genqueue("tail", finished)
    done = dead("retry", NO_SUCH_ID, finished, generation_id)
    assert done.returncode == ExitCode.NOT_FOUND
    assert len(done.stdout.split()) == 1
    unknown, other = done.stderr.splitlines()
    assert unknown.startswith(f"genqueue: no generation {NO_SUCH_ID}")
    assert other == f"genqueue: generation {finished} is no dead letter: it is finished"


@pytest.mark.parametrize("verb", ["retry", "drop"])
@pytest.mark.parametrize(
    "arguments", [[], ["--all", NO_SUCH_ID], ["--generator", "default"], [NO_SUCH_ID, "--generator", "default"]]
)
def test_which_dead_letters_must_be_said(dead, verb, arguments):
    done = dead(verb, *arguments)
    assert done.returncode == ExitCode.USAGE
    assert "give ids, or --all" in only_line(done)


def test_a_full_queue_takes_no_retry(genqueue, dead, ask, db, worker):
    generation_id = dies(genqueue, ask(faults=[GATEWAY]), "-g", "endpoint")
    os.kill(worker.process.pid, signal.SIGSTOP)  # it would announce its own limit again
    try:
        known = db.hget("genqueue:generators", "endpoint")
        db.hset("genqueue:generators", "endpoint", '{"max_queue_depth": 0}')
        done = dead("retry", "--all")
        db.hset("genqueue:generators", "endpoint", known)
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)
    assert (done.returncode, done.stdout) == (ExitCode.QUEUE_FULL, "")
    assert only_line(done) == "queue 'endpoint' holds 0 generations, limit 0"
    assert dead("list").stdout.startswith(generation_id)


@pytest.mark.parametrize(
    ("script", "options", "code", "says", "text_tokens"),
    [
        pytest.param(
            {
                "faults": [
                    {"kind": "status", "status": 422, "body": {"error": "so not\nthis", "error_type": "validation"}}
                ]
            },
            [],
            ExitCode.REJECTED,
            "so not this",
            0,
            id="rejected",
        ),
        pytest.param(
            {"faults": [{"kind": "error", "after_tokens": 3}]}, [], ExitCode.FAILED, "told to fail", 3, id="failed"
        ),
        pytest.param(
            {"faults": [{"kind": "stall", "after_tokens": 3}]},
            ["--deadline-s", "3"],
            ExitCode.EXPIRED,
            "the deadline passed while it ran",
            3,
            id="expired",
        ),
    ],
)
@pytest.mark.parametrize("how", [pytest.param([], id="streamed"), pytest.param(["--no-stream"], id="not-streamed")])
def test_another_end_keeps_the_text_so_far(genqueue, ask, script, options, code, says, text_tokens, how):
    prompt = ask(tokens=20, **script)
    done = genqueue("submit", prompt, *options, *how)
    assert done.returncode == code
    assert says in only_line(done)
    assert done.stdout == (prompt.beginning(text_tokens) + "\n" if text_tokens else "")


def test_a_full_queue_is_said_with_its_depth(genqueue, ask, db):
    db.hset("genqueue:generators", "full", json.dumps({"announced_at": time.time(), "max_queue_depth": 1}))
    try:
        assert genqueue("submit", "x", "-g", "full", "--detach").returncode == 0
        done = genqueue("submit", "x", "-g", "full", "--detach")
    finally:
        db.hdel("genqueue:generators", "full")
    assert (done.returncode, only_line(done)) == (ExitCode.QUEUE_FULL, "queue 'full' holds 1 generations, limit 1")


def test_a_redis_that_dies_under_a_reader_is_one_line(genqueue, start, real_redis):
    with local_redis() as server, redis.Redis.from_url(server.url) as own:
        own.hset("genqueue:generators", "default", '{"max_queue_depth": 1}')
        environ = {
            "GENQUEUE_REDIS_URL": server.url,
            "GENQUEUE_REDIS_TIMEOUT_S": "1",
            "GENQUEUE_OUTAGE_PATIENCE_S": "1",
        }
        generation_id = genqueue("submit", "x", "--detach", **environ).stdout.strip()
        own.xadd(f"genqueue:generation:{generation_id}:log", {"e": STARTED}, id="1-0")
        reader = start("tail", generation_id, "--json", **environ)
        assert reader.stdout.readline()
        server.kill()
        _, told = reader.communicate(timeout=30)
    assert reader.returncode == ExitCode.REDIS
    assert re.fullmatch(rf"genqueue: no answer from Redis at 127.0.0.1:{server.port}: .*\n", told.decode())


def test_stdin_that_is_no_text_is_refused(environ, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "genqueue", "submit", "-"],
        input=b"caf\xe9",
        capture_output=True,
        env=environ,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (
        ExitCode.INVALID_REQUEST,
        b"genqueue: prompt: stdin is no UTF-8 at byte 3\n",
    )


@pytest.mark.parametrize(
    ("closed", "prompt", "code", "out"),
    [
        (">&-", "", ExitCode.OK, False),
        ("2>&-", "", ExitCode.OK, True),
        (">&- 2>&- <&-", "", ExitCode.OK, False),
        ("<&-", "-", ExitCode.INVALID_REQUEST, False),
    ],
)
def test_a_stream_that_is_closed_takes_and_has_nothing(environ, tmp_path, ask, closed, prompt, code, out):
    prompt = prompt or ask(tokens=2)
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m genqueue submit "$1" --max-new-tokens 2 {closed}', sys.executable, prompt],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environ,
    )
    assert done.returncode == code
    assert done.stdout == (f"{prompt.answer}\n" if out else "")
    assert "Traceback" not in done.stderr


def test_a_redis_that_dies_under_a_submit_leaves_its_id(genqueue, start, real_redis):
    with local_redis() as server, redis.Redis.from_url(server.url) as own:
        own.hset("genqueue:generators", "default", '{"max_queue_depth": 1}')
        waits = {"GENQUEUE_REDIS_TIMEOUT_S": "1", "GENQUEUE_OUTAGE_PATIENCE_S": "1"}
        reader = start("submit", "x", GENQUEUE_REDIS_URL=server.url, **waits)
        assert b"no worker has announced itself" in reader.stderr.readline()
        (key,) = own.keys("genqueue:generation:*")
        server.kill()
        _, told = reader.communicate(timeout=30)
    assert reader.returncode == ExitCode.REDIS
    generation_id = key.decode().split(":")[2]
    assert told.decode().startswith(f"genqueue: {generation_id}: no answer from Redis at 127.0.0.1:{server.port}: ")


# --- terminals, pipes, Ctrl-C --------------------------------------------------------------


def test_ctrl_c_leaves_the_generation_running_and_says_how_to_go_on(genqueue, terminal, ask):
    prompt = ask(tokens=60, itl_s=0.1)
    reader = terminal("submit", prompt)
    begun = reader.read1()
    reader.process.send_signal(signal.SIGINT)
    rest, told = reader.communicate()
    assert reader.process.returncode == ExitCode.INTERRUPTED, told
    said = re.fullmatch(
        r"genqueue: the generation goes on; to read on: genqueue (tail (\S+) --from-seq \d+);"
        r" to end it: genqueue cancel \2\n",
        told,
    )
    assert said, told
    followed = genqueue(*said[1].split())
    assert followed.returncode == 0
    assert (begun + rest).removesuffix("\n") + followed.stdout == prompt.answer + "\n"


def test_ctrl_c_before_a_pipe_got_anything_leads_to_the_whole_text(start, client, ask, db, eventually):
    generation = client.submit(ask(tokens=100, itl_s=0.1))
    process = start("tail", generation.id)
    eventually(lambda: generation.status().completion_tokens > 2)
    eventually(lambda: db.pubsub_numsub(keys.result(generation.id))[0][1] > 0)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=30)
    assert (process.returncode, printed) == (ExitCode.INTERRUPTED, b"")
    assert f"to read on: genqueue tail {generation.id};" in told.decode()
    generation.cancel()


SCRIPT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["scripts"]["genqueue"]
AS_SCRIPT = """
import sys
sys.argv[0] = "/somewhere/bin/genqueue"
from {} import {} as main
sys.exit(main())
""".format(*SCRIPT.split(":"))


@pytest.mark.parametrize("imported", ["genqueue.wire.request", "typer._click.core"])
@pytest.mark.parametrize("way", [("-c", AS_SCRIPT), ("-m", "genqueue")], ids=["script", "module"])
def test_ctrl_c_while_it_still_imports_leaves_without_a_traceback(environ, way, imported):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *way, "submit", "-"],  # it would wait for its stdin
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        told = next(line for line in process.stderr if line.split()[-1] == imported)
        process.send_signal(signal.SIGINT)
        told += process.stderr.read()
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in told


def test_a_program_that_imports_us_has_its_ctrl_c(environ):
    code = "import sys; sys.argv[0] = 'mine.py'\nimport genqueue"
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", code], env=environ, stderr=subprocess.PIPE, text=True
    )
    with process:
        next(line for line in process.stderr if line.split()[-1] == "genqueue.wire.request")
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert "KeyboardInterrupt" in told


def test_a_reader_that_leaves_is_no_error(start, ask):
    """A pipe gets its text at the end: this reader has left by then, so the write meets a closed pipe for sure."""
    process = start("submit", ask(tokens=20, itl_s=0.02))
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


@pytest.fixture
def to_full_disk(start):
    """Runs a command whose stdout is on a full disk: its exit code and stderr."""

    def run(*arguments):
        with open("/dev/full", "wb") as full:
            process = start(*arguments, stdout=full)
            _, told = process.communicate(timeout=60)
        return process.returncode, told.decode()

    return run


FULL = "genqueue: stdout cannot be written: No space left on device"


@pytest.mark.parametrize(
    "command", [("status",), ("status", "--json"), ("status", "--workers"), ("doctor",), ("--version",), ("--help",)]
)
def test_a_disk_that_is_full_is_named_in_one_line(to_full_disk, command):
    assert to_full_disk(*command) == (ExitCode.FAILURE, f"{FULL}\n")


@pytest.mark.parametrize("options", [(), ("--json",), ("--detach",)], ids=str)
def test_a_text_that_was_lost_on_a_full_disk_can_be_read_again(to_full_disk, genqueue, ask, options):
    prompt = ask(tokens=4)
    code, told = to_full_disk("submit", prompt, *options)
    said = re.fullmatch(re.escape(FULL) + r"; to read it again: genqueue (tail \S+)\n", told)
    assert said, told
    assert code == ExitCode.FAILURE
    assert to_full_disk(*said[1].split()) == (code, told)
    assert to_full_disk(*said[1].split(), "--json") == (code, told)
    assert genqueue(*said[1].split()).stdout == prompt.answer + "\n"


@pytest.mark.parametrize("command", [("--help",), ("submit", "--help"), ("dead", "--help"), ("worker", "--help")])
def test_nor_is_a_reader_of_help_that_leaves(start, command):
    process = start(*command)
    process.stdout.close()
    assert process.wait(30) == ExitCode.OK
    assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [("status",), ("tail", "x"), ("cancel", "x"), ("submit", "hello")])
def test_a_redis_that_is_not_there_is_named_once_with_the_reason(genqueue, closed_port, command):
    done = genqueue(*command, GENQUEUE_REDIS_URL=f"redis://localhost:{closed_port}", GENQUEUE_OUTAGE_PATIENCE_S="0")
    assert (done.returncode, done.stdout) == (ExitCode.REDIS, "")
    assert only_line(done).endswith(f"no answer from Redis at localhost:{closed_port}: Connection refused")


def test_a_word_that_is_none_of_a_few_is_answered_with_those(genqueue):
    done = genqueue("doctor", "--role", "nobody")
    assert done.returncode == ExitCode.USAGE
    assert only_line(done).startswith("Invalid value for '--role': 'nobody' is not one of 'producer', ")


def test_colour_is_for_terminals_only(start, ask, genqueue):
    prompt = ask(tokens=4)
    leader, follower = pty.openpty()
    process = start("submit", prompt, stdout=follower, stderr=follower)
    shown = b""
    os.close(follower)
    with contextlib.suppress(OSError):  # EIO: the other side has closed
        while read := os.read(leader, 4096):
            shown += read
    os.close(leader)
    assert process.wait(30) == 0
    assert prompt.answer in shown.decode()
    assert b"\x1b[2m" in shown
    piped = genqueue("submit", prompt)
    assert "\x1b" not in piped.stdout + piped.stderr


# --- commands of other packages ------------------------------------------------------------

ONLY_PRODUCER = """
import sys

class NotInstalled:
    blocked = {"celery", "kombu", "huggingface_hub", "httpx2", "aiohttp", "fakeredis"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
sys.argv[0] = "genqueue"
from genqueue.cli.app import main
main()
"""


@pytest.fixture
def producer_only(environ, tmp_path):
    """Runs the command where the packages of the extras are not installed."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", ONLY_PRODUCER, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=environ,
        )

    return run


def test_a_producer_alone_submits_and_reads(producer_only, ask):
    prompt = ask()
    done = producer_only("submit", prompt)
    assert (done.returncode, done.stdout) == (0, prompt.answer + "\n")


def test_a_producer_alone_lists_every_command(producer_only):
    listed = producer_only("--help").stdout
    ours = {entry.name for entry in importlib.metadata.entry_points(group="genqueue.commands")}
    assert ours >= {"worker", "demo", "flower", "tgi-standin", "capacity"}
    assert all(f" {name} " in listed for name in ours)
    assert "From genqueue" not in listed  # each is told of in words


def test_no_command_is_told_of_that_is_not_there():
    entries = importlib.metadata.entry_points(group="genqueue.commands")
    assert app._CONTRIBUTED.keys() == {entry.name for entry in entries if entry.dist.name == "genqueue"}
    extras = importlib.metadata.metadata("genqueue").get_all("Provides-Extra")
    assert {extra for _, extra in app._CONTRIBUTED.values()} <= set(extras)


@pytest.mark.parametrize(
    ("command", "extra"),
    [("worker", "worker"), ("demo", "ops"), ("flower", "monitor"), ("tgi-standin", "ops")],
)
def test_a_producer_alone_is_told_which_extra_is_missing(producer_only, command, extra):
    done = producer_only(command)
    assert done.returncode == ExitCode.CONFIG
    assert only_line(done).endswith(f"which is not installed: pip install 'genqueue[{extra}]'")


def test_a_producer_alone_computes_what_a_fleet_asks_of_redis(producer_only):
    done = producer_only("capacity", "--hosts", "40")
    assert done.returncode == 0, done.stderr
    assert "memory 140%" in done.stdout  # as docs/scaling.md has it: 22 GB for ten hosts, of 64


def test_help_lists_every_exit_code(genqueue):
    told = genqueue("--help").stdout
    for code in ExitCode:
        assert re.search(rf"^ *{code.value} +{re.escape(code.meaning)}", told, re.MULTILINE)


def test_it_says_its_version(genqueue):
    assert genqueue("--version").stdout == f"genqueue {importlib.metadata.version('genqueue')}\n"


def test_the_worker_starts_by_our_command_too(
    start_worker, queue_redis, standin, genqueue, tmp_path, ask, db, eventually
):
    config = tmp_path / "own.toml"
    config.write_text(
        f'[generators.of-cli]\napi_type = "text_generation_inference"\napi_params = {{ url = "{standin.url}" }}\n'
    )
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "genqueue", "worker", "-c", "2", "-n", "cli@%h"],
            env={
                **os.environ,
                "GENQUEUE_REDIS_URL": as_role(queue_redis.url, "worker"),
                "GENQUEUE_CONFIG": str(config),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: db.hexists("genqueue:generators", "of-cli"), within_s=30, what=log.read_text())
        prompt = ask()
        assert genqueue("submit", prompt, "-g", "of-cli").stdout == prompt.answer + "\n"
    finally:
        process.terminate()
        assert process.wait(30) == 0
        db.hdel("genqueue:generators", "of-cli")


def test_an_unexpected_error_is_one_line_unless_asked_for_more(genqueue, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import genqueue.client.sync\n"
        "def broken(*args, **kwargs): raise KeyError('gone')\n"
        "genqueue.client.sync.GenerationClient.submit = broken\n"
    )
    done = genqueue("submit", "x", PYTHONPATH=str(tmp_path))
    assert (done.returncode, "unexpected KeyError: 'gone'" in only_line(done)) == (ExitCode.FAILURE, True)
    assert "Traceback" in genqueue("submit", "x", python_options=["-X", "dev"], PYTHONPATH=str(tmp_path)).stderr
