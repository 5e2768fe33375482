"""What ends an attempt from outside: once, for the first reason, and only what is still under way."""

import asyncio

import pytest

from genqueue_worker.engine.scope import DEADLINE, Interrupted, Scope

SOON_S = 0.01


async def call() -> None:
    await asyncio.sleep(60)


async def interrupted_by(scope: Scope, deadline_s: float | None = None) -> str:
    with pytest.raises(Interrupted) as caught:
        async with scope.until(deadline_s):
            await call()
    return caught.value.reason


async def test_a_call_ends_at_its_deadline():
    assert await interrupted_by(Scope(), asyncio.get_running_loop().time() + SOON_S) == DEADLINE


async def test_a_call_ends_once_it_is_interrupted():
    scope = Scope()
    asyncio.get_running_loop().call_soon(scope.interrupt, "cancelled")
    assert await interrupted_by(scope) == "cancelled"


async def test_the_first_reason_counts():
    scope = Scope()
    scope.interrupt("superseded")
    scope.interrupt("cancelled")
    with pytest.raises(Interrupted, match="superseded"):
        scope.check()


async def test_what_is_heard_before_the_call_stops_it_before_it_begins():
    scope = Scope()
    scope.check()
    scope.interrupt("cancelled")
    with pytest.raises(Interrupted, match="cancelled"):
        scope.check()


async def test_what_is_heard_after_the_call_interrupts_nothing():
    scope = Scope()
    async with scope.until(None):
        pass
    scope.interrupt("cancelled")
    await asyncio.sleep(SOON_S)
    assert scope.reason == "cancelled"


async def test_an_error_of_the_call_stays_what_it_is():
    """Also where it is a TimeoutError that the scope has not caused."""
    for error in (ValueError("words"), TimeoutError("words")):
        with pytest.raises(type(error), match="words"):
            async with Scope().until(None):
                raise error


async def test_whoever_ends_the_task_is_not_taken_for_an_interrupt():
    async def attempt() -> None:
        async with Scope().until(None):
            await call()

    task = asyncio.create_task(attempt())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
