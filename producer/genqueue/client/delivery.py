"""Decide which text of another attempt a reader is given, behind what it was given before.

An attempt that begins anew makes void what was delivered of the one before it.  :class:`Continuing` never lets a
reader join the two: it is silent until the new text is past what was delivered, and goes on behind it; where the
new text is another one, it raises.  :class:`Marking` hands out everything, and marks where the text begins anew.
Pure: :mod:`genqueue.client.flows` feeds them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from genqueue.errors import StreamRestartedError
from genqueue.wire.events import Chunk, Reset, Token, ToolCallDelta


class Delivery(Protocol):
    """What one reader is given of one generation's chunks.

    Attributes:
        is_empty: whether the reader was given no chunk yet.
    """

    is_empty: bool

    def begin_anew(self, reset: Reset) -> None:
        """What was delivered is void: the next chunk is another text's first."""

    def take(self, chunk: Chunk) -> list[Chunk]:
        """The next chunk of the log; what the reader is given now."""

    def finish(self) -> list[Chunk]:
        """The text is whole; what the reader is given last."""

    def fail(self) -> list[Chunk]:
        """It ended without a result; what the reader is given before the error."""


class _Call(NamedTuple):
    """A tool call as far as its pieces go; "" for what no piece has said."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def and_then(self, piece: ToolCallDelta) -> "_Call":
        return _Call(self.id or piece.id or "", self.name + (piece.name or ""), self.arguments + piece.arguments)

    def agrees(self, other: "_Call") -> bool:
        """Whether both may be the beginnings of one call."""
        return (
            (not (self.id and other.id) or self.id == other.id)
            and (self.name.startswith(other.name) or other.name.startswith(self.name))
            and (self.arguments.startswith(other.arguments) or other.arguments.startswith(self.arguments))
        )

    def covers(self, other: "_Call") -> bool:
        """Whether it says all that ``other``, with which it agrees, says."""
        return (
            len(self.arguments) >= len(other.arguments)
            and len(self.name) >= len(other.name)
            and bool(self.id or not other.id)
        )


def _joined(pieces: Iterable[ToolCallDelta]) -> dict[int, _Call]:
    joined: dict[int, _Call] = {}
    for piece in pieces:
        joined[piece.index] = joined.get(piece.index, _Call()).and_then(piece)
    return joined


class _Again:
    """How far another attempt's text has come along what was delivered."""

    def __init__(self, text: str, reasoning: str, calls: dict[int, _Call]) -> None:
        self.text, self.reasoning, self.calls = text, reasoning, calls
        self.held: list[Chunk] = []
        self._text_at = self._reasoning_at = 0
        self._calls: dict[int, _Call] = {}

    @property
    def is_past(self) -> bool:
        """Whether it has said again all that was delivered."""
        return (
            self._text_at >= len(self.text)
            and self._reasoning_at >= len(self.reasoning)
            and all(self._calls.get(index, _Call()).covers(call) for index, call in self.calls.items())
        )

    def follows(self, chunk: Chunk) -> bool:
        """Take the next chunk; whether what was delivered may still be the beginning."""
        text_before = self._step_over(self.text, self._text_at, chunk.text)
        reasoning_before = self._step_over(self.reasoning, self._reasoning_at, chunk.reasoning)
        if text_before is None or reasoning_before is None:
            return False
        self._text_at += len(chunk.text)
        self._reasoning_at += len(chunk.reasoning)
        new_pieces = []
        for piece in chunk.tool_calls:
            delivered, so_far = self.calls.get(piece.index, _Call()), self._calls.get(piece.index, _Call())
            after = so_far.and_then(piece)
            if not after.agrees(delivered):
                return False
            self._calls[piece.index] = after
            name_before = max(0, len(delivered.name) - len(so_far.name))
            arguments_before = max(0, len(delivered.arguments) - len(so_far.arguments))
            new_piece = ToolCallDelta(
                piece.index,
                None if delivered.id else piece.id,
                (piece.name or "")[name_before:] or None,
                piece.arguments[arguments_before:],
            )
            if new_piece[1:] != (None, None, ""):
                new_pieces.append(new_piece)
        is_past_text = self._text_at >= len(self.text)
        rest = behind(chunk, text_before if is_past_text else None, reasoning_before, new_pieces)
        if rest is not None:
            self.held.append(rest)
        return True

    @staticmethod
    def _step_over(delivered: str, at: int, text: str) -> int | None:
        """How many characters of ``text``, which stands at ``at``, were delivered; None where it is another text."""
        overlap = min(len(text), max(0, len(delivered) - at))
        return overlap if not overlap or delivered.startswith(text[:overlap], at) else None


def behind(
    chunk: Chunk, text_before: int | None, reasoning_before: int, tool_calls: Sequence[ToolCallDelta]
) -> Chunk | None:
    """What of ``chunk`` stands behind so many characters of its text and reasoning; None where nothing does.

    ``text_before`` None is all of the text, and more that is to come.  Of the tokens those that begin behind it: the
    end of a token that lies across has text, but no token.
    """
    text = "" if text_before is None else chunk.text[text_before:]
    tokens, top_tokens, pieces = chunk.tokens, chunk.top_tokens, chunk.pieces
    if text_before is None:
        tokens, top_tokens, pieces = (), None, ()
    elif text_before:
        first = _first_token_at(chunk.tokens, text_before, chunk.text)
        if top_tokens is not None:
            top_tokens = top_tokens[first:] if len(top_tokens) == len(tokens) else ()
        tokens = tokens[first:]
        pieces = _pieces_behind(pieces, text_before)
    reasoning = chunk.reasoning[reasoning_before:]
    if not (text or reasoning or tool_calls or tokens):
        return None
    return chunk.model_copy(
        update={
            "text": text,
            "tokens": tokens,
            "top_tokens": top_tokens,
            "reasoning": reasoning,
            "tool_calls": tuple(tool_calls),
            "pieces": pieces,
        }
    )


