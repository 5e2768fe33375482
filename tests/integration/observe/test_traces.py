"""One trace over real processes: this producer, a real worker, the stand-in; a real OTLP receiver over TCP."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from celery import Celery
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genqueue import AsyncGenerationClient, GenerationClient, GenerationError, Settings

TGI = "text_generation_inference"


class Collector:
    """What an OpenTelemetry collector was sent."""

    def __init__(self):
        self.bodies = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                assert self.path == "/v1/traces"
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def spans(self, generation=None, trace_id=None):
        """Every span, or one generation's by its trace."""
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found += scope.spans
        if generation is not None:
            ids = {span.trace_id for span in found if attributes(span).get("messaging.message.id") == generation.id}
            found = [span for span in found if span.trace_id in ids]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes(span):
    def value(any_value):
        kind = any_value.WhichOneof("value")
        held = getattr(any_value, kind)
        return [value(each) for each in held.values] if kind == "array_value" else held

    return {each.key: value(each.value) for each in span.attributes}


@pytest.fixture(scope="module")
def collector():
    served = Collector()
    yield served
    served.close()


@pytest.fixture(scope="module")
def told(collector):
    """The environment of a worker that exports its spans at once."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
def own():
    """This process's spans: those of an application that uses OpenTelemetry."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="module")
def traced(launch_worker, standin, real_redis, queue_redis, told):
    generators = {
        "traced": {"api_type": TGI, "api_params": {"url": standin.url, "model": "our/model"}, "max_attempts": 1},
        "again": {"api_type": TGI, "api_params": {"url": standin.url}, "max_attempts": 2},
    }
    worker = launch_worker(generators, queue_redis.url, "-c", "16", environ=told)
    yield worker
    assert worker.end() == 0


@pytest.fixture
def client(traced, own):
    own.clear()
    with GenerationClient(Settings(redis_url=traced.producer_url, generators={})) as made:
        yield made


def of(spans, name):
    return [span for span in spans if span.name.split(" ")[0] == name]


def one_of(spans, name):
    (span,) = of(spans, name)
    return span


def test_one_trace_from_the_producer_through_the_queue_to_the_call_and_back(
    client, ask, standin, collector, own, eventually
):
    prompt = ask(tokens=6, itl_s=0.01)
    generation = client.submit(
        prompt, generator="traced", generation_kwargs={"max_new_tokens": 6, "temperature": 0.5, "stop": ["§"]}
    )
    text = "".join(chunk.text for chunk in generation.stream())
    assert text == prompt.answer
    eventually(lambda: len(collector.spans(generation)) == 2, what="two spans of the worker")
    process, call = collector.spans(generation)
    send, receive = one_of(own.get_finished_spans(), "send"), one_of(own.get_finished_spans(), "receive")

    trace_id = send.context.trace_id
    assert receive.context.trace_id == trace_id
    assert {span.trace_id for span in (process, call)} == {trace_id.to_bytes(16, "big")}
    assert process.parent_span_id == send.context.span_id.to_bytes(8, "big")
    assert call.parent_span_id == process.span_id
    assert receive.parent.span_id == send.context.span_id
    assert [send.name, process.name, call.name, receive.name] == [
        "send generate.traced",
        "process generate.traced",
        "text_completion our/model",
        "receive generate.traced",
    ]
    assert (send.kind, process.kind, call.kind) == (
        trace.SpanKind.PRODUCER,
        Span.SPAN_KIND_CONSUMER,
        Span.SPAN_KIND_CLIENT,
    )
    (request,) = standin.requests(prompt)
    assert request["headers"]["traceparent"] == f"00-{trace_id:032x}-{call.span_id.hex()}-01"

    said = attributes(call)
    assert said.pop("gen_ai.response.time_to_first_chunk") > 0
    host, port = standin.url.removeprefix("http://").split(":")
    assert said == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "hugging_face",
        "gen_ai.request.model": "our/model",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": generation.result().meta[0]["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 6,
        "genqueue.generator": "traced",
        "server.address": host,
        "server.port": int(port),
    }
    done = attributes(process)
    assert done["messaging.message.id"] == generation.id
    assert (done["messaging.operation.type"], done["messaging.destination.name"]) == ("process", "generate.traced")
    assert (done["genqueue.attempt"], done["genqueue.outcome"]) == (1, "finished")
    assert done["genqueue.queue_wait_s"] >= 0
    assert process.status.code == Status.STATUS_CODE_UNSET


