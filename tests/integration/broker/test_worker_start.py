"""A worker that cannot work says why in one line, by both ways of starting it."""

import importlib.util
import os
import subprocess
import sys

import pytest
import redis

from ...support.roles import as_role, guarded_redis

GOOD = '[generators.default]\napi_type = "text_generation_inference"\napi_params = { url = "http://127.0.0.1:1" }\n'

CELERY = [sys.executable, "-m", "celery", "-A", "genqueue_worker.app", "worker"]

BY = {
    "celery": [*CELERY, "-P", "threads", "-c", "2"],
    "genqueue": [sys.executable, "-c", "from genqueue.cli.app import main; main()", "worker", "-c", "2"],
}


def start(command, folder, toml, clean, **environ):
    if toml is not None:
        (folder / "genqueue.toml").write_text(toml)
    return subprocess.run(
        command,
        cwd=folder,
        env={**clean, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def clean(tmp_path):
    """An environment without settings, wide enough for a long line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GENQUEUE_", "HF_"))}
    return {**kept, "HF_HOME": str(tmp_path), "COLUMNS": "300"}


CASES = [
    pytest.param(None, {}, ["no generators", "genqueue.toml"], id="no-settings"),
    pytest.param("", {}, ["no generators"], id="empty-file"),
    pytest.param("[generators\n", {}, ["genqueue.toml is no TOML"], id="broken-toml"),
    pytest.param(
        GOOD.replace("http://127.0.0.1:1", "localhost:8080"),
        {},
        ["generators.default.api_params.url", "http://"],
        id="bad-url",
    ),
    pytest.param(
        GOOD.replace("text_generation_inference", "tgi"),
        {},
        ["generators.default.api_type", "text_generation_inference"],
        id="bad-api-type",
    ),
    pytest.param(
        GOOD.replace('url = "http://127.0.0.1:1"', ""),
        {},
        ["generators.default", "api_params.url: needed"],
        id="no-url",
    ),
    pytest.param(
        '[generators.default]\napi_type = "serverless_inference_api"\napi_params = {}\n',
        {},
        ["generators.default", "api_params.model: needed"],
        id="no-model",
    ),
    pytest.param('[generators.default]\napi_params = { url = "http://x" }\n', {}, ["api_type"], id="no-api-type"),
    pytest.param(GOOD + "max_tokens = 5\n", {}, ["generators.default.max_tokens"], id="unknown-key"),
    pytest.param(
        GOOD + "generation_kwargs = { max_tokens = 5 }\n", {}, ["max_tokens: unknown; known: "], id="unknown-kwarg"
    ),
    pytest.param(GOOD, {"GENQUEUE_REDIS_URL": "http://:secret-pw@localhost"}, ["redis_url"], id="redis-url"),
    pytest.param(GOOD, {"GENQUEUE_LOG_TTL_S": "soon"}, ["log_ttl_s"], id="bad-variable"),
    pytest.param(None, {"GENQUEUE_CONFIG": "nowhere.toml"}, ["GENQUEUE_CONFIG", "nowhere.toml"], id="no-such-file"),
]


@pytest.mark.parametrize(
    ("by", "toml", "environ", "words"),
    [
        *(pytest.param("celery", *case.values, id=f"celery-{case.id}") for case in CASES),
        # The same check: a few show that it is one line here too.
        *(pytest.param("genqueue", *case.values, id=f"genqueue-{case.id}") for case in CASES[1:8:2]),
    ],
)
def test_settings_that_cannot_work_are_named_in_one_line(tmp_path, clean, by, toml, environ, words):
    ran = start(BY[by], tmp_path, toml, clean, **environ)
    said = ran.stdout + ran.stderr
    assert ran.returncode != 0
    assert "Traceback" not in said
    assert all(word in said for word in words), said
    assert "secret-pw" not in said
    lines = [line for line in said.splitlines() if line.strip() and "SecurityWarning" not in line]
    assert len(lines) == 1, said


@pytest.mark.parametrize("pool", ["prefork", "processes", "solo", "gevent", "eventlet"])
def test_a_pool_that_is_none_of_threads_is_refused_in_one_line(tmp_path, clean, pool):
    ran = start([*CELERY, "-P", pool], tmp_path, GOOD, clean)
    *_, last = ran.stderr.splitlines()
    assert ran.returncode != 0
    if pool in ("gevent", "eventlet") and importlib.util.find_spec(pool) is None:
        assert last == f"ModuleNotFoundError: No module named {pool!r}"  # Celery's: it has not looked at -A yet
        return
    known_as = pool.replace("processes", "prefork")
    assert last == f"genqueue: the pool {known_as!r} does not run generations: leave -P out, or write -P threads"
    assert "Traceback" not in ran.stderr


def test_importing_the_app_reads_no_settings(tmp_path, clean):
    (tmp_path / "genqueue.toml").write_text("[broken")
    ran = subprocess.run(
        [sys.executable, "-c", "import genqueue_worker.app, genqueue_worker.tasks; print('imported')"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == ("imported\n", 0), ran.stderr


@pytest.mark.parametrize("by", BY)
def test_a_user_without_a_workers_rights_ends_the_start(by, clean, tmp_path, real_redis):
    """The producer's address on a worker's host, most likely."""
    with guarded_redis(tmp_path) as server:
        if as_role(server.url, "producer") == server.url:
            pytest.skip(f"these rules need Redis 7, here is {server.kind}")
        done = start(BY[by], tmp_path, GOOD, clean, GENQUEUE_REDIS_URL=as_role(server.url, "producer"))
        with redis.Redis.from_url(server.url) as operator:
            operator.acl_log_reset()  # meant
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "SecurityWarning" not in line]
    assert line == (
        f"genqueue: Redis at 127.0.0.1:{server.port} lets its user 'genqueue-producer' not do all that a worker does: "
        "genqueue doctor --role worker says what"
    )


def test_a_token_that_no_variable_holds_is_a_warning(start_worker, queue_redis, standin):
    named = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}, "token_env": ["NOBODYS_KEY"]}
    worker = start_worker({"tokenless": named}, queue_redis.url)
    assert "tokenless: no variable holds its token: NOBODYS_KEY" in worker.log
