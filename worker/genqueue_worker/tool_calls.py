"""Which piece of a stream belongs to which tool call.

Pure.  OpenAI tells a call by its ``index``, and says its ``id`` and ``name`` once.  Other servers give every call
the same index or none, every piece the id, or a new one, or the name; they cut names, move a call to another index,
send a call whole, twice, or the arguments so far again.  So all that tells calls apart is weighed: id, index, name,
whether the name is that of a tool which was offered, and whether the arguments so far are whole.

The decision is made here, once: each piece goes on with an index of ours, by which
:func:`genqueue.messages.join_tool_calls` joins them, here and at every reader.
"""

import re
import secrets
import string
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from genqueue.messages import ToolCallDelta, join_tool_calls
from genqueue_worker.answers import Halves, encodable, integer

_MOST_CALLS = 10_000
_MARKS = re.compile(r'[{}\[\]"\\]')
_HEAD_CHARACTERS = 64
_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_SIZE = 9
_BEFORE_A_VALUE = (":", "[", ",")


class Piece(NamedTuple):
    """A piece of a tool call as its server sends it; None and "" are what it does not say."""

    index: int | None  # type: ignore[assignment]  # OpenAI's word; nobody looks for a place in this tuple
    call_id: str
    name: str
    arguments: str


class ToolCalls:
    """The tool calls of one answer, as their pieces come.

    Args:
        offered: names of the tools that the model was told of.
        make_id: makes an id for a call to which its server gives none, or that of another call: each can be answered.
    """

    def __init__(self, offered: Collection[str], make_id: Callable[[], str]) -> None:
        self._offered = offered
        self._make_id = make_id
        self._calls: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._by_index: dict[int, _Call] = {}
        self._last: _Call | None = None
        self._named_again = ""
        self._pieces: list[ToolCallDelta] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, said: Piece) -> ToolCallDelta:
        """Take one piece, and say what it adds to which call."""
        index, call_id, name, arguments = said
        call = self._whose(index, call_id, name, arguments)
        if call is None:
            name, self._named_again = name or self._named_again, ""
            call = self._begin(index)
        self._last = call
        if index is not None:
            self._by_index[index] = call
        told_id = None
        if call_id:
            self._by_id.setdefault(call_id, call)
            if not call.call_id and self._by_id[call_id] is call:
                call.call_id = told_id = call_id
        known_name, call.name = call.name, self._name(call, name)
        news = call.news_in(arguments)
        call.add(news)
        piece = ToolCallDelta(
            call.number,
            encodable(told_id) if told_id else None,
            encodable(call.name[len(known_name) :]) or None,
            encodable(call.halves.take(news)),
        )
        self._pieces.append(piece)
        return piece

    def close(self, *, is_cut: bool) -> list[ToolCallDelta]:
        """What the answer's end adds: an id where none came, and ``{}`` for no arguments if no limit cut them off."""
        last = []
        for call in self._calls.values():
            if not call.name:
                continue
            told_id = None if call.call_id else self._make_id()
            call.call_id = call.call_id or told_id or ""
            news = call.halves.rest()
            if not call.size and not is_cut:
                news = "{}"
                call.add(news)
            if told_id or news:
                last.append(ToolCallDelta(call.number, told_id, None, encodable(news)))
        self._pieces += last
        return last

    def joined(self) -> list[dict[str, Any]]:
        """The calls so far as OpenAI has them, but for those without a name."""
        return join_tool_calls(piece for piece in self._pieces if self._calls[piece.index].name)

    @property
    def is_cut(self) -> bool:
        """Whether the last call broke off."""
        return bool(self._calls) and not _is_json(self._calls[max(self._calls)].text)

    @property
    def unreadable(self) -> list[int]:
        """Which of the calls, counted from 0, have arguments that are no JSON object."""
        named = [call for _, call in sorted(self._calls.items()) if call.name]
        return [place for place, call in enumerate(named) if not _is_json(call.text, of=dict)]

    @property
    def nameless(self) -> str | None:
        """The arguments of a call whose name never came, which nobody can carry out; None if there is none."""
        return next((call.text for call in self._calls.values() if call.size and not call.name), None)

    def _whose(self, index: int | None, call_id: str, name: str, arguments: str) -> "_Call | None":
        """The call that a piece goes on with; None if it begins one."""
        known = self._by_id.get(call_id) if call_id else None
        if known is not None:
            return self._unless_another(known, call_id, name, arguments)
        at_index = None if index is None else self._by_index.get(index)
        if index is not None and at_index is None and (call_id or name):
            return None
        call = at_index or self._last
        if call is None:
            return None
        if call_id:
            return self._unless_its_id_is_anothers(call, name, arguments)
        return self._unless_another(call, "", name, arguments)

    def _unless_another(self, call: "_Call", call_id: str, name: str, arguments: str) -> "_Call | None":
        """``call``, unless the piece shows that another one begins under the same signs."""
        is_object = arguments.lstrip().startswith("{")
        if not call.is_whole:
            return call if call_id or not name or self._goes_on(call, name) else None
        if name and call.name and name != call.name:
            return None
        if name and is_object and not (call_id and call.is_said_again_by(arguments)):
            return None
        if name and not arguments:
            call.is_named_again = True  # another call of the same tool, if arguments follow
        elif call.is_named_again and is_object and not call.is_said_again_by(arguments):
            self._named_again = call.name
            return None
        return call

    def _unless_its_id_is_anothers(self, call: "_Call", name: str, arguments: str) -> "_Call | None":
        """``call``, which has this piece's index or was the last one, unless the new id begins another."""
        if call.is_whole:
            return None if name or arguments.strip() else call
        if not name:
            return call
        if not call.call_id:  # it comes late
            return call if self._goes_on(call, name) else None
        # Some servers make a new id for each piece; but two that have no arguments announce two calls.
        return call if name == call.name and (call.size or arguments) else None

    def _goes_on(self, call: "_Call", name: str) -> bool:
        """Whether ``name`` is, or goes on with, the name of a call whose arguments are not whole."""
        if not call.name or name == call.name:
            return True
        is_another = {call.name, name} <= set(self._offered) and call.name + name not in self._offered
        return not call.size and not is_another

    def _name(self, call: "_Call", name: str) -> str:
        """The name of ``call`` with what a piece says of it: the whole, the whole so far, or what comes next."""
        known = call.name
        if not name or (known and call.size) or (name == known and known in self._offered):
            return known
        if known + name in self._offered or not name.startswith(known):
            return known + name
        return name

    def _begin(self, index: int | None) -> "_Call":
        number = index if index is not None and index not in self._calls else max(self._calls, default=-1) + 1
        call = self._calls[number] = _Call(number)
        return call