def _first_token_at(tokens: Sequence[Token], position: int, text: str) -> int:
    """The number of the first token that begins at or behind ``position``; past the last where that cannot be told."""
    begins, at = [], 0
    for token in tokens:
        begins.append(at)
        at += 0 if token.special else len(token.text)
    if at != len(text):  # characters that are split over tokens: their texts are not the text
        return len(tokens)
    return next((number for number, begin in enumerate(begins) if begin >= position), len(tokens))


def _pieces_behind(sizes: Sequence[int], position: int) -> tuple[int, ...]:
    rest, at = [], 0
    for size in sizes:
        if at + size > position:
            rest.append(at + size - max(at, position))
        at += size
    return tuple(rest) if len(rest) > 1 else ()


class Continuing:
    """Goes on behind what was delivered, or raises; never the parts of two texts.

    Args:
        from_seq: the reader was given what came up to this event, by another :class:`Continuing`: when an attempt
            begins anew it has to be told, see :attr:`lacks_beginning`.
    """

    def __init__(self, generation_id: str, from_seq: int = 0) -> None:
        self.is_empty = from_seq == 0
        self.lacks_beginning = from_seq > 0
        """Whether :meth:`remember` must be called before :meth:`begin_anew`."""
        self._generation_id = generation_id
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._tool_calls: list[ToolCallDelta] = []
        self._again: _Again | None = None
        self._restart_seq = 0

    def remember(self, earlier: Iterable[Chunk]) -> None:
        """The chunks that were delivered before this reader came."""
        earlier = list(earlier)
        self._texts[:0] = [chunk.text for chunk in earlier]
        self._reasonings[:0] = [chunk.reasoning for chunk in earlier]
        self._tool_calls[:0] = [piece for chunk in earlier for piece in chunk.tool_calls]
        self.lacks_beginning = False

    def begin_anew(self, reset: Reset) -> None:
        """What was delivered is void; so is what was held back of an attempt that had begun anew."""
        self._restart_seq = reset.seq
        if self.lacks_beginning:
            raise self.contradiction()
        text, reasoning = self._again_or_joined()
        calls = _joined(self._tool_calls)
        self._again = _Again(text, reasoning, calls) if text or reasoning or calls else None

    def take(self, chunk: Chunk) -> list[Chunk]:
        """The chunk; or nothing as long as it only says again what was delivered, and then what is behind that.

        Raises:
            StreamRestartedError: what was delivered is not its text's beginning.
        """
        again = self._again
        if again is None:
            self._keep(chunk)
            return [chunk]
        if not again.follows(chunk):
            raise self.contradiction()
        if not again.is_past:
            return []
        self._again = None
        for held in again.held:
            self._keep(held)
        return again.held

    def finish(self) -> list[Chunk]:
        """Nothing.

        Raises:
            StreamRestartedError: more was delivered than the text has.
        """
        if self._again is not None:
            raise self.contradiction()
        return []

    def fail(self) -> list[Chunk]:
        """Nothing: the error that follows says that what was delivered is no reply."""
        return []

    def contradiction(self) -> StreamRestartedError:
        """The error that says so."""
        text, reasoning = self._again_or_joined()
        return StreamRestartedError(
            self._generation_id, delivered_text=text, delivered_reasoning=reasoning, restart_seq=self._restart_seq
        )

    def _keep(self, chunk: Chunk) -> None:
        self.is_empty = False
        self._texts.append(chunk.text)
        if chunk.reasoning:
            self._reasonings.append(chunk.reasoning)
        if chunk.tool_calls:
            self._tool_calls += chunk.tool_calls

    def _again_or_joined(self) -> tuple[str, str]:
        self._texts, self._reasonings = ["".join(self._texts)], ["".join(self._reasonings)]
        return self._texts[0], self._reasonings[0]


class Marking:
    """Hands out every chunk, and marks the first one behind a reset."""

    def __init__(self, from_seq: int = 0) -> None:
        self.is_empty = from_seq == 0
        self._reset: Reset | None = None

    def begin_anew(self, reset: Reset) -> None:
        """The next chunk is marked, if there were others before."""
        self._reset = None if self.is_empty else reset

    def take(self, chunk: Chunk) -> list[Chunk]:
        """The chunk."""
        self.is_empty = False
        if self._reset is not None:
            self._reset = None
            chunk = chunk.model_copy(update={"restarts": True})
        return [chunk]

    def finish(self) -> list[Chunk]:
        """A chunk without text, but marked, where the text begins anew and is empty."""
        reset, self._reset = self._reset, None
        return [] if reset is None else [Chunk(seq=reset.seq, attempt=reset.attempt, text="", restarts=True)]

    fail = finish
