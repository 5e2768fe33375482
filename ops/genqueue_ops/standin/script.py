"""What the stand-in is told to do: its pace, its length and its faults.

One ``Script`` holds for the server (constructor, command line, ``PUT /standin/script``).  A
directive inside a prompt changes it for one request, and for whoever continues it, since
the prompt travels along:

    Tell me a story {{standin {"itl_s": 0.05, "tokens": 20}}}
    {{standin {"faults": [{"kind": "cut", "after_tokens": 5, "times": 1}]}}}

This module holds no clock and counts nothing by itself: ``choose_fault`` is given the counts.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_OPENING = "{{standin "
_CLOSING = "}}"

FaultKind = Literal[
    "refuse", "status", "slow_headers", "error", "cut", "close", "reset", "stall", "garbage", "half", "drip"
]


class Fault(BaseModel):
    """One thing that goes wrong with one request.

    kind            what the client sees
    refuse          connection reset before any header
    status          HTTP ``status`` with ``body`` and ``headers``, after ``delay_s``
    slow_headers    nothing for ``delay_s``, then the usual answer
    error           the stream's error event ``error``/``error_type`` after ``after_tokens`` tokens;
                    of a request that does not stream, that answer
    cut             the stream ends cleanly after ``after_tokens`` tokens, without its end marker
    close           connection closed after ``after_tokens`` tokens, the chunked body unfinished
    reset           connection reset after ``after_tokens`` tokens
    stall           silence for ``delay_s`` (None: until the client leaves) after ``after_tokens`` tokens
    garbage         the event behind ``after_tokens`` tokens is no JSON; the stream goes on with the next
    half            the stream ends cleanly in the middle of the event behind ``after_tokens`` tokens
    drip            from ``after_tokens`` tokens on each event comes in pieces of a few bytes
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind
    times: int | None = Field(default=None, ge=0)
    """Fire only so many times; None: always."""
    scope: Literal["prompt", "server"] = "prompt"
    """Whose times are counted: each prompt's (a continuation counts with its first prompt), or all requests'."""
    after_tokens: int = Field(default=0, ge=0)
    """Counted in this response, not in the whole text."""
    delay_s: float | None = Field(default=None, ge=0)
    comments: bool = False
    """Whether a stall still sends keep-alive comments: the model hangs, not the network."""
    status: int = Field(default=503, ge=200, le=599)
    body: str | dict[str, Any] = ""
    """A string is sent as text/plain, an object as JSON."""
    headers: dict[str, str] = {}
    error: str = "Request failed during generation: the stand-in was told to fail"
    error_type: str = "generation"
    quotes: bool = False
    """Whether ``error`` and a ``body`` that is a string go on with what was asked, and with which headers."""


class Script(BaseModel):
    """Pace, length and faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_s: float = Field(default=0.0, ge=0)
    """From entering the batch to the first token."""
    itl_s: float = Field(default=0.0, ge=0)
    """From token to token."""
    tokens: int | None = Field(default=None, ge=0)
    """Tokens of the whole text, after which the model ends by itself; None: never."""
    special: bool = True
    """The model ends with a token ``</s>`` of its own; false: the last word is the end."""
    split_characters: bool = False
    """Some characters take two tokens, the first with text ``""``."""
    by_header: str | None = None
    """The text is another one for each value of this header; what was begun goes on as it began."""
    calls_tools: bool = False
    """A chat that offers tools gets a call of the first one, with the text as its one argument; else the text."""
    reasoning: int = Field(default=0, ge=0)
    """So many tokens of a chat's text are thoughts first (vLLM's; TGI has none)."""
    reasoning_name: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    """What thoughts are called; vLLM has said both."""
    healthy: bool = True
    """Whether ``/health``, ``/ping`` and ``GET /`` answer 200; false: TGI's 503.  Generation goes on."""
    asleep_s: float | None = Field(default=None, ge=0)
    """As an Inference Endpoint scaled to zero: 503 until so many seconds after the first request;
    one with the header ``X-Scale-Up-Timeout`` is held for as long."""
    faults: tuple[Fault, ...] = ()
    """A request gets the first fault that has not used up its times."""


class DirectiveError(ValueError):
    """The directive or the script is no valid JSON or has unknown or wrong fields."""


def changed(script: Script, update: Mapping[str, Any]) -> Script:
    """The script with some fields replaced.

    Raises:
        DirectiveError: unknown field or wrong value.
    """
    try:
        return Script.model_validate({**{name: getattr(script, name) for name in Script.model_fields}, **update})
    except ValidationError as error:
        raise DirectiveError(str(error)) from error


def directed(script: Script, prompt: str) -> Script:
    """The script as changed by the prompt's last directive, if it has one.

    Raises:
        DirectiveError: the directive cannot be read.
    """
    start = prompt.rfind(_OPENING)
    if start < 0:
        return script
    start += len(_OPENING)
    try:
        update, end = json.JSONDecoder().raw_decode(prompt, start)
    except ValueError as error:
        raise DirectiveError(f"directive: {error}") from error
    if not isinstance(update, dict) or not prompt.startswith(_CLOSING, end):
        raise DirectiveError(f"directive: expected a JSON object and {_CLOSING!r}")
    return changed(script, update)


def quoting(fault: Fault, asked: Any, headers: Mapping[str, str]) -> Fault:
    """The fault as a careless server words it, which tells all that it was sent."""
    quoted = f" for {json.dumps(asked)} with {json.dumps(dict(headers))}"
    body = fault.body + quoted if isinstance(fault.body, str) else fault.body
    return fault.model_copy(update={"error": fault.error + quoted, "body": body})


def choose_fault(script: Script, fired: Mapping[str, int], prompt_tag: str) -> tuple[Fault, str] | None:
    """The fault that a request meets, and the key under which its firing is to be counted.

    Args:
        script: the request's script.
        fired: how often each key has fired.
        prompt_tag: same for a prompt and its continuations (``prose.tag_of``).
    """
    for place, fault in enumerate(script.faults):
        key = f"{place} {fault.model_dump_json()} {prompt_tag if fault.scope == 'prompt' else ''}"
        if fault.times is None or fired.get(key, 0) < fault.times:
            return fault, key
    return None
