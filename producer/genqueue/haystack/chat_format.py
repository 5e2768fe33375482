"""Haystack's messages and tools as chat servers take them, and a result as Haystack's message. Pure."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from haystack import logging
from haystack.dataclasses import ChatMessage, ImageContent, ReasoningContent, TextContent, ToolCall, ToolCallResult
from haystack.tools.tool import Tool
from haystack.utils.hf import convert_message_to_hf_format

from genqueue.haystack.chat_chunks import haystacks_word, usage_of
from genqueue.wire.result import GenerationResult

logger = logging.getLogger(__name__)


def messages_for(messages: Sequence[ChatMessage] | str) -> list[dict[str, Any]]:
    """The messages as OpenAI and Hugging Face have them; what a model reasoned before is left out.

    Raises:
        TypeError: they are neither a list of messages nor a string.
        ValueError: a message says nothing, or more than servers take, or has a part of a kind that they do not.
    """
    if isinstance(messages, str):
        messages = [ChatMessage.from_user(messages)]
    if not isinstance(messages, list) or not all(isinstance(message, ChatMessage) for message in messages):
        raise TypeError("Invalid messages type. Expected list[ChatMessage] or str.")
    converted = []
    ids: list[tuple[ToolCall, str]] = []  # of every call so far, the newest last
    for message in messages:
        _check_parts(message)
        sent = convert_message_to_hf_format(message)
        for call, sent_call in zip(message.tool_calls, sent.get("tool_calls", ()), strict=False):
            ids.append((call, sent_call.setdefault("id", str(len(ids)))))
        for result in message.tool_call_results:
            sent["content"] = _content_of(result)
            known = next((call_id for call, call_id in reversed(ids) if call == result.origin), None)
            if "tool_call_id" not in sent and known is not None:
                sent["tool_call_id"] = known
        converted.append(sent)
    return converted


_SENT = (TextContent, ImageContent, ToolCall, ToolCallResult, ReasoningContent)


def _check_parts(message: ChatMessage) -> None:
    """Refuse what Haystack's conversion would leave out without a word."""
    for part in message._content:
        if not isinstance(part, _SENT):
            raise ValueError(
                f"A `ChatMessage` with a `{type(part).__name__}` cannot be sent: the chat route of the Hugging Face "
                "API takes `TextContent` and `ImageContent` only."
            )


def _content_of(result: ToolCallResult) -> str | list[dict[str, Any]]:
    """A tool's result as servers take it: a text, or parts."""
    if isinstance(result.result, str):
        return result.result
    parts: list[dict[str, Any]] = []
    for part in result.result:
        if isinstance(part, TextContent):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ImageContent):
            url = f"data:{part.mime_type or 'image/jpeg'};base64,{part.base64_image}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            raise ValueError(
                f"A `ToolCallResult` with a `{type(part).__name__}` cannot be sent: the chat route of the Hugging Face "
                "API takes `TextContent` and `ImageContent` only."
            )
    return parts


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

    inlined: dict[str, Any] = inline(schema, frozenset()) if defs else schema
    return inlined


def message_from(result: GenerationResult, model: str | None, first_at: str | None) -> ChatMessage:
    """The answer as Haystack has it.

    Args:
        model: where the component was told that the model is; None if it was not.
        first_at: when the first streaming chunk was shown; None if nothing streamed.
    """
    own_meta, text = result.meta[0], result.replies[0]
    tool_calls = [call for raw in own_meta.get("tool_calls") or () if (call := _tool_call(raw)) is not None]
    meta: dict[str, Any] = {
        "model": model or own_meta["model"],
        "index": 0,
        "finish_reason": haystacks_word(own_meta["finish_reason"], called=bool(own_meta.get("tool_calls"))),
        "usage": usage_of(result),
    }
    if first_at is not None:
        meta["completion_start_time"] = first_at
    return ChatMessage.from_assistant(
        text=text or None if tool_calls or first_at is not None else text,
        tool_calls=tool_calls,
        reasoning=own_meta.get("reasoning"),
        meta=meta,
    )


def _tool_call(raw: dict[str, Any]) -> ToolCall | None:
    """A tool call of a result; None, and a word in the log, if its arguments are no JSON object."""
    if raw.get("type") == "custom":  # its input is a text, for which Haystack has no place
        logger.warning("The model called the custom tool {tool}; the call is left out.", tool=raw["custom"]["name"])
        return None
    name, arguments = raw["function"]["name"], raw["function"]["arguments"]
    try:
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except json.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        logger.warning("The model called {tool} with what is no JSON object; the call is left out.", tool=name)
        return None
    return ToolCall(tool_name=name, arguments=read, id=raw.get("id"))
