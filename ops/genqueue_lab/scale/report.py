"""What the measurements say, as tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from genqueue.cli import output
from genqueue_lab.scale.drive import Driven
from genqueue_ops.capacity import Costs, Step
from genqueue_ops.capacity_command import print_table

_WORDS = {"cpu_us": "Redis CPU, us", "commands": "commands", "trips": "round trips", "in_bytes": "bytes in"}
_WORDS |= {"out_bytes": "bytes out"}


@dataclass(frozen=True, slots=True)
class Ran:
    """Generations through a real worker, with one reader each, of one size and so many at once.

    Attributes:
        each: what one cost Redis, what the worker costs at rest taken off.
        flushes: of each.
        predicted_cpu_us: of each, by the model, for the same steps.
    """

    tokens: int
    at_once: int
    count: int
    each: Step
    flushes: float
    predicted_cpu_us: float


@dataclass(frozen=True, slots=True)
class Worked:
    """A real worker.

    Attributes:
        at_rest: what it costs Redis each second while it has nothing to do.
        at_rest_commands: round trips and what scripts do inside, each second, by name.
        worker_connections: after it was busy; ``producer_connections`` those of one process of readers.
    """

    at_rest: Step
    at_rest_commands: dict[str, float]
    worker_connections: int
    producer_connections: int
    runs: list[Ran]


@dataclass(frozen=True, slots=True)
class Swept:
    """Sweeps beside so many that wait and that run."""

    waiting: int
    running: int
    generators: int
    each: Step
    look: Step


def _show_steps(title: str, steps: dict[str, Step]) -> None:
    rows = [(name, *(getattr(step, field) for field in _WORDS)) for name, step in steps.items()]
    print_table(title, ("", *_WORDS.values()), rows)


def show_costs(costs: Costs) -> None:
    """What each step costs, and what a generation holds."""
    _show_steps(f"One step, at Redis ({costs.machine})", dict(costs.steps))
    print_table("Memory of one generation, bytes", ("", *asdict(costs.memory)), [("", *asdict(costs.memory).values())])


def fixed_and_marginal(runs: Sequence[Ran]) -> dict[int, tuple[Step, Step]]:
    """For each number at once what a generation costs without its tokens, and what each token adds."""
    found = {}
    for at_once in sorted({run.at_once for run in runs}):
        short, long = sorted((run for run in runs if run.at_once == at_once), key=lambda run: run.tokens)
        token = (long.each - short.each) * (1 / (long.tokens - short.tokens))
        found[at_once] = (short.each - token * short.tokens, token)
    return found


def show_worker(worked: Worked) -> None:
    """What a real worker cost."""
    steps = {"a worker at rest, each second": worked.at_rest}
    for run in worked.runs:
        steps[f"a generation of {run.tokens} tokens, {run.at_once} at once"] = run.each
    for at_once, (generation, token) in fixed_and_marginal(worked.runs).items():
        steps[f"fixed, of each generation, {at_once} at once"] = generation
        steps[f"each token, {at_once} at once"] = token
    _show_steps("A real worker, and one reader of each generation", steps)
    print_table(
        "Flushes, and the model beside it",
        ("tokens", "at once", "flushes a token", "CPU, us", "the model says", "measured / model"),
        [
            (
                str(run.tokens),
                run.at_once,
                run.flushes / run.tokens,
                run.each.cpu_us,
                run.predicted_cpu_us,
                run.each.cpu_us / run.predicted_cpu_us,
            )
            for run in worked.runs
        ],
    )
    at_rest = ", ".join(f"{name} {rate:.1f}" for name, rate in sorted(worked.at_rest_commands.items()))
    told = f"connections: {worked.worker_connections} of a worker, {worked.producer_connections} of a producer"
    output.line(told)
    output.line(f"at rest, each second: {at_rest}")


def show_sweeps(found: Sequence[Swept]) -> None:
    """What sweeps cost."""
    print_table(
        "One sweep",
        ("waiting", "running", "generators", "CPU, us", "commands", "CPU when it looks, us", "commands when it looks"),
        [
            (
                f"{each.waiting:,}",
                each.running,
                each.generators,
                each.each.cpu_us,
                each.each.commands,
                each.look.cpu_us,
                each.look.commands,
            )
            for each in found
        ],
    )


def show_check(driven: Sequence[Driven]) -> None:
    """The model beside a real Redis."""
    print_table(
        "Synthetic workers at one real Redis",
        (
            "workers",
            "tokens/s",
            "flushes/s",
            "expected",
            "flush p50, ms",
            "p95",
            "Redis",
            "the model says",
            "measured / model",
            "drivers",
            "flushes/s of a core",
            "gave out",
        ),
        [
            (
                str(each.workers),
                each.tokens_per_s,
                each.flushes_per_s,
                each.expected_per_s,
                *each.flush_ms,
                f"{each.redis_cpu:.0%}",
                f"{each.predicted_cpu:.0%}",
                each.ratio,
                f"{each.drivers_cpu:.0%}",
                each.flushes_of_a_core,
                each.gave_out or "",
            )
            for each in driven
        ],
    )
