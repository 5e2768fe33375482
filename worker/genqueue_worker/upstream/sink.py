"""Where a generator's tokens go: the interface between whoever calls the model and whoever writes."""

from collections.abc import Sequence
from typing import Protocol

from genqueue.wire.events import Token, ToolCallDelta


class Stopped(Exception):
    """Raised by a sink that wants no more tokens: the text is complete, though its server would go on."""


class ReplyTooLongError(Exception):
    """Raised by a sink that may take no more."""


class Sink(Protocol):
    """Takes tokens as they come; :class:`genqueue_worker.engine.outbox.Outbox` is one."""

    def waking(self) -> None:
        """Nothing can come before the server has woken up."""

    def awake(self) -> None:
        """It has."""

    @property
    def completion_tokens(self) -> int:
        """How many were pushed, and by earlier attempts that this one goes on with."""

    @property
    def is_congested(self) -> bool:
        """Whether whoever pushes should wait for :meth:`relief`."""

    def push(self, token: Token, text: str, top_tokens: list[Token] | None = None) -> None:
        """Take one token and the text that it adds; may raise Stopped or ReplyTooLongError."""

    def push_delta(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> None:
        """Take what one event of a chat adds; its server does not name the token.  May raise the same."""

    def keep(self, size_bytes: int) -> None:
        """Count what is kept of the answer beside that, until its result is written; may raise ReplyTooLongError."""

    def close(self) -> None:
        """Nothing more will be pushed: what is there goes out with the end."""

    async def relief(self) -> None:
        """Wait until there is room again."""
