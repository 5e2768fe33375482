"""How each route writes its answer: the native ones and the chat one.

A finished or running sequence goes in, bytes come out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from genqueue_ops.standin import wire
from genqueue_ops.standin.chat import ChatRequest
from genqueue_ops.standin.decoding import Decoded
from genqueue_ops.standin.engine import Step, Token
from genqueue_ops.standin.protocol import GenerateRequest, TgiError, ValidRequest
from genqueue_ops.standin.script import Script


@dataclass(slots=True)
class Timings:
    """Seconds of one clock at which a request passed each station."""

    received_s: float
    validated_s: float = 0.0
    started_s: float = 0.0
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One sequence: what was asked, and what has been decoded so far."""

    valid: ValidRequest
    prefill: Sequence[Token]
    """The prompt's tokens, as far as the answer may show them."""
    timings: Timings
    decoded: Decoded


class Answer(Protocol):
    """One route's way to write."""

    def event(self, run: Run, step: Step) -> bytes:
        """The stream's event for a step that ``run.decoded`` has already taken."""
        ...

    def error_event(self, error: TgiError) -> bytes:
        """The event of a stream that fails."""
        ...

    def end(self) -> bytes:
        """What follows the last event, also after an error."""
        ...

    def body(self, best: Run, others: Sequence[Run]) -> bytes:
        """The answer to a request that does not stream; ``others`` are the rest of ``best_of``."""
        ...


@dataclass(frozen=True, slots=True)
class NativeAnswer:
    """``/generate``, ``/generate_stream`` and ``/``.

    Args:
        request: as parsed.
        compat: the route is ``/``: a list of one, and ``return_full_text`` by default.
    """

    request: GenerateRequest
    compat: bool

    def event(self, run: Run, step: Step) -> bytes:
        """See ``Answer``; the last event carries the whole text."""
        decoded = run.decoded
        index = len(decoded.tokens)
        if decoded.finish_reason is None:
            return wire.token_event(index, step.token, step.top_tokens)
        details = wire.stream_details(decoded, run.valid.seed, run.valid.input_tokens)
        return wire.last_token_event(
            index,
            step.token,
            step.top_tokens,
            self._prefix() + decoded.text,
            details if self.request.parameters.details else None,
        )

    def error_event(self, error: TgiError) -> bytes:
        """See ``Answer``."""
        return b"data: " + wire.error_body(error.message, error.error_type) + b"\n\n"

    def end(self) -> bytes:
        """See ``Answer``; nothing follows."""
        return b""

    def body(self, best: Run, others: Sequence[Run]) -> bytes:
        """See ``Answer``."""
        p = self.request.parameters
        generated = wire.generated(
            best.decoded,
            prefix=self._prefix(),
            seed=best.valid.seed,
            prefill=best.prefill if p.details or p.decoder_input_details else None,
            others=[other.decoded for other in others],
        )
        return wire.json_bytes([generated] if self.compat else generated)

    def _prefix(self) -> str:
        full = self.request.parameters.return_full_text
        return self.request.inputs if (self.compat if full is None else full) else ""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """``/v1/chat/completions``.

    Args:
        request: as parsed.
        model: to report.
        fingerprint: ``system_fingerprint``.
        created_s: epoch seconds.
        script: whether it calls a tool, and how much of the text is thoughts.
    """

    request: ChatRequest
    model: str
    fingerprint: str
    created_s: int
    script: Script = field(default_factory=Script)
    _head: bytes = field(init=False)

    def __post_init__(self) -> None:
        head = wire.json_bytes(self._envelope("chat.completion.chunk"))
        object.__setattr__(self, "_head", head[:-1] + b',"choices":[')

    def event(self, run: Run, step: Step) -> bytes:
        """See ``Answer``; where asked for, the usage follows the last token."""
        decoded, token = run.decoded, step.token
        ended = decoded.finish_reason is not None
        # After a tool call TGI never says why it ended.
        reason = None if self._tool else _chat_reason(decoded.finish_reason)
        data = (
            b'data: %b{"index":0,"delta":{"role":"assistant",%b},"logprobs":%b,"finish_reason":%b}],'
            b'"usage":null}\n\n'
            % (
                self._head,
                self._delta(
                    "" if token.special else token.text, len(decoded.tokens), decoded.finish_reason == "eos_token"
                ),
                wire.json_bytes({"content": [_logprob(token, step.top_tokens)]}) if self.request.logprobs else b"null",
                b"null" if reason is None else wire.json_string(reason),
            )
        )
        if ended and self.request.include_usage:
            data += b'data: %b],"usage":%b}\n\n' % (self._head, wire.json_bytes(_usage(run)))
        return data

    def error_event(self, error: TgiError) -> bytes:
        """See ``Answer``; the status is 422 whatever the error."""
        return wire.sse({"error": {"message": error.message, "http_status_code": 422}})

    def end(self) -> bytes:
        """See ``Answer``."""
        return wire.DONE

    def body(self, best: Run, others: Sequence[Run]) -> bytes:
        """See ``Answer``; a chat has no ``best_of``."""
        decoded = best.decoded
        logprobs = None
        if self.request.logprobs:
            pairs = zip(decoded.tokens, decoded.top_tokens, strict=True)
            logprobs = {"content": [_logprob(token, top) for token, top in pairs]}
        message: dict[str, Any] = {"role": "assistant", "content": decoded.text}
        if thoughts := "".join(token.text for token in decoded.tokens[: self.script.reasoning] if not token.special):
            message |= {"content": decoded.text[len(thoughts) :], self.script.reasoning_name: thoughts}
        if self._tool:
            arguments = json.dumps({"text": decoded.text}, ensure_ascii=False)
            function = {"description": None, "name": self._tool, "arguments": arguments}
            message = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _chat_reason(decoded.finish_reason),
        }
        return wire.json_bytes({**self._envelope("chat.completion"), "choices": [choice], "usage": _usage(best)})

    @property
    def _tool(self) -> str | None:
        return self.request.tool if self.script.calls_tools else None

    def _delta(self, text: str, index: int, is_whole: bool) -> bytes:
        """What the token ``index`` (from 1) adds: to the call's arguments, to the thoughts, or to the text.

        ``is_whole`` is whether the model ended by itself; a call that was cut off is no JSON.
        """
        if self._tool:
            function = {
                "name": self._tool if index == 1 else None,
                "arguments": ('{"text": "' if index == 1 else "") + json.dumps(text)[1:-1] + ('"}' if is_whole else ""),
            }
            call = {"index": 0, "id": "0", "type": "function", "function": function}
            return b'"tool_calls":' + wire.json_bytes([call])
        name = self.script.reasoning_name if index <= self.script.reasoning else "content"
        return wire.json_string(name) + b":" + wire.json_string(text)

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "object": kind,
            "id": "",
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _chat_reason(reason: str | None) -> str | None:
    return "stop" if reason == "eos_token" else reason


def _usage(run: Run) -> dict[str, int]:
    prompt, completion = run.valid.input_tokens, len(run.decoded.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _logprob(token: Token, top_tokens: Sequence[Token]) -> dict[str, Any]:
    tops = [{"token": top.text, "logprob": top.logprob} for top in top_tokens]
    return {"token": token.text, "logprob": token.logprob, "top_logprobs": tops}
