"""How a generation is shown to its caller: where it stands, its text, and how it failed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genqueue import errors
from genqueue.registry.endings import ENDINGS
from genqueue.registry.lifecycle import State
from genqueue.registry.partial import PartialOutput
from genqueue.registry.reading import Record
from genqueue.registry.timing import Timings, timings
from genqueue.wire.events import Chunk, ToolCallDelta
from genqueue.wire.request import GenerationRequest
from genqueue.wire.result import GenerationResult, Outcome


@dataclass(frozen=True, slots=True)
class GenerationStatus:
    """Where a generation is.

    Attributes:
        position: how many generations come before it; None once a worker has it.
        attempt: how many attempts were started; 0 while it is queued.
        completion_tokens: tokens generated so far, over all attempts that count.
        error: the reason of a generation that ended without a result.
        retried_as: the id under which a dead letter was tried again.
        waits_for: what it waits for beside its turn: a worker of a newer version; None for nothing else.
    """

    id: str
    state: State
    generator: str
    attempt: int
    position: int | None
    priority: int
    completion_tokens: int
    error: str | None
    timings: Timings
    retried_as: str | None = None
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A generation that failed for good; of its prompt and text no more than its error quotes.

    Attributes:
        ended_at: epoch seconds of Redis's clock.
        message: what ended it, often in a server's words.
        attempts: how many attempts were started.
        completion_tokens: how many tokens its partial text has.
    """

    id: str
    generator: str
    ended_at: float
    message: str
    attempts: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class DeadLetterDetail:
    """All that is kept of a dead letter; its ``repr`` shows neither prompt nor text.

    Attributes:
        errors: what ended each attempt that is known: ``attempt`` and ``message``.
        usage: ``prompt_tokens`` (None if the server never said) and ``completion_tokens``.
        request: as it was submitted.
    """

    letter: DeadLetter
    errors: list[dict[str, Any]]
    usage: dict[str, int | None]
    timings: Timings
    partial_text: str = field(repr=False)
    request: GenerationRequest = field(repr=False)


def status(generation_id: str, record: Record, position: int | None) -> GenerationStatus:
    """The registry's entry as a caller sees it."""
    return GenerationStatus(
        id=generation_id,
        state=record.state,
        generator=record.generator,
        attempt=record.attempt,
        position=position,
        priority=record.priority,
        completion_tokens=record.completion_tokens,
        error=record.outcome.message if record.outcome else None,
        timings=timings(record.submitted_at, record.started_at, record.first_text_at, record.ended_at),
        retried_as=record.retried_as,
        waits_for=record.waits_for if record.state is State.QUEUED else None,
    )


def dead_letter(generation_id: str, record: Record) -> DeadLetter:
    """The registry's entry of a dead letter as a caller sees it.

    Raises:
        NotDeadError: it is none.
    """
    if record.retried_as is not None:
        raise errors.NotDeadError(generation_id, f"it was retried as {record.retried_as}")
    if record.outcome is None or record.ended_at is None or not record.outcome.is_worth_another_try:
        raise errors.NotDeadError(generation_id, f"it is {record.outcome.error if record.outcome else record.state}")
    return DeadLetter(
        generation_id,
        record.generator,
        record.ended_at,
        record.outcome.message,
        record.attempt,
        record.completion_tokens,
    )


def dead_letter_detail(letter: DeadLetter, record: Record, text: str, request: GenerationRequest) -> DeadLetterDetail:
    """All of a dead letter, from what the registry keeps of it."""
    error = error_of(record, PartialOutput(text))
    phases = timings(record.submitted_at, record.started_at, record.first_text_at, record.ended_at)
    return DeadLetterDetail(letter, error.detail.get("errors", []), error.usage, phases, text, request)


def error_of(record: Record, partial: PartialOutput) -> errors.GenerationError:
    """The typed error for a generation that ended without a result."""
    outcome = record.outcome or Outcome(error=str(record.state), message=str(record.state))
    return ENDINGS.get(outcome.error, errors.GenerationFailedError)(
        outcome.message,
        partial_text=partial.text,
        partial_reasoning=partial.reasoning,
        partial_tool_calls=partial.tool_calls,
        usage={
            "prompt_tokens": outcome.detail.get("prompt_tokens"),
            "completion_tokens": record.completion_tokens,
        },
        attempts=record.attempt,
        detail={
            "timings": timings(record.submitted_at, record.started_at, record.first_text_at, record.ended_at),
            **outcome.detail,
        },
    )


def output_of(result: GenerationResult) -> PartialOutput:
    """The text of a result, and of a chat its reasoning and tool calls."""
    meta = result.meta[0]
    reasoning, tool_calls = meta.get("reasoning"), meta.get("tool_calls")
    return PartialOutput(
        result.replies[0],
        reasoning if isinstance(reasoning, str) else "",
        [call for call in tool_calls if _is_call(call)] if isinstance(tool_calls, list) else (),
    )


def _is_call(value: object) -> bool:
    match value:
        case {"id": str() | None, "function": {"name": str() | None, "arguments": str()}}:
            return True
        case {"id": str() | None, "type": "custom", "custom": {"name": str() | None, "input": str()}}:
            return True
    return False


def _as_one_piece(index: int, call: Mapping[str, Any]) -> ToolCallDelta:
    if call.get("type") == "custom":
        return ToolCallDelta(index, call["id"], call["custom"]["name"], call["custom"]["input"])
    return ToolCallDelta(index, call["id"], call["function"]["name"], call["function"]["arguments"])


def whole_text_chunk(record: Record, partial: PartialOutput) -> list[Chunk]:
    """The whole output as one chunk, for a reader who got none; [] if there is nothing."""
    text, reasoning, whole_calls = partial
    tool_calls = tuple(_as_one_piece(index, call) for index, call in enumerate(whole_calls))
    if not (text or reasoning or tool_calls):
        return []
    return [Chunk(seq=record.seq, attempt=record.attempt, text=text, reasoning=reasoning, tool_calls=tool_calls)]
