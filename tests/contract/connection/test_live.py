"""The one subscription connection of a process: who hears what, and what happens when it breaks."""

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import redis

from genqueue.connection.hub import LiveHub
from genqueue.connection.shared import shared_hub
from genqueue.errors import RedisUnavailableError
from genqueue_ops.local_redis import local_redis

from ...support.redis_servers import only_real_redis
from ...support.waiting import wait_beside

Inbox = asyncio.Queue[bytes | None]

TIMEOUT_S = 30.0
"""The hub's own; who waits for less time than that shows that nothing waited for it."""


@pytest.fixture
async def hub(redis_url: str) -> AsyncIterator[LiveHub]:
    made = LiveHub(redis_url, TIMEOUT_S)
    yield made
    await made.close()


def subscriptions(raw: redis.Redis) -> list[dict[str, str]]:
    """The server's connections that listen."""
    return raw.client_list(_type="pubsub")


async def heard(inbox: Inbox, within_s: float = 10.0) -> bytes | None:
    async with asyncio.timeout(within_s):
        return await inbox.get()


async def test_each_listener_hears_its_channel_and_no_other(hub: LiveHub, raw: redis.Redis):
    inboxes = {name: (Inbox(), Inbox()) for name in ("a", "b")}
    async with contextlib.AsyncExitStack() as listening:
        for name, pair in inboxes.items():
            for inbox in pair:
                await listening.enter_async_context(hub.listen(name, inbox.put_nowait))
        raw.publish("b", "to b")
        raw.publish("a", "to a")
        for name, pair in inboxes.items():
            for inbox in pair:
                assert await heard(inbox) == f"to {name}".encode()
                assert inbox.empty()


@only_real_redis
async def test_many_channels_are_one_connection(hub: LiveHub, raw: redis.Redis):
    async with contextlib.AsyncExitStack() as listening:
        inboxes = [Inbox() for _ in range(200)]
        await asyncio.gather(
            *(
                listening.enter_async_context(hub.listen(f"channel-{number}", inbox.put_nowait))
                for number, inbox in enumerate(inboxes)
            )
        )
        (connection,) = subscriptions(raw)
        assert connection["sub"] == "200"
        for number in range(200):
            raw.publish(f"channel-{number}", number)
        assert [await heard(inbox) for inbox in inboxes] == [b"%d" % number for number in range(200)]


async def test_a_listener_that_leaves_takes_nothing_from_another(hub: LiveHub, raw: redis.Redis):
    stays, leaves = Inbox(), Inbox()
    async with hub.listen("a", stays.put_nowait):
        async with hub.listen("a", leaves.put_nowait):
            raw.publish("a", "1")
            assert (await heard(stays), await heard(leaves)) == (b"1", b"1")
        raw.publish("a", "2")
        assert await heard(stays) == b"2"
        assert leaves.empty()


async def test_the_last_to_leave_ends_the_subscription(hub: LiveHub, raw: redis.Redis):
    inbox = Inbox()
    async with hub.listen("a", inbox.put_nowait), hub.listen("b", inbox.put_nowait):
        assert {b"a", b"b"} <= set(raw.pubsub_channels())
    await wait_beside(lambda: not {b"a", b"b"} & set(raw.pubsub_channels()))


async def test_who_joins_as_the_last_one_leaves_hears_everything(hub: LiveHub, raw: redis.Redis):
    for number in range(50):
        inbox = Inbox()
        async with hub.listen("a", inbox.put_nowait):
            raw.publish("a", number)
            message = await heard(inbox)
            while message is None:  # "look into the log": always allowed
                message = await heard(inbox)
            assert message == b"%d" % number


