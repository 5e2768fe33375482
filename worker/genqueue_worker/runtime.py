"""What a worker process runs beside Celery: the engine, its leases, and what shows how they are."""

import contextlib
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Container
from typing import Any

from genqueue import keys
from genqueue.settings import Settings, mistyped
from genqueue.terminal import one_line
from genqueue_worker.broker import transport
from genqueue_worker.broker.consumer import Consumer
from genqueue_worker.broker.pool import green_pool, refusal
from genqueue_worker.engine.leases import LeaseKeeper
from genqueue_worker.observe.health import CONSUMER, ENGINE, LEASES, Verdict, liveness, readiness
from genqueue_worker.observe.metrics import Now
from genqueue_worker.observe.monitor import Monitor
from genqueue_worker.observe.report import FACTS

try:
    from genqueue_worker.engine.loop import Engine
except ImportError as error:
    # By -P Celery has green threads stand in before it imports anything, and not every library can be imported then.
    if "celery.bin.worker" in sys.modules and (name := green_pool(sys.modules)):
        raise SystemExit(one_line(f"genqueue: {refusal(name)}")) from error
    raise


logger = logging.getLogger(__name__)

_HAND_OVER_S = 8.0
"""How long a worker may take to leave, its drain aside; Compose and Kubernetes give it 10 s before they kill it."""


