"""What ``genqueue chaos`` asks for and what it breaks, decided from a seed.

Pure: the same seed, number of generations and length give the same orders and the same
evils.  Every order knows its text beforehand, because the stand-in's text is a function of
the prompt (:mod:`genqueue_ops.tgi_standin.prose`), also where another attempt continues it.
:mod:`genqueue_ops.chaos` carries both out, :mod:`genqueue_ops.chaos_verdict` judges.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from genqueue_ops.tgi_standin import prose

GENERATORS = ("left", "right")
"""Each has an endpoint of its own, and every worker serves both."""
WORKERS = 3

_STOP_EVERY_TOKENS = 4  # where the counter words of the stand-in's text are: a stop word from one comes once
_NEVER_TOKENS = 8


class Kind(StrEnum):
    """What is done to a part."""

    KILL = "kill -9 of a worker"
    FREEZE = "SIGSTOP of a worker"
    LEAVE = "SIGTERM to a worker"
    REDIS_KILL = "kill -9 of Redis"
    REDIS_STOP = "SIGTERM to Redis"
    REDIS_FREEZE = "SIGSTOP of Redis"
    ENDPOINT = "kill -9 of a model server"
    READERS = "all subscriptions cut (CLIENT KILL TYPE pubsub)"


_WORKER_EVILS = (Kind.KILL, Kind.FREEZE, Kind.LEAVE)
_DECK = (*Kind, Kind.KILL)
_BUSY_S = {Kind.KILL: 10.0, Kind.FREEZE: 12.0, Kind.LEAVE: 12.0}
"""For how long a worker's place is left alone after its evil: until it is back, or another in its place."""


@dataclass(frozen=True, slots=True)
class Evil:
    """One thing that is done.

    Attributes:
        at_s: seconds after the first submit.
        target: the worker's place or the generator's number; 0 where there is one only.
        lasts_s: how long the part stays away; 0 where it is replaced at once, or comes back by itself.
    """

    at_s: float
    kind: Kind
    target: int
    lasts_s: float


def evils(seed: int, span_s: float) -> list[Evil]:
    """The evils of a run, in order; each kind comes before any comes a third time.

    Of the workers' places at most one more than half is hit at a time, and never both endpoints: somebody goes on.
    """
    dice = random.Random(f"evils {seed}")
    found: list[Evil] = []
    free_at_s = [0.0] * WORKERS
    endpoint_back_s = redis_back_s = 0.0
    deck: list[Kind] = []
    at_s = 3.0
    while at_s < span_s:
        if not deck:
            deck = list(_DECK)
            dice.shuffle(deck)
        kind, target, lasts_s = deck.pop(), 0, 0.0
        if kind in _WORKER_EVILS:
            free = [place for place in range(WORKERS) if free_at_s[place] <= at_s]
            if len(free) < 2:  # the last one that is well is left alone until another is
                at_s = sorted(free_at_s)[1]
                free = [place for place in range(WORKERS) if free_at_s[place] <= at_s]
            target = dice.choice(free)
            free_at_s[target] = at_s + _BUSY_S[kind]
            if kind is Kind.FREEZE:
                lasts_s = dice.uniform(5.0, 8.0)
        elif kind is Kind.ENDPOINT:
            at_s = max(at_s, endpoint_back_s)
            target, lasts_s = dice.randrange(len(GENERATORS)), dice.uniform(1.0, 4.0)
            endpoint_back_s = at_s + lasts_s + 5.0
        elif kind is not Kind.READERS:
            at_s = max(at_s, redis_back_s)
            lasts_s = dice.uniform(0.2, 6.0)
            redis_back_s = at_s + lasts_s + 5.0
        if at_s < span_s:
            found.append(Evil(at_s, kind, target, lasts_s))
        at_s += dice.uniform(2.0, 6.0)
    return found


@dataclass(frozen=True, slots=True)
class Away:
    """A reader leaves after ``after_events`` events, and comes back ``for_s`` later with ``from_seq``."""

    after_events: int
    for_s: float


