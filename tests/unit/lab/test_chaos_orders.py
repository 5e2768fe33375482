"""What a chaos run asks for: the same for the same seed, of every kind, and every text known beforehand."""

from dataclasses import replace
from itertools import pairwise

import pytest

from genqueue.wire.request import read_request
from genqueue_lab.chaos.orders import WORKER_HEADER, behind, orders
from genqueue_lab.chaos.plan import DEEP, GENERATORS
from genqueue_ops.standin import chat
from genqueue_ops.standin.decoding import Decoded
from genqueue_ops.standin.engine import Step
from genqueue_ops.standin.prose import EOS, next_tokens, variant
from genqueue_ops.standin.script import Script, directed

ORDERED = orders(3, 400, 100.0)


def test_a_seed_decides_everything():
    assert orders(7, 50, 40.0) == orders(7, 50, 40.0)
    assert orders(7, 50, 40.0) != orders(8, 50, 40.0)


def test_orders_come_at_a_steady_rate_and_of_every_kind():
    assert [int(order.at_s / 0.25) for order in ORDERED] == list(range(400))
    for name in ("ends", "again", "stream", "split_characters", "is_chat", "is_sync", "resets", "varies", "decoys"):
        assert len({getattr(order, name) for order in ORDERED}) >= 2, name
    assert {order.generator for order in ORDERED} == set(GENERATORS)
    assert any(order.cancel_after_s for order in ORDERED)
    assert any(order.deadline_s for order in ORDERED)
    assert any(len(order.aways) > 1 for order in ORDERED)
    mishaps = {mishap["kind"] for order in ORDERED for mishap in order.mishaps}
    assert mishaps >= {"status", "refuse", "garbage", "half", "drip", "stall", "cut", "close", "reset", "error"}


def test_only_what_begins_anew_varies():
    assert all(order.never_continues for order in ORDERED if order.varies)  # nor where it is handed over
    assert any(order.varies and order.is_chat for order in ORDERED)
    assert any(order.begins_anew and not order.varies for order in ORDERED)


def test_what_is_not_streamed_is_not_silent_for_ever():
    for order in orders(5, 2000, 100.0):
        assert order.again != "one-shot" or all(mishap["kind"] != "stall" for mishap in order.mishaps)


def test_no_prompt_begins_with_another():
    prompts = sorted(order.prompt for order in ORDERED)
    assert not any(later.startswith(earlier) for earlier, later in pairwise(prompts))


def request_of(order):
    given = {"messages": order.messages} if order.is_chat else {"prompt": order.prompt}
    options = {name: value for name, value in order.options.items() if name != "idempotency_key"}
    return read_request(given | options)


@pytest.mark.parametrize("worker", ["worker-1", "worker-2"])
def test_an_order_knows_what_the_server_will_say_to_each_worker(worker):
    for order in ORDERED[:120]:
        request = request_of(order)
        prompt = chat.render(order.messages) if order.is_chat else order.prompt
        script = directed(Script(), prompt)
        if script.by_header is not None:
            assert script.by_header == WORKER_HEADER
            prompt = variant(prompt, worker)
        kwargs = request.generation_kwargs
        limit = kwargs.max_tokens if order.is_chat else kwargs.max_new_tokens
        decoded = Decoded(limit, tuple(request.stop_words))
        words = next_tokens(prompt, split_characters=script.split_characters)
        while True:
            over = script.tokens is not None and len(decoded.tokens) >= script.tokens
            if decoded.push(Step(EOS if over else next(words), over)):
                break
        assert (decoded.finish_reason, decoded.text) == (order.ends, order.text_by(worker))
        assert len(decoded.tokens) == order.completion_tokens
        assert order.text_after(worker)[order.completion_tokens] == order.text_by(worker)


def test_what_varies_has_other_words_for_each_worker():
    varying = [order for order in ORDERED if order.varies]
    assert all(order.text_by("worker-1") != order.text_by("worker-2") for order in varying)
    order = replace(varying[0], varies=False)
    assert order.text_by("worker-1") == order.text_by("worker-2") == order.text


def test_a_chat_ends_by_the_words_that_a_chat_has():
    reasons = {(order.is_chat, order.ends): order.finish_reason for order in ORDERED}
    assert reasons[True, "eos_token"] == "stop" and reasons[False, "eos_token"] == "eos_token"


def test_those_behind_a_storm_are_nobody_elses():
    first, second = behind(3, 0, 400), behind(3, 1, 500)
    assert {order.generator for order in [*first, *second]} == {DEEP}
    numbers = [order.number for order in [*ORDERED, *first, *second]]
    assert len(numbers) == len(set(numbers))
