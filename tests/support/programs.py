"""Programs that tests run beside workers: a page's, plain Celery's, Flower."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery


def printed_by(code: str, redis_url: str) -> str:
    """What a Python program of a page prints that finds its queue at ``redis_url``."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "GENQUEUE_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class FlowerProcess:
    """Flower, and its HTTP API, which asks for no password here."""

    url: str
    log_path: Path

    def ask(self, path: str, method: str = "GET") -> Any:
        """The JSON that a route answers; None while there is none."""
        try:
            request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
            with urllib.request.urlopen(request, timeout=5) as response:
                return json.load(response)
        except OSError:
            return None


@contextlib.contextmanager
def plain_celery(url: str, broker: str | None = None) -> Iterator[Celery]:
    """An app that knows nothing of genqueue; ``Celery.close`` leaves the connections to its results open."""
    with Celery("plain", broker=broker or url, backend=url, set_as_current=False) as app:
        try:
            yield app
        finally:
            app.backend.result_consumer.stop()
            app.backend.result_consumer._pubsub = None  # or a result that is forgotten later unsubscribes on it
            app.backend.client.close()
