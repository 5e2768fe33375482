"""The threads of a worker, each of which waits for the engine with one generation.

Celery's own pool starts a thread when it has work for one, and loses a place for good where a task's thread
ends with an error of Celery's own: the worker says that it is up and takes nothing more.  Here all threads
start with the pool, and a place is given back however its task ended.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import click
from celery.concurrency import get_implementation
from celery.concurrency.thread import TaskPool
from celery.utils.log import get_logger
from celery.worker import state

from genqueue.errors import ConfigError
from genqueue.terminal import one_line
from genqueue_worker import resources
from genqueue_worker.observe.logs import where_raised

logger = get_logger(__name__)


class Pool(TaskPool):  # type: ignore[misc]  # celery has no types
    """Threads that are all there from the start."""

    limit: int
    executor: ThreadPoolExecutor

    def on_start(self) -> None:
        """Start all threads: later there may be no memory, or no right, to start one."""
        wanted, trouble = self.limit, self._start_threads()
        if trouble is None:
            return
        self.limit = len(self.executor._threads)
        self.executor.shutdown()
        if self.limit < 1:
            raise SystemExit(one_line(f"genqueue: {trouble} (memory, ulimit -u, pids.max)"))
        self.executor = ThreadPoolExecutor(self.limit)
        self._start_threads()
        logger.warning(
            "-c %d does not fit: %s (memory, ulimit -u, pids.max); %d generations run at once",
            wanted,
            trouble,
            self.limit,
        )

    def _start_threads(self) -> str | None:
        """Start as many as the executor may have; answers why there are not as many."""
        go = threading.Event()
        try:
            with resources.memory_kept():
                for _ in range(self.limit):  # none is idle yet, so each gets a thread of its own
                    self.executor.submit(go.wait)
        except MemoryError:
            return "this host gives the process too little memory"
        except RuntimeError as error:
            return f"this host lets the process start too few threads: {error}"
        finally:
            go.set()
        return None

    def on_apply(self, target: Any, *args: Any, callback: Callable[..., Any], **options: Any) -> Any:
        """Have a thread run a task."""
        result = super().on_apply(target, *args, callback=callback, **options)
        request = callback.__self__  # type: ignore[attr-defined]  # Celery gives a method of the task's request
        result.f.add_done_callback(lambda done: _give_back(request, done))
        return result

    def on_terminate(self) -> None:
        """A cold shutdown: the engine hands over what runs, for which the threads are waited for."""
        self.on_stop()


def _give_back(request: Any, done: "Future[Any]") -> None:
    """Free the place of a task whose thread Celery left before it did that."""
    if done.cancelled() or (error := done.exception()) is None:
        return
    state.task_ready(request)
    logger.error(
        "Celery lost the end of a task: %s",  # not its words: they may quote what it was about
        type(error).__name__,
        extra={"generation_id": request.id, "where": where_raised(error)},
    )


def refusal(name: str) -> str:
    """What whoever has chosen another pool is told."""
    return f"the pool {name!r} does not run generations: leave -P out, or write -P threads"


def green_pool(modules: Mapping[str, Any]) -> str:
    """The pool, of eventlet and gevent, whose threads stand in for Python's own; "" if neither's do.

    Args:
        modules: those that are imported, by name.
    """
    eventlet, gevent = modules.get("eventlet.patcher"), modules.get("gevent.monkey")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    return ""


def _is_chosen_by_command() -> bool:
    """Whether Celery's command, if that is what starts this worker, was given a pool.

    It takes ``-P prefork`` for no choice, and runs the configured pool, which is ours.
    """
    command = click.get_current_context(silent=True)
    return command is not None and command.get_parameter_source("pool") is click.core.ParameterSource.COMMANDLINE


def choose_pool(worker: Any) -> None:
    """Have a Celery worker that begins run our threads, as many as its host grants descriptors for.

    Raises:
        ConfigError: it was told to run another pool, or to change its size while it runs.
    """
    implementation = get_implementation(worker.pool_cls)
    if not issubclass(implementation, TaskPool):
        name = implementation.__module__.rpartition(".")[2]
        raise ConfigError(refusal(name))
    if implementation is Pool and _is_chosen_by_command():
        raise ConfigError(refusal("prefork"))
    if worker.options.get("autoscale"):
        raise ConfigError("--autoscale does not go with a pool of threads: write -c for the most generations at once")
    worker.pool_cls = Pool
    in_use = resources.descriptors_in_use()
    limit = resources.raise_descriptor_limit(resources.wanted_descriptors(worker.concurrency, in_use))
    if limit is None:
        return
    places = resources.fitting(worker.concurrency, limit, in_use)
    if places < 1:
        raise ConfigError(
            f"this process may open {limit} files (RLIMIT_NOFILE), which is too few for any generation: "
            f"allow it {resources.wanted_descriptors(worker.concurrency, in_use)}, by ulimit -n or LimitNOFILE="
        )
    if places < worker.concurrency:
        logger.warning(
            "-c %d does not fit: this process may open %d files (RLIMIT_NOFILE), so it runs %d generations at once; "
            "allow it %d, by ulimit -n or LimitNOFILE=",
            worker.concurrency,
            limit,
            places,
            resources.wanted_descriptors(worker.concurrency, in_use),
        )
        worker.concurrency = places
