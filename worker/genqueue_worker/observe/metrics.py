"""What a worker measures: names, labels, buckets, and what is counted when.

It holds no connection, and one clock, for round trips to Redis; ``monitor.py`` shows it to Prometheus.
What runs once per token or per read must cost nothing: labels are looked up once for each generator and kind of
call, tokens are counted a flush at a time, and what a scrape can see for itself (what runs,
how servers are, how deep queues are) is looked at when it comes.  Labels hold names of the
settings and words of ours: nothing that a caller or a server wrote.  docs/metrics.md lists all.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from time import perf_counter
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from genqueue.errors import RedisUnavailableError, StoreError
from genqueue.registry.attempts import Claim
from genqueue.registry.fleet import Health
from genqueue.registry.script import Call
from genqueue.registry.sweeping import Queue
from genqueue.settings import GeneratorSettings

CALL_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""The buckets that OpenTelemetry's GenAI conventions ask for where a client measures time."""
TOKENS = tuple(4**power for power in range(14))
"""And where it counts tokens."""
WAIT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROUND_TRIP_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

TEXT_COMPLETION, CHAT = "text_completion", "chat"

OUTCOMES = ("finished", "rejected", "failed", "expired", "cancelled")
"""How a generation ends; an attempt that is not its last one ends otherwise:"""
RETRIED, DEFERRED, HANDED_OVER, SUPERSEDED = "retried", "deferred", "handed_over", "superseded"
RESTARTED, REPEATED = "restarted", "repeated"
"""Why tokens had to be generated again, by an attempt that began anew or went on."""

