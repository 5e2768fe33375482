"""Haystack's messages and tools as chat servers take them, and a result as Haystack's message. Pure."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from haystack import logging
from haystack.dataclasses import ChatMessage, ToolCall
from haystack.tools.tool import Tool
from haystack.utils.hf import convert_message_to_hf_format

from genqueue.haystack.chat_chunks import haystacks_word, usage_of
from genqueue.messages import GenerationResult

logger = logging.getLogger(__name__)


def messages_for(messages: Sequence[ChatMessage] | str) -> list[dict[str, Any]]:
    """The messages as OpenAI and Hugging Face have them; what a model reasoned before is left out.

    Raises:
        TypeError: they are neither a list of messages nor a string.
        ValueError: a message says nothing, or more than servers take.
    """
    if isinstance(messages, str):
        messages = [ChatMessage.from_user(messages)]
    if not isinstance(messages, list) or not all(isinstance(message, ChatMessage) for message in messages):
        raise TypeError("Invalid messages type. Expected list[ChatMessage] or str.")
    converted = [convert_message_to_hf_format(message) for message in messages]
    for message in converted:
        for place, call in enumerate(message.get("tool_calls", ())):
            call.setdefault("id", str(place))
    return converted


def tools_for(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """What a model is told of ``tools``; None if there are none.

    Raises:
        ValueError: two have the same name.
    """
    twice = [name for name, count in Counter(tool.name for tool in tools).items() if count > 1]
    if twice:
        raise ValueError(f"Duplicate tool names found: {set(twice)}")
    return [
        {"type": "function", "function": {**tool.tool_spec, "parameters": inlined(tool.parameters)}} for tool in tools
    ] or None


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with each ``#/$defs/…`` in place of its ``$ref``, since servers know no ``$ref``.

    A definition that holds itself keeps its inner ``$ref``.
    """
    defs = schema.get("$defs", {})

    def inline(part: Any, within: frozenset[str]) -> Any:
        if isinstance(part, list):
            return [inline(item, within) for item in part]
        if not isinstance(part, dict):
            return part
        name = str(part.get("$ref", "")).removeprefix("#/$defs/")
        if name in defs and name not in within:
            return inline(defs[name], within | {name})
        return {key: inline(value, within) for key, value in part.items() if key != "$defs"}

    found: dict[str, Any] = inline(schema, frozenset()) if defs else schema
    return found


def message_from(result: GenerationResult, model: str | None, first_at: str | None) -> ChatMessage:
    """The answer as Haystack has it.

    Args:
        model: where the component was told that the model is; None if it was not.
        first_at: when the first streaming chunk was shown; None if nothing streamed.
    """
    found, text = result.meta[0], result.replies[0]
    tool_calls = [call for raw in found.get("tool_calls") or () if (call := _tool_call(raw)) is not None]
    meta: dict[str, Any] = {
        "model": model or found["model"],
        "index": 0,
        "finish_reason": haystacks_word(found["finish_reason"], called=bool(found.get("tool_calls"))),
        "usage": usage_of(result),
    }
    if first_at is not None:
        meta["completion_start_time"] = first_at
    return ChatMessage.from_assistant(
        text=text or None if tool_calls or first_at is not None else text,
        tool_calls=tool_calls,
        reasoning=found.get("reasoning"),
        meta=meta,
    )


def _tool_call(raw: dict[str, Any]) -> ToolCall | None:
    """A tool call of a result; None, and a word in the log, if its arguments are no JSON object."""
    name, arguments = raw["function"]["name"], raw["function"]["arguments"]
    try:
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except json.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        logger.warning("The model called {tool} with what is no JSON object; the call is left out.", tool=name)
        return None
    return ToolCall(tool_name=name, arguments=read, id=raw.get("id"))
