"""Print generations, workers and queues."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from genqueue import errors
from genqueue.cli import output, tables
from genqueue.cli.exits import ExitCode, exit_code
from genqueue.client.sync import Generation, GenerationClient
from genqueue.errors import GenerationError, GenqueueError
from genqueue.registry.fleet import Overview
from genqueue.terminal import one_line
from genqueue.wire.result import GenerationResult

if TYPE_CHECKING:
    from rich.console import RenderableType


def say_if_nobody_serves(client: GenerationClient, generator: str) -> None:
    """Remark on stderr that a generation may wait, if no worker serves its generator."""
    with contextlib.suppress(errors.StoreError):  # who reads on waits for Redis; the id is not lost for a remark
        if not any(generator in worker.generators for worker in client.workers()):
            output.say(f"no worker has announced itself for generator {generator!r} in the last 30 s; it waits for one")


def print_facts(facts: dict[str, Any]) -> None:
    """One line for each fact that is known."""
    for name, value in facts.items():
        if value is not None:
            output.line(f"{name:<19}{one_line(str(value))}")


def print_workers(as_json: bool) -> None:
    """One line for each endpoint of each generator of each worker."""
    with GenerationClient() as client:
        workers = client.workers()
    if as_json:
        output.json_line([asdict(worker) for worker in workers])
        return
    for worker in workers:
        for generator, endpoints in worker.generators.items():
            for endpoint in endpoints:
                line = f"{worker.name:<32} {generator:<16} {endpoint['health']:<6} {endpoint['running']:>4} running  "
                output.line(f"{line}{endpoint['address']}  {one_line(endpoint['trouble'])}".rstrip())
    if not workers:
        output.say("no worker has announced itself in the last 30 s")


def print_overview(as_json: bool, every_s: float | None) -> None:
    """Once, or every ``every_s`` until Ctrl-C; who watches is told when Redis goes away, and watches on."""

    def show(overview: Overview) -> None:
        if as_json:
            output.json_line(tables.as_json(overview))
        else:
            output.table(tables.as_tables(overview))

    with GenerationClient() as client:
        overview = client.overview()
        if every_s is None:
            show(overview)
            return
        with contextlib.suppress(KeyboardInterrupt):
            if sys.stdout.isatty() and not as_json:
                _watch_live(client, overview, every_s)
            while True:
                show(overview)
                time.sleep(every_s)
                overview = _next_overview(client, every_s)


def _watch_live(client: GenerationClient, overview: Overview, every_s: float) -> NoReturn:
    from rich.live import Live
    from rich.text import Text

    with Live(output.guarded(tables.as_tables(overview)), console=output.console(), auto_refresh=False) as screen:
        while True:
            time.sleep(every_s)
            try:
                shown: RenderableType = tables.as_tables(client.overview())
            except errors.RedisUnavailableError as error:
                shown = Text(one_line(str(error)))
            screen.update(output.guarded(shown), refresh=True)


def _next_overview(client: GenerationClient, every_s: float) -> Overview:
    """The next one that Redis answers; that it does not is said on stderr."""
    while True:
        try:
            return client.overview()
        except errors.RedisUnavailableError as error:
            output.say(str(error))
            time.sleep(every_s)


_Ending = tuple[GenerationResult | None, GenerationError | None]
"""The result, or the error."""


@contextmanager
def _not_halfway() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: between a text and its number it would print the text twice."""
    caught: list[int] = []
    earlier = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
    if caught:
        raise KeyboardInterrupt


def print_text(generation: Generation, from_seq: int = 0) -> None:
    """The text on stdout, then one line on stderr: its figures, or why it ended otherwise."""
    printed = _print_live if sys.stdout.isatty() else _print_whole
    result, ended = printed(generation, from_seq)
    if result is None:
        assert ended is not None
        _fail(generation.id, ended)
    output.remark(_figures(generation.id, result), dim=True)