def test_nothing_of_prompt_or_reply_is_exported(client, ask, collector, own, eventually):
    asked = [ask(tokens=4), ask(tokens=4, faults=[{"kind": "error", "after_tokens": 2}])]
    for prompt in asked:
        generation = client.submit(prompt, generator="traced", stop_words=["a-word-of-mine"])
        with contextlib.suppress(GenerationError):
            generation.result(timeout_s=15)
        eventually(lambda found=generation: len(collector.spans(found)) == 2)
    everything = b"".join(collector.bodies) + "".join(span.to_json() for span in own.get_finished_spans()).encode()
    words = [*asked, *(prompt.split()[2] for prompt in asked), *(prompt.answer for prompt in asked), "a-word-of-mine"]
    words += [part for prompt in asked for part in prompt.answer.split() if "-" in part]
    assert len(words) > 8
    assert [word for word in words if word.encode() in everything] == []


def test_a_reader_within_a_request_of_its_own_stays_there_and_is_linked(client, ask, own):
    generation = client.submit(ask(), generator="traced")
    with trace.get_tracer("web").start_as_current_span("GET /stream") as request:
        generation.result(timeout_s=15)
    receive, send = one_of(own.get_finished_spans(), "receive"), one_of(own.get_finished_spans(), "send")
    assert receive.parent.span_id == request.get_span_context().span_id
    assert [link.context.span_id for link in receive.links] == [send.context.span_id]


async def test_an_asyncio_producer_is_traced_alike(traced, ask, collector, own, eventually):
    own.clear()
    async with AsyncGenerationClient(Settings(redis_url=traced.producer_url, generators={})) as client:
        with trace.get_tracer("web").start_as_current_span("POST /ask"):
            generation = await client.submit_chat([{"role": "user", "content": ask()}], generator="traced")
            await generation.result(timeout_s=15)
    await asyncio.to_thread(eventually, lambda: len(collector.spans(generation)) == 2)
    process, call = collector.spans(generation)
    assert call.name == "chat our/model"
    spans = own.get_finished_spans()
    assert {span.context.trace_id.to_bytes(16, "big") for span in spans} == {process.trace_id}
    assert {span.name for span in spans} == {"POST /ask", "send generate.traced", "receive generate.traced"}


def test_a_second_attempt_is_in_the_same_trace(client, ask, collector, own, eventually):
    prompt = ask(tokens=6, faults=[{"kind": "status", "status": 500, "body": "broken", "times": 1}])
    generation = client.submit(prompt, generator="again")
    generation.result(timeout_s=20)
    eventually(lambda: len(of(collector.spans(generation), "process")) == 2)
    first, second = of(collector.spans(generation), "process")
    send = one_of(own.get_finished_spans(), "send").context
    assert {first.parent_span_id, second.parent_span_id} == {send.span_id.to_bytes(8, "big")}
    assert [attributes(span)["genqueue.attempt"] for span in (first, second)] == [1, 2]
    assert [attributes(span)["genqueue.outcome"] for span in (first, second)] == ["retried", "finished"]
    assert (first.status.code, attributes(first)["error.type"]) == (Status.STATUS_CODE_ERROR, "500")


@pytest.mark.parametrize(
    ("script", "options", "error"),
    [
        ({"faults": [{"kind": "error", "after_tokens": 2}]}, {}, ("failed", "generation", "GenerationFailedError")),
        ({}, {"generation_kwargs": {"top_p": 1.0}}, ("rejected", "validation", "GenerationRejectedError")),
        ({"tokens": 500, "itl_s": 0.02}, {"deadline_s": 2.0}, ("expired", "expired", "GenerationExpiredError")),
    ],
    ids=["failed", "rejected", "expired"],
)
def test_how_it_ended_is_the_spans_status(client, ask, collector, own, eventually, script, options, error):
    generation = client.submit(ask(**script), generator="traced", **options)
    with pytest.raises(GenerationError):
        generation.result(timeout_s=15)
    eventually(lambda: len(collector.spans(generation)) == 2)
    process, call = collector.spans(generation)
    outcome, error_type, error_class = error
    assert (attributes(process)["genqueue.outcome"], attributes(process)["error.type"]) == (outcome, error_type)
    assert process.status.code == call.status.code == Status.STATUS_CODE_ERROR
    assert process.status.message == call.status.message == ""
    receive = one_of(own.get_finished_spans(), "receive")
    assert receive.status.status_code is trace.StatusCode.ERROR
    assert receive.attributes["error.type"] == error_class


