"""What a chaos run asks for and breaks: the same for the same seed, never everybody at once, every text known."""

from itertools import pairwise

import pytest

from genqueue_ops.chaos_plan import GENERATORS, WORKERS, Kind, evils, orders
from genqueue_ops.tgi_standin.decoding import Decoded
from genqueue_ops.tgi_standin.engine import Step
from genqueue_ops.tgi_standin.prose import EOS, next_tokens
from genqueue_ops.tgi_standin.script import Script, directed

SEEDS = range(200)
WORKER_EVILS = {Kind.KILL, Kind.FREEZE, Kind.LEAVE}


def test_a_seed_decides_everything():
    assert evils(7, 90.0) == evils(7, 90.0)
    assert orders(7, 50, 40.0) == orders(7, 50, 40.0)
    assert evils(7, 90.0) != evils(8, 90.0)
    assert orders(7, 50, 40.0) != orders(8, 50, 40.0)


def test_evils_are_in_order_and_end_with_the_submits():
    for seed in SEEDS:
        times_s = [evil.at_s for evil in evils(seed, 60.0)]
        assert times_s == sorted(times_s)
        assert times_s[0] > 0 and times_s[-1] < 60.0


def test_every_kind_comes_before_any_comes_a_third_time():
    for seed in SEEDS:
        assert {evil.kind for evil in evils(seed, 300.0)[:9]} == set(Kind)


def test_one_worker_at_least_is_left_alone():
    """10 s are enough for a replacement to start; a frozen worker wakes before."""
    for seed in SEEDS:
        hit_s = dict.fromkeys(range(WORKERS), -100.0)
        for evil in evils(seed, 120.0):
            if evil.kind in WORKER_EVILS:
                others = [at_s for place, at_s in hit_s.items() if place != evil.target]
                assert evil.at_s - hit_s[evil.target] >= 9.99
                assert any(evil.at_s - at_s >= 9.99 for at_s in others)
                assert evil.lasts_s == 0.0 or 5.0 <= evil.lasts_s < 10.0
                hit_s[evil.target] = evil.at_s


@pytest.mark.parametrize(
    "kinds", [{Kind.ENDPOINT}, {Kind.REDIS_KILL, Kind.REDIS_STOP, Kind.REDIS_FREEZE}], ids=["endpoints", "redis"]
)
def test_there_is_one_outage_at_a_time(kinds):
    for seed in SEEDS:
        back_s = 0.0
        for evil in evils(seed, 120.0):
            if evil.kind in kinds:
                assert evil.at_s >= back_s
                back_s = evil.at_s + evil.lasts_s


ORDERED = orders(3, 400, 100.0)


def test_orders_come_at_a_steady_rate_and_of_every_kind():
    assert [int(order.at_s / 0.25) for order in ORDERED] == list(range(400))
    for name in ("generator", "ends", "again", "stream", "split_characters"):
        assert len({getattr(order, name) for order in ORDERED}) >= 2, name
    assert {order.generator for order in ORDERED} == set(GENERATORS)
    assert any(order.cancel_after_s for order in ORDERED)
    assert any(order.deadline_s for order in ORDERED)
    assert any(len(order.aways) > 1 for order in ORDERED)


def test_no_prompt_begins_with_another():
    prompts = sorted(order.prompt for order in ORDERED)
    assert not any(later.startswith(earlier) for earlier, later in pairwise(prompts))


def test_an_order_knows_what_the_server_will_say():
    for order in ORDERED[:120]:
        script, options = directed(Script(), order.prompt), order.options
        decoded = Decoded(options["generation_kwargs"]["max_new_tokens"], tuple(options["stop_words"] or ()))
        words = next_tokens(order.prompt, split_characters=script.split_characters)
        while True:
            over = script.tokens is not None and len(decoded.tokens) >= script.tokens
            if decoded.push(Step(EOS if over else next(words), over)):
                break
        assert (decoded.finish_reason, decoded.text) == (order.ends, order.text)
        assert len(decoded.tokens) == order.completion_tokens
        assert order.text_after[order.completion_tokens] == order.text