async def test_a_listener_that_gives_up_at_once_is_no_harm_to_the_next(hub: LiveHub, raw: redis.Redis):
    async def listen_shortly() -> None:
        async with hub.listen("a", Inbox().put_nowait):
            await asyncio.Event().wait()

    for yields in range(6):
        first = asyncio.create_task(listen_shortly())
        inbox = Inbox()
        second = hub.listen("a", inbox.put_nowait)
        for _ in range(yields):
            await asyncio.sleep(0)
        joining = asyncio.create_task(second.__aenter__())
        await asyncio.sleep(0)
        first.cancel()
        async with asyncio.timeout(TIMEOUT_S / 2):
            await joining
        raw.publish("a", "1")
        while await heard(inbox) is None:
            pass
        await second.__aexit__(None, None, None)


async def test_a_hub_that_rests_has_nothing_on_the_loop_and_hears_again_what_is_wanted(hub: LiveHub, raw: redis.Redis):
    own = asyncio.all_tasks()
    for number in range(3):
        await hub.rest()
        assert asyncio.all_tasks() == own
        inbox = Inbox()
        async with hub.listen("a", inbox.put_nowait):
            await hub.rest()  # which is not for now
            raw.publish("a", number)
            while (message := await heard(inbox)) is None:
                pass
            assert message == b"%d" % number


async def test_who_listens_as_a_hub_goes_to_rest_hears_everything(hub: LiveHub, raw: redis.Redis):
    for yields in range(8):
        async with hub.listen("a", Inbox().put_nowait):
            pass
        resting = asyncio.create_task(hub.rest())
        for _ in range(yields):
            await asyncio.sleep(0)
        inbox = Inbox()
        async with asyncio.timeout(TIMEOUT_S / 2), hub.listen("a", inbox.put_nowait):
            raw.publish("a", "1")
            while await heard(inbox) is None:
                pass
        await resting


@only_real_redis
async def test_a_connection_that_was_lost_in_a_rest_is_made_anew(hub: LiveHub, raw: redis.Redis):
    for _ in range(2):
        inbox = Inbox()
        async with hub.listen("a", inbox.put_nowait):
            await wait_beside(lambda: {b"a"} & set(raw.pubsub_channels()))
            raw.publish("a", "1")
            while await heard(inbox) is None:
                pass
        await hub.rest()
        raw.client_kill_filter(_type="pubsub")
        raw.client_kill_filter(_type="normal", skipme=True)  # which it is without a channel


@only_real_redis
@pytest.mark.parametrize("times", [1, 5])
async def test_a_killed_connection_comes_back_and_everybody_is_told(hub: LiveHub, raw: redis.Redis, times: int):
    inboxes = [Inbox() for _ in range(5)]
    async with contextlib.AsyncExitStack() as listening:
        for number, inbox in enumerate(inboxes):
            await listening.enter_async_context(hub.listen(f"channel-{number}", inbox.put_nowait))
        for _ in range(times):
            assert raw.client_kill_filter(_type="pubsub") == 1
            for _ in ("lost", "back"):
                assert [await heard(inbox) for inbox in inboxes] == [None] * 5
        for number, inbox in enumerate(inboxes):
            raw.publish(f"channel-{number}", number)
            message = await heard(inbox)
            while message is None:
                message = await heard(inbox)
            assert message == b"%d" % number
        assert len(subscriptions(raw)) == 1


@only_real_redis
async def test_who_comes_as_the_connection_is_killed_is_heard_all_the_same(hub: LiveHub, raw: redis.Redis):
    async def come_and_go(number: int) -> None:
        for visit in range(30):
            async with hub.listen(f"channel-{number}-{visit}", Inbox().put_nowait):
                await asyncio.sleep(0)

    visitors = asyncio.gather(*(come_and_go(number) for number in range(20)))
    while not visitors.done():
        raw.client_kill_filter(_type="pubsub")
        await asyncio.sleep(0.003)
    await visitors


@pytest.mark.parametrize("server", ["fakeredis", "auto"])
async def test_a_redis_that_was_away_for_a_while_is_found_again(server):
    with local_redis(server) as own:
        hub = LiveHub(own.url, 1.0)
        inbox = Inbox()
        async with hub.listen("a", inbox.put_nowait):
            own.kill()
            with pytest.raises(RedisUnavailableError):
                async with hub.listen("b", inbox.put_nowait):
                    pass
            assert await heard(inbox) is None  # told at once, not when it is back
            own.start()
            with redis.Redis.from_url(own.url) as client:
                await wait_beside(lambda: client.publish("a", "1") == 1, 20.0)
            message = await heard(inbox)
            while message is None:
                message = await heard(inbox)
            assert message == b"1"
        await hub.close()


