"""The HTTP server of a worker: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for probes.

Threads of its own: it must answer, and say so, when a loop of the worker is stuck.  What it
answers is decided in ``metrics.py`` and ``health.py``.  Where it listens on this host alone, it answers by this
host's own names only, so that no web page reads it (:mod:`genqueue_worker.observe.loopback`).
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from genqueue.errors import ConfigError
from genqueue_worker.observe.health import Verdict
from genqueue_worker.observe.loopback import is_loopback, is_own_name

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
_NOT_BY_THIS_NAME = "this listens on this host alone, so Host must be localhost, 127.0.0.1, [::1] or monitor_host"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_port = False  # some Pythons say True: two workers would share a port, and answer in turns

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind; the standard one asks the DNS for our name first, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]  # CGI's
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up, or says nothing, is no trouble of ours; the standard one prints a traceback."""
        logger.debug("a request of %s was not answered", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S  # who connects and says nothing shall not keep a thread

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each probe would be most of the log."""


class Monitor:
    """Answers on ``host:port``, from :meth:`start` to :meth:`stop`.

    Args:
        host, port: where; port 0 is a free one, which the log names.
        registry: what ``/metrics`` shows.
        probes: for each path what decides it.

    Attributes:
        address: where it listens.

    Raises:
        ConfigError: nothing can listen there.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, probes: dict[str, Callable[[], Verdict]]
    ) -> None:
        try:
            self._server = _Server(host, port)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"monitor_host, monitor_port: cannot listen on {host}:{port}: {reason}"
                " (each worker of a host needs a port of its own; 0 is a free one)"
            ) from error
        self._server.set_app(self._answer)
        self._host = host
        self._is_private = is_loopback(str(self._server.server_address[0]))
        self._metrics = make_wsgi_app(registry)
        self._probes = probes
        self._thread = threading.Thread(target=self._server.serve_forever, name="genqueue-monitor", daemon=True)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def announce(self) -> None:
        """Log where."""
        logger.info("metrics and probes: %s", " ".join(f"{self.address}{path}" for path in ("/metrics", *self._probes)))

    def stop(self) -> None:
        """Answer no more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        header = environ.get("HTTP_HOST")  # every browser sends it; some probes do not
        if self._is_private and header is not None and not is_own_name(header, self._host):
            return _as_json(environ, start_response, "403 Forbidden", {"error": _NOT_BY_THIS_NAME})
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        decide = self._probes.get(path)
        status, body = "404 Not Found", {"error": f"no such path; known: /metrics, {', '.join(self._probes)}"}
        if decide is not None:
            verdict = decide()
            status, body = "200 OK" if verdict.is_ok else "503 Service Unavailable", verdict.body()
        return _as_json(environ, start_response, status, body)


def _as_json(environ: WSGIEnvironment, start_response: StartResponse, status: str, body: Any) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else json.dumps(body).encode() + b"\n"]