_GEN_AI = ("generator", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")


def provider_of(settings: GeneratorSettings) -> str:
    """``gen_ai.provider.name`` of a generator's calls, in metrics and in spans.

    Of a serverless one it is the provider that it names.  For Hugging Face, and servers of one's own, the
    conventions list no value (opentelemetry-semantic-conventions 0.66b2); this one is spelt like theirs.
    """
    return settings.api_params.provider or "hugging_face"


class Gaps:
    """A histogram's child for what comes with every read: a fifth of the library's time, and no lock.

    One thread writes; a scrape that reads meanwhile may miss the newest.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(CALL_S) + 1)
        self.sum_s = 0.0

    def observe(self, gap_s: float) -> None:
        """Count one gap between two reads that brought tokens."""
        self.counts[bisect_left(CALL_S, gap_s)] += 1
        self.sum_s += gap_s

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many so far), as Prometheus has them."""
        bounds = [*map(str, CALL_S), "+Inf"]
        counts = list(self.counts)
        return [(bound, float(sum(counts[: index + 1]))) for index, bound in enumerate(bounds)]


class CallMeter:
    """What calls of one kind to one generator's servers add."""

    def __init__(self, metrics: "Metrics", values: tuple[str, ...]) -> None:
        self.gaps = Gaps()
        self.first_chunk = metrics.first_chunk.labels(*values)
        self._durations = metrics.call_duration
        self._errors = metrics.upstream_errors
        self._values = values
        self._prompt_tokens = metrics.prompt_tokens.labels(values[0])
        self._input = metrics.token_usage.labels(*values, "input")
        self._output = metrics.token_usage.labels(*values, "output")

    def ended(self, duration_s: float, error_type: str = "") -> None:
        """A call is over; ``error_type`` says why, if it did not succeed."""
        self._durations.labels(*self._values, error_type).observe(duration_s)

    def failed(self, address: str, fault: str, error_type: str) -> None:
        """An endpoint failed a call: whose fault it is, and the error's class."""
        self._errors.labels(self._values[0], address, fault, error_type).inc()

    def used(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """What a call that succeeded took; None if the server did not say."""
        if prompt_tokens is not None:
            self._input.observe(prompt_tokens)
            self._prompt_tokens.inc(prompt_tokens)
        if completion_tokens is not None:
            self._output.observe(completion_tokens)


class GeneratorMeter:
    """What one generator's generations add."""

    def __init__(self, metrics: "Metrics", name: str, settings: GeneratorSettings) -> None:
        self._metrics = metrics
        self._values = (name, provider_of(settings), settings.api_params.model or "")
        self._calls: dict[str, CallMeter] = {}
        self.queue_wait = metrics.queue_wait.labels(name)
        self.first_text = metrics.first_text.labels(name)
        metrics.prompt_tokens.labels(name)
        self.completion_tokens = metrics.completion_tokens.labels(name)
        ways = (*OUTCOMES, RETRIED, DEFERRED, HANDED_OVER, SUPERSEDED)
        self.attempts = {way: metrics.attempts.labels(name, way) for way in ways}
        self.outcomes = {outcome: metrics.generations.labels(name, outcome) for outcome in OUTCOMES}
        causes = (*OUTCOMES[1:], RESTARTED, REPEATED, SUPERSEDED)
        self.wasted = {cause: metrics.wasted_tokens.labels(name, cause) for cause in causes}
        self.text_conflicts = metrics.text_conflicts.labels(name)

    def call(self, operation: str) -> CallMeter:
        """Where calls of one kind count: ``text_completion`` or ``chat``."""
        meter = self._calls.get(operation)
        if meter is None:
            name, provider, model = self._values
            meter = self._calls[operation] = CallMeter(self._metrics, (name, operation, provider, model))
        return meter

    def gaps(self) -> Iterator[tuple[tuple[str, ...], Gaps]]:
        """The label values and gaps of each kind of call; any thread may ask."""
        name, provider, model = self._values
        for operation, meter in list(self._calls.items()):
            yield (name, operation, provider, model), meter.gaps

    def ended(self, outcome: str) -> None:
        """A generation ended for good, and this worker wrote it."""
        self.outcomes[outcome].inc()


class AttemptMeter:
    """What one attempt adds.

    Args:
        meter: its generator's.
        claim: its claim.
        keeps: whether the text of earlier attempts stays.
    """

    def __init__(self, meter: GeneratorMeter, claim: Claim, *, keeps: bool) -> None:
        self._meter = meter
        self._wait_s = max(0.0, claim.started_at - claim.submitted_at)
        self._has_text = bool(claim.text_so_far or claim.reasoning_so_far)
        if claim.attempt == 1:
            meter.queue_wait.observe(self._wait_s)
        if keeps:
            meter.wasted[REPEATED].inc(max(0, claim.tokens_so_far - claim.solid_tokens))
        else:
            meter.wasted[RESTARTED].inc(claim.tokens_so_far)

    def first_text(self, after_s: float) -> None:
        """The attempt's first text came, ``after_s`` it had begun."""
        if not self._has_text:
            self._meter.first_text.observe(self._wait_s + after_s)

    def produced(self, tokens: int) -> None:
        """So many tokens more."""
        self._meter.completion_tokens.inc(tokens)

    def contradicted(self) -> None:
        """Its endpoint's own text at the end is not what its tokens spell."""
        self._meter.text_conflicts.inc()

    def ended(self, way: str, *, tokens: int, unwritten_tokens: int) -> None:
        """The attempt is over.

        Args:
            way: one of OUTCOMES if the generation ended with it.
            tokens: of the generation so far, without those of attempts that were thrown away.
            unwritten_tokens: those among them that the registry did not take.
        """
        self._meter.attempts[way].inc()
        if way == SUPERSEDED:
            self._meter.wasted[SUPERSEDED].inc(unwritten_tokens)
        elif way in OUTCOMES[1:]:
            self._meter.wasted[way].inc(tokens)
        if way == "cancelled":  # whoever cancelled it wrote its end, and this worker its attempt's only
            self._meter.ended(way)


@dataclass(frozen=True, slots=True)
class Now:
    """What a scrape finds.

    Attributes:
        in_flight: attempts under way, by generator.
        endpoints: for each generator its endpoints: ``address``, ``health``, ``running``, ``calls``.
        queues: what waits; None while nobody knows: an old number would be taken for a new one.
        dead_letters: how many there are; None likewise.
        silent_s: for each part of the worker the seconds since it last turned.
        is_redis_up: whether Redis answers.
        concurrency: how many attempts there may be at once; None before Celery is ready.
        dropped: entries of the queues, and orders of Celery's remote control, that were no message.
    """

    in_flight: Mapping[str, int] = field(default_factory=dict)
    endpoints: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    queues: Mapping[str, Queue] | None = None
    dead_letters: int | None = None
    silent_s: Mapping[str, float] = field(default_factory=dict)
    is_redis_up: bool = False
    concurrency: int | None = None
    dropped: int = 0


class Metrics(Collector):
    """All of a worker's, in a registry of their own.

    Args:
        generators: those that it serves.
        look: what a scrape finds.
    """

    def __init__(self, generators: Mapping[str, GeneratorSettings], look: Callable[[], Now] = Now) -> None:
        untyped: Any = disable_created_metrics
        untyped()  # a second series for each, which nobody asks for
        self.registry = CollectorRegistry()
        self._look = look

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, about, labels, buckets=buckets, registry=self.registry)

        self.queue_wait = histogram(
            "genqueue_queue_wait_seconds", "From submit to the start of the first attempt.", WAIT_S, "generator"
        )
        self.first_text = histogram(
            "genqueue_time_to_first_text_seconds",
            "From submit to the first text at the worker: the wait in the queue is in it.",
            WAIT_S,
            "generator",
        )
        self.attempts = counter("genqueue_attempts", "Attempts that are over, by how they ended.", "generator", "ended")
        self.generations = counter("genqueue_generations", "Generations that ended, by how.", "generator", "outcome")
        self.prompt_tokens = counter(
            "genqueue_prompt_tokens", "Prompt tokens of calls that succeeded, as servers count them.", "generator"
        )
        self.completion_tokens = counter("genqueue_completion_tokens", "Tokens that came from servers.", "generator")
        self.text_conflicts = counter(
            "genqueue_text_conflicts",
            "Results whose endpoint said another text at its end than its tokens spell.",
            "generator",
        )
        self.wasted_tokens = counter(
            "genqueue_wasted_tokens",
            "Tokens that came from servers and are in no result, by why.",
            "generator",
            "cause",
        )
        self.upstream_errors = counter(
            "genqueue_upstream_errors",
            "Calls that a server failed, or that did not reach it.",
            "generator",
            "endpoint",
            "fault",
            "error_type",
        )
        self.first_chunk = histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "From the call of a model server to the first chunk that it streams.",
            CALL_S,
            *_GEN_AI,
        )
        self.call_duration = histogram(
            "gen_ai_client_operation_duration_seconds",
            "How long calls of model servers took.",
            CALL_S,
            *_GEN_AI,
            "error_type",
        )
        self.token_usage = histogram(
            "gen_ai_client_token_usage",
            "Tokens of calls that succeeded, as servers count them.",
            TOKENS,
            *_GEN_AI,
            "gen_ai_token_type",
        )
        self.loop_lag = histogram(
            "genqueue_engine_loop_lag_seconds", "How late the engine's loop comes round, looked at regularly.", _LAG_S
        )
        self.redis_round_trips = histogram(
            "genqueue_redis_round_trip_seconds", "Round trips to Redis, without Celery's own.", _ROUND_TRIP_S, "call"
        )
        self._round_trips: dict[str, Histogram] = {}
        self.redis_errors = counter(
            "genqueue_redis_errors", "Round trips that Redis did not answer, or refused.", "error_type"
        )
        for reason in ("unavailable", "refused"):
            self.redis_errors.labels(reason)
        Info("genqueue_worker", "This worker.", registry=self.registry).info({"version": version("genqueue")})
        self._meters = {name: GeneratorMeter(self, name, settings) for name, settings in generators.items()}
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def of(self, generator: str) -> GeneratorMeter:
        """Where the generations of a generator that this worker serves count."""
        return self._meters[generator]

    def ended(self, generator: str, outcome: str) -> None:
        """A generation ended without an attempt, or with one's last word; another worker's generator is no label."""
        if generator in self._meters:
            self._meters[generator].ended(outcome)

    @contextmanager
    def round_trip(self, call: Call[Any]) -> Iterator[None]:
        """Measure one round trip to Redis, around it."""
        began_s = perf_counter()
        try:
            yield
        except RedisUnavailableError:
            self.redis_errors.labels("unavailable").inc()
            raise
        except StoreError:
            self.redis_errors.labels("refused").inc()
            raise
        finally:
            ended_s = perf_counter()
            seconds = self._round_trips.get(call.name)
            if seconds is None:
                seconds = self._round_trips[call.name] = self.redis_round_trips.labels(call.name)
            seconds.observe(ended_s - began_s)

    def collect(self) -> Iterable[Metric]:
        """What a scrape sees for itself; the registry asks."""
        now = self._look()
        gaps = HistogramMetricFamily(
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "From the end of one chunk that a model server streams to the end of the next.",
            labels=_GEN_AI,
        )
        for meter in self._meters.values():
            for values, histogram in meter.gaps():
                gaps.add_metric(values, histogram.buckets(), histogram.sum_s)
        yield gaps
        in_flight = GaugeMetricFamily("genqueue_in_flight", "Attempts under way.", labels=["generator"])
        for name in self._meters:
            in_flight.add_metric([name], now.in_flight.get(name, 0))
        yield in_flight
        yield from _of_queues(now)
        yield from _of_endpoints(now)
        if now.concurrency is not None:
            yield GaugeMetricFamily(
                "genqueue_concurrency", "Attempts that there may be at once.", value=now.concurrency
            )
        yield GaugeMetricFamily("genqueue_redis_up", "Whether Redis answers.", value=now.is_redis_up)
        silent = GaugeMetricFamily(
            "genqueue_heartbeat_age_seconds", "Since a part of the worker last turned.", labels=["part"]
        )
        for part, silent_s in now.silent_s.items():
            silent.add_metric([part], silent_s)
        yield silent
        yield CounterMetricFamily(
            "genqueue_dropped_messages", "Entries of the queues that were no message.", value=now.dropped
        )


