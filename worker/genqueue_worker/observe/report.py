"""Tell how each attempt went: one log line, what Flower shows, and one span where somebody traces.

Both say what is known, and nothing in the words of a server or of a request: these may quote a
prompt.  Who wants the words asks for the generation (``genqueue status``).
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from genqueue.keys import queue
from genqueue.registry.attempts import Claim
from genqueue.registry.timing import Timings
from genqueue.tracing import attributes_of, context_of, fail, messaging, open_tracer
from genqueue.wire.finish_reasons import shown_reason
from genqueue.wire.request import GenerationRequest
from genqueue_worker.observe.logs import where_raised

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

Show = Callable[..., None]
"""Told the id of a generation, more of what is known of it, and as which event (``FACTS``), for Flower."""


def show_nobody(generation_id: str, facts: dict[str, Any], event: str = "") -> None:
    """Where there is no Flower to tell."""


FACTS = "task-pending"
"""The event that brings them: of all types the one that changes no task's state, nor when it began or ended.

Whoever listens takes a type that Celery does not have for a state of the task's, and PENDING is the state that gives
way to every other.
"""

IGNORED = "ignored"
"""A doorbell of which no attempt came, and which ended nothing."""
_LEVELS = {
    "failed": logging.ERROR,
    "rejected": logging.WARNING,
    "expired": logging.WARNING,
    "retried": logging.WARNING,
    IGNORED: logging.DEBUG,
}
_FAULTS = frozenset({"failed", "rejected", "expired", "cancelled", "retried"})
"""Ways to end that are an error to whoever looks at a trace; to be handed over is none."""


class Report:
    """What is known of one doorbell, and of the attempt that came of it if one did.

    Attributes:
        error_type: the class of what went wrong; None if nothing did.
        facts: what else to say of the end: tokens, finish_reason, timings.
    """

    def __init__(self, generation_id: str, generator: str, owner: str, show: Show = show_nobody) -> None:
        self.generation_id = generation_id
        self.generator = generator
        self.error_type: str | None = None
        self.facts: dict[str, Any] = {}
        self._owner = owner
        self._show = show
        self._attempt: int | None = None
        self._stack: str | None = None
        self._span: Span | None = None

    @property
    def has_attempt(self) -> bool:
        """Whether an attempt began."""
        return self._attempt is not None

    @contextlib.contextmanager
    def attempt(self, claim: Claim, request: GenerationRequest) -> Iterator[None]:
        """The block is the attempt: a span of its own, the child of the submit's and the parent of the calls in it."""
        self._attempt = claim.attempt
        size, digest = request.digest()
        self._show(
            self.generation_id,
            {
                "generator": self.generator,
                "attempt": claim.attempt,
                "queue_wait_s": round(max(0.0, claim.started_at - claim.submitted_at), 3),
                "prompt": f"{size} characters, sha256 {digest[:16]}",
            },
        )
        tracer = open_tracer()
        if tracer is None:
            yield
            return
        from opentelemetry.trace import SpanKind, use_span

        self._span = tracer.start_span(
            f"process {queue(self.generator)}",
            context=context_of(claim.traceparent),
            kind=SpanKind.CONSUMER,
            attributes=messaging("process", self.generator, self.generation_id)
            | {
                "messaging.client.id": self._owner,
                "genqueue.attempt": claim.attempt,
                "genqueue.queue_wait_s": max(0.0, claim.started_at - claim.submitted_at),
            },
        )
        with use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield

    def defect(self, error: Exception) -> None:
        """An error that nobody expected ended it."""
        self.error_type = type(error).__name__
        self._stack = where_raised(error)

    def note(
        self,
        *,
        finish_reason: str | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        timings: Timings | None = None,
    ) -> None:
        """What is known at the end of an attempt; what was said before stands."""
        self.facts = {
            "finish_reason": shown_reason(finish_reason),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            **(timings or {}),
        } | self.facts

    def tell(self, way: str, reason: str | None = None) -> None:
        """It is over.

        Args:
            way: as :mod:`genqueue_worker.observe.metrics` has it, or :data:`IGNORED`.
            reason: why it was ignored, or let go.
        """
        facts = attributes_of(
            {
                "generation_id": self.generation_id,
                "generator": self.generator,
                "attempt": self._attempt,
                "error_type": self.error_type,
                "reason": reason,
                **self.facts,
                "stack": self._stack,
                **self._end_span(way),
            }
        )
        logger.log(_LEVELS.get(way, logging.INFO), way, extra={"outcome": way, **facts})
        if self.has_attempt:
            known = {name: round(value, 3) if isinstance(value, float) else value for name, value in self.facts.items()}
            self._show(self.generation_id, {"outcome": way, **attributes_of(known)})

    def _end_span(self, way: str) -> dict[str, str]:
        if self._span is None:
            return {}
        self._span.set_attributes({"genqueue.outcome": way} | attributes_of(self._genqueue_facts()))
        if way in _FAULTS:
            fail(self._span, self.error_type or way)
        self._span.end()
        context = self._span.get_span_context()
        return (
            {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"} if context.is_valid else {}
        )

    def _genqueue_facts(self) -> dict[str, Any]:
        return {f"genqueue.{name}": value for name, value in self.facts.items() if name != "queue_wait_s"}
