"""What is counted when, and under which names; read back as Prometheus would."""

import re

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from genqueue.errors import RedisUnavailableError, StoreError
from genqueue.registry import fleet, sweeping
from genqueue.registry.attempts import Claim
from genqueue.registry.fleet import Health
from genqueue.registry.sweeping import Queue
from genqueue.settings import GeneratorSettings
from genqueue_worker.observe.metrics import (
    CALL_S,
    CHAT,
    DEFERRED,
    HANDED_OVER,
    OUTCOMES,
    RETRIED,
    SUPERSEDED,
    TEXT_COMPLETION,
    AttemptMeter,
    Metrics,
    Now,
)
from genqueue_worker.upstream.endpoint import Endpoint
from genqueue_worker.upstream.faults import UpstreamFacts, error_class, fault_of

GENERATORS = {
    "default": GeneratorSettings.model_validate(
        {"api_type": "text_generation_inference", "api_params": {"url": "http://tgi", "model": "our/model"}}
    ),
    "hub": GeneratorSettings.model_validate(
        {"api_type": "serverless_inference_api", "api_params": {"model": "m", "provider": "cerebras"}}
    ),
}


class Scraped:
    """One answer of ``/metrics``."""

    def __init__(self, metrics):
        self.families = {
            family.name: family for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        }
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name, **labels):
        """The one sample of this name with these labels among its own; None if there is none."""
        found = [
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) < 2, f"{len(found)} of {name} {labels}"
        return found[0] if found else None


@pytest.fixture
def metrics():
    return Metrics(GENERATORS)


def claimed(attempt=1, *, waited_s=3.0, text="", tokens=0, solid_tokens=None):
    solid_tokens = tokens if solid_tokens is None else solid_tokens
    return Claim(attempt, b"{}", 100.0, 100.0 + waited_s, None, text, solid_tokens, 0, [], tokens_so_far=tokens)


def attempt(metrics, claim, *, keeps=False):
    return AttemptMeter(metrics.of("default"), claim, keeps=keeps)


# --- names -----------------------------------------------------------------------------------------


def test_names_are_those_of_the_conventions(metrics):
    names = {
        "gen_ai_client_token_usage": gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE,
        "gen_ai_client_operation_duration_seconds": gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION,
        "gen_ai_client_operation_time_to_first_chunk_seconds": (
            gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK
        ),
        "gen_ai_client_operation_time_per_output_chunk_seconds": (
            gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_PER_OUTPUT_CHUNK
        ),
    }
    shown = {name for name in Scraped(metrics).families if name.startswith("gen_ai")}
    assert shown == names.keys()
    for ours, theirs in names.items():
        assert ours.removesuffix("_seconds") == theirs.replace(".", "_")


def test_labels_of_calls_are_those_of_the_conventions(metrics):
    metrics.of("hub").call(CHAT).used(3, 4)
    ours = {
        label: value
        for sample in Scraped(metrics).samples
        if sample.name == "gen_ai_client_token_usage_sum"
        for label, value in sample.labels.items()
    }
    theirs = [getattr(gen_ai_attributes, name) for name in dir(gen_ai_attributes) if name.startswith("GEN_AI")]
    known = {name.replace(".", "_") for name in theirs if isinstance(name, str)}
    assert {label for label in ours if label not in known} == {"generator"}
    assert ours["gen_ai_operation_name"] == gen_ai_attributes.GenAiOperationNameValues.CHAT.value
    assert gen_ai_attributes.GenAiOperationNameValues.TEXT_COMPLETION.value == TEXT_COMPLETION
    assert (ours["gen_ai_provider_name"], ours["gen_ai_request_model"]) == ("cerebras", "m")


def test_names_are_prometheuss(metrics):
    for family in Scraped(Metrics(GENERATORS, everything)).families.values():
        assert re.fullmatch(r"(genqueue|gen_ai|process|python)(_[a-z0-9]+)+", family.name)
        assert family.documentation
        if family.name.startswith("genqueue") and family.type in {"histogram"}:
            assert family.name.endswith("_seconds")
        assert not family.name.endswith("_created")