def test_a_cancel_is_in_the_trace(client, ask, collector, own, eventually):
    generation = client.submit(ask(tokens=5000, itl_s=0.02), generator="traced")
    eventually(lambda: generation.status().completion_tokens > 2)
    generation.cancel()
    eventually(lambda: len(collector.spans(generation)) == 2)
    process, call = collector.spans(generation)
    assert attributes(process)["genqueue.outcome"] == attributes(call)["error.type"] == "cancelled"
    assert process.status.code == call.status.code == Status.STATUS_CODE_ERROR


@pytest.mark.parametrize(
    ("header", "is_followed"),
    [
        (f"00-{'a1' * 16}-{'b2' * 8}-01", True),
        (f"00-{'0' * 32}-{'b2' * 8}-01", False),
        ("00-" + "a" * 100_000, False),
        ({"not": "a string"}, False),
    ],
    ids=["valid", "zero", "long", "no string"],
)
def test_a_plain_celery_producer_may_bring_its_trace(client, ask, collector, eventually, header, is_followed):
    app = Celery("plain", broker=client.settings.redis_url, set_as_current=False)
    with app:
        sent = app.send_task(
            "genqueue.generate", kwargs={"prompt": ask()}, queue="generate.traced", headers={"traceparent": header}
        )
    generation = client.generation(sent.id)
    eventually(lambda: len(collector.spans(generation)) == 2)
    process = of(collector.spans(generation), "process")[0]
    assert (process.trace_id.hex() == "a1" * 16) is is_followed
    assert bool(process.parent_span_id) is is_followed


def test_a_takeover_after_a_kill_shows_both_attempts(fleet_of, ask, standin, own, told, collector, eventually):
    generators = {"default": {"api_type": TGI, "api_params": {"url": standin.url}}}
    with fleet_of(generators, GENQUEUE_LEASE_S="1", **told) as fleet:
        fleet.staff(1)
        own.clear()
        prompt = ask(tokens=100, itl_s=0.05)
        generation = fleet.client.submit(prompt)
        eventually(lambda: generation.status().completion_tokens > 4)
        fleet.holder(generation).process.kill()
        fleet.workers[0].process.wait()
        fleet.staff(1)
        assert generation.result(timeout_s=30).replies == [prompt.answer]
        eventually(lambda: len(collector.spans(generation)) == 2)
        process, _ = collector.spans(generation)
    # A killed worker took its own span with it; what it began is told by the next one.
    send = one_of(own.get_finished_spans(), "send").context
    assert process.trace_id == send.trace_id.to_bytes(16, "big")
    assert (attributes(process)["genqueue.attempt"], attributes(process)["genqueue.outcome"]) == (2, "finished")
    assert process.parent_span_id == send.span_id.to_bytes(8, "big")
    first, second = standin.attempts(prompt)
    assert first["headers"]["traceparent"].split("-")[1] == second["headers"]["traceparent"].split("-")[1]
    assert first["headers"]["traceparent"] != second["headers"]["traceparent"]


@pytest.mark.parametrize(("number", "outcome"), [(signal.SIGTERM, "handed_over"), (signal.SIGSTOP, "superseded")])
def test_a_takeover_from_a_worker_that_lives_shows_how_both_attempts_ended(
    fleet_of, ask, standin, told, own, collector, eventually, number, outcome
):
    generators = {"default": {"api_type": TGI, "api_params": {"url": standin.url}}}
    with fleet_of(generators, GENQUEUE_LEASE_S="1", GENQUEUE_DRAIN_S="0", **told) as fleet:
        fleet.staff(2)
        prompt = ask(tokens=100, itl_s=0.05)
        generation = fleet.client.submit(prompt)
        eventually(lambda: generation.status().completion_tokens > 4)
        holder = fleet.holder(generation).process
        holder.send_signal(number)
        assert generation.result(timeout_s=30).replies == [prompt.answer]
        holder.send_signal(signal.SIGCONT)
        eventually(lambda: len(collector.spans(generation)) == 4)
        first, second = of(collector.spans(generation), "process")
    assert first.parent_span_id == second.parent_span_id != b""
    assert [attributes(span)["genqueue.attempt"] for span in (first, second)] == [1, 2]
    assert [attributes(span)["genqueue.outcome"] for span in (first, second)] == [outcome, "finished"]
    assert attributes(first)["messaging.client.id"] != attributes(second)["messaging.client.id"]


