"""Celery's remote control, where it must mean what genqueue means.

Stock ``revoke`` keeps ids in each worker's memory, marks a task REVOKED that goes on running,
and cannot terminate one in a pool of threads.  Here it is a cancel: whoever sends it
(``AsyncResult.revoke``, with or without ``terminate``, or Flower's buttons), in whatever phase
the generation is, the registry ends it and the worker that runs it is told.
"""

from collections.abc import Callable, Iterable
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker.control import Panel

from genqueue.keys import names_a_generation


def revoke_means_cancel(cancel: Callable[[Iterable[str]], None]) -> None:
    """Have the commands ``revoke`` and ``terminate`` call ``cancel`` with the ids."""

    def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any) -> dict[str, str]:
        ids = sorted({each for each in maybe_list(task_id) or [] if isinstance(each, str) and names_a_generation(each)})
        cancel(ids)
        return {"ok": f"cancelled: {', '.join(ids)}"}

    def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
        return revoke(state, task_id)

    Panel.data["revoke"] = revoke
    Panel.data["terminate"] = terminate
