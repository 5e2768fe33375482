"""The facts of an endpoint's error, and whose fault it is.  Pure.

:mod:`genqueue_worker.upstream.errors` reads the facts, in whichever shape an endpoint has them.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus


class Fault(StrEnum):
    """Whose fault an upstream error is."""

    REQUEST = "request"
    """The caller's: no attempt will fix it."""
    ENDPOINT = "endpoint"
    """The address's, or our token's: the server refuses whatever it is asked, another one may not."""
    CAPACITY = "capacity"
    """Nobody's: the server is full or waking up."""
    SERVER = "server"
    """The server's, or the way to it: another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class UpstreamFacts:
    """What is known of an upstream error.

    Attributes:
        message: the server's own words, or ours where it said nothing.
        status: the HTTP status; None where there was no HTTP error (TGI answers a streaming
            request with 200 and puts the error into the stream).
        error_type: TGI's word (``validation``, ``overloaded``, ``generation`` …), if any.
        retry_after_s: what the server asked for, if it did.
        was_unreached: whether the request never arrived anywhere.
        is_down: whether the server is asked nothing more for now: it cannot be reached, or refuses whatever comes.
        is_address_right: whether 403, 404 and 405 are about what was asked: a model server answers ``/health`` there,
            or Inference Providers do, who mean the model by them.
    """

    message: str
    status: int | None = None
    error_type: str | None = None
    retry_after_s: float | None = None
    was_unreached: bool = False
    is_down: bool = False
    is_address_right: bool = False


LACK = "lack"
"""The type of an error that comes of what this host lacks: descriptors, memory, names."""
OUTGROWN = "outgrown"
"""That of an answer for which this host has too little memory: it may never have enough."""
WEB_PAGE = "web_page"
"""The type of an answer that is a web page: a login, or a proxy that knows no model server, or none just now."""
_BY_TYPE = {
    "validation": Fault.REQUEST,
    "template_error": Fault.REQUEST,
    "missing_template_variable": Fault.REQUEST,
    "tool_error": Fault.REQUEST,
    "overloaded": Fault.CAPACITY,
    "healthcheck": Fault.CAPACITY,
    "unreached": Fault.CAPACITY,  # ours
    LACK: Fault.CAPACITY,  # ours, and of this host
    OUTGROWN: Fault.CAPACITY,
    "insufficient_quota": Fault.ENDPOINT,  # OpenAI's
    "redirect": Fault.ENDPOINT,  # ours
    WEB_PAGE: Fault.ENDPOINT,  # ours
    "generation": Fault.SERVER,
    "incomplete_generation": Fault.SERVER,
    "incomplete_generation_stream": Fault.SERVER,
    "stream_serialization_error": Fault.SERVER,
    # OpenAI-compatible engines
    "invalid_request_error": Fault.REQUEST,
    "exceed_context_size_error": Fault.REQUEST,
    "not_supported_error": Fault.REQUEST,
    "unavailable_error": Fault.CAPACITY,
}
_BY_WORDS = {
    # TGI's chat route says 422 to everything once the stream has begun, and no type.
    "Model is overloaded": Fault.CAPACITY,
    "Request failed during generation": Fault.SERVER,
    "Incomplete generation": Fault.SERVER,
    "Stream event serialization error": Fault.SERVER,
    # llama.cpp says 500.
    "image input is not supported": Fault.REQUEST,
    "Failed to parse": Fault.REQUEST,
}
_BY_STATUS = {
    400: Fault.REQUEST,
    413: Fault.REQUEST,
    415: Fault.REQUEST,
    422: Fault.REQUEST,
    429: Fault.CAPACITY,
    503: Fault.CAPACITY,
    529: Fault.CAPACITY,  # Anthropic's, and Cloudflare's: overloaded
}


_CLIENT_ERRORS = range(400, 500)
_PASSING = frozenset({408, 409, 423, 424, 425, 429, 499})
"""Client errors that are of the moment, and not of what was sent."""
WORDLESS = frozenset({"timeout", "transport", "incomplete_generation_stream"})
"""The types of failures in which no server said anything: ours."""
_OF_THE_ACCOUNT = frozenset({401, 402})
OF_THE_ADDRESS = frozenset({403, 404, 405})
"""Or of what was asked of it: a route that a server does not have, words that a firewall does not let pass."""


def fault_of(facts: UpstreamFacts) -> Fault:
    """Whose fault it is: the server's type of error first, then its words, then the status, else the server's.

    Before all that: a token that is none (401, of which OpenAI says ``invalid_request_error``), or an account that
    has used up what it may (402, the router; 429, OpenAI).

    The types and statuses are those of TGI 3 (router/src/server.rs), of the Hugging Face proxies in
    front of Inference Endpoints and of the OpenAI-compatible engines.
    """
    if facts.status in _OF_THE_ACCOUNT:
        return Fault.ENDPOINT
    if facts.status == HTTPStatus.TOO_MANY_REQUESTS and is_spent(facts):
        return Fault.ENDPOINT
    if facts.error_type in _BY_TYPE:
        return _BY_TYPE[facts.error_type]
    for words, fault in _BY_WORDS.items():
        if facts.message.startswith(words):
            return fault
    if facts.status in OF_THE_ADDRESS:
        return Fault.REQUEST if facts.is_address_right else Fault.ENDPOINT
    return _BY_STATUS.get(facts.status or 0, Fault.SERVER)


def refuses_text(facts: UpstreamFacts) -> bool:
    """Whether a server that was sent the text so far beside what the caller sent refuses that.

    Whatever client error it chooses: too long a text may be a 411, 414 or 431 of a proxy.
    """
    match fault_of(facts):
        case Fault.REQUEST:
            return True
        case Fault.SERVER:
            is_named = facts.error_type in _BY_TYPE or facts.message.startswith(tuple(_BY_WORDS))
            return not is_named and facts.status in _CLIENT_ERRORS and facts.status not in _PASSING
    return False


SPENT_TYPES = frozenset(
    {"insufficient_quota", "insufficient_balance", "insufficient_credits", "insufficient_funds", "billing_error"}
    | {"billing_hard_limit_reached", "billing_not_active", "credits_exhausted", "payment_required"}
    | {"exceeded_current_quota_error"}
)
_SPENT_WORDS = re.compile(
    r"\bbilling\b|insufficient[ _](quota|balance|credits?|funds)|credit balance|out of credits"
    r"|(exceeded|used up|exhausted|depleted) your (\w+ ){0,3}(credits?|quota|balance)|subscribe to pro\b|top up"
    r"|\brecharge\b|in arrears",
    re.IGNORECASE,
)
_MENDS_WORDS = re.compile(
    r"(try|retry|wait|again|reset)[^.]{0,40}?\b(in|after|for|every|hourly|daily)\b|per[ _-](second|minute|hour|day)\b"
    r"|\b(rpm|tpm|rpd|tpd)\b|rate limit reached",
    re.IGNORECASE,
)


def is_spent(facts: UpstreamFacts) -> bool:
    """Whether a 429 is of a quota that no waiting mends: money is due, or another plan.

    OpenAI's type says so; of others the words do, if they do not say when to come again.
    """
    if facts.error_type is not None and facts.error_type.lower() in SPENT_TYPES:
        return True
    is_for_now = facts.retry_after_s is not None or _MENDS_WORDS.search(facts.message) is not None
    return not is_for_now and _SPENT_WORDS.search(facts.message) is not None


_STATUSES = frozenset(HTTPStatus)
_OWN_TYPES = {"timeout", "transport", "unreached"}


def error_class(facts: UpstreamFacts) -> str:
    """An error's class as OpenTelemetry's ``error.type`` has it: one of few words, whatever the server wrote.

    A type that we know, else the HTTP status, else ``_OTHER``.
    """
    if facts.error_type is not None and (facts.error_type in _BY_TYPE or facts.error_type in _OWN_TYPES):
        return facts.error_type
    return str(facts.status) if facts.status in _STATUSES else "_OTHER"


def shown(facts: UpstreamFacts) -> str:
    """An error for whoever may not see what was asked: its class, as a server's words may quote a prompt."""
    kind = error_class(facts)
    return f"HTTP {kind}" if kind.isdecimal() else kind


class UpstreamError(Exception):
    """The model server refused, failed or fell silent."""

    def __init__(self, facts: UpstreamFacts) -> None:
        self.facts = facts
        super().__init__(facts.message)
