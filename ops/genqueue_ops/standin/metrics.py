"""TGI's metrics, as far as a load balancer or a dashboard reads them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

_DURATION_BUCKETS_S = tuple(0.0001 * 1.5**k for k in range(1, 36))
_COUNT_BUCKETS = tuple(float(2**k) for k in range(0, 17))


class Histogram:
    """A Prometheus histogram.

    Args:
        bounds: upper bounds, ascending.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """Prometheus text."""
        lines, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{"+Inf" if bound is None else repr(bound)}"}} {total}')
        return [*lines, f"{name}_sum {self._sum!r}", f"{name}_count {total}"]


class Metrics:
    """Counters and histograms; gauges are read when asked for."""

    def __init__(self) -> None:
        self.requests = 0
        self.successes = 0
        self.failures: Counter[str] = Counter()
        """By TGI's ``err`` label: overloaded, validation, generation, incomplete, dropped, template."""
        self.durations_s = {
            name: Histogram(_DURATION_BUCKETS_S)
            for name in (
                "tgi_request_duration",
                "tgi_request_validation_duration",
                "tgi_request_queue_duration",
                "tgi_request_inference_duration",
                "tgi_request_mean_time_per_token_duration",
            )
        }
        self.counts = {
            name: Histogram(_COUNT_BUCKETS)
            for name in ("tgi_request_input_length", "tgi_request_max_new_tokens", "tgi_request_generated_tokens")
        }

    def render(self, gauges: Mapping[str, int]) -> str:
        """Prometheus text, with the gauges' present values."""
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        for name, value in (("tgi_request_count", self.requests), ("tgi_request_success", self.successes)):
            lines += [f"# TYPE {name} counter", f"{name} {value}"]
        lines.append("# TYPE tgi_request_failure counter")
        lines += [f'tgi_request_failure{{err="{err}"}} {value}' for err, value in sorted(self.failures.items())]
        for name, histogram in (*self.durations_s.items(), *self.counts.items()):
            lines += histogram.lines(name)
        return "\n".join(lines) + "\n"
