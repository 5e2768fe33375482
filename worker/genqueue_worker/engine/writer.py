"""Coalesce what all running generations produce into few Redis round trips.

One flush is in flight at a time and carries whatever every generation has by then.  A token
that comes while nothing is in flight goes out at once, so a quiet worker adds no delay; under
load the flushes grow instead of multiplying.  While Redis is away events wait here, within
bounds, and the generations go on.
"""

import asyncio
import logging
from collections.abc import Callable

from genqueue.connection.store import PatientStore
from genqueue.errors import StoreError
from genqueue.registry import attempts
from genqueue.registry.attempts import Flush
from genqueue.registry.script import Call
from genqueue_worker.engine.outbox import Outbox

logger = logging.getLogger(__name__)
_QUIET_S = 1.0
_BEHIND = "behind "
_MOST_LOSSES = 5
"""So often one flush, or one last word, may find that Redis has lost what came before it."""


class Writer:
    """Writes for every outbox of one engine; lives on the engine's loop.

    Args:
        store: where to; every call of the writer may be sent twice.
        owner: the worker's name in the registry.
        keep_s: TTL of a running generation's keys.
        gap_s: the least time between two flushes, unless a first text is waiting.
        now_s: the loop's clock.
        on_lost: told (outbox, reason) when the registry refuses an attempt's events.
    """

    def __init__(
        self,
        store: PatientStore,
        *,
        owner: str,
        keep_s: int,
        gap_s: float,
        now_s: Callable[[], float],
        on_lost: Callable[[Outbox, str], None],
    ) -> None:
        self.now_s = now_s
        self._store = store
        self._owner = owner
        self._keep_s = keep_s
        self._gap_s = gap_s
        self._on_lost = on_lost
        self._dirty: dict[str, Outbox] = {}
        self._quiet: dict[str, Outbox] = {}
        self._quiet_since_s = 0.0
        self._woken = asyncio.Event()
        self._hurried = asyncio.Event()
        self._in_flight = asyncio.Lock()

    def wake(self, outbox: Outbox) -> None:
        """Have ``outbox`` written soon; at once if a reader waits for its first text."""
        if not outbox.publish:
            if not self._quiet:
                self._quiet_since_s = self.now_s()
            self._quiet[outbox.generation_id] = outbox
            return
        self._dirty[outbox.generation_id] = outbox
        self._woken.set()
        if outbox.is_urgent:
            self._hurried.set()

    async def run(self) -> None:
        """Flush for as long as the engine lives."""
        while True:
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self._woken.wait()
            except TimeoutError:
                pass
            await self._flush()
            if not self._hurried.is_set():
                try:
                    async with asyncio.timeout(self._gap_s):
                        await self._hurried.wait()
                except TimeoutError:
                    pass

    async def last(self, outbox: Outbox | None, call: Call[str]) -> str:
        """Send the last word of an attempt once nothing of it is in flight; waits for as long as Redis is away."""
        if outbox is None:
            return await self._store.run(call)
        up_to = outbox.number - 1  # the last flush goes out with the last word only
        await self.settle(outbox)
        answer = await self._store.run(call)
        for _ in range(_MOST_LOSSES):
            if not _is_behind(answer):
                break
            answer = await self._again(outbox, answer, up_to=up_to)
            if answer == "ok":
                answer = await self._store.run(call)
        return answer

    async def settle(self, outbox: Outbox) -> None:
        """Write nothing more of an attempt, and wait for what of it is on its way."""
        self.drop(outbox)
        async with self._in_flight:
            pass

    def drop(self, outbox: Outbox) -> None:
        """Forget what an attempt that lost its generation has not written; what a later one has, stays."""
        for waiting in (self._dirty, self._quiet):
            if waiting.get(outbox.generation_id) is outbox:
                del waiting[outbox.generation_id]

    async def _flush(self) -> None:
        async with self._in_flight:
            self._woken.clear()
            self._hurried.clear()
            outboxes, self._dirty = self._dirty, {}
            if self._quiet and self.now_s() - self._quiet_since_s >= _QUIET_S:
                outboxes |= self._quiet
                self._quiet = {}
            if not outboxes:
                return
            flushes = [outbox.take() for outbox in outboxes.values()]
            try:
                answers = await self._store.run(attempts.append(flushes, keep_s=self._keep_s, owner=self._owner))
            except StoreError:  # one of them cannot be written: find out which
                answers = [await self._append_those([flush]) for flush in flushes]
            for index, (outbox, flush) in enumerate(zip(outboxes.values(), flushes, strict=True)):
                if _is_behind(answers[index]):
                    # Up to what was sent here: the engine may have taken more meanwhile, for its last word.
                    answers[index] = await self._again(outbox, answers[index], up_to=flush.number)
        for outbox, flush, answer in zip(outboxes.values(), flushes, answers, strict=True):
            if answer == "ok":
                outbox.written_tokens = flush.completion_tokens
            else:
                self.drop(outbox)
                self._on_lost(outbox, answer)

    async def _append_those(self, flushes: list[Flush]) -> str:
        """Write flushes of one attempt; what became of the last of them."""
        try:
            return (await self._store.run(attempts.append(flushes, keep_s=self._keep_s, owner=self._owner)))[-1]
        except StoreError as error:
            logger.error("events cannot be written: %s", error, extra={"generation_id": flushes[0].generation_id})
            return "unwritable"

    async def _again(self, outbox: Outbox, answer: str, *, up_to: int) -> str:
        """Write what Redis had answered and lost: under the same numbers, so that readers see no seam."""
        for _ in range(_MOST_LOSSES):
            known = int(answer.removeprefix(_BEHIND))
            missing = [flush for flush in outbox.since(known) if flush.number <= up_to]
            logger.warning(
                "Redis has lost %d flushes of generation %s, of which %d are here",
                up_to - known,
                outbox.generation_id,
                len(missing),
            )
            if not missing:
                break
            answer = await self._append_those(missing)
            if not _is_behind(answer):
                return answer
        return "behind"  # what readers have seen cannot be had again: another attempt begins where Redis is


def _is_behind(answer: object) -> bool:
    return isinstance(answer, str) and answer.startswith(_BEHIND)