@dataclass(frozen=True)
class Order:
    """One generation to be asked for, and what must come of it.

    Attributes:
        at_s: when, after the first submit.
        tokens: of the whole text, the end token not counted.
        ends: by what the text ends: the model's own end, ``max_new_tokens``, or a stop word.
        again: what a later attempt does: it continues, or begins anew because the caller
            wants that, because of a grammar, or because the call cannot be streamed.
        stream: whether chunks are published.
        cancel_after_s, deadline_s: after the submit.
        aways: when its reader leaves.
    """

    number: int
    seed: int
    at_s: float
    generator: str
    tokens: int
    itl_s: float
    ends: Literal["eos_token", "length", "stop_sequence"]
    again: Literal["continue", "asked", "grammar", "one-shot"]
    stream: bool
    split_characters: bool
    cancel_after_s: float | None
    deadline_s: float | None
    aways: tuple[Away, ...]

    @cached_property
    def prompt(self) -> str:
        """What is sent, with the stand-in's directive; no other order's begins with it."""
        script: dict[str, Any] = {"itl_s": self.itl_s, "split_characters": self.split_characters}
        if self.ends == "eos_token":
            script["tokens"] = self.tokens
        return f"Chaos {self.seed}, order {self.number}: {{{{standin {json.dumps(script)}}}}}"

    @cached_property
    def pieces(self) -> list[str]:
        """The texts of the tokens of the whole text."""
        made = prose.expected_tokens(self.prompt, self.tokens, split_characters=self.split_characters)
        return [token.text for token in made]

    @cached_property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    @property
    def completion_tokens(self) -> int:
        """What usage must say of the whole text: the model's own end is a token too."""
        return self.tokens + (self.ends == "eos_token")

    @cached_property
    def text_after(self) -> list[str]:
        """The text after 0, 1, 2 … completion tokens."""
        return [*accumulate(self.pieces, initial=""), *([self.text] if self.ends == "eos_token" else [])]

    @property
    def is_quiet(self) -> bool:
        """Whether no text comes before the end."""
        return not self.stream or self.again == "one-shot"

    @property
    def decode_s(self) -> float:
        """How long the server takes for the whole text."""
        return self.tokens * self.itl_s

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of ``submit`` beside the prompt."""
        kwargs: dict[str, Any] = {"max_new_tokens": self.tokens if self.ends == "length" else self.tokens + 50}
        if self.again == "grammar":
            kwargs["grammar"] = {"type": "regex", "value": ".*"}
        if self.again == "one-shot":
            kwargs["decoder_input_details"] = True
        return {
            "generator": self.generator,
            "generation_kwargs": kwargs,
            # It begins inside the token before the last: an attempt may end between the two.
            "stop_words": ["".join(self.pieces[-2:])[1:]] if self.ends == "stop_sequence" else None,
            "stream": self.stream,
            "deadline_s": self.deadline_s,
            "on_failure": "restart" if self.again == "asked" else "continue",
            "idempotency_key": f"chaos {self.seed} {self.number}",
        }


def orders(seed: int, count: int, span_s: float) -> list[Order]:
    """``count`` orders at a steady rate: 1 in 4 is cancelled, 1 in 8 has a deadline, 1 in 7 begins anew if it must."""
    dice = random.Random(f"orders {seed}")
    made = []
    for number in range(count):
        ends: Sequence[Any] = ("eos_token", "length", "stop_sequence")
        order = Order(
            number=number,
            seed=seed,
            at_s=(number + dice.random()) * span_s / count,
            generator=dice.choice(GENERATORS),
            # A stop word's last token is a counter word, which no other place of the text has.
            tokens=_NEVER_TOKENS + dice.randrange(10, 75) * _STOP_EVERY_TOKENS + 1,
            itl_s=dice.choice((0.02, 0.03, 0.05)),
            ends=dice.choice(ends),
            again=dice.choices(("continue", "asked", "grammar", "one-shot"), (18, 1, 1, 1))[0],
            stream=dice.random() < 0.8,
            split_characters=dice.random() < 0.5,
            cancel_after_s=dice.uniform(0.0, 8.0) if dice.random() < 1 / 4 else None,
            deadline_s=dice.uniform(1.0, 15.0) if dice.random() < 1 / 8 else None,
            aways=tuple(
                Away(dice.randrange(1, 60), dice.uniform(0.0, 3.0))
                for _ in range(dice.choices((0, 1, 2), (6, 3, 1))[0])
            ),
        )
        made.append(order)
    return made