def _of_queues(now: Now) -> Iterator[Metric]:
    depth = GaugeMetricFamily(
        "genqueue_queue_depth",
        "Accepted generations that wait, of all priorities: Redis's number, the same from every worker.",
        labels=["generator"],
    )
    oldest = GaugeMetricFamily(
        "genqueue_queue_oldest_wait_seconds",
        "How long the oldest of them has been waiting; 0 if none is.",
        labels=["generator"],
    )
    messages = GaugeMetricFamily(
        "genqueue_queue_messages",
        "Messages of all priorities that no worker has taken: Redis's number, the same from every worker.",
        labels=["generator"],
    )
    for name, queue in (now.queues or {}).items():
        depth.add_metric([name], queue.depth)
        oldest.add_metric([name], queue.oldest_s)
        messages.add_metric([name], queue.messages)
    yield from (depth, oldest, messages)
    if now.dead_letters is not None:
        yield GaugeMetricFamily(
            "genqueue_dead_letters", "Dead letters of all generators: Redis's number.", value=now.dead_letters
        )


def _of_endpoints(now: Now) -> Iterator[Metric]:
    health = GaugeMetricFamily(
        "genqueue_endpoint_health",
        "1 for what an endpoint is: up, rests (failed, or was full), waking, refuses (whatever it is asked) or down.",
        labels=["generator", "endpoint", "health"],
    )
    running = GaugeMetricFamily("genqueue_endpoint_in_flight", "Calls under way.", labels=["generator", "endpoint"])
    calls = CounterMetricFamily("genqueue_endpoint_calls", "Calls begun.", labels=["generator", "endpoint"])
    # Without user and query two addresses may be the same: their numbers add up.
    sums: Tally[tuple[str, str, str]] = Tally()
    for name, endpoints in now.endpoints.items():
        for endpoint in endpoints:
            for state in Health:
                sums[name, endpoint["address"], state] += endpoint["health"] == state
            sums[name, endpoint["address"], "running"] += endpoint["running"]
            sums[name, endpoint["address"], "calls"] += endpoint["calls"]
    for (name, address, what), number in sums.items():
        if what == "running":
            running.add_metric([name, address], number)
        elif what == "calls":
            calls.add_metric([name, address], number)
        else:
            health.add_metric([name, address, what], number)
    yield from (health, running, calls)
