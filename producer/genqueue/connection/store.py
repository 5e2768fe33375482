"""Carry calls to Redis, and hold the one live subscription of a process.

The only module that imports ``redis``.  What is said is in :mod:`genqueue.registry`; here are the
shells, synchronous and asyncio, and :class:`LiveHub`, which gives every reader of a process
its channel over one connection.  No ``redis`` exception leaves this module.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Generic, TypeVar

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import MasterDownError, NoScriptError, ReadOnlyError

from genqueue import keys
from genqueue.connection.address import RedisAddress, read_address
from genqueue.errors import GenqueueError, RedisUnavailableError, StoreError
from genqueue.registry.script import Call

T = TypeVar("T")
logger = logging.getLogger(__name__)

_untyped: Any = redis
"""For what of it has no types."""

_TRIES = 3
_BACKOFF = ExponentialBackoff(cap=0.1, base=0.02)
"""Between them, in seconds."""
_CONNECTIONS = 16
_SILENCE_S = 2.0
"""After so long a silence a process's one subscription is asked for a sign of life, and has as long to give it."""
_REFUSED_S = 1.0
"""Between two tries to subscribe at a Redis that refuses it."""
_END_S = 2.0
"""So long a client's end waits for its thread's loop, on which a silent Redis may hold calls."""
_NOT_CONNECTED = re.compile(r"Error (?P<number>-?\d+) connecting to \S+:\d+\. (?P<rest>.*?)\.?", re.DOTALL)
ENDED = "the client was closed while it was in use"
_LOST = (redis.RedisError, OSError, AttributeError)
"""What a lost subscription raises; AttributeError where one task closes it under the other's hands."""
_PASSING = ("OOM", "maxmemory", "LOADING", "MISCONF")
"""In the errors that whoever runs Redis can mend while a call waits."""
_AWAY = ("READONLY", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "BUSY ")
"""In those of a Redis that serves nobody: a replica now, without its own, or kept by somebody's endless script.

redis-py cuts off the first word of most.
"""


_SENTINEL_TRIES = 2
"""Of what Sentinels manage: each may have to ask all of them, connect and call."""


def _connection_options(address: RedisAddress, timeout_s: float) -> dict[str, Any]:
    """Options under which a dead Redis is reported within ``timeout_s``, all tries included."""
    per_try_s = timeout_s / _TRIES * 0.9
    if address.master is not None:
        per_try_s = timeout_s / _SENTINEL_TRIES * 0.4  # connecting and calling may each take so long
    return {"socket_connect_timeout": per_try_s, "socket_timeout": per_try_s, "protocol": 2}


def _pool_options(timeout_s: float) -> dict[str, Any]:
    # Waiting for a free connection is not an outage; each one comes free in time.
    return {"max_connections": _CONNECTIONS, "timeout": timeout_s}


def _sentinel_options(address: RedisAddress, timeout_s: float) -> dict[str, Any]:
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


def _node_options(address: RedisAddress) -> dict[str, Any]:
    """What each connection is made with."""
    options: dict[str, Any] = _untyped.connection.parse_url(address.url("redis"))
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


def _async_connection(address: RedisAddress) -> type[redis.asyncio.connection.AbstractConnection]:
    if address.master is None:
        return _TlsConnection if address.tls else _Connection
    return _TlsMasterConnection if address.tls else _MasterConnection


def _sentinel_pool(pool: Any, address: RedisAddress, *arguments: Any, **options: Any) -> Any:
    return pool(address.master, *arguments, ssl=address.tls is not None, **options)


class _SentinelPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections to the Sentinels' master; who finds none free waits."""


class _AsyncSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """The same for asyncio."""


def _is_away(error: Exception) -> bool:
    """Whether a Redis answers that serves nobody now.

    It is no master any more: a replica, or who lost its replicas to another master. It was the master when we
    connected, or its name now leads elsewhere. Or somebody's script keeps it.
    """
    # Before Redis 7 a script's error only has the word in its middle.
    return isinstance(error, ReadOnlyError | MasterDownError) or any(word in str(error) for word in _AWAY)


def refuses_for_now(error: Exception) -> bool:
    """Whether an error of redis-py's says that Redis takes no command now, and may later."""
    return isinstance(error, redis.ResponseError) and (_is_away(error) or any(word in str(error) for word in _PASSING))


