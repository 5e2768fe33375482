"""What a log's events are, and what is none."""

import pytest
from pydantic import ValidationError

from genqueue.wire.events import Chunk, Finished, Token, chunk_body, event_body, read_event, read_events


def logged(body: bytes, seq: int = 1, attempt: int = 1) -> bytes:
    """An event as append.lua writes it."""
    return b'{"seq":%d,"attempt":%d,' % (seq, attempt) + body


TOKENS = (Token(1, "Na", -0.5, False), Token(2, "</s>", None, True))


def test_a_chunk_is_read_as_it_was_written():
    body = chunk_body("Na", TOKENS, [[Token(3, "No", -1.5, False)], []])
    assert read_event(logged(body, 7, 2)) == Chunk(
        seq=7, attempt=2, text="Na", tokens=TOKENS, top_tokens=((Token(3, "No", -1.5, False),), ())
    )


@pytest.mark.parametrize("text", ["", " ", "\x00", '"\\\n\r\t', "日本語 🦜", "\u2028", "}]", "a" * 100_000])
def test_any_text_survives_in_a_chunk(text):
    (event,) = read_events(b"[" + logged(chunk_body(text, ())) + b"]")
    assert isinstance(event, Chunk)
    assert event.text == text


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("started", {"at": 1.5, "worker": "host:1:ab"}),
        ("chunk", {"text": "a"}),
        ("resumed", {}),
        ("reset", {}),
        ("finished", {"finish_reason": None, "completion_tokens": 0}),
        ("failed", {"error": "rejected", "message": "no"}),
        ("cancelled", {}),
    ],
)
def test_an_event_ignores_fields_it_does_not_know(kind, fields):
    event = read_event(logged(event_body(kind, {**fields, "from_a_later_release": [1]})))
    assert event.type == kind
    assert event.model_dump(include=fields.keys()) == fields


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'[{"seq":1,"attempt":1,"v":2,"type":"resumed"}]', id="newer-version"),
        pytest.param(b'[{"seq":1,"attempt":1,"v":1,"type":"reset","v":2}]', id="known-type-of-a-newer-version"),
        pytest.param(b'[{"seq":1,"attempt":1,"v":1,"type":"chunk"}]', id="no-text-in-a-chunk"),
        pytest.param(b'[{"seq":1,"attempt":1,"v":1,"type":5}]', id="type-is-no-word"),
        pytest.param(b'[{"attempt":1,"v":1,"type":"resumed"}]', id="no-seq"),
        pytest.param(b'{"seq":1,"attempt":1,"v":1,"type":"resumed"}', id="no-array"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="no-text"),
        pytest.param(b"[" * 10_000, id="deep"),
    ],
)
def test_what_is_no_event_of_this_version_is_refused(raw):
    with pytest.raises(ValidationError):
        read_events(raw)


def test_an_event_of_a_kind_that_came_later_is_passed_on():
    resumed, paused = read_events(
        b'[{"seq":1,"attempt":1,"v":1,"type":"resumed"},{"seq":2,"attempt":1,"v":1,"type":"paused","for_s":3}]'
    )
    assert (resumed.type, paused.type, paused.seq) == ("resumed", "paused", 2)
    assert read_event(paused.model_dump_json().encode()) == paused


def test_events_cannot_be_changed_by_one_of_their_readers():
    event = read_event(logged(event_body("finished", {"finish_reason": "length", "completion_tokens": 3})))
    assert isinstance(event, Finished)
    with pytest.raises(ValidationError):
        event.completion_tokens = 4  # type: ignore[misc]  # that is the point
