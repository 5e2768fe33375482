"""The shells: scripts that Redis forgot, a Redis that is away, and what its errors say."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import redis

from genqueue import keys
from genqueue.connection.hub import LiveHub
from genqueue.connection.shared import LoopThread
from genqueue.connection.store import AsyncStore, Store
from genqueue.errors import GenqueueError, RedisUnavailableError, StoreError
from genqueue.registry import attempts, fleet, reading
from genqueue.registry.script import Call
from genqueue_ops.local_redis import LocalRedis, local_redis

from ...support.waiting import wait_for

PASSWORD = "s3cret-do-not-show"


def test_a_redis_that_forgot_the_scripts_is_given_them_again(registry):
    generation_id = registry.running()
    for _ in range(2):
        registry.raw.script_flush()
        assert registry.run(attempts.renew([(generation_id, 1)], lease_s=30.0, keep_s=60)) == {}


def test_an_answer_of_redis_that_is_an_error_is_ours(registry):
    registry.raw.set(keys.log("g"), "no stream", ex=60)
    with pytest.raises(StoreError, match="Redis refused: WRONGTYPE") as refused:
        registry.run(reading.read_log("g", 1))
    assert not isinstance(refused.value, RedisUnavailableError)


def test_an_error_inside_a_script_is_ours(registry):
    registry.raw.set(keys.waiting("default"), "no sorted set", ex=60)
    with pytest.raises(StoreError, match="Redis refused"):
        registry.submit()


@pytest.fixture(scope="module")
def locked_redis(real_redis: LocalRedis) -> Iterator[LocalRedis]:
    """One that wants a password."""
    with local_redis() as server, redis.Redis.from_url(server.url) as operator:
        operator.config_set("requirepass", "the right one")
        yield server


@pytest.mark.parametrize("credentials", [f":{PASSWORD}@", f"somebody:{PASSWORD}@", ""], ids=["wrong", "user", "none"])
async def test_credentials_that_redis_refuses_are_said_to_be_and_not_shown(locked_redis, credentials, caplog):
    url = f"redis://{credentials}127.0.0.1:{locked_redis.port}/0"
    store, other, hub = Store(url, 5.0), AsyncStore(url, 5.0), LiveHub(url, 5.0)

    async def listen() -> None:
        async with hub.listen("channel", print):
            pass

    call = reading.read_text("nobody's")
    for attempt in (lambda: asyncio.to_thread(store.run, call), lambda: other.run(call), listen):
        with pytest.raises(StoreError) as refused:
            await attempt()
        assert not isinstance(refused.value, RedisUnavailableError)
        assert str(refused.value).startswith(f"Redis at 127.0.0.1:{locked_redis.port} refuses the credentials: ")
        assert PASSWORD not in str(refused.value)
    assert PASSWORD not in caplog.text
    assert len(caplog.records) < 5  # nor is it tried again without a pause
    store.close()
    await other.close()
    await hub.close()


async def test_who_sends_much_and_has_not_said_who_it_is_is_told_the_same(locked_redis):
    """Redis does not even answer NOAUTH to a call of so many words."""
    bare = Store(f"redis://127.0.0.1:{locked_redis.port}/0", 5.0)
    with pytest.raises(StoreError, match=r"^Redis at .* refuses the credentials: "):
        bare.run(fleet.overview([f"generator-{number}" for number in range(50)]))
    bare.close()


KNOCKS = """
import itertools, signal, sys
from genqueue.registry import attempts, reading
from genqueue.connection.store import Store

is_armed = False

def raises(*_):
    if is_armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, raises)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0013)
