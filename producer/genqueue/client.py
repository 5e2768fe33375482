"""What a backend service uses: submit a generation, read it live, take its result, cancel it.

Two clients with the same verbs.  What they do is in :mod:`genqueue.plans`; here is only who
waits for whom.
"""

import asyncio
import contextlib
import os
import queue
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self

from genqueue import calls, keys, plans
from genqueue.calls import Accepted, Call, WorkerStatus
from genqueue.errors import InvalidRequestError, RedisUnavailableError, ResultTimeoutError
from genqueue.messages import Chunk, Event, GenerationResult, read_request
from genqueue.outcome import GenerationStatus
from genqueue.plans import WAIT, ItemT, Patience, Plan
from genqueue.settings import Settings, load_settings
from genqueue.store import AsyncStore, LiveHub, LoopThread, Store, shared_hub, shared_hub_thread

OnFailure = Literal["continue", "restart", "fail"]

_RETRY_S = 0.3
_POLL_S = 5.0
"""After so long a silence a reader looks into the log, should the channel have lost something."""


def _submission(settings: Settings, idempotency_key: str | None, fields: dict[str, Any]) -> Call[Accepted]:
    request = read_request(fields)
    if idempotency_key is not None:
        _check_key(idempotency_key)
    own = settings.generators.get(request.generator)
    return calls.submit(
        str(uuid.uuid4()),
        request,
        keep_s=settings.keep_s,
        idempotency_key=idempotency_key,
        idempotency_ttl_s=settings.result_ttl_s,
        max_queue_depth=own.max_queue_depth if own else None,
    )


