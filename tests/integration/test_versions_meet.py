"""A worker and a producer of the version before, and of this one, serve one Redis together.

The version before is a recorded commit of this repository, taken from its history.  Workers are upgraded first, so
for a time both run side by side; producers follow when they can.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from genqueue import GenerationCancelledError
from genqueue.keys import doorbell

from ..support.missing import not_here

BEFORE = "517d8462ef37be90444d8aaf8e8e16fb57de95ad"
"""The commit that stands for the version before."""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``PYTHONPATH`` of the version before."""
    repository = Path(__file__).parents[2]
    if shutil.which("git") is None:
        not_here("no git: apt-get install git")
    archive = subprocess.run(
        ["git", "-C", str(repository), "archive", BEFORE, "producer", "worker"], capture_output=True, check=False
    )
    if archive.returncode != 0:
        not_here(f"commit {BEFORE[:7]} is not in this clone's history: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")
    return os.pathsep.join([str(folder / "producer"), str(folder / "worker")])


@pytest.fixture(scope="module")
def fleet(fleet_of, standin):
    served = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": served}, GENQUEUE_LEASE_S="1", GENQUEUE_DRAIN_S="1") as opened:
        yield opened


@pytest.fixture
def producer_before(fleet, before, tmp_path) -> Callable[..., Any]:
    """``producer_before(code, **values)``: what ``answer`` is at the end of a program of the version before."""

    def run(code: str, **values: Any) -> Any:
        program = f"""
import json, sys
import genqueue
from genqueue import GenerationClient, Settings
assert genqueue.__file__.startswith({before.partition(os.pathsep)[0]!r}), genqueue.__file__
client = GenerationClient(Settings(redis_url={fleet.producer_url!r}, generators={{}}))
globals().update(json.loads({json.dumps(values)!r}))
{code}
print(json.dumps(answer))
client.close()
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": before},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def only(fleet, before: str | None) -> None:
    """Have one worker serve: of the version before where ``before`` says where that is, else of this one."""
    for worker in fleet.workers:
        worker.end()
    fleet.staff(1, **({"PYTHONPATH": before} if before else {}))


def test_a_producer_of_the_version_before_is_served(fleet, producer_before, ask):
    only(fleet, None)
    prompt = ask(tokens=12, itl_s=0.01)
    answer = producer_before(
        """
generation = client.submit(prompt)
text = "".join(chunk.text for chunk in generation.stream())
chat = client.submit_chat([{"role": "user", "content": prompt}], generation_kwargs={"max_tokens": 8})
spoken = "".join(chunk.text for chunk in chat.stream())
result = generation.result(timeout_s=20)
cancelled = client.submit(prompt.replace('"tokens": 12', '"tokens": 500'))
next(cancelled.stream())
answer = {
    "text": text,
    "replies": result.replies,
    "chat": [spoken, chat.result(timeout_s=20).replies[0]],
    "state": str(generation.status().state),
    "cancelled": [cancelled.cancel(), str(cancelled.status().state)],
    "workers": len(client.workers()),
    "queues": [queue.generator for queue in client.overview().queues],
}
""",
        prompt=str(prompt),
    )
    spoken, replied = answer.pop("chat")
    assert spoken == replied != ""
    assert answer == {
        "text": prompt.answer,
        "replies": [prompt.answer],
        "state": "finished",
        "cancelled": [True, "cancelled"],
        "workers": 1,
        "queues": ["default"],
    }


def test_a_worker_of_the_version_before_serves(fleet, before, ask):
    only(fleet, before)
    prompt = ask(tokens=12, itl_s=0.01)
    generation = fleet.client.submit(prompt)
    assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
    assert generation.result(timeout_s=20).replies == [prompt.answer]
    chat = fleet.client.submit_chat([{"role": "user", "content": str(prompt)}], generation_kwargs={"max_tokens": 8})
    assert "".join(chunk.text for chunk in chat.stream()) == chat.result(timeout_s=20).replies[0] != ""
    cancelled = fleet.client.submit(ask(tokens=500, itl_s=0.05))
    chunks = cancelled.stream()
    next(chunks)
    assert cancelled.cancel()
    with pytest.raises(GenerationCancelledError):
        list(chunks)
    (status,) = fleet.client.workers()
    (queue,) = fleet.client.overview().queues
    assert (status.generators.keys(), queue.generator, queue.workers) == ({"default"}, "default", 1)


@pytest.mark.parametrize("dies", ["the old one", "the new one"])
def test_one_version_goes_on_with_the_text_of_the_other(fleet, before, ask, eventually, dies):
    only(fleet, before if dies == "the old one" else None)
    prompt = ask(tokens=900, itl_s=0.03)  # it still runs when the other two have started, however busy the machine is
    generation = fleet.client.submit(prompt, generation_kwargs={"max_new_tokens": 900})
    chunks = generation.stream()
    got = [next(chunks).text for _ in range(5)]
    (victim,) = fleet.workers
    fleet.staff(2, **({"PYTHONPATH": before} if dies == "the new one" else {}))
    victim.process.kill()
    got += [chunk.text for chunk in chunks]
    result = generation.result(timeout_s=20)
    assert ("".join(got), result.replies, result.meta[0]["attempts"]) == (prompt.answer, [prompt.answer], 2)


def test_what_the_version_before_left_in_the_queue_is_served_in_its_order(
    fleet, producer_before, ask, launch_worker, standin
):
    for worker in fleet.workers:
        worker.process.kill()
        worker.process.wait()
    prompts = [ask(tokens=4, itl_s=0) for _ in range(6)]
    ids = producer_before(
        """
generations = [client.submit(prompt, priority=priority) for prompt, priority in zip(prompts, [5, 5, 0, 9, 5, 5])]
generations[1].cancel()
answer = [generation.id for generation in generations]
""",
        prompts=[str(prompt) for prompt in prompts],
    )
    with redis.Redis.from_url(fleet.redis.url) as db:
        assert db.llen(doorbell("default", 5)) == 4
    served = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    fleet.workers.append(launch_worker({"default": served}, fleet.redis.url, "-c", "1"))  # one after the other
    handles = [fleet.client.generation(generation_id) for generation_id in ids]
    for number in (0, 2, 3, 4, 5):
        assert handles[number].result(timeout_s=20).replies == [prompts[number].answer]
    with pytest.raises(GenerationCancelledError):
        handles[1].result(timeout_s=20)
    started = {number: next(iter(handles[number].events())).at for number in (0, 2, 3, 4, 5)}
    assert sorted(started, key=started.__getitem__) == [2, 0, 4, 5, 3]


@pytest.mark.parametrize("first", ["the old one", "the new one"])
def test_a_retry_with_the_same_key_by_the_other_version_is_the_same_generation(fleet, producer_before, ask, first):
    if not fleet.workers:
        fleet.staff(1)
    prompt, key = ask(tokens=4), f"versions-{first}"
    kwargs = {"temperature": 0.5, "max_new_tokens": 4, "stop": ["x"]}

    def by_the_old_one() -> str:
        code = "answer = client.submit(prompt, generation_kwargs=kwargs, idempotency_key=key).id"
        generation_id: str = producer_before(code, prompt=str(prompt), kwargs=kwargs, key=key)
        return generation_id

    def by_the_new_one() -> str:
        generation_id: str = fleet.client.submit(prompt, generation_kwargs=kwargs, idempotency_key=key).id
        return generation_id

    callers = [by_the_old_one, by_the_new_one]
    one, other = callers if first == "the old one" else reversed(callers)
    assert one() == other()
