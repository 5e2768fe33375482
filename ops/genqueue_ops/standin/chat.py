"""``/v1/chat/completions``: what a chat request asks of the model, and the fallback template.

Source: router/src of huggingface/text-generation-inference at db931fcf.  Tools and grammars
are read, and refused where TGI refuses them, but neither model calls a tool by itself: the
answer is what TGI gives when the model decides against one, unless the script wants a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genqueue_ops.standin.protocol import GenerateRequest, Parameters, TgiError
from genqueue_ops.standin.serde import (
    Fields,
    boolean,
    f32,
    grammar,
    string,
    strings,
    u32,
    u64,
    undeserializable,
    wrong_type,
)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request; its messages still await the template."""

    messages: tuple[dict[str, Any], ...]
    """``role`` and ``content`` (text) each."""
    parameters: Parameters
    stream: bool
    include_usage: bool
    logprobs: bool
    model: str | None
    """The adapter, to be echoed; None for the base model."""
    tool: str | None
    """The name of the first tool."""

    def generate_request(self, prompt: str) -> GenerateRequest:
        """What the model is asked, given the rendered prompt."""
        return GenerateRequest(prompt, self.parameters, self.stream)


def parse_chat(payload: Any) -> ChatRequest:
    """``ChatRequest`` from JSON; unknown keys are ignored.

    Raises:
        Rejection: 422, a field is missing or has the wrong type.
        TgiError: 422, grammar and tools together.
    """
    fields = Fields(payload, "struct ChatRequest")
    messages = fields.get("messages", _messages, required=True)
    stream = fields.get("stream", boolean, default=False)
    temperature = fields.get("temperature", f32, null=True)
    presence_penalty = fields.get("presence_penalty", f32, null=True)
    model = fields.get("model", string, null=True)
    max_tokens = fields.get("max_tokens", u32, null=True)
    if max_tokens is None:
        max_tokens = fields.get("max_completion_tokens", u32, null=True)
    response_format = fields.get("response_format", grammar, null=True)
    tools = fields.get("tools", _list, null=True)
    fields.get("logit_bias", _list, null=True)
    fields.get("n", u32, null=True)
    stream_options = fields.get("stream_options", _stream_options, default=False)
    if response_format is not None and tools:
        raise TgiError(422, "Tool error: Grammar and tools are mutually exclusive", "tool_error")
    adapter = None if model == "tgi" else model
    parameters = Parameters(
        temperature=None if temperature == 0 else temperature,
        repetition_penalty=None if presence_penalty is None else presence_penalty + 2.0,
        frequency_penalty=fields.get("frequency_penalty", f32, null=True),
        top_p=fields.get("top_p", f32, null=True),
        do_sample=temperature != 0,
        max_new_tokens=max_tokens,
        stop=fields.get("stop", strings, default=(), null=True),
        details=True,
        decoder_input_details=not stream,
        seed=fields.get("seed", u64, null=True),
        top_n_tokens=fields.get("top_logprobs", u32, null=True),
        grammar=response_format,
        adapter_id=adapter,
    )
    logprobs = fields.get("logprobs", boolean, default=False, null=True)
    tool = fields.get("tools", _first_tool, null=True)
    return ChatRequest(messages, parameters, stream, stream_options, logprobs, adapter, tool)


def render(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt of a chat, for a model without template: each message under its role.

    Where the last message is the assistant's, the prompt ends inside it, white space trimmed, so
    that the model continues it.

    Args:
        messages: ``role`` and ``content`` (text) each.
    """
    prompt = "".join(f"<|{message['role']}|>\n{message['content']}</s>\n" for message in messages)
    return continue_last(prompt + "<|assistant|>\n", messages)


def continue_last(prompt: str, messages: Sequence[dict[str, Any]]) -> str:
    """A rendered prompt, cut after the last message if that is the assistant's.

    TGI does the same to what a model's own template rendered (router/src/infer/chat_template.rs).
    """
    if not messages or messages[-1]["role"] != "assistant":
        return prompt
    content = messages[-1]["content"]
    start = prompt.rfind(content)
    return prompt if start < 0 else prompt[: start + len(content)].rstrip()


def _messages(value: Any, path: str) -> tuple[dict[str, Any], ...]:
    return tuple(_message(item, f"{path}[{place}]") for place, item in enumerate(_list(value, path)))


def _message(value: Any, path: str) -> dict[str, Any]:
    fields = Fields(value, "struct Message", path)
    return {"role": fields.get("role", string, required=True), "content": fields.get("content", _content, default="")}


def _content(value: Any, path: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return "".join(_content_part(part, f"{path}[{place}]") for place, part in enumerate(_list(value, path)))


def _content_part(value: Any, path: str) -> str:
    fields = Fields(value, "internally tagged enum MessageChunk", path)
    kind = fields.get("type", string, required=True)
    if kind == "text":
        text: str = fields.get("text", string, required=True)
        return text
    if kind == "image_url":
        url = Fields(value.get("image_url"), "struct Url", f"{path}.image_url").get("url", string, required=True)
        return f"![]({url})"
    raise undeserializable(f"unknown variant `{kind}`, expected `text` or `image_url`", path)


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_type(value, "a sequence", path)
    return value


def _first_tool(value: Any, path: str) -> str | None:
    for place, tool in enumerate(_list(value, path)):
        function = Fields(tool, "struct Tool", f"{path}[{place}]").get("function", _function, required=True)
        name: str = function.get("name", string, required=True)
        return name
    return None


def _function(value: Any, path: str) -> Fields:
    return Fields(value, "struct FunctionDefinition", path)


def _stream_options(value: Any, path: str) -> bool:
    include: bool = Fields(value, "struct StreamOptions", path).get("include_usage", boolean, required=True)
    return include
