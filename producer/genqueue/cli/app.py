"""The ``genqueue`` command: submit, tail, status, cancel, and what other packages add.

stdout carries what was asked for and nothing else; all else is on stderr.  Every error is one
line there and one of :class:`ExitCode`.  The commands of the worker and ops packages
(entry-point group ``genqueue.commands``) are imported only when they are called, so that a
producer without those packages' dependencies can use the rest.
"""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from importlib.metadata import version as package_version
from typing import Annotated, Any, NoReturn

import typer

from genqueue.cli import output
from genqueue.cli.arguments import GenerationId
from genqueue.cli.dead import dead
from genqueue.cli.exits import ExitCode, exit_code
from genqueue.cli.printing import (
    print_events,
    print_facts,
    print_overview,
    print_result,
    print_text,
    print_workers,
    say_if_nobody_serves,
)
from genqueue.client.sync import Generation, GenerationClient
from genqueue.errors import GenqueueError, InvalidRequestError
from genqueue.registry.lifecycle import State
from genqueue.terminal import one_line

# What --help says of a command that is not imported for that, which takes long and needs what may not be installed,
# and the extra that brings it.  An entry point has no place for either; it has one here as long as it is of this
# distribution.
_CONTRIBUTED = {
    "worker": ("Run generations until told to stop.", "worker"),
    "demo": ("Redis, a model, a worker and a prompt, here and now.", "ops"),
    "flower": ("Watch workers and generations in a browser.", "monitor"),
    "tgi-standin": ("Serve TGI's protocol without a GPU.", "ops"),
    "capacity": ("Say how much Redis a fleet of GPU hosts needs.", "ops"),
}

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# The class itself is typer's secret: older ones take it from click, newer ones bring their own.
_UsageError: Any = typer.BadParameter.__base__


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
            system_message = [] if system is None else [{"role": "system", "content": system}]
            generation = client.submit_chat([*system_message, {"role": "user", "content": prompt}], **options)
        else:
            generation = client.submit(prompt, **options)
        say_if_nobody_serves(client, generator)
        with _readable_again(generation):
            if detach:
                output.json_line({"id": generation.id}) if as_json else output.line(generation.id)
            elif as_json:
                print_result(generation)
            else:
                print_text(generation)


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
                print_events(generation, from_seq)
            else:
                print_text(generation, from_seq)


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
        print_workers(as_json)
        return
    if generation_id is None:
        print_overview(as_json, every if watch else None)
        return
    with GenerationClient() as client:
        status = client.generation(generation_id).status()
    facts = {
        "id": status.id,
        "state": status.state,
        "generator": status.generator,
        "priority": status.priority,
        "position": status.position,
        "attempt": status.attempt,
        "completion_tokens": status.completion_tokens,
        "error": status.error,
        "retried_as": status.retried_as,
        "waits_for": status.waits_for,
    }
    if as_json:
        output.json_line({**facts, "timings": status.timings})
    else:
        print_facts({**facts, **status.timings})


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


app.add_typer(dead, name="dead")


@contextmanager
def _readable_again(generation: Generation) -> Iterator[None]:
    """Say how to read again what stdout did not take."""
    try:
        yield
    except output.UnwritableError as error:
        output.say(f"{error}; to read it again: genqueue tail {generation.id}")
        raise typer.Exit(ExitCode.FAILURE) from None


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"prompt: stdin is no UTF-8 at byte {error.start}") from error


def _json_object(raw: str | None) -> dict[str, Any]:
    try:
        parsed = json.loads(raw or "{}")
    except ValueError as error:
        raise typer.BadParameter(f"--kwargs is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise typer.BadParameter("--kwargs must be a JSON object")
    return parsed


def add_command(entry: EntryPoint, about: str, extra: str | None) -> None:
    """Add another package's command under a stand-in that imports it when it is called.

    ``about`` is what ``--help`` says of it, ``extra`` the extra of this distribution that brings what it needs.
    """

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


for _entry in sorted(entry_points(group="genqueue.commands")):
    add_command(_entry, *_CONTRIBUTED.get(_entry.name, (f"From {_entry.value.partition(':')[0]}.", None)))


def main(name: str = "genqueue") -> NoReturn:
    """Run the command line and exit with an :class:`ExitCode`; ``name`` is what it was called by."""
    sys.exit(_run(name))


def _open_what_is_closed() -> None:
    """Give us the streams that whoever started us closed: what is written there goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest number that is free is its own
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _run(name: str) -> int:
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # TextIOWrapper, as started
    logging.getLogger("genqueue").addHandler(logging.NullHandler())  # stderr is for our one line
    command: Any = typer.main.get_command(app)
    try:
        return command.main(prog_name=name, standalone_mode=False) or ExitCode.OK
    except _UsageError as error:
        command_path = error.ctx.command_path if error.ctx else name
        if message := error.format_message():  # none where the command was missing and its help is shown
            output.say(f"{message.rstrip('.').replace('Value error, ', '', 1)} ({command_path} --help)")
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
