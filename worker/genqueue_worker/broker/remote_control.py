"""Celery's remote control, where it must mean what genqueue means.

Stock ``revoke`` keeps ids in each worker's memory, marks a task REVOKED that goes on running,
and cannot terminate one in a pool of threads.  Here it is a cancel: whoever sends it
(``AsyncResult.revoke``, with or without ``terminate``, or Flower's buttons), in whatever phase
the generation is, the registry ends it and the worker that runs it is told.

Of the other orders workers know those that fit.  The rest ends a pool of threads (``pool_grow``), leads a worker
to other queues or files (``add_consumer`` of a foreign list, ``objgraph``) or has it throw a doorbell away
(``hello``, with ids that are said to be revoked).  How many places a worker has is ``--concurrency``.
Those that are known are given the arguments that they need and no others: ``registered`` would read any attribute
of a task, as often as it is told.  How long an order may be, and that it names workers and no pattern of
names, is :func:`genqueue_worker.broker.checks.is_order`'s.

What a plain Celery producer sends with its task is its prompt: ``active``, ``reserved``,
``scheduled`` and ``query_task`` (Flower, ``celery inspect``) show a task without its arguments.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import celery
from celery.utils.functional import maybe_list
from celery.worker.control import Panel
from celery.worker.request import Request

from genqueue.keys import names_a_generation
from genqueue_worker.broker.checks import ORDERS


class PrivateRequest(Request):  # type: ignore[misc]  # celery has no types
    """A task that a worker has; says nothing of its arguments."""

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What remote control shows of it."""
        return {**super().info(safe), "args": [], "kwargs": {}}


class Task(celery.Task):  # type: ignore[misc]  # celery has no types
    """The class of all tasks of a worker, Celery's own among them."""

    Request = PrivateRequest


def _taking(carry_out: Callable[..., Any], names: Collection[str]) -> Callable[..., Any]:
    """An order that is given some of its arguments; the others are as if nobody had written them."""

    def order(state: Any, **arguments: Any) -> Any:
        return carry_out(state, **{name: value for name, value in arguments.items() if name in names})

    return order


def limit_orders(cancel: Callable[[Iterable[str]], None], queues: Collection[str]) -> None:
    """Leave of Celery's orders those that fit.

    Args:
        cancel: called with the ids of ``revoke`` and ``terminate``.
        queues: those that a worker may be told to consume again.
    """

    def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any) -> dict[str, str]:
        ids = sorted({each for each in maybe_list(task_id) or [] if isinstance(each, str) and names_a_generation(each)})
        cancel(ids)
        return {"ok": f"cancelled: {', '.join(ids)}"}

    def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
        return revoke(state, task_id)

    add_any_consumer = Panel.data["add_consumer"]

    def add_consumer(state: Any, queue: Any, **_: Any) -> dict[str, str]:
        if queue not in queues:
            return {"error": f"queue {queue!r} is of no generator of this worker"}
        answer: dict[str, str] = add_any_consumer(state, queue)
        return answer

    known = {name: _taking(Panel.data[name], taken) for name, taken in ORDERS.items()}
    Panel.data.clear()
    Panel.data.update(known)
    Panel.data.update(revoke=revoke, terminate=terminate, add_consumer=add_consumer)
