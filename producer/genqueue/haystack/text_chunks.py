"""Text generation as Haystack's component shows it: one streaming chunk for each token. Pure.

The queue's chunks hold several tokens where they came fast; here they are apart again.  The
chunk of the last token carries how the generation ended, which is why what comes together
with the end is held back until the result is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from haystack.dataclasses import ComponentInfo, FinishReason, StreamingChunk

from genqueue.messages import Chunk, Event, Finished, GenerationResult, Reset, Token

_FINISH_REASONS: dict[str, FinishReason] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


@dataclass(slots=True)
class _Piece:
    text: str
    meta: dict[str, Any]


class TextChunks:
    """The streaming chunks of one generation.

    Args:
        component_info: of the component that streams.

    Attributes:
        first_at: local time of the first chunk, ISO 8601; None before.
    """

    def __init__(self, component_info: ComponentInfo) -> None:
        self.first_at: str | None = None
        self._component_info = component_info
        self._starts = True
        self._restarts = False
        self._last_special: Token | None = None
        self._held: list[_Piece] = []

    def feed(self, batch: Sequence[Event]) -> list[StreamingChunk]:
        """What can be shown of ``batch``; all of it, unless the end is in it."""
        pieces: list[_Piece] = []
        for event in batch:
            if isinstance(event, Reset):
                pieces, self._restarts, self._starts = [], True, True
            elif isinstance(event, Chunk):
                pieces += self._pieces(event)
        if any(isinstance(event, Finished) for event in batch):
            self._held = pieces
            return []
        return [self._shown(piece) for piece in pieces]

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
            pieces = [_Piece(chunk.text, pieces[-1].meta if pieces else {})]
        return pieces

    def _shown(self, piece: _Piece) -> StreamingChunk:
        if self.first_at is None:
            self.first_at = datetime.now().isoformat()  # noqa: DTZ005  # local and naive, as Haystack's are
        finish_reason = piece.meta.get("finish_reason")
        chunk = StreamingChunk(
            content=piece.text,
            meta={**piece.meta, "restarts": True} if self._restarts else piece.meta,
            component_info=self._component_info,
            index=0,
            start=self._starts,
            finish_reason=_FINISH_REASONS.get(finish_reason, "stop") if finish_reason else None,
        )
        self._starts = self._restarts = False
        return chunk
