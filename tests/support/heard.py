"""A sink that keeps what it is given."""

from collections.abc import Sequence

from genqueue.wire.events import Token, ToolCallDelta


class Heard:
    """Takes what a stream brings: tokens, or a chat's deltas."""

    def __init__(self) -> None:
        self.pushed: list[tuple[Token, str, list[Token] | None]] = []
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: list[ToolCallDelta] = []
        self.kept_bytes = 0
        self.is_closed = False

    def push(self, token: Token, text: str, top_tokens: list[Token] | None = None) -> None:
        self.pushed.append((token, text, top_tokens))

    def push_delta(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> None:
        self.texts.append(text)
        self.reasoning.append(reasoning)
        self.tool_calls += tool_calls

    def keep(self, size_bytes: int) -> None:
        self.kept_bytes += size_bytes

    def close(self) -> None:
        self.is_closed = True
