"""What one event of a chat says: the short way says the same as the long one."""

from hypothesis import given
from hypothesis import strategies as st

from genqueue_worker.upstream.engines.chat_events import ChatEvent, plain_text, read_event

VALUES = st.sampled_from([None, True, False, "", "a", "null", 0, 1, -1, [], {}, ["a"], {"a": 1}])
NAMES = [
    "role",
    "content",
    "reasoning",
    "reasoning_content",
    "tool_calls",
    "function_call",
    "thinking",
    "reasoning_details",
    "thinking_blocks",
    "refusal",
    "finish_reason",
    "error",
    "x",
]
DELTAS = st.dictionaries(st.sampled_from(NAMES), VALUES)
CHOICES = st.fixed_dictionaries(
    {"delta": DELTAS | VALUES},
    optional={name: VALUES for name in ("index", "finish_reason", "logprobs", "message", "text", "error")},
)
EVENTS = st.fixed_dictionaries({"choices": st.lists(CHOICES, max_size=2)}, optional={"usage": VALUES, "error": VALUES})


@given(EVENTS | VALUES)
def test_a_plain_text_is_all_that_its_event_says(event):
    text = plain_text(event)
    if text is not None:
        assert read_event(event) == ChatEvent(None, is_of_this_answer=True, content=text)


def test_nearly_every_event_is_one():
    event = {
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a", "tool_calls": None}}],
        "usage": None,
    }
    assert plain_text(event) == "a"
