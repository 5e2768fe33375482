"""The configured HTTP transport that every generation of a worker shares.

``huggingface_hub`` makes an HTTP client of its own for each client object and keeps every
streamed response until that is closed: 10 KB a call on a client that lives long, a TLS
context (35 ms) and no pooled connection on one that does not.  So the transport lives as
long as the worker and a light client is opened over it for each generation
(``huggingface_hub.set_async_client_factory``).
"""

import contextvars
import re
from dataclasses import dataclass, field

import httpx2
from huggingface_hub import set_async_client_factory
from pydantic_core import from_json

from genqueue_worker.policy import UpstreamFacts

_ERROR_BODY_LIMIT_CHARACTERS = 2000
_DROPPED_PARAMETERS = re.compile(r"model_kwargs` are not used by the model")


class UpstreamError(Exception):
    """The model server refused, failed or fell silent."""

    def __init__(self, facts: UpstreamFacts) -> None:
        self.facts = facts
        super().__init__(facts.message)


@dataclass
class Exchange:
    """What one HTTP call told besides its body: ``x-*`` and ``Retry-After`` headers."""

    headers: dict[str, str] = field(default_factory=dict)


exchange: contextvars.ContextVar[Exchange] = contextvars.ContextVar("exchange")
"""Set by whoever calls; the response hook fills it in."""


class _Lasting(httpx2.AsyncBaseTransport):
    """A transport that outlives the clients opened over it."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """A client was closed, the transport stays."""


def error_facts(status: int, reason: str, headers: "dict[str, str]", body: bytes) -> UpstreamFacts:
    """Read an HTTP error response: TGI's JSON, axum's plain text, a proxy's page, or nothing at all."""
    text = body.decode("utf-8", "replace").strip()
    message, error_type = text[:_ERROR_BODY_LIMIT_CHARACTERS], None
    try:
        parsed = from_json(text)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        error = parsed.get("error", parsed.get("message"))
        if isinstance(error, dict):  # the OpenAI-compatible routes nest it
            error_type = error.get("type")
            error = error.get("message")
        error_type = parsed.get("error_type", error_type)
        message = str(error) if error else message
    if "<html" in text[:500].lower():
        message = ""
    retry_after = headers.get("retry-after", "").strip()
    return UpstreamFacts(
        message=message or f"HTTP {status} {reason}".strip(),
        status=status,
        error_type=error_type if isinstance(error_type, str) else None,
        retry_after_s=float(retry_after) if retry_after.isdigit() else None,
    )


async def _on_response(response: httpx2.Response) -> None:
    headers = {name.lower(): value for name, value in response.headers.items()}
    told = exchange.get(None)
    if told is not None:
        told.headers = {name: value for name, value in headers.items() if name.startswith("x-")}
    if response.status_code >= 400:
        # Raised here, not left to huggingface_hub: it drops Retry-After, cannot read a chunked
        # body of a streaming call, and answers one kind of 400 by calling again without end.
        facts = error_facts(response.status_code, response.reason_phrase, headers, await response.aread())
        raise UpstreamError(facts)


def open_transport() -> httpx2.AsyncBaseTransport:
    """Make the worker's transport and have huggingface_hub use it; whoever opened it closes it.

    No limit on connections: how many generations run at once is the worker's concurrency.
    """
    lasting = httpx2.AsyncHTTPTransport(
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0)
    )

    def light_client() -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=_Lasting(lasting),
            event_hooks={"response": [_on_response]},
            follow_redirects=True,
            timeout=None,
        )

    set_async_client_factory(light_client)
    return lasting
