"""The shell under both components: find the generator, submit, read, and cancel with the caller.

What is submitted, and what becomes of the events, is the components' own.
"""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from haystack.dataclasses import StreamingCallbackT, StreamingChunk

from genqueue import calls, keys, plans
from genqueue.client import AsyncGenerationClient, GenerationClient
from genqueue.errors import GenqueueError
from genqueue.haystack.target import Named, Placed
from genqueue.messages import Event, GenerationResult
from genqueue.places import places
from genqueue.plans import Plan
from genqueue.settings import Settings

Verb = Literal["submit", "submit_chat"]


class Reader(Protocol):
    """Makes streaming chunks of one generation's events."""

    def feed(self, batch: Sequence[Event]) -> list[StreamingChunk]:
        """What can be shown of events that came together; what came with the end waits for it."""

    def end(self, result: GenerationResult) -> list[StreamingChunk]:
        """What is left to show, with what only the result knows."""


@dataclass(slots=True)
class _Shared:
    """A loop's client, and how many runs use it."""

    client: AsyncGenerationClient
    users: int = 0


class Queue:
    """Where one component's prompts go; connects when it is first used.

    A generation is cancelled when its caller is interrupted or its callback raises: without a
    queue the server would have seen the connection close.  One that has ended stays as it is.

    Args:
        target: which generator the component means.
    """

    def __init__(self, target: Named | Placed) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._client: GenerationClient | None = None
        self._async_clients: dict[asyncio.AbstractEventLoop, _Shared] = {}

    def warm_up(self) -> None:
        """Connect, and find the generator.

        Raises:
            ConfigError: the settings cannot work, or no worker has a generator for the place.
            RedisUnavailableError: within ``redis_timeout_s``.
        """
        self._find(self._connected())

    def close(self) -> None:
        """Close the synchronous connections; they come back with the next use."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def run(
        self, verb: Verb, arguments: dict[str, Any], reader: Reader | None, callback: StreamingCallbackT | None
    ) -> GenerationResult:
        """Queue ``client.<verb>(**arguments)``, show its chunks to ``callback`` if there is one, return its result."""
        client = self._connected()
        submit = getattr(client, verb)
        generation = submit(**arguments, generator=self._find(client), stream=reader is not None)
        try:
            if reader is not None and callback is not None:
                with contextlib.closing(
                    client._listen(generation, keys.live(generation.id), _batches(generation.id))
                ) as batches:
                    for batch in batches:
                        for chunk in reader.feed(batch):
                            callback(chunk)
            result: GenerationResult = generation.result()
            if reader is not None and callback is not None:
                for chunk in reader.end(result):
                    callback(chunk)
        except BaseException:
            with contextlib.suppress(GenqueueError):
                generation.cancel()
            raise
        return result

    async def run_async(
        self, verb: Verb, arguments: dict[str, Any], reader: Reader | None, callback: StreamingCallbackT | None
    ) -> GenerationResult:
        """As :meth:`run`, awaited; ``callback`` may be either kind."""
        async with self._connected_here() as client:
            submit = getattr(client, verb)
            generator = await self._find_async(client)
            generation = await submit(**arguments, generator=generator, stream=reader is not None)
            try:
                if reader is not None and callback is not None:
                    reading = client._listen(generation, keys.live(generation.id), _batches(generation.id))
                    async with contextlib.aclosing(reading) as batches:
                        async for batch in batches:
                            await _show(reader.feed(batch), callback)
                result: GenerationResult = await generation.result()
                if reader is not None and callback is not None:
                    await _show(reader.end(result), callback)
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
        if isinstance(self._target, Named):
            return self._target.generator
        return self._target.find(_places_of(client.settings, client._store.run(calls.known_places())))

    async def _find_async(self, client: AsyncGenerationClient) -> str:
        if isinstance(self._target, Named):
            return self._target.generator
        return self._target.find(_places_of(client.settings, await client._store.run(calls.known_places())))


def _batches(generation_id: str) -> Plan[list[Event]]:
    return plans.in_batches(plans.follow(generation_id, 0))


async def _show(chunks: Sequence[StreamingChunk], callback: StreamingCallbackT) -> None:
    for chunk in chunks:
        shown = callback(chunk)
        if inspect.isawaitable(shown):
            await shown


def _places_of(settings: Settings, known: dict[str, set[str]]) -> dict[str, set[str]]:
    """For each generator where its model is: as workers say, and the producer's own settings."""
    own = {name: set(places(generator)) for name, generator in settings.generators.items()}
    return {name: own.get(name, set()) | known.get(name, set()) for name in own.keys() | known.keys()}
