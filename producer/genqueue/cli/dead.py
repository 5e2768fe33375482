"""``genqueue dead``: what failed for good is listed, shown, tried again or dropped."""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from genqueue import errors
from genqueue.cli import output
from genqueue.cli.arguments import GenerationId
from genqueue.cli.exits import ExitCode
from genqueue.cli.printing import (
    print_facts,
)
from genqueue.client.sync import GenerationClient
from genqueue.registry.lifecycle import State
from genqueue.terminal import one_line

dead = typer.Typer(no_args_is_help=True, help="What failed for good: look at it, try it again, or drop it.")

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
        detail = client.dead_letter(generation_id)
    given = detail.request.given
    prompt = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if with_prompt and not as_json:
        output.text(prompt)
        return
    characters, sha256 = detail.request.digest()
    facts = {
        **asdict(detail.letter),
        "state": State.FAILED,
        "prompt_characters": characters,
        "prompt_sha256": sha256,
        "prompt_tokens": detail.usage["prompt_tokens"],
        "partial_text": detail.partial_text,
    }
    if as_json:
        own = {"prompt": prompt} if with_prompt else {}
        whole = {**facts, **own, "errors": detail.errors, "timings": detail.timings}
        output.json_line(whole, is_ascii=False)
    else:
        facts["partial_text"] = json.dumps(detail.partial_text, ensure_ascii=False)
        ended_by = {f"error of attempt {one['attempt']}": one["message"] for one in detail.errors}
        print_facts({**facts, **ended_by, **detail.timings})


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
