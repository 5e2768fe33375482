"""OpenTelemetry in a worker: where spans go.

Everything is configured by OpenTelemetry's own variables.  Without the extra ``otel``, or without an
exporter named, nothing is set up.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping

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


def exporters(environ: Mapping[str, str]) -> dict[str, str]:
    """The exporters that the environment asks for, by the names under which they are installed; {} for no traces.

    Returns:
        For each the variable that chose it.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return {}
    variable = next((name for name in (_EXPORTER, *_ENDPOINTS) if environ.get(name, "").strip()), None)
    names = environ[variable].split(",") if variable == _EXPORTER else ["otlp"] if variable else []
    chosen = {name.strip(): str(variable) for name in names if name.strip() not in {"", "none"}}
    if (variable := chosen.pop("otlp", None)) is not None:
        protocol = next((name for name in _PROTOCOLS if environ.get(name, "").strip()), variable)
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
        entries = tuple(entry_points(group="opentelemetry_traces_exporter", name=name))
        if not entries:
            install = f": pip install {_PACKAGES[name]}" if name in _PACKAGES else ""
            logger.warning("no traces by %r, which %s asks for: it is not installed%s", name, variable, install)
            continue
        try:
            provider.add_span_processor(BatchSpanProcessor(entries[0].load()()))
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
