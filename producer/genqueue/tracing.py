"""OpenTelemetry, if the process uses it: the spans of a producer, and what travels with a generation.

A library records into whatever its application has set up.  So OpenTelemetry is never imported
from here before somebody else did: without it each of these costs a look into a dictionary.
Names and attributes are those of OpenTelemetry's semantic conventions for messaging.  No span
holds a prompt, a reply or an error's words.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genqueue.keys import queue

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def valid_traceparent(value: object) -> str | None:
    """``value`` if it is a ``traceparent`` header of W3C Trace Context (version 00, 55 characters), else None."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def open_tracer() -> "Tracer | None":
    """The application's tracer for us; None where it has set none up (redis-py imports the API by itself)."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if not hasattr(api, "get_tracer_provider"):
        return None
    provider = api.get_tracer_provider()
    return None if isinstance(provider, api.ProxyTracerProvider) else provider.get_tracer("genqueue")


def traceparent_of(span: "Span") -> str | None:
    """What others are told of a span, so that theirs can be its children; None of one that leads nowhere."""
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"


def context_of(traceparent: str | None) -> "Context | None":
    """The context in which a span becomes the child of one in another process; None is the current one."""
    if traceparent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def messaging(operation: str, generator: str | None, generation_id: str) -> dict[str, Any]:
    """The attributes of every span that sends, receives or processes a generation."""
    attributes = {
        "messaging.system": "celery",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.message.id": generation_id,
    }
    return attributes if generator is None else attributes | {"messaging.destination.name": queue(generator)}


def fail(span: "Span", error_type: str) -> None:
    """Mark a span as failed; the words of errors may quote a prompt, so their class must do."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a generation came from, for the spans of those who read it."""

    generator: str
    traceparent: str | None


@contextmanager
def sending(generator: str, generation_id: str) -> Iterator[str | None]:
    """The span of one submit, as the current one; yields what the generation shall carry, None if nobody traces."""
    tracer = open_tracer()
    if tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    with tracer.start_as_current_span(
        f"send {queue(generator)}",
        kind=SpanKind.PRODUCER,
        attributes=messaging("send", generator, generation_id),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield traceparent_of(span)
        except Exception as error:
            fail(span, type(error).__name__)
            raise


@contextmanager
def receiving(generation_id: str, origin: Origin | None) -> Iterator[None]:
    """The span of one reader, from its first look to its end, in the trace of the submit.

    Where the reader is at work on something else, as a web request of its own, it is in that
    trace and linked with the other.  Never the current span: the code between two chunks is
    the caller's.
    """
    tracer = open_tracer()
    if tracer is None:
        yield
        return
    from opentelemetry.trace import Link, SpanKind, get_current_span

    generator, traceparent = (origin.generator, origin.traceparent) if origin else (None, None)
    sent = context_of(traceparent)
    sent_span = get_current_span(sent).get_span_context() if sent is not None else None
    here = get_current_span().get_span_context()
    span = tracer.start_span(
        f"receive {queue(generator)}" if generator else "receive",
        context=None if here.is_valid else sent,
        kind=SpanKind.CLIENT,
        attributes=messaging("receive", generator, generation_id),
        links=[Link(sent_span)] if sent_span is not None and here.is_valid else [],
    )
    try:
        yield
    except Exception as error:
        fail(span, type(error).__name__)
        raise
    finally:
        span.end()


def attributes_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of ``values``: OpenTelemetry takes no None."""
    return {name: value for name, value in values.items() if value is not None}