# --- attempts and their tokens ---------------------------------------------------------------------


def test_everything_that_can_be_counted_is_there_from_the_beginning(metrics):
    """A counter that only appears with its first event hides it from ``rate``."""
    shown = Scraped(metrics)
    for way in (*OUTCOMES, RETRIED, DEFERRED, HANDED_OVER, SUPERSEDED):
        assert shown.value("genqueue_attempts_total", generator="default", ended=way) == 0
    for outcome in OUTCOMES:
        assert shown.value("genqueue_generations_total", generator="hub", outcome=outcome) == 0
    for cause in (*OUTCOMES[1:], "restarted", "repeated", "superseded"):
        assert shown.value("genqueue_wasted_tokens_total", generator="hub", cause=cause) == 0
    assert shown.value("genqueue_text_conflicts_total", generator="hub") == 0
    assert shown.value("genqueue_completion_tokens_total", generator="hub") == 0
    assert shown.value("genqueue_prompt_tokens_total", generator="hub") == 0
    assert shown.value("genqueue_queue_wait_seconds_count", generator="hub") == 0
    assert shown.value("genqueue_in_flight", generator="hub") == 0


def test_only_the_first_attempt_says_how_long_a_generation_waited(metrics):
    attempt(metrics, claimed(1, waited_s=3.0))
    attempt(metrics, claimed(2, waited_s=50.0))
    shown = Scraped(metrics)
    assert shown.value("genqueue_queue_wait_seconds_count", generator="default") == 1
    assert shown.value("genqueue_queue_wait_seconds_sum", generator="default") == 3.0


def test_the_first_text_is_counted_from_submit_and_once(metrics):
    attempt(metrics, claimed(1, waited_s=3.0)).first_text(0.5)
    attempt(metrics, claimed(2, waited_s=60.0, text="so far", tokens=2), keeps=True).first_text(0.5)
    attempt(metrics, claimed(2, waited_s=7.0)).first_text(1.0)  # the first one got none
    shown = Scraped(metrics)
    assert shown.value("genqueue_time_to_first_text_seconds_count", generator="default") == 2
    assert shown.value("genqueue_time_to_first_text_seconds_sum", generator="default") == 3.5 + 8.0


@pytest.mark.parametrize(
    ("way", "cause", "wasted"),
    [
        pytest.param("finished", None, 0, id="finished"),
        pytest.param("cancelled", "cancelled", 10, id="cancelled"),
        pytest.param("expired", "expired", 10, id="expired"),
        pytest.param("failed", "failed", 10, id="failed"),
        pytest.param("rejected", "rejected", 10, id="rejected"),
        pytest.param(RETRIED, None, 0, id="another-attempt-goes-on"),
        pytest.param(DEFERRED, None, 0, id="later"),
        pytest.param(HANDED_OVER, None, 0, id="handed-over"),
        pytest.param(SUPERSEDED, "superseded", 4, id="only-what-was-not-written"),
    ],
)
def test_tokens_without_a_result_are_wasted(metrics, way, cause, wasted):
    run = attempt(metrics, claimed())
    run.produced(7)
    run.produced(3)
    run.ended(way, tokens=10, unwritten_tokens=4)
    shown = Scraped(metrics)
    assert shown.value("genqueue_attempts_total", generator="default", ended=way) == 1
    assert shown.value("genqueue_completion_tokens_total", generator="default") == 10
    for other in (*OUTCOMES[1:], "restarted", "repeated", "superseded"):
        expected = wasted if other == cause else 0
        assert shown.value("genqueue_wasted_tokens_total", generator="default", cause=other) == expected


