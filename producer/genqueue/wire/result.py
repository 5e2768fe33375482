"""How a generation ended: its result or its error, in our words and in Celery's."""

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
)
from pydantic_core import to_json

from genqueue.wire.chat import (
    REASONING_FIELD,
)
from genqueue.wire.version import VERSION


class GenerationResult(BaseModel):
    """What a finished generation is: one reply and one meta for each text, in the seed's shape.

    Each ``meta`` holds ``model``, ``finish_reason`` (the server's word), ``usage``
    (``prompt_tokens`` and ``completion_tokens``, each None where nobody knows: the server does not say, or the text
    was continued by deltas that are no tokens),
    ``completion_start_time`` (ISO 8601, UTC; None for an empty text), ``generator``,
    ``endpoint``, ``attempts`` and ``timings`` (:func:`genqueue.registry.timing.timings`).  It has ``lost_characters``
    (``count`` and ``why``) if the endpoint's bytes spelt no UTF-8, or it declared another charset.  A chat's
    may also hold ``tool_calls``, as OpenAI has them, functions' and custom tools', each with an id,
    ``unreadable_tool_calls`` (the places among them, from 0, of functions whose arguments are no JSON object),
    ``reasoning``, ``reasoning_field`` (the server's word for it, if it is not
    :data:`~genqueue.wire.chat.REASONING_FIELD`), ``logprobs``, and ``refusal``: the part of the reply that OpenAI's
    models say in place of their answer.
    """

    model_config = ConfigDict(frozen=True)

    replies: list[str]
    meta: list[dict[str, Any]]

    @property
    def message(self) -> dict[str, Any]:
        """The answer to a chat as a message, for the next turn's ``messages``.

        It has ``role``, ``content`` (None where tool calls stand for a text), ``tool_calls`` if there are any, and
        what the model thought under the server's own word for it.  A refusal is the content.
        """
        text, meta = self.replies[0], self.meta[0]
        calls, reasoning = meta.get("tool_calls"), meta.get("reasoning")
        message: dict[str, Any] = {"role": "assistant", "content": (text or None) if calls else text}
        field = meta.get("reasoning_field", REASONING_FIELD)
        if reasoning and field == "content":  # as parts, by those who say it so
            thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": reasoning}]}
            message["content"] = [thoughts, *([{"type": "text", "text": text}] if text else [])]
        elif reasoning:
            message[field] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message


class Outcome(BaseModel):
    """How a generation ended without a result; beside its text, which has a key of its own."""

    v: Literal[1] = VERSION
    error: str
    message: str
    detail: dict[str, Any] = {}

    @property
    def is_worth_another_try(self) -> bool:
        """Whether the same request may end otherwise: it was not its fault, nobody cancelled it, it is not too late."""
        return self.error == "failed" or self.detail.get("fault") == "endpoint"


def celery_success(generation_id: str, result: GenerationResult, date_done: str) -> bytes:
    """The value of ``celery-task-meta-<id>`` for a result, as Celery 5's JSON backend writes it."""
    return _celery_meta(generation_id, "SUCCESS", result.model_dump(), date_done)


def celery_failure(generation_id: str, status: str, exception: str, module: str, message: str, date_done: str) -> bytes:
    """The value of ``celery-task-meta-<id>`` for an error (``FAILURE``, ``REVOKED``)."""
    error = {"exc_type": exception, "exc_message": [message], "exc_module": module}
    return _celery_meta(generation_id, status, error, date_done)


def _celery_meta(generation_id: str, status: str, result: dict[str, Any], date_done: str) -> bytes:
    return to_json(
        {
            "status": status,
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": date_done,
            "task_id": generation_id,
        }
    )
