"""What Redis must do for us is asked of both: fakeredis, which users test with, and a real server."""

from collections.abc import Iterator

import pytest

from genqueue_ops.local_redis import LocalRedis, local_redis


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
