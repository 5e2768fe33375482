"""The asyncio client: the same verbs as the blocking one's, awaited."""

import asyncio
import contextlib
import uuid
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

from genqueue import keys
from genqueue.client import flows
from genqueue.client.arguments import (
    OnFailure,
    cancel,
    check_count,
    check_id,
    dead_letters,
    fields_of,
    places_of,
    reader_of,
    request_of,
    retry,
    submission_of,
)
from genqueue.client.flows import Flow, ItemT, Wait
from genqueue.client.reading import AsyncReading, Reader
from genqueue.client.views import DeadLetter, DeadLetterDetail, GenerationStatus
from genqueue.connection.hub import LiveHub
from genqueue.connection.shared import shared_hub
from genqueue.connection.store import AsyncStore
from genqueue.errors import GenqueueError, ResultTimeoutError
from genqueue.registry import fleet
from genqueue.registry.fleet import Overview, WorkerStatus
from genqueue.registry.script import Call
from genqueue.registry.submitting import Accepted
from genqueue.settings import Settings, load_settings
from genqueue.tracing import Origin, sending
from genqueue.wire.events import Chunk, Event
from genqueue.wire.result import GenerationResult


class AsyncGeneration:
    """The handle of :class:`~genqueue.client.sync.Generation`, awaited."""

    id: str

    def __init__(self, client: "AsyncGenerationClient", generation_id: str, origin: Origin | None = None) -> None:
        check_id(generation_id)
        self._client = client
        self._origin = origin
        self.id = generation_id

    def __repr__(self) -> str:
        return f"AsyncGeneration({self.id!r})"

    def events(self, from_seq: int = 0) -> AsyncReading[Event]:
        """As :meth:`~genqueue.client.sync.Generation.events`."""
        check_count("from_seq", from_seq)
        return self._client._listen(reader_of(self, keys.live(self.id), flows.follow(self.id, from_seq)))

    def batches(
        self, from_seq: int = 0, timeout_s: float | None = None, *, resets: bool = False
    ) -> AsyncReading[list[Event]]:
        """As :meth:`~genqueue.client.sync.Generation.batches`."""
        check_count("from_seq", from_seq)
        flow = flows.batches(self.id, from_seq, resets=resets)
        return self._client._listen(reader_of(self, keys.live(self.id), flow, timeout_s))

    def stream(self, from_seq: int = 0, *, resets: bool = False) -> AsyncReading[Chunk]:
        """As :meth:`~genqueue.client.sync.Generation.stream`."""
        check_count("from_seq", from_seq)
        flow = flows.stream(self.id, from_seq, resets=resets)
        return self._client._listen(reader_of(self, keys.live(self.id), flow))

    async def result(self, timeout_s: float | None = None) -> GenerationResult:
        """As :meth:`~genqueue.client.sync.Generation.result`."""
        reader = reader_of(self, keys.result(self.id), flows.result(self.id), timeout_s)
        async with self._client._listen(reader) as results:
            async for result in results:
                return result
        raise ResultTimeoutError(self.id, timeout_s or 0.0)

    async def status(self) -> GenerationStatus:
        """As :meth:`~genqueue.client.sync.Generation.status`."""
        (status,) = [item async for item in self._client._steps(flows.status(self.id))]
        return status

    async def cancel(self) -> bool:
        """As :meth:`~genqueue.client.sync.Generation.cancel`."""
        (is_cancelled,) = [item async for item in self._client._steps(cancel(self.id, self._client.settings))]
        return is_cancelled


