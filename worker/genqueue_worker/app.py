"""The Celery app of a worker: ``celery -A genqueue_worker.app worker -P threads -c 256``.

Nothing is read at import: the settings are loaded when Celery first asks for its
configuration, and the engine starts with the worker.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, signals
from kombu import Exchange, Queue

from genqueue import calls, keys
from genqueue.address import read_address
from genqueue.errors import ConfigError, RedisUnavailableError, StoreError
from genqueue.settings import Settings, load_settings
from genqueue.store import Store
from genqueue_worker import broker, logs, tracing
from genqueue_worker.broker import Consumer
from genqueue_worker.control import Task, revoke_means_cancel
from genqueue_worker.engine import Engine
from genqueue_worker.health import CONSUMER, ENGINE, LEASES, Verdict, liveness, readiness
from genqueue_worker.lease import LeaseKeeper
from genqueue_worker.metrics import Now
from genqueue_worker.monitor import Monitor

logger = logging.getLogger(__name__)

_HAND_OVER_S = 8.0
"""How long a worker may take to leave, its drain aside; Compose and Kubernetes give it 10 s before they kill it."""

app = Celery("genqueue", include=["genqueue_worker.tasks"], set_as_current=False, task_cls=Task)


class Runtime:
    """What a worker process runs beside Celery."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = engine = Engine(settings, on_change=self.follow, look=self.look, show=self.show)
        self._leases = LeaseKeeper(settings, engine.owner, engine.held, engine.lose, engine.servers, engine.metrics)
        self.consumer: Consumer | None = None
        self._served: set[str] | None = None
        self._is_draining = False
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

    def announce(self) -> None:
        """Log what is to be known of it, now that Celery has set logging up."""
        if self._monitor is not None:
            self._monitor.announce()

    def show(self, generation_id: str, facts: dict[str, Any]) -> None:
        """Tell Flower more of a generation than Celery does; any thread may."""
        events: Any = self.consumer and self.consumer.event_dispatcher
        if events:
            events.send("task-started", uuid=generation_id, **facts)

    def consume(self, consumer: Consumer) -> None:
        """Celery is ready to take messages."""
        self.consumer = consumer
        # Who waits for a server that wakes up, for minutes maybe, shall not keep a generator of another one waiting.
        self.engine.places = consumer.pool.limit // 2
        self._served = {name.removeprefix(keys.QUEUE_PREFIX) for name in consumer.app.amqp.queues.consume_from}
        self.follow()

    def drain(self) -> None:
        """Celery takes no more work, and waits for what runs; after ``drain_s`` others go on with it."""
        if self._is_draining:
            return
        self._is_draining = True
        self.engine.drain()
        last = threading.Timer(self.settings.drain_s + _HAND_OVER_S, self._leave)
        last.daemon = True
        last.start()

    def _leave(self) -> None:
        """End at once: the hand-over, or a library, waits for a Redis that is away, and nobody else waits for that."""
        logger.warning("%d generations are left to others: they could not be handed over", len(self.engine.held()))
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
        servers = self.engine.servers()
        return readiness(self._leases.redis_trouble, servers, self._served, is_draining=self._is_draining)

    def look(self) -> Now:
        """What a scrape of ``/metrics`` finds."""
        swept = self._leases.swept
        return Now(
            in_flight=self.engine.in_flight(),
            servers=self.engine.servers(),
            queues=swept.queues if swept else None,
            dead_letters=swept.dead_letters if swept else None,
            silent_s=self._silent_s(),
            is_redis_up=not self._leases.redis_trouble,
            concurrency=self.consumer.pool.limit if self.consumer else None,
            dropped=broker.dropped,
        )

    def _silent_s(self) -> dict[str, float]:
        return {ENGINE: self.engine.pulse.age_s, CONSUMER: broker.pulse.age_s, LEASES: self._leases.pulse.age_s}

    def follow(self) -> None:
        """Have Celery consume the queues of those generators that can be asked, and everybody know."""
        if self.consumer is not None:
            self.consumer.leave({keys.queue(name) for name in self.engine.unavailable})
        self._leases.announce_soon()

    def stop(self) -> None:
        """Stop them all."""
        self._leases.stop()
        self.engine.stop()
        if self._monitor is not None:
            self._monitor.stop()