async def test_a_silent_redis_keeps_nobody_longer_than_the_timeout_however_many_wait():
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        hub = LiveHub(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", 1.0)

        async def try_to_listen(number: int) -> float:
            began_s = time.monotonic()
            with pytest.raises(RedisUnavailableError, match="no answer from Redis"):
                async with hub.listen(f"channel-{number}", Inbox().put_nowait):
                    pass
            return time.monotonic() - began_s

        took_s = await asyncio.gather(*(try_to_listen(number) for number in range(50)))
        assert max(took_s) < 4.0  # one after the other they would take 50 s
        await hub.close()


async def test_a_redis_that_is_silent_at_first_is_tried_again_within_the_timeout(redis_url: str, raw: redis.Redis):
    """As one whose machine stood still for a moment: two connections are lost, and the third is good."""
    redis_port, relays = urlsplit(redis_url).port, []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.append(asyncio.current_task())
        if len(relays) < 3:
            await reader.read()  # until the hub gives it up
            writer.close()
        else:
            from_redis, to_redis = await asyncio.open_connection("127.0.0.1", redis_port)
            await asyncio.gather(pump(reader, to_redis), pump(from_redis, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    hub = LiveHub(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", 5.0)
    inbox = Inbox()
    async with hub.listen("a", inbox.put_nowait):
        raw.publish("a", "1")
        assert await heard(inbox) == b"1"
    await hub.close()
    server.close()
    await asyncio.gather(*relays)
    assert len(relays) == 3


async def test_a_hub_that_never_reached_redis_leaves_no_broken_task_behind():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        hub = LiveHub(f"redis://127.0.0.1:{held.getsockname()[1]}/0", 1.0)
        troubles: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        for _ in range(2):
            with pytest.raises(RedisUnavailableError):
                async with hub.listen("a", Inbox().put_nowait):
                    pass
            for _ in range(20):  # the hub hears that its listener has left
                await asyncio.sleep(0)
        await hub.close()
        del hub
        gc.collect()  # a task that died unheard says so when it goes
        assert troubles == []


async def test_clients_of_one_loop_share_a_hub_and_the_last_closes_it(redis_url: str, raw: redis.Redis):
    async with shared_hub(redis_url, 5.0) as one:
        async with shared_hub(redis_url, 5.0) as other:
            assert other is one
        async with one.listen("a", Inbox().put_nowait):
            assert b"a" in raw.pubsub_channels()
    async with shared_hub(redis_url, 5.0) as later:
        assert later is not one


def test_loops_one_after_the_other_have_a_hub_each(redis_url: str):
    async def use_it() -> LiveHub:
        async with shared_hub(redis_url, 5.0) as hub, hub.listen("a", Inbox().put_nowait):
            return hub

    assert asyncio.run(use_it()) is not asyncio.run(use_it())


async def test_a_hub_can_be_closed_at_any_moment(redis_url: str):
    for yields in range(20):
        hub = LiveHub(redis_url, 5.0)
        async with hub.listen("a", Inbox().put_nowait):
            pass
        for _ in range(yields):
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await hub.close()


async def test_a_hub_whose_tasks_were_cancelled_first_leaves_none_behind(redis_url: str):
    before = asyncio.all_tasks()
    for yields in range(20):
        hub = LiveHub(redis_url, 5.0)

        async def listen(hub: LiveHub = hub) -> None:
            async with hub.listen("a", Inbox().put_nowait):
                await asyncio.Event().wait()

        listening = asyncio.create_task(listen())
        await wait_beside(lambda: len(asyncio.all_tasks() - before) == 3)
        for _ in range(yields):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await asyncio.wait([listening])
        await hub.close()
        assert asyncio.all_tasks() == before
