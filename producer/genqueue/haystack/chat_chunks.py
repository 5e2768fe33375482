"""A chat as Haystack's component shows it, in streaming chunks. Pure.

A chunk of Haystack holds text, or reasoning, or tool calls, of one event; the queue's may hold some
of each, of several.
"""

from datetime import datetime
from typing import Any

from haystack.dataclasses import ComponentInfo, FinishReason, ReasoningContent, StreamingChunk, ToolCallDelta

from genqueue.haystack.chunks import Chunks
from genqueue.wire.events import Chunk
from genqueue.wire.result import GenerationResult

Piece = dict[str, Any]
"""What one streaming chunk says: the fields that not all have."""


class ChatChunks(Chunks[Piece]):
    """The streaming chunks of one chat.

    Args:
        component_info: of the component that streams.
        model: where the component was told that the model is; None if it was not.
    """

    def __init__(self, component_info: ComponentInfo, model: str | None) -> None:
        super().__init__(component_info)
        self._model = model

    def end(self, result: GenerationResult) -> list[StreamingChunk]:
        """What was held back, how it ended, and what it took."""
        meta = result.meta[0]
        self._model = self._model or meta["model"]
        if not self._held or not self._held[-1].keys() <= {"content"}:
            self._held.append({"content": ""})
        self._held[-1] |= {
            "index": None,
            "finish_reason": haystacks_word(meta["finish_reason"], called=bool(meta.get("tool_calls"))),
            "meta": {"finish_reason": meta["finish_reason"]},
        }
        usage = {"content": "", "index": None, "meta": {"usage": usage_of(result)}}
        return [self._shown(piece) for piece in (*self._held, usage)]

    def _pieces(self, chunk: Chunk) -> list[Piece]:
        """A chunk of the queue as Haystack may have it; reasoning comes before the answer, and that before calls."""
        pieces: list[Piece] = []
        if chunk.reasoning:
            pieces.append({"content": "", "reasoning": ReasoningContent(reasoning_text=chunk.reasoning)})
        if chunk.text or not (chunk.reasoning or chunk.tool_calls):
            pieces += [{"content": text} for text in chunk.texts()]
        for call in chunk.tool_calls:
            delta = ToolCallDelta(index=call.index, tool_name=call.name, arguments=call.arguments, id=call.id)
            starts = {"start": True} if call.name is not None else {}
            pieces.append({"content": "", "tool_calls": [delta], "index": call.index, **starts})
        return pieces

    def _shown(self, piece: Piece) -> StreamingChunk:
        now = datetime.now().isoformat()  # noqa: DTZ005  # local and naive, as Haystack's are
        is_first = self.first_at is None
        self.first_at = self.first_at or now
        meta = {"model": self._model, "received_at": now, **piece.pop("meta", {"finish_reason": None})}
        fields = {"index": 0, "start": is_first, **piece}
        return StreamingChunk(meta=meta, component_info=self._component_info, **fields)


def haystacks_word(finish_reason: str | None, *, called: bool) -> FinishReason | None:
    """Haystack's word for how an answer ended; ``called`` is whether it calls a tool."""
    if finish_reason is None:
        return None
    return "length" if finish_reason == "length" else "tool_calls" if called else "stop"


def usage_of(result: GenerationResult) -> dict[str, int]:
    """The token counts; 0 where the server did not say."""
    return {name: count or 0 for name, count in result.meta[0]["usage"].items()}