def _translate(address: RedisAddress, error: Exception) -> GenqueueError:
    """Our error for theirs, naming host and port but never the password."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError) or _is_away(error):
        host, port = address.nodes[0]
        if isinstance(error, redis.AuthenticationError):  # theirs is a ConnectionError
            reason = f"Redis at {address.name} refuses the credentials: {error}"
            return StoreError(reason, may_pass=True)  # until whoever runs it has mended them
        if "[SSL" in str(error):  # nor does this pass by waiting
            return StoreError(f"no TLS with Redis at {address.name}: {error}", may_pass=True)
        return RedisUnavailableError(host, port, _reason(str(error)))
    if "unauthenticated" in str(error):  # a call too long for who has not said who it is: not even NOAUTH
        return StoreError(f"Redis at {address.name} refuses the credentials: there are none", may_pass=True)
    return StoreError(f"Redis refused: {error}", may_pass=refuses_for_now(error))


def _reason(words: str) -> str:
    """redis-py's words without the host and port, which ours name; a name that nobody knows has a number below 0."""
    found = _NOT_CONNECTED.fullmatch(words)
    if found is None:
        return words
    return os.strerror(int(found["number"])) if found["number"].isdecimal() else found["rest"]


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
        options = _node_options(address) | _connection_options(address, timeout_s) | _pool_options(timeout_s)
        if address.master is None:
            kind = redis.SSLConnection if address.tls else redis.Connection
            retry = redis.retry.Retry(_BACKOFF, _TRIES - 1)
            pool = _untyped.BlockingConnectionPool(connection_class=kind, retry=retry, **options)
            self._retry = redis.retry.Retry(NoBackoff(), 0)
        else:
            asked = _sentinel_options(address, timeout_s) | {"retry": redis.retry.Retry(NoBackoff(), 0)}
            self._sentinel = _untyped.sentinel.Sentinel(address.nodes, sentinel_kwargs=asked)
            # redis-py would try to connect as often again in each try to call.
            retry = redis.retry.Retry(NoBackoff(), 0)
            pool = _sentinel_pool(_SentinelPool, address, self._sentinel, retry=retry, **options)
            self._retry = redis.retry.Retry(_BACKOFF, _SENTINEL_TRIES - 1)
        self._redis = redis.Redis.from_pool(pool)
        self._is_closed = False

    def run(self, call: Call[T]) -> T:
        """Carry out one call; raises what its decoder raises, StoreError or RedisUnavailableError."""
        try:
            answer = self._retry.call_with_retry(lambda: self._send(call), lambda error: None)
        except redis.RedisError as error:
            raise _translate(self._address, error) from error
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
            if not _is_away(error):
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
            found = [index for index, command in enumerate(queued) if not may(command)]
            may(("DISCARD",))
        with self._trying() as may:
            return found + [index for index, command in enumerate(live, len(queued)) if not may(command)]

    @contextlib.contextmanager
    def _trying(self) -> Iterator[Callable[[Sequence[str]], bool]]:
        """What says a command on a connection of its own, and whether we may."""
        pool: Any = self._redis.connection_pool
        try:
            connection = pool.get_connection()
        except (redis.RedisError, OSError) as error:
            raise _translate(self._address, error) from error

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
            raise _translate(self._address, error) from error
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
        options = _node_options(address) | _connection_options(address, timeout_s) | _pool_options(timeout_s)
        options["connection_class"] = _async_connection(address)
        if address.master is None:
            retry = redis.asyncio.retry.Retry(_BACKOFF, _TRIES - 1)
            pool = redis.asyncio.BlockingConnectionPool(retry=retry, **options)
            self._retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
        else:
            self._sentinel = _async_sentinel(address, timeout_s)
            retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
            pool = _sentinel_pool(_AsyncSentinelPool, address, self._sentinel, retry=retry, **options)
            self._retry = redis.asyncio.retry.Retry(_BACKOFF, _SENTINEL_TRIES - 1)
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._is_closed = False

    async def run(self, call: Call[T]) -> T:
        """Carry out one call; raises what its decoder raises, StoreError or RedisUnavailableError."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            answer = await self._retry.call_with_retry(lambda: self._send(call), _nothing)
        except redis.RedisError as error:
            end_if_cancelled(cancels)
            raise _translate(self._address, error) from error
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
            if not _is_away(error):
                raise
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            raise redis.ConnectionError(str(error)) from error

    async def close(self) -> None:
        """Close every connection."""
        self._is_closed = True
        await self._redis.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()


async def _nothing(error: Exception) -> None:
    """What is done between two tries."""


def _async_sentinel(address: RedisAddress, timeout_s: float) -> redis.asyncio.sentinel.Sentinel:
    asked = _sentinel_options(address, timeout_s) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    made: redis.asyncio.sentinel.Sentinel = _untyped.asyncio.sentinel.Sentinel(
        list(address.nodes), sentinel_kwargs=asked
    )
    return made


Inbox = Callable[[bytes | None], None]
"""Takes one published message; None means "something may have been missed: read the log"."""


class _Channel:
    """Who listens to one channel, and whether Redis has said that it sends."""

    def __init__(self) -> None:
        self.inboxes: dict[Inbox, asyncio.Event] = {}
        """With what wakes its listener while he waits for the subscription."""
        self.is_answered = False
        self.error: Exception | None = None

    def look(self) -> None:
        """Have everybody read the log."""
        for inbox in tuple(self.inboxes):
            inbox(None)

    def answer(self, error: Exception | None = None) -> None:
        """Let those who wait for the subscription go on."""
        self.error, self.is_answered = error, True
        for woken in self.inboxes.values():
            woken.set()


class LiveHub:
    """Many channels over one subscription connection, on one event loop.

    That the connection was lost, and that it came back, is told by a None in every inbox
    only; a reader that then reads its log has missed nothing.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._address = address = read_address(url)
        self._timeout_s = timeout_s
        self.store = AsyncStore(url, timeout_s)
        """For who talks to Redis from another thread and may have to leave before it answers."""
        self._sentinel: redis.asyncio.sentinel.Sentinel | None = None
        options = _node_options(address) | _connection_options(address, timeout_s)
        # redis-py would reconnect by itself, and in both of our tasks at once, on one connection.
        options["retry"] = redis.asyncio.retry.Retry(NoBackoff(), 0, supported_errors=())
        options["connection_class"] = _async_connection(address)
        pool: redis.asyncio.ConnectionPool
        if address.master is None:
            pool = redis.asyncio.ConnectionPool(**options)
        else:
            self._sentinel = _async_sentinel(address, timeout_s)
            pool = _sentinel_pool(redis.asyncio.sentinel.SentinelConnectionPool, address, self._sentinel, **options)
        tries = _TRIES if address.master is None else _SENTINEL_TRIES
        self._retry = redis.asyncio.retry.Retry(_BACKOFF, tries - 1)
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._pubsub: Any = self._redis.pubsub()  # half of its methods have no types
        self._channels: dict[bytes, _Channel] = {}
        self._told: dict[bytes, _Channel] = {}
        self._changed = asyncio.Event()
        self._sending = asyncio.Lock()
        self._teller: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._rests = False
        self._closed = False

    @contextlib.asynccontextmanager
    async def listen(self, channel: str, inbox: Inbox) -> AsyncIterator[None]:
        """As :meth:`join`, and :meth:`leave` in the end."""
        await self.join(channel, inbox)
        try:
            yield
        finally:
            self.leave(channel, inbox)

    async def join(self, channel: str, inbox: Inbox) -> None:
        """Every message published on ``channel`` from here on goes to ``inbox``, called on this loop, until it leaves.

        Raises:
            RedisUnavailableError: the subscription was not confirmed in time.
            GenqueueError: ``inbox`` left meanwhile, or the hub was closed.
        """
        if self._closed:
            raise GenqueueError(ENDED)
        joined = self._channels.setdefault(channel.encode(), _Channel())
        woken = joined.inboxes[inbox] = asyncio.Event()
        if joined.is_answered:
            woken.set()
        self._change()
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await woken.wait()
            except TimeoutError:
                reason = f"no answer to SUBSCRIBE within {self._timeout_s:g} s"
                raise _translate(self._address, redis.ConnectionError(reason)) from None
            if joined.inboxes.get(inbox) is not woken:
                raise GenqueueError(ENDED)
            if joined.error is not None:
                raise _translate(self._address, joined.error) from joined.error
        except BaseException:
            if joined.inboxes.get(inbox) is woken:  # who was interrupted may have joined again meanwhile
                self.leave(channel, inbox)
            raise

    def leave(self, channel: str, inbox: Inbox) -> None:
        """No message goes to ``inbox`` any more; called on this loop, as often as one likes."""
        name = channel.encode()
        joined = self._channels.get(name)
        if joined is None:
            return
        if woken := joined.inboxes.pop(inbox, None):
            woken.set()
        if not joined.inboxes:
            del self._channels[name]
            self._changed.set()  # for who keeps Redis told; if nobody does there is no subscription to end

    @property
    def _is_connected(self) -> bool:
        connection = self._pubsub.connection
        return connection is not None and connection.is_connected

    @property
    def _is_read(self) -> bool:
        """Whether somebody notices when the connection is lost, and subscribes everything anew."""
        return self._reader is not None and not self._reader.done()

    def _change(self) -> None:
        self._changed.set()
        if not self._closed and (self._teller is None or self._teller.done()):
            self._teller = asyncio.create_task(self._tell(), name="genqueue-subscribe")

    async def _tell(self) -> None:
        """Keep Redis told which channels are wanted: all that changed meanwhile in one command.

        A task of its own: listeners may give up at any moment, and a command that is broken
        off leaves a connection whose answers belong to nobody knows what.
        """
        while True:
            end_if_cancelled()
            await self._changed.wait()
            async with self._sending:
                self._changed.clear()
                if self._rests:  # whoever reads notices what was lost meanwhile
                    self._rests = False
                    self._start_reading()
                if self._is_read and not self._is_connected:
                    continue
                wanted = dict(self._channels)
                missing = [name for name, channel in wanted.items() if self._told.get(name) is not channel]
                try:
                    if missing:
                        await self._subscribe(missing)
                    if left := self._told.keys() - wanted.keys():
                        await self._pubsub.unsubscribe(*left)
                    self._told = wanted
                except _LOST as error:
                    if not self._is_read:
                        for name in missing:
                            wanted[name].answer(error)
                    continue
            # Before the first subscription there is no connection to read from.
            if self._told and not self._is_read:
                self._start_reading()

    def _start_reading(self) -> None:
        self._reader = asyncio.create_task(self._read(), name="genqueue-live")

    async def _subscribe(self, names: Sequence[bytes]) -> None:
        if self._is_read:  # who reads notices that it was lost
            await self._pubsub.subscribe(*names)
        else:
            await self._retry.call_with_retry(lambda: self._pubsub.subscribe(*names), _nothing)

    async def _read(self) -> None:
        silent = False
        while True:
            end_if_cancelled()
            try:
                if not self._is_connected:  # or redis-py would connect here, and not wait for who is sending
                    raise redis.ConnectionError("connection closed")
                message = await self._pubsub.get_message(timeout=_SILENCE_S)
                if message is not None:
                    silent = False
                    self._dispatch(message)
                elif silent:
                    raise redis.ConnectionError(f"no answer to PING within {_SILENCE_S:g} s")
                else:
                    silent = True
                    async with self._sending:
                        await self._pubsub.ping()
            except _LOST as error:
                logger.warning("live subscription lost: %s", _translate(self._address, error))
                for channel in self._channels.values():
                    channel.look()  # who waits learns now that Redis is away, if it is
                if isinstance(
                    error, redis.AuthenticationError | redis.ResponseError
                ):  # it answers, and will say it again
                    for channel in self._channels.values():
                        if not channel.is_answered:
                            channel.answer(error)
                    await asyncio.sleep(_REFUSED_S)
                await self._reconnect()
                silent = False

    def _dispatch(self, message: dict[str, Any]) -> None:
        channel = self._channels.get(message["channel"])
        if channel is None:
            return
        if message["type"] == "message":
            for inbox in tuple(channel.inboxes):
                inbox(message["data"])
        elif message["type"] == "subscribe":
            if not channel.is_answered:
                channel.answer()
            else:  # a connection came back, and with it the subscriptions
                channel.look()

    async def _reconnect(self) -> None:
        """Subscribe everything anew on a fresh connection, for as long as that takes."""
        while True:
            end_if_cancelled()
            async with self._sending:
                with contextlib.suppress(redis.RedisError, OSError):
                    await self._pubsub.aclose()
                self._pubsub = self._redis.pubsub()
                try:
                    # A channel of our own, so that the connection is one even when no reader is left.
                    wanted = dict(self._channels)
                    await self._pubsub.subscribe(keys.SILENT, *wanted)
                    self._told = wanted
                    return
                except (redis.RedisError, OSError):
                    pass
            await asyncio.sleep(0.2)

    async def rest(self) -> None:
        """Keep the connection, but nothing on the loop until somebody listens again; only if nobody does now."""
        async with self._sending:  # so no command is broken off
            if self._channels:
                return
            self._rests = self._rests or self._is_read
            if self._is_read and self._told:
                with contextlib.suppress(*_LOST):
                    await self._pubsub.unsubscribe(*self._told)
                self._told = {}
            try:
                await end_tasks(self._teller, self._reader)
            finally:
                if self._channels:  # who came meanwhile told him who had to go
                    self._change()

    async def close(self) -> None:
        """End the subscription; readers hear nothing more."""
        self._closed = True
        await end_tasks(self._teller)  # first: it starts the other
        await end_tasks(self._reader)
        for channel, joined in tuple(self._channels.items()):
            for inbox in tuple(joined.inboxes):
                self.leave(channel.decode(), inbox)
        with contextlib.suppress(redis.RedisError, OSError):
            await self._pubsub.aclose()
        await self._redis.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()
        await self.store.close()


