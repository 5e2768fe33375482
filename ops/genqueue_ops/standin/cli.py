"""``genqueue tgi-standin``: the server on the command line."""

import asyncio
import json
import signal
from enum import StrEnum
from typing import Annotated

import typer

from genqueue.cli import output
from genqueue_ops.standin.engine import Engine
from genqueue_ops.standin.llama import LlamaEngine, LlamaUnavailableError
from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.script import Script
from genqueue_ops.standin.scripted import ScriptedEngine
from genqueue_ops.standin.server import serve


class EngineName(StrEnum):
    """The models the stand-in has."""

    SCRIPTED = "scripted"
    LLAMA = "llama"


def tgi_standin(
    engine: Annotated[
        EngineName, typer.Option(help="scripted: made-up text; llama: SmolLM2-135M.")
    ] = EngineName.SCRIPTED,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free port.")] = 0,
    ttft_s: Annotated[float, typer.Option(help="scripted: seconds to the first token.")] = 0.0,
    itl_s: Annotated[float, typer.Option(help="scripted: seconds between tokens.")] = 0.0,
    tokens: Annotated[int | None, typer.Option(help="scripted: length of the whole text; default endless.")] = None,
    special: Annotated[bool, typer.Option(help="scripted: end with a special token </s>.")] = True,
    split_characters: Annotated[bool, typer.Option(help="scripted: some characters take two tokens.")] = False,
    faults: Annotated[str, typer.Option(help='Faults as JSON, e.g. \'[{"kind":"cut","after_tokens":5}]\'.')] = "[]",
    threads: Annotated[int | None, typer.Option(help="llama: CPU threads; default all cores but one.")] = None,
    tick_s: Annotated[float, typer.Option(help="scripted: streams wake together at multiples of this.")] = 0.001,
    max_concurrent_requests: Annotated[int, typer.Option(help="More than this get 'Model is overloaded'.")] = 128,
    max_batch: Annotated[int | None, typer.Option(help="Run at once; others wait. llama: 4 if not given.")] = None,
    max_total_tokens: Annotated[int | None, typer.Option(help="Prompt and text; default 8192, llama: 2048.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Default: one less than the total.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Ask POST routes for this key.", envvar="API_KEY")] = None,
    keep_alive_s: Annotated[float, typer.Option(help="Silence after which a stream gets a comment.")] = 15.0,
    shutdown_s: Annotated[float, typer.Option(help="Time for requests in flight after SIGTERM.")] = 0.0,
) -> None:
    """Serve Text Generation Inference's HTTP protocol without a GPU.

    Prints one line, `listening on URL`, when it serves.  Ends on SIGTERM or SIGINT.
    """
    try:
        script = Script.model_validate(
            {
                "ttft_s": ttft_s,
                "itl_s": itl_s,
                "tokens": tokens,
                "special": special,
                "split_characters": split_characters,
                "faults": json.loads(faults),
            }
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if engine is EngineName.LLAMA:
        total_tokens, batch = max_total_tokens or 2048, max_batch or 4
        model: Engine = LlamaEngine(slots=batch, context_tokens=total_tokens, threads=threads)
    else:
        total_tokens, batch = max_total_tokens or 8192, max_batch or max_concurrent_requests
        model = ScriptedEngine(tick_s=tick_s)
    limits = Limits(
        max_concurrent_requests=max_concurrent_requests,
        max_input_tokens=max_input_tokens or total_tokens - 1,
        max_total_tokens=total_tokens,
    )

    async def run() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        async with serve(
            script,
            engine=model,
            limits=limits,
            max_batch=batch,
            api_key=api_key,
            keep_alive_s=keep_alive_s,
            host=host,
            port=port,
            shutdown_s=shutdown_s,
        ) as served:
            output.line(f"listening on {served.url}")
            await ended.wait()

    try:
        from uvloop import Loop as new_loop
    except ImportError:
        from asyncio import new_event_loop as new_loop  # type: ignore[assignment]  # same use
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run())
    except LlamaUnavailableError as error:
        raise typer.BadParameter(str(error)) from error
