"""What one Redis has to do for a fleet: sums that can be done by hand."""

from dataclasses import replace

import pytest

from genqueue_ops.capacity import Costs, Fleet, Limits, Memory, Step, breaks_at, load, rates, spent
from genqueue_ops.capacity_command import measured

ONE = Step(1.0, 1.0, 1.0, 1.0, 1.0)
NAMES = list(rates(Fleet(1)))
NOTHING = Memory(0, 0, 0, 0, 0, 0, 0, 0)
FREE = Costs("nowhere", 0, dict.fromkeys(NAMES, Step()), NOTHING, 0, 0)
# Ten tokens a second of each stream, twenty in all: a generation is two seconds.
SMALL = Fleet(
    3, streams=4, tokens_per_s=10.0, tokens=20, readers=2.0, producers=0.5, generators=5, flush_gap_s=0.2, lease_s=3.0
)


def costs(**steps):
    return replace(FREE, steps={**FREE.steps, **steps})


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param("submit", 6.0, id="3 hosts x 4 streams / 2 s"),
        pytest.param("brpop", 6.0 + 3, id="and one a second of a worker with room"),
        pytest.param("claim", 6.0, id="as many as are submitted"),
        pytest.param("finish", 6.0, id="and end"),
        pytest.param("flush", 60.0, id="20 tokens, two in each"),
        pytest.param("token", 60.0, id="the others"),
        pytest.param("append", 3 / 0.2 + 6, id="five a second of each worker, and first texts"),
        pytest.param("delivery", (60.0 + 2 * 6) * 2, id="flushes, what started and the end, to two readers"),
        pytest.param("reader", 12.0, id="two of each generation"),
        pytest.param("renew", 3.0, id="a round a second of each worker"),
        pytest.param("lease", 12.0, id="of all that run"),
        pytest.param("sweep", 3.0, id="in each round"),
        pytest.param("queue", 15.0, id="for each generator"),
        pytest.param("look", 15.0, id="few workers: each looks"),
        pytest.param("announce", 0.3, id="every ten seconds"),
        pytest.param("celery", 3 * (2 + 0.5), id="a batch of events for each generation, and the heart"),
    ],
)
def test_how_often_a_second_each_step_is_taken(step, expected):
    assert rates(SMALL)[step] == pytest.approx(expected)


def test_every_step_has_a_row_above():
    table = test_how_often_a_second_each_step_is_taken.pytestmark[0].args[1]
    assert {row.values[0] for row in table} == set(NAMES)


@pytest.mark.parametrize(
    ("hosts", "looks"), [pytest.param(3, 3.0, id="few"), pytest.param(4, 4.0, id="as many"), pytest.param(1000, 4.0)]
)
def test_however_many_workers_sweep_a_queue_is_looked_through_four_times_a_second(hosts, looks):
    assert rates(Fleet(hosts))["look"] == pytest.approx(looks)


@pytest.mark.parametrize(
    ("gap_s", "flushes"),
    [
        pytest.param(0.001, 20.0, id="never more than tokens"),
        pytest.param(0.1, 20.0, id="as fast as they come"),
        pytest.param(0.2, 10.0, id="two in each"),
        pytest.param(1.0, 2.0, id="ten in each"),
    ],
)
def test_a_longer_gap_makes_fewer_flushes(gap_s, flushes):
    fleet = replace(SMALL, flush_gap_s=gap_s)
    assert fleet.flushes == pytest.approx(flushes)
    asked = rates(fleet)
    assert asked["flush"] + asked["token"] == pytest.approx(6.0 * 20)
    assert asked["append"] <= asked["flush"] + 1e-9


def test_steps_add_up():
    assert ONE + ONE * 2.0 - ONE == ONE * 2.0
    known = costs(submit=Step(cpu_us=100.0), claim=Step(10.0, 19.0, 1.0, 600.0, 2000.0))
    assert spent(known, {"submit": 2, "claim": 3}) == Step(230.0, 57.0, 3.0, 1800.0, 6000.0)
    assert spent(known, {}) == Step()


