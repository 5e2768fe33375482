"""kombu's Redis transport and Celery's consumer, where stock ones do not do.

Stock kombu decodes whatever it pops in the worker's event loop and lets the error out: one
``LPUSH generate.default garbage`` ends the worker.  Here such an entry is dropped, counted
and logged (its size only: it may be a prompt).  What is a message and no task of ours is
turned away the same way, and its sender answered (``task_rejected``).  So is what asks Celery
for more than a generation: to run a task that Celery brings along, to hold the message in memory until
an ``eta``, to send tasks elsewhere when it is done (callbacks, chains, chords), with the worker's rights.

The same holds for what comes on the channel of Celery's remote control.

Where Sentinels know the Redis to be used, kombu and Celery are given only what anybody may see:
``inspect conf`` shows all that is in Celery's configuration but the address.  The Sentinels'
credentials are taken from the settings when a connection is made.
"""

import base64
import functools
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from queue import Empty
from typing import Any

from celery import signals
from celery.backends import redis as backends
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.utils.time import maybe_iso8601
from celery.worker import consumer, state
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from genqueue.connection.address import RedisAddress, read_address
from genqueue.connection.errors import refuses_for_now
from genqueue.keys import QUEUE_PREFIX, names_a_generation
from genqueue.settings import load_settings
from genqueue.wire.request import TASK_NAME
from genqueue_worker.observe.health import Pulse
from genqueue_worker.resources import lack_of

logger = logging.getLogger(__name__)

_SENTINEL_TIMEOUT_S = 1.0
"""For each Sentinel that is asked, of which one at a time may be down."""

pulse = Pulse()
"""When Celery's consumer last came round, and could have taken a message."""
dropped = 0
"""Entries of the queues, and orders to workers, that were no Celery message, since this process began."""

_REST_S = 1.0
_MOST_WORD_BYTES = 512
_MOST_CLOCK = 2**63
_MOST_ORDER_BYTES = 500_000
"""Of one order: some ten thousand ids to cancel, each of which is work."""
_ORDER = {"method", "arguments", "destination", "ticket", "reply_to"}
_PATTERN = {"pattern", "matcher"}
_ORDERS, _REPLIES = "celery.pidbox", "reply.celery.pidbox"
_AFTERWARDS = ("callbacks", "errbacks", "chain", "chord")
_COMPRESSED = "compressed"
"""The content type that a compressed message is given: it is turned away as one that is not JSON."""


class Refusal(InvalidTaskError):
    """Why a message is turned away, in words that say nothing of what is in it."""


class ExpiredError(Exception):
    """Its sender wanted no answer any more."""


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
            return names_a_generation(task_id) and all(map(_is_word, (task, tag, routing_key)))
    return False


def _is_word(text: str) -> bool:
    # Half of a surrogate pair (JSON can spell it) is not printable.
    return text.isprintable() and len(text.encode()) <= _MOST_WORD_BYTES


