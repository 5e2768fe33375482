"""The threads that wait for the engine: there from the start, and free again however their task ended."""

from types import SimpleNamespace

import pytest
from celery.concurrency.base import BasePool
from celery.concurrency.solo import TaskPool as Solo
from celery.worker import state

from genqueue.errors import ConfigError
from genqueue_worker.broker.pool import Pool, choose_pool, green_pool


class Request:
    id, name = "one", "genqueue.generate"
    ended = 0

    def on_success(self, outcome):
        self.ended += 1


@pytest.fixture
def pool():
    made = Pool(limit=3)
    made.start()
    yield made
    made.stop()


def test_all_threads_are_there_before_the_first_task(pool):
    assert pool.info["threads"] == 3


def failing():
    raise OSError("no file to write the result's traceback from")


@pytest.mark.parametrize("target", [failing, lambda: (0, "a result", 0.1)])
def test_a_place_is_free_again_however_its_task_ended(pool, target):
    request = Request()
    state.task_reserved(request)
    state.task_accepted(request)
    done = pool.apply_async(target, callback=request.on_success)
    done.wait(10)
    pool.stop()  # what is told at a task's end is told by its thread
    if target is failing:
        assert request not in state.reserved_requests
        assert request not in state.active_requests
        assert request.id not in state.requests
    else:
        state.task_ready(request)
        assert request.ended == 1


def worker(pool_cls, **options):
    return SimpleNamespace(pool_cls=pool_cls, concurrency=4, options=options)


class Greenlets(BasePool):
    """Stands for gevent's and eventlet's, which are not installed here."""


@pytest.mark.parametrize("other", [Solo, Greenlets, "prefork", "solo", "processes"])
def test_a_pool_that_is_none_of_threads_is_refused_in_words(other):
    with pytest.raises(ConfigError, match="does not run generations: leave -P out, or write -P threads"):
        choose_pool(worker(other))


def eventlet(is_patched):
    return {"eventlet.patcher": SimpleNamespace(is_monkey_patched=lambda name: is_patched and name == "thread")}


def gevent(is_patched):
    return {"gevent.monkey": SimpleNamespace(is_module_patched=lambda name: is_patched and name == "threading")}


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        pytest.param({}, "", id="neither"),
        pytest.param(eventlet(False) | gevent(False), "", id="imported-alone"),
        pytest.param(eventlet(True), "eventlet", id="eventlet"),
        pytest.param(gevent(True), "gevent", id="gevent"),
    ],
)
def test_green_threads_in_place_of_pythons_are_seen(modules, expected):
    assert green_pool(modules) == expected


def test_a_pool_that_would_change_its_size_is_refused_in_words():
    with pytest.raises(ConfigError, match="--autoscale does not go with a pool of threads"):
        choose_pool(worker("threads", autoscale=(3, 1)))


@pytest.mark.parametrize("name", ["threads", "celery.concurrency.thread:TaskPool", Pool])
def test_threads_are_ours(name):
    chosen = worker(name)
    choose_pool(chosen)
    assert chosen.pool_cls is Pool
    assert chosen.concurrency == 4
