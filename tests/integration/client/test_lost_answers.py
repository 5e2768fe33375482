"""Redis did what it was asked, and its answer got lost on the way: each end is told all the same, and once."""

import contextlib
import socket
import threading
from collections import Counter

import pytest
import redis

from genqueue import GenerationClient, Settings
from genqueue.registry import script
from genqueue_worker.engine.leases import LeaseKeeper
from genqueue_worker.observe.metrics import Metrics

from ...support.roles import as_role

LOST = 5
"""More answers than one call is tried for."""
ENDED = 30
NOBODY = {"api_type": "text_generation_inference", "api_params": {"url": "http://127.0.0.1:1"}}


class LossyWay:
    """A TCP way to Redis on which the first answers to some scripts are lost, and their connections with them."""

    def __init__(self, server, scripts):
        self._server = server
        self._door = socket.create_server(("127.0.0.1", 0))
        self._marks = {script.script(name).sha1.encode(): name for name in scripts}
        self._lock = threading.Lock()
        self._ends = []
        self.lost = Counter()
        self.port = self._door.getsockname()[1]
        with redis.Redis.from_url(server.url) as client:
            for name in scripts:
                client.script_load(script.script(name).source)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(("127.0.0.1", self._server.port))
                self._ends += near, far
                deaf = threading.Event()
                threading.Thread(target=self._ask, args=(near, far, deaf), daemon=True).start()
                threading.Thread(target=self._answer, args=(far, near, deaf), daemon=True).start()

    def _ask(self, near, far, deaf):
        with contextlib.suppress(OSError):
            while piece := near.recv(65536):
                name = next((name for mark, name in self._marks.items() if mark in piece), None)
                with self._lock:
                    if name is not None and self.lost[name] < LOST:
                        self.lost[name] += 1
                        deaf.set()
                far.sendall(piece)
        self._close(near, far)

    def _answer(self, far, near, deaf):
        with contextlib.suppress(OSError):
            while piece := far.recv(65536):
                if deaf.is_set():
                    break
                near.sendall(piece)
        self._close(near, far)

    @staticmethod
    def _close(*ends):
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._close(self._door, *self._ends)
        for end in (self._door, *self._ends):
            end.close()


@pytest.fixture
def lossy(own_redis):
    """``lossy("finish", …)``: the way's port."""
    ways = []

    def make(*scripts):
        ways.append(LossyWay(own_redis, scripts))
        return ways[-1]

    yield make
    for way in ways:
        way.close()


@pytest.fixture
def client(own_redis):
    settings = Settings(redis_url=as_role(own_redis.url, "producer"), generators={"default": NOBODY})
    with GenerationClient(settings) as opened:
        yield opened


def by_way(url, server, way):
    return url.replace(f":{server.port}/", f":{way.port}/")


def told(log, ids):
    """How often the log says of each that it was cancelled."""
    lines = [line for line in log.splitlines() if '"outcome": "cancelled"' in line]
    return [sum(each in line for line in lines) for each in ids]


def test_a_cancel_in_the_queue_is_told_once(own_redis, lossy, client, ask, start_worker, standin, eventually):
    generations = [client.submit(ask()) for _ in range(ENDED)]
    for generation in generations:
        generation.cancel()
    ids = [generation.id for generation in generations]
    way = lossy("claim", "discard")
    tgi = {"default": {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}}
    worker = start_worker(
        tgi,
        own_redis.url,
        environ={"GENQUEUE_REDIS_URL": by_way(as_role(own_redis.url, "worker"), own_redis, way)},
    )
    eventually(lambda: way.lost == {"claim": LOST, "discard": LOST}, within_s=20)
    eventually(lambda: min(told(worker.log, ids)) == 1, within_s=20)
    prompt = ask()
    assert client.submit(prompt).result(timeout_s=20).replies == [prompt.answer]  # it goes on, and says no more of them
    assert told(worker.log, ids) == [1] * ENDED


def test_an_end_that_a_sweeper_gave_is_told_once(own_redis, lossy, client, ask, caplog, eventually):
    caplog.set_level("INFO")
    generations = [client.submit(ask(), deadline_s=0.2) for _ in range(ENDED)]
    way = lossy("finish")
    settings = Settings(redis_url=by_way(own_redis.url, own_redis, way), generators={"default": NOBODY})
    keeper = LeaseKeeper(settings, "sweeper", list, lambda *_: None, dict, Metrics(settings.generators))
    keeper.start()
    try:
        ids = {generation.id for generation in generations}
        eventually(lambda: {getattr(each, "generation_id", "") for each in caplog.records} >= ids, within_s=20)
        eventually(lambda: not keeper.redis_trouble, within_s=20)
    finally:
        keeper.stop()
    expired = [each.generation_id for each in caplog.records if getattr(each, "outcome", "") == "expired"]
    assert sorted(expired) == sorted(ids)
    assert way.lost == {"finish": LOST}
