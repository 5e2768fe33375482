"""What a worker makes of what its host grants it, and of its lack."""

import errno
import os
import socket

import pytest

from genqueue_worker.resources import fitting, lack_of, try_threads, wanted_descriptors


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(OSError(errno.EMFILE, "Too many open files"), True, id="descriptors"),
        pytest.param(OSError(errno.ENFILE, "…"), True, id="descriptors-of-the-host"),
        pytest.param(OSError(errno.ENOBUFS, "…"), True, id="buffers"),
        pytest.param(OSError(errno.ENOSPC, "…"), True, id="disk"),
        pytest.param(MemoryError(), True, id="memory"),
        pytest.param(RuntimeError("can't start new thread"), True, id="threads"),
        pytest.param(caused(ValueError("x"), caused(KeyError("y"), MemoryError())), True, id="behind-two-others"),
        pytest.param(socket.gaierror(socket.EAI_AGAIN, "…"), True, id="names-cannot-be-looked-up"),
        pytest.param(OSError(errno.ECONNREFUSED, "…"), False, id="refused"),
        pytest.param(socket.gaierror(socket.EAI_NONAME, "…"), False, id="no-such-name"),
        pytest.param(RuntimeError("something else"), False, id="another-runtime-error"),
        pytest.param(TypeError("x"), False, id="a-defect"),
    ],
)
def test_a_lack_of_the_host_is_told_from_every_other_error(error, expected):
    assert bool(lack_of(error)) is expected


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    first, second = ValueError(), ValueError()
    first.__context__, second.__context__ = second, first
    assert lack_of(first) == ""


@pytest.mark.parametrize(
    ("concurrency", "limit", "in_use", "expected"),
    [
        pytest.param(256, 256, 6, 170, id="macos-by-default"),
        pytest.param(256, 1024, 6, 256, id="linux-by-default"),
        pytest.param(8, 100, 6, 8, id="few"),
        pytest.param(256, 86, 6, 0, id="none"),
        pytest.param(256, 20, 6, -66, id="less-than-none"),
    ],
)
def test_as_many_generations_run_as_there_are_descriptors_for(concurrency, limit, in_use, expected):
    assert fitting(concurrency, limit, in_use) == expected


@pytest.mark.parametrize("concurrency", [1, 256, 4096])
def test_what_is_asked_for_is_enough_for_all(concurrency):
    assert fitting(concurrency, wanted_descriptors(concurrency, 10), 10) == concurrency


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="this system does not say which threads there are")
def test_threads_that_were_tried_are_there_for_others():
    before = set(os.listdir("/proc/self/task"))
    for _ in range(1000):  # the system counts a thread a little longer than Python does, now and then
        try_threads(4)
        assert set(os.listdir("/proc/self/task")) <= before
