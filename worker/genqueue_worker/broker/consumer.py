"""Celery's consumer, where the stock one does not do: what it takes, and how it leaves.

A message that is no task of ours is turned away, and its sender answered (``task_rejected``).  So is a
message that asks Celery for more than a generation: to run a task that Celery brings along, to stay in
memory until an ``eta``, to send tasks elsewhere when it is done (callbacks, chains, chords), with the
worker's rights.
"""

import functools
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery.worker import consumer, state

from genqueue.connection.errors import refuses_for_now
from genqueue.keys import TASK_NAME
from genqueue_worker.broker.checks import check_call
from genqueue_worker.broker.transport import REST_S, Transport, pulse
from genqueue_worker.resources import lack_of

logger = logging.getLogger(__name__)


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
                time.sleep(REST_S)
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
