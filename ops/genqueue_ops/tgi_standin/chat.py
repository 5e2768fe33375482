"""The chat template of a model that has none of its own."""

from collections.abc import Sequence
from typing import Any


def render(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt of a chat: each message under its role, then the assistant's turn.

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
