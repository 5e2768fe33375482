"""Which piece of a stream belongs to which tool call.

Pure.  OpenAI tells a call by its ``index``, and says its ``id`` and ``name`` once.  Other servers give every call
the same index or none, every piece the id, or a new one, or the name; they cut names, move a call to another index,
send a call whole, twice, or the arguments so far again, or open it with an empty object.  So all that tells calls
apart is weighed: id, index, name, whether the name is that of a tool which was offered, and whether the arguments so
far are whole.

The decision is made here, once: each piece goes on with an index of ours, by which
:func:`genqueue.wire.events.join_tool_calls` joins them, here and at every reader.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json

from genqueue.wire.events import ToolCallDelta, join_tool_calls
from genqueue_worker.upstream.fields import Halves, count, encodable

_MOST_CALLS = 10_000
_MARKS = re.compile(r'[{}\[\]"\\]')
_HEAD_CHARACTERS = 64
_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_SIZE = 9
_ARGUMENTS = ("arguments", "parameters", "input", "args")
"""OpenAI's word for them, Cohere's, Anthropic's and Google's, which gateways leave as they are."""
_BEFORE_A_VALUE = (":", "[", ",")
_EMPTY = frozenset({"{}", "[]", "null", '""'})
"""Arguments that some servers open a call with, before the real ones; where none follow, they are all of them."""


class Piece(NamedTuple):
    """A piece of a tool call as its server sends it; None and "" are what it does not say."""

    index: int | None  # type: ignore[assignment]  # OpenAI's word; nobody looks for a place in this tuple
    call_id: str
    name: str
    arguments: str
    is_custom: bool = False
    """Whether it is of OpenAI's custom tool, whose arguments are its input: any text."""


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

    def take(self, piece: Piece) -> ToolCallDelta:
        """Take one piece, and say what it adds to which call."""
        index, call_id, name, arguments, is_custom = piece
        call = self._whose(piece)
        if call is None:
            name, self._named_again = name or self._named_again, ""
            call = self._begin(index)
        self._last = call
        call.is_custom = call.is_custom or is_custom
        if index is not None:
            self._by_index[index] = call
        told_id = None
        if call_id:
            self._by_id.setdefault(call_id, call)
            call.said_id = call.said_id or call_id
            if not call.call_id and self._by_id[call_id] is call:
                call.call_id = told_id = call_id
        known_name, call.name = call.name, self._name(call, name)
        news = call.news_in(arguments)
        call.add(news)
        delta = ToolCallDelta(
            call.number,
            encodable(told_id) if told_id else None,
            encodable(call.name[len(known_name) :]) or None,
            encodable(call.halves.take(news)),
        )
        self._pieces.append(delta)
        return delta

    def close(self, *, is_cut: bool) -> list[ToolCallDelta]:
        """What the answer's end adds: an id where none came, and ``{}`` for no arguments if no limit cut them off."""
        last = []
        for call in self._calls.values():
            if not call.name:
                continue
            told_id = None if call.call_id else self._make_id()
            call.call_id = call.call_id or told_id or ""
            news = call.rest()
            if not (call.size or news or is_cut or call.is_custom):
                news = "{}"
            call.add(news)
            news = call.halves.take(news) + call.halves.rest()
            if told_id or news:
                last.append(ToolCallDelta(call.number, told_id, None, encodable(news)))
        self._pieces += last
        return last

    def joined(self) -> list[dict[str, Any]]:
        """The calls so far as OpenAI has them, but for those without a name."""
        custom = {number for number, call in self._calls.items() if call.is_custom}
        return join_tool_calls((piece for piece in self._pieces if self._calls[piece.index].name), custom)

    @property
    def is_cut(self) -> bool:
        """Whether the last call broke off."""
        return bool(self._calls) and not _is_json(self._calls[max(self._calls)].text)

    @property
    def unreadable(self) -> list[int]:
        """Which of the calls, counted from 0, have arguments that are no JSON object, though a function has one."""
        named = [call for _, call in sorted(self._calls.items()) if call.name]
        return [place for place, call in enumerate(named) if not (call.is_custom or _is_json(call.text, of=dict))]

    @property
    def nameless(self) -> str | None:
        """The arguments of a call whose name never came, which nobody can carry out; None if there is none."""
        return next((call.text for call in self._calls.values() if call.text and not call.name), None)

    def _whose(self, piece: Piece) -> "_Call | None":
        """The call that a piece goes on with; None if it begins one."""
        index, call_id, name, arguments, _ = piece
        known = self._by_id.get(call_id) if call_id else None
        at_index = None if index is None else self._by_index.get(index)
        if known is not None:
            if at_index is not None and at_index.said_id == call_id:
                known = at_index  # its server gives several calls one id
            if known.opening and self._is_filled_by(known, piece):
                return known
            if index is not None and at_index is None and self._is_beside(known, name, arguments):
                return None
            return self._unless_another(known, call_id, name, arguments)
        if index is not None and at_index is None and (call_id or name):
            return None
        call = at_index or self._last
        if call is None or (call.opening and self._is_filled_by(call, piece)):
            return call
        if call_id:
            return self._unless_its_id_is_anothers(call, name, arguments)
        return self._unless_another(call, "", name, arguments)

    def _is_filled_by(self, call: "_Call", piece: Piece) -> bool:
        """Whether a piece brings the arguments of a call that was opened with empty ones."""
        index, call_id, name, arguments, _ = piece
        if not arguments.strip() or _is_empty(arguments):
            return False
        is_its_place = index is None or index == call.index
        if call.is_named_again and not (call_id and is_its_place):
            return False
        if not name or not call.name:
            return True
        if name != call.name:
            return False
        if call_id:
            return call_id == call.said_id and is_its_place
        # A server that sends each call whole, and all at one index, begins another.
        return index is not None and is_its_place and not _is_json(arguments)

    def _is_beside(self, call: "_Call", name: str, arguments: str) -> bool:
        """Whether a piece with the id of ``call``, which is not whole, begins another at an index of its own."""
        if call.is_whole or not name or not call.name:
            return False
        if name == call.name:
            goes_on = not call.is_custom and call.is_gone_over_by(arguments)
            return not arguments or (call.size > 0 and not goes_on)
        if call.name + name in self._offered:
            return False
        return not name.startswith(call.name) or {call.name, name} <= set(self._offered)

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
        if call.is_custom and call.size:
            return None
        # Some servers make a new id for each piece; but two that have no arguments announce two calls.
        return call if name == call.name and (call.size or arguments) else None

    def _goes_on(self, call: "_Call", name: str) -> bool:
        """Whether ``name`` is, or goes on with, the name of a call whose arguments are not whole."""
        if not call.name or name == call.name:
            return not (call.is_custom and call.size)  # a text has no end of its own: a name begins the next one
        is_another = {call.name, name} <= set(self._offered) and call.name + name not in self._offered
        return not call.size and not is_another

    def _name(self, call: "_Call", name: str) -> str:
        """The name of ``call`` with what a piece says of it: the whole, the whole so far, or what comes next."""
        known = call.name
        if not name or (known and (call.size or call.opening)) or (name == known and known in self._offered):
            return known
        if known + name in self._offered or not name.startswith(known):
            return known + name
        return name

    def _begin(self, index: int | None) -> "_Call":
        number = index if index is not None and index not in self._calls else max(self._calls, default=-1) + 1
        call = self._calls[number] = _Call(number, index)
        return call


