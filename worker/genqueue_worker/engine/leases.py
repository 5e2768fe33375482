"""Keep this worker's generations leased, look after those that nobody holds, make its generators known.

A thread of its own with a connection of its own: a busy event loop must not let leases run out.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Set
from datetime import UTC, datetime
from typing import Any

from genqueue.connection.store import Store, T
from genqueue.discovery import location_digests
from genqueue.errors import RedisUnavailableError, StoreError
from genqueue.registry import attempts as registry_attempts
from genqueue.registry import endings, fleet, script, sweeping
from genqueue.registry.attempts import End
from genqueue.registry.fleet import Health
from genqueue.registry.sweeping import Found, Swept
from genqueue.settings import Settings
from genqueue_worker.observe.health import Pulse
from genqueue_worker.observe.metrics import Metrics
from genqueue_worker.observe.report import Report
from genqueue_worker.upstream.errors.unreachable import no_server

logger = logging.getLogger(__name__)

_ANNOUNCE_S = 10.0
_FORGOTTEN_S = 30.0
_STALE_AFTER = 2.0
"""In leases: Redis is asked three times in one."""


class Duty:
    """Something that is to be done again and again, whose failures are told once each time that they begin.

    Args:
        do: does it.
        failure: what is wrong while it fails, in words.
        recovery: what no longer is.
    """

    def __init__(self, do: Callable[[], None], failure: str, recovery: str) -> None:
        self._do = do
        self._failure = failure
        self._recovery = recovery
        self._fails = False

    def does(self) -> bool:
        """Do it; False where Redis did not answer: then nothing else can be done either."""
        try:
            self._do()
        except StoreError as error:
            if not self._fails:
                logger.warning("%s: %s", self._failure, error)
            self._fails = True
            return not isinstance(error, RedisUnavailableError)
        except Exception:  # a defect; but without its thread every lease of this worker would run out
            logger.exception("%s", self._failure)
            return True
        if self._fails:
            logger.info("%s", self._recovery)
        self._fails = False
        return True


class LeaseKeeper:
    """Renews all leases in one call, three times in a lease's length, and sweeps in another.

    The sweep is what makes a doorbell more than a hope: a generation whose worker died, whose
    message was lost with one, whose backoff is over or whose queue's list was deleted is rung
    for again.  After an outage the holders renew first: who was cut off waits one lease
    before sweeping.

    Args:
        settings: ``lease_s``, ``keep_s`` and the generators to announce.
        owner: the worker's name in the registry.
        held: the (generation id, attempt) pairs to renew.
        on_lost: told (id, attempt, reason) for what the registry no longer counts as this worker's.
        servers: for each generator that is served what is known of its servers, to announce.
        metrics: told of each round trip.

    Attributes:
        pulse: when a round, or a call in one, last ended.
    """

    def __init__(
        self,
        settings: Settings,
        owner: str,
        held: Callable[[], list[tuple[str, int]]],
        on_lost: Callable[[str, int, str], None],
        servers: Callable[[], dict[str, list[dict[str, Any]]]],
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self.pulse = Pulse()
        self._answered = Pulse()
        self._came_back = Pulse()
        self._troubles = {"": "not asked yet"}  # by the call that Redis refuses; "" is no answer to any
        self._swept: tuple[Pulse, Swept] | None = None
        self._settings = settings
        self._owner = owner
        self._held = held
        self._on_lost = on_lost
        self._servers = servers
        self._store = Store(settings.redis_url, settings.redis_timeout_s)
        self._stopped = threading.Event()
        self._announced_s: float | None = None
        self._unanswered: list[End] = []
        self._is_behind = False
        self._round_ends_s = 0.0
        self._thread = threading.Thread(target=self._keep, name="genqueue-leases", daemon=True)

    def start(self) -> None:
        """Begin; Redis need not be there yet."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; what is still held is up for others after ``lease_s``."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # it will be forgotten all the same
            self._store.run(fleet.retire(self._owner))
        self._store.close()

    def announce_soon(self) -> None:
        """Something that is announced has changed; any thread may say so."""
        self._announced_s = None

    @property
    def redis_trouble(self) -> str:
        """Why Redis is not to be counted on; "" if it answers.  Any thread may ask."""
        silent_s, trouble = self._answered.age_s, next(iter(self._troubles.values()), "")
        if not trouble and silent_s > _STALE_AFTER * self._settings.lease_s + self._settings.redis_timeout_s:
            return f"no answer for {silent_s:.1f} s"
        return trouble

    @property
    def redis_up_s(self) -> float:
        """For how long Redis has answered; 0 while it does not.  Any thread may ask."""
        return 0.0 if self.redis_trouble else self._came_back.age_s

    @property
    def swept(self) -> Swept | None:
        """What the last sweep was told; None once that is old.  Any thread may ask."""
        if self._swept is None or self._swept[0].age_s > _STALE_AFTER * self._settings.lease_s:
            return None
        return self._swept[1]

    def _run(self, call: script.Call[T]) -> T:
        try:
            with self._metrics.round_trip(call):
                answer = self._store.run(call)
        except StoreError as error:
            name = "" if isinstance(error, RedisUnavailableError) else call.name
            self._troubles = {**self._troubles, name: str(error)}
            raise
        finally:
            self.pulse.beat()
        if self._troubles:  # what else it refuses, it still does
            self._troubles = {name: words for name, words in self._troubles.items() if name not in {"", call.name}}
            if not self._troubles:
                self._came_back.beat()
        self._answered.beat()
        return answer

    def _keep(self) -> None:
        duties = [
            Duty(self._renew, "leases cannot be renewed", "leases are renewed again"),
            Duty(self._sweep, "lost generations cannot be looked for", "lost generations are looked for again"),
            Duty(self._announce_in_time, "this worker cannot be announced", "this worker is announced again"),
        ]
        while not self._stopped.is_set():
            self._is_behind = False
            self._round_ends_s = time.monotonic() + self._settings.lease_s / 3
            # A Redis that is away is away for all of them; what it refuses one of them it may grant the next.
            if not all(duty.does() for duty in duties):
                self._announced_s = None  # it may come back empty
            self.pulse.beat()
            if not self._is_behind:
                self._stopped.wait(self._settings.lease_s / 3)

    def _renew(self) -> None:
        held = self._held()
        if not held:
            return
        settings = self._settings
        renewal = registry_attempts.renew(held, lease_s=settings.lease_s, keep_s=settings.keep_s, owner=self._owner)
        attempts = dict(held)
        for generation_id, reason in self._run(renewal).items():
            self._on_lost(generation_id, attempts[generation_id], reason)

    def _announce_in_time(self) -> None:
        announced_s = self._announced_s  # another thread may say that it is due
        if announced_s is None or time.monotonic() - announced_s >= _ANNOUNCE_S:
            self._announce()

    def _announce(self) -> None:
        generators, keep_s = self._settings.generators, self._settings.keep_s
        facts: dict[str, dict[str, Any]] = {
            name: {"api_type": generator.api_type, "max_queue_depth": generator.max_queue_depth}
            for name, generator in generators.items()
        }
        self._announced_s = time.monotonic()
        servers = self._servers()
        where = {name: location_digests(generators[name]) for name in servers}
        self._run(fleet.announce(facts, self._owner, servers, worker_s=_FORGOTTEN_S, keep_s=keep_s, places=where))

    def _sweep(self) -> None:
        """Look for what nobody holds, again and again while there is more; but not longer than leases can wait."""
        settings = self._settings
        while True:
            swept = self._run(
                sweeping.sweep(list(settings.generators), lease_s=settings.lease_s, keep_s=settings.keep_s)
            )
            self._swept, found = (Pulse(), swept), swept.found
            if found.astray:
                logger.info("rang again for %d generations that nobody looked after", len(found.astray))
            self._end(found)
            if not swept.has_more or self._stopped.is_set():
                return
            if time.monotonic() >= self._round_ends_s:
                self._is_behind = True  # leases first
                return

    def _end(self, found: Found) -> None:
        """End what was found that nobody can run, or that is too late."""
        settings, now = self._settings, datetime.now(UTC).isoformat()
        why = self._unreached({each.generator for each in found.expired if not each.met})
        ends = [endings.overdue(each, date_done=now, trouble=why.get(each.generator, "")) for each in found.expired]
        for each in found.incomplete:
            reason = endings.incomplete(each.missing)
            ends.append(endings.failed(each.generation_id, each.generator, None, reason, date_done=now))
        # What was ended and not answered is asked for again, or nobody would tell of it: to end it twice does no harm.
        ends = self._unanswered = list({end.generation_id: end for end in (*self._unanswered, *ends)}.values())
        if not ends:
            return
        call = registry_attempts.finish_all(
            ends, log_ttl_s=settings.log_ttl_s, result_ttl_s=settings.result_ttl_s, keep_s=settings.keep_s
        )
        try:
            answers = self._run(call)
        except RedisUnavailableError:
            raise
        except StoreError:  # what is refused now, a sweep finds again
            self._unanswered = []
            raise
        self._unanswered = []
        for end, answer in zip(ends, answers, strict=True):
            if answer == "ok" and end.outcome is not None:
                self._metrics.ended(end.generator, end.outcome.error)
                Report(end.generation_id, end.generator, self._owner).tell(end.outcome.error)

    def _unreached(self, generators: Set[str]) -> dict[str, str]:
        """Why no worker can reach a server of these generators, by generator; only of those of which that is so."""
        if not generators:
            return {}
        try:
            workers = self._run(fleet.read_workers())
        except RedisUnavailableError:
            raise
        except StoreError:  # an end without its cause is better than none
            return {}
        known: dict[str, list[dict[str, Any]]] = {name: [] for name in generators}
        for worker in workers:
            for name in generators & worker.generators.keys():
                known[name] += worker.generators[name]
        return {
            name: no_server(name, ((server["address"], server["trouble"]) for server in servers))
            for name, servers in known.items()
            if servers and all(server["health"] == Health.DOWN for server in servers)
        }
