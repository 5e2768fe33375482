"""How each connection is made: its limits of time, TLS, and the way to a master by its Sentinels."""

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import ExponentialBackoff, NoBackoff

from genqueue.connection.address import RedisAddress

untyped_redis: Any = redis
"""redis-py, for those of its parts that have no types."""

TRIES = 3
BACKOFF = ExponentialBackoff(cap=0.1, base=0.02)
"""Between them, in seconds."""
_CONNECTIONS = 16
SENTINEL_TRIES = 2
"""Of what Sentinels manage: each may have to ask all of them, connect and call."""


async def between_tries(error: Exception) -> None:
    """redis-py awaits this between two tries of an asyncio client, which have nothing to do there."""


def connection_options(address: RedisAddress, timeout_s: float) -> dict[str, Any]:
    """Options under which a dead Redis is reported within ``timeout_s``, all tries included."""
    per_try_s = timeout_s / TRIES * 0.9
    if address.master is not None:
        per_try_s = timeout_s / SENTINEL_TRIES * 0.4  # connecting and calling may each take so long
    return {"socket_connect_timeout": per_try_s, "socket_timeout": per_try_s, "protocol": 2}


def pool_options(timeout_s: float) -> dict[str, Any]:
    """How many connections a client has, and how long a call waits for one of them."""
    # Waiting for a free connection is not an outage; each one comes free in time.
    return {"max_connections": _CONNECTIONS, "timeout": timeout_s}


def sentinel_options(address: RedisAddress, timeout_s: float) -> dict[str, Any]:
    """How the Sentinels are asked: where none answers, each try takes a third of the time, however many they are."""
    per_node_s = timeout_s * 0.3 / len(address.nodes)
    return {
        "socket_connect_timeout": per_node_s,
        "socket_timeout": per_node_s,
        "protocol": 2,
        "username": address.sentinel_username,
        "password": address.sentinel_password,
        **({"ssl": True, **address.tls} if address.tls else {}),
    }


def node_options(address: RedisAddress) -> dict[str, Any]:
    """What each connection is made with."""
    options: dict[str, Any] = untyped_redis.connection.parse_url(address.url("redis"))
    if options.get("db"):
        options["db"] = str(options["db"])  # no number goes to hiredis, see Call
    if address.master is not None:  # the Sentinels say where
        del options["host"], options["port"]
    return options | dict(address.tls or {})


class _Sends(redis.asyncio.connection.AbstractConnection):
    """A connection that was reset before it sends says so as any other does.

    uvloop raises a RuntimeError there, which redis-py lets pass.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """As redis-py's."""
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            if "handler is closed" not in str(error):
                raise
            raise redis.ConnectionError("the connection was closed before it could send") from error


class _Connection(_Sends, redis.asyncio.Connection):
    """To a Redis at an address."""


class _SendsTls(_Sends):
    """One over TLS, which waits for no goodbye of its peer once it is closed: the event loop may end before."""

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        """As redis-py's."""
        writer = self._writer
        try:
            await super().disconnect(*arguments, **options)
        finally:
            if writer is not None:
                writer.transport.abort()


class _TlsConnection(_SendsTls, redis.asyncio.SSLConnection):
    """To a Redis at an address, over TLS."""


class _MasterConnection(_Sends, redis.asyncio.sentinel.SentinelManagedConnection):
    """To the Sentinels' master."""


class _TlsMasterConnection(_SendsTls, redis.asyncio.sentinel.SentinelManagedSSLConnection):
    """The same over TLS."""


def async_connection(address: RedisAddress) -> type[redis.asyncio.connection.AbstractConnection]:
    """The class of an asyncio client's connections."""
    if address.master is None:
        return _TlsConnection if address.tls else _Connection
    return _TlsMasterConnection if address.tls else _MasterConnection


def sentinel_pool(pool: Any, address: RedisAddress, *arguments: Any, **options: Any) -> Any:
    """A pool of connections to whichever node is the master."""
    return pool(address.master, *arguments, ssl=address.tls is not None, **options)


class SentinelPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections to the Sentinels' master; who finds none free waits."""


class AsyncSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """The same for asyncio."""


def async_sentinel(address: RedisAddress, timeout_s: float) -> redis.asyncio.sentinel.Sentinel:
    """The Sentinels that an asyncio client asks for the master."""
    options = sentinel_options(address, timeout_s) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    sentinel: redis.asyncio.sentinel.Sentinel = untyped_redis.asyncio.sentinel.Sentinel(
        list(address.nodes), sentinel_kwargs=options
    )
    return sentinel
