"""Requests, readers and flows, made of the arguments of both clients' callers."""

import math
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from genqueue import keys
from genqueue.client import flows
from genqueue.client.flows import Flow, ItemT
from genqueue.client.patience import Deadline, Patience
from genqueue.client.reading import Reader
from genqueue.client.views import DeadLetter
from genqueue.discovery import location_digests
from genqueue.errors import InvalidRequestError
from genqueue.registry import submitting as registry_submitting
from genqueue.registry.script import Call
from genqueue.registry.submitting import Accepted
from genqueue.settings import Settings
from genqueue.tracing import receiving
from genqueue.wire.request import GenerationRequest, read_request

if TYPE_CHECKING:
    from genqueue.client.aio import AsyncGeneration
    from genqueue.client.sync import Generation


OnFailure = Literal["continue", "restart", "fail"]

_FIRST_CONTACT = 0.1
"""A reader's first contact that fails within this part of ``redis_timeout_s`` is tried once more."""


def reader_of(
    generation: "Generation | AsyncGeneration",
    channel: str,
    flow: Flow[list[ItemT]],
    timeout_s: float | None = None,
) -> Reader[ItemT]:
    """What a reader of a generation reads, and how long it is patient."""
    settings, now_s = generation._client.settings, time.monotonic()
    patience_s = settings.outage_patience_s
    again_until_s = now_s + settings.redis_timeout_s * _FIRST_CONTACT if patience_s else -math.inf
    return Reader(
        generation,
        channel,
        flow,
        _deadline(timeout_s),
        Patience(patience_s, again_until_s=again_until_s),
        receiving(generation.id, generation._origin),
    )


def request_of(settings: Settings, idempotency_key: str | None, fields: dict[str, Any]) -> GenerationRequest:
    """The request that a submit's arguments make; raises InvalidRequestError for one that cannot run."""
    request = read_request(fields, settings.bounds)
    own = settings.generators.get(request.generator)
    extra_body = getattr(request.generation_kwargs, "extra_body", None)
    if own is not None and (refusal := own.refusal(request.given, extra_body, request.forms)) is not None:
        raise InvalidRequestError(refusal)
    if idempotency_key is not None:
        _check_name("idempotency_key", idempotency_key)
    return request


def submission_of(
    settings: Settings,
    generation_id: str,
    request: GenerationRequest,
    idempotency_key: str | None,
    traceparent: str | None,
) -> Call[Accepted]:
    """The call that hands a request over."""
    own = settings.generators.get(request.generator)
    return registry_submitting.submit(
        generation_id,
        request,
        keep_s=settings.keep_s,
        idempotency_key=idempotency_key,
        idempotency_ttl_s=settings.result_ttl_s,
        max_queue_depth=own.max_queue_depth if own else None,
        traceparent=traceparent,
    )


def _check_name(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{argument}: Input should be a valid string")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{argument}: holds half of a surrogate pair") from None
    if not 1 <= size_bytes <= 512:
        raise InvalidRequestError(f"{argument}: has {size_bytes} bytes, must have 1 to 512")


def check_id(generation_id: object) -> None:
    """Raise InvalidRequestError for an id that no generation can have."""
    _check_name("generation_id", generation_id)
    if not keys.names_a_generation(str(generation_id)):
        raise InvalidRequestError("generation_id: no generation can be called so")


def check_count(argument: str, value: object) -> None:
    """Raise InvalidRequestError for what is no whole number of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidRequestError(f"{argument}: must be a whole number of at least 0")


def _deadline(timeout_s: object) -> Deadline:
    if timeout_s is not None and not (isinstance(timeout_s, float | int) and _is_time(timeout_s)):
        raise InvalidRequestError("timeout_s: must be a number of seconds, or None")
    return Deadline(timeout_s, time.monotonic())


def _is_time(number: float) -> bool:
    try:
        return not math.isnan(number)
    except OverflowError:  # no float can hold it
        return False


def cancel(generation_id: str, settings: Settings) -> Flow[bool]:
    """The steps of a cancel."""
    return flows.cancel(
        generation_id,
        date_done=datetime.now(UTC).isoformat(),
        log_ttl_s=settings.log_ttl_s,
        result_ttl_s=settings.result_ttl_s,
        keep_s=settings.keep_s,
    )


def dead_letters(generator: str | None, limit: int | None) -> Flow[DeadLetter]:
    """The steps of listing dead letters."""
    if limit is not None:
        check_count("limit", limit)
    return flows.dead_letters(generator, limit)


def retry(generation_id: str, settings: Settings) -> Flow[str]:
    """The steps of trying a dead letter again."""
    return flows.retry(
        generation_id,
        str(uuid.uuid4()),
        max_queue_depths={name: own.max_queue_depth for name, own in settings.generators.items()},
        keep_s=settings.keep_s,
        result_ttl_s=settings.result_ttl_s,
    )


def places_of(settings: Settings, known: dict[str, set[str]]) -> dict[str, set[str]]:
    """For each generator where its model is, as workers and the own settings say."""
    own = {name: set(location_digests(generator)) for name, generator in settings.generators.items()}
    return {name: own.get(name, set()) | known.get(name, set()) for name in own.keys() | known.keys()}


def fields_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields, which are those arguments of a submit that are not the client's own."""
    return {name: value for name, value in arguments.items() if name not in {"self", "idempotency_key"}}
