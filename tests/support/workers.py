"""Workers in processes of their own, alone and side by side."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from genqueue import GenerationClient, Settings
from genqueue_ops.local_redis import LocalRedis

from .roles import as_role
from .waiting import wait_for

LOG_TAIL_CHARACTERS = 6000

# Values no test may find anywhere but in the Authorization header that they are meant for.
TOKENS = {
    "HF_API_TOKEN": "hf_canaryApiToken0001",
    "HF_TOKEN": "hf_canaryHubToken0002",
    "STANDIN_KEY": "canary-standin-key-0003",
    "OTHER_TOKEN": "canary-other-token-0004",
}


@dataclass
class WorkerProcess:
    """A Celery worker in a process of its own."""

    process: "subprocess.Popen[bytes]"
    log_path: Path
    redis_url: str
    generators: list[str] = field(default_factory=list)

    @property
    def producer_url(self) -> str:
        """Where its producers find Redis, and as whom."""
        return as_role(self.redis_url, "producer")

    @property
    def log(self) -> str:
        """Everything it has logged."""
        return self.log_path.read_text(errors="replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log, of which each line must be JSON; without the one that is not whole yet."""
        return [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("\n")]

    def outcomes(self, generation_id: str) -> list[dict[str, Any]]:
        """The lines that say what came of a generation's doorbells and attempts."""
        return [line for line in self.lines if line.get("generation_id") == generation_id and "outcome" in line]

    def wait_until_ready(self) -> None:
        """Its generators are announced and Celery consumes."""
        with redis.Redis.from_url(self.redis_url) as client:
            wait_for(
                lambda: self._is_ready(client), within_s=60, what=f"ready; its log: {self.log[-LOG_TAIL_CHARACTERS:]}"
            )

    def _is_ready(self, client: redis.Redis) -> bool:
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log}"
        return " ready." in self.log and {name.encode() for name in self.generators} <= set(
            client.hkeys("genqueue:generators")
        )

    def end(self, within_s: float = 60.0) -> int:
        """Send SIGTERM and wait for the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the worker did not end within {within_s} s of SIGTERM:\n{self.log[-LOG_TAIL_CHARACTERS:]}")


class Fleet:
    """Workers on a Redis of their own, which tests may kill, freeze and replace.

    Attributes:
        redis: that Redis.
        client: a producer that knows the generators.
    """

    def __init__(
        self,
        server: LocalRedis,
        launch: Callable[..., WorkerProcess],
        generators: dict[str, dict[str, Any]],
        environ: dict[str, str],
    ) -> None:
        self.redis = server
        self.producer_url = as_role(server.url, "producer")
        self.client = GenerationClient(Settings(redis_url=self.producer_url, generators=generators))  # type: ignore[arg-type]
        self.workers: list[WorkerProcess] = []
        self._launch = launch
        self._generators = generators
        self._environ = environ

    def staff(self, count: int, **environ: str) -> list[WorkerProcess]:
        """See to it that ``count`` workers run and are ready."""
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]
        began = [
            self._launch(self._generators, self.redis.url, "-c", "64", environ={**self._environ, **environ}, wait=False)
            for _ in range(count - len(self.workers))
        ]
        self.workers += began
        for worker in began:
            worker.wait_until_ready()
        return self.workers

    def holder(self, generation: Any) -> WorkerProcess:
        """The worker that began the newest attempt."""
        with redis.Redis.from_url(self.redis.url) as db:
            owner = wait_for(lambda: db.hget(f"genqueue:generation:{generation.id}", "owner"), what="an attempt")
        (found,) = [worker for worker in self.workers if str(worker.process.pid) == owner.decode().split(":")[-2]]
        return found

    def record(self, generation: Any) -> dict[str, str]:
        """The registry's entry."""
        with redis.Redis.from_url(self.redis.url, decode_responses=True) as db:
            found: dict[str, str] = db.hgetall(f"genqueue:generation:{generation.id}")
        return found

    def kill(self) -> None:
        """End all, whatever they do and whether they are frozen or not."""
        self.client.close()
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()


class Hosts:
    """A worker for each model server, as they stand side by side on their hosts."""

    def __init__(
        self,
        redis_url: str,
        launch: Callable[..., WorkerProcess],
        urls_of_each: list[list[str]],
        *,
        places: int = 64,
        **options: Any,
    ) -> None:
        self.settings = Settings(redis_url=as_role(redis_url, "producer"), generators={})
        self.workers = [
            launch(
                {"default": {"api_type": "text_generation_inference", **options, "api_params": {"urls": urls}}},
                redis_url,
                "-c",
                str(places),
                wait=False,
            )
            for urls in urls_of_each
        ]
        for worker in self.workers:
            worker.wait_until_ready()
        self.client = GenerationClient(self.settings)

    def health(self, worker: WorkerProcess) -> list[str] | None:
        """What the worker says of its servers; None before it said anything."""
        for status in self.client.workers():
            if f":{worker.process.pid}:" in status.name:
                return [server["health"] for server in status.generators["default"]]
        return None


def toml_of(generators: dict[str, dict[str, Any]]) -> str:
    """A ``genqueue.toml``; JSON scalars, arrays and strings are TOML's too."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{json.dumps(key)} = {value(part)}" for key, part in item.items()) + " }"
        return json.dumps(item)

    lines = []
    for name, options in generators.items():
        lines.append(f"[generators.{name}]")
        lines += [f"{key} = {value(item)}" for key, item in options.items()]
    return "\n".join(lines) + "\n"


def clean_environment(folder: Path) -> dict[str, str]:
    """This process's environment without what would configure genqueue or huggingface_hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GENQUEUE_", "HF_", "HUGGING"))}
    return {**kept, "HF_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
