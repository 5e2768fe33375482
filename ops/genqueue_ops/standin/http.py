"""The stand-in's HTTP, as axum speaks it: bodies, headers, and answers to what is unknown."""

from typing import Any

from aiohttp import web

from genqueue_ops.standin import journal, wire
from genqueue_ops.standin.answers import Run
from genqueue_ops.standin.serde import Rejection

COMPUTE_TYPE = "cpu+standin"
STATUS_OF = {"validation": 422, "overloaded": 429, "generation": 424}


async def body_of(request: web.Request, entry: journal.Entry) -> bytes:
    """A request's body, which goes into the journal too."""
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise Rejection(413, "Failed to buffer the request body: length limit exceeded") from error
    entry.body = body.decode("utf-8", "replace")
    return body


def json_response(value: Any) -> web.Response:
    """``value`` as TGI answers it."""
    return web.Response(body=wire.json_bytes(value), content_type="application/json")


def timing_headers(run: Run, prompt_chars: int) -> dict[str, str]:
    """What TGI says of one answer in headers."""
    timings, tokens = run.timings, len(run.decoded.tokens)
    total_s = timings.ended_s - timings.received_s
    inference_s = timings.ended_s - timings.started_s
    return {
        "x-compute-type": COMPUTE_TYPE,
        "x-compute-time": f"{total_s:.9f}",
        "x-compute-characters": str(prompt_chars),
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(timings.validated_s - timings.received_s),
        "x-queue-time": _ms(timings.started_s - timings.validated_s),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / tokens),
        "x-prompt-tokens": str(run.valid.input_tokens),
        "x-generated-tokens": str(tokens),
    }


def _ms(duration_s: float) -> str:
    return str(int(duration_s * 1000))


async def allow_any_origin(_: web.Request, response: web.StreamResponse) -> None:
    """The headers of every response, as TGI has them."""
    response.headers["access-control-allow-origin"] = "*"
    response.headers.popall("server", None)  # hyper sends none


@web.middleware
async def empty_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """axum answers unknown paths and methods without a body."""
    try:
        return await handler(request)  # type: ignore[no-any-return]  # aiohttp types handlers loosely
    except web.HTTPMethodNotAllowed as error:
        return web.Response(status=405, headers={"allow": error.headers["allow"]})
    except web.HTTPNotFound:
        return web.Response(status=404)
