"""An HTTP response that is an error, or sends us elsewhere, as facts."""

import time
from urllib.parse import urljoin

from pydantic_core import from_json

from genqueue.connection.address import without_secrets
from genqueue_worker.upstream.errors.retry_after import retry_after_s
from genqueue_worker.upstream.errors.words import read_error
from genqueue_worker.upstream.faults import UpstreamFacts

_ERROR_BODY_LIMIT_CHARACTERS = 2000


def error_facts(status: int, reason: str, headers: dict[str, str], body: bytes) -> UpstreamFacts:
    """Read an HTTP error response: TGI's JSON, axum's plain text, a proxy's page, or nothing at all."""
    text = body.decode("utf-8", "replace").strip()
    message, error_type = text[:_ERROR_BODY_LIMIT_CHARACTERS], None
    try:
        parsed = from_json(text)
    except ValueError:
        parsed = None
    if isinstance(parsed, list) and parsed and isinstance(parsed[0], dict):  # Google's
        parsed = parsed[0]
    if isinstance(parsed, dict):
        error = read_error(parsed)
        message, error_type = error.words or message, error.error_type
    if "<html" in text[:500].lower():
        message = ""
    return UpstreamFacts(
        message=message or f"HTTP {status} {reason}".strip(),
        status=status,
        error_type=error_type,
        retry_after_s=retry_after_s(headers, time.time()),
    )


def redirect_facts(status: int, url: str, location: str) -> UpstreamFacts:
    """Of an answer that would have us ask elsewhere; ``location`` is its header, "" if it has none."""
    try:
        where = without_secrets(urljoin(url, location.strip()))
    except ValueError:
        where = ""
    if not location.strip():
        message = f"HTTP {status}: a redirect without an address"
    elif not where:
        message = f"HTTP {status}: a redirect whose address cannot be read"
    else:
        message = f"HTTP {status}: the server sends us to {where}; if it moved there, mend its address"
    return UpstreamFacts(message, status=status, error_type="redirect")
