"""kombu's Redis transport and Celery's consumer, where stock ones do not do.

Stock kombu decodes whatever it pops in the worker's event loop and lets the error out: one
``LPUSH generate.default garbage`` ends the worker.  Here such an entry is dropped, counted
and logged (its size only: it may be a prompt).  What is a message and no task of ours is
turned away the same way, and its sender answered (``task_rejected``).

Where Sentinels know the Redis to be used, kombu and Celery are given only what anybody may see:
``inspect conf`` shows all that is in Celery's configuration but the address.  The Sentinels'
credentials are taken from the settings when a connection is made.
"""

import functools
import logging
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from celery import signals
from celery.backends import redis as backends
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.worker import consumer, state
from kombu.transport import redis
from kombu.utils.json import dumps

from genqueue.address import RedisAddress, read_address
from genqueue.keys import QUEUE_PREFIX
from genqueue.settings import load_settings
from genqueue_worker.health import Pulse

logger = logging.getLogger(__name__)

_SENTINEL_TIMEOUT_S = 1.0
"""For each Sentinel that is asked, of which one at a time may be down."""

pulse = Pulse()
"""When Celery's consumer last came round, and could have taken a message."""
dropped = 0
"""Entries of the queues that were no Celery message, since this process began."""


def is_celery_message(message: Any) -> bool:
    """Whether kombu and Celery can take ``message`` in hand without stumbling (protocol 2, kombu's envelope)."""
    match message:
        case {
            "body": str(),
            "headers": {"task": str(task), "id": str(task_id)},
            "properties": {
                "delivery_tag": str(tag),
                "delivery_info": {"routing_key": str(routing_key)},
                "body_encoding": "base64",
            },
        }:
            # They become keys of Redis: half of a surrogate pair (JSON can spell it) cannot be sent.
            return all(word.isprintable() for word in (task, task_id, tag, routing_key)) and task_id != ""
    return False


def is_call(payload: Any) -> bool:
    """Whether a message's decoded body is (arguments, keyword arguments, options) as Celery unpacks it."""
    match payload:
        case [list(), dict(), None]:
            return True
        case [list(), dict(), dict() as options]:
            return all(
                isinstance(options.get(name), kind | None)
                for name, kind in (("callbacks", list), ("errbacks", list), ("chain", list), ("chord", dict))
            )
    return False


def _drop(size: int | str, queue: str, reason: str) -> None:
    global dropped
    dropped += 1
    logger.error("dropped an entry of %s that is no Celery message: %s (%s bytes)", queue, reason, size)


class _Careful(redis.Channel):
    """Drops what is not even JSON."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (Empty, *self.connection_errors, *self.connection.channel_errors):
            raise
        # No JSON, no UTF-8, no base64, nested too deep, or what kombu's JSON makes objects of
        # ({"__type__": "uuid", "__value__": 5}), which raises whatever the object's class raises.
        except Exception as error:
            entry: Any = getattr(error, "doc", None) or getattr(error, "object", None)
            _drop("?" if entry is None else len(entry), "a queue", type(error).__name__)
            return True


class Channel(_Careful):
    """A channel to one Redis."""


class SentinelChannel(_Careful, redis.SentinelChannel):
    """A channel to the Redis that the Sentinels call master."""

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        address = read_address(load_settings().redis_url)
        options = self._connparams(asynchronous)
        del options["host"], options["port"]
        sentinel = _sentinel(address, **options)
        if asynchronous:  # kombu closes both
            self._async_sentinel_manager = sentinel
        else:
            self._sentinel_manager = sentinel
        return sentinel.master_for(address.master).connection_pool


class SentinelBackend(backends.SentinelBackend):
    """Celery's results in the Redis that the Sentinels call master."""

    def _get_sentinel_instance(self, hosts: Any = None, **options: Any) -> Any:
        return _sentinel(read_address(load_settings().redis_url), **options)


def _sentinel(address: RedisAddress, **options: Any) -> Any:
    """All Sentinels; ``options`` are for connections to the master."""
    asked: dict[str, Any] = {
        "username": address.sentinel_username,
        "password": address.sentinel_password,
        "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
        "socket_timeout": _SENTINEL_TIMEOUT_S,
        **({"ssl": True, **address.tls} if address.tls else {}),
    }
    return redis.sentinel.Sentinel(address.nodes, sentinel_kwargs=asked, **options)


