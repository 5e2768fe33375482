"""OpenTelemetry's span of one call of a model endpoint.

Names and attributes are those of its semantic conventions for generative AI.  Where nobody traces, a
call costs one look into a dictionary.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from genqueue.settings import GeneratorSettings
from genqueue.tracing import attributes_of, fail, open_tracer, traceparent_of
from genqueue.wire.events import Token, ToolCallDelta
from genqueue.wire.finish_reasons import shown_reason
from genqueue.wire.request import Given
from genqueue_worker.observe.metrics import provider_of
from genqueue_worker.observe.tracing import captures_content
from genqueue_worker.upstream.sink import Sink

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_PARAMETERS = {
    "max_new_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
"""Of a call's parameters those that have a name in OpenTelemetry and hold no text."""


class ListeningSink:
    """Passes everything on to a sink, and keeps the text."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.text: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)

    def push(self, token: Token, text: str, top_tokens: list[Token] | None = None) -> None:
        """As :class:`Sink`."""
        self.text.append(text)
        self._sink.push(token, text, top_tokens)

    def push_delta(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> None:
        """As :class:`Sink`."""
        self.text.append(text)
        self._sink.push_delta(text, reasoning, tool_calls)


class CallSpan:
    """One call of a model server, as its span knows it; without a span nothing is kept.

    Attributes:
        traceparent: what the server is told; None for nothing.
    """

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span
        self._listening: ListeningSink | None = None
        self.traceparent = None if span is None else traceparent_of(span)

    def listen(self, prompt: Given, sink: Sink) -> Sink:
        """The sink to push into; where prompts and replies shall be told, they are kept on the way."""
        if self._span is None or not self._span.is_recording() or not captures_content():
            return sink
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        inputs = [{"role": each["role"], "parts": _parts(each.get("content"))} for each in messages]
        self._span.set_attribute("gen_ai.input.messages", json.dumps(inputs))
        self._listening = ListeningSink(sink)
        return cast(Sink, self._listening)  # which passes on what it does not take itself

    def answered(
        self, finish_reason: str | None, prompt_tokens: int | None, completion_tokens: int | None, first_s: float | None
    ) -> None:
        """What the server said at its end; ``first_s`` is when its first words came, seconds from the call."""
        if self._span is None:
            return
        reason = shown_reason(finish_reason)
        self._span.set_attributes(
            attributes_of(
                {
                    "gen_ai.response.finish_reasons": [reason] if reason else None,
                    "gen_ai.usage.input_tokens": prompt_tokens,
                    "gen_ai.usage.output_tokens": completion_tokens,
                    "gen_ai.response.time_to_first_chunk": first_s,
                }
            )
        )

    def end(self, error_type: str | None) -> None:
        """It is over, with an error or without."""
        if self._span is None:
            return
        if self._listening is not None:
            outputs = [{"role": "assistant", "parts": _parts("".join(self._listening.text))}]
            self._span.set_attribute("gen_ai.output.messages", json.dumps(outputs))
        if error_type is not None:
            fail(self._span, error_type)
        self._span.end()


_NO_CALL = CallSpan()


def open_call(
    operation: str,
    url: str | None,
    generator: str,
    settings: GeneratorSettings,
    parameters: Mapping[str, Any],
    *,
    streams: bool,
) -> CallSpan:
    """A call begins, as the child of whatever span is current.

    Args:
        operation: ``text_completion`` or ``chat``.
        url: the server's; None where a provider chooses it.
        generator: whose call.
        settings: the generator's.
        parameters: what the client is called with.
        streams: whether the server sends token by token.
    """
    tracer = open_tracer()
    if tracer is None:
        return _NO_CALL
    from opentelemetry.trace import SpanKind

    server, model = urlsplit(url or ""), settings.api_params.named_model
    known = {
        f"gen_ai.request.{name}": parameters.get(given) for given, name in _PARAMETERS.items() if given in parameters
    }
    attributes = attributes_of(
        {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider_of(settings),
            "gen_ai.request.model": model,
            "gen_ai.request.stream": streams,
            "server.address": server.hostname,
            "server.port": server.port,
            "genqueue.generator": generator,
            **known,
        }
    )
    span = tracer.start_span(
        f"{operation} {model}" if model else operation, kind=SpanKind.CLIENT, attributes=attributes
    )
    return CallSpan(span)


def _parts(content: Any) -> list[dict[str, Any]]:
    """A message's content in OpenTelemetry's form; what is no text is named only."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    return [
        {"type": "text", "content": part["text"]} if part.get("type") == "text" else {"type": str(part.get("type"))}
        for part in parts
    ]


@contextlib.contextmanager
def ended(call: CallSpan, error_type_of: Callable[[BaseException], str]) -> Iterator[None]:
    """The block is the call."""
    error_type: str | None = None
    try:
        yield
    except BaseException as error:
        error_type = error_type_of(error)
        raise
    finally:
        call.end(error_type)