def _print_live(generation: Generation, from_seq: int) -> _Ending:
    """As it comes, to a terminal: where another attempt begins anew, that is said between the two texts."""
    seq, last = from_seq, ""
    result: GenerationResult | None = None
    ended: GenerationError | None = None
    try:
        try:
            for chunk in generation.stream(from_seq, resets=True):
                with _not_halfway():
                    if chunk.restarts:
                        _end_line(last)
                        output.say(f"attempt {chunk.attempt} begins anew")
                        last = ""
                    if chunk.text:
                        last = chunk.text
                        output.text(last)
                    seq = chunk.seq
            result = generation.result()
        except GenerationError as error:
            ended = error
    except KeyboardInterrupt:
        _end_line(last)
        _exit_interrupted(generation.id, seq)
    except errors.StoreError as error:  # the generation goes on
        _end_line(last)
        _fail(generation.id, error)
    _end_line(last)
    return result, ended


def _print_whole(generation: Generation, from_seq: int) -> _Ending:
    """At its end, to a file or a pipe: what is there cannot be taken back, should another attempt begin anew."""
    try:
        if from_seq:
            text, ended = _text_behind(generation, from_seq)
            result = generation.result() if ended is None else None
        else:
            text, result, ended = _outcome(generation)
    except KeyboardInterrupt:
        _exit_interrupted(generation.id, from_seq)
    except (errors.StoreError, errors.StreamRestartedError) as error:
        _fail(generation.id, error)
    output.text(text)
    _end_line(text)
    return result, ended


def _text_behind(generation: Generation, from_seq: int) -> tuple[str, GenerationError | None]:
    """What of the text stands behind an event, and the error if it ended with one."""
    texts = []
    try:
        for chunk in generation.stream(from_seq):
            texts.append(chunk.text)
    except GenerationError as error:
        return "".join(texts), error
    return "".join(texts), None


def print_result(generation: Generation) -> None:
    """The whole result as one line of JSON; raises the error if it ended with one."""
    try:
        _, result, ended = _outcome(generation)
    except KeyboardInterrupt:
        _exit_interrupted(generation.id, 0)
    if result is not None:
        output.json_line({"id": generation.id, **result.model_dump()}, is_ascii=False)
        return
    assert ended is not None
    answer = {
        "id": generation.id,
        "error": type(ended).__name__,
        "message": str(ended),
        "partial_text": ended.partial_text,
        **({"partial_reasoning": ended.partial_reasoning} if ended.partial_reasoning else {}),
        **({"partial_tool_calls": ended.partial_tool_calls} if ended.partial_tool_calls else {}),
        "usage": ended.usage,
        "attempts": ended.attempts,
    }
    output.json_line(answer, is_ascii=False)
    raise ended


def print_events(generation: Generation, from_seq: int) -> None:
    """Each event as one line of JSON, as it comes; raises the error if it ended with one."""
    seq = from_seq
    try:
        for event in generation.events(from_seq):
            with _not_halfway():
                output.json_document(event.model_dump_json())
                seq = event.seq
        _, _, ended = _outcome(generation)
    except KeyboardInterrupt:
        _exit_interrupted(generation.id, seq)
    if ended is not None:
        raise ended


def _outcome(generation: Generation) -> tuple[str, GenerationResult | None, GenerationError | None]:
    """(the text, the result, the error); one of the last two."""
    try:
        result = generation.result()
    except GenerationError as error:
        return error.partial_text, None, error
    return result.replies[0], result, None


def _figures(generation_id: str, result: GenerationResult) -> str:
    """A result's figures in one line; the result of another version may lack any of them."""
    meta = result.meta[0]
    usage, timings = (part if isinstance(part := meta.get(name), dict) else {} for name in ("usage", "timings"))
    parts = [f"{usage.get('completion_tokens')} tokens", f"finish_reason {meta.get('finish_reason')}"]
    parts += [f"{name} {value:.3f}" for name, value in timings.items() if isinstance(value, int | float)]
    return f"{generation_id}: {', '.join(parts)}, attempts {meta.get('attempts')}"


def _exit_interrupted(generation_id: str, seq: int) -> NoReturn:
    """End on Ctrl-C: the generation is not ours to stop."""
    resume = f"genqueue tail {generation_id}" + (f" --from-seq {seq}" if seq else "")
    output.say(f"the generation goes on; to read on: {resume}; to end it: genqueue cancel {generation_id}")
    raise typer.Exit(ExitCode.INTERRUPTED)


def _fail(generation_id: str, error: GenqueueError) -> NoReturn:
    output.say(f"{generation_id}: {error}")
    raise typer.Exit(exit_code(error))


def _end_line(last: str) -> None:
    if last and not last.endswith("\n"):
        output.text("\n")
