"""What clients of one process share: a hub, and the thread on whose loop it runs."""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Generic

from genqueue.connection.errors import ENDED
from genqueue.connection.hub import LiveHub
from genqueue.connection.store import T
from genqueue.connection.tasks import end_tasks
from genqueue.errors import GenqueueError

_END_S = 2.0
"""So long a client's end waits for its thread's loop, on which a silent Redis may hold calls."""


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