def test_the_load_is_the_sum_over_all_steps():
    asked = load(costs(submit=Step(1000.0, 9.0, 1.0, 3000.0, 60.0), claim=Step(500.0, 19.0, 1.0, 600.0, 2000.0)), SMALL)
    assert asked.cpu == pytest.approx(6 * 1500e-6)
    assert {name for name, share in asked.cpu_of.items() if share} == {"submit", "claim"}
    assert (asked.commands_per_s, asked.trips_per_s) == (pytest.approx(6 * 28), pytest.approx(12))
    assert (asked.in_bytes_per_s, asked.out_bytes_per_s) == (pytest.approx(6 * 3600), pytest.approx(6 * 2060))


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        pytest.param({"running": 100.0}, 12 * 100.0, id="those that run"),
        pytest.param({"running_flush": 4.0, "running_token": 2.0}, 12 * (4 * 10 + 2 * 20) / 2, id="half done"),
        pytest.param({"log": 5.0, "log_flush": 1.0, "log_token": 0.5}, 6 * 60 * (5 + 10 + 10.0), id="log_ttl_s"),
        pytest.param({"rest": 5.0, "rest_token": 1.0}, 6 * 600 * 25.0, id="result_ttl_s"),
    ],
)
def test_memory_is_what_runs_and_what_ended_lately(held, expected):
    known = replace(FREE, memory=replace(NOTHING, **held))
    asked = load(known, replace(SMALL, log_ttl_s=60.0, result_ttl_s=600.0))
    assert asked.memory_bytes == pytest.approx(expected)


def test_connections_are_those_of_workers_and_of_producers():
    assert load(replace(FREE, worker_connections=40, producer_connections=6), SMALL).connections == 3 * (40 + 0.5 * 6)


def test_several_redises_share_the_fleet():
    whole, third = SMALL, replace(SMALL, redises=3)
    assert rates(third)["submit"] == rates(replace(whole, hosts=1))["submit"]
    assert replace(whole, hosts=10, redises=3).hosts_each == 4


@pytest.mark.parametrize(
    ("known", "limits", "expected"),
    [
        pytest.param(costs(submit=Step(cpu_us=1000.0)), Limits(cpu=0.101), {"CPU": 51}, id="CPU"),
        pytest.param(
            costs(submit=Step(in_bytes=500.0)), Limits(network_bytes_per_s=100_999), {"network": 101}, id="in"
        ),
        pytest.param(
            costs(submit=Step(out_bytes=50.0)), Limits(network_bytes_per_s=10_099), {"network": 101}, id="out"
        ),
        pytest.param(replace(FREE, worker_connections=10), Limits(connections=99), {"connections": 10}, id="clients"),
        pytest.param(
            replace(FREE, memory=replace(NOTHING, running=1e6)), Limits(memory_bytes=9e6), {"memory": 3}, id="memory"
        ),
        pytest.param(
            costs(submit=Step(cpu_us=1000.0, in_bytes=500.0)),
            Limits(cpu=0.0501, network_bytes_per_s=100_999),
            {"CPU": 26, "network": 101},
            id="the least first",
        ),
        pytest.param(costs(submit=Step(cpu_us=1e9)), Limits(), {"CPU": 1}, id="the first host is too many"),
        pytest.param(FREE, Limits(), {}, id="nothing is"),
    ],
)
def test_the_number_of_hosts_that_is_too_many(known, limits, expected):
    found = breaks_at(known, replace(SMALL, producers=0.0), limits)
    assert list(found.items()) == list(expected.items())


def test_the_costs_that_come_with_it_name_their_machine_and_every_step():
    known = measured(None)
    assert "Redis" in known.machine and "Python" in known.machine
    assert set(known.steps) == set(NAMES)
    assert all(getattr(step, name) >= -0.05 for step in known.steps.values() for name in Step.__dataclass_fields__)
