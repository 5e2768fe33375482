"""The stand-in as a process of its own."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from genqueue.cli.exits import ExitCode
from genqueue_ops.standin.prose import expected_text


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "genqueue_ops.standin", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def standin():
    """Starts one and returns (process, url); ends it with the test."""
    processes = []

    def run(*arguments):
        process = start(*arguments)
        processes.append(process)
        line = process.stdout.readline()
        match = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert match, process.stderr.read()
        return process, match[1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def test_it_says_where_it_listens_and_serves_what_it_was_told(standin):
    _, url = standin("--tokens", "6", "--itl-s", "0.001", "--no-special")
    assert post(f"{url}/generate", {"inputs": "Hi", "parameters": {}}) == {"generated_text": expected_text("Hi", 6)}


def test_faults_and_key_are_taken_from_the_command_line(standin):
    _, url = standin("--api-key", "k", "--faults", '[{"kind": "status", "status": 503}]')
    with pytest.raises(urllib.error.HTTPError) as failed:
        post(f"{url}/generate", {"inputs": "Hi"})
    failed.value.close()
    assert failed.value.code == 401
    with urllib.request.urlopen(f"{url}/standin/script", timeout=10) as response:
        assert json.load(response)["faults"][0]["status"] == 503


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_even_while_it_streams(standin, number):
    process, url = standin("--itl-s", "0.01")
    body = json.dumps({"inputs": "Hi"}).encode()
    request = urllib.request.Request(f"{url}/generate_stream", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        response.readline()
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
    assert process.stderr.read() == ""


def genqueue(*arguments):
    """The same as a command of ``genqueue``."""
    command = [sys.executable, "-m", "genqueue", "tgi-standin", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return done.returncode, line


def test_a_port_that_is_none_is_not_taken_for_another():
    code, line = genqueue("--port", "99999")
    assert code == ExitCode.USAGE
    assert "--port" in line
    assert "65535" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_where_nothing_can_listen_is_named_in_one_line(standin, host):
    _, url = standin()
    port = url.rpartition(":")[2]
    code, line = genqueue("--host", host, "--port", port)
    assert code == ExitCode.CONFIG
    assert line.startswith(f"genqueue: host, port: cannot listen on {host}:{port}: ")


def test_wrong_options_are_explained():
    with start("--faults", '[{"kind": "fire"}]') as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "faults" in errors
