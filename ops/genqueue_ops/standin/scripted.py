"""The engine that writes ``prose.py`` at the pace its script asks for."""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from genqueue_ops.standin import chat, prose
from genqueue_ops.standin.engine import Job, Step, Token


class Metronome:
    """Wakes sleepers at absolute times, all that fall into one tick together.

    Args:
        tick_s: sleepers wake up to one tick late.  Set to the inter-token time, all streams decode in
            lockstep, as in a real batch.
    """

    def __init__(self, tick_s: float = 0.001) -> None:
        self._tick_s = tick_s
        self._sleepers: dict[int, list[asyncio.Future[None]]] = {}

    async def until(self, time_s: float) -> None:
        """Return at the first tick not before ``time_s`` of the loop's clock; of the past, at once."""
        loop = asyncio.get_running_loop()
        if time_s <= loop.time():
            await asyncio.sleep(0)
            return
        tick = math.ceil(time_s / self._tick_s)
        sleepers = self._sleepers.get(tick)
        if sleepers is None:
            sleepers = self._sleepers[tick] = []
            loop.call_at(tick * self._tick_s, self._wake, tick)
        sleeper = loop.create_future()
        sleepers.append(sleeper)
        await sleeper

    def _wake(self, tick: int) -> None:
        for sleeper in self._sleepers.pop(tick):
            if not sleeper.done():  # its stream was closed
                sleeper.set_result(None)


class ScriptedEngine:
    """Deterministic text, at absolute deadlines, so that many streams keep their pace.

    Args:
        tick_s: see ``Metronome``.
    """

    model_id = "genqueue/scripted"

    def __init__(self, *, tick_s: float = 0.001) -> None:
        self._metronome = Metronome(tick_s)

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to end."""

    async def tokenize(self, prompt: str) -> list[Token]:
        """One token per word, punctuation mark or piece of white space."""
        return prose.pieces(prompt)

    async def render_chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """The template of ``chat.render``."""
        return chat.render(messages)

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """See ``Engine.generate``; a candidate of ``best_of`` continues another prompt."""
        script = job.script
        prompt = job.prompt if job.candidate == 0 else f"{job.prompt}\n#{job.candidate}"
        split = script.split_characters
        position = prose.position_after(prompt, split_characters=split)
        tokens = prose.next_tokens(prompt, split_characters=split)
        deadline_s = asyncio.get_running_loop().time() + script.ttft_s
        while True:
            await self._metronome.until(deadline_s)
            if script.tokens is not None and position >= script.tokens:
                token, ends = prose.EOS, True
            else:
                token, ends = next(tokens), position + 1 == script.tokens and not script.special
                position += 1
            top = prose.alternatives(token, job.top_n_tokens) if job.top_n_tokens else ()
            yield Step(token, ends, top)
            if ends:
                return
            deadline_s += script.itl_s
