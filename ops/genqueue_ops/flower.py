"""``genqueue flower``: Flower with the settings that fit, closed to who has no password.

What is shown of a generation comes with Celery's events (:meth:`genqueue_worker.app.Runtime.show`): its
generator, how long it took, how many tokens it has, and of its prompt the length and a hash.  Flower
is used as it is: a task class with more fields, a list of columns, its own authentication.
"""

import errno
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from celery.events.state import Task
from flower.events import EventsState
from flower.utils.authentication import validate_auth_option
from flower.views.tasks import TASK_COLUMNS

from genqueue.errors import ConfigError
from genqueue.settings import load_settings
from genqueue_worker.app import app, look_for_redis

COLUMNS = {
    "generator": "Generator",
    "queue_wait_s": "Queue wait, s",
    "ttft_s": "First token, s",
    "completion_tokens": "Tokens",
    "attempt": "Attempt",
    "prompt": "Prompt",
}
"""What Flower does not know of a task by itself, and what stands above it."""
TASKS_COLUMNS = [
    *("uuid", "generator", "state", "received", "queue_wait_s", "ttft_s", "completion_tokens", "attempt"),
    *("runtime", "worker", "prompt"),
]
SETTINGS = {
    "persistent": True,
    "state_save_interval": 10_000,  # milliseconds
    "tasks_columns": ",".join(TASKS_COLUMNS),
}
"""Flower's own, by its names for them; ``ops/flower.py`` has the same."""
_ANYBODY = "FLOWER_UNAUTHENTICATED_API"
_LOGIN_ELSEWHERE = ("FLOWER_AUTH", "FLOWER_AUTH_PROVIDER", "FLOWER_OAUTH2_KEY", "FLOWER_OAUTH2_SECRET")
_STRANGER = "nobody@invalid.example"


class GenerationTask(Task):
    """What Flower knows of a generation; each name of ``_fields`` is shown, searched and kept over a restart."""

    generator = queue_wait_s = waking_s = first_text_s = completion_tokens = attempt = prompt = outcome = None
    _fields = (*Task._fields, *COLUMNS, "waking_s", "first_text_s", "outcome")

    @property
    def ttft_s(self) -> float | None:
        """Submitted to first text, as the worker saw it."""
        if self.first_text_s is None:
            return None
        return round((self.queue_wait_s or 0.0) + (self.waking_s or 0.0) + self.first_text_s, 3)

    @ttft_s.setter
    def ttft_s(self, value: float | None) -> None:
        """It follows from the others, when Flower brings a kept task back too."""


def prepare(app: Any) -> None:
    """Have Flower know what our workers tell of generations."""
    EventsState.Task = GenerationTask
    TASK_COLUMNS.update(COLUMNS)
    if app.conf.broker_transport == "genqueue_worker.broker:Transport":
        app.conf.broker_transport = None  # the Broker tab knows Redis by the scheme of its address only


def refusal(environ: Mapping[str, str], address: str) -> str | None:
    """Why Flower must not start so; None if it may.

    Args:
        environ: Flower's settings, as its variables are called.
        address: where it is to listen; "" is every interface.
    """
    passwords = environ.get("FLOWER_BASIC_AUTH", "")
    if passwords and not all(all(pair.partition(":")[::2]) for pair in passwords.split(",")):
        return "FLOWER_BASIC_AUTH: must be user:password, or several of them with commas between"
    pattern = environ.get("FLOWER_AUTH", "")
    missing = [name for name in _LOGIN_ELSEWHERE if not environ.get(name)]
    if 0 < len(missing) < len(_LOGIN_ELSEWHERE):
        return f"{', '.join(missing)}: needed too, for a login with {', '.join(_LOGIN_ELSEWHERE)}"
    if pattern and _is_too_wide(pattern):
        return (
            "FLOWER_AUTH: must be the addresses of those who may log in, with | between, or .*@ and a domain: "
            f"this would fit {_STRANGER}, or nobody"
        )
    is_open = not (passwords or pattern)
    if is_open and not _is_loopback(address):
        return (
            f"address {address or 'of every interface'}: others can reach it, so FLOWER_BASIC_AUTH=user:password is "
            "needed, or FLOWER_AUTH and FLOWER_AUTH_PROVIDER with the FLOWER_OAUTH2_ variables; or --address 127.0.0.1"
        )
    return None


def _is_too_wide(pattern: str) -> bool:
    """Read as the regular expression that Flower's help calls it, too: its versions differ in how they match."""
    try:
        return not validate_auth_option(pattern) or re.search(pattern, _STRANGER) is not None
    except re.error:
        return True


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # another name may mean anything
        return False


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "genqueue"


def flower(
    address: Annotated[str, typer.Option(envvar="FLOWER_ADDRESS", help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="FLOWER_PORT", min=0, max=65_535, help="0 takes a free one.")] = 5555,
    db: Annotated[
        Path | None,
        typer.Option(envvar="FLOWER_DB", help="Where it remembers; ~/.local/state/genqueue/flower if not said."),
    ] = None,
    open_api: Annotated[
        bool, typer.Option("--open-api", help="Its API, Terminate included, to all on this host without a password.")
    ] = False,
) -> None:
    """Watch workers and generations in a browser; FLOWER_BASIC_AUTH=user:password says who may."""
    refused = refusal(os.environ, address)
    if refused is not None:
        raise ConfigError(refused)
    if not os.environ.get("FLOWER_BASIC_AUTH"):
        os.environ.pop("FLOWER_BASIC_AUTH", None)  # Flower takes "" for a password that nobody has
    # Asked for by hand, or not at all: with it, whoever sees the page may end what runs.
    os.environ.pop(_ANYBODY, None)
    if open_api:
        os.environ[_ANYBODY] = "true"
    settings = load_settings()
    where = db or _state_folder() / "flower"
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--db {where}: {error.strerror}") from None
    look_for_redis(settings, "flower")
    prepare(app)
    # No file of options: a flowerconfig.py that lies here could open what was just seen to be closed.
    options = {"conf": os.devnull, "address": address, "port": port, "db": where, **SETTINGS}
    try:
        app.start(["flower", *(f"--{name}={value}" for name, value in options.items())])
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}:
            raise
        raise ConfigError(f"--address, --port: cannot listen on {address}:{port}: {os.strerror(error.errno)}") from None
