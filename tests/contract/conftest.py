"""What Redis must do for us is asked of both: fakeredis, which users test with, and a real server."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from genqueue import keys
from genqueue.connection.shared import LoopThread
from genqueue.connection.store import AsyncStore, Store
from genqueue.registry.script import Call
from genqueue_ops.local_redis import LocalRedis, local_redis

from ..support.declared_keys import DeclaredKeys
from ..support.registry import Registry


@pytest.fixture(scope="session")
def fake_redis() -> Iterator[LocalRedis]:
    """fakeredis over TCP in a process of its own, so that sync and async clients share one database."""
    with local_redis("fakeredis") as server:
        yield server


@pytest.fixture(params=["fakeredis", "redis"])
def redis_server(request: pytest.FixtureRequest) -> LocalRedis:
    """Each server in turn; ``redis_url`` follows."""
    server: LocalRedis = request.getfixturevalue("fake_redis" if request.param == "fakeredis" else "real_redis")
    return server


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client, to look at what was stored."""
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    """A loop for the asynchronous shell, so that one test serves both."""
    thread = LoopThread("contract")
    yield thread
    thread.end(asyncio.sleep(0))


@pytest.fixture
def declared_keys(redis_server: LocalRedis, redis_url: str) -> Iterator[DeclaredKeys | None]:
    """On a real Redis scripts may touch what they declare, and nothing else; the fake one knows no users."""
    if redis_server.kind.startswith("fakeredis"):
        yield None
        return
    guard = DeclaredKeys(redis_url)
    yield guard
    refused = guard.refused()
    guard.close()
    assert refused == [], "a script touched what it does not declare"


@pytest.fixture(params=["sync", "async"])
def run(
    request: pytest.FixtureRequest, redis_url: str, loop_thread: LoopThread, declared_keys: DeclaredKeys | None
) -> Iterator[Callable[..., Any]]:
    """Each shell of the store in turn."""
    url = redis_url if declared_keys is None else declared_keys.url
    if request.param == "sync":
        store = Store(url, 5.0)
        yield _permitting(declared_keys, store.run)
        store.close()
    else:
        other = AsyncStore(url, 5.0)
        yield _permitting(declared_keys, lambda call: loop_thread.call(other.run(call)))
        loop_thread.call(other.close())


def _permitting(declared_keys: DeclaredKeys | None, run: Callable[..., Any]) -> Callable[..., Any]:
    def permitted(call: Call[Any]) -> Any:
        if declared_keys is not None:
            declared_keys.permit(call)
        return run(call)

    return permitted


@pytest.fixture
def writer(redis_url: str, raw: redis.Redis, declared_keys: DeclaredKeys | None) -> Iterator[Registry]:
    """The registry through one shell, for tests of those who read it."""
    store = Store(redis_url if declared_keys is None else declared_keys.url, 5.0)
    yield Registry(_permitting(declared_keys, store.run), raw)
    store.close()


@pytest.fixture
def registry(run: Callable[..., Any], raw: redis.Redis) -> Iterator[Registry]:
    """An empty registry; whatever a test did to it, every key but Celery's queues has a TTL."""
    yield Registry(run, raw)
    lasting = [key for key in raw.scan_iter() if raw.ttl(key) == -1]
    assert [key for key in lasting if not key.startswith(keys.QUEUE_PREFIX.encode())] == []
