"""What a chat is made of: messages, tools, the form of the answer, and its parameters.

They are shaped as the OpenAI and Hugging Face clients take them.  What every server must be able
to read is checked here; what else a message says (an engine's own kinds of parts, what an
earlier answer brought along) goes to the server as it is, and the server judges it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator, model_validator

I32, U64 = 2**31 - 1, 2**64 - 1
"""The largest numbers that the servers' own types hold."""

REASONING_FIELD = "reasoning_content"
"""Where most servers have what a model thought, in answers and in the messages that they are sent."""

_NOT_EXTRA = {
    # max_completion_tokens is OpenAI's, n_predict llama.cpp's (-1 is no limit), tokens_to_generate MiniMax's, the
    # rest TGI's, vLLM's and SGLang's.
    # Of the least length nothing would be left off when an answer is continued.
    "max_tokens alone bounds an answer": (
        "max_completion_tokens max_output_tokens max_new_tokens max_length n_predict tokens_to_generate"
        " min_tokens min_new_tokens min_length generation_config sampling_params"
    ),
    "one answer is read": "best_of n_cmpl num_return_sequences num_beams use_beam_search",
    "how a server is asked is the worker's business": (
        "messages model stream stream_options echo echo_last response_fields"
        " prompt prompts inputs input input_ids prompt_token_ids prompt_token_ids_b64 prompt_embeds parameters"
    ),
    "submit_chat takes it": "tools tool_choice response_format functions function_call",
    # Where engines that share one model's work fetch or leave what they computed.
    "a server connects where it says": (
        "bootstrap_host bootstrap_port bootstrap_room kv_transfer_params disaggregated_params"
    ),
}
"""What ``extra_body`` may not set, and why: an engine would take it in place of what the worker says or bounds."""


StopWord = Annotated[str, Field(min_length=1, max_length=1000)]
"""An empty one would stop every text after its first token."""
MAX_STOP_WORDS = 64


def _list_of(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


StopWords = Annotated[list[StopWord], Field(max_length=MAX_STOP_WORDS), BeforeValidator(_list_of)]
"""A tuple will do where a list is wanted: as JSON they are the same."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)


class ImageUrl(_Open):
    """Where an image is: an address, if the generator lets its server fetch it, or a data URI that holds it."""

    url: str = Field(min_length=1)


class ContentPart(_Open):
    """A part of a message; only texts and images are looked at."""

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        if self.type in {"text", "image_url"} and getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type!r} needs {self.type!r}")
        return self


_PARTS: TypeAdapter[tuple[ContentPart, ...]] = TypeAdapter(tuple[ContentPart, ...])


class FunctionCall(_Open):
    """Which function with which arguments: a JSON string, as OpenAI has it, or an object."""

    name: str = Field(min_length=1)
    arguments: str | dict[str, Any]


class _FunctionOrCustom(_Open):
    # ``custom`` is no field of its own: it would be in the fingerprint of each request that has none.
    _of_custom: ClassVar[tuple[str, ...]] = ("name",)

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        fields = vars(self)
        if fields["type"] == "function" and fields["function"] is None:
            raise ValueError("type 'function' needs 'function'")
        if fields["type"] == "custom":
            custom = (self.model_extra or {}).get("custom")
            values = [custom.get(name) for name in self._of_custom] if isinstance(custom, Mapping) else [None]
            if not values[0] or not all(isinstance(value, str) for value in values):
                raise ValueError(f"type 'custom' needs 'custom', an object with {' and '.join(self._of_custom)}")
        return self


class ToolCall(_FunctionOrCustom):
    """A call that an assistant made in an earlier answer; workers of today give each an id."""

    _of_custom = ("name", "input")

    id: str | None = None
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | None = None


_IN_PLACE_OF_TEXT = (REASONING_FIELD, "reasoning", "refusal", "function_call")


class Message(_Open):
    """One message; ``tool_call_id`` says which call a tool's message answers.

    An assistant's may be whatever an answer was: a text, tool calls, thoughts alone or a refusal.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_or_parts(cls, value: object) -> object:
        # By hand, since of a union pydantic says what is wrong with each of its members.
        if isinstance(value, list | tuple):
            return _PARTS.validate_python(value)
        if not isinstance(value, str | None):
            raise ValueError("Input should be a valid string or a list of parts")
        return value

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _calls_or_none(cls, value: object) -> object:
        return value or None if isinstance(value, list | tuple) else value

    @model_validator(mode="before")
    @classmethod
    def _has_a_content(cls, value: object) -> object:
        # Of an answer without text servers want the empty text, unless it calls tools.
        if not isinstance(value, dict) or value.get("role") != "assistant" or value.get("content") is not None:
            return value
        stands_for_it = not value.get("tool_calls") and any(value.get(name) for name in _IN_PLACE_OF_TEXT)
        return {**value, "content": ""} if stands_for_it else value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content: needed, unless an assistant's tool_calls, reasoning or refusal stand for it")
        return self


class Function(_Open):
    """What a model is told of a function; ``parameters`` is a JSON schema."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_FunctionOrCustom):
    """A function that the model may call, or OpenAI's custom tool, which it calls with a text."""

    type: Literal["function", "custom"] = "function"
    function: Function | None = None


class FunctionName(_Open):
    """A function by its name."""

    name: str = Field(min_length=1)


class NamedTool(_FunctionOrCustom):
    """The one tool that the model must call."""

    type: Literal["function", "custom"] = "function"
    function: FunctionName | None = None


def _word_or_tool(value: object) -> object:
    if isinstance(value, dict):
        return NamedTool.model_validate(value)
    if not isinstance(value, NamedTool | None) and value not in ("auto", "none", "required"):
        raise ValueError("Input should be 'auto', 'none', 'required' or an object that names a function")
    return value


ToolChoice = Annotated[Literal["auto", "none", "required"] | NamedTool, BeforeValidator(_word_or_tool)]


class ResponseFormat(_Open):
    """The form of the text: OpenAI's ``text``, ``json_object`` and ``json_schema``, TGI's ``json`` and ``regex``."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: dict[str, Any] | None = None
    value: str | dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        needed = {"json_schema": "json_schema", "json": "value", "regex": "value"}.get(self.type)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"type {self.type!r} needs {needed!r}")
        if self.json_schema is not None and not isinstance(self.json_schema.get("schema"), dict):
            raise ValueError("json_schema needs 'schema', an object")
        return self


class ChatKwargs(BaseModel):
    """The parameters that ``huggingface_hub``'s ``chat_completion`` knows, tools and response_format aside.

    The ranges are what any server can take; where one takes less, its words reach the caller.
    ``extra_body`` holds what only some engines know (``top_k``, ``repetition_penalty`` …); which names go to a
    server is for its generator's settings to say (:mod:`genqueue.wire.extra_body`).
    """

    # JSON has no NaN and no infinity: they would be sent as null, which means "not given".
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    extra_body: dict[str, Any] | None = None
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    logit_bias: dict[str, float] | list[float] | None = None
    logprobs: bool | None = None
    max_tokens: int | None = Field(None, ge=1, le=I32)
    n: Literal[1] | None = None
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    seed: int | None = Field(None, ge=0, le=U64)
    stop: StopWords | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    tool_prompt: str | None = None
    top_logprobs: int | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        named = {"it is one of generation_kwargs": " ".join(cls.model_fields), **_NOT_EXTRA}
        taken = {why: [name for name in value or () if name in names.split()] for why, names in named.items()}
        if any(taken.values()):
            words = [f"{', '.join(names)} ({why})" for why, names in taken.items() if names]
            raise ValueError(f"may not hold {'; '.join(words)}")
        return value
