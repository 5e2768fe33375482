"""The parts of a chaos run, and what is done to them.

Two Redis servers behind one address, three TGI stand-ins and three workers, whose leases and clocks
differ.  A worker that is killed or told to stop is replaced, as a supervisor would.

Redis is run with ``appendfsync always``: it forgets only what it is made to forget.  Which worker
made a call is known from a header that each has in its own settings; the journal of a stand-in is
fetched right before it is killed, so the tokens of its last milliseconds are not counted.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio

from genqueue_lab.chaos.leftovers import Usage, usage_of
from genqueue_lab.chaos.network import FAIR, Weather
from genqueue_lab.chaos.orders import LOGIN, WORKER_HEADER
from genqueue_lab.chaos.plan import DEEP, GENERATORS, LEASES_S, WORKER_CLOCKS_S, WORKER_EVILS, WORKERS, Evil, Kind
from genqueue_lab.chaos.redis_pair import RedisPair
from genqueue_lab.chaos.trace import Call, Outages, Span
from genqueue_ops.local_redis import free_port
from genqueue_ops.processes import Child

DRAIN_S = 2.0
_SILENCE_S = 3.0
"""After so long without a token a worker gives an endpoint up that hangs."""
CONCURRENCY = 128
_READY_WITHIN_S = 60.0
_LEAVES_WITHIN_S = 30.0
_DEEP_TAKES = 4
_PROMPT = re.compile(r"Chaos \d+, order (\d+): ")
_AHEAD_S = {Kind.CLOCK_BACK: -60.0, Kind.CLOCK_AHEAD: 45.0}
_JUMP_S = 6.0
"""How long after Redis's clock was set no figure says anything: every lease is wrong then."""
_WEATHER = {
    Kind.SLOW: Weather(delay_s=0.03),
    Kind.STALL: Weather(is_stalled=True),
    Kind.CUTS: Weather(cut_after_bytes=(3_000, 20_000)),
}
_FAULTS: dict[Kind, dict[str, Any]] = {
    Kind.FULL: {"kind": "status", "status": 429, "body": {"error": "Model is overloaded", "error_type": "overloaded"}},
    Kind.BROKEN: {"kind": "status", "status": 503, "body": "upstream connect error"},
    Kind.LOGIN: LOGIN,
    Kind.RESETS: {"kind": "reset", "after_tokens": 2},
    Kind.HALVES: {"kind": "half", "after_tokens": 3},
}


