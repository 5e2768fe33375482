"""kombu's Redis transport, where the stock one does not do.

Stock kombu decodes whatever it pops in the worker's event loop and lets the error out: one
``LPUSH generate.default garbage`` ends the worker.  Here such an entry is dropped, counted
and logged (its size only: it may be a prompt).  The same holds for what comes on the channel
of Celery's remote control.  :mod:`genqueue_worker.broker.checks` decides what may pass.

Where Sentinels know the Redis to be used, kombu and Celery are given only what anybody may see:
``inspect conf`` shows all that is in Celery's configuration but the address.  The Sentinels'
credentials are taken from the settings when a connection is made.
"""

import logging
from queue import Empty
from typing import Any

from celery.backends import redis as backends
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from genqueue.connection.address import RedisAddress, read_address
from genqueue.keys import QUEUE_PREFIX
from genqueue.settings import load_settings
from genqueue_worker.broker.checks import MOST_ORDER_BYTES, ORDERS_EXCHANGE, is_broadcast, is_celery_message, is_order
from genqueue_worker.observe.health import Pulse

logger = logging.getLogger(__name__)

_SENTINEL_TIMEOUT_S = 1.0
"""For each Sentinel that is asked, of which one at a time may be down."""

pulse = Pulse()
"""When Celery's consumer last came round, and could have taken a message."""
dropped = 0
"""Entries of the queues, and orders to workers, that were no Celery message, since this process began."""

REST_S = 1.0
_COMPRESSED = "compressed"
"""The content type that a compressed message is given: it is turned away as one that is not JSON."""


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
            is_short = exchange != ORDERS_EXCHANGE or len(data) <= 2 * MOST_ORDER_BYTES
            message = loads(bytes_to_str(data)) if is_short else None
            is_one = is_order(message) if exchange == ORDERS_EXCHANGE else is_broadcast(message)
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
    sentinel_kwargs: dict[str, Any] = {
        "username": address.sentinel_username,
        "password": address.sentinel_password,
        "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
        "socket_timeout": _SENTINEL_TIMEOUT_S,
        **({"ssl": True, **address.tls} if address.tls else {}),
    }
    return redis.sentinel.Sentinel(address.nodes, sentinel_kwargs=sentinel_kwargs, **options)


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
