"""Messages of Celery's that bring more than an id, or are none of ours: their senders may not know this library.

A message may bring its request itself; it is registered then, and runs as any other.  Whatever else its sender sent
is answered: by the registry, where a plain Celery producer looks too.
"""

from dataclasses import replace
from typing import Any

from genqueue.errors import InvalidRequestError
from genqueue.registry import endings, reading, submitting
from genqueue.wire.request import read_request
from genqueue.wire.result import Outcome
from genqueue_worker.engine.register import Ended, Register, Relinquished, now_iso
from genqueue_worker.observe.report import IGNORED, Report


class ForeignMessages:
    """Answers them, or registers what they bring; on the engine's loop."""

    def __init__(self, register: Register) -> None:
        self._register = register

    async def adopt(
        self, generation_id: str, generator: str, foreign: dict[str, Any], traceparent: str | None
    ) -> Ended | Relinquished | None:
        """Register a generation whose request came in the Celery message; None when it can go on."""
        settings, store = self._register.settings, self._register.store
        try:
            request = read_request({"generator": generator, **foreign}, settings.bounds)
            if request.generator != generator:
                raise InvalidRequestError(f"generator {request.generator!r} is not served from queue {generator!r}")
        except InvalidRequestError as error:
            return await self.reject(generation_id, generator, str(error))
        if await store.run(reading.has_result(generation_id)):
            return Relinquished("known")  # another Celery task's id, or it ended before
        registration = submitting.submit(
            generation_id,
            request,
            keep_s=settings.keep_s,
            idempotency_key=None,
            idempotency_ttl_s=settings.result_ttl_s,
            max_queue_depth=-1,  # Celery accepted it long ago
            ring=False,
            traceparent=traceparent,
        )
        await store.run(registration)
        return None

    async def reject(self, generation_id: str, generator: str, reason: str) -> Ended | Relinquished:
        """Answer a task that cannot become a generation."""
        rejected = endings.rejection(reason)
        answer = await self._answer(generation_id, generator, rejected)
        return Ended(rejected) if answer == "ok" else Relinquished(answer)  # or Celery would store it over the true one

    async def refuse(self, generation_id: str, generator: str, reason: str) -> None:
        """Answer a message that became no task."""
        answer = await self._answer(generation_id, generator, endings.rejection(reason))
        self._report(generation_id, generator, "rejected", answer)

    async def expire(self, generation_id: str, generator: str) -> None:
        """Answer a message whose sender wanted no answer after now."""
        expired = endings.expired("before a worker had the message (expires)")
        answer = await self._answer(generation_id, generator, expired)
        self._report(generation_id, generator, "expired", answer)

    def _report(self, generation_id: str, generator: str, ended_as: str, answer: str) -> None:
        report = Report(generation_id, generator, self._register.owner)
        if answer == "ok":
            report.tell(ended_as)
        else:
            report.tell(IGNORED, answer)

    async def _answer(self, generation_id: str, generator: str, reason: Outcome) -> str:
        """Register what is no request, or one too late, only to end it; what has that id already is left alone."""
        end = endings.failed(generation_id, generator, None, reason, date_done=now_iso())
        return await self._register.end(replace(end, stillborn=True))
