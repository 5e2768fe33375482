"""Ten thousand hostile messages, events and orders: no crash, nobody stuck, each answered or dropped with a count.

What is sent is always the same (``derandomize``).  A failure names the entries that the worker took last.
"""

import asyncio
import base64
import contextlib
import json
import re
import threading
import urllib.request
import uuid
from collections import Counter

import pytest
import redis
from celery import Celery
from hypothesis import strategies as st
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from genqueue import AsyncGenerationClient, GenerationCancelledError, GenerationClient, GenerationError, Settings
from genqueue.keys import PRIORITIES, SILENT, doorbell, live, log, result, worker
from genqueue.wire.events import read_events
from genqueue_worker.broker.checks import is_celery_message

from ...support.hostile import drawn, entries, orders, publications
from ...support.roles import as_role

TGI = "text_generation_inference"
ANSWERS = {"finished", "rejected", "failed", "expired", "cancelled"}
MOST_GROWTH_KB = 200_000
BATCH = 500
PIDBOX = "/0.celery.pidbox"


class Target:
    """A worker with a Redis of its own, and what it says of itself."""

    def __init__(self, process, db, client, eventually):
        self.process = process
        self.db = db
        self.client = client
        self.eventually = eventually
        self._read = 0
        self.outcomes: list[dict] = []
        self.rung = 0
        found = eventually(lambda: re.search(r"metrics and probes: http://127\.0\.0\.1:(\d+)/metrics", process.log))
        self.port = int(found[1])

    def dropped(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return int(float(re.search(r"^genqueue_dropped_messages_total (\S+)$", answer.read().decode(), re.M)[1]))

    def listen(self) -> None:
        """Read what it has logged since."""
        with self.process.log_path.open("rb") as log_file:
            log_file.seek(self._read)
            for raw in log_file:
                if not raw.endswith(b"\n"):
                    break
                self._read += len(raw)
                line = json.loads(raw)
                if "outcome" in line:
                    self.outcomes.append(line)
                elif found := re.match(r"rang again for (\d+) gen", str(line.get("message"))):
                    self.rung += int(found[1])

    def resident_kb(self) -> int:
        with open(f"/proc/{self.process.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])

    def assert_lives(self, what="") -> None:
        code = self.process.process.poll()
        assert code is None, f"the worker ended with {code}; {what}; its log: {self.process.log[-3000:]}"
        assert "Unrecoverable error" not in self.process.log, f"{what}; {self.process.log[-3000:]}"

    def assert_serves(self, ask) -> str:
        prompt = ask(tokens=3)
        generation = self.client.submit(prompt, priority=9)
        assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
        assert generation.result(timeout_s=20).replies == [prompt.answer]
        return generation.id


@pytest.fixture(scope="module")
def target(launch_worker, standin, own_redis, closed_port, eventually):
    generators = {
        "default": {"api_type": TGI, "api_params": {"url": standin.url}, "max_attempts": 1},
        "later": {"api_type": TGI, "api_params": {"url": f"http://127.0.0.1:{closed_port}"}},
    }
    environ = {"GENQUEUE_MONITOR_PORT": "0", "GENQUEUE_LOG_FORMAT": "json"}
    process = launch_worker(generators, own_redis.url, "-c", "32", "-l", "debug", environ=environ)
    url = as_role(own_redis.url, "producer")
    with (
        redis.Redis.from_url(own_redis.url) as db,
        GenerationClient(Settings(redis_url=url, generators={})) as client,
    ):
        yield Target(process, db, client, eventually)
    assert process.end() == 0, process.log[-3000:]


def id_in(entry: bytes) -> str | None:
    """The id of what a worker takes in hand; None for what it is to drop."""
    with contextlib.suppress(Exception):
        message = loads(bytes_to_str(entry))
        if is_celery_message(message):
            base64.b64decode(message["body"].encode())
            return message["headers"]["id"]
    return None


@pytest.mark.timeout(300)
def test_ten_thousand_messages_are_each_answered_ignored_or_dropped(target, ask, eventually):
    """Some of them name generations that are queued, running or finished."""
    db, client = target.db, target.client
    finished_prompt, running_prompt = ask(tokens=5), ask(tokens=4000, itl_s=0.05)
    finished = client.submit(finished_prompt)
    assert finished.result(timeout_s=10).replies == [finished_prompt.answer]
    running = client.submit(running_prompt, generation_kwargs={"max_new_tokens": 4000})
    eventually(lambda: running.status().completion_tokens > 2)
    waiting = client.submit(ask(), generator="later")
    known = [finished.id, running.id, waiting.id]
    others = "somebody-elses-task"
    db.set(result(others), b"their result")
    kept = {key: db.dump(key) for key in (result(finished.id), result(others))}
    odd = [f"{known[1]}:log", f"{known[1]}:text", f"{uuid.uuid4()}:log", "x" * 10_000, "two words", "%1{id}", others]
    ids = st.uuids().map(str) | st.uuids().map(str) | st.sampled_from(known + odd)
    before, resident_kb, sent, examples = target.dropped(), target.resident_kb(), [], 0
    lists = [doorbell("default", priority) for priority in PRIORITIES]
    ours = [finished.id, running.id]

    def send(batch):
        nonlocal examples
        pipeline = db.pipeline(transaction=False)
        placed = {name: batch[index::10] for index, name in enumerate(lists)}
        for name, some in placed.items():
            pipeline.lpush(name, *some)
        pipeline.execute()
        sent.extend(batch)
        examples += 1

        def taken_last():
            left = [db.llen(name) for name in lists]
            return [some[-count - 1 : len(some) - count] for some, count in zip(placed.values(), left, strict=True)]

        try:
            eventually(lambda: not any(db.llen(name) for name in lists), within_s=20)
        except AssertionError:
            target.assert_lives(f"of each list it took last: {taken_last()}")
            raise
        target.assert_lives(f"of each list it took last: {taken_last()}")
        if examples % 5 == 0:
            ours.append(target.assert_serves(ask))

    hostile = drawn(entries(ids), 10_200)
    assert len(hostile) >= 10_000
    for start in range(0, len(hostile), BATCH):
        send(hostile[start : start + BATCH])

    messages = [(entry, found) for entry in sent if (found := id_in(entry)) is not None]
    taken = Counter(found for _, found in messages)

    def untold():
        """Ids of messages of which nothing was told; less those of doorbells that a sweeper rang again."""
        target.listen()
        told = Counter(line["generation_id"] for line in target.outcomes)
        return taken - told

    with contextlib.suppress(AssertionError):  # said below
        eventually(lambda: not untold(), within_s=20)

    silent = untold()
    assert not silent, (silent, [entry[:2000] for entry, found in messages if found in silent][:3])
    told = Counter(line["generation_id"] for line in target.outcomes)
    surplus = told - taken - Counter(ours)
    assert surplus.total() <= target.rung, surplus
    dropped = target.dropped() - before
    assert dropped + taken.total() == len(sent)
    counts = Counter(line["outcome"] for line in target.outcomes)
    assert dropped > 500
    assert counts["rejected"] > 500
    assert counts["ignored"] > 500
    assert counts["finished"] > 10
    # Each that was answered has an answer that its sender can read.
    answered = {line["generation_id"] for line in target.outcomes if line["outcome"] in ANSWERS}
    metas = db.mget([result(generation_id) for generation_id in answered])
    assert [generation_id for generation_id, meta in zip(answered, metas, strict=True) if meta is None] == []
    # And those with a true generation's id changed nothing.
    assert {key: db.dump(key) for key in kept} == kept
    assert finished.result(timeout_s=10).replies == [finished_prompt.answer]
    assert waiting.status().state == "queued"
    assert running.status().state == "running"
    assert db.get(result(running.id)) is None
    assert running.status().attempt == 1
    running.cancel()
    with pytest.raises(GenerationError) as cancelled:
        running.result(timeout_s=10)
    assert running_prompt.answer.startswith(cancelled.value.partial_text)
    assert target.resident_kb() - resident_kb < MOST_GROWTH_KB
    # Nothing was sent elsewhere, and no other key made.
    allowed = re.compile(rb"genqueue:|celery-task-meta-|_kombu\.binding|generate\.")
    assert [key for key in db.scan_iter(count=10_000) if not allowed.match(key)] == []
    target.assert_serves(ask)


def fits(raw: bytes) -> bool:
    """Whether a reader could take it for the next event: who knows an id can lie well."""
    with contextlib.suppress(ValueError):
        return any(
            1 <= event.seq <= 10_000 and (event.attempt == 1 or event.type == "started") for event in read_events(raw)
        )
    return False


def log_reads(db) -> int:
    return db.info("commandstats")["cmdstat_xrange"]["calls"]


class Reader(threading.Thread):
    """Reads in the background, as :meth:`read` does."""

    def __init__(self, read):
        super().__init__(daemon=True)
        self._read = read
        self.parts: list[str] = []
        self.error = None
        self.start()

    def run(self):
        try:
            self._read(self)
        except BaseException as error:
            self.error = error

    def take(self, chunk):
        if chunk.restarts:
            self.parts.clear()
        self.parts.append(chunk.text)

    def text(self):
        self.join(30)
        assert not self.is_alive(), f"no end; so far {len(self.parts)} chunks"
        if self.error is not None:
            raise self.error
        return "".join(self.parts)

    def cancelled_text(self):
        """What came before the generation was cancelled."""
        with pytest.raises(GenerationCancelledError):
            self.text()
        return "".join(self.parts)


def read_with_asyncio(settings, generation_id):
    async def read(reader):
        async with AsyncGenerationClient(settings) as client:
            async for chunk in client.generation(generation_id).stream():
                reader.take(chunk)

    return Reader(lambda reader: asyncio.run(read(reader)))


def read_with_threads(generation):
    def read(reader):
        for chunk in generation.stream():
            reader.take(chunk)

    return Reader(read)


@pytest.mark.timeout(300)
def test_ten_thousand_events_change_nothing_of_what_readers_get(target, ask, own_redis, eventually):
    said = [raw for raw in drawn(publications(st.integers(1, 400)), 11_500) if not fits(raw)]
    assert len(said) >= 10_000
    # So long that they run until the test ends them, however slow the machine is.
    prompts = [ask(tokens=10_000, itl_s=0.02), ask(tokens=10_000, itl_s=0.02)]
    attacked, left_alone = [
        target.client.submit(each, generation_kwargs={"max_new_tokens": 10_000}) for each in prompts
    ]
    readers = [read_with_threads(attacked), read_with_threads(attacked)]
    readers.append(read_with_asyncio(target.client.settings, attacked.id))
    bystander = read_with_threads(left_alone)
    eventually(lambda: all(reader.parts for reader in [*readers, bystander]))
    before, count = log_reads(target.db), 0
    owner = target.db.hget(f"genqueue:generation:{attacked.id}", "owner").decode()
    with redis.Redis.from_url(as_role(own_redis.url, "producer")) as attacker:
        for start in range(0, len(said), BATCH):
            pipeline = attacker.pipeline(transaction=False)
            for raw in said[start : start + BATCH]:
                pipeline.publish(live(attacked.id), raw)
                pipeline.publish(SILENT, raw)
                if count % 50 == 0:
                    pipeline.publish(worker(owner), raw)
                count += 1
            pipeline.execute()
            status = attacked.status()
            assert (status.state, status.attempt) == ("running", 1)
            assert all(reader.is_alive() for reader in [*readers, bystander])
    tokens = attacked.status().completion_tokens
    eventually(lambda: attacked.status().completion_tokens > tokens + 10)  # still at it
    during = log_reads(target.db) - before
    for prompt, generation, its_readers in zip(prompts, (attacked, left_alone), (readers, [bystander]), strict=True):
        generation.cancel()
        with pytest.raises(GenerationError) as cancelled:
            generation.result(timeout_s=10)
        text = cancelled.value.partial_text
        assert prompt.answer.startswith(text)
        assert len(text) > 100
        assert [reader.cancelled_text() for reader in its_readers] == [text] * len(its_readers)
    assert during < 300, "a reader reads the log again and again"
    target.assert_lives()
    target.assert_serves(ask)


def test_a_log_that_somebody_else_writes_into_ends_nobody(target, ask, own_redis, eventually):
    prompt, other = ask(tokens=400, itl_s=0.02), ask(tokens=400, itl_s=0.02)
    attacked, left_alone = target.client.submit(prompt), target.client.submit(other)
    reader, bystander = read_with_threads(attacked), read_with_threads(left_alone)
    eventually(lambda: len(reader.parts) > 3 and len(bystander.parts) > 3)
    name = log(attacked.id)
    garbage = drawn(publications(st.integers(1, 400)), 300)
    with redis.Redis.from_url(as_role(own_redis.url, "producer")) as attacker:

        def write(entry_id, fields):
            with contextlib.suppress(redis.ResponseError):  # its number was given meanwhile
                attacker.xadd(name, fields, id=entry_id)

        for number in range(5):
            seq = int(attacker.hget(f"genqueue:generation:{attacked.id}", "seq"))
            for index, raw in enumerate(garbage[number::5]):
                write(f"{seq}-{index + 1}", {"e": raw} if index % 3 else {"x": raw})
            eventually(lambda seq=seq: attacked.status().completion_tokens > seq)
        seq = int(attacker.hget(f"genqueue:generation:{attacked.id}", "seq"))
        write(f"{seq + 5}-0", {"e": b'{"v":1,"seq":1,"attempt":1,"type":"chunk","text":"HOSTILE"}'})
        write(f"{2**63}-0", {"e": b"x"})
    assert reader.text() == prompt.answer
    assert bystander.text() == other.answer
    assert attacked.result(timeout_s=10).replies == [prompt.answer]
    assert "".join(chunk.text for chunk in attacked.stream()) == prompt.answer  # who comes late
    assert attacked.status().attempt == 1
    target.assert_lives()


def test_orders_that_are_none_are_dropped(target, ask, own_redis, eventually):
    """On the channel of Celery's remote control, where Flower may publish."""
    said = drawn(orders(), 600)
    before, resident_kb = target.dropped(), target.resident_kb()
    prompt = ask(tokens=100, itl_s=0.02)
    running = target.client.submit(prompt)
    with redis.Redis.from_url(as_role(own_redis.url, "flower")) as attacker:
        for start in range(0, len(said), 100):
            pipeline = attacker.pipeline(transaction=False)
            for raw in said[start : start + 100]:
                pipeline.publish(PIDBOX, raw)
            assert pipeline.execute() == [1] * len(said[start : start + 100])
            target.assert_serves(ask)
            target.assert_lives()
    assert target.dropped() - before > 200
    assert running.result(timeout_s=20).replies == [prompt.answer]
    with Celery(broker=as_role(own_redis.url, "flower"), set_as_current=False) as app:
        app.conf.broker_transport_options = {"ack_emulation": False}
        assert eventually(lambda: app.control.ping(timeout=1.0)), "it still takes orders"
    assert target.resident_kb() - resident_kb < MOST_GROWTH_KB
