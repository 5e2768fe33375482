"""TGI's answers as bytes: key order, compact JSON and SSE framing as axum 0.7 writes them."""

import json
from collections.abc import Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any

from genqueue_ops.standin.decoding import Decoded
from genqueue_ops.standin.engine import Token

KEEP_ALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"


def json_bytes(value: Any) -> bytes:
    """Compact JSON, characters beyond ASCII as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def json_string(text: str) -> bytes:
    """A string as JSON, faster than ``json_bytes``."""
    return encode_basestring(text).encode("utf-8", "surrogatepass")


def sse(value: Any) -> bytes:
    """One event."""
    return b"data: " + json_bytes(value) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP/1.1's chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def error_body(message: str, error_type: str) -> bytes:
    """An error answer, or the data of an error event."""
    return json_bytes({"error": message, "error_type": error_type})


def token_event(index: int, token: Token, top_tokens: Sequence[Token] = ()) -> bytes:
    """An event of the native stream that is not the last one; ``index`` counts from 1."""
    # Two thirds of the server's own work per token would be json.dumps.
    return b'data: {"index":%d,"token":%b,%b"generated_text":null,"details":null}\n\n' % (
        index,
        _token_json(token),
        _top_tokens_json(top_tokens),
    )


def last_token_event(
    index: int, token: Token, top_tokens: Sequence[Token], generated_text: str, details: dict[str, Any] | None
) -> bytes:
    """The native stream's last event, known by its ``generated_text``."""
    return b'data: {"index":%d,"token":%b,%b"generated_text":%b,"details":%b}\n\n' % (
        index,
        _token_json(token),
        _top_tokens_json(top_tokens),
        json_bytes(generated_text),
        json_bytes(details),
    )


def stream_details(decoded: Decoded, seed: int | None, input_tokens: int) -> dict[str, Any]:
    """``StreamDetails``."""
    return {
        "finish_reason": decoded.finish_reason,
        "generated_tokens": len(decoded.tokens),
        "seed": seed,
        "input_length": input_tokens,
    }


def generated(
    decoded: Decoded,
    *,
    prefix: str,
    seed: int | None,
    prefill: Sequence[Token] | None,
    others: Sequence[Decoded] = (),
) -> dict[str, Any]:
    """``GenerateResponse``.

    Args:
        decoded: the sequence, finished.
        prefix: the prompt if ``return_full_text``, else "".
        seed: None when greedy.
        prefill: the prompt's tokens to report; None leaves out ``details`` altogether.
        others: the other sequences of ``best_of``.
    """
    body: dict[str, Any] = {"generated_text": prefix + decoded.text}
    if prefill is not None:
        body["details"] = _details(decoded, seed, prefill)
        if others:
            body["details"]["best_of_sequences"] = [
                {"generated_text": prefix + other.text, **_details(other, seed, prefill)} for other in others
            ]
        if "top_tokens" in body["details"]:  # TGI's order: after best_of_sequences
            body["details"]["top_tokens"] = body["details"].pop("top_tokens")
    return body


def _details(decoded: Decoded, seed: int | None, prefill: Sequence[Token]) -> dict[str, Any]:
    details: dict[str, Any] = {
        "finish_reason": decoded.finish_reason,
        "generated_tokens": len(decoded.tokens),
        "seed": seed,
        "prefill": [
            {"id": token.id, "text": token.text, "logprob": token.logprob if place else None}
            for place, token in enumerate(prefill)
        ],
        "tokens": [token._asdict() for token in decoded.tokens],
    }
    if any(decoded.top_tokens):
        details["top_tokens"] = [[token._asdict() for token in step] for step in decoded.top_tokens]
    return details


@lru_cache(maxsize=4096)
def _token_json(token: Token) -> bytes:
    return (
        f'{{"id":{token.id},"text":{encode_basestring(token.text)},"logprob":{token.logprob!r},'
        f'"special":{"true" if token.special else "false"}}}'
    ).encode("utf-8", "surrogatepass")


def _top_tokens_json(top_tokens: Sequence[Token]) -> bytes:
    if not top_tokens:
        return b""
    return b'"top_tokens":[%b],' % b",".join(map(_token_json, top_tokens))