def test_prompts_and_replies_are_told_if_asked_for(
    start_worker, ask, standin, queue_redis, told, collector, eventually
):
    generators = {"open": {"api_type": TGI, "api_params": {"url": standin.url}}}
    asked = {**told, "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    worker = start_worker(generators, queue_redis.url, environ=asked)
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        prompt, chat = ask(tokens=4), ask(tokens=4)
        generation = client.submit(prompt, generator="open")
        talked = client.submit_chat([{"role": "user", "content": chat}], generator="open")
        answer = talked.result(timeout_s=15).replies[0]
        generation.result(timeout_s=15)
        for asked_for, text, reply in ((generation, prompt, prompt.answer), (talked, chat, answer)):
            eventually(lambda found=asked_for: len(collector.spans(found)) == 2)
            said = attributes(collector.spans(asked_for)[1])
            assert json.loads(said["gen_ai.input.messages"]) == [
                {"role": "user", "parts": [{"type": "text", "content": text}]}
            ]
            assert json.loads(said["gen_ai.output.messages"]) == [
                {"role": "assistant", "parts": [{"type": "text", "content": reply}]}
            ]


def test_a_collector_that_is_away_disturbs_nobody(start_worker, ask, standin, queue_redis, closed_port, eventually):
    generators = {"lonely": {"api_type": TGI, "api_params": {"url": standin.url}}}
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{closed_port}", "OTEL_BSP_SCHEDULE_DELAY": "20"}
    worker = start_worker(generators, queue_redis.url, environ=environ)
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        for _ in range(20):
            prompt = ask(tokens=2)
            assert client.submit(prompt, generator="lonely").result(timeout_s=15).replies == [prompt.answer]
        eventually(lambda: "Transient error" in worker.log)
    assert worker.end(within_s=20) == 0
    assert worker.log.count("Transient error") == 1
    assert "Traceback" not in worker.log


def test_what_a_worker_still_holds_is_sent_when_it_ends(start_worker, ask, standin, queue_redis, collector):
    generators = {"last": {"api_type": TGI, "api_params": {"url": standin.url}}}
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    worker = start_worker(generators, queue_redis.url, environ=environ)
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        generation = client.submit(ask(tokens=2), generator="last")
        generation.result(timeout_s=15)
    assert collector.spans(generation) == []
    assert worker.end() == 0
    assert len(collector.spans(generation)) == 2


def test_an_exporter_that_is_not_installed_keeps_no_worker_from_serving(launch_worker, ask, standin, queue_redis):
    """As where a whole cluster is told to speak gRPC to its collector."""
    generators = {"untold": {"api_type": TGI, "api_params": {"url": standin.url}}}
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    worker = launch_worker(generators, queue_redis.url, environ=environ)
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        prompt = ask(tokens=2)
        assert client.submit(prompt, generator="untold").result(timeout_s=15).replies == [prompt.answer]
    assert worker.end() == 0
    (warning,) = [line["message"] for line in worker.lines if "no traces" in line["message"]]
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in warning
    assert "pip install opentelemetry-exporter-otlp-proto-grpc" in warning


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_without_the_extra_everything_works_and_a_configured_exporter_is_named(
    launch_worker, ask, standin, queue_redis, tmp_path, collector
):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    generators = {"bare": {"api_type": TGI, "api_params": {"url": standin.url}}}
    environ = {"PYTHONPATH": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    worker = launch_worker(generators, queue_redis.url, environ=environ)
    prompt = ask(tokens=3)
    code = (
        "from genqueue import GenerationClient\n"
        f"with GenerationClient() as client: print(client.submit({str(prompt)!r}, generator='bare').result(20).replies)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ, "GENQUEUE_REDIS_URL": worker.producer_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.stdout == f"{[prompt.answer]!r}\n", said.stderr
    assert standin.only(prompt)["headers"].get("traceparent") is None
    assert worker.end() == 0
    assert "pip install 'genqueue[otel]'" in worker.log
