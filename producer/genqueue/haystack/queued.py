"""The shell under both components: find the generator, submit, read, and cancel with the caller.

What is submitted, and what becomes of the events, is the components' own.
"""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from haystack.dataclasses import StreamingCallbackT, StreamingChunk

from genqueue.client.aio import AsyncGenerationClient
from genqueue.client.sync import GenerationClient
from genqueue.errors import GenerationExpiredError, GenqueueError, ResultTimeoutError, StreamRestartedError
from genqueue.haystack.chunks import Chunks
from genqueue.haystack.target import Named, Placed
from genqueue.settings import Settings, load_settings
from genqueue.wire.result import GenerationResult

Verb = Literal["submit", "submit_chat"]

_GRACE_S = 5.0
"""So long after a deadline a worker, if there is one, has ended the generation."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How one generation is shown while it runs.

    Attributes:
        callback: is given each of ``chunks``; may be a coroutine function where it is awaited.
    """

    chunks: Chunks[Any]
    callback: StreamingCallbackT

    def show(self, chunks: Sequence[StreamingChunk]) -> None:
        """Call the callback."""
        for chunk in chunks:
            self.callback(chunk)

    async def show_async(self, chunks: Sequence[StreamingChunk]) -> None:
        """Call the callback, and await it if it has to be."""
        for chunk in chunks:
            shown = self.callback(chunk)
            if inspect.isawaitable(shown):
                await shown


class _Patience:
    """How long a run is waited for: a worker ends what is late, but there may be none."""

    def __init__(self, deadline_s: float | None) -> None:
        self._deadline_s = deadline_s
        self._end_s = None if deadline_s is None else time.monotonic() + deadline_s + _GRACE_S

    def left_s(self) -> float | None:
        """Seconds from now; None is no limit."""
        return None if self._end_s is None else max(0.0, self._end_s - time.monotonic())

    @contextlib.contextmanager
    def ends(self) -> Iterator[None]:
        """What waited too long is late, whoever says so."""
        try:
            yield
        except ResultTimeoutError as error:
            words = f"its deadline of {self._deadline_s:g} s passed, and no worker was there to end it"
            raise GenerationExpiredError(words) from error


@dataclass(slots=True, eq=False)
class _Kept:
    """A loop's client, what closes it, and how many runs use it."""

    client: AsyncGenerationClient
    closing: AsyncGenerator[None, None]
    users: int = 0


_kept: dict[asyncio.AbstractEventLoop, list[_Kept]] = {}
"""All components on a loop share its client; where their settings differ, it has one for each."""


async def _closing(client: AsyncGenerationClient, of_loop: list[_Kept]) -> AsyncGenerator[None, None]:
    """Closes ``client`` when it is closed itself, at the latest by the loop.

    ``asyncio.run`` and its like close every generator that has begun: once all tasks have ended, before
    they close the loop.
    """
    try:
        yield
    finally:
        of_loop[:] = [kept for kept in of_loop if kept.client is not client]
        await client.close()


async def _kept_here(settings: Settings) -> _Kept:
    for loop in tuple(_kept):
        if loop.is_closed():
            _kept.pop(loop, None)
    of_loop = _kept.setdefault(asyncio.get_running_loop(), [])
    for kept in of_loop:
        if kept.client.settings == settings:
            return kept
    client = AsyncGenerationClient(settings)
    of_loop.append(kept := _Kept(client, _closing(client, of_loop)))
    await anext(kept.closing)
    return kept