def _check_key(idempotency_key: object) -> None:
    if not isinstance(idempotency_key, str):
        raise InvalidRequestError("idempotency_key: Input should be a valid string")
    try:
        size_bytes = len(idempotency_key.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError("idempotency_key: holds half of a surrogate pair") from None
    if not 1 <= size_bytes <= 512:
        raise InvalidRequestError(f"idempotency_key: has {size_bytes} bytes, must have 1 to 512")


def _cancel(generation_id: str, settings: Settings) -> Plan[bool]:
    return plans.cancel(
        generation_id,
        date_done=datetime.now(UTC).isoformat(),
        log_ttl_s=settings.log_ttl_s,
        result_ttl_s=settings.result_ttl_s,
    )


class Generation:
    """A handle on one generation, from any process, before, during and after its run.

    Every method raises RedisUnavailableError while Redis does not answer, and
    GenerationNotFoundError for an id that was never submitted or is forgotten.
    """

    def __init__(self, client: "GenerationClient", generation_id: str) -> None:
        self._client = client
        self.id = generation_id

    def __repr__(self) -> str:
        return f"Generation({self.id!r})"

    def events(self, from_seq: int = 0) -> Iterator[Event]:
        """Every event after number ``from_seq``, in order, once each, until the terminal one.

        Raises:
            LogExpiredError: it ended so long ago that its events are gone.
        """
        return self._client._listen(keys.live(self.id), plans.follow(self.id, from_seq))

    def stream(self, from_seq: int = 0) -> Iterator[Chunk]:
        """The chunks after number ``from_seq``, as they come; then the end, which may be an error.

        A generation that publishes no chunks (``stream=False``), or whose log is gone, gives
        its text as one chunk.

        Raises:
            GenerationError: how it ended, if not with a result (after its last chunk).
            LogExpiredError: ``from_seq`` is not 0 and the log is gone.
        """
        return self._client._listen(keys.live(self.id), plans.stream(self.id, from_seq))

    def result(self, timeout_s: float | None = None) -> GenerationResult:
        """Wait for the end and return the result.

        Raises:
            ResultTimeoutError: it has not ended within ``timeout_s``; it goes on.
            GenerationError: how it ended, if not with a result; carries the partial text.
        """
        steps = self._client._listen(keys.result(self.id), plans.result(self.id), timeout_s)
        with contextlib.closing(steps):
            for found in steps:
                return found
        raise ResultTimeoutError(self.id, timeout_s or 0.0)

    def status(self) -> GenerationStatus:
        """Where it is now."""
        (found,) = self._client._steps(plans.status(self.id))
        return found

    def cancel(self) -> bool:
        """Cancel it, wherever it is; the text so far is kept.

        Returns:
            True if it is cancelled now, False if it had ended otherwise before.
        """
        (is_cancelled,) = self._client._steps(_cancel(self.id, self._client.settings))
        return is_cancelled


class GenerationClient:
    """The synchronous client; threads may share one, and one for each process is enough.

    Args:
        settings: read from the environment and ``GENQUEUE_CONFIG`` if not given.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self._store = Store(self.settings.redis_url, self.settings.redis_timeout_s)
        self._resources = contextlib.ExitStack()
        weakref.finalize(self, self._resources.close)  # at exit too, while the thread that closes them still runs
        self._hub: tuple[LiveHub, LoopThread] | None = None
        self._hub_pid = 0

    def submit(
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
    ) -> Generation:
        """Queue a generation; returns as soon as Redis has it.

        Args:
            prompt: what the model continues; not empty.
            generator: the name of a configured generator.
            generation_kwargs: parameters of ``text_generation``; they win over the generator's.
            stop_words: added to the generator's own.
            stream: whether chunks are published while it runs.
            priority: 0 (first) to 9.
            deadline_s: seconds from now within which it must end; None is no limit.
            idempotency_key: 1 to 512 bytes; the same key gives the same generation for ``result_ttl_s``.
            on_failure: what another attempt does with the text so far: go on behind it, forget it
                and begin anew, or not happen at all.  Where a text cannot be continued (grammar,
                ``best_of``), "continue" begins anew.

        Raises:
            InvalidRequestError: says what is wrong; UnknownGeneratorError and
                IdempotencyConflictError are among them.
            QueueFullError: backpressure.
            RedisUnavailableError: within ``redis_timeout_s``.
        """
        fields = {
            "prompt": prompt,
            "generator": generator,
            "generation_kwargs": generation_kwargs,
            "stop_words": stop_words,
            "stream": stream,
            "priority": priority,
            "deadline_s": deadline_s,
            "on_failure": on_failure,
        }
        accepted = self._store.run(_submission(self.settings, idempotency_key, fields))
        return self.generation(accepted.generation_id)

    def submit_chat(
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
    ) -> Generation:
        """Queue the answer to a chat; as :meth:`submit` but for what follows.

        Args:
            messages: dictionaries as the OpenAI and Hugging Face clients take them: ``role`` and ``content``
                (a string, or parts, images among them), ``tool_calls``, ``tool_call_id``, ``name``.
            tools: functions that the model may call.
            tool_choice: ``auto``, ``none``, ``required``, or an object that names one function.
            response_format: the form of the text, as OpenAI or TGI have it.
            generation_kwargs: parameters of ``chat_completion``; they win over the generator's ``chat_kwargs``.
            on_failure: "continue" begins anew too where tools, ``response_format``, ``logprobs`` or
                thoughts are in play, or the generator's settings do not say ``continues_chat``.
        """
        fields = {
            "messages": messages,
            "tools": tools,
            "tool_choice": tool_choice,
            "response_format": response_format,
            "generator": generator,
            "generation_kwargs": generation_kwargs,
            "stop_words": stop_words,
            "stream": stream,
            "priority": priority,
            "deadline_s": deadline_s,
            "on_failure": on_failure,
        }
        accepted = self._store.run(_submission(self.settings, idempotency_key, fields))
        return self.generation(accepted.generation_id)

    def generation(self, generation_id: str) -> Generation:
        """The handle of a generation that somebody submitted; whether it exists shows on use."""
        return Generation(self, generation_id)

    def workers(self) -> list[WorkerStatus]:
        """The workers that run, and how the servers of their generators are; of the last 30 s."""
        return self._store.run(calls.read_workers())

    def close(self) -> None:
        """Close the connections."""
        self._resources.close()
        self._hub = None
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _listen(self, channel: str, plan: Plan[ItemT], timeout_s: float | None = None) -> Generator[ItemT, None, None]:
        """The plan's items, its messages taken from ``channel``; they stop short after ``timeout_s``."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        if self._hub is None or self._hub_pid != os.getpid():  # the hub's thread does not come along in a fork
            self._hub = self._resources.enter_context(
                shared_hub_thread(self.settings.redis_url, self.settings.redis_timeout_s)
            )
            self._hub_pid = os.getpid()
        hub, thread = self._hub
        inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        listening = hub.listen(channel, inbox.put)
        thread.call(listening.__aenter__())
        try:
            yield from self._steps(plan, inbox, deadline_s)
        finally:
            # Not waited for: a forgotten reader is finalised on any thread, the hub's own included.
            thread.post(listening.__aexit__(None, None, None))

    def _steps(
        self, plan: Plan[ItemT], inbox: "queue.SimpleQueue[bytes | None] | None" = None, deadline_s: float | None = None
    ) -> Generator[ItemT, None, None]:
        answer: Any = None
        patience = Patience(self.settings.outage_patience_s if inbox is not None else 0.0)
        while True:
            try:
                step = plan.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Call):
                answer = self._run(step, patience)
            elif step is WAIT:
                assert inbox is not None, "a plan that waits is given a channel"
                patience_s = _POLL_S if deadline_s is None else min(_POLL_S, deadline_s - time.monotonic())
                if patience_s <= 0:
                    return
                with contextlib.suppress(queue.Empty):
                    answer = inbox.get(timeout=patience_s)
            else:
                yield step

    def _run(self, call: "Call[Any]", patience: Patience) -> Any:
        while True:
            try:
                answer = self._store.run(call)
            except RedisUnavailableError:
                if patience.ends(time.monotonic()):
                    raise
                time.sleep(_RETRY_S)
            else:
                patience.there()
                return answer


