"""The ``genqueue`` command: submit, tail, status, cancel, and what other packages add.

stdout carries what was asked for and nothing else; all else is on stderr.  Every error is one
line there and one of :class:`ExitCode`.  The commands of the worker and ops packages
(entry-point group ``genqueue.commands``) are imported only when they are called, so that a
producer without those packages' dependencies can use the rest.
"""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.metadata import version as package_version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from genqueue import errors
from genqueue.cli import output, tables
from genqueue.client.sync import Generation, GenerationClient
from genqueue.errors import GenerationError, GenqueueError, InvalidRequestError
from genqueue.registry.fleet import Overview
from genqueue.registry.lifecycle import State
from genqueue.terminal import one_line
from genqueue.wire.result import GenerationResult

if TYPE_CHECKING:
    from rich.console import RenderableType


class ExitCode(IntEnum):
    """How the command ended."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIG = 3
    INVALID_REQUEST = 4
    QUEUE_FULL = 5
    REDIS = 6
    NOT_FOUND = 7
    REJECTED = 8
    FAILED = 9
    EXPIRED = 10
    CANCELLED = 11
    TIMED_OUT = 12
    TOO_LATE = 13
    RESTARTED = 14
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """For ``--help`` and the README."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done; also when whoever read our output has left",
    ExitCode.FAILURE: "something unexpected, a finding of doctor, or a part of the demo, or a worker, did not start",
    ExitCode.USAGE: "the command line cannot be understood",
    ExitCode.CONFIG: "a setting cannot work, or an extra is not installed",
    ExitCode.INVALID_REQUEST: "the request cannot run as it is; nothing was queued",
    ExitCode.QUEUE_FULL: "the generator's queue is at its limit; nothing was queued",
    ExitCode.REDIS: "Redis does not answer, or refuses",
    ExitCode.NOT_FOUND: "no such generation or dead letter, or its log is gone",
    ExitCode.REJECTED: "the model server refused the request",
    ExitCode.FAILED: "the model server, or the way to it, failed",
    ExitCode.EXPIRED: "the deadline passed",
    ExitCode.CANCELLED: "the generation was cancelled",
    ExitCode.TIMED_OUT: "an end that was waited for did not come in time",
    ExitCode.TOO_LATE: "nothing to cancel: the generation had ended",
    ExitCode.RESTARTED: "the text began anew behind --from-seq: what was read up to there is void",
    ExitCode.INTERRUPTED: "Ctrl-C; the generation goes on",
}

_CODES: tuple[tuple[type[GenqueueError], ExitCode], ...] = (
    (errors.ConfigError, ExitCode.CONFIG),
    (errors.InvalidRequestError, ExitCode.INVALID_REQUEST),
    (errors.QueueFullError, ExitCode.QUEUE_FULL),
    (errors.StoreError, ExitCode.REDIS),
    (errors.GenerationNotFoundError, ExitCode.NOT_FOUND),
    (errors.NotDeadError, ExitCode.NOT_FOUND),
    (errors.LogExpiredError, ExitCode.NOT_FOUND),
    (errors.LogBrokenError, ExitCode.NOT_FOUND),
    (errors.StreamRestartedError, ExitCode.RESTARTED),
    (errors.GenerationRejectedError, ExitCode.REJECTED),
    (errors.GenerationExpiredError, ExitCode.EXPIRED),
    (errors.GenerationCancelledError, ExitCode.CANCELLED),
    (errors.GenerationError, ExitCode.FAILED),
    (errors.ResultTimeoutError, ExitCode.TIMED_OUT),
)

# What --help says of a command that is not imported for that, which takes long and needs what may not be installed,
# and the extra that brings it.  An entry point has no place for either; it has one here as long as it is of this
# distribution.
_CONTRIBUTED = {
    "worker": ("Run generations until told to stop.", "worker"),
    "demo": ("Redis, a model, a worker and a prompt, here and now.", "ops"),
    "flower": ("Watch workers and generations in a browser.", "monitor"),
    "tgi-standin": ("Serve TGI's protocol without a GPU.", "ops"),
}

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# The class itself is typer's secret: older ones take it from click, newer ones bring their own.
_UsageError: Any = typer.BadParameter.__base__