class _Call:
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
            if not _is_empty(piece):
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


def read_piece(fields: Mapping[str, Any]) -> Piece:
    """What an object says of a tool call.

    A sign that is none (an index of -1) is not said: the others tell calls apart.

    Raises:
        TypeError: what is called is none.
    """
    custom = fields.get("custom")
    function: Any = fields.get("function")
    if isinstance(custom, dict):
        function = {"name": custom.get("name"), "arguments": custom.get("input")}
    elif function is None:
        function = fields if fields.keys() & {"name", "arguments"} else {}  # as OpenAI's older ``function_call``
    elif isinstance(function, str):
        function = {**fields, "name": function}
    if not isinstance(function, dict):
        raise TypeError(f"a tool call's function is {type(function).__name__}")
    call_id, name = fields.get("id"), function.get("name")
    arguments = next((function[word] for word in _ARGUMENTS if function.get(word) is not None), None)
    index = count(fields.get("index"))
    if index is not None and index > _MOST_CALLS:
        index = None
    if type(call_id) is int:
        call_id = str(call_id)
    if not isinstance(arguments, str | None):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return Piece(
        index,
        call_id if isinstance(call_id, str) else "",
        name if isinstance(name, str) else "",
        arguments or "",
        isinstance(custom, dict) or fields.get("type") == "custom",
    )


def made_up_id() -> str:
    """An id for a tool call: nine letters and digits, as Mistral's templates want them."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_SIZE))


def _is_empty(arguments: str) -> bool:
    return len(arguments) < _HEAD_CHARACTERS and "".join(arguments.split()) in _EMPTY


def _is_json(arguments: str, of: type = object) -> bool:
    try:
        return isinstance(from_json(encodable(arguments)), of)
    except ValueError:
        return False
