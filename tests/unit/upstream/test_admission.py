"""How many attempts are let in, and how many wait at hand."""

import asyncio

import pytest

from genqueue_worker.upstream.admission import Admission
from genqueue_worker.upstream.endpoint import Endpoint

LONG_S = 60.0


class Gate:
    """An admission to endpoints that take ``limits`` calls at once, and what it said."""

    def __init__(self, *limits: int | None) -> None:
        now_s = asyncio.get_running_loop().time()
        self.endpoints = [
            Endpoint(f"http://{index}", f"http://{index}", limit=limit, full_until_s=now_s + LONG_S)
            for index, limit in enumerate(limits)
        ]
        self.backlog = 0
        self.said: list[bool] = []
        self.admission = Admission(self.endpoints, lambda: self.backlog, lambda: self.said.append(self.is_closed))

    @property
    def is_closed(self) -> bool:
        return self.admission.is_closed

    async def begin(self, *at_endpoints: int) -> None:
        """Attempts enter, and call."""
        for index in at_endpoints:
            assert await self.admission.enter()
            self.endpoints[index].running += 1

    def end(self, at_endpoint: int = 0) -> None:
        self.endpoints[at_endpoint].running -= 1
        self.admission.leave()

    async def at_hand(self, count: int) -> list["asyncio.Task[bool]"]:
        """So many come while all is full."""
        tasks = [asyncio.create_task(self.admission.enter()) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks


async def one_at_hand() -> tuple[Gate, "asyncio.Task[bool]"]:
    """A full endpoint, and who waits for it because others do as well."""
    gate = Gate(1)
    await gate.begin(0)
    gate.backlog = 5
    gate.admission._decide()
    (waiting,) = await gate.at_hand(1)
    return gate, waiting


async def test_where_no_limit_is_known_all_enter():
    gate = Gate(None)
    await gate.begin(*[0] * 1000)
    assert (gate.is_closed, gate.said) == (False, [])


async def test_it_closes_with_the_last_that_there_is_room_for_and_opens_when_one_ends():
    gate = Gate(2, 1)
    await gate.begin(0, 0)
    assert not gate.is_closed
    await gate.begin(1)
    assert gate.is_closed
    assert await gate.admission.enter() is False
    gate.end()
    assert (gate.is_closed, gate.said) == (False, [True, False])


async def test_who_entered_and_does_not_call_yet_counts():
    gate = Gate(1)
    assert await gate.admission.enter()
    assert gate.is_closed
    gate.admission.leave()
    assert not gate.is_closed


async def test_where_others_wait_anyway_one_is_kept_at_hand_and_enters_next():
    gate = Gate(2)
    await gate.begin(0, 0)
    gate.backlog = 10
    gate.admission._decide()  # as it does by itself ten times a second
    assert not gate.is_closed
    waiting, too_many = await gate.at_hand(2)
    assert gate.is_closed
    assert await too_many is False
    assert not waiting.done()
    gate.end()
    assert await waiting is True
    assert gate.said == [True, False, True, False]  # the next one may come


async def test_it_opens_when_half_of_those_at_hand_are_in():
    gate = Gate(32)
    await gate.begin(*[0] * 32)
    gate.backlog = 100
    gate.admission._decide()
    waiting = await gate.at_hand(4)
    assert gate.is_closed
    states = []
    for _ in range(3):
        gate.end()
        await asyncio.sleep(0)
        gate.endpoints[0].running += 1  # who was let in calls
        states.append((sum(task.done() for task in waiting), gate.is_closed))
    assert states == [(1, True), (2, False), (3, False)]
    gate.admission.dismiss()
    assert [await task for task in waiting] == [True, True, True, False]


async def test_who_waits_at_hand_is_sent_away_once_nobody_else_waits():
    gate, waiting = await one_at_hand()
    gate.backlog = 1  # it alone: another host would take it at once
    assert await asyncio.wait_for(waiting, 10) is False


async def test_whether_a_full_endpoint_takes_more_is_found_out_without_anybody_ending():
    gate, waiting = await one_at_hand()
    gate.endpoints[0].full_until_s = asyncio.get_running_loop().time()
    assert await asyncio.wait_for(waiting, 10) is True


async def test_while_another_is_awake_one_that_wakes_up_has_no_room():
    gate = Gate(1, None)
    gate.endpoints[1].is_waking = True
    await gate.begin(0)
    assert gate.is_closed
    gate.endpoints[0].is_down = True
    gate.admission._decide()
    assert await gate.admission.enter()  # it parks there


async def test_where_nothing_runs_nobody_waits_at_hand():
    gate = Gate(0)
    gate.backlog = 5
    assert await gate.admission.enter() is False
    assert gate.is_closed


@pytest.mark.parametrize("is_let_in", [False, True])
async def test_who_gives_up_waiting_takes_no_room(is_let_in):
    gate, waiting = await one_at_hand()
    if is_let_in:
        gate.end()  # it is let in, and cancelled before it hears of it
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not is_let_in:
        gate.end()
    await gate.begin(0)
