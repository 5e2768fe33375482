"""One reader at work: an iterator over what a flow has for its caller, synchronous or awaited.

It keeps its place.  A caller whose wait for the next item was broken off (a time-out, a cancelled task, Ctrl-C) may
ask again and misses nothing.  After an error every further item is that error, never a silent end.  A reader listens
to its channel from its first item on, until it ends, fails, is closed or is forgotten.  What it does there is decided
in :mod:`genqueue.client.flows`.
"""

import asyncio
import contextlib
import queue
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Self

from genqueue.client.flows import WAIT, Flow, ItemT, Wait
from genqueue.client.patience import Deadline, Patience
from genqueue.connection.errors import ENDED
from genqueue.connection.hub import Inbox, LiveHub
from genqueue.connection.shared import LoopThread
from genqueue.connection.store import AsyncStore, Store
from genqueue.errors import GenqueueError, RedisUnavailableError, StreamRestartedError
from genqueue.registry.script import Call

_RETRY_S = 0.3
_POLL_S = 5.0
"""After so long a silence a reader looks into the log, should the channel have lost something."""
_INBOX_MESSAGES = 1000
_INBOX_MESSAGE_BYTES = 64_000
_BUSY = "this reader waits for its next item already, in another thread or task"
_OTHER_LOOP = "this reader belongs to the event loop that first used it"
_INTERRUPTED = "this reader was interrupted in the middle of a step: read on with from_seq"


def _inbox(kept: "queue.SimpleQueue[bytes | None] | asyncio.Queue[bytes | None]") -> Inbox:
    """What puts messages into ``kept``, within bounds: of more than a slow reader should keep it reads the log."""

    def put(message: bytes | None) -> None:
        if message is not None and len(message) > _INBOX_MESSAGE_BYTES:
            message = None
        if kept.qsize() >= _INBOX_MESSAGES:
            with contextlib.suppress(queue.Empty, asyncio.QueueEmpty):
                while True:
                    kept.get_nowait()
            message = None
        kept.put_nowait(message)

    return put


@dataclass(frozen=True, slots=True)
class Reader(Generic[ItemT]):
    """What a reader reads.

    Attributes:
        handle: the generation's, which goes to the caller with a StreamRestartedError.
        channel: where messages for ``flow`` are published.
        deadline: where the items stop short.
        patience: how long an outage of Redis is borne.
        span: entered when the reader begins, left when it ends.
    """

    handle: object
    channel: str
    flow: Flow[list[ItemT]]
    deadline: Deadline
    patience: Patience
    span: AbstractContextManager[None]


class _Place(Generic[ItemT]):
    """Where a reader is: the step that it has to answer, and what it has not handed out yet."""

    def __init__(self, reader: Reader[ItemT]) -> None:
        self._reader = reader
        self._ready: deque[ItemT] = deque()
        self._step: Call[Any] | Wait | None = None
        self._error: Exception | None = None
        self._is_over = False
        self._is_busy = False
        self._is_listening = False
        self._leave: Callable[[], object] | None = None
        self._has_begun = False
        self._open_span: AbstractContextManager[None] | None = None

    def _enter_span(self) -> None:
        if not self._has_begun:
            self._has_begun = True  # first: a span whose beginning is broken off cannot be entered again
            self._reader.span.__enter__()
            self._open_span = self._reader.span

    def _go_on(self, answer: Any) -> None:
        """Answer the step: the next one comes, or items, or the end."""
        try:
            step = self._reader.flow.send(answer)
            if isinstance(step, list):
                self._ready.extend(step)
                self._step = None
            else:
                self._step = step
        except StopIteration:
            self._end(None)
        except Exception as error:
            if isinstance(error, StreamRestartedError):
                error.generation = self._reader.handle
            self._end(error)
        except BaseException:  # what the flow knew is gone with it
            self._end(GenqueueError(_INTERRUPTED))
            raise

    def _time_left_s(self) -> float:
        """How long to wait for a message at most; 0 when the time is over."""
        return self._reader.deadline.wait_s(time.monotonic(), _POLL_S)

    def _bears(self, error: RedisUnavailableError) -> bool:
        """Whether the reader goes on without Redis; else this is its end."""
        if self._reader.patience.ends(time.monotonic()):
            self._end(error)
        return not self._is_over

    def _end(self, error: Exception | None) -> None:
        """Nothing more comes; an error is said again whenever more is asked for."""
        if self._is_over:
            return
        self._is_over, self._error, self._step = True, error, None
        if self._leave is not None:
            self._leave()
        span, self._open_span = self._open_span, None
        if span is not None:
            span.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _break_off(self, error: Exception | None = None) -> None:
        """End it from outside, also while somebody waits for the next item, who is told so."""
        if self._is_busy:
            error = error or GenqueueError(ENDED)
        else:
            self._ready.clear()
        self._end(error)


