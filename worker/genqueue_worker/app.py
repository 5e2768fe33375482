"""The Celery app of a worker: ``celery -A genqueue_worker.app worker -P threads -c 256``.

Nothing is read at import: the settings are loaded when Celery first asks for its
configuration, and the engine starts with the worker.
"""

import logging
import sys
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery, signals

from genqueue import keys
from genqueue.acl import Role, permission_checks
from genqueue.connection.address import read_address
from genqueue.connection.store import Store
from genqueue.errors import ConfigError, RedisUnavailableError, StoreError
from genqueue.settings import Settings, load_settings
from genqueue.terminal import one_line
from genqueue_worker.broker import checks
from genqueue_worker.broker.config import celery_configuration
from genqueue_worker.broker.consumer import Consumer
from genqueue_worker.broker.pool import choose_pool
from genqueue_worker.broker.remote_control import Task, limit_orders
from genqueue_worker.observe import logs, tracing
from genqueue_worker.resources import open_standard_streams
from genqueue_worker.runtime import Runtime

logger = logging.getLogger(__name__)

app = Celery("genqueue", include=["genqueue_worker.tasks"], set_as_current=False, task_cls=Task)


_runtime: Runtime | None = None
_end_traces: Callable[[], None] = lambda: None  # noqa: E731  # replaced at the start


def runtime() -> Runtime:
    """What this worker process runs beside Celery."""
    assert _runtime is not None, "tasks run in a started worker"
    return _runtime


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
        return celery_configuration(load_settings())  # without generators: Flower needs none
    except ConfigError as error:
        raise SystemExit(one_line(f"genqueue: {error}")) from None


@signals.import_modules.connect(sender=app)
def _gate_flower(**_: Any) -> None:
    """Flower asks the app for its modules before it listens: started by Celery's own command it has our gate too."""
    if "flower.app" in sys.modules:  # a worker that Celery's command started may have it as well, and never uses it
        from genqueue_worker.flower import gate  # it imports this module

        gate()


@signals.celeryd_init.connect
def _begin(sender: str, instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Before anything is logged or warned of."""
    open_standard_streams()
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
    # One line for each outcome, by genqueue_worker.observe.report: not one for each HTTP call, nor Celery's own.
    for chatty, level in (
        ("httpx2", logging.WARNING),
        ("celery.worker.strategy", logging.WARNING),
        ("celery.worker.request", logging.WARNING),
        ("celery.app.trace", logging.CRITICAL),
    ):
        logging.getLogger(chatty).setLevel(level)


@signals.worker_init.connect
def _start(sender: Any, **_: Any) -> None:
    global _runtime, _end_traces
    logging.getLogger("celery.pool").setLevel(logging.INFO)  # at debug it writes out bodies, prompts among them
    # Celery's thread makes short round trips while the engine's works without a pause: at
    # Python's 5 ms it would wait for the interpreter longer than for Redis, each time.
    sys.setswitchinterval(0.0005)
    try:
        settings = worker_settings()
        choose_pool(sender)
        look_for_redis(settings, "worker")
        _runtime = Runtime(settings, lambda: app.amqp.queues.consume_from)
        _end_traces = tracing.set_up(_runtime.engine.owner)
    except (ConfigError, StoreError) as error:
        raise SystemExit(one_line(f"genqueue: {error}")) from None
    try:
        _runtime.start()
    except Exception as error:  # Celery would log it and go on without an engine
        raise SystemExit(one_line(f"genqueue: the engine cannot start: {type(error).__name__}: {error}")) from error
    limit_orders(_runtime.engine.cancel, [keys.queue(name) for name in settings.generators])


def look_for_redis(settings: Settings, role: Role) -> None:
    """A Redis that is away may come; one that refuses our credentials, or whose certificate we refuse, ends the start.

    So does a user without the rights of its role: the producer's, most likely.  Celery, and Flower, would say so once
    a second for ever, or end in a traceback.

    Args:
        settings: where it is.
        role: what starts.

    Raises:
        StoreError: it refuses, or we do.
    """
    address = read_address(settings.redis_url)
    queued, live = permission_checks(role, f"start-{uuid.uuid4().hex}", address.database)
    store = Store(settings.redis_url, settings.redis_timeout_s)
    try:
        if store.refused([check.command for check in queued], [check.command for check in live]) != []:
            user = address.username or "default"
            raise StoreError(
                f"Redis at {address.name} lets its user {user!r} not do all that a {role} does: "
                f"genqueue doctor --role {role} says what"
            )
    except RedisUnavailableError as error:
        logger.warning("starting all the same: %s", error)
    finally:
        store.close()


@signals.celeryd_after_setup.connect
def _announce(**_: Any) -> None:
    if _runtime is not None:
        _runtime.announce()


@signals.worker_ready.connect
def _consume(sender: Consumer, **_: Any) -> None:
    if _runtime is not None:
        sender.on_stop = _runtime.drain
        sender.on_stopped = _stop
        _runtime.consume(sender)


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    """SIGTERM and Ctrl-C; of those that are to be quick the consumer tells, before this."""
    if _runtime is not None:
        _runtime.drain()


@signals.worker_shutdown.connect
def _stop(**_: Any) -> None:
    global _runtime
    if _runtime is not None:
        _runtime.stop()
        _end_traces()
        _runtime.left()
        _runtime = None
        logger.info("stopped")


@signals.task_rejected.connect
def _answer_unwanted(message: Any, exc: Exception, **_: Any) -> None:
    """A message became no task of ours: its sender gets an answer all the same."""
    if _runtime is None:
        return
    generation_id = message.headers["id"]
    queue = str(message.delivery_info["routing_key"])
    generator = queue.removeprefix(keys.QUEUE_PREFIX) or "default"
    if isinstance(exc, checks.ExpiredError):
        _runtime.engine.expire(generation_id, generator)
    else:
        reason = str(exc) if isinstance(exc, checks.Refusal) else type(exc).__name__
        _runtime.engine.refuse(generation_id, generator, f"the message is no task: {reason}")