def test_what_an_attempt_throws_away_is_wasted_and_so_is_what_it_repeats(metrics):
    attempt(metrics, claimed(2, text="so far", tokens=20, solid_tokens=18), keeps=False)
    attempt(metrics, claimed(2, text="so far ", tokens=9, solid_tokens=8), keeps=True)
    shown = Scraped(metrics)
    assert shown.value("genqueue_wasted_tokens_total", generator="default", cause="restarted") == 20
    assert shown.value("genqueue_wasted_tokens_total", generator="default", cause="repeated") == 1


def test_an_end_is_counted_by_who_wrote_it_and_a_cancel_by_who_ran_it(metrics):
    metrics.ended("default", "finished")
    metrics.ended("default", "expired")
    metrics.ended("somebody-elses", "expired")
    attempt(metrics, claimed()).ended("cancelled", tokens=0, unwritten_tokens=0)
    attempt(metrics, claimed()).ended("finished", tokens=5, unwritten_tokens=0)
    ended = {
        sample.labels["outcome"]: sample.value
        for sample in Scraped(metrics).samples
        if sample.name == "genqueue_generations_total" and sample.labels["generator"] == "default"
    }
    assert ended == {"finished": 1, "rejected": 0, "failed": 0, "expired": 1, "cancelled": 1}
    assert Scraped(metrics).value("genqueue_generations_total", generator="somebody-elses", outcome="expired") is None


# --- calls -------------------------------------------------------------------------------------------


def test_gaps_are_a_histogram_like_any_other(metrics):
    gaps = metrics.of("default").call(TEXT_COMPLETION).gaps
    seen_s = [0.001, 0.01, 0.010001, 0.03, 81.92, 100.0]
    for gap_s in seen_s:
        gaps.observe(gap_s)
    reference = Metrics(GENERATORS).first_chunk.labels(*["x"] * 4)
    for gap_s in seen_s:
        reference.observe(gap_s)
    expected = {sample.labels["le"]: sample.value for sample in reference.collect()[0].samples if "le" in sample.labels}
    name = "gen_ai_client_operation_time_per_output_chunk_seconds"
    shown = Scraped(metrics)
    found = {sample.labels["le"]: sample.value for sample in shown.samples if sample.name == f"{name}_bucket"}
    assert found == expected
    assert list(found) == [*map(str, CALL_S), "+Inf"]
    assert shown.value(f"{name}_count") == len(seen_s)
    assert shown.value(f"{name}_sum") == pytest.approx(sum(seen_s))


def test_a_call_counts_under_its_kind_and_its_error(metrics):
    prompts, chats = (metrics.of("default").call(kind) for kind in (TEXT_COMPLETION, CHAT))
    assert metrics.of("default").call(CHAT) is chats
    prompts.ended(0.2)
    prompts.used(7, 9)
    prompts.used(None, None)
    prompts.ended(5.0, "timeout")
    chats.ended(1.0)
    shown, name = Scraped(metrics), "gen_ai_client_operation_duration_seconds"
    assert shown.value(f"{name}_sum", gen_ai_operation_name="text_completion", error_type="") == 0.2
    assert shown.value(f"{name}_sum", error_type="timeout") == 5.0
    assert shown.value(f"{name}_sum", gen_ai_operation_name="chat") == 1.0
    for kind, tokens in (("input", 7), ("output", 9)):
        counted = {"gen_ai_operation_name": "text_completion", "gen_ai_token_type": kind}
        assert shown.value("gen_ai_client_token_usage_sum", **counted) == tokens
        assert shown.value("gen_ai_client_token_usage_count", **counted) == 1
    assert shown.value("genqueue_prompt_tokens_total", generator="default") == 7


