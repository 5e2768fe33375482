"""``genqueue flower``: Flower with the settings that fit, closed to who has no password.

The same gate is before every other Flower of our Celery app (:func:`gate`): ``celery -A genqueue_worker.app flower``.

What is shown of a generation comes with Celery's events (:meth:`genqueue_worker.runtime.Runtime.show`): its
generator, how long it took, how many tokens it has, and of its prompt the length and a hash.  Flower
is used as it is: a task class with more fields, a list of columns, its own authentication.
"""

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from celery.events.state import Task
from flower.app import Flower
from flower.events import EventsState
from flower.views import BaseHandler
from flower.views.tasks import TASK_COLUMNS
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_unix_socket
from tornado.web import RequestHandler

from genqueue.cli import output
from genqueue.cli.exits import ExitCode
from genqueue.errors import ConfigError
from genqueue.settings import load_settings
from genqueue_worker.app import app, look_for_redis
from genqueue_worker.flower_gate import GATED, PREFIX, Caller, keep_private, refusal, shut
from genqueue_worker.observe import logs

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
"""Flower's own, by its names for them; ``ops/flower.py`` gives the same to Celery's own command."""
_ANYBODY = "FLOWER_UNAUTHENTICATED_API"
_SOCKET_MODE = 0o660
_FIND_HANDLER, _START_HTTP_SERVER = Flower.find_handler, Flower.start_http_server


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


def gate() -> None:
    """Have each Flower of this process know what our workers tell of generations, and let in nobody else.

    The class itself is changed, not derived from: Flower asks our app for its modules when it is half made, which is
    when an app hears of it.  It listens later.
    """
    Flower.find_handler = _find_handler
    Flower.start_http_server = _start_http_server
    BaseHandler.set_default_headers = _set_default_headers
    EventsState.Task = GenerationTask
    TASK_COLUMNS.update(COLUMNS)


class _Shut(RequestHandler):
    """Answers what the gate does not let in, whatever is asked for."""

    def initialize(self, status: int, words: str) -> None:
        self._answer = status, words

    def check_xsrf_cookie(self) -> None:
        """There is nothing to protect."""

    def prepare(self) -> None:
        status, words = self._answer
        self.set_status(status)
        self.set_header("Content-Type", "text/plain")
        if status == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish(words)


def _find_handler(self: Flower, request: HTTPServerRequest, **kwargs: Any) -> Any:
    """Of each request: :func:`genqueue_worker.flower_gate.shut` comes first."""
    headers = request.headers
    caller = Caller(
        method=request.method or "",
        host=request.host,
        origin=headers.get("Origin", ""),
        site=headers.get("Sec-Fetch-Site", ""),
        mode=headers.get("Sec-Fetch-Mode", ""),
        dest=headers.get("Sec-Fetch-Dest", ""),
        authorization=headers.get("Authorization", ""),
    )
    answer = shut(caller, has_login=bool(self.options.basic_auth or self.options.auth))
    if answer is not None:
        status, words = answer
        return self.get_handler_delegate(request, _Shut, {"status": status, "words": words})
    return _FIND_HANDLER(self, request, **kwargs)


def _start_http_server(self: Flower) -> Any:
    """Listen, on this host alone if nothing is said; or end in one line, whichever command began it."""
    try:
        _check(self.options)
        if self.capp.conf.broker_transport == "genqueue_worker.broker.transport:Transport":
            self.capp.conf.broker_transport = None  # the Broker tab knows Redis by the scheme of its address only
        if not self.options.unix_socket:
            return _START_HTTP_SERVER(self)
        _listen_on_socket(self, self.options.unix_socket)
        return None
    except ConfigError as error:
        output.say(str(error))
        sys.exit(ExitCode.CONFIG)


def _check(options: Any) -> None:
    """Whether Flower may start with these, wherever they came from: variables, arguments, a file."""
    if options.basic_auth and not any(options.basic_auth):
        options.basic_auth = []  # Flower takes "" for a password that everybody can send
    options.address = options.address or "127.0.0.1"
    given = {
        f"{PREFIX}{name.upper()}": ",".join(value) if isinstance(value, list) else str(value)
        for name, value in options.items()
        if name in GATED and value
    }
    refused = refusal(given, options.address)
    if refused is not None:
        raise ConfigError(refused)
    if options.persistent:
        keep_private(Path(options.db), is_own_folder=False)


def _listen_on_socket(flower: Flower, path: str) -> None:
    """A unix socket is its user's and group's; Flower would have it everybody's."""
    try:
        HTTPServer(flower).add_socket(bind_unix_socket(path, mode=_SOCKET_MODE))
    except (OSError, ValueError) as error:  # it is no socket
        raise ConfigError(f"FLOWER_UNIX_SOCKET: cannot listen on {path}: {error}") from None


def _set_default_headers(self: BaseHandler) -> None:
    """In place of Flower's, which lets every page read what ``--open-api`` answers."""
    self.set_header("X-Content-Type-Options", "nosniff")
    self.set_header("X-Frame-Options", "DENY")  # a button in another's frame is pressed unseen


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
        bool,
        typer.Option(
            "--open-api",
            help="Without a password: its API, Terminate included, for every program on this host, whoever runs it, "
            "and for Flower's own pages; for no other page.",
        ),
    ] = False,
) -> None:
    """Watch workers and generations in a browser; FLOWER_BASIC_AUTH=user:password says who may."""
    refused = refusal(os.environ, address)
    if refused is not None:
        raise ConfigError(refused)
    # Asked for by hand, or not at all: with it, whoever sees the page may end what runs.
    os.environ.pop(_ANYBODY, None)
    if open_api:
        os.environ[_ANYBODY] = "true"
    settings = load_settings()
    where = db or _state_folder() / "flower"
    keep_private(where, is_own_folder=db is None)
    logs.set_up(settings.log_format, logging.INFO, None)  # Flower's own format lets pass what a terminal obeys
    look_for_redis(settings, "flower")
    gate()
    # No file of options: a flowerconfig.py that lies here could open what was just seen to be closed.
    options = {"conf": os.devnull, "address": address, "port": port, "db": where, **SETTINGS}
    try:
        app.start(["flower", *(f"--{name}={value}" for name, value in options.items())])
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}:
            raise
        raise ConfigError(f"--address, --port: cannot listen on {address}:{port}: {os.strerror(error.errno)}") from None