def _leave(loop: asyncio.AbstractEventLoop, hub: LiveHub, channel: str, inbox: Inbox) -> None:
    """Stop listening: from any thread, and from a finaliser."""
    try:
        is_here = asyncio.get_running_loop() is loop
    except RuntimeError:
        is_here = False
    if is_here:
        hub.leave(channel, inbox)
        return
    with contextlib.suppress(RuntimeError):  # the loop is closed, and its subscriptions with it
        loop.call_soon_threadsafe(hub.leave, channel, inbox)


class Reading(_Place[ItemT], Iterator[ItemT]):
    """The items of one reader, as they come; closes itself at its end, and may be used in a ``with`` statement.

    For one thread at a time; another may close it, and who waits for an item is then told so by a GenqueueError.
    """

    def __init__(self, reader: Reader[ItemT], store: Store, live: Callable[[], tuple[LiveHub, LoopThread]]) -> None:
        super().__init__(reader)
        self._store = store
        self._connect = live
        self._live: tuple[LiveHub, LoopThread] | None = None
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inbox = _inbox(self._messages)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ItemT:
        if self._ready:
            return self._ready.popleft()
        if self._is_busy:
            raise GenqueueError(_BUSY)
        self._is_busy = True
        try:
            while not self._ready:
                if self._is_over:
                    raise self._error or StopIteration
                if not self._is_listening:
                    self._listen()
                elif self._step is None:
                    self._go_on(None)
                else:
                    answer = self._answer(self._step)
                    if not self._is_over:
                        self._go_on(answer)
            return self._ready.popleft()
        finally:
            self._is_busy = False

    def close(self) -> None:
        """Read no further; the generation goes on."""
        self._break_off()
        self._messages.put(None)

    def end_with_client(self) -> None:
        """Its client is closed."""
        self._break_off(GenqueueError(ENDED))
        self._messages.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _listen(self) -> None:
        self._enter_span()
        channel, inbox, deadline = self._reader.channel, self._inbox, self._reader.deadline
        try:
            hub, thread = self._live = self._live or self._connect()
            if self._leave is None:  # before it is needed: Ctrl-C may come at any moment
                finalizer = weakref.finalize(self, _leave, thread.loop, hub, channel, inbox)
                finalizer.atexit = False
                self._leave = finalizer
            thread.call(hub.join(channel, inbox), deadline.answer_s(time.monotonic()))
            self._is_listening = True
        except RedisUnavailableError as error:
            if self._bears(error):
                time.sleep(deadline.wait_s(time.monotonic(), _RETRY_S))
        except TimeoutError:
            self._end(None)
        except Exception as error:
            self._end(error)

    def _answer(self, step: Call[Any] | Wait) -> Any:
        deadline = self._reader.deadline
        if isinstance(step, Wait):
            wait_s = self._time_left_s()
            if wait_s == 0:
                self._end(None)
                return None
            try:
                return self._messages.get(timeout=wait_s)
            except queue.Empty:
                return None
        while not self._is_over:
            within_s = deadline.answer_s(time.monotonic())
            try:
                if within_s is None:
                    answer = self._store.run(step)
                else:  # a blocking call cannot be broken off
                    assert self._live is not None, "who asks listens"
                    hub, thread = self._live
                    answer = thread.call(hub.store.run(step), within_s)
                self._reader.patience.there()
                return answer
            except RedisUnavailableError as error:
                if self._bears(error):
                    time.sleep(deadline.wait_s(time.monotonic(), _RETRY_S))
            except TimeoutError:
                self._end(None)
            except Exception as error:
                self._end(error)
        return None


