"""What ``python -m genqueue_lab chaos`` asks for, decided from a seed, and what must come of it.

Pure.  Every order knows its text beforehand, because the stand-in's text is a function of
the prompt (:mod:`genqueue_ops.standin.prose`), also where another attempt continues it.  Some
are answered in other words by each worker, as a model that draws its tokens would: what their
readers were given is void once another worker begins anew.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from genqueue_lab.chaos.plan import DEEP, GENERATORS
from genqueue_ops.standin import chat, prose

WORKER_HEADER = "x-worker"
"""Each worker's requests name it."""

_STOP_EVERY_TOKENS = 4  # where the counter words of the stand-in's text are: a stop word from one comes once
_NEVER_TOKENS = 8

LOGIN: dict[str, Any] = {"kind": "status", "status": 200, "body": "<html><body>Please log in</body></html>"}
"""The page of a proxy that wants to know who asks."""
_MISHAPS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 429, "headers": {"retry-after": "1"}, "body": {"error": "slow down"}},
    {"kind": "status", "status": 503, "body": "upstream connect error"},
    LOGIN,
    {"kind": "refuse"},
    {"kind": "slow_headers", "delay_s": 1.0},
    *({"kind": kind} for kind in ("error", "cut", "close", "reset", "garbage", "half", "drip")),
    {"kind": "stall"},
    {"kind": "stall", "comments": True},
    {"kind": "stall", "delay_s": 1.0},
)
"""What the endpoint does to one call of an order's; the script has what each means."""


@dataclass(frozen=True, slots=True)
class Away:
    """A reader leaves after ``after_chunks`` chunks, and comes back ``for_s`` later with ``from_seq``."""

    after_chunks: int
    for_s: float