_runtime: Runtime | None = None
_end_traces: Callable[[], None] = lambda: None  # noqa: E731  # replaced at the start


def engine() -> Engine:
    """The engine of this worker process."""
    assert _runtime is not None, "tasks run in a started worker"
    return _runtime.engine


def worker_settings() -> Settings:
    """The settings, checked for what a worker needs.

    Raises:
        ConfigError: a value cannot work, or no generator is configured.
    """
    settings = load_settings()
    if not settings.generators:
        raise ConfigError(
            "no generators: write [generators.default] into genqueue.toml, or name a file in GENQUEUE_CONFIG"
        )
    return settings


@app.add_defaults
def _configuration() -> dict[str, Any]:
    try:
        settings = worker_settings()
    except ConfigError as error:
        raise SystemExit(f"genqueue: {error}") from None
    return celery_configuration(settings)


def celery_addresses(redis_url: str) -> dict[str, Any]:
    """Where Celery finds its broker and its results, in its words."""
    address = read_address(redis_url)
    # Survives garbage in a queue.  By name: a class is not JSON, which `inspect stats` must be.
    transport, results = "genqueue_worker.broker:Transport", ""
    scheme = "rediss" if address.tls else "redis"
    if address.master is not None:
        transport, scheme = "genqueue_worker.broker:SentinelTransport", "sentinel"
        results = "genqueue_worker.broker:SentinelBackend+"
    return {
        "broker_url": address.url(scheme),
        "result_backend": results + address.url(scheme),
        "broker_transport": transport,
        "broker_use_ssl": address.tls and dict(address.tls),
        "redis_backend_use_ssl": address.tls and dict(address.tls),
    }


def celery_configuration(settings: Settings) -> dict[str, Any]:
    """Every Celery dial that is not left alone, with its reason."""
    name = read_address(settings.redis_url).master
    master = {} if name is None else {"master_name": name}
    return {
        **celery_addresses(settings.redis_url),
        "broker_transport_options": {
            "priority_steps": list(keys.PRIORITIES),  # ten exact levels, as producers ring them
            "sep": keys.PRIORITY_SEPARATOR,
            "queue_order_strategy": "round_robin",  # no generator starves another of the same worker
            # A message is only a doorbell: the registry knows what was not claimed.  Without the
            # broker's own bookkeeping there is no restored duplicate, and four round trips less.
            "ack_emulation": False,
            # A Redis that is frozen, or whose host is gone, would be waited for without end, and its successor
            # behind Sentinels not be found.  A BRPOP without an answer is given up after 6 to 11 s.
            "socket_timeout": settings.redis_timeout_s,
            "socket_connect_timeout": settings.redis_timeout_s,
            "health_check_interval": 5,
            **master,  # Flower asks for it
        },
        "result_backend_transport_options": master,
        "broker_connection_retry_on_startup": True,  # a worker may start before its Redis
        "broker_connection_max_retries": None,  # and outlive it
        "task_queues": [
            Queue(keys.queue(name), Exchange(keys.queue(name)), keys.queue(name)) for name in settings.generators
        ],
        "worker_consumer": Consumer,  # publishes task events in batches
        "worker_pool": "threads",  # a task waits for the engine's loop; a process each would be waste
        "worker_concurrency": 256,  # generations at once; the model server batches them
        # Acked when received: genqueue's registry, not the broker, knows what is unfinished, and
        # late acks run a task twice after every lost connection (celery/celery#5935 and others).
        "task_acks_late": False,
        # Take no message before a thread is free for it, so that other hosts can.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # Nobody else's serializer: unpickling a message is running its sender's code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "result_expires": settings.result_ttl_s,  # Celery's own writes live as long as ours
        "result_backend_thread_safe": True,  # one backend for all threads, else two connections each
        "task_track_started": False,  # the log says `started`; a write a task saved
        "worker_send_task_events": True,  # Flower
        "worker_redirect_stdouts": False,  # what a library prints is no log line of ours
    }