class AsyncReading(_Place[ItemT], AsyncIterator[ItemT]):
    """:class:`Reading`, awaited: closes itself at its end, and may be used in an ``async with`` statement.

    For one task at a time; another may close it.  An ``anext`` that is cancelled, or timed out, has taken nothing.
    """

    def __init__(self, reader: Reader[ItemT], store: AsyncStore, live: Callable[[], Awaitable[LiveHub]]) -> None:
        super().__init__(reader)
        self._store = store
        self._connect = live
        self._hub: LiveHub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._inbox = _inbox(self._messages)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        if self._ready:
            return self._ready.popleft()
        if self._is_busy:
            raise GenqueueError(_BUSY)
        self._is_busy = True
        try:
            while not self._ready:
                if self._is_over:
                    raise self._error or StopAsyncIteration
                if not self._is_listening:
                    await self._listen()
                elif self._step is None:
                    self._go_on(None)
                elif self._step is WAIT and not self._messages.empty() and self._time_left_s() > 0:
                    self._go_on(self._messages.get_nowait())  # without a coroutine more for each message
                else:
                    answer = await self._answer(self._step)
                    if not self._is_over:
                        self._go_on(answer)
            return self._ready.popleft()
        finally:
            self._is_busy = False

    async def aclose(self) -> None:
        """Read no further; the generation goes on."""
        self._break_off()
        self._messages.put_nowait(None)

    def end_with_client(self) -> None:
        """Its client is closed."""
        self._break_off(GenqueueError(ENDED))
        self._messages.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _listen(self) -> None:
        self._enter_span()
        channel, inbox, deadline = self._reader.channel, self._inbox, self._reader.deadline
        try:
            hub = self._hub = self._hub or await self._connect()
            self._loop = asyncio.get_running_loop()
            if self._leave is None:
                finalizer = weakref.finalize(self, _leave, self._loop, hub, channel, inbox)
                finalizer.atexit = False
                self._leave = finalizer
            async with asyncio.timeout(deadline.answer_s(time.monotonic())):
                await hub.join(channel, inbox)
            self._is_listening = True
        except RedisUnavailableError as error:
            if self._bears(error):
                await asyncio.sleep(deadline.wait_s(time.monotonic(), _RETRY_S))
        except TimeoutError:
            self._end(None)
        except Exception as error:
            self._end(error)

    async def _answer(self, step: Call[Any] | Wait) -> Any:
        if self._loop is not asyncio.get_running_loop():
            raise GenqueueError(_OTHER_LOOP)
        deadline = self._reader.deadline
        if isinstance(step, Wait):
            wait_s = self._time_left_s()
            if wait_s == 0:
                self._end(None)
                return None
            try:
                async with asyncio.timeout(wait_s):
                    return await self._messages.get()
            except TimeoutError:
                return None
        while not self._is_over:
            try:
                async with asyncio.timeout(deadline.answer_s(time.monotonic())):
                    answer = await self._store.run(step)
                self._reader.patience.there()
                return answer
            except RedisUnavailableError as error:
                if self._bears(error):
                    await asyncio.sleep(deadline.wait_s(time.monotonic(), _RETRY_S))
            except TimeoutError:
                self._end(None)
            except Exception as error:
                self._end(error)
        return None
