"""``genqueue worker``: a worker with the settings that ours need."""

import os
from enum import StrEnum
from typing import Annotated

import typer

from genqueue import keys
from genqueue.masking import shown
from genqueue_worker.app import app, worker_settings


class LogLevel(StrEnum):
    """What a worker logs at least."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def worker(
    generator: Annotated[
        list[str] | None, typer.Option("--generator", "-g", help="Serve only these generators; may be repeated.")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Generations at once.")] = 256,
    loglevel: Annotated[LogLevel, typer.Option("--loglevel", "-l", help="What is logged.")] = LogLevel.INFO,
    hostname: Annotated[
        str | None, typer.Option("--hostname", "-n", help="Celery node name; genqueue-PID@HOST.")
    ] = None,
) -> None:
    """Run generations until told to stop; the same as celery -A genqueue_worker.app worker -P threads."""
    settings = worker_settings()
    unknown = [name for name in generator or () if name not in settings.generators]
    if unknown:
        raise typer.BadParameter(
            f"not configured: {', '.join(map(shown, unknown))}; known: {', '.join(settings.generators)}"
        )
    argv = ["worker", "--pool", "threads", "--concurrency", str(concurrency), "--loglevel", loglevel]
    if generator:
        argv += ["--queues", ",".join(map(keys.queue, generator))]
    # Celery's own default is the same for all workers of a host, which then answer as one.
    argv += ["--hostname", hostname or f"genqueue-{os.getpid()}@%h"]
    app.worker_main(argv)