for _ in range(2000):
    store = Store(sys.argv[1], 5.0)
    try:
        is_armed = True
        for index in itertools.count(1):
            store.run(reading.read_log("nobody's", index, limit=index))
            store.run(attempts.renew([], lease_s=index * 0.5, keep_s=index))
    except KeyboardInterrupt:
        is_armed = False
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_signal_at_any_moment_of_a_call_raises_and_crashes_nothing(real_redis):
    """hiredis crashes when it is given a number just as a handler raises; Ctrl-C in ``genqueue submit`` met it."""
    knocked = [sys.executable, "-X", "faulthandler", "-c", KNOCKS, real_redis.url.removesuffix("/0") + "/1"]
    done = subprocess.run(knocked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


INTERRUPTED = """
import sys
from genqueue.connection.store import Store
from genqueue.registry import fleet

def interrupted(store, number):
    def look(frame, event, _):
        nonlocal number
        if event == "call" and "/redis/" in frame.f_code.co_filename and frame.f_code.co_name != "__del__":
            number -= 1
            if number == 0:
                raise KeyboardInterrupt
    sys.settrace(look)
    try:
        store.run(fleet.read_workers())
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return number <= 0

number = 1
while interrupted(store := Store(sys.argv[1], 5.0), number):
    store.run(fleet.read_workers())
    store.close()
    number += 1
print(number)
"""


def test_a_store_serves_on_after_ctrl_c_at_any_call_of_redis_py(real_redis):
    """A connection that was interrupted while it was made stood in the pool, for the next call to fail with."""
    command = [sys.executable, "-c", INTERRUPTED, real_redis.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_many_threads_share_a_store(redis_url: str):
    store = Store(redis_url, 5.0)
    answers: list[object] = []

    def ask() -> None:
        answers.extend(store.run(reading.read_text("nobody's")) for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert answers == [""] * 800


async def test_more_tasks_than_connections_wait_for_their_turn(redis_url: str):
    store = AsyncStore(redis_url, 5.0)
    assert await asyncio.gather(*(store.run(reading.read_text("nobody's")) for _ in range(500))) == [""] * 500
    await store.close()


async def test_a_task_that_is_cancelled_at_any_moment_ends(redis_url: str):
    store = AsyncStore(redis_url, 5.0)

    async def ask_for_ever() -> None:
        while True:
            await store.run(reading.read_text("nobody's"))

    for yields in range(60):
        asking = [asyncio.create_task(ask_for_ever()) for _ in range(5)]
        for _ in range(yields):
            await asyncio.sleep(0)
        for task in asking:
            task.cancel()  # once
        done, going_on = await asyncio.wait(asking, timeout=30)
        for task in going_on:
            task.cancel()
        assert (len(done), yields) == (5, yields)
        assert all(task.cancelled() for task in done)
    assert await store.run(reading.read_text("nobody's")) == ""
    await store.close()


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port on which nobody listens, held so that nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield listening.getsockname()[1]


def ask_sync(url: str, timeout_s: float) -> None:
    store = Store(url, timeout_s)
    try:
        store.run(reading.read_text("g"))
    finally:
        store.close()


def ask_async(url: str, timeout_s: float) -> None:
    async def ask() -> None:
        store = AsyncStore(url, timeout_s)
        try:
            await store.run(reading.read_text("g"))
        finally:
            await store.close()

    asyncio.run(ask())


def listen(url: str, timeout_s: float) -> None:
    async def ask() -> None:
        hub = LiveHub(url, timeout_s)
        try:
            async with hub.listen("channel", lambda message: None):
                pass
        finally:
            await hub.close()

    asyncio.run(ask())


@pytest.mark.parametrize("how", [ask_sync, ask_async, listen])
@pytest.mark.parametrize("port", ["refusing", "silent"])
def test_a_redis_that_does_not_answer_is_reported_in_time_without_its_password(request, how, port):
    number = request.getfixturevalue(port)
    timeout_s = 1.0
    began_s = time.monotonic()
    with pytest.raises(RedisUnavailableError) as told:
        how(f"redis://user:{PASSWORD}@127.0.0.1:{number}/0", timeout_s)
    took_s = time.monotonic() - began_s
    assert f"127.0.0.1:{number}" in str(told.value)
    assert (told.value.host, told.value.port) == ("127.0.0.1", number)
    cause: BaseException | None = told.value
    while cause is not None:
        assert PASSWORD not in str(cause)
        cause = cause.__cause__ or cause.__context__
    assert took_s < timeout_s + 10.0  # what a busy machine adds


@pytest.mark.parametrize("how", [ask_sync, ask_async, listen])
def test_a_redis_that_is_loading_or_refuses_us_raises_nothing_but_ours(redis_url: str, how: Callable[..., None]):
    address = urlsplit(redis_url)
    with pytest.raises(GenqueueError) as told:
        how(f"redis://user:{PASSWORD}@{address.hostname}:{address.port}/0", 2.0)
    assert PASSWORD not in str(told.value)


@pytest.fixture
def dropping(redis_url: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The server behind a relay that can cut every connection."""
    target = urlsplit(redis_url)
    ends: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection((target.hostname, target.port))
                ends.extend((near, far))
                for source, sink in ((near, far), (far, near)):
                    pumps.append(threading.Thread(target=pump, args=(source, sink)))
                    pumps[-1].start()

    def cut() -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    pumps: list[threading.Thread] = []
    accepting = threading.Thread(target=accept)
    accepting.start()
    yield f"redis://127.0.0.1:{server.getsockname()[1]}/0", cut
    server.shutdown(socket.SHUT_RDWR)
    accepting.join()
    server.close()
    cut()
    for each in pumps:
        each.join()
    for end in ends:
        end.close()


@pytest.mark.parametrize("shell", ["sync", "async"])
def test_a_connection_that_was_cut_between_two_calls_is_made_anew(dropping, shell, loop_thread: LoopThread):
    url, cut = dropping
    if shell == "sync":
        store = Store(url, 5.0)
        run, close = store.run, store.close
    else:
        other = AsyncStore(url, 5.0)
        run, close = lambda call: loop_thread.call(other.run(call)), lambda: loop_thread.call(other.close())
    for _ in range(3):
        assert run(reading.read_text("nobody's")) == ""
        cut()
    close()


def test_a_store_that_is_closed_beside_a_call_leaves_no_connection(real_redis):
    """redis-py connects anew for a call whose connection was closed under it."""
    store = Store(real_redis.url.removesuffix("/0") + "/3", 5.0)
    call = Call(("BLPOP", "nothing", "1"), lambda answer: answer)
    with redis.Redis.from_url(real_redis.url) as db, ThreadPoolExecutor(1) as pool:

        def connections():
            return [client["cmd"] for client in db.client_list() if client["db"] == "3"]

        running = pool.submit(store.run, call)
        wait_for(lambda: connections() == ["blpop"])
        store.close()
        with contextlib.suppress(StoreError):
            running.result(10)
        wait_for(lambda: connections() == [])
        store.run(reading.read_text("nobody's"))  # it may be used again
        wait_for(lambda: connections() == [])