@dataclass(frozen=True)
class Order:
    """One generation to be asked for, and what must come of it.

    Attributes:
        at_s: when, after the first submit.
        tokens: of the whole text, the end token not counted.
        ends: by what the text ends: the model's own end, the limit of tokens, or a stop word.
        again: what a later attempt does: it continues, or begins anew because the caller
            wants that, because of a grammar, or because the call cannot be streamed.
        stream: whether chunks are published.
        is_chat: whether it is a chat, or a prompt.
        is_sync: whether the synchronous client asks and reads.
        resets: whether its reader asks to be told where the text begins anew, and forgets what it had.
        varies: whether each worker's model answers in other words.
        mishaps: faults of the endpoint, one for each of its first calls.
        decoys: stop words that never come.
        cancel_after_s, deadline_s: after the submit.
        aways: when its reader leaves.
        late_from: from which part of its events one who comes at the end reads them: 0 the first, 1 the last.
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
    is_chat: bool = False
    is_sync: bool = False
    resets: bool = False
    varies: bool = False
    mishaps: tuple[dict[str, Any], ...] = ()
    stop_tokens: int = 2
    decoys: int = 0
    late_from: float = 0.0

    @cached_property
    def prompt(self) -> str:
        """What is sent, with the stand-in's directive; no other order's begins with it."""
        script: dict[str, Any] = {"itl_s": self.itl_s, "split_characters": self.split_characters}
        if self.ends == "eos_token":
            script["tokens"] = self.tokens
        if self.varies:
            script["by_header"] = WORKER_HEADER
        if self.mishaps:
            script["faults"] = list(self.mishaps)
        return f"Chaos {self.seed}, order {self.number}: {{{{standin {json.dumps(script)}}}}}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The same as a chat."""
        return [{"role": "system", "content": "You are a storm."}, {"role": "user", "content": self.prompt}]

    def _pieces(self, worker: str) -> list[str]:
        read = chat.render(self.messages) if self.is_chat else self.prompt
        if self.varies:
            read = prose.variant(read, worker)
        made = prose.expected_tokens(read, self.tokens, split_characters=self.split_characters)
        return [token.text for token in made]

    @cached_property
    def pieces(self) -> list[str]:
        """The texts of the tokens of the whole text, of one that does not vary."""
        return self._pieces("")

    @cached_property
    def text(self) -> str:
        """The whole text of one that does not vary."""
        return "".join(self.pieces)

    def text_by(self, worker: str) -> str:
        """The whole text as a worker's model has it."""
        return "".join(self._pieces(worker)) if self.varies else self.text

    @property
    def completion_tokens(self) -> int:
        """What usage must say of the whole text: the model's own end is a token too."""
        return self.tokens + (self.ends == "eos_token")

    @property
    def finish_reason(self) -> str:
        """How the endpoint calls its end."""
        return "stop" if self.is_chat and self.ends == "eos_token" else self.ends

    def text_after(self, worker: str = "") -> list[str]:
        """The text after 0, 1, 2 … completion tokens."""
        pieces = self._pieces(worker) if self.varies else self.pieces
        return [*accumulate(pieces, initial=""), *(["".join(pieces)] if self.ends == "eos_token" else [])]

    @property
    def begins_anew(self) -> bool:
        """Whether another attempt forgets what the one before it said."""
        return self.again != "continue" or (self.is_chat and self.generator != GENERATORS[1])

    @property
    def never_continues(self) -> bool:
        """Whether that holds of a hand-over too, which is no failure: ``on_failure`` says nothing of it."""
        return self.again in {"grammar", "one-shot"} or replace(self, again="continue").begins_anew

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
        """The arguments of ``submit`` or ``submit_chat`` beside the prompt or the messages."""
        limit = "max_tokens" if self.is_chat else "max_new_tokens"
        kwargs: dict[str, Any] = {limit: self.tokens if self.ends == "length" else self.tokens + 50}
        if self.again == "grammar":
            kwargs["grammar"] = {"type": "regex", "value": ".*"}
        if self.again == "one-shot":
            kwargs["decoder_input_details"] = True
        stops = [f"never {number} said" for number in range(self.decoys)]
        if self.ends == "stop_sequence":
            # It begins inside a token and ends with the last: an attempt may end anywhere between.
            stops.insert(self.decoys // 2, "".join(self.pieces[-self.stop_tokens :])[1:])
        return {
            "generator": self.generator,
            "generation_kwargs": kwargs,
            "stop_words": stops or None,
            "stream": self.stream,
            "deadline_s": self.deadline_s,
            "on_failure": "restart" if self.again == "asked" else "continue",
            "idempotency_key": f"chaos {self.seed} {self.number}",
        }


def orders(seed: int, count: int, span_s: float) -> list[Order]:
    """``count`` orders at a steady rate: 1 in 4 is cancelled, 1 in 8 has a deadline, 1 in 3 is a chat."""
    dice = random.Random(f"orders {seed}")
    made = []
    for number in range(count):
        ends: Sequence[Any] = ("eos_token", "length", "stop_sequence")
        is_chat = dice.random() < 1 / 3
        again: Any = dice.choices(("continue", "asked"), (6, 1))[0]
        if not is_chat:
            again = dice.choices(("continue", "asked", "grammar", "one-shot"), (16, 2, 1, 1))[0]
        ended: Any = dice.choice(ends)
        order = Order(
            number=number,
            seed=seed,
            at_s=(number + dice.random()) * span_s / count,
            generator=dice.choice(GENERATORS),
            # A stop word's last token is a counter word, which no other place of the text has.
            tokens=_NEVER_TOKENS + dice.randrange(10, 75) * _STOP_EVERY_TOKENS + 1,
            itl_s=dice.choice((0.02, 0.03, 0.05)),
            ends=ended,
            again=again,
            stream=dice.random() < 0.85,
            # Nobody knows how many tokens a part of a chat took: its events with text are taken off the limit.
            split_characters=dice.random() < 0.5 and not (is_chat and ended == "length"),
            cancel_after_s=dice.uniform(0.0, 8.0) if dice.random() < 1 / 4 else None,
            deadline_s=dice.uniform(1.0, 15.0) if dice.random() < 1 / 8 else None,
            aways=tuple(
                Away(dice.randrange(1, 60), dice.uniform(0.0, 3.0))
                for _ in range(dice.choices((0, 1, 2), (6, 3, 1))[0])
            ),
            is_chat=is_chat,
            is_sync=dice.random() < 1 / 4,
            resets=dice.random() < 1 / 4,
            mishaps=tuple(_mishap(dice) for _ in range(dice.choices((0, 1, 2), (7, 2, 1))[0])),
            stop_tokens=dice.randrange(2, 8),
            decoys=dice.randrange(0, 4),
            late_from=dice.random(),
        )
        if order.again == "one-shot":  # which is given the time of all its tokens before it is given up
            order = replace(order, mishaps=tuple(mishap for mishap in order.mishaps if mishap["kind"] != "stall"))
        if order.begins_anew and order.ends != "stop_sequence" and dice.random() < 3 / 4:
            # A text that is continued would begin as one worker has it, and end as another.
            order = replace(order, varies=order.never_continues)
        made.append(order)
    return made


def behind(seed: int, storm: int, first: int, count: int = 5) -> list[Order]:
    """Orders that come behind a storm, and must not wait for what it left in the queue."""
    dice = random.Random(f"behind {seed} {storm}")
    return [
        Order(
            number=first + place,
            seed=seed,
            at_s=0.0,
            generator=DEEP,
            tokens=21,
            itl_s=0.02,
            ends="length",
            again="continue",
            stream=True,
            split_characters=False,
            cancel_after_s=None,
            deadline_s=None,
            aways=(),
            is_sync=dice.random() < 1 / 4,
        )
        for place in range(count)
    ]


def _mishap(dice: random.Random) -> dict[str, Any]:
    return {**dice.choice(_MISHAPS), "times": 1, "after_tokens": dice.randrange(0, 60)}
