"""Text generation as Haystack's component shows it: one streaming chunk for each token. Pure.

The queue's chunks hold several tokens where they came fast; here they are apart again.  Where a
provider names no tokens, the pieces of text stand for them.  The last chunk carries how the
generation ended.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from haystack.dataclasses import ComponentInfo, FinishReason, StreamingChunk

from genqueue.haystack.chunks import Chunks
from genqueue.wire.events import Chunk, Token
from genqueue.wire.result import GenerationResult

_FINISH_REASONS: dict[str, FinishReason] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


@dataclass(slots=True)
class _Piece:
    text: str
    meta: dict[str, Any]


class TextChunks(Chunks[_Piece]):
    """The streaming chunks of one text."""

    def __init__(self, component_info: ComponentInfo) -> None:
        super().__init__(component_info)
        self._last_special: Token | None = None

    def end(self, result: GenerationResult) -> list[StreamingChunk]:
        """What was held back; the last chunk says how it ended."""
        meta = result.meta[0]
        if self._last_special is not None or not self._held:
            self._held.append(_Piece("", self._last_special._asdict() if self._last_special is not None else {}))
        self._held[-1].meta |= {
            "finish_reason": meta["finish_reason"],
            "generated_tokens": meta["usage"]["completion_tokens"],
            "input_length": meta["usage"]["prompt_tokens"],
            "seed": meta.get("seed"),
        }
        return [self._shown(piece) for piece in self._held]

    def _pieces(self, chunk: Chunk) -> list[_Piece]:
        pieces = []
        for token in chunk.tokens:
            self._last_special = token if token.special else None
            if not token.special:
                pieces.append(_Piece(token.text, token._asdict()))
        if chunk.text != "".join(piece.text for piece in pieces):  # no token brought it, or not all of a token is new
            self._last_special = None
            meta = pieces[-1].meta if pieces else {}
            pieces = [_Piece(text, dict(meta)) for text in chunk.texts()]
        return pieces

    def _shown(self, piece: _Piece) -> StreamingChunk:
        is_first = self.first_at is None
        self.first_at = self.first_at or datetime.now().isoformat()  # noqa: DTZ005  # local and naive, as Haystack's are
        finish_reason = piece.meta.get("finish_reason")
        return StreamingChunk(
            content=piece.text,
            meta=piece.meta,
            component_info=self._component_info,
            index=0,
            start=is_first,
            finish_reason=_FINISH_REASONS.get(finish_reason, "stop") if finish_reason else None,
        )
