"""What a generation has said so far, as its record keeps it."""

from hypothesis import given
from hypothesis import strategies as st

from genqueue.registry import partial, reading
from genqueue.wire.events import ToolCallDelta, join_tool_calls

UTF8 = st.text(st.characters(exclude_categories=["Cs"]))


DELTAS = st.lists(st.builds(ToolCallDelta, st.integers(0, 2), st.none() | UTF8, st.none() | UTF8, UTF8))


@given(st.lists(st.tuples(UTF8, UTF8, DELTAS)))
def test_text_thoughts_and_calls_are_told_apart_in_what_was_kept(flushes):
    said = [partial.encode_partial(text, thought, deltas) for text, thought, deltas in flushes]
    kept = b"".join(part.encode() if isinstance(part, str) else part for part in said)
    text = "".join(text for text, _, _ in flushes)
    assert reading.read_text("id").decode(kept) == text
    assert reading.read_said("id").decode(kept) == (
        text,
        "".join(thought for _, thought, _ in flushes),
        join_tool_calls(delta for _, _, deltas in flushes for delta in deltas),
    )


def test_a_text_alone_is_kept_as_it_is():
    assert partial.encode_partial("é", "") == "é"
    assert reading.read_said("id").decode(None) == ("", "", [])
    assert reading.read_said("id").decode("é".encode()) == ("é", "", [])
