"""A serverless provider's text on the wire: OpenAI's ``/v1/completions``, as events.

Pure but for the sink.  huggingface_hub asks these providers, but cannot read their streams
(it looks for TGI's tokens in them), nor does it tell all of them how long the text may be.
"""

from collections.abc import Mapping
from typing import Any

from genqueue_worker.upstream.engines.openai_answers import OpenAIAnswer
from genqueue_worker.upstream.errors.answers import UNREADABLE, error_in, error_in_choice, trouble, unreadable
from genqueue_worker.upstream.faults import UpstreamError
from genqueue_worker.upstream.fields import content_of, counts, delta_of, first_choice, lost, reason, usage_in
from genqueue_worker.upstream.sink import Sink

_OF_TGI = ("details", "return_full_text", "decoder_input_details")
"""Parameters that only shape TGI's answer."""


def completion_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``text_generation``'s keyword arguments, of which this route has no use for some."""
    return {name: value for name, value in parameters.items() if name not in _OF_TGI}


def more_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the request must say besides what huggingface_hub makes of ``parameters``."""
    return {"max_tokens": parameters["max_new_tokens"], "stream_options": {"include_usage": True}}


def plain_text(event: Any) -> str | None:
    """The text of an event that says nothing else, as nearly all do; None of any other.

    This is done for every token: what follows from it is the same as of reading the whole event.
    """
    try:
        (choice,) = event["choices"]
        text = choice["text"]
        if (
            type(text) is not str
            or not text
            or choice.get("finish_reason")
            or choice.get("index")
            or choice.get("delta")
            or choice.get("message")
            or event.get("usage")
            or ("error" in event and event["error"] is not None)
            or choice.get("error")
        ):
            return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return text


class CompletionAnswer(OpenAIAnswer):
    """The text as its events come; each goes to ``sink``.

    Attributes:
        finish_reason: the server's word; None before the end, and of a stream that breaks off.
        usage: as the server counts, the last of each number; {} if it did not say.
        lost: how many characters of the text are U+FFFD for readers, since their bytes or halves are none.
        strange: None: what has no ``choices`` is no event here.
    """

    strange: bytes | None = None

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink, plain_text)
        self.finish_reason: str | None = None
        self.usage: dict[str, int] = {}
        self.lost = 0
        self._is_whole = False

    def _take(self, event: Any, data: bytes) -> None:
        try:
            error = error_in(event)
            choice = first_choice(event.get("choices")) if error is None else None
            if choice is not None:
                error = error_in_choice(choice, delta_of(choice))
            text = "" if choice is None or error is not None else self._text_of(choice)
            finish_reason = None if choice is None else reason(choice.get("finish_reason"))
            usage = usage_in(event, choice)
            if error is None and event and "choices" not in event and usage is None:
                raise TypeError("an event has no choices")
        except UNREADABLE as wrong:
            raise UpstreamError(unreadable(trouble(wrong), data)) from None
        if error is not None:
            raise UpstreamError(error)
        if usage:
            self.usage.update(counts(usage))
        text = self._halves.take(text)
        if finish_reason or self.finish_reason:
            text += self._halves.rest()
        if text:
            self._push(text)
        if finish_reason:
            self.finish_reason = finish_reason
            self._sink.close()

    def _push(self, text: str) -> None:
        self._came = True
        if self.is_odd:
            self.lost += lost(text)
        self._sink.push_delta(text)

    def _text_of(self, choice: Mapping[str, Any]) -> str:
        if self._came and type(choice.get("text")) is str and not choice.get("delta"):
            return str(choice["text"])  # a message beside it is a copy of the whole answer
        return content_of(delta_of(choice).get("content"))[0]

    def _end(self) -> None:
        """``[DONE]`` alone is no end."""

    def _end_whole(self) -> None:
        # It needs no word for its end.
        if rest := self._halves.rest():
            self._push(rest)
        self._is_whole = self._came

    @property
    def is_complete(self) -> bool:
        """Whether the server said that this is all."""
        return self.finish_reason is not None or self._is_whole
