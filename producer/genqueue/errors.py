"""Every error that genqueue raises, in one tree.

GenqueueError
├── ConfigError                 the settings cannot work; says which key
├── InvalidRequestError         what was submitted, or asked for, makes no sense (also a ValueError)
│   ├── UnknownGeneratorError   no worker and no setting names the generator
│   └── IdempotencyConflictError  the key was used before for another request
├── QueueFullError              backpressure: depth and limit
├── StoreError                  Redis refused a command
│   └── RedisUnavailableError   Redis did not answer (also a ConnectionError)
├── GenerationNotFoundError     never submitted, or its result has expired
├── NotDeadError                no dead letter: never was one, or was retried or dropped
├── LogExpiredError             ``from_seq`` asks for events whose log is gone
├── LogBrokenError              the log contradicts itself: Redis lost a part of it
├── StreamRestartedError        another attempt begins anew, with another text than was delivered
├── ResultTimeoutError          the generation goes on, the caller's patience ended (also a TimeoutError)
└── GenerationError             how a generation ended, when not with a result
    ├── GenerationRejectedError   the request itself is at fault; the server's words
    ├── GenerationFailedError     the server or the way to it is at fault
    ├── GenerationExpiredError    its deadline passed
    └── GenerationCancelledError  somebody cancelled it

A :class:`GenerationError` carries what was generated before the end.  Celery rebuilds it
from its message alone, so every class can be made from one string.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from genqueue.masking import shown


class GenqueueError(Exception):
    """The root: whatever this library raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process borders (pools, Celery tasks of the caller's) with their numbers."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[GenqueueError], args: tuple[Any, ...], attributes: dict[str, Any]) -> GenqueueError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigError(GenqueueError):
    """The settings cannot work; the message names the key."""


class InvalidRequestError(GenqueueError, ValueError):
    """The request cannot run as it is; nothing was queued."""


class UnknownGeneratorError(InvalidRequestError):
    """No worker has announced the generator and the caller's settings do not name it."""

    def __init__(self, generator: str, known: list[str]) -> None:
        self.generator = generator
        self.known = known
        names = ", ".join(known) or "none (has a worker ever started on this Redis?)"
        super().__init__(f"unknown generator {shown(generator)!r}; known: {names}")


class IdempotencyConflictError(InvalidRequestError):
    """The idempotency key already stands for a generation with another request."""

    def __init__(self, key: str, generation_id: str) -> None:
        self.key = key
        self.generation_id = generation_id
        super().__init__(f"idempotency key {key!r} was used for generation {generation_id} with another request")


class QueueFullError(GenqueueError):
    """The generator's queue is at its limit; try later or elsewhere."""

    def __init__(self, generator: str, depth: int, limit: int) -> None:
        self.generator = generator
        self.depth = depth
        self.limit = limit
        super().__init__(f"queue {generator!r} holds {depth} generations, limit {limit}")


class StoreError(GenqueueError):
    """Redis answered with an error; ``may_pass`` is whether the same call may succeed later."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        self.may_pass = may_pass
        super().__init__(message)


class RedisUnavailableError(StoreError, ConnectionError):
    """Redis did not answer in time."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        super().__init__(f"no answer from Redis at {host}:{port}: {reason}", may_pass=True)


class GenerationNotFoundError(GenqueueError):
    """No generation of this id: never submitted, or forgotten after its ``result_ttl_s``."""

    def __init__(self, generation_id: str) -> None:
        self.generation_id = generation_id
        super().__init__(f"no generation {generation_id}: never submitted, or its result has expired")


class NotDeadError(GenqueueError):
    """The generation is no dead letter that could be retried or dropped; ``reason`` is why."""

    def __init__(self, generation_id: str, reason: str) -> None:
        self.generation_id = generation_id
        self.reason = reason
        super().__init__(f"generation {generation_id} is no dead letter: {reason}")


class LogExpiredError(GenqueueError):
    """A reader wants to resume in a log that is gone; the whole text is in the result."""

    def __init__(self, generation_id: str, from_seq: int) -> None:
        self.generation_id = generation_id
        self.from_seq = from_seq
        super().__init__(f"the log of generation {generation_id} is gone, cannot resume from seq {from_seq}")


class LogBrokenError(GenqueueError):
    """Redis lost a part of the log, and the rest is no one history; the whole text is in the result."""

    def __init__(self, generation_id: str) -> None:
        self.generation_id = generation_id
        super().__init__(f"the log of generation {generation_id} contradicts itself: Redis lost a part of it")


class StreamRestartedError(GenqueueError):
    """Another attempt began anew, and its text does not begin with what this reader was given.

    The generation goes on, or has finished: its ``result()`` gives the new text.

    Attributes:
        generation_id: whose reply it is.
        delivered_text: what the reader was given in vain, as far as this process knows it.
        delivered_reasoning: of a chat, what it was given beside the text.
        restart_seq: the event behind which the new text stands: ``stream(from_seq=restart_seq)`` gives all of it.
        generation: the handle (:class:`genqueue.Generation`, or the asyncio one) that was read; None in a copy
            that crossed a process's border.
    """

    def __init__(
        self, generation_id: str, *, delivered_text: str = "", delivered_reasoning: str = "", restart_seq: int = 0
    ) -> None:
        self.generation_id = generation_id
        self.delivered_text = delivered_text
        self.delivered_reasoning = delivered_reasoning
        self.restart_seq = restart_seq
        self.generation: Any = None
        super().__init__(
            f"generation {generation_id} began anew: the {len(delivered_text)} characters that were delivered "
            "are void, its result has the new text"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the handle, which is this process's."""
        return _rebuild, (type(self), self.args, {**self.__dict__, "generation": None})


class ResultTimeoutError(GenqueueError, TimeoutError):
    """The caller waited long enough; the generation goes on."""

    def __init__(self, generation_id: str, timeout_s: float) -> None:
        self.generation_id = generation_id
        self.timeout_s = timeout_s
        super().__init__(f"generation {generation_id} has not ended within {timeout_s:g} s")


class GenerationError(GenqueueError):
    """A generation ended without a result.

    Attributes:
        partial_text: what was generated before the end; "" if nothing.
        partial_reasoning: what a chat's model had thought.
        partial_tool_calls: what it had called, as OpenAI has it; the ``arguments`` of the last may break off.
        usage: ``prompt_tokens`` (None if the server never said) and ``completion_tokens``.
        attempts: how many attempts were started; 0 if none.
    """

    def __init__(
        self,
        message: str,
        *,
        partial_text: str = "",
        partial_reasoning: str = "",
        partial_tool_calls: Sequence[Mapping[str, Any]] = (),
        usage: dict[str, int | None] | None = None,
        attempts: int = 0,
        detail: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.partial_text = partial_text
        self.partial_reasoning = partial_reasoning
        self.partial_tool_calls = list(partial_tool_calls)
        self.usage = usage or {"prompt_tokens": None, "completion_tokens": 0}
        self.attempts = attempts
        self.detail = detail or {}


class GenerationRejectedError(GenerationError):
    """The request itself is at fault: the server, or the worker, refused it for good."""


class GenerationFailedError(GenerationError):
    """The server or the way to it is at fault."""


class GenerationExpiredError(GenerationError):
    """The deadline passed before the end."""


class GenerationCancelledError(GenerationError):
    """Somebody cancelled it."""
