"""An overview as rows: what a person sees at a glance."""

import dataclasses
import io

import pytest
from rich.console import Console

from genqueue import durations
from genqueue.cli import tables
from genqueue.registry.fleet import Overview, QueueStatus, WorkerStatus

QUEUE = QueueStatus("chat", 3, 100, 65.0, 3, 2, 1, 1, "text_generation_inference")
SERVER = {"address": "http://a", "health": "up", "running": 2, "trouble": ""}
WORKER = WorkerStatus(
    "host:1:a", 990.0, {"chat": [SERVER, {**SERVER, "health": "down", "trouble": "no\nanswer\x1b[2J"}]}
)
FOUND = Overview(1000.0, [QUEUE], [WORKER], 2, 0, 4, 0, 1, {})


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7620, "2 h 7 min"),
        (270_000, "3 d 3 h"),
    ],
)
def test_a_duration_has_two_figures_at_most(seconds, expected):
    assert durations.duration(seconds) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, ("chat", "3 of 100", "1 min 5 s", "2", "1", "1"), id="all-known"),
        pytest.param({"max_queue_depth": None}, ("chat", "3", "1 min 5 s", "2", "1", "1"), id="never-announced"),
        pytest.param({"max_queue_depth": -1}, ("chat", "3, no limit", "1 min 5 s", "2", "1", "1"), id="no-limit"),
        pytest.param({"oldest_wait_s": None}, ("chat", "3 of 100", "", "2", "1", "1"), id="nothing-waits"),
        pytest.param({"running": None, "dead": None}, ("chat", "3 of 100", "1 min 5 s", "?", "?", "1"), id="too-many"),
        pytest.param({"workers": 0}, ("chat", "3 of 100", "1 min 5 s", "2", "1", "none"), id="no-worker"),
    ],
)
def test_a_queue_is_one_row(changed, expected):
    assert tables.queue_row(dataclasses.replace(QUEUE, **changed)) == expected


def test_a_worker_has_a_row_for_each_server():
    first, second = tables.worker_rows(WORKER, 1000.0)
    assert first == ("host:1:a", "10 s ago", "chat", "up", "2", "http://a", "")
    assert second[3] == "down"
    assert tables.worker_rows(WorkerStatus("w", 1001.0, {}), 1000.0) == [("w", "0 s ago", "", "", "", "", "")]


def test_the_totals_say_what_nobody_looks_after():
    assert tables.totals(FOUND) == "waiting 3, running 2, delayed 4, dead 1, workers 1"
    overdue = dataclasses.replace(FOUND, running_overdue=1, delayed_overdue=1)
    assert "overdue 2: no worker looks after them" in tables.totals(overdue)


def printed(found):
    out = io.StringIO()
    Console(file=out, width=160).print(tables.as_tables(found))
    return out.getvalue()


def test_the_tables_hold_it_all_and_nothing_that_steers_a_terminal():
    shown = printed(FOUND)
    for words in ("chat", "3 of 100", "host:1:a", "http://a", "no answer", "waiting 3"):
        assert words in shown
    assert "\x1b" not in shown


def test_where_nothing_is_that_is_said():
    unreadable = {"genqueue:leases": "WRONGTYPE\x1b[2J\nwaiting 0"}
    shown = printed(dataclasses.replace(FOUND, queues=[], workers=[], unreadable=unreadable))
    assert "no worker has announced itself in the last 30 s" in shown
    assert "cannot be read: 'genqueue:leases': WRONGTYPE\ufffd[2J waiting 0" in shown
