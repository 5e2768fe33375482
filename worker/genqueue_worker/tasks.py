"""The one task: ``genqueue.generate``, a doorbell for one generation."""

from typing import Any

from celery import Task
from celery.exceptions import Ignore

from genqueue.errors import GenerationFailedError
from genqueue.keys import PRIORITIES, QUEUE_PREFIX, TASK_NAME
from genqueue.registry.endings import ENDINGS
from genqueue.wire.finish_reasons import shown_reason
from genqueue.wire.result import GenerationResult, Outcome
from genqueue_worker.app import app, runtime
from genqueue_worker.engine.register import Done, Ended
from genqueue_worker.upstream.faults import UpstreamFacts, shown


class Receipt:
    """A result as Celery's logs, events and Flower show it: what came of it, never its text."""

    def __init__(self, result: GenerationResult) -> None:
        self._result = result

    def __repr__(self) -> str:
        meta = self._result.meta[0]
        tokens = meta["usage"]["completion_tokens"]
        reason = shown_reason(meta["finish_reason"])
        return f"{'?' if tokens is None else tokens} tokens, {reason}, attempt {meta['attempts']}"


def failure(outcome: Outcome) -> str:
    """An error as Celery's events and Flower show it: its class; the words of a server or a request may quote more."""
    known = {name: outcome.detail[name] for name in ("status", "error_type") if outcome.detail.get(name) is not None}
    return repr(ENDINGS[outcome.error](shown(UpstreamFacts("", **known)) if known else outcome.error))


@app.task(
    name=TASK_NAME,
    bind=True,
    typing=False,
    # The result was written with the terminal event, in one call that nothing can cut in two;
    # Celery would only read it back.  A defect of ours is still stored as FAILURE.
    ignore_result=True,
    store_errors_even_if_ignored=True,
)
def generate(self: Task, *args: Any, **foreign: Any) -> Receipt:
    """Run the generation whose id is this task's.

    Its request is in the registry.  A producer without this library sends it as keyword
    arguments instead (``prompt``, ``generation_kwargs``, ``stop_words``, ``stream``,
    ``priority``, ``deadline_s``) to the queue ``generate.<generator>``.  Without a priority it has its message's.
    """
    sent = self.request.delivery_info
    generator = sent["routing_key"].removeprefix(QUEUE_PREFIX)
    if foreign and type(sent["priority"]) is int:
        foreign = {"priority": min(max(sent["priority"], PRIORITIES[0]), PRIORITIES[-1]), **foreign}
    if args:
        foreign["args"] = args  # no such field: answered as every unknown one
    generation_id, traceparent = self.request.id, self.request.get("traceparent")
    try:
        ended = runtime().engine.run(generation_id, generator, foreign or None, traceparent)
    except Exception as error:
        # Celery shows whoever listens what a task raises; the words of a defect may quote what it was about.
        raise GenerationFailedError(f"unexpected {type(error).__name__} in the worker") from None
    match ended:
        case Done(result):
            return Receipt(result)
        case Ended(outcome) if outcome.error == "cancelled":
            self.send_event("task-revoked", terminated=True, signum=None, expired=False)  # Flower
            raise Ignore
        case Ended(outcome):
            # Not raised: Celery would show its words, and write its result a second time.
            runtime().show(generation_id, {"exception": failure(outcome)}, "task-failed")
            raise Ignore
        case _:
            raise Ignore  # a second doorbell, or a newer attempt: nothing may be stored
