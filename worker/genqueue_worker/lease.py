"""Keep this worker's generations leased, and its generators known to producers.

A thread of its own with a connection of its own: a busy event loop must not let leases run out.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from genqueue import calls
from genqueue.errors import StoreError
from genqueue.settings import Settings
from genqueue.store import Store

logger = logging.getLogger(__name__)

_ANNOUNCE_S = 60.0


class LeaseKeeper:
    """Renews all leases in one call, three times in a lease's length.

    Args:
        settings: ``lease_s``, ``keep_s`` and the generators to announce.
        held: the (generation id, attempt) pairs to renew.
        on_lost: told (id, reason) for what the registry no longer counts as this worker's.
    """

    def __init__(
        self, settings: Settings, held: Callable[[], list[tuple[str, int]]], on_lost: Callable[[str, str], None]
    ) -> None:
        self._settings = settings
        self._held = held
        self._on_lost = on_lost
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
        self._store.close()

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
            self._stopped.wait(self._settings.lease_s / 3)

    def _round(self) -> None:
        if self._announced_s is None or time.monotonic() - self._announced_s >= _ANNOUNCE_S:
            facts: dict[str, dict[str, Any]] = {
                name: {"api_type": generator.api_type, "max_queue_depth": generator.max_queue_depth}
                for name, generator in self._settings.generators.items()
            }
            self._store.run(calls.announce(facts, keep_s=self._settings.keep_s))
            self._announced_s = time.monotonic()
        held = self._held()
        if held:
            for generation_id, reason in self._store.run(calls.renew(held, lease_s=self._settings.lease_s)).items():
                self._on_lost(generation_id, reason)
