"""A Redis, a model server and a worker, each a process of its own, for the length of a ``with`` block.

This module decides in which order they come up and what each is told.  Which model server it is, its owner decides.
"""

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from genqueue_ops.local_redis import Kind, LocalRedis, local_redis
from genqueue_ops.processes import Child, started

StartEndpoint = Callable[[ExitStack, Path], tuple[Child, str | None]]
"""Starts a model server, which the stack ends: (the process, the name of its model, if that is to be said)."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A running Redis, model server and worker.

    Attributes:
        redis_url: for producers.
        config: the worker's settings; producers may have the same.
        model: what the model server serves; None if that was not said.
        parts: the processes, in the order in which they were started, without Redis.
    """

    redis_url: str
    config: Path
    model: str | None
    parts: tuple[Child, ...]

    def check(self) -> None:
        """Raise ChildError if a part has ended."""
        for part in self.parts:
            part.check()


def configured(
    folder: Path, redis_url: str, endpoint_url: str, *, model: str | None = None, max_queue_depth: int | None = None
) -> dict[str, str]:
    """The environment of a producer or worker with one generator; its settings file is put in ``folder``."""
    params = {"url": endpoint_url, **({} if model is None else {"model": model})}
    lines = [
        f"redis_url = {json.dumps(redis_url)}",
        "[generators.default]",
        'api_type = "text_generation_inference"',
        f"api_params = {{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in params.items())} }}",
        *([] if max_queue_depth is None else [f"max_queue_depth = {max_queue_depth}"]),
    ]
    config = folder / "genqueue.toml"
    config.write_text("\n".join(lines) + "\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENQUEUE_")}
    return {**environ, "GENQUEUE_CONFIG": str(config)}


def url_of(standin: Child) -> str:
    """Where a stand-in that is ready listens."""
    return standin.logged().partition("listening on ")[2].split()[0]


@contextmanager
def running_stack(
    start_endpoint: StartEndpoint,
    *,
    concurrency: int,
    redis: Kind = "auto",
    max_queue_depth: int | None = None,
    on_redis: Callable[[LocalRedis], None] = lambda server: None,
    on_endpoint: Callable[[str | None, str], None] = lambda model, url: None,
) -> Iterator[Stack]:
    """Everything that a generation needs.

    Args:
        start_endpoint: starts the model server.
        concurrency: of the worker.
        redis: see ``local_redis``.
        max_queue_depth: of the generator; the setting's own if None.
        on_redis: told when Redis is there.
        on_endpoint: told when the model server is: its model, and its address.

    Sets ``GENQUEUE_REDIS_URL`` and ``GENQUEUE_CONFIG`` of this process, and removes what else was
    set of that kind: it shall be this Redis and no other.

    Raises:
        ChildError: a part does not start; holds the end of its log.
        LocalRedisError: there is no Redis, or it does not start.
    """
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="genqueue-stack-")))
        server = opened.enter_context(local_redis(redis))
        on_redis(server)
        for name in [name for name in os.environ if name.startswith("GENQUEUE_")]:
            del os.environ[name]
        endpoint, model = start_endpoint(opened, folder)
        url = url_of(endpoint)
        on_endpoint(model, url)
        environ = configured(folder, server.url, url, model=model, max_queue_depth=max_queue_depth)
        os.environ |= {"GENQUEUE_REDIS_URL": server.url, "GENQUEUE_CONFIG": environ["GENQUEUE_CONFIG"]}
        worker = started(
            opened,
            folder,
            ["worker", "--concurrency", str(concurrency)],
            " ready.",
            name="the worker",
            # At once: nothing here is to be kept, and a worker asked politely finishes its generations first.
            end_with=signal.SIGKILL,
        )
        yield Stack(server.url, Path(environ["GENQUEUE_CONFIG"]), model, (endpoint, worker))
