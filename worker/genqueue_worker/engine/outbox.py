"""What an attempt has to write: tokens in order, gathered into flushes."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genqueue.registry.attempts import Flush
from genqueue.registry.partial import encode_partial
from genqueue.wire.events import Token, ToolCallDelta, chunk_body, event_body
from genqueue_worker.observe.metrics import AttemptMeter
from genqueue_worker.upstream.fields import encodable
from genqueue_worker.upstream.sink import ReplyTooLongError

if TYPE_CHECKING:
    from genqueue_worker.engine.writer import Writer


_CONGESTION_TOKENS = 10_000
_NONE: list[Token] = []
"""The alternatives of a token that has none; nearly all have none, so they share it."""
_PIECE_BYTES = 50
"""What a piece of a tool call, or an alternative to a token, takes beside its text."""
_KEPT_FLUSHES = 128
"""Of each attempt, for a Redis that lost what it had answered: 2.5 s at the fastest."""


class Outbox:
    """What one attempt produced and nobody has been told yet.

    Attributes:
        parts: the whole text, piece by piece, beginning with the one that this attempt continues.
        earlier_text: that one; "" if it continues none.
        completion_tokens: tokens pushed, special ones included, on top of earlier attempts'; a
            delta of a chat counts as one.
        solid_tokens: those up to the last character that is not white space: where a later
            attempt would go on (:mod:`genqueue_worker.engine.continuation`).
        first_text_s: loop time of the first text; None before.
        is_congested: whether the producer of tokens should wait (:meth:`relief`).
        number: of the last flush that was taken.
        has_deltas: whether what came was deltas, of which one may be several tokens.
        written_tokens: how many of ``completion_tokens`` the registry has.
    """

    def __init__(
        self,
        writer: "Writer",
        generation_id: str,
        attempt: int,
        *,
        publish: bool,
        earlier_text: str = "",
        earlier_tokens: int = 0,
        max_reply_bytes: int,
        meter: AttemptMeter,
    ) -> None:
        self.generation_id = generation_id
        self.attempt = attempt
        self.publish = publish
        self.earlier_text = earlier_text
        self.parts: list[str] = [earlier_text] if earlier_text else []
        self.completion_tokens = earlier_tokens
        self.solid_tokens = earlier_tokens
        self.earlier_tokens = earlier_tokens
        self.written_tokens = earlier_tokens
        self.first_text_s: float | None = None
        self.is_congested = False
        self.has_deltas = False
        self._reply_bytes = _size_bytes(earlier_text)
        self._max_reply_bytes = max_reply_bytes
        self._began_s = writer.now_s()
        self._meter = meter
        self._metered_tokens = earlier_tokens
        self._writer = writer
        self.number = 0
        self._kept: deque[Flush] = deque(maxlen=_KEPT_FLUSHES)
        self._tokens: list[Token] = []
        self._top_tokens: list[list[Token]] = []
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: list[ToolCallDelta] = []
        self._deltas = 0
        self._bodies: list[bytes] = []
        self._mark = ""
        self._relieved = asyncio.Event()
        self._woken_s = 0.0
        self._waking_since_s: float | None = None

    def waking(self) -> None:
        """Tell readers that the server has to wake up first."""
        self._bodies.append(event_body("waking", {}))
        self._waking_since_s = self._writer.now_s()
        self._writer.wake(self)

    def awake(self) -> None:
        """It has woken up."""
        self._woken_s, self._waking_since_s = self.waking_s or 0.0, None

    @property
    def waking_s(self) -> float | None:
        """How long the server took, or takes, to wake up; None if it had not to."""
        since_s = 0.0 if self._waking_since_s is None else self._writer.now_s() - self._waking_since_s
        return (self._woken_s + since_s) or None

    def push(self, token: Token, text: str, top_tokens: list[Token] | None = None) -> None:
        """Take one token and the text that it adds."""
        self.completion_tokens += 1
        if not token.text.isascii():
            token, text = token._replace(text=encodable(token.text)), encodable(text)
        self._tokens.append(token)
        if not text:
            self._reply_bytes += _size_bytes(token.text)
        if top_tokens:
            top_tokens = [other._replace(text=encodable(other.text)) for other in top_tokens]
            self._reply_bytes += sum(_PIECE_BYTES + _size_bytes(other.text) for other in top_tokens)
        self._top_tokens.append(top_tokens or _NONE)
        if text:
            self._add_text(text)
            if not text.isspace():
                self.solid_tokens = self.completion_tokens
        self._came(len(self._tokens))

    def push_delta(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> None:
        """Take what one event of a chat adds."""
        self.completion_tokens += 1
        self._deltas += 1
        self.has_deltas = True
        if text:
            self._add_text(encodable(text))
        elif not (reasoning or tool_calls):
            self._text.append("")  # an end of its own, as the end token is one where tokens are named
        if reasoning:
            self._begin()
            self._reasoning.append(encodable(reasoning))
            self._reply_bytes += _size_bytes(self._reasoning[-1])
        for call in tool_calls:
            self._begin()
            self._add_tool_call(call)
        if tool_calls or (text and not text.isspace()) or (reasoning and not reasoning.isspace()):
            self.solid_tokens = self.completion_tokens
        self._came(self._deltas)

    def close(self) -> None:
        """Nothing more will be pushed.

        What is there goes out with the end, in one piece: were the last token written and its
        worker dead before the end is, another attempt would generate on behind it.
        """
        self._writer.drop(self)

    def keep(self, size_bytes: int) -> None:
        """Count what is kept of the answer beside its text and tokens."""
        self._reply_bytes += size_bytes
        if self._reply_bytes > self._max_reply_bytes:
            raise ReplyTooLongError(f"reply: has more than {self._max_reply_bytes} bytes, which is max_reply_bytes")

    def push_text(self, text: str) -> None:
        """Take text that no token brought."""
        self._add_text(encodable(text))
        self._writer.wake(self)
        self.keep(0)

    def reset(self) -> None:
        """Tell readers to forget what earlier attempts wrote."""
        self._bodies.append(event_body("reset", {}))
        self._mark = "reset"
        self._writer.wake(self)

    def resume(self) -> None:
        """Tell readers that the text goes on."""
        self._bodies.append(event_body("resumed", {}))
        self._writer.wake(self)

    async def relief(self) -> None:
        """Wait until what was pushed is on its way."""
        await self._relieved.wait()

    def take(self) -> Flush:
        """Everything since the last take, as one flush."""
        self.measure()
        bodies, self._bodies = self._bodies, []
        text = "".join(self._text)
        reasoning = "".join(self._reasoning)
        if self.publish and (self._tokens or self._text or reasoning or self._tool_calls):
            top_tokens = self._top_tokens if any(self._top_tokens) else None
            pieces = [len(part) for part in self._text] if len(self._text) > 1 and not self._tokens else ()
            bodies.append(chunk_body(text, self._tokens, top_tokens, reasoning, self._tool_calls, pieces))
        self.number += 1
        flush = Flush(
            self.generation_id,
            self.attempt,
            self.number,
            self.completion_tokens,
            encode_partial(text, reasoning, self._tool_calls),
            self._mark,
            bodies,
            self.solid_tokens,
        )
        self._tokens, self._top_tokens, self._text, self._mark = [], [], [], ""
        self._reasoning, self._tool_calls, self._deltas = [], [], 0
        if self.is_congested:
            self.is_congested = False
            self._relieved.set()
        self._reply_bytes += sum(map(len, bodies))
        self._kept.append(flush)
        return flush

    def measure(self) -> None:
        """Count the tokens that came since this was last asked for."""
        self._meter.produced(self.completion_tokens - self._metered_tokens)
        self._metered_tokens = self.completion_tokens

    def since(self, number: int) -> list[Flush]:
        """The flushes behind ``number``; [] where they are no longer all kept."""
        found = [flush for flush in self._kept if flush.number > number]
        return found if found and found[0].number == number + 1 else []

    @property
    def is_urgent(self) -> bool:
        """Whether this must not wait for its turn: the first text that a reader sees."""
        return self._mark == "first" and self.publish

    def _came(self, waiting: int) -> None:
        if self._reply_bytes > self._max_reply_bytes:
            self.keep(0)
        if waiting >= _CONGESTION_TOKENS:
            self.is_congested = True
            self._relieved.clear()
        self._writer.wake(self)

    def _begin(self) -> None:
        if self.first_text_s is None:
            self.first_text_s = self._writer.now_s()
            self._meter.first_text(self.first_text_s - self._began_s)
            self._mark = self._mark or "first"

    def _add_text(self, text: str) -> None:
        self._begin()
        self._reply_bytes += _size_bytes(text)
        self.parts.append(text)
        self._text.append(text)

    def _add_tool_call(self, call: ToolCallDelta) -> None:
        """Add a piece to the one before it, if it only goes on with that; a call is hundreds of pieces."""
        call = call._replace(arguments=encodable(call.arguments))
        self._reply_bytes += _PIECE_BYTES + sum(
            _size_bytes(part or "") for part in (call.id, call.name, call.arguments)
        )
        last = self._tool_calls[-1] if self._tool_calls else None
        if last is not None and (call.index, call.id, call.name) == (last.index, None, None):
            self._tool_calls[-1] = last._replace(arguments=last.arguments + call.arguments)
        else:
            self._tool_calls.append(call)


def _size_bytes(text: str) -> int:
    """How long encodable text is as UTF-8; without a copy where that is easily told."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