@signals.celeryd_init.connect
def _begin(sender: str, instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Before anything is logged or warned of."""
    level, path = options.get("loglevel"), options.get("logfile")
    instance.app.log.setup(level, path, hostname=sender)
    if logs.is_json(load_settings().log_format, None if path else sys.__stderr__):
        # What Celery prints when it begins and on a signal would be no JSON.
        instance.quiet = True
        from celery.apps import worker as program  # whoever sends this signal has it

        say = program.safe_say
        program.safe_say = lambda words, file=sys.__stderr__: file is sys.__stdout__ or say(words, file)


@signals.setup_logging.connect
def _log(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    logs.set_up(load_settings().log_format, loglevel, logfile)
    # One line for each outcome, by genqueue_worker.report: not one for each HTTP call, nor Celery's own.
    for chatty, level in (
        ("httpx2", logging.WARNING),
        ("celery.worker.strategy", logging.WARNING),
        ("celery.worker.request", logging.WARNING),
        ("celery.app.trace", logging.CRITICAL),
    ):
        logging.getLogger(chatty).setLevel(level)


@signals.worker_init.connect
def _start(**_: Any) -> None:
    global _runtime, _end_traces
    logging.getLogger("celery.pool").setLevel(logging.INFO)  # at debug it writes out bodies, prompts among them
    # Celery's thread makes short round trips while the engine's works without a pause: at
    # Python's 5 ms it would wait for the interpreter longer than for Redis, each time.
    sys.setswitchinterval(0.0005)
    settings = worker_settings()
    _look_for_redis(settings)
    try:
        _runtime = Runtime(settings)
        _end_traces = tracing.set_up(_runtime.engine.owner)
    except ConfigError as error:
        raise SystemExit(f"genqueue: {error}") from None
    try:
        _runtime.start()
    except Exception as error:  # Celery would log it and go on without an engine
        raise SystemExit(f"genqueue: the engine cannot start: {type(error).__name__}: {error}") from error
    revoke_means_cancel(_runtime.engine.cancel)


def _look_for_redis(settings: Settings) -> None:
    """A Redis that is away may come; one that refuses our credentials, or whose certificate we refuse, ends the start.

    Celery would say so once a second for ever.
    """
    store = Store(settings.redis_url, settings.redis_timeout_s)
    try:
        store.run(calls.read_workers())
    except RedisUnavailableError as error:
        logger.warning("starting all the same: %s", error)
    except StoreError as error:
        raise SystemExit(f"genqueue: {error}") from None
    finally:
        store.close()


@signals.celeryd_after_setup.connect
def _announce(**_: Any) -> None:
    if _runtime is not None:
        _runtime.announce()


@signals.worker_ready.connect
def _consume(sender: Consumer, **_: Any) -> None:
    if _runtime is not None:
        _runtime.consume(sender)


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    """SIGTERM."""
    if _runtime is not None:
        _runtime.drain()


@signals.worker_shutdown.connect
def _stop(**_: Any) -> None:
    global _runtime
    if _runtime is not None:
        _runtime.stop()
        _runtime = None
        _end_traces()


@signals.task_rejected.connect
def _answer_unwanted(message: Any, exc: Exception, **_: Any) -> None:
    """A message became no task of ours: its sender gets an answer all the same."""
    if _runtime is None:
        return
    generation_id = message.headers["id"]
    queue = str(message.delivery_info["routing_key"])
    generator = queue.removeprefix(keys.QUEUE_PREFIX) or "default"
    if isinstance(exc, broker.ExpiredError):
        _runtime.engine.expire(generation_id, generator)
    else:
        reason = str(exc) if isinstance(exc, broker.Refusal) else type(exc).__name__
        _runtime.engine.refuse(generation_id, generator, f"the message is no task: {reason}")
