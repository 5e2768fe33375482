"""The standard's event streams (WHATWG HTML, section 9.2.6), however they are cut, and what engines make of them."""

import json
from contextlib import nullcontext
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genqueue_worker.upstream.http.event_stream import EventStream, FieldError, StreamTooLongError

MARK = b"\xef\xbb\xbf"


def stream(*, most_bytes=1000, most_events=1000, most_lines=1000, **options):
    return EventStream(most_bytes=most_bytes, most_events=most_events, most_lines=most_lines, **options)


def events(*reads, **options):
    """What a stream says that comes in these reads; with its end, as ``end``, if that cuts an event off."""
    reader = stream(**options)
    found = [event for data in reads for event in reader.feed(data)]
    rest = reader.end()
    return [*found, *(["end", *rest] if rest else [])]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"], id="standard-several-lines"),
        pytest.param(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [b"first event", b"second event", b" third event"],
            id="standard-comment-id-and-one-space",
        ),
        pytest.param(b"data\n\ndata\ndata\n\ndata:", [b"", b"\n", "end", b""], id="standard-no-colon-and-cut-off"),
        pytest.param(b"data:test\n\ndata: test\n\n", [b"test", b"test"], id="standard-the-space-is-ignored"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [b"a", b"b", b"c"], id="each-line-end"),
        pytest.param(b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"], id="one-line-end-of-two-bytes"),
        pytest.param(b"data: a\n\r\ndata: b\r\n\n", [b"a", b"b"], id="line-ends-mixed"),
        pytest.param(b"\r\n\n\rdata: a\n\n\n\n\ndata: b\n\n", [b"a", b"b"], id="empty-lines"),
        pytest.param(MARK + b"data: a\n\n", [b"a"], id="mark"),
        pytest.param(MARK + MARK + b"data: a\n\ndata: b\n\n", [b"a", b"b"], id="two-marks"),
        pytest.param(MARK + b"data: a\n\n" + MARK + b"data: b\n\n", [b"a", b"b"], id="a-mark-before-each-event"),
        pytest.param(b"data: a\n" + MARK + b"data: b\n\n", [b"a\nb"], id="a-mark-within-an-event"),
        pytest.param(b"data: a\n" + MARK + b"\ndata: b\n\n", [b"a", b"b"], id="a-mark-on-an-empty-line"),
        pytest.param(b"data: a\n\n" + MARK + b": c\n\n" + MARK + b"data: b\n", [b"a", "end", b"b"], id="at-the-end"),
        pytest.param(MARK + b"event: x\n" + MARK + b"data\n\n" + MARK, [b""], id="a-mark-before-other-fields"),
        pytest.param(b"data: a\r\n\r\n" + MARK + b"data: [DONE]\r\n", [b"a", b"[DONE]"], id="a-mark-before-the-end"),
        pytest.param(b"data: " + MARK + b"a\n\n", [MARK + b"a"], id="a-mark-in-the-data"),
        pytest.param(b"data: \xef\xbb\n\n", [b"\xef\xbb"], id="half-a-mark"),
        pytest.param(b"\xef\xbbdata: a\n\ndata: b\n\n", [b"a", b"b"], id="begins-with-half-a-mark"),
        pytest.param(b"data:\n\ndata: \n\ndata: a\n\ndata\n\n", [b"", b"", b"a", b""], id="empty-data"),
        pytest.param(b"data:  \n\n", [b" "], id="one-space-is-data"),
        pytest.param(b"data:\t\n\ndata:\xc2\xa0\n\n", [b"\t", b"\xc2\xa0"], id="only-a-space-is-removed"),
        pytest.param(b"data:a:b: c\n\n", [b"a:b: c"], id="colons"),
        pytest.param(b"xdata: a\n\ndatax: c\n\nda ta: d\n\n'data': e\n\n", [], id="other-fields"),
        pytest.param(b" data\n\nDATA\n\ndata \n\n" + b" " * 99 + b"\n\n", [], id="fields-that-lose-nothing"),
        pytest.param(b"id: 1\nretry: 10\nevent: message\ndata: a\nx: y\n:\n\n", [b"a"], id="fields-and-comments"),
        pytest.param(b"data: a\n: ping\ndata: b\n\n", [b"a\nb"], id="a-comment-within-an-event"),
        pytest.param(b":\n\n" * 5 + b": " + b"x" * 900 + b"\n\n", [], id="comments-only"),
        pytest.param(b"data: a\n\ndata: b\n", [b"a", "end", b"b"], id="no-empty-line"),
        pytest.param(b"data: a\n\ndata: b", [b"a", "end", b"b"], id="no-line-end"),
        pytest.param(b"data: a\n\ndata: b\ndata: c", [b"a", "end", b"b\nc"], id="no-line-end-in-several-lines"),
        pytest.param(b"data: a\r\n\r\ndata: b\r", [b"a", "end", b"b"], id="half-a-line-end"),
        pytest.param(b"data: a\n\n: ping", [b"a"], id="a-comment-cut-off"),
        pytest.param(b"data: a\n\ndat", [b"a"], id="a-name-cut-off"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_a_stream_is_read_as_the_standard_has_it(body, expected):
    assert events(body) == expected
    assert events(*(body[at : at + 1] for at in range(len(body)))) == expected
    for at in range(len(body)):
        assert events(body[:at], body[at:]) == expected


@pytest.mark.parametrize(
    "line",
    [
        *(b" data: x", b"\tdata:x", b"DATA: x", b"Data: x", b"data : x", b" Data\t:", MARK + b" data: x"),
        *("\u00a0data: x".encode(), "\u200bdata: x".encode(), b" " * 200 + b"data: x", b"data\0: x"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("before", [b"", b"data: a\n\n", b"data: a\n", b": ping\n", b"id: 1\n"], ids=repr)
def test_a_field_that_is_almost_data_is_an_error_and_never_a_hole(before, line):
    for size in (1, 2, 1000):
        body, reader = before + line + b"\n\n", stream()
        with pytest.raises(FieldError, match="a field is 'data' but for its case or blanks") as failed:
            for at in range(0, len(body), size):
                reader.feed(body[at : at + size])
        assert failed.value.line == line.removeprefix(MARK)
    reader = stream()
    reader.feed(before + line)
    with pytest.raises(FieldError):
        reader.end()


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
def test_objects_on_lines_of_their_own_are_events_though_no_empty_line_parts_them(eol):
    body = eol.join([b'data: {"a": 1}', b'data: {"b": {}}', b"data:[DONE]", b""])
    expected = [b'{"a": 1}', b'{"b": {}}', b"[DONE]"]
    assert events(body) == expected
    assert events(*(body[at : at + 1] for at in range(len(body)))) == expected


def test_an_object_goes_on_over_as_many_lines_as_it_likes():
    said = {"token": {"id": 1, "text": "}"}, "more": [{}, {}]}
    for indent in (0, 1, 4):
        lines = b"".join(b"data: %s\n" % line for line in json.dumps(said, indent=indent).encode().split(b"\n"))
        (event,) = events(lines + b"\n")
        assert json.loads(event) == said


def test_the_end_of_a_stream_waits_for_no_empty_line():
    reader = stream()
    assert reader.feed(b"data: a\n\ndata: [DONE]\n") == [b"a", b"[DONE]"]
    assert reader.feed(b"\n") == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"event: error\ndata: a\n\ndata: b\n\n", [b"error=a", b"b"], id="one-event-has-the-name"),
        pytest.param(b"data: a\nevent:error\n\n", [b"error=a"], id="the-name-comes-last"),
        pytest.param(b"event: x\nevent: y\ndata: a\n\n", [b"y=a"], id="the-last-name-counts"),
        pytest.param(b"event: x\n\ndata: a\n\n", [b"a"], id="a-name-without-data-is-forgotten"),
        pytest.param(b"event: x\ndata:\n\ndata: a\n\n", [b"x=", b"a"], id="but-not-without-a-word-of-data"),
        pytest.param(b"event: message\ndata: a\n\nevent\ndata: b\n\n", [b"a", b"b"], id="names-that-are-none"),
        pytest.param(b'data: a\n\nerror: {"code": 500}\n\ndata: b\n\n', [b"a", b'error={"code": 500}', b"b"], id="old"),
    ],
)
def test_a_name_comes_with_its_event(body, expected):
    named = {"on_named": lambda name, data: name + b"=" + data}
    assert events(body, **named) == expected
    assert events(*(body[at : at + 1] for at in range(len(body))), **named) == expected


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"data: " + b"x" * 1001, "event has more than 1000 bytes", id="a-line-of-data"),
        pytest.param(b"data: " + b"x" * 1001 + b"\n\n", "event has more than 1000 bytes", id="one-that-ends"),
        pytest.param(b"data: x\n\ndata: " + b"x" * 1001 + b"\n\n", "event has more than 1000 bytes", id="a-later-one"),
        pytest.param(b": " + b"x" * 1001 + b"\n", "event has more than 1000 bytes", id="a-comment"),
        pytest.param(b"x" * 1001, "event has more than 1000 bytes", id="no-field"),
        pytest.param(b"data: xxxx\n" * 300, "event has more than 1000 bytes", id="an-event-of-many-lines"),
        pytest.param(b"data\n" * 1001, "event has more than 1000 bytes", id="an-event-of-empty-lines"),
        pytest.param(b"data: x\n\n" * 1001, "answer has more than 1000 events", id="events"),
        pytest.param(b"\n" * 1001, "answer has more than 1000 lines without data", id="empty-lines"),
        pytest.param(b"\r\n" * 1001, "answer has more than 1000 lines without data", id="empty-lines-of-two-bytes"),
        pytest.param(b":\n" * 1001, "answer has more than 1000 lines without data", id="comments"),
        pytest.param(b"event: x\nid: 1\n" * 501, "answer has more than 1000 lines without data", id="fields"),
        pytest.param(b": ping\n\n" * 501, "answer has more than 1000 lines without data", id="heartbeats"),
    ],
)
def test_a_stream_has_bounds_whatever_its_lines_are(body, words, size):
    reader = stream()
    with pytest.raises(StreamTooLongError) as passed:
        for at in range(0, len(body), size):
            reader.feed(body[at : at + size])
    assert str(passed.value) == words


