"""The ``genqueue`` command as a process of its own, against a real Redis, worker and stand-in."""

import contextlib
import importlib.metadata
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
import redis

from genqueue.cli import ExitCode
from genqueue_ops.local_redis import local_redis

STARTED = '{"v": 1, "seq": 1, "attempt": 1, "type": "started", "at": 0, "worker": "x"}'
NO_SUCH_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def environ(worker, tmp_path):
    """A producer's: where Redis is, and nothing else of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GENQUEUE_")}
    return {**kept, "GENQUEUE_REDIS_URL": worker.redis_url, "TERMINAL_WIDTH": "200"}


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


def test_text_is_printed_while_it_comes(start, ask):
    prompt = ask(tokens=40, itl_s=0.2)
    process = start("submit", prompt)
    begun = process.stdout.read1()
    assert begun
    assert prompt.answer.startswith(begun.decode())
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


def test_status_says_where_a_generation_is(genqueue, ask):
    generation_id = submitted(genqueue, ask(), "--priority", 3)
    genqueue("tail", generation_id)
    told = genqueue("status", generation_id)
    assert re.search(r"^state +finished\n", told.stdout, re.MULTILINE)
    found = json.loads(genqueue("status", generation_id, "--json").stdout)
    assert (found["id"], found["state"], found["priority"], found["attempt"]) == (generation_id, "finished", 3, 1)
    assert found["timings"].keys() == {"queue_wait_s", "first_text_s", "decode_s", "total_s"}


def test_cancel_ends_it_for_whoever_reads(genqueue, start, ask):
    prompt = ask(tokens=500, itl_s=0.1)
    generation_id = submitted(genqueue, prompt)
    reader = start("tail", generation_id)
    begun = reader.stdout.read1()
    assert genqueue("cancel", generation_id).returncode == 0
    rest, told = reader.communicate(timeout=30)
    assert (reader.returncode, told) == (ExitCode.CANCELLED, b"genqueue: cancelled\n")
    assert prompt.answer.startswith((begun + rest).decode().removesuffix("\n"))
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
            ["--deadline-s", "1"],
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
    db.hset("genqueue:generators", "full", '{"max_queue_depth": 1}')
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


# --- terminals, pipes, Ctrl-C --------------------------------------------------------------


def test_ctrl_c_leaves_the_generation_running_and_says_how_to_go_on(genqueue, start, ask):
    prompt = ask(tokens=60, itl_s=0.1)
    process = start("submit", prompt)
    begun = process.stdout.read1()
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    said = re.fullmatch(
        r"genqueue: the generation goes on; to read on: genqueue (tail (\S+) --from-seq \d+);"
        r" to end it: genqueue cancel \2\n",
        told.decode(),
    )
    assert said, told
    followed = genqueue(*said[1].split())
    assert followed.returncode == 0
    assert (begun + rest).decode().removesuffix("\n") + followed.stdout == prompt.answer + "\n"


def test_a_reader_that_leaves_is_no_error(start, ask):
    process = start("submit", ask(tokens=200, itl_s=0.02))
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


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


def test_control_characters_of_a_model_do_not_reach_a_terminal(capsys, monkeypatch):
    from genqueue import cli

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cli._write("a\x1b[2Jb\tc\n")
    assert capsys.readouterr().out == "a�[2Jb\tc\n"


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
from genqueue.cli import main
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
    assert ours >= {"worker", "demo", "bench", "chaos", "tgi-standin"}
    assert all(f" {name} " in listed for name in ours)


@pytest.mark.parametrize(
    ("command", "extra"),
    [("worker", "worker"), ("demo", "ops"), ("bench", "ops"), ("chaos", "ops"), ("tgi-standin", "ops")],
)
def test_a_producer_alone_is_told_which_extra_is_missing(producer_only, command, extra):
    done = producer_only(command)
    assert done.returncode == ExitCode.CONFIG
    assert only_line(done).endswith(f"which is not installed: pip install 'genqueue[{extra}]'")


def test_help_lists_every_exit_code(genqueue):
    told = genqueue("--help").stdout
    for code in ExitCode:
        assert re.search(rf"^ *{code.value} +{re.escape(code.meaning)}", told, re.MULTILINE)


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
            env={**os.environ, "GENQUEUE_REDIS_URL": queue_redis.url, "GENQUEUE_CONFIG": str(config)},
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
        "import genqueue.client\n"
        "def broken(*args, **kwargs): raise KeyError('gone')\n"
        "genqueue.client.GenerationClient.submit = broken\n"
    )
    done = genqueue("submit", "x", PYTHONPATH=str(tmp_path))
    assert (done.returncode, "unexpected KeyError: 'gone'" in only_line(done)) == (ExitCode.FAILURE, True)
    assert "Traceback" in genqueue("submit", "x", python_options=["-X", "dev"], PYTHONPATH=str(tmp_path)).stderr
