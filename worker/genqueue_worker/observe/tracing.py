"""OpenTelemetry in a worker: where spans go, and the span of one call of a model server.

Everything is configured by OpenTelemetry's own variables.  Names and attributes are those of its
semantic conventions for generative AI.  Without the extra ``otel``, or without an exporter
named, a call costs one look into a dictionary.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from genqueue.settings import GeneratorSettings
from genqueue.tracing import attributes_of, fail, open_tracer, traceparent_of
from genqueue.wire.events import Token, ToolCallDelta
from genqueue.wire.finish_reasons import shown_reason
from genqueue.wire.request import Given
from genqueue_worker.observe.metrics import provider_of
from genqueue_worker.upstream.sink import Sink

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

_FLUSH_S = 5.0
"""How long a worker that ends waits for its last spans to leave."""
_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PACKAGES = {
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "otlp_proto_http": "opentelemetry-exporter-otlp-proto-http",
}
_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURES = {"true", "span_only", "span_and_event"}
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


def exporters(environ: Mapping[str, str]) -> dict[str, str]:
    """The exporters that the environment asks for, by the names under which they are installed; {} for no traces.

    Returns:
        For each the variable that chose it.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return {}
    asked = next((name for name in (_EXPORTER, *_ENDPOINTS) if environ.get(name, "").strip()), None)
    names = environ[asked].split(",") if asked == _EXPORTER else ["otlp"] if asked else []
    chosen = {name.strip(): str(asked) for name in names if name.strip() not in {"", "none"}}
    if (asked := chosen.pop("otlp", None)) is not None:
        protocol = next((name for name in _PROTOCOLS if environ.get(name, "").strip()), asked)
        is_grpc = environ[protocol].strip() == "grpc"
        chosen["otlp_proto_grpc" if is_grpc else "otlp_proto_http"] = protocol
    return chosen


def set_up(owner: str, environ: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Have spans exported as the environment says, unless somebody (``opentelemetry-instrument``) saw to it already.

    What cannot be had is a warning: these variables are often set for a whole cluster, and no reason not to serve.

    Args:
        owner: who this worker is.
        environ: OpenTelemetry's variables.

    Returns:
        What sends the last spans, within 5 s; to be called at the end.
    """
    chosen = exporters(environ)
    if not chosen:
        return lambda: None
    try:
        from importlib.metadata import entry_points

        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("no traces: OpenTelemetry is configured, and not installed: pip install 'genqueue[otel]'")
        return lambda: None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return lambda: None
    own = {"service.name": "genqueue-worker", "service.instance.id": owner}
    resource = Resource.create(own | dict(OTELResourceDetector().detect().attributes))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    is_heard = False
    for name, variable in chosen.items():
        found = tuple(entry_points(group="opentelemetry_traces_exporter", name=name))
        if not found:
            install = f": pip install {_PACKAGES[name]}" if name in _PACKAGES else ""
            logger.warning("no traces by %r, which %s asks for: it is not installed%s", name, variable, install)
            continue
        try:
            provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
            is_heard = True
        except Exception as error:  # of a value that it cannot take
            logger.warning("no traces by %r: %s: %s", name, type(error).__name__, error)
    if not is_heard:
        return lambda: None
    trace.set_tracer_provider(provider)

    def end() -> None:
        # A collector that does not answer would keep it for longer.
        last = threading.Thread(target=provider.shutdown, name="genqueue-last-spans", daemon=True)
        last.start()
        last.join(_FLUSH_S)

    return end


def captures_content(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether spans shall hold prompts and replies."""
    return environ.get(_CAPTURE, "").strip().lower() in _CAPTURES


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


class Call:
    """One call of a model server, as its span knows it; without a span nothing is kept.

    Attributes:
        traceparent: what the server is told; None for nothing.
    """

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span
        self._heard: ListeningSink | None = None
        self.traceparent = None if span is None else traceparent_of(span)

    def listen(self, prompt: Given, sink: Sink) -> Sink:
        """The sink to push into; where prompts and replies shall be told, they are kept on the way."""
        if self._span is None or not self._span.is_recording() or not captures_content():
            return sink
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        said = [{"role": each["role"], "parts": _parts(each.get("content"))} for each in messages]
        self._span.set_attribute("gen_ai.input.messages", json.dumps(said))
        self._heard = ListeningSink(sink)
        return cast(Sink, self._heard)  # which passes on what it does not take itself

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
        if self._heard is not None:
            said = [{"role": "assistant", "parts": _parts("".join(self._heard.text))}]
            self._span.set_attribute("gen_ai.output.messages", json.dumps(said))
        if error_type is not None:
            fail(self._span, error_type)
        self._span.end()


_NO_CALL = Call()


def open_call(
    operation: str,
    url: str | None,
    generator: str,
    settings: GeneratorSettings,
    parameters: Mapping[str, Any],
    *,
    streams: bool,
) -> Call:
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
    return Call(span)


def _parts(content: Any) -> list[dict[str, Any]]:
    """A message's content in OpenTelemetry's form; what is no text is named only."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    return [
        {"type": "text", "content": part["text"]} if part.get("type") == "text" else {"type": str(part.get("type"))}
        for part in parts
    ]


@contextlib.contextmanager
def ended(call: Call, error_type_of: Callable[[BaseException], str]) -> Iterator[None]:
    """The block is the call."""
    error_type: str | None = None
    try:
        yield
    except BaseException as error:
        error_type = error_type_of(error)
        raise
    finally:
        call.end(error_type)
