"""Celery's configuration: every setting that is not a default carries its reason."""

from typing import Any

from kombu import Exchange, Queue

from genqueue import keys
from genqueue.connection.address import read_address
from genqueue.settings import Settings
from genqueue_worker.broker.consumer import Consumer


def celery_addresses(redis_url: str) -> dict[str, Any]:
    """Where Celery finds its broker and its results, in its words."""
    address = read_address(redis_url)
    # Survives garbage in a queue.  By name: a class is not JSON, which `inspect stats` must be.
    transport, results = "genqueue_worker.broker.transport:Transport", ""
    scheme = "rediss" if address.tls else "redis"
    if address.master is not None:
        transport, scheme = "genqueue_worker.broker.transport:SentinelTransport", "sentinel"
        results = "genqueue_worker.broker.transport:SentinelBackend+"
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
        # Until it knows of a worker's queues, Flower's Broker tab asks for this one too; Celery's "celery" is none that
        # its user may look at.
        "task_default_queue": keys.queue("default"),
        "worker_consumer": Consumer,  # publishes task events in batches
        # Threads: a task waits for the engine's loop, and a process each would be waste.  By name, as above.
        "worker_pool": "genqueue_worker.broker.pool:Pool",
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
