"""``python -m genqueue_lab bench``, small: it measures what its table says, and nothing is wrong with a text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from genqueue_lab.bench.verdict import MEASURES, STANDIN, Part

ROOT = Path(__file__).parents[3]


def bench(folder, *arguments):
    """The exit code, what it printed and the document that it wrote; its limits are for a quiet machine."""
    path = folder / "bench.json"
    command = [sys.executable, "-m", "genqueue_lab", "bench", "--rounds", "1", "--json", str(path), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return ended.returncode, ended.stdout + ended.stderr, json.loads(path.read_text("utf-8"))


def test_streams_and_chats_are_read_whole_by_every_way_and_by_another_checkout(real_redis, tmp_path):
    code, printed, document = bench(tmp_path, "streams", "chats", "--tokens", "10", "--against", str(ROOT))
    assert document["faults"] == []
    for part in (Part.STREAMS, Part.CHATS):
        taken = document["samples"][part]
        assert taken.keys() == {"direct", "raw", "queue", "before"}
        for (sample,) in taken.values():
            assert (sample["streams"], sample["tokens"]) == (200, 2000)
            assert sample["client_us"] > 0
            assert sample["standin_us"] > 0
            assert sample["wall_s"] > 0.05 + 9 * 0.02
        assert taken["queue"][0]["worker_us"] > 0
        *table, standin = [line for line in document["lines"] if line["part"] == part]
        assert [line["name"] for line in table] == [measure.name for measure in MEASURES[part]]
        assert all(line["before"] is not None and line["to_before"] > 0 for line in table)
        assert (standin["name"], standin["before"]) == (STANDIN.name, None)
    missed = [line for line in document["lines"] if not is_kept(line)]
    assert (code, printed.count("MISSED")) == (1 if missed else 0, len(missed))


def test_the_other_parts_measure_what_they_hold(real_redis, tmp_path):
    parts = [Part.IDLE, Part.CEILING, Part.ENQUEUE, Part.MEMORY]
    _, printed, document = bench(tmp_path, *parts, "--generations", "100")
    assert document["faults"] == [], printed
    assert [line["part"] for line in document["lines"]] == [
        *(part for part in parts for _ in MEASURES[part]),
        "all",
    ]
    assert all(line["value"] > 0 and line["of"] > 0 for line in document["lines"][:-1])


def test_a_folder_that_is_no_checkout_is_refused(real_redis, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "genqueue_lab", "bench", "idle", "--against", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "holds no producer/ and worker/ that can run" in ended.stderr


def is_kept(line):
    if line["limit"] is None:
        return True
    return line["ratio"] >= line["limit"] if line["at_least"] else line["ratio"] <= line["limit"]


@pytest.mark.parametrize("part", Part)
def test_the_page_names_each_part(part):
    assert f"`{part}`" in (ROOT / "docs/benchmark.md").read_text("utf-8")
