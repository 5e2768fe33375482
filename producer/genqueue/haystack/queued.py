"""The shell under both components: find the generator, submit, read, and cancel with the caller.

What is submitted, and what becomes of the events, is the components' own.
"""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from haystack.dataclasses import StreamingCallbackT, StreamingChunk

from genqueue.client import AsyncGenerationClient, GenerationClient
from genqueue.errors import GenerationExpiredError, GenqueueError, ResultTimeoutError
from genqueue.haystack.chunks import Chunks
from genqueue.haystack.target import Named, Placed
from genqueue.messages import GenerationResult

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


@dataclass(slots=True)
class _Shared:
    """A loop's client, and how many runs use it."""

    client: AsyncGenerationClient
    users: int = 0


class Queue:
    """Where one component's prompts go; connects when it is first used.

    A generation is cancelled when its caller is interrupted or its callback raises: without a
    queue the server would have seen the connection close.  One that has ended stays as it is; one
    whose submit was interrupted the client cancels.

    Args:
        target: which generator the component means.
    """

    def __init__(self, target: Named | Placed) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._client: GenerationClient | None = None
        self._async_clients: dict[asyncio.AbstractEventLoop, _Shared] = {}

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
        """Close the synchronous connections; they come back with the next use."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def run(self, verb: Verb, arguments: dict[str, Any], shown: Shown | None) -> GenerationResult:
        """Queue ``client.<verb>(**arguments)``, show its chunks if they are to be shown, return its result."""
        client = self._connected()
        submit, generator = getattr(client, verb), self._find(client)
        patience = _Patience(arguments["deadline_s"])
        generation = submit(**arguments, generator=generator, stream=shown is not None)
        try:
            if shown is not None:
                with contextlib.closing(generation.batches(timeout_s=patience.left_s())) as batches:
                    for batch in batches:
                        shown.show(shown.chunks.feed(batch))
            with patience.ends():
                result: GenerationResult = generation.result(patience.left_s())
            if shown is not None:
                shown.show(shown.chunks.end(result))
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
                    async with contextlib.aclosing(generation.batches(timeout_s=patience.left_s())) as batches:
                        async for batch in batches:
                            await shown.show_async(shown.chunks.feed(batch))
                with patience.ends():
                    result: GenerationResult = await generation.result(patience.left_s())
                if shown is not None:
                    await shown.show_async(shown.chunks.end(result))
            except BaseException:
                with contextlib.suppress(GenqueueError):
                    await generation.cancel()
                raise
            return result

    def _connected(self) -> GenerationClient:
        with self._lock:
            if self._client is None:
                self._client = GenerationClient()
            return self._client

    @contextlib.asynccontextmanager
    async def _connected_here(self) -> AsyncIterator[AsyncGenerationClient]:
        """The client of the running loop, which all runs on it share; the last to leave closes it."""
        loop = asyncio.get_running_loop()
        shared = self._async_clients.get(loop) or self._async_clients.setdefault(loop, _Shared(AsyncGenerationClient()))
        shared.users += 1
        try:
            yield shared.client
        finally:
            shared.users -= 1
            if shared.users == 0:
                del self._async_clients[loop]
                await shared.client.close()

    def _find(self, client: GenerationClient) -> str:
        return self._target.generator if isinstance(self._target, Named) else self._target.find(client.places())

    async def _find_async(self, client: AsyncGenerationClient) -> str:
        return self._target.generator if isinstance(self._target, Named) else self._target.find(await client.places())
