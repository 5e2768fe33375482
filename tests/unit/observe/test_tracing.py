"""What configures the export of traces, what travels, and that nothing is imported for nothing."""

import subprocess
import sys

import pytest

from genqueue.tracing import valid_traceparent
from genqueue_worker.observe.tracing import captures_content, exporters

VALID = f"00-{'0af7651916cd43dd8448eb211c80319c'}-{'b7ad6b7169203331'}-01"
HTTP = "otlp_proto_http"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        5,
        b"00",
        VALID.upper(),
        VALID + " ",
        VALID + "\n",
        VALID + "-more",
        VALID.replace("00-", "01-", 1),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        f"00-{'g' * 32}-b7ad6b7169203331-01",
        "00-" + "a" * 1_000_000,
        [VALID],
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_traceparent_is_ignored(value):
    assert valid_traceparent(value) is None


def test_a_traceparent_is_taken_as_it_is():
    assert valid_traceparent(VALID) == VALID


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        ({"OTEL_SERVICE_NAME": "x"}, {}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {HTTP: "OTEL_EXPORTER_OTLP_ENDPOINT"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}, {HTTP: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            {"otlp_proto_grpc": "OTEL_EXPORTER_OTLP_PROTOCOL"},
        ),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            {HTTP: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"},
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, {}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, {}),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, {HTTP: "OTEL_TRACES_EXPORTER"}),
        (
            {"OTEL_TRACES_EXPORTER": "console, otlp"},
            {"console": "OTEL_TRACES_EXPORTER", HTTP: "OTEL_TRACES_EXPORTER"},
        ),
    ],
    ids=str,
)
def test_opentelemetrys_variables_say_where_spans_go(environ, expected):
    assert exporters(environ) == expected


@pytest.mark.parametrize(
    ("said", "expected"), [("true", True), ("SPAN_ONLY", True), ("", False), ("no_content", False)]
)
def test_prompts_are_told_only_if_asked_for(said, expected):
    assert captures_content({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": said}) is expected
    assert captures_content({}) is False


NOBODY_TRACES = """
import sys
from genqueue import tracing
before = set(sys.modules)
assert tracing.open_tracer() is None
with tracing.sending("default", "id") as traceparent, tracing.receiving("id", None):
    assert traceparent is None
assert set(sys.modules) == before
"""
SOMEBODY_TRACES = """
import opentelemetry.trace
from genqueue import tracing
assert tracing.open_tracer() is None
from opentelemetry.sdk.trace import TracerProvider
opentelemetry.trace.set_tracer_provider(TracerProvider())
with tracing.sending("default", "id") as traceparent:
    assert tracing.valid_traceparent(traceparent) == traceparent
"""


@pytest.mark.parametrize("code", [NOBODY_TRACES, SOMEBODY_TRACES], ids=["nobody traces", "somebody traces"])
def test_only_an_application_that_set_up_a_provider_is_traced(code):
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SPANS_OF_CALLS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

from genqueue.settings import GeneratorSettings
from genqueue_worker.observe.metrics import Metrics
from genqueue_worker.upstream.spans import open_call
given = {
    "own": {"api_type": "text_generation_inference", "api_params": {"url": "http://tgi"}},
    "hub": {"api_type": "serverless_inference_api", "api_params": {"model": "m", "provider": "cerebras"}},
    "auto": {"api_type": "serverless_inference_api", "api_params": {"model": "m"}},
}
generators = {name: GeneratorSettings.model_validate(settings) for name, settings in given.items()}
metrics = Metrics(generators)
for name, settings in generators.items():
    open_call("chat", None, name, settings, {}, streams=True).end(None)
    metrics.of(name).call("chat").ended(1.0)
spans = {span.attributes["genqueue.generator"]: span.attributes["gen_ai.provider.name"]
         for span in exporter.get_finished_spans()}
(durations,) = [family for family in metrics.registry.collect() if family.name.endswith("operation_duration_seconds")]
counted = {sample.labels["generator"]: sample.labels["gen_ai_provider_name"] for sample in durations.samples}
assert spans == counted == {"own": "hugging_face", "hub": "cerebras", "auto": "hugging_face"}, (spans, counted)
"""


def test_spans_and_metrics_name_the_same_provider():
    done = subprocess.run(
        [sys.executable, "-c", SPANS_OF_CALLS], timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