def test_an_error_of_a_server_is_counted_by_words_of_ours(metrics):
    endpoint = Endpoint("http://user:secret@tgi", "http://tgi")
    meter = metrics.of("default").call(TEXT_COMPLETION)
    facts = UpstreamFacts("What's NLP? is too long", status=422, error_type="validation")
    meter.failed(endpoint.address, fault_of(facts), error_class(facts))
    facts = UpstreamFacts("…", status=429, error_type="the server's own word")
    meter.failed(endpoint.address, fault_of(facts), error_class(facts))
    counted = {"generator": "default", "endpoint": "http://tgi"}
    shown = Scraped(metrics)
    name = "genqueue_upstream_errors_total"
    assert shown.value(name, **counted, fault="request", error_type="validation") == 1
    assert shown.value(name, **counted, fault="capacity", error_type="429") == 1


def test_round_trips_are_counted_by_what_they_do(metrics):
    sweep = sweeping.sweep(["default"], lease_s=3.0, keep_s=60)
    with metrics.round_trip(sweep):
        pass
    with metrics.round_trip(fleet.retire("me")):
        pass
    with pytest.raises(RedisUnavailableError), metrics.round_trip(sweep):
        raise RedisUnavailableError("redis", 6379, "gone")
    with pytest.raises(StoreError), metrics.round_trip(sweep):
        raise StoreError("OOM")
    shown = Scraped(metrics)
    assert shown.value("genqueue_redis_round_trip_seconds_count", call="sweep") == 3
    assert shown.value("genqueue_redis_round_trip_seconds_count", call="hdel") == 1
    assert shown.value("genqueue_redis_errors_total", error_type="unavailable") == 1
    assert shown.value("genqueue_redis_errors_total", error_type="refused") == 1


# --- what a scrape sees for itself ---------------------------------------------------------------------


def everything():
    """A worker with all that there is to see; two addresses that differ in their user only."""
    up = {"address": "http://tgi", "health": Health.UP, "running": 2, "calls": 5}
    down = {"address": "http://tgi", "health": Health.DOWN, "running": 0, "calls": 1}
    return Now(
        in_flight={"default": 2},
        endpoints={"default": [up, down], "hub": [{**up, "address": "cerebras"}]},
        queues={"default": Queue(4, 1.5, 6), "hub": Queue(0, 0.0, 0)},
        dead_letters=3,
        silent_s={"engine": 0.25},
        is_redis_up=True,
        concurrency=64,
        dropped=1,
    )


def test_a_scrape_sees_what_is(metrics):
    shown = Scraped(Metrics(GENERATORS, everything))
    assert shown.value("genqueue_in_flight", generator="default") == 2
    assert shown.value("genqueue_in_flight", generator="hub") == 0
    assert shown.value("genqueue_queue_depth", generator="default") == 4
    assert shown.value("genqueue_queue_oldest_wait_seconds", generator="default") == 1.5
    assert shown.value("genqueue_queue_messages", generator="default") == 6
    assert shown.value("genqueue_dead_letters") == 3
    assert shown.value("genqueue_heartbeat_age_seconds", part="engine") == 0.25
    assert shown.value("genqueue_redis_up") == 1
    assert shown.value("genqueue_concurrency") == 64
    assert shown.value("genqueue_dropped_messages_total") == 1
    assert shown.value("genqueue_endpoint_in_flight", generator="default", endpoint="http://tgi") == 2
    assert shown.value("genqueue_endpoint_calls_total", generator="default", endpoint="http://tgi") == 6
    health = {
        sample.labels["health"]: sample.value
        for sample in shown.samples
        if sample.name == "genqueue_endpoint_health" and sample.labels["generator"] == "default"
    }
    assert health == {"up": 1, "rests": 0, "waking": 0, "refuses": 0, "down": 1}


def test_what_nobody_knows_is_not_shown(metrics):
    """The newest that is known would be taken for what is: a scaler would follow a number of yesterday."""
    shown = Scraped(metrics)
    for name in (
        "genqueue_queue_depth",
        "genqueue_queue_oldest_wait_seconds",
        "genqueue_queue_messages",
        "genqueue_dead_letters",
    ):
        assert shown.value(name) is None
    assert shown.value("genqueue_concurrency") is None
    assert shown.value("genqueue_redis_up") == 0
