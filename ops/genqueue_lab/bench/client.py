"""One caller of the benchmark, a process of its own: what a program that reads streams would be.

``python -m genqueue_lab.bench.client KIND ADDRESS SOCKET`` connects to the benchmark's unix socket, takes an
order a line and answers with a line of JSON.  The kinds ask for the same streams by three ways: ``queue``
(genqueue's async client), ``direct`` (huggingface_hub's, its limit on connections lifted) and ``raw``
(aiohttp, and a split at blank lines).  While the clock runs it only notes each piece and when it came;
texts are judged afterwards, on the order ``report``.
"""

import argparse
import asyncio
import gc
import json
import resource
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from genqueue_lab.bench.wire import INSTANT, clocks_us, fault

_KEEP_ALIVE_S = 600.0
_PADDING = "All work and no play makes Jack a dull boy. "


class Kind(StrEnum):
    """The way to the model server."""

    QUEUE = "queue"
    DIRECT = "direct"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Load:
    """Which streams are to be read.

    Attributes:
        shape: ``at-once``; ``paced``, so many new ones each second; ``alone``, one after the other with pauses;
            ``kept``, so many at all times until released; ``turns``, so many callers that share the whole number.
        streams: in all.
        tokens: of each.
        chat: ask as a chat.
        instant: the endpoint answers at once with all tokens.
        prompt_bytes: about; 0 for a short one.
        per_s: of ``paced``.
        callers: of ``turns``.
    """

    shape: str
    streams: int
    tokens: int
    chat: bool = False
    instant: bool = False
    prompt_bytes: int = 0
    per_s: float = 20.0
    callers: int = 64

    def prompt(self, number: int) -> str:
        """The prompt of stream ``number``."""
        padding = (_PADDING * (self.prompt_bytes // len(_PADDING) + 1))[: self.prompt_bytes]
        return f"{INSTANT if self.instant else ''}{padding}Prompt {number}:"


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a load.

    Attributes:
        wall_s: from the first call to the last end.
        streams: how many; ``tokens`` how many they should have brought.
        ttft_ms: from the call to the first text, p50 and p95.
        chunk_ms: of each token, from the endpoint's write to here, p50 and p95.
        faults: of each stream that was not as it must be, what was wrong.
    """

    wall_s: float
    streams: int
    tokens: int
    ttft_ms: tuple[float, float]
    chunk_ms: tuple[float, float]
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Read:
    """One stream as it came.

    Attributes:
        tokens: how many it must have.
        began_s: the monotonic clock at the call.
        pieces: each with text, and the monotonic clock when it came.
        result: compares the queue's result with what was streamed; None where there is none.
    """

    tokens: int
    began_s: float = 0.0
    pieces: list[tuple[float, str]] = field(default_factory=list)
    result: Callable[[str, int], Awaitable[str | None]] | None = None

    def take(self, piece: str) -> None:
        """Note one piece."""
        self.pieces.append((time.monotonic(), piece))

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(piece for _, piece in self.pieces)


class Way(Protocol):
    """Reads one stream."""

    async def read(self, prompt: str, load: Load, into: Read) -> None:
        """Ask, and put every piece with text into ``into``."""

    async def close(self) -> None:
        """Leave nothing open."""


class Queue:
    """By genqueue; its settings are in the environment."""

    def __init__(self) -> None:
        from genqueue import AsyncGenerationClient

        self._client = AsyncGenerationClient()

    async def read(self, prompt: str, load: Load, into: Read) -> None:
        """See :class:`Way`; the result is read when the streams are judged."""
        client = self._client
        if load.chat:
            messages = [{"role": "user", "content": prompt}]
            generation = await client.submit_chat(messages, generation_kwargs={"max_tokens": load.tokens})
        else:
            generation = await client.submit(prompt, generation_kwargs={"max_new_tokens": load.tokens})
        async for chunk in generation.stream():
            if chunk.text:
                into.take(chunk.text)

        async def compare(text: str, tokens: int) -> str | None:
            result = await generation.result(timeout_s=30)
            if result.replies != [text]:
                return "the result is not what was streamed"
            counted = result.meta[0]["usage"]["completion_tokens"]
            return None if counted == tokens else f"the result's usage says {counted} tokens of {tokens}"

        into.result = compare

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()


class Direct:
    """By huggingface_hub, at its fastest: one client for all streams."""

    def __init__(self, address: str) -> None:
        import httpx2
        from huggingface_hub import AsyncInferenceClient, set_async_client_factory

        # With httpx2's own 5 s one call in 200 waits until another one has ended, after a pause.
        unlimited = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_S)
        set_async_client_factory(lambda: httpx2.AsyncClient(limits=unlimited, timeout=None))
        self._client = AsyncInferenceClient(address)

    async def read(self, prompt: str, load: Load, into: Read) -> None:
        """See :class:`Way`."""
        if load.chat:
            options: Any = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": load.tokens}
            async for output in await self._client.chat_completion([{"role": "user", "content": prompt}], **options):
                for choice in output.choices:
                    if choice.delta.content:
                        into.take(choice.delta.content)
            return
        async for event in await self._client.text_generation(
            prompt, stream=True, details=True, max_new_tokens=load.tokens
        ):
            into.take(event.token.text)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()  # type: ignore[no-untyped-call]  # it has no annotation


class Raw:
    """By aiohttp, with as little as can read the events."""

    def __init__(self, address: str) -> None:
        import aiohttp

        self._address = address
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S))

    async def read(self, prompt: str, load: Load, into: Read) -> None:
        """See :class:`Way`."""
        if load.chat:
            messages = [{"role": "user", "content": prompt}]
            options = {"include_usage": True}
            body = {"model": "m", "messages": messages, "max_tokens": load.tokens, "stream_options": options}
            async for event in self._events("/v1/chat/completions", body):
                for choice in event["choices"]:
                    into.take(choice["delta"]["content"])
            return
        body = {"inputs": prompt, "parameters": {"max_new_tokens": load.tokens, "details": True}}
        async for event in self._events("/generate_stream", body):
            into.take(event["token"]["text"])

    async def _events(self, route: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        rest = b""
        async with self._session.post(self._address + route, json={**body, "stream": True}) as response:
            async for data in response.content.iter_any():
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    if event != b"data: [DONE]":
                        yield json.loads(event[5:])

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()


class Caller:
    """Runs loads by one way, and reports on the last one."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._reads: list[Read] = []
        self._wall_s = 0.0
        self._released = asyncio.Event()
        self._kept: asyncio.Task[None] | None = None

    async def run(self, load: Load) -> None:
        """Read all streams of ``load``; of ``kept`` ones only get them going."""
        began_s = time.monotonic()
        match load.shape:
            case "at-once":
                await asyncio.gather(*(self._stream(load, number) for number in range(load.streams)))
            case "paced":
                await self._paced(load, began_s)
            case "alone":
                for number in range(load.streams):
                    await self._stream(load, number)
                    await asyncio.sleep(0.03)  # the worker falls idle
            case "turns":
                await self._turns(load)
            case "kept":
                self._released.clear()
                self._kept = asyncio.create_task(self._keep(load))
                await asyncio.sleep(1.5)  # all have begun, and their ends are spread
            case shape:
                raise ValueError(f"no load has the shape {shape!r}")
        self._wall_s = time.monotonic() - began_s

    async def release(self) -> None:
        """Let the kept streams end."""
        self._released.set()
        if self._kept is not None:
            await self._kept
            self._kept = None

    async def report(self) -> Report:
        """Judge the streams that were read since the last report."""
        faults, ttfts_s, chunks_s = [], [], []
        for read in self._reads:
            text = read.text
            wrong = fault(text, read.tokens)
            if wrong is None and read.result is not None:
                wrong = await read.result(text, read.tokens)
            if wrong is not None:
                faults.append(wrong)
                continue
            ttfts_s.append(read.pieces[0][0] - read.began_s)
            chunks_s += [at_s - clock_us / 1e6 for at_s, piece in read.pieces for clock_us in clocks_us(piece)]
        reads, self._reads = self._reads, []
        tokens = sum(read.tokens for read in reads)
        report = Report(self._wall_s, len(reads), tokens, _p50_p95_ms(ttfts_s), _p50_p95_ms(chunks_s), faults)
        del reads
        gc.collect()  # not while the clock runs
        return report

    async def _stream(self, load: Load, number: int) -> None:
        read = Read(load.tokens, time.monotonic())
        self._reads.append(read)
        try:
            await self._way.read(load.prompt(number), load, read)
        except Exception as error:  # a finding: the report says it
            read.take(f"<{type(error).__name__}: {error}>")

    async def _paced(self, load: Load, began_s: float) -> None:
        async with asyncio.TaskGroup() as streams:
            for number in range(load.streams):
                await asyncio.sleep(max(0.0, began_s + number / load.per_s - time.monotonic()))
                streams.create_task(self._stream(load, number))

    async def _turns(self, load: Load) -> None:
        left = iter(range(load.streams))

        async def call() -> None:
            for number in left:
                await self._stream(load, number)

        await asyncio.gather(*(call() for _ in range(load.callers)))

    async def _keep(self, load: Load) -> None:
        async def keep(number: int) -> None:
            await asyncio.sleep(number / load.streams)
            # The first ones differ in length, so that later starts are spread over a stream's length.
            await self._stream(replace(load, tokens=1 + load.tokens * number // load.streams), number)
            while not self._released.is_set():
                await self._stream(load, number)

        await asyncio.gather(*(keep(number) for number in range(load.streams)))


def _p50_p95_ms(values_s: list[float]) -> tuple[float, float]:
    if len(values_s) < 2:
        return (values_s[0] * 1e3, values_s[0] * 1e3) if values_s else (0.0, 0.0)
    cuts = statistics.quantiles(values_s, n=100, method="inclusive")
    return cuts[49] * 1e3, cuts[94] * 1e3


def _way(kind: Kind, address: str) -> Way:
    match kind:
        case Kind.QUEUE:
            return Queue()
        case Kind.DIRECT:
            return Direct(address)
        case Kind.RAW:
            return Raw(address)


async def _serve(kind: Kind, address: str, socket: str) -> None:
    way = _way(kind, address)
    caller = Caller(way)
    orders, answers = await asyncio.open_unix_connection(socket)

    while line := await orders.readline():
        answer = None
        match json.loads(line):
            case {"run": load}:
                await caller.run(Load(**load))
            case {"release": _}:
                await caller.release()
            case {"report": _}:
                answer = asdict(await caller.report())
        answers.write(json.dumps(answer).encode() + b"\n")
        await answers.drain()
    await way.close()


def main() -> None:
    """Carry out orders until the benchmark hangs up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", type=Kind)
    parser.add_argument("address", help="of the model server")
    parser.add_argument("socket", help="the benchmark's unix socket")
    options = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    asyncio.run(_serve(options.kind, options.address, options.socket))


if __name__ == "__main__":
    main()