class AsyncGeneration:
    """The handle of :class:`Generation`, awaited."""

    def __init__(self, client: "AsyncGenerationClient", generation_id: str) -> None:
        self._client = client
        self.id = generation_id

    def __repr__(self) -> str:
        return f"AsyncGeneration({self.id!r})"

    def events(self, from_seq: int = 0) -> AsyncIterator[Event]:
        """As :meth:`Generation.events`."""
        return self._client._listen(keys.live(self.id), plans.follow(self.id, from_seq))

    def stream(self, from_seq: int = 0) -> AsyncIterator[Chunk]:
        """As :meth:`Generation.stream`."""
        return self._client._listen(keys.live(self.id), plans.stream(self.id, from_seq))

    async def result(self, timeout_s: float | None = None) -> GenerationResult:
        """As :meth:`Generation.result`."""
        steps = self._client._listen(keys.result(self.id), plans.result(self.id), timeout_s)
        async with contextlib.aclosing(steps):
            async for found in steps:
                return found
        raise ResultTimeoutError(self.id, timeout_s or 0.0)

    async def status(self) -> GenerationStatus:
        """As :meth:`Generation.status`."""
        (found,) = [item async for item in self._client._steps(plans.status(self.id))]
        return found

    async def cancel(self) -> bool:
        """As :meth:`Generation.cancel`."""
        (is_cancelled,) = [item async for item in self._client._steps(_cancel(self.id, self._client.settings))]
        return is_cancelled


class AsyncGenerationClient:
    """The asyncio client; belongs to the loop that first uses it.

    Args:
        settings: read from the environment and ``GENQUEUE_CONFIG`` if not given.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self._store = AsyncStore(self.settings.redis_url, self.settings.redis_timeout_s)
        self._resources = contextlib.AsyncExitStack()
        self._hub: LiveHub | None = None

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
        """As :meth:`GenerationClient.submit`."""
        fields = {
            "prompt": prompt,
            "generator": generator,
            "generation_kwargs": generation_kwargs,
            "stop_words": stop_words,
            "stream": stream,
            "priority": priority,
            "deadline_s": deadline_s,
            "on_failure": on_failure,
        }
        accepted = await self._store.run(_submission(self.settings, idempotency_key, fields))
        return self.generation(accepted.generation_id)

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
        """As :meth:`GenerationClient.submit_chat`."""
        fields = {
            "messages": messages,
            "tools": tools,
            "tool_choice": tool_choice,
            "response_format": response_format,
            "generator": generator,
            "generation_kwargs": generation_kwargs,
            "stop_words": stop_words,
            "stream": stream,
            "priority": priority,
            "deadline_s": deadline_s,
            "on_failure": on_failure,
        }
        accepted = await self._store.run(_submission(self.settings, idempotency_key, fields))
        return self.generation(accepted.generation_id)

    def generation(self, generation_id: str) -> AsyncGeneration:
        """The handle of a generation that somebody submitted; whether it exists shows on use."""
        return AsyncGeneration(self, generation_id)

    async def workers(self) -> list[WorkerStatus]:
        """As :meth:`GenerationClient.workers`."""
        return await self._store.run(calls.read_workers())

    async def close(self) -> None:
        """Close the connections."""
        await self._resources.aclose()
        self._hub = None
        await self._store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _listen(
        self, channel: str, plan: Plan[ItemT], timeout_s: float | None = None
    ) -> AsyncGenerator[ItemT, None]:
        """The plan's items, its messages taken from ``channel``; they stop short after ``timeout_s``."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        if self._hub is None:
            self._hub = await self._resources.enter_async_context(
                shared_hub(self.settings.redis_url, self.settings.redis_timeout_s)
            )
        inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        async with self._hub.listen(channel, inbox.put_nowait):
            async for item in self._steps(plan, inbox, deadline_s):
                yield item

    async def _steps(
        self, plan: Plan[ItemT], inbox: "asyncio.Queue[bytes | None] | None" = None, deadline_s: float | None = None
    ) -> AsyncGenerator[ItemT, None]:
        answer: Any = None
        patience = Patience(self.settings.outage_patience_s if inbox is not None else 0.0)
        while True:
            try:
                step = plan.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Call):
                answer = await self._run(step, patience)
            elif step is WAIT:
                assert inbox is not None, "a plan that waits is given a channel"
                patience_s = _POLL_S if deadline_s is None else min(_POLL_S, deadline_s - time.monotonic())
                if patience_s <= 0:
                    return
                try:
                    answer = inbox.get_nowait()
                except asyncio.QueueEmpty:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(patience_s):
                            answer = await inbox.get()
            else:
                yield step

    async def _run(self, call: "Call[Any]", patience: Patience) -> Any:
        while True:
            try:
                answer = await self._store.run(call)
            except RedisUnavailableError:
                if patience.ends(time.monotonic()):
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                patience.there()
                return answer
