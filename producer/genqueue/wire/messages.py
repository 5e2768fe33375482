"""The wire models: what a producer hands over, what a reader is told, what is kept.

A request, an event and an outcome have a version ``v``; a reader refuses a newer one rather
than misread it.  Within a version an event or an outcome may hold fields that a reader does
not know, and ignores; there may be kinds of events that it does not know (:class:`OtherEvent`).
A request may not: what a worker does not know it would leave undone,
so it rejects it, and workers are upgraded before producers (``docs/deploy.md``).  Nothing here
holds a connection or a clock.  How events are put in order is :mod:`genqueue.client.follower`'s.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticSerializationError, from_json, to_json

from genqueue.errors import InvalidRequestError
from genqueue.keys import GENERATOR_NAME, PRIORITIES
from genqueue.masking import shown
from genqueue.wire.chat import (
    I32,
    MAX_STOP_WORDS,
    REASONING_FIELD,
    U64,
    ChatKwargs,
    Message,
    ResponseFormat,
    StopWord,
    StopWords,
    Tool,
    ToolChoice,
)

VERSION: Literal[1] = 1
TASK_NAME = "genqueue.generate"

Given = str | list[dict[str, Any]]
"""A prompt, or a chat's messages."""


class Bounds(NamedTuple):
    """How large a request may be, and what it asks for; :class:`genqueue.settings.Settings` has them by these names."""

    max_prompt_bytes: int = 1_000_000
    max_request_bytes: int = 4_000_000
    max_completion_tokens: int = 1_000_000


DEFAULT_BOUNDS = Bounds()


