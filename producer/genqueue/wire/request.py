"""A request: what a producer hands over."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticSerializationError, to_json

from genqueue.errors import InvalidRequestError
from genqueue.keys import GENERATOR_NAME, PRIORITIES
from genqueue.wire.chat import (
    I32,
    MAX_STOP_WORDS,
    U64,
    ChatKwargs,
    Message,
    ResponseFormat,
    StopWord,
    StopWords,
    Tool,
    ToolChoice,
)
from genqueue.wire.problems import describe
from genqueue.wire.version import VERSION

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