def exit_code(error: GenqueueError) -> ExitCode:
    """The code with which the command reports ``error``."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILURE)


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    epilog="\n".join(["\b", "Exit codes", *(f"{code:>4}  {code.meaning}" for code in ExitCode)]),  # \b: as it stands
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        output.line(f"genqueue {package_version('genqueue')}")
        raise typer.Exit(ExitCode.OK)


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Hand LLM generations to a queue and read their tokens live."""


GenerationId = Annotated[str, typer.Argument(metavar="ID", help="As submit printed it.", show_default=False)]


@app.command()
def submit(
    prompt: Annotated[
        str, typer.Argument(help="What the model continues; - reads it from stdin, less one final newline.")
    ],
    generator: Annotated[str, typer.Option("--generator", "-g", help="A configured generator.")] = "default",
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message, to be answered.")] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: what the model is told first.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="The longest text.", show_default=False)] = None,
    stop_word: Annotated[
        list[str] | None, typer.Option(help="End the text here; may be repeated.", show_default=False)
    ] = None,
    kwargs: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="More generation_kwargs: '{\"temperature\": 0.7}'.", show_default=False),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Whether text is published while it comes.")
    ] = True,
    priority: Annotated[int, typer.Option(help="0 (first) to 9.")] = 5,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds within which it must end.", show_default=False)
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key gives the same generation.", show_default=False)
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, when it is there.")] = False,
) -> None:
    """Queue a prompt and print its text, to a terminal as it comes; then one line about it on stderr."""
    if system is not None and not chat:
        raise typer.BadParameter("--system is for --chat")
    generation_kwargs = _json_object(kwargs)
    if max_new_tokens is not None:
        generation_kwargs["max_tokens" if chat else "max_new_tokens"] = max_new_tokens
    options: dict[str, Any] = {
        "generator": generator,
        "generation_kwargs": generation_kwargs,
        "stop_words": stop_word,
        "stream": stream,
        "priority": priority,
        "deadline_s": deadline_s,
        "idempotency_key": idempotency_key,
    }
    prompt = _stdin() if prompt == "-" else prompt
    with GenerationClient() as client:
        if chat:
            told = [] if system is None else [{"role": "system", "content": system}]
            generation = client.submit_chat([*told, {"role": "user", "content": prompt}], **options)
        else:
            generation = client.submit(prompt, **options)
        _say_if_nobody_serves(client, generator)
        with _readable_again(generation):
            if detach:
                output.json_line({"id": generation.id}) if as_json else output.line(generation.id)
            elif as_json:
                _print_result(generation)
            else:
                _print_text(generation)


@app.command()
def tail(
    generation_id: GenerationId,
    from_seq: Annotated[int, typer.Option(min=0, help="Leave out what came up to this event.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Every event as one line of JSON.")] = False,
) -> None:
    """Print a generation's text from its beginning on: to a terminal as it comes, else when it has ended."""
    with GenerationClient() as client:
        generation = client.generation(generation_id)
        with _readable_again(generation):
            if as_json:
                _print_events(generation, from_seq)
            else:
                _print_text(generation, from_seq)