class AsyncGenerationClient:
    """The asyncio client; belongs to the loop that first uses it, until it is closed.

    Args:
        settings: read from the environment and ``GENQUEUE_CONFIG`` if not given.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self._store = AsyncStore(self.settings.redis_url, self.settings.redis_timeout_s)
        self._resources = contextlib.AsyncExitStack()
        self._hub: LiveHub | None = None
        self._readings: weakref.WeakSet[AsyncReading[Any]] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def submit(
        self,
        prompt: str,
        *,
        generator: str = "default",
        generation_kwargs: dict[str, Any] | None = None,
        stop_words: Sequence[str] | None = None,
        stream: bool = True,
        priority: int = 5,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
        on_failure: OnFailure = "continue",
    ) -> AsyncGeneration:
        """As :meth:`~genqueue.client.sync.GenerationClient.submit`."""
        return await self._submit(idempotency_key, fields_of(locals()))

    async def submit_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generator: str = "default",
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stop_words: Sequence[str] | None = None,
        stream: bool = True,
        priority: int = 5,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
        on_failure: OnFailure = "continue",
    ) -> AsyncGeneration:
        """As :meth:`~genqueue.client.sync.GenerationClient.submit_chat`."""
        return await self._submit(idempotency_key, fields_of(locals()))

    async def _submit(self, idempotency_key: str | None, fields: dict[str, Any]) -> AsyncGeneration:
        self._stay_on_loop()
        request, generation_id = request_of(self.settings, idempotency_key, fields), str(uuid.uuid4())
        with sending(request.generator, generation_id) as traceparent:
            submission = submission_of(self.settings, generation_id, request, idempotency_key, traceparent)
            accept = self._store.run if idempotency_key is not None else self._accepted
            accepted_id = (await accept(submission)).generation_id
        origin = Origin(request.generator, traceparent if accepted_id == generation_id else None)
        return AsyncGeneration(self, accepted_id, origin)

    async def _accepted(self, submission: Call[Accepted]) -> Accepted:
        """The answer; who does not wait for it would never know the id, so what was accepted is then cancelled."""
        submitting = asyncio.create_task(self._store.run(submission))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.create_task(self._take_back(submitting)))
            raise

    async def _take_back(self, submitting: asyncio.Task[Accepted]) -> None:
        with contextlib.suppress(GenqueueError):
            await self.generation((await submitting).generation_id).cancel()

    def generation(self, generation_id: str) -> AsyncGeneration:
        """The handle of a generation that somebody submitted; whether it exists shows on use."""
        return AsyncGeneration(self, generation_id)

    async def dead_letters(self, generator: str | None = None, limit: int | None = 100) -> list[DeadLetter]:
        """As :meth:`~genqueue.client.sync.GenerationClient.dead_letters`."""
        return [letter async for letter in self._steps(dead_letters(generator, limit))]

    async def dead_letter(self, generation_id: str) -> DeadLetterDetail:
        """As :meth:`~genqueue.client.sync.GenerationClient.dead_letter`."""
        (letter,) = [item async for item in self._steps(flows.dead_letter(self.generation(generation_id).id))]
        return letter

    async def retry(self, generation_id: str) -> AsyncGeneration:
        """As :meth:`~genqueue.client.sync.GenerationClient.retry`."""
        (new_id,) = [item async for item in self._steps(retry(self.generation(generation_id).id, self.settings))]
        return self.generation(new_id)

    async def drop(self, generation_id: str) -> None:
        """As :meth:`~genqueue.client.sync.GenerationClient.drop`."""
        async for _ in self._steps(
            flows.drop(self.generation(generation_id).id, result_ttl_s=self.settings.result_ttl_s)
        ):
            pass

    async def workers(self) -> list[WorkerStatus]:
        """As :meth:`~genqueue.client.sync.GenerationClient.workers`."""
        self._stay_on_loop()
        return await self._store.run(fleet.read_workers())

    async def overview(self) -> Overview:
        """As :meth:`~genqueue.client.sync.GenerationClient.overview`."""
        self._stay_on_loop()
        return await self._store.run(fleet.overview(list(self.settings.generators)))

    async def generators(self) -> set[str]:
        """As :meth:`~genqueue.client.sync.GenerationClient.generators`."""
        self._stay_on_loop()
        return self.settings.generators.keys() | await self._store.run(fleet.known_generators())

    async def places(self) -> dict[str, set[str]]:
        """As :meth:`~genqueue.client.sync.GenerationClient.places`."""
        self._stay_on_loop()
        return places_of(self.settings, await self._store.run(fleet.known_places()))

    async def close(self) -> None:
        """As :meth:`~genqueue.client.sync.GenerationClient.close`."""
        self._stay_on_loop()
        for reading in tuple(self._readings):
            reading.end_with_client()
        await self._resources.aclose()
        self._hub = None
        await self._store.close()
        # Should it be used again: on any loop.
        self._store = AsyncStore(self.settings.redis_url, self.settings.redis_timeout_s)
        self._loop = None

    async def rest(self) -> None:
        """Leave the loop without a task of this client's until its next use; the connections stay."""
        if self._hub is not None:
            await self._hub.rest()

    def _stay_on_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop not in {None, loop}:
            raise GenqueueError(
                "this AsyncGenerationClient belongs to the event loop that first used it: "
                "close it there before another one uses it, or make one for each loop"
            )
        self._loop = loop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _listen(self, reader: Reader[ItemT]) -> AsyncReading[ItemT]:
        reading = AsyncReading(reader, self._store, self._live)
        self._readings.add(reading)
        return reading

    async def _live(self) -> LiveHub:
        self._stay_on_loop()
        if self._hub is None:
            self._hub = await self._resources.enter_async_context(
                shared_hub(self.settings.redis_url, self.settings.redis_timeout_s)
            )
        return self._hub

    async def _steps(self, flow: Flow[ItemT]) -> AsyncIterator[ItemT]:
        """The items of a flow that waits for nothing."""
        self._stay_on_loop()
        answer: Any = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Call):
                answer = await self._store.run(step)
            else:
                assert not isinstance(step, Wait), "who waits listens"
                yield step