class LastResort:
    """Ends what takes longer than it may; its thread is there from the start, whatever there is none of later.

    Args:
        act: called, on that thread, once a limit has passed.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        # Of all ways to tell a thread the one that a signal's handler may use at any moment.
        self._due_s: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="genqueue-last-resort", daemon=True)

    def start(self) -> None:
        """Begin to wait for a limit."""
        self._thread.start()

    def within(self, limit_s: float) -> None:
        """Set a limit; of several the earliest counts."""
        self._due_s.put(time.monotonic() + limit_s)

    def disarm(self) -> None:
        """It is done: no limit counts any more, and there is none to come."""
        self._due_s.put(None)

    def _watch(self) -> None:
        due_s = math.inf
        while (left_s := due_s - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                limit_s = self._due_s.get(timeout=None if due_s == math.inf else left_s)
                if limit_s is None:
                    return
                due_s = min(due_s, limit_s)
        self._act()


class Runtime:
    """What a worker process runs beside Celery.

    Args:
        settings: the worker's.
        consumable: the names of the queues that Celery consumes once it is ready.
    """

    def __init__(self, settings: Settings, consumable: Callable[[], Container[str]]) -> None:
        self.settings = settings
        self._consumable = consumable
        self.consumer: Consumer | None = None
        self.engine = engine = Engine(
            settings,
            is_served=self.is_served,
            on_change=self.follow,
            on_room=self.take,
            backlog=self.backlog,
            look=self.look,
            show=self.show,
        )
        self._leases = LeaseKeeper(settings, engine.owner, engine.held, engine.lose, self.endpoints, engine.metrics)
        self._is_draining = False
        self._last_resort = LastResort(self.exit_now)
        self._monitor: Monitor | None = None
        if settings.monitor_port is not None:
            probes = {"/livez": self.is_alive, "/readyz": self.is_ready}
            self._monitor = Monitor(settings.monitor_host, settings.monitor_port, engine.metrics.registry, probes)

    def start(self) -> None:
        """Start the loop, the lease thread and what shows how they are."""
        if self._monitor is not None:
            self._monitor.start()
        self.engine.start()
        self._leases.start()
        self._last_resort.start()

    def announce(self) -> None:
        """Log what is to be known of it, now that Celery has set logging up."""
        for variable, like in mistyped(os.environ).items():
            logger.warning("nobody reads the variable %s; is it %s?", variable, like)
        for name, variables in self.settings.missing_tokens(os.environ).items():
            logger.warning("%s: no variable holds its token: %s", name, ", ".join(variables))
        if self._monitor is not None:
            self._monitor.announce()

    def show(self, generation_id: str, facts: dict[str, Any], event: str = FACTS) -> None:
        """Tell Flower of a generation what Celery does not; any thread may."""
        events: Any = self.consumer and self.consumer.event_dispatcher
        if events:
            events.send(event, uuid=generation_id, **facts)

    def consume(self, consumer: Consumer) -> None:
        """Celery is ready to take messages."""
        self.consumer = consumer
        # Who waits for a server that wakes up, for minutes maybe, shall not keep a generator of another one waiting.
        self.engine.places = consumer.pool.limit // 2
        consumer.on_order = self._leases.announce_soon
        consumer.unwanted = lambda: {keys.queue(name) for name in self.engine.unavailable}
        self.follow()

    def is_served(self, generator: str) -> bool:
        """Whether Celery consumes its queue, or would if it had an endpoint; any thread may ask."""
        return keys.queue(generator) in (self.consumer.served if self.consumer else self._consumable())

    def endpoints(self) -> dict[str, list[dict[str, Any]]]:
        """Those of the generators that are served, as :meth:`Engine.servers` has them; any thread may ask."""
        return {name: endpoints for name, endpoints in self.engine.servers().items() if self.is_served(name)}

    def drain(self, at_once: bool = False) -> None:
        """Take no more work; what still runs after ``drain_s``, or ``at_once``, is handed over to others."""
        within_s = 0.0 if at_once else self.settings.drain_s
        self._is_draining = True
        self.engine.drain(within_s)
        self._last_resort.within(within_s + _HAND_OVER_S)

    def exit_now(self) -> None:
        """End at once: the hand-over, or a library, waits for a Redis that is away, and nobody else waits for that."""
        logger.warning("%d generations are left to others: they could not be handed over", len(self.engine.held()))
        with contextlib.suppress(OSError):  # a full disk
            logging.shutdown()
        os._exit(1)

    def is_alive(self) -> Verdict:
        """What ``/livez`` answers."""
        return liveness(
            self._silent_s(),
            redis_up_s=self._leases.redis_up_s,
            redis_timeout_s=self.settings.redis_timeout_s,
            is_draining=self._is_draining,
        )

    def is_ready(self) -> Verdict:
        """What ``/readyz`` answers."""
        return readiness(
            self._leases.redis_trouble,
            self.endpoints(),
            is_started=self.consumer is not None,
            is_draining=self._is_draining,
        )

    def look(self) -> Now:
        """What a scrape of ``/metrics`` finds."""
        swept = self._leases.swept
        return Now(
            in_flight=self.engine.in_flight(),
            endpoints=self.endpoints(),
            queues=swept.queues if swept else None,
            dead_letters=swept.dead_letters if swept else None,
            silent_s=self._silent_s(),
            is_redis_up=not self._leases.redis_trouble,
            concurrency=self.consumer.pool.limit if self.consumer else None,
            dropped=transport.dropped,
        )

    def _silent_s(self) -> dict[str, float]:
        return {ENGINE: self.engine.pulse.age_s, CONSUMER: transport.pulse.age_s, LEASES: self._leases.pulse.age_s}

    def take(self) -> None:
        """Have Celery consume the queues of those generators that can be asked."""
        if self.consumer is not None:
            self.consumer.follow_soon()

    def backlog(self, generator: str) -> int:
        """How many generations wait for a generator, as the last sweep was told."""
        swept = self._leases.swept
        return max(swept.queues[generator].depth, swept.queues[generator].messages) if swept else 0

    def follow(self) -> None:
        """The same, and have everybody know."""
        self.take()
        self._leases.announce_soon()

    def stop(self) -> None:
        """Stop them all."""
        self._last_resort.within(_HAND_OVER_S)
        self._leases.stop()
        self.engine.stop()
        if self._monitor is not None:
            self._monitor.stop()

    def left(self) -> None:
        """Nothing of it is left to end: the program it ran in may go on."""
        self._last_resort.disarm()
