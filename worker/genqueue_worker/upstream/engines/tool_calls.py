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
import secrets
import string
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from genqueue.wire.events import ToolCallDelta, join_tool_calls
from genqueue_worker.upstream.engines.one_call import Call, is_empty, is_json
from genqueue_worker.upstream.fields import count, encodable

_MOST_CALLS = 10_000
_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_SIZE = 9
_ARGUMENTS = ("arguments", "parameters", "input", "args")
"""OpenAI's word for them, Cohere's, Anthropic's and Google's, which gateways leave as they are."""


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
        self._calls: dict[int, Call] = {}
        self._by_id: dict[str, Call] = {}
        self._by_index: dict[int, Call] = {}
        self._last: Call | None = None
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
        return bool(self._calls) and not is_json(self._calls[max(self._calls)].text)

    @property
    def unreadable(self) -> list[int]:
        """Which of the calls, counted from 0, have arguments that are no JSON object, though a function has one."""
        named = [call for _, call in sorted(self._calls.items()) if call.name]
        return [place for place, call in enumerate(named) if not (call.is_custom or is_json(call.text, of=dict))]

    @property
    def nameless(self) -> str | None:
        """The arguments of a call whose name never came, which nobody can carry out; None if there is none."""
        return next((call.text for call in self._calls.values() if call.text and not call.name), None)

    def _whose(self, piece: Piece) -> Call | None:
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

    def _is_filled_by(self, call: Call, piece: Piece) -> bool:
        """Whether a piece brings the arguments of a call that was opened with empty ones."""
        index, call_id, name, arguments, _ = piece
        if not arguments.strip() or is_empty(arguments):
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
        return index is not None and is_its_place and not is_json(arguments)

    def _is_beside(self, call: Call, name: str, arguments: str) -> bool:
        """Whether a piece with the id of ``call``, which is not whole, begins another at an index of its own."""
        if call.is_whole or not name or not call.name:
            return False
        if name == call.name:
            goes_on = not call.is_custom and call.is_gone_over_by(arguments)
            return not arguments or (call.size > 0 and not goes_on)
        if call.name + name in self._offered:
            return False
        return not name.startswith(call.name) or {call.name, name} <= set(self._offered)

    def _unless_another(self, call: Call, call_id: str, name: str, arguments: str) -> Call | None:
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

    def _unless_its_id_is_anothers(self, call: Call, name: str, arguments: str) -> Call | None:
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

    def _goes_on(self, call: Call, name: str) -> bool:
        """Whether ``name`` is, or goes on with, the name of a call whose arguments are not whole."""
        if not call.name or name == call.name:
            return not (call.is_custom and call.size)  # a text has no end of its own: a name begins the next one
        is_another = {call.name, name} <= set(self._offered) and call.name + name not in self._offered
        return not call.size and not is_another

    def _name(self, call: Call, name: str) -> str:
        """The name of ``call`` with what a piece says of it: the whole, the whole so far, or what comes next."""
        known = call.name
        if not name or (known and (call.size or call.opening)) or (name == known and known in self._offered):
            return known
        if known + name in self._offered or not name.startswith(known):
            return known + name
        return name

    def _begin(self, index: int | None) -> Call:
        number = index if index is not None and index not in self._calls else max(self._calls, default=-1) + 1
        call = self._calls[number] = Call(number, index)
        return call


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
