"""``python -m genqueue_lab scale``, small: that it measures what docs/scaling.md says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from genqueue_lab.scale.report import Ran, fixed_and_marginal
from genqueue_ops.capacity import Fleet, Step, rates
from genqueue_ops.capacity_command import measured

PAGE = (Path(__file__).parents[3] / "docs/scaling.md").read_text("utf-8")
COUNTED = ("commands", "trips", "in_bytes", "out_bytes")


@pytest.fixture(scope="module")
def told(real_redis, tmp_path_factory):
    """What a small run writes; it runs servers of its own."""
    folder = tmp_path_factory.mktemp("scale")
    path = folder / "scale.json"
    command = [sys.executable, "-m", "genqueue_lab", "scale", "--thoroughness", "0.04", "--json", str(path)]
    command += ["--workers", "1", "--workers", "3"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(path.read_text("utf-8"))


def said_of(name):
    """The numbers of the row that the page has for a step: commands, round trips, bytes in, bytes out."""
    (row,) = re.findall(rf"^\| `{name}` \|[^|]*\|(.*)\|$", PAGE, re.MULTILINE)
    return [float(cell.replace(",", "")) for cell in row.split("|")[:4]]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", rates(Fleet(1)))
def test_what_each_step_counts_is_what_the_page_says(told, name):
    counted = [told["costs"]["steps"][name][field] for field in COUNTED]
    # A read of Redis's own now and then, and pieces of TCP.
    assert counted == [pytest.approx(said, rel=0.1, abs=1.5) for said in said_of(name)]


def test_what_the_page_is_computed_from_counts_the_same(told):
    for name, step in measured(None).steps.items():
        for field in COUNTED:
            assert told["costs"]["steps"][name][field] == pytest.approx(getattr(step, field), rel=0.1, abs=1.5), name


def test_a_real_worker_costs_what_the_page_says(told):
    worked = told["worker"]
    runs = [Ran(**{**run, "each": Step(**run["each"])}) for run in worked["runs"]]
    generation, token = fixed_and_marginal(runs)[64]
    assert 5 < generation.trips <= 14
    assert generation.commands <= 80
    assert token.trips <= 0.1
    assert token.commands <= 5.5
    assert token.in_bytes <= 450
    assert all(run.flushes <= run.tokens for run in runs)
    assert worked["at_rest"]["trips"] <= 6
    assert worked["at_rest"]["commands"] <= 70
    assert worked["worker_connections"] <= 8 + 16 + 64
    assert worked["producer_connections"] <= 18


def test_a_generation_holds_what_the_page_says(told):
    held, shipped = told["costs"]["memory"], measured(None).memory
    for name in ("log_flush", "log_token", "running_flush", "running_token", "rest"):
        assert held[name] == pytest.approx(getattr(shipped, name), rel=0.35), name  # few of them: tables grow in steps


def test_sweeps_cost_the_same_however_many_wait(told):
    by_generators = {}
    for swept in told["sweep"]:
        by_generators.setdefault(swept["generators"], []).append(swept["each"]["commands"])
    assert by_generators[1] == [pytest.approx(15, abs=2)] * 3
    assert by_generators[10] == [pytest.approx(43, abs=3)] * 3


def test_the_model_holds_beside_a_real_redis(told):
    """The counts are the clock's, whatever halts the machine meanwhile: a late flush takes along what came."""
    for driven, workers in zip(told["check"], (1, 3), strict=True):
        expected, tokens_per_s = rates(Fleet(workers)), workers * 32 * 40
        # A halt makes flushes fewer and larger; one at the very end lets more come.
        assert (
            0.3 * expected["flush"] <= driven["flushes_per_s"] <= min(1.2 * expected["flush"], driven["tokens_per_s"])
        )
        assert 0.9 * tokens_per_s <= driven["tokens_per_s"] <= 1.5 * tokens_per_s
        assert driven["taken"]["lease"] / driven["taken"]["renew"] == pytest.approx(32, abs=2)
        assert 0.5 < driven["ratio"] < 3  # of CPU time, which halts do not add to


def test_what_breaks_first_is_said_for_each_size_of_fleet(told):
    assert set(told["fleet"]["loads"]) == {"10", "100", "1000"}
    for broken in told["fleet"]["breaks_at"].values():
        assert set(broken) == {"memory", "CPU", "connections", "network"}
        assert list(broken.values()) == sorted(broken.values())
