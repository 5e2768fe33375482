"""The Celery message that makes a worker look at a generation: its id and nothing else.

Written out here, not sent through Celery: so it goes to its list in the same Lua call that
registers the generation (nothing can die between the two), the asyncio client needs no
thread for it, and a producer needs no Celery.  The format is Celery's task message
protocol 2 (docs.celeryq.dev, "Message Protocol") in the envelope of kombu's Redis
transport; ``tests/contract/broker/test_celery.py`` holds it against what Celery itself sends.
"""

from typing import Any

from pydantic_core import to_json

from genqueue.keys import queue
from genqueue.wire.request import TASK_NAME

# base64 of [[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]
_BODY = "W1tdLCB7fSwgeyJjYWxsYmFja3MiOiBudWxsLCAiZXJyYmFja3MiOiBudWxsLCAiY2hhaW4iOiBudWxsLCAiY2hvcmQiOiBudWxsfV0="


def doorbell_message(generation_id: str, generator: str, priority: int) -> bytes:
    """The message for one generation, ready for ``LPUSH`` to :func:`genqueue.keys.doorbell`."""
    return to_json(
        {
            "body": _BODY,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": TASK_NAME,
                "id": generation_id,
                "root_id": generation_id,
                "parent_id": None,
                "group": None,
                "retries": 0,
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
                "argsrepr": "()",
                "kwargsrepr": "{}",
                "origin": "genqueue",
                "ignore_result": False,
            },
            "properties": {
                "correlation_id": generation_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue(generator)},
                "priority": priority,
                "body_encoding": "base64",
                "delivery_tag": generation_id,
            },
        }
    )


def doorbell_template() -> bytes:
    """The message with the places ``{id}``, ``{generator}`` and ``{priority}``, for a script that rings for many."""
    place: Any = "{priority}"
    return doorbell_message("{id}", "{generator}", place).replace(b'"{priority}"', b"{priority}")  # it is a number
