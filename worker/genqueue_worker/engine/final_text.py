"""Whether the text that an endpoint says at its end is the one that it streamed.

Pure.  The tokens' text stays the reply wherever the two contradict each other: readers have it, and what they join
must be the result.  The other text is kept beside it, so that whoever doubts the one has both.  What they may differ
in without a contradiction: white space at either end, special tokens, a stop sequence, the prompt in front.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """What comparing the two texts found.

    Attributes:
        missing: text at the end that no token brought, and which belongs to the reply.
        differs_at: the first character, counted from 0, where they contradict each other; None if they do not.
    """

    missing: str = ""
    differs_at: int | None = None


AGREED = Check()
_SPECIALS = re.compile(r"(\s*(</s>|<\|[^<>|]{1,60}\|>|<｜[^<>｜]{1,60}｜>|<eos>|<end_of_turn>))+")
"""As Llama, Mistral, Qwen, Gemma and DeepSeek spell them."""


def check(
    streamed: str, whole: str | None, *, prompt: str = "", stops: Collection[str] = (), specials: Collection[str] = ()
) -> Check:
    """Compare what the tokens of one attempt spell with its server's ``generated_text``.

    Args:
        streamed: the tokens' text, without special tokens; of a continued attempt what it added.
        whole: the server's; None if it said none.
        prompt: what it was sent.
        stops: the stop sequences, which servers leave in the text or cut off.
        specials: the texts of special tokens that were streamed.
    """
    if whole is None or whole == streamed:
        return AGREED
    forms = list(_forms(whole, prompt, specials))
    said = streamed.strip()
    if any(form.strip() == said or _is_stopped(streamed.lstrip(), form.lstrip(), stops) for form in forms):
        return AGREED
    for form in forms:
        for begun, text in ((streamed, form), (streamed.lstrip(), form.lstrip())):
            if text.startswith(begun):
                missing = text[len(begun) :]
                return AGREED if _is_no_text(missing.strip(), stops) else Check(missing=missing)
    same = next(
        (place for place, (one, other) in enumerate(zip(streamed, whole, strict=False)) if one != other),
        min(len(streamed), len(whole)),
    )
    return Check(differs_at=same)


def told(found: Check, whole: str | None) -> dict[str, Any]:
    """What a result's meta says of a contradiction; {} if there is none."""
    if found.differs_at is None:
        return {}
    return {
        "text_conflict": {
            "taken": "tokens",
            "why": "readers have them; the endpoint's own text at its end is another",
            "differs_at": found.differs_at,
            "generated_text": whole,
        }
    }


def _forms(whole: str, prompt: str, specials: Collection[str]) -> Iterator[str]:
    """The text as it is, and without what some servers put into it: special tokens, and the prompt."""
    yield whole
    bare = whole
    for special in specials:
        bare = bare.replace(special, "") if special else bare
    if bare != whole:
        yield bare
    if prompt and bare.startswith(prompt):
        yield bare[len(prompt) :]


def _is_no_text(missing: str, stops: Collection[str]) -> bool:
    """Whether it is a stop sequence or its beginning, or special tokens that were not streamed."""
    return any(stop.strip().startswith(missing) for stop in stops) or _SPECIALS.fullmatch(missing) is not None


def _is_stopped(streamed: str, whole: str, stops: Collection[str]) -> bool:
    """Whether the tokens go on behind the whole text with no more than a stop sequence, or its beginning."""
    if not streamed.startswith(whole.rstrip()):
        return False
    rest = streamed[len(whole.rstrip()) :].strip()
    return any(stop.strip().startswith(rest) or rest.startswith(stop.strip()) for stop in stops if stop.strip())
