"""The one task: ``genqueue.generate``, a doorbell for one generation."""

from typing import Any

from celery import Task
from celery.exceptions import Ignore

from genqueue.errors import GenerationError
from genqueue.keys import QUEUE_PREFIX
from genqueue.messages import TASK_NAME, GenerationResult
from genqueue.outcome import ENDINGS
from genqueue_worker.app import app, engine
from genqueue_worker.engine import Done, Ended


class Receipt:
    """A result as Celery's logs, events and Flower show it: what came of it, never its text."""

    def __init__(self, result: GenerationResult) -> None:
        self._result = result

    def __repr__(self) -> str:
        meta = self._result.meta[0]
        return f"{meta['usage']['completion_tokens']} tokens, {meta['finish_reason']}, attempt {meta['attempts']}"


@app.task(
    name=TASK_NAME,
    bind=True,
    typing=False,
    throws=(GenerationError,),  # an outcome, not a defect: one line, no traceback
    # The result was written with the terminal event, in one call that nothing can cut in two;
    # Celery would only read it back.  A defect of ours is still stored as FAILURE.
    ignore_result=True,
    store_errors_even_if_ignored=True,
)
def generate(self: Task, *args: Any, **foreign: Any) -> Receipt:
    """Run the generation whose id is this task's.

    Its request is in the registry.  A producer without this library sends it as keyword
    arguments instead (``prompt``, ``generation_kwargs``, ``stop_words``, ``stream``,
    ``priority``, ``deadline_s``) to the queue ``generate.<generator>``.
    """
    generator = self.request.delivery_info["routing_key"].removeprefix(QUEUE_PREFIX)
    if args:
        foreign["args"] = args  # no such field: answered as every unknown one
    match engine().run(self.request.id, generator, foreign or None, self.request.get("traceparent")):
        case Done(result):
            return Receipt(result)
        case Ended(outcome) if outcome.error == "cancelled":
            self.send_event("task-revoked", terminated=True, signum=None, expired=False)  # Flower
            raise Ignore
        case Ended(outcome):
            raise ENDINGS[outcome.error](outcome.message)
        case _:
            raise Ignore  # a second doorbell, or a newer attempt: nothing may be stored
