"""What Redis must do for us is asked of both: fakeredis, which users test with, and a real server."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from genqueue import keys
from genqueue.connection.shared import LoopThread
from genqueue.connection.store import AsyncStore, Store
from genqueue.registry import attempts, endings, partial, reading, submitting, sweeping
from genqueue.registry.attempts import Claim, End, Flush, NotClaimed
from genqueue.registry.lifecycle import State
from genqueue.registry.script import Call
from genqueue.registry.submitting import Accepted
from genqueue.registry.sweeping import Found, Overdue
from genqueue.wire.events import Token, chunk_body
from genqueue.wire.request import read_request
from genqueue.wire.result import GenerationResult, Outcome
from genqueue_ops.local_redis import LocalRedis, local_redis

from ..support.declared_keys import DeclaredKeys

KEEP_S = 600
LOG_TTL_S = 60
RESULT_TTL_S = 120
LEASE_S = 30.0
DONE = "2026-01-01T00:00:00+00:00"


@pytest.fixture(scope="session")
def fake_redis() -> Iterator[LocalRedis]:
    """fakeredis over TCP in a process of its own, so that sync and async clients share one database."""
    with local_redis("fakeredis") as server:
        yield server


@pytest.fixture(params=["fakeredis", "redis"])
def redis_server(request: pytest.FixtureRequest) -> LocalRedis:
    """Each server in turn; ``redis_url`` follows."""
    server: LocalRedis = request.getfixturevalue("fake_redis" if request.param == "fakeredis" else "real_redis")
    return server


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client, to look at what was stored."""
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    """A loop for the asynchronous shell, so that one test serves both."""
    thread = LoopThread("contract")
    yield thread
    thread.end(asyncio.sleep(0))


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


@pytest.fixture
def declared_keys(redis_server: LocalRedis, redis_url: str) -> Iterator[DeclaredKeys | None]:
    """On a real Redis scripts may touch what they declare, and nothing else; the fake one knows no users."""
    if redis_server.kind.startswith("fakeredis"):
        yield None
        return
    guard = DeclaredKeys(redis_url)
    yield guard
    refused = guard.refused()
    guard.close()
    assert refused == [], "a script touched what it does not declare"


@pytest.fixture(params=["sync", "async"])
def run(
    request: pytest.FixtureRequest, redis_url: str, loop_thread: LoopThread, declared_keys: DeclaredKeys | None
) -> Iterator[Callable[..., Any]]:
    """Each shell of the store in turn."""
    url = redis_url if declared_keys is None else declared_keys.url
    if request.param == "sync":
        store = Store(url, 5.0)
        yield _permitting(declared_keys, store.run)
        store.close()
    else:
        other = AsyncStore(url, 5.0)
        yield _permitting(declared_keys, lambda call: loop_thread.call(other.run(call)))
        loop_thread.call(other.close())


def _permitting(declared_keys: DeclaredKeys | None, run: Callable[..., Any]) -> Callable[..., Any]:
    def permitted(call: Call[Any]) -> Any:
        if declared_keys is not None:
            declared_keys.permit(call)
        return run(call)

    return permitted


@pytest.fixture
def writer(redis_url: str, raw: redis.Redis, declared_keys: DeclaredKeys | None) -> Iterator[Registry]:
    """The registry through one shell, for tests of those who read it."""
    store = Store(redis_url if declared_keys is None else declared_keys.url, 5.0)
    yield Registry(_permitting(declared_keys, store.run), raw)
    store.close()


@pytest.fixture
def registry(run: Callable[..., Any], raw: redis.Redis) -> Iterator[Registry]:
    """An empty registry; whatever a test did to it, every key but Celery's queues has a TTL."""
    yield Registry(run, raw)
    lasting = [key for key in raw.scan_iter() if raw.ttl(key) == -1]
    assert [key for key in lasting if not key.startswith(keys.QUEUE_PREFIX.encode())] == []


only_real_redis = pytest.mark.parametrize("redis_server", ["redis"], indirect=True)
"""For what fakeredis does not have: CLIENT LIST, CLIENT KILL."""


def until(condition: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What ``condition`` gives as soon as that is true; fails if it is not in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.005)
    return found
