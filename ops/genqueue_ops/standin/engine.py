"""What the HTTP side asks of a model, whichever engine is behind it."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from genqueue_ops.standin.script import Script


class Token(NamedTuple):
    """One decoding step's token as TGI reports it."""

    id: int
    text: str
    """May be ``""``: the bytes so far are no whole character."""
    logprob: float
    special: bool
    """Not part of the text, like the end token ``</s>``."""


class Step(NamedTuple):
    """What one decoding step yields."""

    token: Token
    ends: bool
    """The model has no more to say."""
    top_tokens: Sequence[Token] = ()
    """The ``top_n_tokens`` likeliest, likeliest first; empty when not asked for."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to generate: a validated request, or one of its ``best_of`` candidates."""

    prompt: str
    """After ``truncate``."""
    max_new_tokens: int
    script: Script
    """Pace and length, for an engine that can set them."""
    sampling: dict[str, Any]
    """Sampling parameters that were given, by TGI's names; empty values left out."""
    seed: int | None
    top_n_tokens: int = 0
    candidate: int = 0
    """0 for the only or best sequence, 1 … for the others of ``best_of``."""


class EngineError(Exception):
    """The model failed; TGI reports it as ``Request failed during generation``."""


class Engine(Protocol):
    """A model."""

    model_id: str

    async def start(self) -> None:
        """Load the model; when it returns, ``generate`` works."""

    async def close(self) -> None:
        """End what ``start`` began."""

    async def tokenize(self, prompt: str) -> list[Token]:
        """The prompt's tokens; their texts joined are the prompt."""
        ...

    async def render_chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt that the model's chat template makes of messages (``role``, ``content``)."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """Decode until the model ends or the caller closes the iterator.

        The caller counts ``max_new_tokens`` and matches stop strings; closing stops the
        model within one decoding step.
        """
        ...