class Queue:
    """Where one component's prompts go; connects when it is first used.

    A generation is cancelled when its caller is interrupted or its callback raises: without a
    queue the server would have seen the connection close.  One that has ended stays as it is; one
    whose submit was interrupted the client cancels.  One that began anew with another text than its
    callback was given goes on: the error leads to its result.

    Args:
        target: which generator the component means.
    """

    def __init__(self, target: Named | Placed) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._client: GenerationClient | None = None
        self._settings: Settings | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[Named | Placed]]:
        """A copy connects for itself."""
        return type(self), (self._target,)

    def warm_up(self) -> None:
        """Connect, and find the generator.

        Raises:
            ConfigError: the settings cannot work, or no worker has a generator for the place.
            UnknownGeneratorError: no worker has one of this name.
            RedisUnavailableError: within ``redis_timeout_s``.
        """
        client = self._connected()
        if isinstance(self._target, Named):
            self._target.check(client.generators())
        else:
            self._target.find(client.places())

    async def warm_up_async(self) -> None:
        """As :meth:`warm_up`, without keeping the running loop waiting."""
        async with self._connected_here() as client:
            if isinstance(self._target, Named):
                self._target.check(await client.generators())
            else:
                self._target.find(await client.places())

    def close(self) -> None:
        """Close the synchronous connections; they come back with the next use, as the settings then are."""
        with self._lock:
            client, self._client, self._settings = self._client, None, None
        if client is not None:
            client.close()

    async def close_async(self) -> None:
        """As :meth:`close`, and close the running loop's connections, unless a run of some component uses them."""
        settings = self._settings
        self.close()
        for kept in tuple(_kept.get(asyncio.get_running_loop(), ())):
            if kept.client.settings == settings and kept.users == 0:
                await kept.closing.aclose()

    def run(self, verb: Verb, arguments: dict[str, Any], shown: Shown | None) -> GenerationResult:
        """Queue ``client.<verb>(**arguments)``, show its chunks if they are to be shown, return its result."""
        client = self._connected()
        submit, generator = getattr(client, verb), self._find(client)
        patience = _Patience(arguments["deadline_s"])
        generation = submit(**arguments, generator=generator, stream=shown is not None)
        try:
            if shown is not None:
                with generation.batches(timeout_s=patience.left_s()) as batches:
                    for batch in batches:
                        shown.show(shown.chunks.feed(batch))
            with patience.ends():
                result: GenerationResult = generation.result(patience.left_s())
            if shown is not None:
                shown.show(shown.chunks.end(result))
        except StreamRestartedError:  # whose result() gives the new text
            raise
        except BaseException:
            with contextlib.suppress(GenqueueError):
                generation.cancel()
            raise
        return result

    async def run_async(self, verb: Verb, arguments: dict[str, Any], shown: Shown | None) -> GenerationResult:
        """As :meth:`run`, awaited."""
        async with self._connected_here() as client:
            submit, generator = getattr(client, verb), await self._find_async(client)
            patience = _Patience(arguments["deadline_s"])
            generation = await submit(**arguments, generator=generator, stream=shown is not None)
            try:
                if shown is not None:
                    async with generation.batches(timeout_s=patience.left_s()) as batches:
                        async for batch in batches:
                            await shown.show_async(shown.chunks.feed(batch))
                with patience.ends():
                    result: GenerationResult = await generation.result(patience.left_s())
                if shown is not None:
                    await shown.show_async(shown.chunks.end(result))
            except StreamRestartedError:
                raise
            except BaseException:
                with contextlib.suppress(GenqueueError):
                    await generation.cancel()
                raise
            return result

    def _connected(self) -> GenerationClient:
        with self._lock:
            if self._client is None:
                self._client = GenerationClient(self._known_settings())
            return self._client

    def _known_settings(self) -> Settings:
        """Read once."""
        settings = self._settings
        if settings is None:
            settings = self._settings = load_settings()
        return settings

    @contextlib.asynccontextmanager
    async def _connected_here(self) -> AsyncIterator[AsyncGenerationClient]:
        """The client of the running loop, which outlives its use by one run.

        But no task does: a loop that is closed without more ado would lose it, and Python say so.
        """
        kept = await _kept_here(self._known_settings())
        kept.users += 1
        try:
            yield kept.client
        finally:
            kept.users -= 1
            if kept.users == 0:
                await kept.client.rest()

    def _find(self, client: GenerationClient) -> str:
        return self._target.generator if isinstance(self._target, Named) else self._target.find(client.places())

    async def _find_async(self, client: AsyncGenerationClient) -> str:
        return self._target.generator if isinstance(self._target, Named) else self._target.find(await client.places())
