"""Where a text that is continued meets what was there."""

from collections.abc import Sequence

from genqueue.wire.events import Token, ToolCallDelta
from genqueue_worker.upstream.sink import Sink, Stopped


class Seam:
    """What a continued stream must not say again, and where it must stop though its server does not."""

    def __init__(self, text: str, tail: str, stops: Sequence[str]) -> None:
        self._tail = tail
        self._stops = list(stops)
        # The last characters that a stop sequence could begin with, without the tail, which comes again.
        before = text[: len(text) - len(tail)]
        reach = max((len(stop) for stop in stops), default=1) - 1
        self._recent = before[max(0, len(before) - reach) :]
        self._said = 0

    def take(self, text: str) -> str:
        """The part of a token's text that readers do not have yet."""
        self._recent += text
        self._said += len(text)
        if not self._tail:
            return text
        same = 0
        while same < min(len(text), len(self._tail)) and text[same] == self._tail[same]:
            same += 1
        # Either it all matched, or the tail is used up, or the server says something else now.
        self._tail = self._tail[same:] if same == len(text) else ""
        return text[same:]

    @property
    def is_stopped(self) -> bool:
        """Whether the text ends in a stop sequence of which the server has generated only a part."""
        return any(len(stop) > self._said and self._recent.endswith(stop) for stop in self._stops)


class ContinuedSink:
    """Takes the tokens of a continued stream, and passes on what readers do not have yet."""

    def __init__(self, sink: Sink, seam: Seam) -> None:
        self._sink = sink
        self._seam = seam

    def waking(self) -> None:
        """As the sink behind it."""
        self._sink.waking()

    def awake(self) -> None:
        """As the sink behind it."""
        self._sink.awake()

    @property
    def completion_tokens(self) -> int:
        """As the sink behind it."""
        return self._sink.completion_tokens

    @property
    def is_congested(self) -> bool:
        """As the sink behind it."""
        return self._sink.is_congested

    def push(self, token: Token, text: str, top_tokens: list[Token] | None = None) -> None:
        """Take one token; raises Stopped when the text is complete."""
        self._sink.push(token, self._seam.take(text), top_tokens)
        if self._seam.is_stopped:
            raise Stopped

    def push_delta(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> None:
        """Take one event of a chat; raises Stopped when the text is complete."""
        self._sink.push_delta(self._seam.take(text), reasoning, tool_calls)
        if self._seam.is_stopped:
            raise Stopped

    def keep(self, size_bytes: int) -> None:
        """As the sink behind it."""
        self._sink.keep(size_bytes)

    def close(self) -> None:
        """As the sink behind it."""
        self._sink.close()

    async def relief(self) -> None:
        """As the sink behind it."""
        await self._sink.relief()
