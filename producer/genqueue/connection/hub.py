"""A process's one subscription, and who listens to what on it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import NoBackoff

from genqueue import keys
from genqueue.connection.address import read_address
from genqueue.connection.errors import ENDED, translate
from genqueue.connection.options import (
    BACKOFF,
    SENTINEL_TRIES,
    TRIES,
    async_connection,
    async_sentinel,
    between_tries,
    connection_options,
    node_options,
    sentinel_pool,
)
from genqueue.connection.store import AsyncStore
from genqueue.connection.tasks import end_if_cancelled, end_tasks
from genqueue.errors import GenqueueError

logger = logging.getLogger(__name__)
_SILENCE_S = 2.0
"""After so long a silence a process's one subscription is asked for a sign of life, and has as long to give it."""
_REFUSED_S = 1.0
"""Between two tries to subscribe at a Redis that refuses it."""
_LOST = (redis.RedisError, OSError, AttributeError)
"""What a lost subscription raises; AttributeError where one task closes it under the other's hands."""


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
        options = node_options(address) | connection_options(address, timeout_s)
        # redis-py would reconnect by itself, and in both of our tasks at once, on one connection.
        options["retry"] = redis.asyncio.retry.Retry(NoBackoff(), 0, supported_errors=())
        options["connection_class"] = async_connection(address)
        pool: redis.asyncio.ConnectionPool
        if address.master is None:
            pool = redis.asyncio.ConnectionPool(**options)
        else:
            self._sentinel = async_sentinel(address, timeout_s)
            pool = sentinel_pool(redis.asyncio.sentinel.SentinelConnectionPool, address, self._sentinel, **options)
        tries = TRIES if address.master is None else SENTINEL_TRIES
        self._retry = redis.asyncio.retry.Retry(BACKOFF, tries - 1)
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._pubsub: Any = self._redis.pubsub()  # half of its methods have no types
        self._channels: dict[bytes, _Channel] = {}
        self._subscribed: dict[bytes, _Channel] = {}
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
                raise translate(self._address, redis.ConnectionError(reason)) from None
            if joined.inboxes.get(inbox) is not woken:
                raise GenqueueError(ENDED)
            if joined.error is not None:
                raise translate(self._address, joined.error) from joined.error
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
                missing = [name for name, channel in wanted.items() if self._subscribed.get(name) is not channel]
                try:
                    if missing:
                        await self._subscribe(missing)
                    if left := self._subscribed.keys() - wanted.keys():
                        await self._pubsub.unsubscribe(*left)
                    self._subscribed = wanted
                except _LOST as error:
                    if not self._is_read:
                        for name in missing:
                            wanted[name].answer(error)
                    continue
            # Before the first subscription there is no connection to read from.
            if self._subscribed and not self._is_read:
                self._start_reading()

    def _start_reading(self) -> None:
        self._reader = asyncio.create_task(self._read(), name="genqueue-live")

    async def _subscribe(self, names: Sequence[bytes]) -> None:
        if self._is_read:  # who reads notices that it was lost
            await self._pubsub.subscribe(*names)
        else:
            await self._retry.call_with_retry(lambda: self._pubsub.subscribe(*names), between_tries)

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
                logger.warning("live subscription lost: %s", translate(self._address, error))
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
                    self._subscribed = wanted
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
            if self._is_read and self._subscribed:
                with contextlib.suppress(*_LOST):
                    await self._pubsub.unsubscribe(*self._subscribed)
                self._subscribed = {}
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
