"""One tool call of an answer, as far as it is known."""

import re

from pydantic_core import from_json

from genqueue_worker.upstream.fields import Halves, encodable

_MARKS = re.compile(r'[{}\[\]"\\]')
_HEAD_CHARACTERS = 64
_BEFORE_A_VALUE = (":", "[", ",")
_EMPTY = frozenset({"{}", "[]", "null", '""'})
"""Arguments that some servers open a call with, before the real ones; where none follow, they are all of them."""


class Call:
    """One call as far as it is known.

    Attributes:
        number: its index, as readers have it.
        index: its server's, where it began.
        call_id: "" until it is known, and where it is another call's too.
        said_id: the first that its server gave it, whoever else has it.
        name: as far as it came.
        size: characters of its arguments so far, without the opening.
        opening: empty arguments that others may follow: nobody was told of them yet.
        is_custom: whether it is of a custom tool.
        is_named_again: whether its name came once more, without arguments, when they were whole.
        halves: of characters of its arguments.
    """

    def __init__(self, number: int, index: int | None) -> None:
        self.number = number
        self.index = index
        self.call_id = ""
        self.said_id = ""
        self.name = ""
        self.size = 0
        self.opening = ""
        self.is_custom = False
        self.is_named_again = False
        self.halves = Halves()
        self._arguments: list[str] = []
        self._head = ""
        self._tail = ""
        self._is_repeated = False
        self._brackets = _Brackets()
        self._behind: list[str] = []
        self._brackets_behind = _Brackets()

    @property
    def text(self) -> str:
        """Its arguments so far."""
        return "".join(self._arguments) or self.opening

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are whole JSON, by their brackets."""
        return not self.is_custom and (self._brackets.is_whole or bool(self.opening))

    def add(self, piece: str) -> None:
        """Take a piece of the arguments."""
        if not piece:
            return
        self._arguments.append(piece)
        self.size += len(piece)
        if len(self._head) < _HEAD_CHARACTERS:
            self._head = (self._head + piece)[:_HEAD_CHARACTERS]
        self._tail = piece.rstrip()[-1:] or self._tail
        self._brackets.take(piece)

    def is_said_again_by(self, piece: str) -> bool:
        """Whether ``piece`` is all its arguments, which are whole, once more."""
        if piece.startswith(self._head) and piece == self.text:
            return True
        if 4 * len(piece) < self.size or self.size > 4 * len(piece) + _HEAD_CHARACTERS:
            return False
        try:
            return bool(from_json(encodable(piece)) == from_json(encodable(self.text)))
        except ValueError:
            return False

    def is_gone_over_by(self, piece: str) -> bool:
        """Whether ``piece`` is more than all its arguments so far, or goes on with them as no beginning does."""
        is_more = len(piece) > self.size and piece.startswith(self.text)
        return is_more or not piece.lstrip().startswith("{")

    def news_in(self, piece: str) -> str:
        """What ``piece`` adds: some servers send the arguments so far again, or a whole call twice.

        No object goes on with its own beginning, but where a value may stand, and there only if its server has not
        sent its beginning again before.
        """
        if self.is_custom:
            return piece
        if not self.size:
            return self._beginning(piece)
        if self.is_whole:
            return self._news_behind(piece)
        if not self._head.startswith("{") or len(piece) < self.size or not piece.startswith(self._head):
            return piece
        if self._tail in _BEFORE_A_VALUE and not self._is_repeated:
            return piece
        if not piece.startswith(self.text):
            return piece
        self._is_repeated = True
        return piece[self.size :]

    def rest(self) -> str:
        """What still waits, now that nothing follows: its opening, or what is no repetition."""
        opening, self.opening = self.opening, ""
        behind, self._behind = "".join(self._behind), []
        if opening.strip() == "null":
            return "{}"
        return opening or ("" if self.text.startswith(behind.strip()) else behind)

    def _beginning(self, piece: str) -> str:
        if not self.opening:
            if not is_empty(piece):
                return piece
            self.opening = piece
        elif piece.strip() and not self.is_said_again_by(piece):
            self.opening = ""
            return piece
        return ""

    def _news_behind(self, piece: str) -> str:
        """What ``piece`` adds behind whole arguments: a repetition, whole or in pieces, adds nothing."""
        if not self._behind and (piece.isspace() or self.is_said_again_by(piece)):
            return piece if piece.isspace() else ""
        self._behind.append(piece)
        self._brackets_behind.take(piece)
        if not self._brackets_behind.is_whole:
            return ""
        behind, self._behind, self._brackets_behind = "".join(self._behind), [], _Brackets()
        return "" if self.is_said_again_by(behind) else behind


class _Brackets:
    """Whether JSON that comes in pieces is whole, at a cost in proportion to its length."""

    def __init__(self) -> None:
        self.is_whole = False
        self._depth = 0
        self._in_string = False
        self._skips = False

    def take(self, piece: str) -> None:
        """Take the next piece, which is not empty."""
        at, self._skips = int(self._skips), False
        for mark in _MARKS.finditer(piece):
            if mark.start() < at:
                continue
            sign = mark[0]
            if sign == "\\":
                at = mark.start() + 2  # whatever is behind it is no mark
                self._skips = at > len(piece)
            elif sign == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if sign in "{[" else -1
            self.is_whole = self._depth == 0 and not self._in_string


def is_empty(arguments: str) -> bool:
    """Whether arguments are what stands for none."""
    return len(arguments) < _HEAD_CHARACTERS and "".join(arguments.split()) in _EMPTY


def is_json(arguments: str, of: type = object) -> bool:
    """Whether arguments are whole JSON, of a type."""
    try:
        return isinstance(from_json(encodable(arguments)), of)
    except ValueError:
        return False
