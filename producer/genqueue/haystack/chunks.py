"""What the streaming chunks of both components have in common. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from haystack.dataclasses import ComponentInfo, StreamingChunk

from genqueue.wire.events import Chunk, Event, Finished
from genqueue.wire.result import GenerationResult

PieceT = TypeVar("PieceT")


class Chunks(ABC, Generic[PieceT]):
    """The streaming chunks of one generation.

    What comes together with the end is held back until the result is there, which says how it ended.

    Args:
        component_info: of the component that streams.

    Attributes:
        first_at: local time of the first chunk, ISO 8601; None before.
    """

    def __init__(self, component_info: ComponentInfo) -> None:
        self.first_at: str | None = None
        self._component_info = component_info
        self._held: list[PieceT] = []

    def feed(self, batch: Sequence[Event]) -> list[StreamingChunk]:
        """What can be shown of ``batch``; all of it, unless the end is in it."""
        pieces = [piece for event in batch if isinstance(event, Chunk) for piece in self._pieces(event)]
        if any(isinstance(event, Finished) for event in batch):
            self._held = pieces
            return []
        return [self._shown(piece) for piece in pieces]

    @abstractmethod
    def end(self, result: GenerationResult) -> list[StreamingChunk]:
        """What was held back, with what only the result knows."""

    @abstractmethod
    def _pieces(self, chunk: Chunk) -> list[PieceT]:
        """A chunk of the queue, as Haystack may have it."""

    @abstractmethod
    def _shown(self, piece: PieceT) -> StreamingChunk:
        """A piece that goes out now."""