class Transport(redis.Transport):
    """Drops what is JSON and no message; puts back what came from a queue that was just left."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue.startswith(QUEUE_PREFIX):
            if not is_celery_message(message):
                _drop(len(repr(message)), queue, "not the shape of one")
                return
            if queue not in self._callbacks:
                # The BRPOP that was under way when the queue was left.  kombu's own way back
                # (basic_reject) is its bookkeeping, which we do without.
                channel = self.channels[0]
                priority = channel._get_message_priority(message)
                with channel.conn_or_acquire() as client:
                    client.rpush(channel._q_for_pri(queue, priority), dumps(message))
                return
        super()._deliver(message, queue)


class SentinelTransport(Transport):
    """The same by way of Sentinels."""

    default_port = 26379
    Channel = SentinelChannel


class Consumer(consumer.Consumer):
    """Turns away what is no task of ours; publishes task events ten times a second instead of three times a task.

    Stock Celery logs the body of what it turns away, which may hold a prompt, and ends the
    worker where a header or the body's shape surprises it (``stamps: 3``, a body of ``{}``).
    And it publishes what its event buffer holds at the next turn of its loop: 60 % of the
    consumer's CPU when 200 generations arrive at once (py-spy), on the thread they wait for.
    """

    _EVENTS_EVERY_S = 0.1
    _BEAT_S = 1.0
    _events_due_s = 0.0

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        # Of N workers each would be sent every other's heartbeat, and answer each that starts: N x N messages.
        alone = {"without_gossip": True, "without_mingle": True}
        super().__init__(*args, worker_options={**(worker_options or {}), **alone}, **kwargs)
        self._unwanted: set[str] = set()
        self._left: set[str] = set()

    def leave(self, queues: set[str]) -> None:
        """Take nothing from ``queues`` for now, and from those left before again; any thread may say so."""
        self._unwanted = queues
        self.call_soon(self._follow)

    def on_ready(self) -> None:
        """The loop begins, for the first time or after Redis was lost: what it was told meanwhile counts."""
        super().on_ready()
        self._follow()

    def _follow(self) -> None:
        if self.task_consumer is None:
            return  # Redis is lost; on_ready comes
        for queue in self._unwanted & set(self.app.amqp.queues.consume_from):
            self._left.add(queue)
            self.cancel_task_queue(queue)
        for queue in self._left - self._unwanted:
            self._left.remove(queue)
            self.add_task_queue(queue)

    def register_with_event_loop(self, hub: Any) -> None:
        """Each time that the loop begins; its timers end with it."""
        super().register_with_event_loop(hub)
        pulse.beat()
        hub.call_repeatedly(self._BEAT_S, pulse.beat)

    def ensure_connected(self, conn: Any) -> Any:
        """Look for a lost Redis once a second; stock Celery waits 2, 4, 6 … 30 s between looks."""
        conn.ensure_connection = functools.partial(
            conn.ensure_connection, interval_start=1.0, interval_step=0.0, interval_max=1.0
        )
        return super().ensure_connected(conn)

    def create_task_handler(self, *args: Any) -> Callable[[Any], None]:
        """What is called with each message; an error of its own making ends the message, not the worker."""
        handle = super().create_task_handler(*args)

        def on_task_received(message: Any) -> None:
            try:
                # Celery decodes in the pool's thread and never frees the place of what surprises it there.
                if is_call(message.payload):
                    # What a plain Celery producer wrote there for logs, events and Flower shows its prompt.
                    message.headers.update(argsrepr="()", kwargsrepr="{}")
                    handle(message)
                else:
                    self._turn_away(message, InvalidTaskError("no call"))
            except self.connection_errors + self.channel_errors:
                raise
            except Exception as error:
                request = state.requests.get(message.headers["id"])
                if request is not None and request.message is message:
                    state.task_ready(request)  # gives back its place among the reserved ones
                self._turn_away(message, error)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """It names no task."""
        self._turn_away(message, None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Its task is not ours."""
        self._turn_away(message, NotRegistered("no such task here"))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Celery cannot make a call of it, or it is not JSON."""
        self._turn_away(message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Its body cannot be read."""
        self._turn_away(message, exc)

    def _turn_away(self, message: Any, error: Exception | None) -> None:
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)
        kind = type(error).__name__ if error else "no task"
        queue = (message.delivery_info or {}).get("routing_key")
        size, generation_id = len(message.body or b""), message.headers.get("id")
        logger.error(
            "turned away a message of %s: %s (%d bytes)", queue, kind, size, extra={"generation_id": generation_id}
        )
        signals.task_rejected.send(sender=self, message=message, exc=error)

    def on_send_event_buffered(self) -> None:
        """Called with each event, from any thread; a batch that never went out (the loop was reset) is overdue."""
        now_s = time.monotonic()
        if self.hub and now_s >= self._events_due_s:
            self._events_due_s = now_s + 10 * self._EVENTS_EVERY_S
            self.hub.call_soon(self._arm)

    def _arm(self) -> None:
        self.hub.call_later(self._EVENTS_EVERY_S, self._flush_batch)

    def _flush_batch(self) -> None:
        self._events_due_s = 0.0
        self._flush_events()
