"""What a log line looks like, and which lines are told once a minute only."""

import io
import json
import logging
import sys

import pytest

from genqueue_worker.observe.logs import JsonFormatter, Seldom, TextFormatter, is_json, where_raised

JSON, TEXT = JsonFormatter(), TextFormatter()


def record(message="finished", name="genqueue_worker.observe.report", **given):
    made = logging.makeLogRecord({"name": name, "msg": message, "levelno": 20, "levelname": "INFO", "created": 0.5})
    made.__dict__.update(given)
    return made


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "expected"),
    [
        ("auto", Terminal(), False),
        ("auto", io.StringIO(), True),
        ("auto", None, True),
        ("text", io.StringIO(), False),
        ("json", Terminal(), True),
    ],
)
def test_lines_are_json_where_nobody_reads_them(log_format, stream, expected):
    assert is_json(log_format, stream) is expected


def test_a_line_of_json_has_its_fields_beside_its_words():
    line = JSON.format(record("%d tokens", args=(5,), generation_id="an id", attempt=2, nothing=None))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "logger": "genqueue_worker.observe.report",
        "message": "5 tokens",
        "generation_id": "an id",
        "attempt": 2,
    }


@pytest.mark.parametrize("words", ["two\nlines", "half of a pair \ud800", "é\u2028", '"quoted" \\'])
def test_a_line_of_json_is_one_line_whatever_it_says(words):
    line = JSON.format(record(words, generation_id=words))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert (json.loads(line)["message"], json.loads(line)["generation_id"]) == (words, words)


def test_what_no_json_can_say_is_said_in_words():
    assert json.loads(JSON.format(record(thing=object)))["thing"] == str(object)


def test_a_field_does_not_take_the_place_of_what_each_line_has():
    assert json.loads(JSON.format(record(level="mine")))["level"] == "info"


def test_a_traceback_is_a_field():
    try:
        raise KeyError("why")
    except KeyError:
        line = json.loads(JSON.format(record(exc_info=sys.exc_info())))
    assert line["exception"].endswith("KeyError: 'why'")


def test_celerys_own_lines_name_the_generation():
    assert json.loads(JSON.format(record(data={"id": "an id", "args": "()"})))["generation_id"] == "an id"


def test_text_has_the_fields_behind_the_words():
    line = TEXT.format(record(generation_id="an id", queue_wait_s=0.12345, odd="a\nb"))
    assert line.endswith(": INFO/MainProcess] finished generation_id='an id' queue_wait_s=0.123 odd='a\\nb'")


HOSTILE = "a\x1b]0;PWN\a\x1b[31m\x9b\x7f\u202e\u2028\r\n[1970-01-01 00:00:00,000: INFO/MainProcess] finished"


def test_what_is_quoted_in_a_line_of_text_forges_none():
    line = TEXT.format(record(f"lost: {HOSTILE}", odd=HOSTILE, worse=[HOSTILE]))
    assert len(line.splitlines()) == 1
    assert line.isprintable()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("stop", "stop", id="a-word"),
        pytest.param("http://a:80/b", "http://a:80/b", id="an-address"),
        pytest.param("stop outcome=finished", "'stop outcome=finished'", id="another-field"),
        pytest.param("a\xa0b=c", "'a\\xa0b=c'", id="behind-another-space"),
        pytest.param("", "''", id="nothing"),
        pytest.param(True, "True", id="a-truth"),
        pytest.param(["a", 1], "\"['a', 1]\"", id="a-list"),
    ],
)
def test_a_field_of_text_is_one_field(value, expected):
    assert TEXT.format(record(odd=value)).partition("odd=")[2] == expected


def test_a_traceback_of_text_begins_no_line_and_obeys_nothing():
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        first, *rest = TEXT.format(record(exc_info=sys.exc_info(), stack_info=HOSTILE)).split("\n")
    assert first.startswith("[")
    assert rest
    for line in rest:
        assert line.startswith("    ")
        assert line.isprintable()


def test_a_line_of_json_is_printable_and_means_the_same():
    line = JSON.format(record(HOSTILE, odd=HOSTILE, stack=f"{HOSTILE}\x7f"))
    assert line.isprintable()
    assert (json.loads(line)["message"], json.loads(line)["odd"]) == (HOSTILE, HOSTILE)


def test_who_repeats_itself_is_heard_once():
    seldom = Seldom()
    storm = [record("no collector", name="opentelemetry.exporter.otlp"), record("other", name="opentelemetry.sdk")] * 5
    assert [seldom.filter(line) for line in storm] == [True, True] + [False] * 8
    assert all(seldom.filter(record()) for _ in range(5))


def test_a_defect_is_placed_without_its_words():
    try:
        raise KeyError("a prompt")
    except KeyError as error:
        where = where_raised(error)
    assert where.endswith("KeyError")
    assert "test_logs.py" in where
    assert "KeyError('" not in where