class Grammar(BaseModel):
    """A constraint on the text, as TGI takes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: str | dict[str, Any]


class GenerationKwargs(BaseModel):
    """The generation parameters that ``huggingface_hub``'s ``text_generation`` knows.

    The ranges are what any server can take; where one takes less, its words reach the caller.
    ``stop_sequences`` is the name that ``stop`` had before huggingface_hub 2.
    """

    # JSON has no NaN and no infinity: they would be sent as null, which means "not given".
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    adapter_id: str | None = None
    best_of: int | None = Field(None, ge=1, le=128)
    decoder_input_details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    grammar: Grammar | None = None
    max_new_tokens: int | None = Field(None, ge=1, le=I32)
    repetition_penalty: float | None = Field(None, ge=0, le=100)
    return_full_text: Literal[False] | None = None
    seed: int | None = Field(None, ge=0, le=U64)
    stop: StopWords | None = None
    stop_sequences: StopWords | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=-1, le=I32)
    top_n_tokens: int | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    truncate: int | None = Field(None, ge=1, le=I32)
    typical_p: float | None = Field(None, ge=0, le=1)
    watermark: bool | None = None


PARTS: Mapping[str, type[BaseModel]] = {"generation_kwargs": GenerationKwargs, "chat_kwargs": ChatKwargs}
"""The models within a request, by their keys: for :func:`describe`."""


def _no_kwargs(fields: dict[str, Any]) -> "GenerationKwargs | ChatKwargs":
    return GenerationKwargs() if fields.get("messages") is None else ChatKwargs()


class GenerationRequest(BaseModel):
    """One generation as a producer hands it over: a ``prompt`` to continue, or a chat's ``messages`` to answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    v: Literal[1] = VERSION
    prompt: str | None = Field(None, min_length=1, strict=True)
    messages: tuple[Message, ...] | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    response_format: ResponseFormat | None = None
    generator: str = Field("default", pattern=GENERATOR_NAME, strict=True)
    generation_kwargs: GenerationKwargs | ChatKwargs = Field(default_factory=_no_kwargs)
    stop_words: tuple[StopWord, ...] = Field((), max_length=MAX_STOP_WORDS)
    stream: bool = Field(True, strict=True)
    priority: int = Field(5, ge=PRIORITIES.start, lt=PRIORITIES.stop, strict=True)
    deadline_s: float | None = Field(None, gt=0, allow_inf_nan=False, strict=True)
    on_failure: Literal["continue", "restart", "fail"] = "continue"

    @field_validator("stop_words", mode="before")
    @classmethod
    def _no_bare_string(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError("a list of strings is needed, not one string")
        return () if value is None else value

    @field_validator("generation_kwargs", mode="before")
    @classmethod
    def _kwargs_of_its_kind(cls, value: object, info: ValidationInfo) -> GenerationKwargs | ChatKwargs:
        if "messages" not in info.data:  # they are at fault themselves, and will be named
            return GenerationKwargs()
        kind = type(_no_kwargs(info.data))
        return kind.model_validate({} if value is None else value)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: needed, or messages; not both")
        if self.messages is not None and not self.messages:
            raise ValueError("messages: at least one is needed")
        for name in ("tools", "tool_choice", "response_format"):
            if self.messages is None and getattr(self, name) is not None:
                raise ValueError(f"{name}: only with messages")
        return self

    @property
    def given(self) -> "Given":
        """What the model is given, as its server takes it."""
        return self.prompt or [message.model_dump(mode="json", exclude_none=True) for message in self.messages or ()]

    @property
    def forms(self) -> dict[str, Any]:
        """What holds JSON schemas, by its place."""
        forms = self.model_dump(mode="json", include={"tools", "response_format"}, exclude_none=True)
        grammar = getattr(self.generation_kwargs, "grammar", None)
        return forms if grammar is None else {"generation_kwargs": {"grammar": grammar.model_dump()}, **forms}

    @property
    def texts(self) -> list[str]:
        """The texts of a chat's messages; images and what else they hold are none."""
        contents = [message.content or "" for message in self.messages or ()]
        return [
            text
            for content in contents
            for text in ([content] if isinstance(content, str) else [part.text or "" for part in content])
        ]

    def digest(self) -> tuple[int, str]:
        """(characters, SHA-256 as hex) of what the model is given: enough to know it again, too little to read it."""
        given = self.given
        text = given if isinstance(given, str) else to_json(given).decode()
        return len(text), hashlib.sha256(text.encode()).hexdigest()

    def to_wire(self) -> bytes:
        """The request as JSON, without the fields that were not given."""
        return self.model_dump_json(exclude_unset=True, exclude_none=True).encode()

    def fingerprint(self) -> str:
        """40 hex digits that equal requests share, in whatever order their objects have their keys."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha1(canonical.encode(), usedforsecurity=False).hexdigest()

    def fingerprint_as_written(self) -> str:
        """As :meth:`fingerprint`, of the order too: what producers before this one stored, and compare with."""
        return hashlib.sha1(self.model_dump_json().encode(), usedforsecurity=False).hexdigest()


def read_request(fields: dict[str, Any], bounds: Bounds = DEFAULT_BOUNDS) -> GenerationRequest:
    """Validate a request's fields as they come from a caller or from a foreign message.

    Raises:
        InvalidRequestError: one line for each field at fault; of unknown ``generation_kwargs`` it says which
            are known, of a size which bound it passes.
    """
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        _check_size("prompt", _size_bytes(prompt), "max_prompt_bytes", bounds.max_prompt_bytes)
    try:
        request = GenerationRequest.model_validate(fields)
    except ValidationError as error:
        known = {**PARTS, "generation_kwargs": type(_no_kwargs(fields))}
        raise InvalidRequestError("; ".join(describe(error, known))) from None
    unsendable = [name for name, value in request if not _is_json(value)]
    if unsendable:
        raise InvalidRequestError(
            "; ".join(
                f"{name}: holds what JSON cannot: half of a surrogate pair, or no value of JSON" for name in unsendable
            )
        )
    _check_size("messages", sum(map(_size_bytes, request.texts)), "max_prompt_bytes", bounds.max_prompt_bytes)
    _check_size("request", len(request.to_wire()), "max_request_bytes", bounds.max_request_bytes)
    for name in ("max_new_tokens", "max_tokens"):
        tokens = getattr(request.generation_kwargs, name, None) or 0
        if tokens > bounds.max_completion_tokens:
            raise InvalidRequestError(
                f"generation_kwargs.{name}: is {tokens}, max_completion_tokens is {bounds.max_completion_tokens}"
            )
    return request


def _size_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _check_size(what: str, size_bytes: int, bound: str, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise InvalidRequestError(f"{what}: has {size_bytes} bytes, {bound} is {most_bytes}")


def _is_json(value: object) -> bool:
    try:
        to_json(value)
    except PydanticSerializationError:
        return False
    return True


_WORDS = {
    "tuple_type": "Input should be a valid list",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "extra_forbidden": "no such key",
}
"""In place of pydantic's, which speak of Python's types."""


def describe(error: ValidationError, known: Mapping[str, type[BaseModel]] | None = None) -> list[str]:
    """One readable line for each problem, with its place and never with the value (it may be a prompt or a secret).

    ``known`` is for each key the model whose fields are named where another one stands in it.
    """
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        if problem["type"] == "default_factory_not_called":  # pydantic's own note on another problem
            continue
        place = ".".join(shown(str(part)) for part in problem["loc"])  # a key may be a secret in the wrong place
        words = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").replace(
            "Tuple should", "List should"
        )
        if problem["type"] == "extra_forbidden" and (model := (known or {}).get(str(problem["loc"][-2:][0]))):
            lines.append(f"{place}: unknown; known: {', '.join(model.model_fields)}")
        elif problem["loc"] and problem["loc"][-1] == "return_full_text":
            lines.append(f"{place}: only False; a reply never holds the prompt")
        elif problem["type"] == "extra_forbidden" and (problem["loc"][0], problem["loc"][-1]) == (
            "generators",
            "token",
        ):
            lines.append(f"{place}: {words}; token_env names the variables that hold it")
        else:
            lines.append(f"{place}: {words}" if place else words)
    return lines


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
        kind, said = ("custom", "input") if index in custom else ("function", "arguments")
        called = {"name": "".join(names[index]) or None, said: "".join(arguments[index])}
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


class GenerationResult(BaseModel):
    """What a finished generation is: one reply and one meta for each text, in the seed's shape.

    Each ``meta`` holds ``model``, ``finish_reason`` (the server's word), ``usage``
    (``prompt_tokens`` and ``completion_tokens``, each None where nobody knows: the server does not say, or the text
    was continued by deltas that are no tokens),
    ``completion_start_time`` (ISO 8601, UTC; None for an empty text), ``generator``,
    ``endpoint``, ``attempts`` and ``timings`` (:func:`genqueue.registry.timing.timings`).  It has ``lost_characters``
    (``count`` and ``why``) if the endpoint's bytes spelt no UTF-8, or it declared another charset.  A chat's
    may also hold ``tool_calls``, as OpenAI has them, functions' and custom tools', each with an id,
    ``unreadable_tool_calls`` (the places among them, from 0, of functions whose arguments are no JSON object),
    ``reasoning``, ``reasoning_field`` (the server's word for it, if it is not
    :data:`~genqueue.wire.chat.REASONING_FIELD`), ``logprobs``, and ``refusal``: the part of the reply that OpenAI's
    models say in place of their answer.
    """

    model_config = ConfigDict(frozen=True)

    replies: list[str]
    meta: list[dict[str, Any]]

    @property
    def message(self) -> dict[str, Any]:
        """The answer to a chat as a message, for the next turn's ``messages``.

        It has ``role``, ``content`` (None where tool calls stand for a text), ``tool_calls`` if there are any, and
        what the model thought under the server's own word for it.  A refusal is the content.
        """
        text, meta = self.replies[0], self.meta[0]
        calls, reasoning = meta.get("tool_calls"), meta.get("reasoning")
        message: dict[str, Any] = {"role": "assistant", "content": (text or None) if calls else text}
        field = meta.get("reasoning_field", REASONING_FIELD)
        if reasoning and field == "content":  # as parts, by those who say it so
            thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": reasoning}]}
            message["content"] = [thoughts, *([{"type": "text", "text": text}] if text else [])]
        elif reasoning:
            message[field] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message


class Outcome(BaseModel):
    """How a generation ended without a result; beside its text, which has a key of its own."""

    v: Literal[1] = VERSION
    error: str
    message: str
    detail: dict[str, Any] = {}

    @property
    def is_worth_another_try(self) -> bool:
        """Whether the same request may end otherwise: it was not its fault, nobody cancelled it, it is not too late."""
        return self.error == "failed" or self.detail.get("fault") == "endpoint"


def celery_success(generation_id: str, result: GenerationResult, date_done: str) -> bytes:
    """The value of ``celery-task-meta-<id>`` for a result, as Celery 5's JSON backend writes it."""
    return _celery_meta(generation_id, "SUCCESS", result.model_dump(), date_done)


def celery_failure(generation_id: str, status: str, exception: str, module: str, message: str, date_done: str) -> bytes:
    """The value of ``celery-task-meta-<id>`` for an error (``FAILURE``, ``REVOKED``)."""
    error = {"exc_type": exception, "exc_message": [message], "exc_module": module}
    return _celery_meta(generation_id, status, error, date_done)


def _celery_meta(generation_id: str, status: str, result: dict[str, Any], date_done: str) -> bytes:
    return to_json(
        {
            "status": status,
            "result": result,
            "traceback": None,
            "children": [],
            "date_done": date_done,
            "task_id": generation_id,
        }
    )
