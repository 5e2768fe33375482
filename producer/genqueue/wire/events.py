"""The events of a generation's log, and the pieces that they carry."""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from pydantic_core import from_json, to_json

from genqueue.wire.version import VERSION


class Token(NamedTuple):
    """One token as the server gave it."""

    id: int
    text: str
    logprob: float | None
    special: bool


class ToolCallDelta(NamedTuple):
    """A piece of a tool call: ``id`` comes once, ``name`` too unless its server cuts it, ``arguments`` piece by piece.

    ``index`` tells the calls of one answer apart, and nothing else does.  The arguments are JSON; of a custom tool
    they are its input, which is any text.
    """

    index: int  # type: ignore[assignment]  # OpenAI's word; nobody looks for a place in this tuple
    id: str | None
    name: str | None
    arguments: str


def join_tool_calls(deltas: Iterable[ToolCallDelta], custom: Collection[int] = ()) -> list[dict[str, Any]]:
    """The calls as OpenAI has them, from their pieces; of one that broke off ``arguments`` is no JSON.

    Args:
        custom: the indexes of calls of custom tools.  Pieces do not say so; without it each is a function's.
    """
    ids: dict[int, str | None] = {}
    names: dict[int, list[str]] = {}
    arguments: dict[int, list[str]] = {}
    for index, call_id, name, piece in deltas:
        ids[index] = ids.get(index) or call_id
        names.setdefault(index, []).append(name or "")
        arguments.setdefault(index, []).append(piece)
    calls = []
    for index in sorted(arguments):
        kind, field = ("custom", "input") if index in custom else ("function", "arguments")
        called = {"name": "".join(names[index]) or None, field: "".join(arguments[index])}
        calls.append({"id": ids[index], "type": kind, kind: called})
    return calls


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    v: Literal[1] = VERSION
    seq: int
    attempt: int


class Started(_Event):
    """A worker has claimed the generation."""

    type: Literal["started"] = "started"
    at: float
    worker: str


class Chunk(_Event):
    """Text that came since the last chunk; one or more tokens.

    Attributes:
        text: without special tokens; may be "" (a byte-split character, a special token).
        tokens: every token, special ones included; () where the server names none.
        top_tokens: for each token its alternatives, where ``top_n_tokens`` was asked for.
        reasoning: what the model of a chat thought; no part of the text.
        tool_calls: pieces of the calls that it makes, to be joined by their ``index``.
        pieces: how many characters of ``text`` each event of the server brought, where they were several and
            it names no tokens.
        restarts: whether the text begins anew here: forget every chunk before.  Told by
            ``stream()``, whose readers do not see the event ``reset``.
    """

    type: Literal["chunk"] = "chunk"
    text: str
    tokens: tuple[Token, ...] = ()
    top_tokens: tuple[tuple[Token, ...], ...] | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    pieces: tuple[int, ...] = ()
    restarts: bool = Field(False, exclude=True)

    def texts(self) -> list[str]:
        """``text`` in its ``pieces``."""
        text = iter(self.text)
        return ["".join(islice(text, size)) for size in self.pieces or (len(self.text),)]

    @model_serializer(mode="wrap")
    def _as_it_is_logged(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return {
            name: value for name, value in fields.items() if value or name not in {"reasoning", "tool_calls", "pieces"}
        }


class Waking(_Event):
    """The model server was scaled to zero and wakes up; the generation goes on by itself once it is there."""

    type: Literal["waking"] = "waking"


class Resumed(_Event):
    """Another attempt goes on where the last one stopped; the text so far stands."""

    type: Literal["resumed"] = "resumed"


class Reset(_Event):
    """Another attempt begins anew: forget the text of every chunk up to here."""

    type: Literal["reset"] = "reset"


class Finished(_Event):
    """The result is there."""

    type: Literal["finished"] = "finished"
    finish_reason: str | None
    completion_tokens: int


class Failed(_Event):
    """It ended without a result."""

    type: Literal["failed"] = "failed"
    error: str
    message: str


class Cancelled(_Event):
    """Somebody cancelled it."""

    type: Literal["cancelled"] = "cancelled"


class OtherEvent(_Event):
    """An event of a kind that a newer worker writes; to be passed over, and never one that changes the text."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str


_Known = Annotated[
    Started | Waking | Chunk | Resumed | Reset | Finished | Failed | Cancelled,
    Field(discriminator="type"),
]
Event = Started | Waking | Chunk | Resumed | Reset | Finished | Failed | Cancelled | OtherEvent
Terminal = Finished | Failed | Cancelled
_EVENT: TypeAdapter[_Known] = TypeAdapter(_Known)
_EVENTS: TypeAdapter[list[Any]] = TypeAdapter(list[_Known])
_KINDS = {kind.model_fields["type"].default for kind in (*get_args(Terminal), Started, Waking, Chunk, Resumed, Reset)}


def read_events(raw: bytes) -> list[Event]:
    """The events of one published message: a JSON array.

    Raises:
        ValueError: it is no array of events of this version (pydantic's ValidationError).
    """
    try:
        events: list[Event] = _EVENTS.validate_json(raw)
        return events
    except ValidationError as error:
        return [read_event(to_json(event)) for event in _array(raw, error)]


def _array(raw: bytes, error: ValidationError) -> list[Any]:
    try:
        array = from_json(raw)
    except ValueError:
        raise error from None
    if not isinstance(array, list):
        raise error
    return array


def read_event(raw: bytes) -> Event:
    """One event as the log holds it.

    Raises:
        ValueError: it is no event of this version (pydantic's ValidationError).
    """
    try:
        return _EVENT.validate_json(raw)
    except ValidationError:
        event = OtherEvent.model_validate_json(raw)
        if event.type in _KINDS:
            raise
        return event


def event_body(kind: str, fields: dict[str, Any]) -> bytes:
    """An event without its ``{"seq":n,"attempt":n,``, which the Lua scripts put in front."""
    return to_json({"v": VERSION, "type": kind, **fields})[1:]


def chunk_body(
    text: str,
    tokens: Sequence[Token],
    top_tokens: Iterable[Sequence[Token]] | None = None,
    reasoning: str = "",
    tool_calls: Sequence[ToolCallDelta] = (),
    pieces: Sequence[int] = (),
) -> bytes:
    """The body of a chunk; a plain dictionary, since this is done for every flush of every generation."""
    fields: dict[str, Any] = {"text": text, "tokens": tokens}
    if top_tokens is not None:
        fields["top_tokens"] = top_tokens
    if reasoning:
        fields["reasoning"] = reasoning
    if tool_calls:
        fields["tool_calls"] = tool_calls
    if pieces:
        fields["pieces"] = pieces
    return event_body("chunk", fields)