@app.command()
def status(
    generation_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="As submit printed it.", show_default=False)
    ] = None,
    workers: Annotated[bool, typer.Option("--workers", help="The workers and their model servers only.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Queues and workers again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="With --watch: how often.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; with --watch one line each time.")] = False,
) -> None:
    """Say where a generation is; without an ID, how the queues and workers are."""
    if (generation_id is not None) + workers + watch > 1:
        raise typer.BadParameter("either the ID of a generation, --workers or --watch")
    if workers:
        _print_workers(as_json)
        return
    if generation_id is None:
        _print_overview(as_json, every if watch else None)
        return
    with GenerationClient() as client:
        found = client.generation(generation_id).status()
    facts = {
        "id": found.id,
        "state": found.state,
        "generator": found.generator,
        "priority": found.priority,
        "position": found.position,
        "attempt": found.attempt,
        "completion_tokens": found.completion_tokens,
        "error": found.error,
        "retried_as": found.retried_as,
        "waits_for": found.waits_for,
    }
    if as_json:
        output.json_line({**facts, "timings": found.timings})
    else:
        _print_facts({**facts, **found.timings})


@app.command()
def cancel(generation_id: GenerationId) -> None:
    """Cancel a generation, wherever it is; its text so far is kept."""
    with GenerationClient() as client:
        generation = client.generation(generation_id)
        if not generation.cancel() and (state := generation.status().state) is not State.CANCELLED:
            output.say(f"too late: generation {generation_id} has {state}")
            raise typer.Exit(ExitCode.TOO_LATE)
    output.say(f"cancelled generation {generation_id}")


class _Role(StrEnum):
    PRODUCER = "producer"
    WORKER = "worker"
    FLOWER = "flower"
    OPERATOR = "operator"


@app.command()
def doctor(
    role: Annotated[
        _Role | None,
        typer.Option(
            help="Whose rights in Redis are tried; if not said, those of the user genqueue-…, "
            "else a worker's if generators are configured, else a producer's."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as one JSON object.")] = False,
) -> None:
    """Check settings, Redis, queues, workers and endpoints, and say what to do; exit code 1 if something has failed."""
    from genqueue.doctor import gather  # submit need not wait for it
    from genqueue.doctor.judge import has_failed

    findings = gather.examine(role.value if role else None)
    failed = has_failed(findings)
    if as_json:
        output.json_line({"ok": not failed, "findings": [asdict(one) for one in findings]})
    else:
        for one in findings:
            output.line(f"{one.level:<5} {one_line(one.what)}: {one_line(one.seen)}")
            if one.do:
                output.line(f"      -> {one_line(one.do)}")
    if failed:
        raise typer.Exit(ExitCode.FAILURE)


dead = typer.Typer(no_args_is_help=True, help="What failed for good: look at it, try it again, or drop it.")
app.add_typer(dead, name="dead")

DeadIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Every dead letter instead, the oldest first.")]
OfGenerator = Annotated[
    str | None, typer.Option("--generator", "-g", help="Only this generator's.", show_default=False)
]


@dead.command("list")
def dead_list(
    generator: OfGenerator = None,
    limit: Annotated[int, typer.Option(min=1, help="The most that are printed.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Each as one line of JSON.")] = False,
) -> None:
    """Print the dead letters, the newest first, each with its error: a server's words, which may quote the prompt."""
    with GenerationClient() as client:
        letters = client.dead_letters(generator, limit + 1)
    for letter in letters[:limit]:
        if as_json:
            output.json_line(asdict(letter))
        else:
            ended = datetime.fromtimestamp(letter.ended_at, UTC).isoformat(timespec="seconds")
            figures = f"attempts {letter.attempts}, tokens {letter.completion_tokens}"
            output.line(f"{letter.id}  {ended}  {letter.generator}  {figures}: {one_line(letter.message)}")
    if not letters:
        output.say("no dead letters")
    if len(letters) > limit:
        output.say(f"there are more; these are the newest {limit} (--limit)")


@dead.command("show")
def dead_show(
    generation_id: GenerationId,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    with_prompt: Annotated[
        bool, typer.Option("--prompt", help="The prompt and nothing else; with --json, the prompt too.")
    ] = False,
) -> None:
    """Say all that is kept of a dead letter."""
    with GenerationClient() as client:
        found = client.dead_letter(generation_id)
    given = found.request.given
    prompt = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if with_prompt and not as_json:
        output.text(prompt)
        return
    characters, sha256 = found.request.digest()
    facts = {
        **asdict(found.letter),
        "state": State.FAILED,
        "prompt_characters": characters,
        "prompt_sha256": sha256,
        "prompt_tokens": found.usage["prompt_tokens"],
        "partial_text": found.partial_text,
    }
    if as_json:
        own = {"prompt": prompt} if with_prompt else {}
        whole = {**facts, **own, "errors": found.errors, "timings": found.timings}
        output.json_line(whole, is_ascii=False)
    else:
        facts["partial_text"] = json.dumps(found.partial_text, ensure_ascii=False)
        ended_by = {f"error of attempt {one['attempt']}": one["message"] for one in found.errors}
        _print_facts({**facts, **ended_by, **found.timings})


@dead.command("retry")
def dead_retry(ids: DeadIds = None, every: All = False, generator: OfGenerator = None) -> None:
    """Submit dead letters again, each as a new generation whose id is printed; twice gives the same one."""
    with GenerationClient() as client:
        _each_letter(client, ids, every, generator, lambda one: output.line(client.retry(one).id))


@dead.command("drop")
def dead_drop(ids: DeadIds = None, every: All = False, generator: OfGenerator = None) -> None:
    """Forget dead letters and their prompts."""
    with GenerationClient() as client:
        _each_letter(client, ids, every, generator, client.drop)


def _each_letter(
    client: GenerationClient, ids: list[str] | None, every: bool, generator: str | None, act: Callable[[str], None]
) -> None:
    """Do it to each; one that is no dead letter keeps it from none of the others."""
    if every == bool(ids) or (generator and not every):
        raise typer.BadParameter("give ids, or --all and perhaps --generator")
    chosen = ids or [letter.id for letter in reversed(client.dead_letters(generator, None))]
    if not chosen:
        output.say("no dead letters")
    missing = 0
    for generation_id in chosen:
        try:
            act(generation_id)
        except (errors.NotDeadError, errors.GenerationNotFoundError) as error:
            if not every:  # else somebody was faster
                output.say(str(error))
                missing += 1
    if missing:
        raise typer.Exit(ExitCode.NOT_FOUND)


def _say_if_nobody_serves(client: GenerationClient, generator: str) -> None:
    with contextlib.suppress(errors.StoreError):  # who reads on waits for Redis; the id is not lost for a remark
        if not any(generator in worker.generators for worker in client.workers()):
            output.say(f"no worker has announced itself for generator {generator!r} in the last 30 s; it waits for one")


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if value is not None:
            output.line(f"{name:<19}{one_line(str(value))}")


def _print_workers(as_json: bool) -> None:
    """One line for each server of each generator of each worker."""
    with GenerationClient() as client:
        found = client.workers()
    if as_json:
        output.json_line([asdict(worker) for worker in found])
        return
    for worker in found:
        for generator, servers in worker.generators.items():
            for server in servers:
                line = f"{worker.name:<32} {generator:<16} {server['health']:<6} {server['running']:>4} running  "
                output.line(f"{line}{server['address']}  {one_line(server['trouble'])}".rstrip())
    if not found:
        output.say("no worker has announced itself in the last 30 s")


def _print_overview(as_json: bool, every_s: float | None) -> None:
    """Once, or every ``every_s`` until Ctrl-C; who watches is told when Redis goes away, and watches on."""

    def show(found: Overview) -> None:
        if as_json:
            output.json_line(tables.as_json(found))
        else:
            output.table(tables.as_tables(found))

    with GenerationClient() as client:
        found = client.overview()
        if every_s is None:
            show(found)
            return
        with contextlib.suppress(KeyboardInterrupt):
            if sys.stdout.isatty() and not as_json:
                _watch_live(client, found, every_s)
            while True:
                show(found)
                time.sleep(every_s)
                found = _next_overview(client, every_s)


def _watch_live(client: GenerationClient, found: Overview, every_s: float) -> NoReturn:
    from rich.live import Live
    from rich.text import Text

    with Live(output.guarded(tables.as_tables(found)), console=output.console(), auto_refresh=False) as screen:
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


@contextmanager
def _readable_again(generation: Generation) -> Iterator[None]:
    """What stdout does not take is not lost: say how to read it."""
    try:
        yield
    except output.UnwritableError as error:
        output.say(f"{error}; to read it again: genqueue tail {generation.id}")
        raise typer.Exit(ExitCode.FAILURE) from None


def _print_text(generation: Generation, from_seq: int = 0) -> None:
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
        _leave(generation.id, seq)
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
        _leave(generation.id, from_seq)
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


def _print_result(generation: Generation) -> None:
    try:
        _, result, ended = _outcome(generation)
    except KeyboardInterrupt:
        _leave(generation.id, 0)
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


def _print_events(generation: Generation, from_seq: int) -> None:
    seq = from_seq
    try:
        for event in generation.events(from_seq):
            with _not_halfway():
                output.json_document(event.model_dump_json())
                seq = event.seq
        _, _, ended = _outcome(generation)
    except KeyboardInterrupt:
        _leave(generation.id, seq)
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


def _leave(generation_id: str, seq: int) -> NoReturn:
    """End on Ctrl-C: the generation is not ours to stop."""
    resume = f"genqueue tail {generation_id}" + (f" --from-seq {seq}" if seq else "")
    output.say(f"the generation goes on; to read on: {resume}; to end it: genqueue cancel {generation_id}")
    raise typer.Exit(ExitCode.INTERRUPTED)


def _fail(generation_id: str, error: GenqueueError) -> NoReturn:
    output.say(f"{generation_id}: {error}")
    raise typer.Exit(exit_code(error))


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"prompt: stdin is no UTF-8 at byte {error.start}") from error


def _json_object(raw: str | None) -> dict[str, Any]:
    try:
        found = json.loads(raw or "{}")
    except ValueError as error:
        raise typer.BadParameter(f"--kwargs is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter("--kwargs must be a JSON object")
    return found


def _end_line(last: str) -> None:
    if last and not last.endswith("\n"):
        output.text("\n")


def _add(entry: EntryPoint) -> None:
    """Add another package's command under a stand-in that imports it when it is called."""
    about, extra = _CONTRIBUTED.get(entry.name, (f"From {entry.value.partition(':')[0]}.", None))

    @app.command(
        entry.name,
        help=about,
        add_help_option=False,
        context_settings={
            "allow_extra_args": True,
            "allow_interspersed_args": False,
            "ignore_unknown_options": True,
        },
    )
    def run(context: typer.Context) -> Any:
        try:
            function = entry.load()
        except ImportError as error:
            install = f": pip install 'genqueue[{extra}]'" if extra else ""
            output.say(f"the command {entry.name!r} needs {error.name or error}, which is not installed{install}")
            raise typer.Exit(ExitCode.CONFIG) from None
        own = typer.Typer(add_completion=False)
        own.command(help=function.__doc__)(function)
        command: Any = typer.main.get_command(own)
        return command.main(context.args, prog_name=context.command_path, standalone_mode=False)


def _of_the_lab() -> Iterator[EntryPoint]:
    """Its commands, where there is a checkout: no wheel has them."""
    if find_spec("genqueue_lab") is not None:
        for name, (place, about) in import_module("genqueue_lab").COMMANDS.items():
            _CONTRIBUTED[name] = (about, "ops")
            yield EntryPoint(name, place, "genqueue.commands")


for _entry in sorted([*entry_points(group="genqueue.commands"), *_of_the_lab()]):
    _add(_entry)


def main() -> NoReturn:
    """Run the command line and exit with an :class:`ExitCode`."""
    sys.exit(_run())


def _open_what_is_closed() -> None:
    """Give us the streams that whoever started us closed: what is written there goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest number that is free is its own
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _run() -> int:
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # TextIOWrapper, as started
    logging.getLogger("genqueue").addHandler(logging.NullHandler())  # stderr is for our one line
    command: Any = typer.main.get_command(app)
    try:
        return command.main(prog_name="genqueue", standalone_mode=False) or ExitCode.OK
    except _UsageError as error:
        asked = error.ctx.command_path if error.ctx else "genqueue"
        if message := error.format_message():  # none where the command was missing and its help is shown
            output.say(f"{message.rstrip('.').replace('Value error, ', '', 1)} ({asked} --help)")
        return ExitCode.USAGE
    except GenqueueError as error:
        output.say(str(error))
        return exit_code(error)
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        output.hush()  # whoever read --help, which we do not print ourselves, has left
        return ExitCode.OK
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except output.UnwritableError as error:
        output.say(str(error))
        return ExitCode.FAILURE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:  # --help, which we do not print ourselves
            output.hush()
            output.say(str(output.UnwritableError(error)))
            return ExitCode.FAILURE
        if sys.flags.dev_mode:
            raise
        output.say(f"unexpected {type(error).__name__}: {error} (python -X dev -m genqueue … shows where)")
        return ExitCode.FAILURE
