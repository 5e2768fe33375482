"""Texts of the benchmark: each token carries its number and the endpoint's clock.

Pure.  The endpoint's side turns them into the bytes of TGI's two streams, as templates, so that
a token costs one formatting.  The reader's side finds out whether a text is whole, and when each
of its tokens was written.  The endpoint itself is in ``standin.py``.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_CLOCK_DIGITS = 15
_TOKEN = re.compile(r" (\d+):(\d{15})")

INSTANT = "[instant] "
"""A prompt that begins so is answered at once, with all of its tokens."""


@dataclass(frozen=True, slots=True)
class Route:
    """How one of TGI's routes spells a stream: its own, or that of a chat."""

    is_chat: bool

    def event(self, index: int, text: str) -> bytes:
        """The event of token ``index``, which is not the last one."""
        return _event(_chat_chunk(text, None) if self.is_chat else _native(index, text, None, None))

    def last(self, index: int, text: str, whole: str, *, with_usage: bool) -> bytes:
        """The events from the last token to the end of the stream.

        Args:
            index: of the last token.
            text: of the last token.
            whole: the text of all tokens.
            with_usage: a chat was asked for the numbers of tokens (``stream_options``).
        """
        if not self.is_chat:
            details = {"finish_reason": "length", "generated_tokens": index + 1, "seed": None, "input_length": 3}
            return _event(_native(index, text, whole, details))
        ending = _event(_chat_chunk(text, "length"))
        if with_usage:
            usage = {"prompt_tokens": 3, "completion_tokens": index + 1, "total_tokens": index + 4}
            ending += _event({**_chat_chunk("", None), "choices": [], "usage": usage})
        return ending + b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _native(index: int, text: str, whole: str | None, details: dict[str, Any] | None) -> dict[str, Any]:
    token = {"id": index, "text": text, "logprob": -0.5, "special": False}
    return {"index": index + 1, "token": token, "generated_text": whole, "details": details}


def _chat_chunk(text: str, finish_reason: str | None) -> dict[str, Any]:
    delta = {"role": "assistant", "content": text}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"object": "chat.completion.chunk", "id": "", "created": 1, "model": "bench", "system_fingerprint": "bench"}
    return {**head, "choices": [choice], "usage": None}


def token_text(index: int, clock_us: int) -> str:
    """The text of one token: its number from 0, and the endpoint's monotonic clock when it was written."""
    return f" {index}:{clock_us:0{_CLOCK_DIGITS}d}"


def http_chunk(data: bytes) -> bytes:
    """``data`` as one chunk of HTTP/1.1's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


class Templates:
    """The HTTP chunks of one route's tokens, each with a place for the clock.

    ``templates[index] % clock_us`` is what goes on the wire for token ``index``, if it is not the last one.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self._made: list[bytes] = []

    def up_to(self, count: int) -> Sequence[bytes]:
        """The templates of at least the tokens 0 to ``count`` - 1."""
        for index in range(len(self._made), count):
            whole = http_chunk(self.route.event(index, token_text(index, 0)))
            head, clock, tail = whole.partition(b"0" * _CLOCK_DIGITS)
            assert clock and b"%" not in whole, "an event that is no template"
            self._made.append(head + b"%%0%dd" % _CLOCK_DIGITS + tail)
        return self._made


def clocks_us(text: str) -> list[int]:
    """The endpoint's clock of each token in ``text``, in its order."""
    return [int(clock) for _, clock in _TOKEN.findall(text)]


def fault(text: str, tokens: int) -> str | None:
    """What is wrong with a text that must have ``tokens`` tokens, each once and in order; None if nothing is."""
    expected = 0
    end = 0
    for token in _TOKEN.finditer(text):
        if token.start() != end:
            return f"{text[end : token.start()]!r} before token {expected} of {tokens}"
        if int(token[1]) != expected:
            return f"token {token[1]} where token {expected} of {tokens} belongs"
        expected += 1
        end = token.end()
    if end != len(text):
        return f"{text[end:]!r} after token {expected - 1} of {tokens}"
    return None if expected == tokens else f"{expected} tokens of {tokens}"