def test_what_is_within_its_bounds_passes():
    assert len(events(b"data: x\n\n" * 1000)) == 1000
    assert len(events(b": ping\ndata: x\n\n" * 1000)) == 1000
    assert events(b": ping\n\n" * 500) == []
    assert events(b"data: " + b"x" * 990 + b"\n\n") == [b"x" * 990]


# --- against the standard's own words, however it is cut ------------------------------------------


def by_the_standard(body):
    """Section 9.2.6 step by step, of a stream that came as a whole, but for marks; and whether it is refused."""
    lines, line = [], b""
    at = 0
    while at < len(body):
        one = body[at : at + 1]
        if one in b"\r\n":
            lines.append(line)
            line = b""
            at += 2 if body[at : at + 2] == b"\r\n" else 1
        else:
            line += one
            at += 1
    found, data = [], b""  # what is behind the last line end is discarded, and so is its event
    for line in (each.lstrip(MARK) for each in lines):
        if not line:
            if data:
                found.append(data.removesuffix(b"\n"))
            data = b""
        elif not line.startswith(b":"):
            field, colon, value = line.partition(b":")
            if field == b"data":
                data += value.removeprefix(b" ") + b"\n"
            elif field.strip() == b"data" and colon:
                return found, True
    return found, False


_PIECES = st.sampled_from(
    [b"data: ", b"data:", b"data", b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"x", b" ", b":", b"id: 1", MARK, b"\xc3\xa9"]
)


@given(st.lists(_PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 120), max_size=12))
def test_however_a_stream_is_cut_its_events_are_the_same(body, cuts):
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    reader, found = stream(), []
    expected, is_refused = by_the_standard(body)
    with pytest.raises(FieldError) if is_refused else nullcontext():
        for start, end in pairwise(places):
            found += reader.feed(body[start:end])
    assert found == (expected[: len(found)] if is_refused else expected)


_EVENTS = st.lists(st.sampled_from([b"data: {}\n\n", b"data:{}\n\n", b"data:\n\n", b"data: \n\n", b"data: x\n\n"]))


@given(_EVENTS.map(b"".join), st.lists(st.integers(0, 200), max_size=6), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_so_are_those_of_the_common_shape(body, cuts, eol):
    body = body.replace(b"\n", eol)
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    reader = stream()
    found = [event for start, end in pairwise(places) for event in reader.feed(body[start:end])]
    assert (found, False) == by_the_standard(body)
