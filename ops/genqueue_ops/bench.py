"""``genqueue bench``: what the queue costs, against calling the model server directly.

Both sides run in one go, in turns, on the same machine against the same stand-in, so that a
busy machine slows both.  The direct side is huggingface_hub's async client at its fastest:
one client for all streams, its limit on connections lifted.  The queued side is submit and
stream of the async client, with a real worker and a real Redis beside it; unlike on a GPU
host, all of them share the cores with the model server.
"""

import asyncio
import itertools
import json
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import httpx2
import redis
import typer
from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from rich.table import Table

from genqueue import AsyncGenerationClient, Chunk, Settings, load_settings
from genqueue.messages import Finished
from genqueue.output import table as print_table
from genqueue_ops.local_redis import local_redis
from genqueue_ops.processes import Child, started

_CROWD_TOKENS = 100
_ITL_S = 0.02


class Part(StrEnum):
    """What can be measured by itself."""

    THROUGHPUT = "throughput"
    CHAT = "chat"
    TTFT = "ttft"
    MEMORY = "memory"
    CROWD = "crowd"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a value in the unit that its name says, and the limit that it keeps, if any."""

    name: str
    value: float
    limit: float | None
    note: str

    @property
    def is_kept(self) -> bool:
        """Whether the limit holds."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Stack:
    """A Redis, a stand-in and a worker."""

    settings: Settings
    url: str
    worker: Child

    def worker_rss_bytes(self) -> int:
        """The worker's resident memory (proc(5), statm)."""
        pages = Path(f"/proc/{self.worker.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def worker_cpu_s(self) -> float:
        """CPU seconds of the worker so far, user and system (proc(5), stat)."""
        fields = Path(f"/proc/{self.worker.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def redis_reads(self) -> int:
        """Requests that Redis has read from its clients: each is a round trip, a script is one."""
        with redis.Redis.from_url(self.settings.redis_url) as client:
            stats: dict[str, Any] = client.info("stats")
        return int(stats["total_reads_processed"])


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a caller got: seconds to the first text, the text, how many tokens."""

    ttft_s: float
    text: str
    tokens: int


@contextmanager
def running_stack(concurrency: int) -> Iterator[Stack]:
    """Everything that is measured, each part a process, for the length of a ``with`` block.

    Sets ``GENQUEUE_CONFIG`` of this process and removes the other ``GENQUEUE_*`` variables.
    """
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="genqueue-bench-")))
        server = opened.enter_context(local_redis())
        limits = ["--max-concurrent-requests", "2000", "--max-batch", "2000"]
        standin = started(opened, folder, ["tgi-standin", "--itl-s", str(_ITL_S), *limits], "listening on ")
        url = standin.logged().partition("listening on ")[2].split()[0]
        config = folder / "genqueue.toml"
        config.write_text(
            f'redis_url = "{server.url}"\n[generators.default]\n'
            f'api_type = "text_generation_inference"\napi_params = {{ url = "{url}" }}\n'
        )
        for name in [name for name in os.environ if name.startswith("GENQUEUE_")]:
            del os.environ[name]
        os.environ["GENQUEUE_CONFIG"] = str(config)
        worker = started(opened, folder, ["worker", "--concurrency", str(concurrency)], " ready.")
        yield Stack(load_settings(), url, worker)


def _direct_client() -> AsyncInferenceClient:
    unlimited = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    set_async_client_factory(lambda: httpx2.AsyncClient(limits=unlimited, timeout=None))
    return AsyncInferenceClient()


async def _direct(client: AsyncInferenceClient, url: str, prompt: str, max_new_tokens: int) -> Streamed:
    began_s, first_s, parts, tokens = time.perf_counter(), 0.0, [], 0
    async for output in await client.text_generation(
        prompt, model=url, stream=True, details=True, max_new_tokens=max_new_tokens
    ):
        tokens += 1
        if not output.token.special:
            parts.append(output.token.text)
            first_s = first_s or time.perf_counter()
    return Streamed(first_s - began_s, "".join(parts), tokens)


async def _queued(client: AsyncGenerationClient, prompt: str, max_new_tokens: int) -> Streamed:
    began_s, first_s, parts, tokens = time.perf_counter(), 0.0, [], 0
    generation = await client.submit(prompt, generation_kwargs={"max_new_tokens": max_new_tokens})
    async for chunk in generation.stream():
        tokens += len(chunk.tokens)
        parts.append(chunk.text)
        if chunk.text:
            first_s = first_s or time.perf_counter()
    return Streamed(first_s - began_s, "".join(parts), tokens)


async def _direct_chat(client: AsyncInferenceClient, url: str, prompt: str, max_tokens: int) -> Streamed:
    began_s, first_s, parts, tokens = time.perf_counter(), 0.0, [], 0
    client.model = url  # the call's own model would be what the body names
    messages = [{"role": "user", "content": prompt}]
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": max_tokens}
    async for output in await client.chat_completion(messages, model="tgi", **options):
        if output.usage:
            tokens = output.usage.completion_tokens
        for choice in output.choices:
            parts.append(choice.delta.content or "")
            first_s = first_s or time.perf_counter()
    return Streamed(first_s - began_s, "".join(parts), tokens)


async def _queued_chat(client: AsyncGenerationClient, prompt: str, max_tokens: int) -> Streamed:
    began_s, first_s, parts, tokens = time.perf_counter(), 0.0, [], 0
    generation = await client.submit_chat(
        [{"role": "user", "content": prompt}], generation_kwargs={"max_tokens": max_tokens}
    )
    async for event in generation.events():
        match event:
            case Chunk():
                parts.append(event.text)
                first_s = first_s or time.perf_counter()
            case Finished():
                tokens = event.completion_tokens
    return Streamed(first_s - began_s, "".join(parts), tokens)


async def _at_once(streams: list[Coroutine[Any, Any, Streamed]]) -> tuple[float, list[Streamed]]:
    began_s = time.perf_counter()
    got = await asyncio.gather(*streams)
    return time.perf_counter() - began_s, got


async def throughput(
    stack: Stack,
    rounds: int,
    tokens: int,
    ask_directly: Callable[[AsyncInferenceClient, str, str, int], Coroutine[Any, Any, Streamed]] = _direct,
    ask_queue: Callable[[AsyncGenerationClient, str, int], Coroutine[Any, Any, Streamed]] = _queued,
    what: str = "streams",
) -> list[Figure]:
    """200 streams of so many tokens, 20 ms apart; direct and queued in turns, and the first turn not counted."""
    streams = 200
    prompts = [f"Prompt {number}:" for number in range(streams)]
    direct_s, queued_s, cpu_s, trips, lost = [], [], [], [], 0
    async with _direct_client() as direct, AsyncGenerationClient(stack.settings) as queued:
        for number in range(rounds + 1):
            wall_s, expected = await _at_once([ask_directly(direct, stack.url, prompt, tokens) for prompt in prompts])
            reads, worker_s = stack.redis_reads(), stack.worker_cpu_s()
            queued_wall_s, got = await _at_once([ask_queue(queued, prompt, tokens) for prompt in prompts])
            if number == 0:
                continue
            direct_s.append(wall_s)
            queued_s.append(queued_wall_s)
            cpu_s.append(stack.worker_cpu_s() - worker_s)
            trips.append((stack.redis_reads() - reads) / (streams * tokens))
            lost += sum(
                one.text != other.text or other.tokens != tokens for one, other in zip(expected, got, strict=True)
            )
    ratios = [ours / theirs for ours, theirs in zip(queued_s, direct_s, strict=True)]
    told = f"median of {rounds}; direct {_median(direct_s):.2f} s, queued {_median(queued_s):.2f} s"
    return [
        Figure(f"wall of {streams} {what} x {tokens} tokens, queued / direct", _median(ratios), 1.4, told),
        Figure(f"{what} whose text or tokens differ from the direct call's", lost, 0, f"of {streams * rounds}"),
        Figure(f"Redis round trips per token of {what}", _median(trips), 0.25, "all clients counted, readers too"),
        Figure(f"worker CPU per token of {what}, us", _median(cpu_s) / (streams * tokens) * 1e6, None, "all threads"),
    ]


async def ttft(stack: Stack, pairs: int) -> list[Figure]:
    """One call at a time on an idle worker; direct and queued in turns."""
    direct_ms, queued_ms = [], []
    async with _direct_client() as direct, AsyncGenerationClient(stack.settings) as queued:
        for number in range(pairs + 10):
            one = await _direct(direct, stack.url, f"Prompt {number}:", 3)
            other = await _queued(queued, f"Prompt {number}:", 3)
            await asyncio.sleep(0.02)  # let the worker fall idle
            if number >= 10:
                direct_ms.append(one.ttft_s * 1e3)
                queued_ms.append(other.ttft_s * 1e3)
    figures = []
    for percent, limit_ms in ((50, 6.0), (95, 12.0)):
        ours, theirs = _percentile(queued_ms, percent), _percentile(direct_ms, percent)
        told = f"{pairs} pairs; direct {theirs:.1f} ms, queued {ours:.1f} ms"
        figures.append(Figure(f"time to first token added, p{percent}, ms", ours - theirs, limit_ms, told))
    return figures


async def memory(stack: Stack, generations: int) -> list[Figure]:
    """The worker's growth over many short streams of 2 KB prompts, after a tenth as many to warm up."""
    warm_up = max(1000, generations // 10)
    prompt = "All work and no play makes Jack a dull boy. " * 47
    numbers = itertools.count()

    async def keep_busy(client: AsyncGenerationClient, until: int) -> None:
        while (number := next(numbers)) < until:
            await _queued(client, f"{prompt[:2040]} {number}:", 3)

    async with AsyncGenerationClient(stack.settings) as client:
        await asyncio.gather(*(keep_busy(client, warm_up) for _ in range(64)))
        before_bytes, began_s = stack.worker_rss_bytes(), time.perf_counter()
        numbers = itertools.count()
        await asyncio.gather(*(keep_busy(client, generations) for _ in range(64)))
        grown_mb = (stack.worker_rss_bytes() - before_bytes) / 1e6
        rate = generations / (time.perf_counter() - began_s)
    told = f"{generations} generations of 3 tokens, {rate:.0f}/s; {before_bytes / 1e6:.0f} MB before"
    return [Figure("worker memory grown per 10,000 generations, MB", grown_mb / generations * 1e4, 10.0, told)]


async def crowd(stack: Stack) -> list[Figure]:
    """500 streams at once in one worker process."""
    streams = 500
    async with _direct_client() as direct, AsyncGenerationClient(stack.settings) as queued:
        prompts = [f"Prompt {number}:" for number in range(streams)]
        wall_s, expected = await _at_once([_direct(direct, stack.url, prompt, _CROWD_TOKENS) for prompt in prompts])
        queued_wall_s, got = await _at_once([_queued(queued, prompt, _CROWD_TOKENS) for prompt in prompts])
    lost = sum(one.text != other.text for one, other in zip(expected, got, strict=True))
    told = f"one worker at -c 512; direct {wall_s:.2f} s, queued {queued_wall_s:.2f} s"
    return [Figure(f"of {streams} streams at once, those whose text differs", lost, 0, told)]


def show(title: str, figures: list[Figure]) -> None:
    """Print the figures as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "value", "limit", "", "how"):
        table.add_column(heading, justify="right" if heading in {"value", "limit"} else "left")
    for figure in figures:
        limit = "" if figure.limit is None else f"{figure.limit:g}"
        verdict = "" if figure.limit is None else "kept" if figure.is_kept else "MISSED"
        value = f"{figure.value:.3g}" if abs(figure.value) < 1000 else f"{figure.value:.0f}"
        table.add_row(figure.name, value, limit, verdict, figure.note)
    print_table(table)


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def bench(
    parts: Annotated[list[Part] | None, typer.Argument(help="What to measure; everything if not said.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of the throughput measurement.")] = 5,
    tokens: Annotated[int, typer.Option(min=10, help="Of each text of the throughput measurement.")] = 100,
    pairs: Annotated[int, typer.Option(min=20, help="Pairs of calls for the time to first token.")] = 200,
    generations: Annotated[int, typer.Option(min=1000, help="Generations of the memory measurement.")] = 10_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there, too.")] = None,
) -> None:
    """Measure what the queue costs, side by side with calling the model server directly.

    Exit code 1 when a figure misses its limit.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = set(parts or Part)
    small: dict[Part, Callable[[Stack], Coroutine[Any, Any, list[Figure]]]] = {
        Part.THROUGHPUT: lambda stack: throughput(stack, rounds, tokens),
        Part.CHAT: lambda stack: throughput(stack, rounds, tokens, _direct_chat, _queued_chat, "chats"),
        Part.TTFT: lambda stack: ttft(stack, pairs),
        Part.MEMORY: lambda stack: memory(stack, generations),
    }
    figures: list[Figure] = []
    for concurrency, measures in ((256, small), (512, {Part.CROWD: crowd})):
        if wanted & measures.keys():
            with running_stack(concurrency) as stack:
                for part, measure in measures.items():
                    if part in wanted:
                        figures += asyncio.run(measure(stack))
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("celery", "redis", "huggingface_hub", "aiohttp")
    )
    show(f"genqueue bench ({machine})", figures)
    if json_file is not None:
        document = {"machine": machine, "figures": [asdict(figure) for figure in figures]}
        json_file.write_text(json.dumps(document, indent=2) + "\n")
    if not all(figure.is_kept for figure in figures):
        raise typer.Exit(1)
