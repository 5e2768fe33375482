"""What producers and workers say to Redis, in a word or two."""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import redis

from genqueue import keys
from genqueue.registry import attempts, endings, partial, reading, submitting, sweeping
from genqueue.registry import script as registry_script
from genqueue.registry.attempts import Claim, End, Flush, NotClaimed
from genqueue.registry.lifecycle import State
from genqueue.registry.script import Call
from genqueue.registry.submitting import Accepted
from genqueue.registry.sweeping import Found, Overdue
from genqueue.wire.events import Token, chunk_body
from genqueue.wire.request import read_request
from genqueue.wire.result import GenerationResult, Outcome

KEEP_S = 600
LOG_TTL_S = 60
RESULT_TTL_S = 120
LEASE_S = 30.0
DONE = "2026-01-01T00:00:00+00:00"


class Registry:
    """Says what producers and workers say, in a word or two.

    Attributes:
        now_ms: Redis's clock, in epoch milliseconds.
        keep_s: What the next who speaks has set.
    """

    def __init__(self, run: Callable[[Call[Any]], Any], raw: redis.Redis) -> None:
        self.run = run
        self.raw = raw
        self.keep_s = KEEP_S

    @property
    def now_ms(self) -> float:
        seconds, microseconds = self.raw.time()
        return seconds * 1e3 + microseconds / 1e3

    def submit(
        self,
        generation_id: str | None = None,
        *,
        idempotency_key: str | None = None,
        max_queue_depth: int | None = -1,
        ring: bool = True,
        **fields: Any,
    ) -> str:
        """Submit; the id that was accepted."""
        accepted: Accepted = self.run(
            submitting.submit(
                generation_id or str(uuid.uuid4()),
                read_request({"prompt": "What's NLP?", **fields}),
                keep_s=self.keep_s,
                idempotency_key=idempotency_key,
                idempotency_ttl_s=RESULT_TTL_S,
                max_queue_depth=max_queue_depth,
                ring=ring,
            )
        )
        return accepted.generation_id

    def claim(
        self, generation_id: str, owner: str = "worker-1", *, generator: str = "default", lease_s: float = LEASE_S
    ) -> Claim | NotClaimed:
        answer: Claim | NotClaimed = self.run(
            attempts.claim(generation_id, generator, owner=owner, lease_s=lease_s, keep_s=self.keep_s)
        )
        return answer

    def running(self, **fields: Any) -> str:
        """A generation that worker-1 has claimed."""
        generation_id = self.submit(**fields)
        assert isinstance(self.claim(generation_id), Claim)
        return generation_id

    def lose_lease(self, generation_id: str) -> None:
        """Let the lease have run out a millisecond ago, as if its holder had been silent for so long."""
        self.raw.zadd(keys.LEASES, {generation_id: self.now_ms - 1})

    def append(self, *flushes: Flush) -> list[str]:
        answers: list[str] = self.run(attempts.append(flushes, keep_s=self.keep_s))
        return answers

    def finish(self, end: End) -> str:
        answer: str = self.run(attempts.finish(end, log_ttl_s=LOG_TTL_S, result_ttl_s=RESULT_TTL_S, keep_s=self.keep_s))
        return answer

    def release(
        self, last: Flush, *, delay_s: float = 0.0, failure: str | None = None, is_charged: bool = False
    ) -> str:
        """Give a running generation back, as its worker does after an error (``failure``) or at its end."""
        answer: str = self.run(
            attempts.release(
                last,
                "default",
                5,
                delay_s=delay_s,
                failure=None if failure is None else {"attempt": last.attempt, "message": failure},
                is_charged=is_charged,
                keep_s=self.keep_s,
            )
        )
        return answer

    def sweep(self, *generators: str, last_s: float = LEASE_S / 3) -> Found:
        """What a sweeper that serves ``default`` (or ``generators``) finds, ``last_s`` after the one before it."""
        then_s = self.now_ms / 1e3 - last_s
        self.raw.hset(keys.SWEPT, mapping={field: then_s for field in ("at", *self.turns())})
        call = sweeping.sweep(generators or ("default",), lease_s=LEASE_S, keep_s=self.keep_s)
        found: Found = self.run(call).found
        return found

    def turns(self) -> list[str]:
        """The fields that say when each queue was last looked through."""
        return [field.decode() for field in self.raw.hkeys(keys.SWEPT) if field.startswith(b"queue ")]

    def doorbells(self, priority: int = 5) -> list[str]:
        """The ids whose messages wait in Celery's list of ``default``, the next one first."""
        waiting = self.raw.lrange(keys.doorbell("default", priority), 0, -1)
        return [json.loads(message)["headers"]["id"] for message in reversed(waiting)]

    def finished(self, generation_id: str, text: str = "It is.", attempt: int = 1, last: Flush | None = None) -> End:
        meta = {"finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        last = last or Flush(generation_id, attempt, 99, 2, "", "", [])
        return endings.finished(
            generation_id, "default", last, GenerationResult(replies=[text], meta=[meta]), date_done=DONE
        )

    def failed(self, generation_id: str, attempt: int | None = 1, error: str = "failed", text: str = "") -> End:
        last = None if attempt is None else Flush(generation_id, attempt, 99, 2, text, "", [])
        return endings.failed(generation_id, "default", last, Outcome(error=error, message="words"), date_done=DONE)

    def expired(self, generation_id: str, attempt: int = 0, holder: str | None = None) -> End:
        """The end that a sweeper gives what passed its deadline while nobody had it."""
        return endings.overdue(Overdue(generation_id, "default", attempt, holder, []), date_done=DONE)

    def cancelled(self, generation_id: str) -> End:
        return endings.cancelled(generation_id, "default", date_done=DONE)

    def into(self, state: State) -> str:
        """A generation in that state."""
        generation_id = self.submit()
        if state is not State.QUEUED:
            self.claim(generation_id)
        ends = {State.FINISHED: self.finished, State.FAILED: self.failed, State.CANCELLED: self.cancelled}
        if state in ends:
            assert self.finish(ends[state](generation_id)) == "ok"
        return generation_id

    def lost(self, reason: str) -> str:
        """A generation whose first attempt may write no more, for that reason: ``gone``, ``superseded`` or its end."""
        if reason == "gone":
            return "nobody's"
        if reason != "superseded":
            return self.into(State(reason))
        generation_id = self.running()
        self.lose_lease(generation_id)
        self.claim(generation_id, "worker-2")
        return generation_id

    def hash(self, generation_id: str) -> dict[str, str]:
        stored = self.raw.hgetall(keys.generation(generation_id))
        return {name.decode(): value.decode() for name, value in stored.items()}

    def events(self, generation_id: str) -> list[str]:
        """The log in short: ``seq.attempt type text``."""
        log = self.run(reading.read_log(generation_id, 0))
        return [f"{event.seq}.{event.attempt} {event.type} {getattr(event, 'text', '')}".strip() for event in log]

    def text(self, generation_id: str) -> str:
        found: str = self.run(reading.read_text(generation_id))
        return found

    def reasoning(self, generation_id: str) -> str:
        found: partial.PartialOutput = self.run(reading.read_said(generation_id))
        return found.reasoning

    def everything(self) -> dict[bytes, bytes]:
        """All keys and what they hold, to see that nothing changed."""
        return {key: self.raw.dump(key) for key in self.raw.scan_iter()}


def flush(
    generation_id: str, number: int, texts: Sequence[str] = (), *, attempt: int = 1, mark: str = "", tokens: int = 0
) -> Flush:
    """A flush of one chunk for each text."""
    bodies = [chunk_body(text, [Token(1, text, None, False)]) for text in texts]
    tokens = tokens or len(texts)
    return Flush(generation_id, attempt, number, tokens, "".join(texts), mark, bodies, solid_tokens=tokens)


def keys_of(call: registry_script.Call[Any]) -> list[str]:
    return list(call.arguments[1 : 1 + int(call.arguments[0])])
