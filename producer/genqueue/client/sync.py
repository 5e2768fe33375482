"""The blocking client: submit a generation, read it live, take its result, cancel it.

:mod:`genqueue.client.flows` decides what it does; here is only how it waits.
:mod:`genqueue.client.aio` is the same for asyncio.
"""

import contextlib
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
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
from genqueue.client.reading import Reader, Reading
from genqueue.client.views import DeadLetter, DeadLetterDetail, GenerationStatus
from genqueue.connection.hub import LiveHub
from genqueue.connection.shared import LoopThread, shared_hub_thread
from genqueue.connection.store import Store
from genqueue.errors import GenqueueError, ResultTimeoutError
from genqueue.registry import fleet
from genqueue.registry.fleet import Overview, WorkerStatus
from genqueue.registry.script import Call
from genqueue.settings import Settings, load_settings
from genqueue.tracing import Origin, sending
from genqueue.wire.events import Chunk, Event
from genqueue.wire.result import GenerationResult


class Generation:
    """A handle on one generation, from any process, before, during and after its run.

    Every method raises RedisUnavailableError while Redis does not answer, and
    GenerationNotFoundError for an id that was never submitted or is forgotten.
    """

    id: str

    def __init__(self, client: "GenerationClient", generation_id: str, origin: Origin | None = None) -> None:
        check_id(generation_id)
        self._client = client
        self._origin = origin
        self.id = generation_id

    def __repr__(self) -> str:
        return f"Generation({self.id!r})"

    def events(self, from_seq: int = 0) -> Reading[Event]:
        """Every event after number ``from_seq``, in order, once each, until the terminal one.

        They are what happened: after a ``reset`` the text of the chunks before it is void.

        Raises:
            LogExpiredError: it ended so long ago that its events are gone.
            LogBrokenError: Redis lost a part of them.
        """
        check_count("from_seq", from_seq)
        return self._client._listen(reader_of(self, keys.live(self.id), flows.follow(self.id, from_seq)))

    def batches(
        self, from_seq: int = 0, timeout_s: float | None = None, *, resets: bool = False
    ) -> Reading[list[Event]]:
        """The events of :meth:`events`, those that came together in one list: the last chunk and the end do.

        The texts of their chunks join to one text, as those of :meth:`stream` do; ``resets`` as there, but the event
        ``reset`` says where the text begins anew.  They stop short after ``timeout_s``; None is no limit.

        Raises:
            StreamRestartedError: as :meth:`stream`.
            LogExpiredError, LogBrokenError: as :meth:`events`.
        """
        check_count("from_seq", from_seq)
        flow = flows.batches(self.id, from_seq, resets=resets)
        return self._client._listen(reader_of(self, keys.live(self.id), flow, timeout_s))

    def stream(self, from_seq: int = 0, *, resets: bool = False) -> Reading[Chunk]:
        """The chunks after number ``from_seq``, as they come; then the end, which may be an error.

        Their texts join to the reply, or an error is raised.  When another attempt begins anew, the reader hears
        nothing until the new text is past what was delivered, and then what is behind that.  The iterator keeps its
        place: a wait that was broken off (``asyncio.wait_for``) loses nothing, and may be taken up again.

        A generation that publishes no chunks (``stream=False``), or whose log is gone, gives
        its text as one chunk.

        Args:
            resets: where another attempt begins anew, hand out its text from the beginning, in a chunk that says
                ``restarts``: what was delivered before is void then.

        Raises:
            StreamRestartedError: another attempt began anew with another text; ``resets`` rules it out.
            GenerationError: how it ended, if not with a result (after its last chunk).
            LogExpiredError, LogBrokenError: ``from_seq`` is not 0, and the log is gone, or Redis lost a part of it.
        """
        check_count("from_seq", from_seq)
        flow = flows.stream(self.id, from_seq, resets=resets)
        return self._client._listen(reader_of(self, keys.live(self.id), flow))

    def result(self, timeout_s: float | None = None) -> GenerationResult:
        """Wait for the end and return the result.

        Raises:
            ResultTimeoutError: it has not ended within ``timeout_s``, or Redis did not say so (0: is it there
                already); it goes on.
            GenerationError: how it ended, if not with a result; carries the partial text.
        """
        with self._client._listen(reader_of(self, keys.result(self.id), flows.result(self.id), timeout_s)) as results:
            for result in results:
                return result
        raise ResultTimeoutError(self.id, timeout_s or 0.0)

    def status(self) -> GenerationStatus:
        """Where it is now."""
        (status,) = self._client._steps(flows.status(self.id))
        return status

    def cancel(self) -> bool:
        """Cancel it, wherever it is; the text so far is kept.

        Returns:
            True if it is cancelled now, False if it had ended otherwise before.
        """
        (is_cancelled,) = self._client._steps(cancel(self.id, self._client.settings))
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
        self._readings: weakref.WeakSet[Reading[Any]] = weakref.WeakSet()

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

        A call that is interrupted or cancelled before it returns leaves nothing running, unless an
        ``idempotency_key`` leads to it.

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
            RedisUnavailableError: within ``redis_timeout_s``.  Redis may have accepted it all the same: with an
                ``idempotency_key`` the same call again is safe.
        """
        return self._submit(idempotency_key, fields_of(locals()))

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
                (a string, or parts, images among them: as ``data:`` URIs, or by address where the generator's
                settings say ``fetches_images``), ``tool_calls``, ``tool_call_id``, ``name``.
            tools: functions that the model may call.
            tool_choice: ``auto``, ``none``, ``required``, or an object that names one function.
            response_format: the form of the text, as OpenAI or TGI have it.
            generation_kwargs: parameters of ``chat_completion``; they win over the generator's ``chat_kwargs``.
            on_failure: "continue" begins anew too where tools, ``response_format``, ``logprobs`` or
                thoughts are in play, or the generator's settings do not say ``continues_chat``.
        """
        return self._submit(idempotency_key, fields_of(locals()))

    def _submit(self, idempotency_key: str | None, fields: dict[str, Any]) -> Generation:
        request, generation_id = request_of(self.settings, idempotency_key, fields), str(uuid.uuid4())
        try:
            with sending(request.generator, generation_id) as traceparent:
                submission = submission_of(self.settings, generation_id, request, idempotency_key, traceparent)
                accepted_id = self._store.run(submission).generation_id
            # An earlier generation, by its idempotency key, has an origin of its own.
            origin = Origin(request.generator, traceparent if accepted_id == generation_id else None)
            return Generation(self, accepted_id, origin)
        except GenqueueError:
            raise
        except BaseException:  # interrupted, or by a signal's handler: Redis may have it, and nobody would know its id
            if idempotency_key is None:
                with contextlib.suppress(GenqueueError):
                    self.generation(generation_id).cancel()
            raise

    def generation(self, generation_id: str) -> Generation:
        """The handle of a generation that somebody submitted; whether it exists shows on use."""
        return Generation(self, generation_id)

    def dead_letters(self, generator: str | None = None, limit: int | None = 100) -> list[DeadLetter]:
        """What failed for good and may be tried again, the newest first; of one generator only, if it is named.

        What its request, its caller or its deadline ended is not among them.  Each rests for ``keep_s``.
        """
        return list(self._steps(dead_letters(generator, limit)))

    def dead_letter(self, generation_id: str) -> DeadLetterDetail:
        """All that is kept of one: every attempt's error, the partial text, the request.

        Raises:
            NotDeadError: it ended otherwise or not yet, or was retried or dropped.
            GenerationNotFoundError: nothing is known of it.
        """
        (letter,) = self._steps(flows.dead_letter(self.generation(generation_id).id))
        return letter

    def retry(self, generation_id: str) -> Generation:
        """Submit a dead letter's request again, as a new generation; it leaves the dead letters.

        Whoever retries it again gets the same new generation.  Its ``deadline_s`` counts from now.

        Raises:
            QueueFullError: backpressure; it stays a dead letter.
            UnknownGeneratorError: nobody serves its generator any more; it stays a dead letter.
            NotDeadError, GenerationNotFoundError: as :meth:`dead_letter`.
        """
        (new_id,) = self._steps(retry(self.generation(generation_id).id, self.settings))
        return self.generation(new_id)

    def drop(self, generation_id: str) -> None:
        """Take a dead letter off the list and forget its prompt; its end stays readable for ``result_ttl_s``.

        Raises:
            NotDeadError, GenerationNotFoundError: as :meth:`dead_letter`; dropping it twice is no error.
        """
        for _ in self._steps(flows.drop(self.generation(generation_id).id, result_ttl_s=self.settings.result_ttl_s)):
            pass

    def workers(self) -> list[WorkerStatus]:
        """The workers that run, and how the servers of their generators are; of the last 30 s."""
        return self._store.run(fleet.read_workers())

    def overview(self) -> Overview:
        """Queues, workers and counts at one moment, in one round trip."""
        return self._store.run(fleet.overview(list(self.settings.generators)))

    def generators(self) -> set[str]:
        """The names that :meth:`submit` takes: what workers announced, and the own settings."""
        return self.settings.generators.keys() | self._store.run(fleet.known_generators())

    def places(self) -> dict[str, set[str]]:
        """For each generator where its model is (:mod:`genqueue.discovery`), as workers and the own settings say."""
        return places_of(self.settings, self._store.run(fleet.known_places()))

    def close(self) -> None:
        """Close the connections; whoever reads meanwhile, or reads on, is told so by a GenqueueError."""
        for reading in tuple(self._readings):
            reading.end_with_client()
        self._resources.close()
        self._hub = None
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _listen(self, reader: Reader[ItemT]) -> Reading[ItemT]:
        reading = Reading(reader, self._store, self._live)
        self._readings.add(reading)
        return reading

    def _live(self) -> tuple[LiveHub, LoopThread]:
        if self._hub is None or self._hub_pid != os.getpid():  # the hub's thread does not come along in a fork
            self._hub = self._resources.enter_context(
                shared_hub_thread(self.settings.redis_url, self.settings.redis_timeout_s)
            )
            self._hub_pid = os.getpid()
        return self._hub

    def _steps(self, flow: Flow[ItemT]) -> Iterator[ItemT]:
        """The items of a flow that waits for nothing."""
        answer: Any = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Call):
                answer = self._store.run(step)
            else:
                assert not isinstance(step, Wait), "who waits listens"
                yield step
