"""Carry calls to Redis, synchronously or not.

:mod:`genqueue.registry` says what is asked; here are the two shells.  No ``redis`` exception leaves
them (:mod:`genqueue.connection.errors`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from genqueue.connection.address import read_address
from genqueue.connection.errors import is_away, translate
from genqueue.connection.options import (
    BACKOFF,
    SENTINEL_TRIES,
    TRIES,
    AsyncSentinelPool,
    SentinelPool,
    async_connection,
    async_sentinel,
    between_tries,
    connection_options,
    node_options,
    pool_options,
    sentinel_options,
    sentinel_pool,
    untyped_redis,
)
from genqueue.connection.tasks import end_if_cancelled
from genqueue.errors import GenqueueError, RedisUnavailableError, StoreError
from genqueue.registry.script import Call

logger = logging.getLogger(__name__)
T = TypeVar("T")

_RETRY_S = 0.2


def _decoded(call: Call[T], answer: Any) -> T:
    """The answer as ours; for one that nobody of ours wrote a StoreError, which does not quote it."""
    try:
        return call.decode(answer)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, GenqueueError):
            raise
        raise StoreError(f"what Redis answers to {call.name!r} cannot be read: {type(error).__name__}") from None


class Store:
    """The synchronous shell; threads may share one."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._address = address = read_address(url)
        self._sentinel: redis.sentinel.Sentinel | None = None
        options = node_options(address) | connection_options(address, timeout_s) | pool_options(timeout_s)
        if address.master is None:
            kind = redis.SSLConnection if address.tls else redis.Connection
            retry = redis.retry.Retry(BACKOFF, TRIES - 1)
            pool = untyped_redis.BlockingConnectionPool(connection_class=kind, retry=retry, **options)
            self._retry = redis.retry.Retry(NoBackoff(), 0)
        else:
            sentinel_kwargs = sentinel_options(address, timeout_s) | {"retry": redis.retry.Retry(NoBackoff(), 0)}
            self._sentinel = untyped_redis.sentinel.Sentinel(address.nodes, sentinel_kwargs=sentinel_kwargs)
            # redis-py would try to connect as often again in each try to call.
            retry = redis.retry.Retry(NoBackoff(), 0)
            pool = sentinel_pool(SentinelPool, address, self._sentinel, retry=retry, **options)
            self._retry = redis.retry.Retry(BACKOFF, SENTINEL_TRIES - 1)
        self._redis = redis.Redis.from_pool(pool)
        self._is_closed = False

    def run(self, call: Call[T]) -> T:
        """Carry out one call; raises what its decoder raises, StoreError or RedisUnavailableError."""
        try:
            answer = self._retry.call_with_retry(lambda: self._send(call), lambda error: None)
        except redis.RedisError as error:
            raise translate(self._address, error) from error
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C: redis-py may have kept a connection that is half made
                self._redis.connection_pool.disconnect(inuse_connections=False)
            raise
        finally:
            if self._is_closed:  # by another thread, or before: redis-py has connected anew
                self._redis.connection_pool.disconnect(inuse_connections=False)
        return _decoded(call, answer)

    def _send(self, call: Call[Any]) -> Any:
        execute: Callable[..., Any] = self._redis.execute_command
        try:
            if call.script is None:
                return execute(*call.arguments)
            try:
                return execute("EVALSHA", call.script.sha1, *call.arguments)
            except NoScriptError:  # Redis is new or was restarted
                return execute("EVAL", call.script.source, *call.arguments)
        except redis.ResponseError as error:
            if not is_away(error):
                raise
            self._redis.connection_pool.disconnect(inuse_connections=False)
            raise redis.ConnectionError(str(error)) from error

    def ask(self, call: Call[T]) -> T | None:
        """As :meth:`run`; None where Redis refuses, as to a user without the right, or where a command is hidden."""
        try:
            return self.run(call)
        except RedisUnavailableError:
            raise
        except StoreError:
            return None

    def refused(self, queued: Sequence[Sequence[str]], live: Sequence[Sequence[str]]) -> list[int] | None:
        """Which commands our user may not say, by number, ``live`` after ``queued``; None if not even MULTI.

        Redis looks at rights when it puts a command into a transaction, and ours is discarded: nothing
        runs.  Those of ``live`` (which may stand in none) are said one after the other.  Both on
        connections that then end.
        """
        with self._trying() as may:
            if not may(("MULTI",)):
                return None
            refused = [index for index, command in enumerate(queued) if not may(command)]
            may(("DISCARD",))
        with self._trying() as may:
            return refused + [index for index, command in enumerate(live, len(queued)) if not may(command)]

    @contextlib.contextmanager
    def _trying(self) -> Iterator[Callable[[Sequence[str]], bool]]:
        """What says a command on a connection of its own, and whether we may."""
        pool: Any = self._redis.connection_pool
        try:
            connection = pool.get_connection()
        except (redis.RedisError, OSError) as error:
            raise translate(self._address, error) from error

        def may(command: Sequence[str]) -> bool:
            connection.send_command(*command)
            try:
                connection.read_response()
            except redis.exceptions.NoPermissionError:
                return False
            except redis.ResponseError as error:
                # EXEC is refused as one that aborts its transaction; out of memory, read only … are no lack of rights.
                return "NOPERM" not in str(error)
            return True

        try:
            yield may
        except redis.RedisError as error:
            raise translate(self._address, error) from error
        finally:
            connection.disconnect()
            pool.release(connection)

    def close(self) -> None:
        """Close every connection."""
        self._is_closed = True
        self._redis.close()
        if self._sentinel is not None:
            self._sentinel.close()


