"""A serverless provider's text on the wire: OpenAI's ``/v1/completions``, as events.

Pure but for the sink.  huggingface_hub asks these providers, but cannot read their streams
(it looks for TGI's tokens in them), nor does it tell all of them how long the text may be.
"""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from genqueue_worker.answers import first_choice, text, word
from genqueue_worker.sink import Sink

_OF_TGI = ("details", "return_full_text", "decoder_input_details")
"""Parameters that only shape TGI's answer."""


def completion_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``text_generation``'s keyword arguments, of which this route has no use for some."""
    return {name: value for name, value in parameters.items() if name not in _OF_TGI}


def more_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the request must say besides what huggingface_hub makes of ``parameters``."""
    return {"max_tokens": parameters["max_new_tokens"], "stream_options": {"include_usage": True}}


class CompletionAnswer:
    """The text as its events come; each goes to ``sink``.

    Attributes:
        finish_reason: the server's word; None before the end, and of a stream that breaks off.
        usage: as the server counts; {} if it did not say.
    """

    def __init__(self, sink: Sink) -> None:
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] = {}
        self._sink = sink

    def take(self, data: bytes) -> bool:
        """Push the text of one event.

        Returns:
            False for an error and whatever is no event of this route: those are huggingface_hub's to judge.
        """
        try:
            event = from_json(data)
            if event.get("error") is not None:
                return False
            usage = event.get("usage")
            choice = first_choice(event["choices"])
            said = "" if choice is None else text(choice["text"])
            finish_reason = None if choice is None else word(choice.get("finish_reason"))
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        self.usage = usage or self.usage
        if said:
            self._sink.push_delta(said)
        if finish_reason:
            self.finish_reason = finish_reason
            self._sink.close()
        return True

    @property
    def is_complete(self) -> bool:
        """Whether the server said that this is all."""
        return self.finish_reason is not None