class _Call:
    """One call as far as it is known.

    Attributes:
        number: its index, as readers have it.
        call_id: "" until it is known.
        name: as far as it came.
        size: characters of its arguments so far.
        is_named_again: whether its name came once more, without arguments, when they were whole.
        halves: of characters of its arguments.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.call_id = ""
        self.name = ""
        self.size = 0
        self.is_named_again = False
        self.halves = Halves()
        self._arguments: list[str] = []
        self._head = ""
        self._tail = ""
        self._is_repeated = False
        self._brackets = _Brackets()

    @property
    def text(self) -> str:
        """Its arguments so far."""
        return "".join(self._arguments)

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are whole JSON, by their brackets."""
        return self._brackets.is_whole

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

    def news_in(self, piece: str) -> str:
        """What ``piece`` adds: some servers send the arguments so far again, or a whole call twice.

        No object goes on with its own beginning, but where a value may stand, and there only if its server has not
        sent its beginning again before.
        """
        if self.is_whole:
            return "" if self.is_said_again_by(piece) else piece
        if not self._head.startswith("{") or len(piece) < self.size or not piece.startswith(self._head):
            return piece
        if self._tail in _BEFORE_A_VALUE and not self._is_repeated:
            return piece
        if not piece.startswith(self.text):
            return piece
        self._is_repeated = True
        return piece[self.size :]


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


def read_piece(said: Mapping[str, Any]) -> Piece:
    """What an object says of a tool call.

    Raises:
        TypeError: its index, id or name is none.
    """
    function = said.get("function")
    if function is None:
        function = said if said.keys() & {"name", "arguments"} else {}  # as OpenAI's older ``function_call``
    index, call_id, name, arguments = said.get("index"), said.get("id"), function.get("name"), function.get("arguments")
    if isinstance(index, str) and index.isascii() and index.isdecimal():
        index = int(index[:9])
    if index is not None and integer(index, _MOST_CALLS) is None:
        raise TypeError("a tool call's index is none")
    if type(call_id) is int:
        call_id = str(call_id)
    if not isinstance(call_id, str | None) or not isinstance(name, str | None):
        raise TypeError("a tool call's id or name is no text")
    if not isinstance(arguments, str | None):
        arguments = to_json(arguments).decode()
    return Piece(index, call_id or "", name or "", arguments or "")


def made_up_id() -> str:
    """An id for a tool call: nine letters and digits, as Mistral's templates want them."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_SIZE))


def _is_json(arguments: str, of: type = object) -> bool:
    try:
        return isinstance(from_json(encodable(arguments)), of)
    except ValueError:
        return False
