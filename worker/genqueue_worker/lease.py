"""Keep this worker's generations leased, look after those that nobody holds, make its generators known.

A thread of its own with a connection of its own: a busy event loop must not let leases run out.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from genqueue import calls, outcome
from genqueue.calls import Swept
from genqueue.errors import StoreError
from genqueue.places import places
from genqueue.settings import Settings
from genqueue.store import Store, T
from genqueue_worker.health import Pulse
from genqueue_worker.metrics import Metrics
from genqueue_worker.report import Report

logger = logging.getLogger(__name__)

_ANNOUNCE_S = 10.0
_FORGOTTEN_S = 30.0
_STALE_AFTER = 2.0
"""In leases: Redis is asked three times in one."""


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
        self._trouble = "not asked yet"
        self._swept: tuple[Pulse, Swept] | None = None
        self._settings = settings
        self._owner = owner
        self._held = held
        self._on_lost = on_lost
        self._servers = servers
        self._store = Store(settings.redis_url, settings.redis_timeout_s)
        self._stopped = threading.Event()
        self._announced_s: float | None = None
        self._thread = threading.Thread(target=self._keep, name="genqueue-leases", daemon=True)

    def start(self) -> None:
        """Begin; Redis need not be there yet."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; what is still held is up for others after ``lease_s``."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # it will be forgotten all the same
            self._store.run(calls.retire(self._owner))
        self._store.close()

    def announce_soon(self) -> None:
        """Something that is announced has changed; any thread may say so."""
        self._announced_s = None

    @property
    def redis_trouble(self) -> str:
        """Why Redis is not to be counted on; "" if it answers.  Any thread may ask."""
        silent_s = self._answered.age_s
        if not self._trouble and silent_s > _STALE_AFTER * self._settings.lease_s + self._settings.redis_timeout_s:
            return f"no answer for {silent_s:.1f} s"
        return self._trouble

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

    def _run(self, call: calls.Call[T]) -> T:
        try:
            with self._metrics.round_trip(call):
                answer = self._store.run(call)
        except StoreError as error:
            self._trouble = str(error)
            raise
        finally:
            self.pulse.beat()
        if self._trouble:
            self._came_back.beat()
        self._trouble = ""
        self._answered.beat()
        return answer

    def _keep(self) -> None:
        away = False
        while not self._stopped.is_set():
            try:
                self._round()
                if away:
                    logger.info("leases are renewed again")
                away = False
            except StoreError as error:
                if not away:
                    logger.warning("leases cannot be renewed: %s", error)
                away = True
                self._announced_s = None  # it may come back empty
            except Exception:  # a defect; but without this thread every lease of this worker would run out
                logger.exception("leases: a round failed")
            self.pulse.beat()
            self._stopped.wait(self._settings.lease_s / 3)

    def _round(self) -> None:
        held = self._held()
        if held:  # first: it is what cannot wait, whatever of the rest Redis refuses
            settings = self._settings
            renewal = calls.renew(held, lease_s=settings.lease_s, keep_s=settings.keep_s, owner=self._owner)
            attempts = dict(held)
            for generation_id, reason in self._run(renewal).items():
                self._on_lost(generation_id, attempts[generation_id], reason)
        self._sweep()
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
        where = {name: places(generators[name]) for name in servers}
        self._run(calls.announce(facts, self._owner, servers, worker_s=_FORGOTTEN_S, keep_s=keep_s, places=where))

    def _sweep(self) -> None:
        settings = self._settings
        swept = self._run(calls.sweep(list(settings.generators), lease_s=settings.lease_s, keep_s=settings.keep_s))
        self._swept, found = (Pulse(), swept), swept.found
        if found.astray:
            logger.info("rang again for %d generations that nobody looked after", len(found.astray))
        for overdue in found.expired:
            end = outcome.overdue(overdue, date_done=datetime.now(UTC).isoformat())
            answer = self._run(
                calls.finish(
                    end, log_ttl_s=settings.log_ttl_s, result_ttl_s=settings.result_ttl_s, keep_s=settings.keep_s
                )
            )
            if answer == "ok":
                self._metrics.ended(overdue.generator, "expired")
                Report(overdue.generation_id, overdue.generator, self._owner).tell("expired")