@dataclass(slots=True)
class Endpoint:
    """A stand-in, and what it was asked in all its lives: (entry of its journal, when it was killed)."""

    generator: str
    child: Child
    url: str
    entries: list[tuple[dict[str, Any], float | None]] = field(default_factory=list)

    def journal(self) -> list[dict[str, Any]]:
        """What it was asked in this life."""
        with urllib.request.urlopen(f"{self.url}/standin/requests", timeout=10) as response:
            found: list[dict[str, Any]] = json.loads(response.read())
        return found

    def misbehave(self, fault: Mapping[str, Any] | None) -> None:
        """Do this to each call whose prompt asks for nothing else, or nothing more."""
        script = {"faults": [] if fault is None else [{**fault, "scope": "server"}]}
        request = urllib.request.Request(f"{self.url}/standin/script", json.dumps(script).encode(), method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def start(self) -> None:
        """Start it, again at the same address."""
        self.child.start()
        self.child.wait_until(lambda logged: "listening on " in logged and logged.endswith("\n"), _READY_WITHIN_S)


@dataclass(slots=True)
class Place:
    """Where a worker runs: one after the other."""

    number: int
    child: Child
    is_well: bool = False
    at_start: Usage | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pid(self) -> int:
        """The process that runs there, or the last one."""
        return self.child.process.pid


class Stage:
    """All parts, and what is done to them.

    Args:
        folder: for everybody's files.
        faketime: the library that sets clocks; None where there is none.
        dice: choose what the plan leaves open.
        opened: ends what is started.
    """

    def __init__(self, folder: Path, faketime: Path | None, dice: random.Random, opened: ExitStack) -> None:
        self.outages = Outages()
        self.pids: dict[str, int] = {}
        self.done: Counter[Kind] = Counter()
        self.faults: list[str] = []
        self._folder = folder
        self._opened = opened
        self._redis_lock = asyncio.Lock()
        self.redis = RedisPair(folder, faketime, dice, opened)
        self.endpoints = [self._new_endpoint(generator) for generator in (*GENERATORS, DEEP)]
        self.places = [Place(number, self._new_worker(number)) for number in range(WORKERS)]
        for place in self.places:
            self._wait_until_ready(place)

    def _child(self, name: str, arguments: Sequence[str], *, clock_ahead_s: int = 0) -> Child:
        (self._folder / name).mkdir()
        program = ["genqueue_lab.chaos.clock", str(clock_ahead_s)] if clock_ahead_s else ["genqueue"]
        command = [sys.executable, "-P", "-m", *program, *arguments]
        child = Child(name, command, self._folder / name / f"{name}.log")
        self._opened.callback(child.end, signal.SIGKILL)
        return child

    def _new_endpoint(self, generator: str) -> Endpoint:
        port = free_port()
        takes = _DEEP_TAKES if generator == DEEP else 2000
        child = self._child(generator, ["tgi-standin", "--port", str(port), "--max-concurrent-requests", str(takes)])
        endpoint = Endpoint(generator, child, f"http://127.0.0.1:{port}")
        endpoint.start()
        return endpoint

    def settings_toml(self, worker: str, lease_s: float) -> str:
        """A worker's ``genqueue.toml``."""
        lines = [f'redis_url = "{self.redis.url}"', f"drain_s = {DRAIN_S}", f"lease_s = {lease_s}"]
        for endpoint in self.endpoints:
            lines += [
                f"[generators.{endpoint.generator}]",
                'api_type = "text_generation_inference"',
                f'api_params = {{ url = "{endpoint.url}", headers = {{ {WORKER_HEADER} = "{worker}" }} }}',
                f"timeouts = {{ first_token_s = {_SILENCE_S}, between_tokens_s = {_SILENCE_S} }}",
                # So many evils make no dead letter.
                "max_attempts = 100",
            ]
            if endpoint.generator == GENERATORS[1]:
                lines.append("continues_chat = true")
        return "\n".join(lines) + "\n"

    def _new_worker(self, place: int) -> Child:
        name = f"worker-{len(self.pids) + 1}"
        arguments = ["worker", "--concurrency", str(CONCURRENCY), "--hostname", f"{name}@%h"]
        child = self._child(name, arguments, clock_ahead_s=WORKER_CLOCKS_S[place])
        (child.log.parent / "genqueue.toml").write_text(self.settings_toml(name, LEASES_S[place]))
        child.start()
        pid = self.pids[name] = child.process.pid
        self.outages.names[pid] = name
        self.outages.leases_s[pid] = LEASES_S[place]
        return child

    def _wait_until_ready(self, place: Place) -> None:
        place.child.wait_until(lambda logged: " ready." in logged, _READY_WITHIN_S)
        place.at_start = usage_of(place.pid)
        place.is_well = True

    async def do(self, evil: Evil) -> None:
        """Do one evil, and see to it that the part comes back."""
        self.done[evil.kind] += 1
        if evil.kind in WORKER_EVILS:
            await self._to_workers(evil)
        elif evil.kind is Kind.ENDPOINT or evil.kind in _FAULTS:
            await self._to_endpoint(evil)
        else:
            async with self._redis_lock:
                await self._to_redis(evil)

    # -- Redis, and the way to it -----------------------------------------------------------

    async def _to_redis(self, evil: Evil) -> None:
        server, began_s = self.redis, time.time()
        match evil.kind:
            case Kind.REDIS_KILL | Kind.REDIS_STOP:
                await asyncio.to_thread(server.kill if evil.kind is Kind.REDIS_KILL else server.stop)
                await asyncio.sleep(evil.lasts_s)
                await asyncio.to_thread(server.start)
                self._was_away(began_s)
            case Kind.REDIS_FREEZE:
                server.serving.pause()
                await asyncio.sleep(evil.lasts_s)
                server.serving.resume()
                self._was_away(began_s)
            case Kind.REDIS_FORGETS | Kind.REDIS_TORN:
                is_torn = evil.kind is Kind.REDIS_TORN
                self.outages.forgotten.append(await asyncio.to_thread(server.forget, evil.back_s, is_torn=is_torn))
                await asyncio.sleep(evil.lasts_s)
                await asyncio.to_thread(server.start)
                if is_torn:
                    await asyncio.to_thread(server.mend)
                self._was_away(began_s)
            case Kind.FAILOVER:
                await asyncio.to_thread(server.wait_until_in_step)
                forgotten = await asyncio.to_thread(server.fail_over, evil.back_s)
                self.outages.forgotten.append(forgotten)
                self._was_away(forgotten.ended_s)
                await asyncio.sleep(evil.lasts_s)
                await asyncio.to_thread(server.follow_again)
            case Kind.CLOCK_BACK | Kind.CLOCK_AHEAD:
                for ahead_s in (_AHEAD_S[evil.kind], 0.0):
                    server.set_clock(ahead_s)
                    now_s = time.time()
                    self.outages.slow.append(Span(now_s, now_s + _JUMP_S))
                    await asyncio.sleep(evil.lasts_s)
            case Kind.READERS:
                async with redis.asyncio.Redis(port=server.serving.port) as client:
                    with contextlib.suppress(redis.RedisError, OSError):  # it may be down, and they with it
                        await client.client_kill_filter(_type="pubsub")
                self.outages.readers_cut_s.append(time.time())
            case Kind.SLOW | Kind.STALL | Kind.CUTS:
                await asyncio.to_thread(server.way.change, _WEATHER[evil.kind])
                await asyncio.sleep(evil.lasts_s)
                await asyncio.to_thread(server.way.change, FAIR)
                span = Span(began_s, time.time())
                (self.outages.slow if evil.kind is Kind.SLOW else self.outages.redis).append(span)

    def _was_away(self, began_s: float) -> None:
        self.outages.redis.append(Span(began_s, time.time()))

    # -- model servers ----------------------------------------------------------------------

    async def _to_endpoint(self, evil: Evil) -> None:
        endpoint, began_s = self.endpoints[evil.targets[0]], time.time()
        if evil.kind is Kind.ENDPOINT:
            entries = await asyncio.to_thread(endpoint.journal)
            began_s = time.time()
            await asyncio.to_thread(endpoint.child.end, signal.SIGKILL)
            endpoint.entries += [(entry, began_s) for entry in entries]
            await asyncio.sleep(evil.lasts_s)
            await asyncio.to_thread(endpoint.start)
        else:
            await asyncio.to_thread(endpoint.misbehave, _FAULTS[evil.kind])
            await asyncio.sleep(evil.lasts_s)
            await asyncio.to_thread(endpoint.misbehave, None)
        self.outages.endpoints.setdefault(endpoint.generator, []).append(Span(began_s, time.time()))

    # -- workers ----------------------------------------------------------------------------

    async def _to_workers(self, evil: Evil) -> None:
        places = [self.places[number] for number in sorted(evil.targets)]
        async with contextlib.AsyncExitStack() as locked:
            for place in places:
                await locked.enter_async_context(place.lock)
            while not any(other.is_well for other in self.places if other not in places):
                await asyncio.sleep(0.05)
            for place in places:
                place.is_well = False
                self._check(place.child)
            await asyncio.gather(*(self._hit(place, evil) for place in places))

    async def _hit(self, place: Place, evil: Evil) -> None:
        child, now_s = place.child, time.time()
        match evil.kind:
            case Kind.FREEZE:
                child.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(evil.lasts_s)
                # Before it wakes: what it does then is not excused.
                self.outages.frozen.setdefault(place.pid, []).append(Span(now_s, time.time()))
                child.process.send_signal(signal.SIGCONT)
                place.is_well = True
                return
            case Kind.KILL | Kind.KILL_TWO:
                self.outages.killed_s[place.pid] = now_s
                child.process.kill()
            case Kind.LEAVE:
                self.outages.leaving_s[place.pid] = now_s
                child.process.send_signal(signal.SIGTERM)
        place.child = self._new_worker(place.number)
        await asyncio.to_thread(self._wait_until_ready, place)
        try:
            status = await asyncio.to_thread(child.process.wait, _LEAVES_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.faults.append(f"{child.name} has not ended {_LEAVES_WITHIN_S:g} s after its SIGTERM")
        else:
            if evil.kind is Kind.LEAVE and status != 0:
                self.faults.append(f"{child.name} ended with status {status} when told to stop")

    # -- what they did ----------------------------------------------------------------------

    def check(self) -> None:
        """Note who ended though nobody told it to."""
        for child in [*(place.child for place in self.places), *(endpoint.child for endpoint in self.endpoints)]:
            self._check(child)

    def _check(self, child: Child) -> None:
        if (status := child.process.poll()) is not None:
            self.faults.append(f"{child.name} ended by itself with status {status}")

    def calls(self, prompts: Mapping[int, str]) -> dict[int, list[Call]]:
        """Every request to the stand-ins, by the order whose prompt it has; those of storms are none's."""
        found: dict[int, list[Call]] = {}
        now_s = time.time()
        for endpoint in self.endpoints:
            for entry, died_s in [*endpoint.entries, *((entry, None) for entry in endpoint.journal())]:
                if not isinstance(entry["body"], dict):
                    continue  # its worker died before the whole request was there
                prompt, said = _asked(entry["body"])
                if (asked := _PROMPT.match(prompt)) is None:
                    continue
                number = int(asked[1])
                closed_s = entry["closed_at_s"]
                call = Call(
                    worker_pid=self.pids[entry["headers"][WORKER_HEADER]],
                    began_s=entry["started_at_s"],
                    closed_s=closed_s or died_s or now_s,
                    tokens=entry["tokens_sent"],
                    server_died=closed_s is None and died_s is not None,
                    sent=said or prompt.removeprefix(prompts[number]),
                )
                found.setdefault(number, []).append(call)
        return found


def _asked(body: dict[str, Any]) -> tuple[str, str]:
    """(the prompt, which the text so far may follow; the text so far of a chat)."""
    messages = body.get("messages")
    if messages is None:
        return body["inputs"], ""
    last = messages[-1]
    prompt = next(message["content"] for message in messages if message["role"] == "user")
    return prompt, last["content"] if last["role"] == "assistant" else ""