def end_if_cancelled(cancels: int = 0) -> None:
    """Raise the cancel that somebody below swallowed; every loop that is not to outlive its cancel asks.

    Before Python 3.12 ``asyncio.wait_for``, with which redis-py sends, may swallow one.  ``cancels`` are those that
    the task had before what it awaited.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling() > cancels:
        raise asyncio.CancelledError


async def end_tasks(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel them until they have ended: a cancel may be swallowed, see :func:`end_if_cancelled`."""
    while left := [task for task in tasks if task is not None and not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)


class LoopThread:
    """An event loop in a daemon thread, for synchronous code that needs one."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._is_ended = False
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], within_s: float | None = None) -> T:
        """Run ``work`` on the loop and wait for it; after ``within_s`` it is cancelled, and TimeoutError raised.

        Raises:
            GenqueueError: the thread was ended.
        """
        running = self._started(work)
        try:
            return running.result(within_s)
        except concurrent.futures.CancelledError:
            raise GenqueueError(ENDED) from None
        except BaseException:  # the time is over, or Ctrl-C; for what it raised itself this does nothing
            running.cancel()
            raise

    def post(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run ``work`` on the loop without waiting for it; nothing happens once the thread was ended."""
        with contextlib.suppress(GenqueueError):
            self._started(work)

    def _started(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._is_ended:
            work.close()
            raise GenqueueError(ENDED)
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Cancel what runs on the loop, run ``work``, and end the thread, within ``_END_S`` whatever Redis does."""
        ending = self._started(self._wind_up(work))
        self._is_ended = True
        if threading.current_thread() is self._thread:  # a client forgotten by all is finalised here
            ending.add_done_callback(lambda _: self.loop.stop())
            return
        try:
            ending.result()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    async def _wind_up(self, work: Coroutine[Any, Any, None]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        with contextlib.closing(work), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                # First: a call whose connection is closed under it would make another.
                await end_tasks(*others)
                await work


class _Users(Generic[T]):
    """A thing that several clients share, and how many do."""

    def __init__(self, thing: T) -> None:
        self.thing = thing
        self.count = 0


_loop_hubs: dict[tuple[asyncio.AbstractEventLoop, str, float], _Users[LiveHub]] = {}
_thread_hubs: dict[tuple[int, str, float], _Users[tuple[LiveHub, LoopThread]]] = {}
_thread_hubs_lock = threading.RLock()  # a client may be finalised while another one is made


class shared_hub:
    """The running loop's hub for ``url``, shared by clients of equal settings; the last to leave closes it.

    No generator: a loop that ends closes its generators, all at once.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s

    async def __aenter__(self) -> LiveHub:
        for closed in [key for key in tuple(_loop_hubs) if key[0].is_closed()]:
            _loop_hubs.pop(closed, None)
        self._key = (asyncio.get_running_loop(), self._url, self._timeout_s)
        users = _loop_hubs.get(self._key) or _loop_hubs.setdefault(
            self._key, _Users(LiveHub(self._url, self._timeout_s))
        )
        users.count += 1
        return users.thing

    async def __aexit__(self, *exc_info: object) -> None:
        users = _loop_hubs[self._key]
        users.count -= 1
        if users.count == 0:
            del _loop_hubs[self._key]
            await users.thing.close()


@contextlib.contextmanager
def shared_hub_thread(url: str, timeout_s: float) -> Iterator[tuple[LiveHub, LoopThread]]:
    """This process's hub for synchronous readers of ``url`` with equal settings; the last to leave closes it."""
    key = (os.getpid(), url, timeout_s)  # a forked child has no thread of its parent: it gets its own
    with _thread_hubs_lock:
        users = _thread_hubs.get(key)
        if users is None:
            users = _thread_hubs[key] = _Users((LiveHub(url, timeout_s), LoopThread("genqueue-live")))
        users.count += 1
    try:
        yield users.thing
    finally:
        with _thread_hubs_lock:
            users.count -= 1
            is_last = users.count == 0 and key[0] == os.getpid()  # a forked child leaves its parent's alone
            if is_last:
                del _thread_hubs[key]
        if is_last:
            hub, thread = users.thing
            thread.end(hub.close())
