"""Where the next attempt begins: after the text so far, or anew, or not at all.

Pure.  Continuing means to send the prompt with the text so far behind it and to ask for the
tokens that are still missing; readers see one text.  Of a chat, the text so far is sent as the
beginning of the assistant's answer, which only some servers go on with: the generator's
settings say whether its server does.  Three things need care at the seam:

- TGI trims white space from the end of what it is sent.  So the text is cut at its last
  character that is none, and what the server says again of the tail is swallowed.
- A stop sequence may begin before the seam and end after it; the server sees its end only.
- Tokens are counted up to that cut, so that the ones generated again are counted once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from genqueue.registry.attempts import Claim
from genqueue.settings import GeneratorSettings
from genqueue.wire.extra_body import PICKS_TOKENS
from genqueue.wire.request import GenerationRequest, Given
from genqueue_worker.engine.retrying import is_exhausted

OnFailure = Literal["continue", "restart", "fail"]


@dataclass(frozen=True, slots=True)
class Progress:
    """What earlier attempts left.

    Attributes:
        text: all of it, as readers have it.
        solid_tokens: how many tokens it took up to its last character that is not white space.
        reasoning: what a chat's model thought before or between.
    """

    text: str
    solid_tokens: int
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    """Generate from the prompt alone; ``forget`` is whether readers have text that must go."""

    forget: bool


@dataclass(frozen=True, slots=True)
class Continue:
    """Generate what is missing.

    Attributes:
        prompt: the caller's prompt, or messages, and the text up to the seam.
        parameters: the call's parameters, less what was used up.
        tail: white space behind the seam that readers have already.
    """

    prompt: Given
    parameters: dict[str, Any]
    tail: str


@dataclass(frozen=True, slots=True)
class Complete:
    """Nothing is missing: the end itself was all that got lost."""

    finish_reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It has failed often enough, or the caller asked that nothing be tried twice."""


Start = Begin | Continue | Complete | GiveUp

REFUSED, FAILED = "refused", "failed"
"""What is noted of an attempt that was to continue and brought nothing: its server refused that, or failed."""
_MOST_FAILED = 2


def where_to_begin(
    claim: Claim, request: GenerationRequest, parameters: Mapping[str, Any], settings: GeneratorSettings
) -> Start:
    """Choose how an attempt begins.

    Args:
        claim: what earlier attempts left, and how they failed.
        request: the caller's.
        parameters: of the whole generation, as :func:`next_attempt` has them.
        settings: the generator's.
    """
    max_attempts = settings.max_attempts
    if is_exhausted(claim.failures, len(claim.errors), max_attempts):
        return GiveUp()
    if claim.attempt == 1:
        return Begin(forget=False)
    is_last = is_exhausted(claim.failures + 1, len(claim.errors) + 1, max_attempts)
    # Else it was handed over, or what was refused is ours.
    failed = any(error.get("continued") != REFUSED for error in claim.errors)
    on_failure = request.on_failure if failed else "continue"
    if on_failure == "continue" and begins_anew(claim.errors, is_last=is_last):
        on_failure = "restart"
    progress = Progress(claim.text_so_far, claim.solid_tokens, claim.reasoning_so_far)
    return next_attempt(request.given, parameters, on_failure, progress, continues_chat=settings.continues_chat)


def begins_anew(errors: Sequence[Mapping[str, Any]], *, is_last: bool) -> bool:
    """Whether a text is not continued any more: a server refused what it was sent for that, or failed of it twice.

    Once is enough where no other attempt follows.

    Prompt and text so far may be longer than it takes, or it goes on with no answer that was begun.  What it accepted
    before was the prompt alone; so that is what it gets, once and for all: at most one text is thrown away for it.

    Args:
        errors: what ended earlier attempts; ``continued`` is one of the words above.
        is_last: whether the next attempt is the last one, should it fail.
    """
    outcomes = [error.get("continued") for error in errors]
    return REFUSED in outcomes or outcomes.count(FAILED) >= (1 if is_last else _MOST_FAILED)


def next_attempt(
    prompt: Given,
    parameters: Mapping[str, Any],
    on_failure: OnFailure,
    progress: Progress,
    *,
    continues_chat: bool = False,
) -> Start:
    """Choose how an attempt after the first begins.

    Args:
        prompt: the caller's, or a chat's messages.
        parameters: of the whole generation, ``max_new_tokens`` (``max_tokens`` of a chat) among them.
        on_failure: the caller's wish.
        progress: what earlier attempts left.
        continues_chat: whether the server goes on with an answer that was begun.
    """
    if on_failure == "fail":
        return GiveUp()
    anew = Begin(forget=bool(progress.text or progress.solid_tokens))  # the call of a tool is no text
    if on_failure == "restart" or cannot_continue(parameters):
        return anew
    limit = "max_new_tokens"
    if not isinstance(prompt, str):
        limit = "max_tokens"
        if not (continues_chat and _leaves_off_in_its_answer(prompt, progress)):
            return anew
    if not progress.text:
        return anew
    if any(progress.text.endswith(stop) for stop in parameters.get("stop", ())):
        return Complete("stop_sequence")
    missing_tokens = parameters[limit] - progress.solid_tokens
    if missing_tokens <= 0:
        return Complete("length")
    solid = progress.text.rstrip()
    tail = progress.text[len(solid) :]
    rest = {**parameters, limit: missing_tokens}
    if not isinstance(prompt, str):
        rest["extra_body"] = {**parameters.get("extra_body", {}), **_GO_ON}
        return Continue([*prompt, {"role": "assistant", "content": solid}], rest, tail)
    if "truncate" in parameters:  # it counts from the end: the same part of the prompt shall stay
        rest["truncate"] = parameters["truncate"] + progress.solid_tokens
    return Continue(prompt + solid, rest, tail)


_GO_ON = {"continue_final_message": True, "add_generation_prompt": False}
"""How vLLM and SGLang are told; TGI 3 and llama.cpp go on with a last message of the assistant by themselves."""


def _leaves_off_in_its_answer(messages: list[dict[str, Any]], progress: Progress) -> bool:
    """Whether the text so far is the beginning of the answer, and all of it.

    Not behind thoughts, which templates leave out, nor behind what the caller began of the
    answer, which some servers go on with and others do not; nor where there is no text yet.
    """
    return bool(progress.text.strip()) and not progress.reasoning and messages[-1]["role"] != "assistant"


def cannot_continue(parameters: Mapping[str, Any]) -> bool:
    """Whether prompt + text so far would not give the same text.

    A grammar would begin again in the middle; of ``best_of`` texts none is known before the
    end; ``decoder_input_details`` would describe a prompt that is not the caller's; a chat's
    ``logprobs`` are told with the result only, and those of the first part are lost.  What an engine makes
    of an ``extra_body`` is unknown but for the ways to pick a token: it may be a grammar.
    """
    return (
        "grammar" in parameters
        or "response_format" in parameters
        or bool(parameters.get("logprobs"))
        or parameters.get("best_of", 1) > 1
        or bool(parameters.get("decoder_input_details"))
        or bool(parameters.get("tools"))
        or not parameters.get("extra_body", {}).keys() <= PICKS_TOKENS
    )
