"""What one event of a chat says, in the dialects of those who serve them.

Pure.  The route is TGI's and that of OpenAI-compatible engines (vLLM, SGLang, llama.cpp), providers and gateways,
whose events differ: who names the role when, whether text is in ``delta`` or ``message``, as a text or in parts,
where thoughts are (``reasoning`` or ``reasoning_content``, or a part), whether the end has a finish_reason (TGI's
has none after a whole tool call).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from genqueue.wire.chat import REASONING_FIELD
from genqueue_worker.upstream.engines.tool_calls import Piece, read_piece
from genqueue_worker.upstream.errors.answers import error_in_choice
from genqueue_worker.upstream.faults import UpstreamFacts
from genqueue_worker.upstream.fields import (
    content_of,
    delta_of,
    encodable,
    first_choice,
    number,
    reason,
    text,
    thoughts_of,
    usage_in,
    whole_beside,
)

_REASONING = {
    REASONING_FIELD: REASONING_FIELD,
    "reasoning": "reasoning",
    "thinking": REASONING_FIELD,
    "reasoning_details": "reasoning",
    "thinking_blocks": REASONING_FIELD,
}
"""Words for thoughts, each with the one under which a text of them is handed back; where several are, they are one.

SGLang, llama.cpp and DeepSeek have the first, vLLM and OpenRouter the second.  The others come from gateways: of
Ollama's and Anthropic's thoughts, of OpenRouter's in parts, and LiteLLM's.
"""
_READ = frozenset(
    {"role", "content", "refusal", "tool_calls", "function_call", "logprobs", "finish_reason", "usage", "choices"}
    | {"delta", "message", "text", "index", "id", "object", "model", "system_fingerprint", "service_tier", "provider"}
    | {"stop_reason", "matched_stop", "native_finish_reason", "token_ids", "prompt_token_ids", "name", "timings"}
    | {"prompt_filter_results", "content_filter_results", "content_filter_offsets", "x_groq", "annotations", "type"}
    | {"created", "prompt_text", "prompt_logprobs", "time_info", "warnings", "metadata", *_REASONING}
)
"""What is read of an event, or says nothing of the answer where engines have it."""
_BESIDE_TEXT = frozenset({"tool_calls", "function_call", "refusal", "finish_reason", "error", *_REASONING})
"""What a delta with a text may say besides."""
_OF_AN_EVENT = frozenset({"id", "object", "created", "model", "type", "system_fingerprint", "provider"})
_OF_A_CALL = frozenset({"index", "id", "type", "function", "name", "arguments", "custom"})
_MOST_NAME_CHARACTERS = 60


@dataclass(slots=True)
class ChatEvent:
    """What one event says of the first answer.

    Attributes:
        content: with the refusal, which is text too.
        reasoning_field: the server's word for it.
        unread: names of what it holds where a text may be, if it says nothing that we know.
        is_copy: whether it is the whole answer beside an event that adds nothing: void where something came before.
        error: in place of all else, if the answer failed.
    """

    usage: Mapping[str, Any] | None
    is_of_this_answer: bool = False
    content: str = ""
    reasoning: str = ""
    reasoning_field: str = REASONING_FIELD
    refusal: str = ""
    pieces: Sequence[Piece] = ()
    logprobs: Sequence[dict[str, Any]] = ()
    finish_reason: str | None = None
    unread: Set[str] = frozenset()
    is_copy: bool = False
    error: UpstreamFacts | None = None


def plain_text(event: Any) -> str | None:
    """The text of an event that says nothing else, as nearly all do; None of any other, which :func:`read_event` reads.

    This is done for every token: what follows from it is the same, in a third of the time.
    """
    try:
        (choice,) = event["choices"]
        delta = choice["delta"]
        content = delta["content"]
        if (
            type(content) is not str
            or not content
            or choice.get("finish_reason")
            or choice.get("logprobs")
            or choice.get("index")
            or event.get("usage")
            or ("error" in event and event["error"] is not None)
            or choice.get("error")
        ):
            return None
        if len(delta) > 1:
            for name, value in delta.items():
                if value and name in _BESIDE_TEXT:
                    return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return content


def read_event(event: Mapping[str, Any]) -> ChatEvent:
    """What one event, or a whole answer, says.

    Raises:
        TypeError, KeyError, AttributeError: it is none of a chat
        (:data:`genqueue_worker.upstream.errors.answers.UNREADABLE`).
    """
    choice = first_choice(event.get("choices"))
    usage = usage_in(event, choice)
    chat_event = ChatEvent(usage)
    if choice is None:
        if "choices" not in event and usage is None:
            chat_event.unread = _unread(event, _OF_AN_EVENT)
        return chat_event
    whole = whole_beside(choice)
    chat_event.is_copy = whole is not None
    delta = delta_of(choice if whole is None else {**choice, "delta": whole})
    chat_event.is_of_this_answer = True
    chat_event.error = error_in_choice(choice, delta)
    if chat_event.error is not None:
        return chat_event
    chat_event.finish_reason = reason(choice.get("finish_reason")) or reason(delta.get("finish_reason"))
    chat_event.content, chat_event.reasoning = content_of(delta.get("content"))
    if chat_event.reasoning:
        chat_event.reasoning_field = "content"
    for field, handed_back in _REASONING.items():
        if (value := delta.get(field)) and (thought := thoughts_of(value)):
            chat_event.reasoning += thought
            chat_event.reasoning_field = handed_back
            break
    if refusal := text(delta.get("refusal") or None):
        chat_event.refusal = refusal
        chat_event.content += refusal
    if calls := _calls_in(delta.get("tool_calls")) or _calls_in(delta.get("function_call")):
        chat_event.pieces = [read_piece(call) for call in calls]
    if logprobs := choice.get("logprobs"):
        chat_event.logprobs = _logprobs(logprobs)
    if not (chat_event.content or chat_event.reasoning or chat_event.pieces):
        chat_event.unread = _unread(choice) | _unread(delta)
    return chat_event


def _unread(place: Mapping[str, Any], read: Set[str] = _READ) -> Set[str]:
    return {
        str(name)[:_MOST_NAME_CHARACTERS]
        for name, value in place.items()
        if name not in read and isinstance(value, str | list | dict) and value
    }


def _calls_in(value: Any) -> list[Mapping[str, Any]]:
    """The calls in a list, or without one, or in an object by their index; [] where a word or a number stands.

    Raises:
        TypeError: there is something else in their place.
    """
    if not value:
        return []
    if isinstance(value, dict):
        is_one = bool(_OF_A_CALL & value.keys())
        value = [value] if is_one else [{"index": index, **call} for index, call in value.items() if call]
    if not isinstance(value, list):
        return []
    for call in value:
        if call and not isinstance(call, dict):
            raise TypeError(f"a tool call is {type(call).__name__}")
    return [call for call in value if call]


def _logprobs(logprobs: Any) -> list[dict[str, Any]]:
    """What every engine says of each token, whatever else one adds; without those that name no token."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    entries = []
    for token in tokens if isinstance(tokens, list) else ():
        if (known := _one_logprob(token)) is not None:
            others = token.get("top_logprobs")
            top = [_one_logprob(other) for other in others] if isinstance(others, list) else ()
            entries.append({**known, "top_logprobs": [other for other in top if other is not None]})
    return entries


def _one_logprob(token: Any) -> dict[str, Any] | None:
    if not isinstance(token, dict) or not isinstance(token.get("token"), str):
        return None
    return {"token": encodable(token["token"]), "logprob": number(token.get("logprob"))}
