"""When a sequence ends."""

import pytest

from genqueue_ops.standin.decoding import Decoded
from genqueue_ops.standin.engine import Step, Token

EOS = Token(2, "</s>", 0.0, True)


def word(text):
    return Step(Token(9, text, -1.0, False), ends=False)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        pytest.param([word(" a"), word(" b"), word(" c")], "length", id="length"),
        pytest.param([word(" a"), Step(EOS, ends=True)], "eos_token", id="end-token"),
        pytest.param([word(" a"), word(" b"), Step(EOS, ends=True)], "length", id="end-token-at-the-limit"),
        pytest.param([word(" a ST"), word("OP")], "stop_sequence", id="stop-string-over-two-tokens"),
        pytest.param([word(" a STOPS")], None, id="stop-string-overshot"),
        pytest.param([word(" a"), word(" b"), word("STOP")], "length", id="stop-string-at-the-limit"),
        pytest.param([Step(Token(9, " a", -1.0, False), ends=True)], "eos_token", id="end-without-end-token"),
    ],
)
def test_finish_reason(steps, reason):
    decoded = Decoded(3, ("STOP",))
    for step in steps[:-1]:
        assert decoded.push(step) is None
    assert decoded.push(steps[-1]) == decoded.finish_reason == reason


def test_text_holds_the_stop_string_and_no_special_token():
    decoded = Decoded(10, (" b",))
    for step in (word(" a"), Step(EOS, ends=False), word(" b")):
        decoded.push(step)
    assert decoded.text == " a b"
    assert len(decoded.tokens) == 3


def test_a_stop_string_far_back_is_forgotten():
    decoded = Decoded(1000, ("x" * 301,))
    assert all(decoded.push(word("x")) is None for _ in range(400))
