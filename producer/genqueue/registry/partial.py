"""The output of a generation so far, as its record keeps it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from pydantic_core import to_json

from genqueue.wire.events import ToolCallDelta, join_tool_calls


class PartialOutput(NamedTuple):
    """The output so far; the last of ``tool_calls`` (as OpenAI has them) may break off."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()


_REASONING, _TOOL_CALLS = b"\xff", b"\xfe"
"""Bytes that no UTF-8 holds, before and after reasoning and tool calls."""


def encode_partial(text: str, reasoning: str, tool_calls: Sequence[ToolCallDelta] = ()) -> str | bytes:
    """The string that a flush adds to the text so far: text, reasoning and tool calls in one."""
    if not (reasoning or tool_calls):
        return text
    thought = (_REASONING, reasoning.encode(), _REASONING) if reasoning else ()
    called = (_TOOL_CALLS, to_json(tool_calls), _TOOL_CALLS) if tool_calls else ()
    return b"".join((*called, *thought, text.encode()))


_DELTAS = TypeAdapter(list[ToolCallDelta])


def decode_partial(raw: bytes | None) -> PartialOutput:
    """The output from strings of :func:`encode_partial`, joined; raises ValueError for anything else."""
    parts = (raw or b"").split(_TOOL_CALLS)
    deltas = [delta for part in parts[1::2] for delta in _DELTAS.validate_json(part)]
    parts = b"".join(parts[::2]).split(_REASONING)
    return PartialOutput(b"".join(parts[::2]).decode(), b"".join(parts[1::2]).decode(), join_tool_calls(deltas))


def heard_if_readable(raw: bytes | None) -> PartialOutput:
    """The output for a caller, who has an error or a cancel besides; empty where it cannot be read."""
    try:
        return decode_partial(raw)
    except ValueError:
        return PartialOutput()