def is_broadcast(message: Any) -> bool:
    """Whether a message of a channel is one: an event of a worker, which Flower hears, or an order to workers."""
    match message:
        case {
            "body": str(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": dict() as headers,
            "properties": {
                "delivery_tag": str(),
                "delivery_info": {"exchange": str(), "routing_key": str()},
                "body_encoding": "base64",
            },
        }:
            return "compression" not in headers
    return False


def is_order(message: Any) -> bool:
    """Whether a message of Celery's remote control is one that its code takes in hand without stumbling."""
    if not is_broadcast(message) or len(message["body"]) > _MOST_ORDER_BYTES:
        return False
    clock = message["headers"].get("clock") or 0
    # Celery takes over the highest clock it sees: one of 4,300 digits could be sent on by nobody.
    if type(clock) is not int or not 0 <= clock < _MOST_CLOCK:
        return False
    match loads(base64.b64decode(message["body"])):
        case {"method": str()} as order:
            kinds = {"arguments": dict, "destination": list, "ticket": str}
            # Celery would hold a pattern against the worker's name, in Python's re: a bad one never ends.
            said = {name for name, value in order.items() if value is not None or name not in _PATTERN}
            return (
                said <= _ORDER
                and all(isinstance(order.get(name), kind | None) for name, kind in kinds.items())
                and _is_address(order.get("reply_to"))
            )
    return False


def _is_address(reply_to: Any) -> bool:
    match reply_to:
        case None:
            return True
        case {"exchange": str(exchange), "routing_key": str(routing_key)}:
            return exchange == _REPLIES and _is_word(routing_key)
    return False


def is_call(payload: Any) -> bool:
    """Whether a message's decoded body is (arguments, keyword arguments, options) as Celery unpacks it."""
    match payload:
        case [list(), dict(), None]:
            return True
        case [list(), dict(), dict() as options]:  # each becomes an attribute of Celery's request
            return options.keys() <= set(_AFTERWARDS)
    return False


def check_call(payload: Any, headers: dict[str, Any], now: datetime) -> None:
    """Raise what speaks against carrying out the call of a message.

    Raises:
        Refusal, ExpiredError: the sender is to be told.
        ValueError, TypeError, AttributeError, OverflowError: a header is none of Celery's.
    """
    if headers["task"] != TASK_NAME:
        raise NotRegistered("no such task here")
    if not is_call(payload):
        raise InvalidTaskError("no call")
    _, kwargs, options = payload
    if "self" in kwargs:  # would be taken for the task
        raise InvalidTaskError("no call")
    if any((options or {}).values()):
        raise Refusal("callbacks, chains and chords are not carried out here: send them when the result is there")
    eta, expires = _moment(headers.get("eta")), _moment(headers.get("expires"))
    if expires is not None and expires <= now:
        raise ExpiredError
    if kwargs and eta is not None and eta > now:
        raise Refusal("eta and countdown are not carried out here: send the message when it is due")


def _moment(header: Any) -> datetime | None:
    if header is None:
        return None
    moment: datetime = maybe_iso8601(header)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _drop(size: int | str, queue: str, reason: str) -> None:
    global dropped
    dropped += 1
    logger.error("dropped an entry of %s that is no Celery message: %s (%s bytes)", queue, reason, size)


class _Careful(redis.Channel):
    """Drops what is not even JSON."""

    def _receive_one(self, client: Any) -> Any:
        """Take one message of a channel (stock kombu logs what it cannot read, and ends the worker with most)."""
        try:
            response = client.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise
        if not isinstance(response, list | tuple):
            return None
        payload = self._handle_message(client, response)
        if not bytes_to_str(payload["type"]).endswith("message"):
            return None
        # /<database>.<exchange>[/<routing key>]
        exchange = bytes_to_str(payload["channel"]).partition(".")[2].split("/", 1)[0]
        data = payload["data"]
        try:
            is_short = exchange != _ORDERS or len(data) <= 2 * _MOST_ORDER_BYTES
            message = loads(bytes_to_str(data)) if is_short else None
            is_one = is_order(message) if exchange == _ORDERS else is_broadcast(message)
        except Exception:  # as below
            is_one = False
        if is_one:
            self.connection._deliver(message, self._fanout_to_queue[exchange])
        else:
            _drop(len(data), exchange, "not the shape of one")
        return True

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
            if "compression" in message["headers"]:  # kombu would unpack a few bytes to all of the memory
                message["content-type"] = _COMPRESSED
                del message["headers"]["compression"]
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


def _known(headers: dict[str, Any]) -> dict[str, Any]:
    """What the task needs of a message's headers: each becomes an attribute of Celery's request, whatever its name."""
    return {
        "lang": "py",
        "task": TASK_NAME,
        "id": headers["id"],
        "traceparent": headers.get("traceparent"),
        # What a plain Celery producer wrote there for logs, events and Flower shows its prompt.
        "argsrepr": "()",
        "kwargsrepr": "{}",
    }


class Consumer(consumer.Consumer):
    """Turns away what is no task of ours; publishes task events ten times a second instead of three times a task.

    Stock Celery logs the body of what it turns away, which may hold a prompt, and ends the
    worker where a header or the body's shape surprises it (``stamps: 3``, a body of ``{}``).
    And it publishes what its event buffer holds at the next turn of its loop: 60 % of the
    consumer's CPU when 200 generations arrive at once (py-spy), on the thread they wait for.

    Attributes:
        served: the queues that were chosen at the start and by orders since, those left for now among them.
        unwanted: the queues from which nothing shall be taken for now.
        on_order: told when an order has changed them.
        on_stop: told that nothing more will be taken, for whatever reason: a signal, an order, an error of Celery's;
            and whether what runs is to be handed over at once.
        on_stopped: told that nothing runs any more, and Celery is about to end.
    """

    class Blueprint(consumer.Consumer.Blueprint):
        """The steps of a connection to Redis; begins anew where this host has too little for one, or Redis refuses."""

        def start(self, parent: Any) -> None:
            """Run until the connection is lost."""
            try:
                super().start(parent)
            except Exception as error:
                trouble = lack_of(error) or (str(error) if refuses_for_now(error) else "")
                if not trouble:
                    raise
                # Celery would end the worker for want of a descriptor, or at a failover; in a second all may be well.
                time.sleep(_REST_S)
                raise ConnectionError(trouble) from None

    _EVENTS_EVERY_S = 0.1
    _BEAT_S = 1.0
    _LISTEN_LEFT_S = 0.1
    _events_due_s = 0.0

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        # Of N workers each would be sent every other's heartbeat, and answer each that starts: N x N messages.
        alone = {"without_gossip": True, "without_mingle": True}
        super().__init__(*args, worker_options={**(worker_options or {}), **alone}, **kwargs)
        self.unwanted: Callable[[], set[str]] = set
        self._left: set[str] = set()
        self.served = set(self.app.amqp.queues.consume_from)
        self.on_order: Callable[[], None] = lambda: None
        self.on_stop: Callable[[bool], None] = lambda at_once: None
        self.on_stopped: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Take nothing more; Celery then waits for what runs."""
        self.on_stop(False)
        super().stop()

    def cancel_active_requests(self) -> None:
        """A cold shutdown (SIGQUIT, Ctrl-C twice): Celery waits for the pool next, whose threads cannot be ended."""
        self.on_stop(True)

    def shutdown(self) -> None:
        """Close what is open."""
        try:
            super().shutdown()
        finally:
            self.on_stopped()

    def follow_soon(self) -> None:
        """What is :attr:`unwanted` has changed; any thread may say so."""
        self.call_soon(self._follow)

    def on_ready(self) -> None:
        """The loop begins, for the first time or after Redis was lost: what it was told meanwhile counts."""
        super().on_ready()
        self._follow()

    def _follow(self) -> None:
        if self.task_consumer is None:
            return  # Redis is lost; on_ready comes
        # As Celery's own methods do it, which log each time; a full endpoint is left and joined again every second.
        unwanted, queues = self.unwanted(), self.app.amqp.queues
        for queue in unwanted & set(queues.consume_from):
            self._left.add(queue)
            queues.deselect(queue)
            self.task_consumer.cancel_by_queue(queue)
        for queue in self._left - unwanted:
            self._left.remove(queue)
            self.task_consumer.add_queue(queues.select_add(queues[queue]))
            self.task_consumer.consume()
        # A BRPOP under way does not hear of a queue that is joined again.
        self.task_consumer.channel.brpop_timeout = self._LISTEN_LEFT_S if self._left else Transport.brpop_timeout

    def cancel_task_queue(self, queue: str) -> None:
        """Leave a queue until the opposite is ordered: ``cancel_consumer``."""
        self.served.discard(queue)
        self._left.discard(queue)
        super().cancel_task_queue(queue)
        self.on_order()

    def add_task_queue(self, queue: str, *args: Any, **options: Any) -> None:
        """Consume one, unless it is left for now: ``add_consumer``."""
        self.served.add(queue)
        super().add_task_queue(queue, *args, **options)
        self._follow()
        self.on_order()

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
                check_call(message.payload, message.headers, datetime.now(UTC))
            except Exception as error:  # also those that would be lost connections below: KeyError, OSError
                self._turn_away(message, error)
                return
            message.headers = _known(message.headers)
            try:
                handle(message)
            except self.connection_errors + self.channel_errors:
                raise
            except Exception as error:
                request = state.requests.get(message.headers["id"])
                if request is not None and request.message is message:
                    state.task_ready(request)  # gives back its place among the reserved ones
                self._turn_away(message, error)

        return on_task_received

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Celery cannot make a call of it, or it is not JSON."""
        self._turn_away(message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Its body cannot be read."""
        self._turn_away(message, exc)

    def _turn_away(self, message: Any, error: Exception) -> None:
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)
        queue = (message.delivery_info or {}).get("routing_key")
        size, generation_id = len(message.body or b""), message.headers.get("id")
        logger.error(
            "turned away a message of %s: %s (%d bytes)",
            queue,
            type(error).__name__,
            size,
            extra={"generation_id": generation_id},
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


ORDERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("active_queues", "clock", "ping", "registered", "report", "reserved", "revoked"), frozenset()),
    **dict.fromkeys(("scheduled", "stats", "dump_reserved", "dump_schedule", "dump_tasks"), frozenset()),
    **dict.fromkeys(("disable_events", "enable_events", "heartbeat", "shutdown"), frozenset()),
    **dict.fromkeys(("active", "dump_active"), frozenset({"safe"})),
    **dict.fromkeys(("conf", "dump_conf"), frozenset({"with_defaults"})),
    "query_task": frozenset({"ids"}),
    "cancel_consumer": frozenset({"queue"}),
}
"""Celery's own orders that are carried out, and the arguments that each is given."""