class AsyncStore:
    """The asyncio shell; belongs to the loop that first uses it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._address = address = read_address(url)
        self._sentinel: redis.asyncio.sentinel.Sentinel | None = None
        options = node_options(address) | connection_options(address, timeout_s) | pool_options(timeout_s)
        options["connection_class"] = async_connection(address)
        if address.master is None:
            retry = redis.asyncio.retry.Retry(BACKOFF, TRIES - 1)
            pool = redis.asyncio.BlockingConnectionPool(retry=retry, **options)
            self._retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
        else:
            self._sentinel = async_sentinel(address, timeout_s)
            retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
            pool = sentinel_pool(AsyncSentinelPool, address, self._sentinel, retry=retry, **options)
            self._retry = redis.asyncio.retry.Retry(BACKOFF, SENTINEL_TRIES - 1)
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._is_closed = False

    async def run(self, call: Call[T]) -> T:
        """Carry out one call; raises what its decoder raises, StoreError or RedisUnavailableError."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            answer = await self._retry.call_with_retry(lambda: self._send(call), between_tries)
        except redis.RedisError as error:
            end_if_cancelled(cancels)
            raise translate(self._address, error) from error
        finally:
            if self._is_closed:  # meanwhile: redis-py has connected anew
                await self._redis.connection_pool.disconnect()
        end_if_cancelled(cancels)
        return _decoded(call, answer)

    async def _send(self, call: Call[Any]) -> Any:
        execute: Callable[..., Awaitable[Any]] = self._redis.execute_command
        try:
            if call.script is None:
                return await execute(*call.arguments)
            try:
                return await execute("EVALSHA", call.script.sha1, *call.arguments)
            except NoScriptError:  # Redis is new or was restarted
                return await execute("EVAL", call.script.source, *call.arguments)
        except redis.ResponseError as error:
            if not is_away(error):
                raise
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            raise redis.ConnectionError(str(error)) from error

    async def close(self) -> None:
        """Close every connection."""
        self._is_closed = True
        await self._redis.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()


class Runs(Protocol):
    """Carries out one call."""

    async def run(self, call: Call[T]) -> T:
        """As :meth:`AsyncStore.run`."""


class PatientStore:
    """Sends each call until Redis answers; so each must be one that may be sent twice.

    Args:
        store: carries out one try.
        round_trip: entered around each try, to measure it.
    """

    def __init__(self, store: Runs, round_trip: Callable[[Call[Any]], AbstractContextManager[None]]) -> None:
        self._store = store
        self._round_trip = round_trip

    async def run(self, call: Call[T]) -> T:
        """Carry out one call; raises StoreError only where another try would be refused as well."""
        while True:
            try:
                with self._round_trip(call):
                    return await self._store.run(call)
            except RedisUnavailableError as error:
                logger.warning("events wait: %s", error)
            except StoreError as error:
                if not error.may_pass:
                    raise
                logger.error("events wait: %s", error)  # out of memory, read-only: for whoever runs Redis to mend
            await asyncio.sleep(_RETRY_S)
