"""TGI's requests: what parses, what is valid, and in which words the rest is refused.

Sources: docs/openapi.json and router/src of huggingface/text-generation-inference at
db931fcf (3.3.6-dev0), and axum 0.7's JSON rejections.  This module holds no connection;
``serde.py`` reads the fields, ``wire.py`` writes the answers and ``app.py`` joins them.

Not the same as TGI: the line and column that a deserialization error ends with, and
grammars, which are accepted where they have the right form but never applied.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from genqueue_ops.standin.serde import Fields, Rejection, boolean, f32, grammar, i32, string, strings, u32, u64, usize

FinishReason = Literal["length", "eos_token", "stop_sequence"]
_ONE_ROUND_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What the router is started with; the defaults are TGI's, the token limits those of a small model."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int = 8191
    max_total_tokens: int = 8192
    payload_limit_bytes: int = 2_000_000
    prefill_logprobs: bool = False
    """``--enable-prefill-logprobs``: whether ``decoder_input_details`` fills ``prefill``."""


class TgiError(Exception):
    """An error in TGI's JSON: HTTP ``status``, or an event in a stream that is already 200."""

    def __init__(self, status: int, message: str, error_type: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type


def invalid(message: str) -> TgiError:
    """The parameter check's error."""
    return TgiError(422, f"Input validation error: {message}", "validation")


def overloaded() -> TgiError:
    """No permit is free."""
    return TgiError(429, "Model is overloaded", "overloaded")


def generation_failed(message: str) -> TgiError:
    """The model failed."""
    return TgiError(424, f"Request failed during generation: {message}", "generation")


@dataclass(frozen=True, slots=True)
class Parameters:
    """``GenerateParameters``; None is "not given"."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: tuple[str, ...] = ()
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Body of ``/generate``, ``/generate_stream`` and ``/``; ``stream`` counts only for the last."""

    inputs: str
    parameters: Parameters
    stream: bool = False


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A request that passed every check."""

    prompt: str
    """After ``truncate``."""
    input_tokens: int
    max_new_tokens: int
    seed: int | None
    """None when greedy: TGI then reports none."""
    sampling: dict[str, Any]
    """The sampling parameters that were given; empty when greedy."""


def parse_body(body: bytes, content_type: str) -> Any:
    """JSON of a request body.

    Raises:
        Rejection: 415 or 400, as axum's ``Json`` extractor.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (media_type.startswith("application/") and "+json" in media_type):
        raise Rejection(415, "Expected request with `Content-Type: application/json`")
    try:
        return json.loads(body)
    except UnicodeDecodeError as error:
        raise Rejection(400, "Failed to parse the request body as JSON: invalid unicode code point") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        what = "EOF while parsing a value" if error.pos >= len(error.doc) else "expected value"
        raise Rejection(400, f"Failed to parse the request body as JSON: {what} at {where}") from error


def parse_generate(payload: Any) -> GenerateRequest:
    """``GenerateRequest`` or ``CompatGenerateRequest`` from JSON; unknown keys are ignored.

    Raises:
        Rejection: 422, a field is missing or has the wrong type.
    """
    fields = Fields(payload, "struct GenerateRequest")
    inputs = fields.get("inputs", string, required=True)
    stream = fields.get("stream", boolean, default=False)
    given = payload.get("parameters")
    if "parameters" not in payload:
        # TGI's own default for absent parameters samples; `{}` is greedy.
        return GenerateRequest(inputs, Parameters(do_sample=True), stream)
    return GenerateRequest(inputs, _parse_parameters(given), stream)


def check_best_of(best_of: int | None, limits: Limits) -> None:
    """The check that precedes the permit of a request that does not stream.

    Raises:
        TgiError: validation.
    """
    if best_of is None or best_of <= 1:
        return
    if limits.max_best_of == 1:
        raise invalid("`best_of` != 1 is not allowed for this endpoint")
    if best_of > limits.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")


def check_streamable(parameters: Parameters) -> None:
    """The checks that precede the permit of a request that streams.

    Raises:
        TgiError: validation.
    """
    if parameters.best_of not in (None, 1):
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if parameters.decoder_input_details:
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")


def check_parameters(request: GenerateRequest, limits: Limits) -> None:
    """Every check that needs no tokenizer, in TGI's order.

    Raises:
        TgiError: validation.
    """
    p = request.parameters
    best_of = 1 if p.best_of is None else p.best_of
    if best_of > 1 and not (is_sampling(p) or p.temperature is not None):
        raise invalid("you must use sampling when `best_of` is > 1")
    if p.temperature is not None and p.temperature <= 0:
        raise invalid("`temperature` must be strictly positive")
    if p.repetition_penalty is not None and p.repetition_penalty <= 0:
        raise invalid("`repetition_penalty` must be strictly positive")
    if p.frequency_penalty is not None and not -2 <= p.frequency_penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise invalid("`top_p` must be > 0.0 and < 1.0")
    if p.typical_p is not None and not 0 < p.typical_p < 1:
        raise invalid("`typical_p` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise invalid("`top_k` must be strictly positive")
    if p.max_new_tokens == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if len(p.stop) > limits.max_stop_sequences:
        raise invalid(f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(p.stop)}")
    if p.seed is not None and best_of > 1:
        raise invalid("`seed` must not be set when `best_of` > 1")
    if p.top_n_tokens is not None and p.top_n_tokens > limits.max_top_n_tokens:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {p.top_n_tokens}")
    if not request.inputs:
        raise invalid("`inputs` cannot be empty")
    if p.truncate is not None and not 0 < p.truncate <= limits.max_input_tokens:
        raise invalid(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {p.truncate}"
        )


def validate(request: GenerateRequest, pieces: list[str], *, limits: Limits, drawn_seed: int) -> ValidRequest:
    """Check a request whole; ``check_best_of`` or ``check_streamable`` go before it.

    Args:
        request: as parsed.
        pieces: texts of the tokens of ``inputs``; joined they are ``inputs``.
        limits: the server's.
        drawn_seed: what a sampling request without seed gets.

    Raises:
        TgiError: validation.
    """
    check_parameters(request, limits)
    p = request.parameters
    prompt, input_tokens = request.inputs, len(pieces)
    if p.truncate is not None and p.truncate < input_tokens:
        input_tokens = p.truncate
        prompt = "".join(pieces[-input_tokens:])
    max_new_tokens = p.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = max(limits.max_total_tokens - input_tokens, 0)
    first_round = min(max_new_tokens, _ONE_ROUND_TOKENS)
    if input_tokens + first_round > limits.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {first_round} `max_new_tokens`"
        )
    if input_tokens > limits.max_input_tokens:
        raise invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {input_tokens}")
    check_grammar(p.grammar)
    samples = is_sampling(p)
    seed = (drawn_seed if p.seed is None else p.seed) if samples else None
    return ValidRequest(
        prompt=prompt,
        input_tokens=input_tokens,
        # More rounds follow until the asked total or the model's limit.
        max_new_tokens=min(max_new_tokens, limits.max_total_tokens - input_tokens),
        seed=seed,
        sampling=_sampling(p) if samples else _penalties(p),
    )


def check_grammar(asked: Mapping[str, Any] | None) -> None:
    """The form of a grammar.

    Raises:
        TgiError: validation.
    """
    if asked is None or asked["type"] == "regex":
        return
    schema = asked["value"]
    if asked["type"] == "json_schema":
        schema = schema.get("schema", schema)
    if "properties" not in schema:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")


def is_sampling(p: Parameters) -> bool:
    """Whether the model server samples; a temperature of 1.0 alone leaves it greedy."""
    return (
        p.do_sample
        or (p.temperature is not None and p.temperature != 1)
        or p.top_k is not None
        or p.top_p is not None
        or p.typical_p is not None
    )


def stop_matches(text: str, stop: tuple[str, ...]) -> bool:
    """Whether the text so far ends in a stop string.

    Only a suffix counts: a token that runs over the end of the stop string hides it, except for
    one line feed, which the regular expression ``…$`` of TGI's model server lets pass.
    """
    return any(text.endswith(word) or text.endswith(f"{word}\n") for word in stop)


def _penalties(p: Parameters) -> dict[str, Any]:
    given = {"repetition_penalty": p.repetition_penalty, "frequency_penalty": p.frequency_penalty}
    return {name: value for name, value in given.items() if value is not None}


def _sampling(p: Parameters) -> dict[str, Any]:
    given = {"temperature": p.temperature, "top_k": p.top_k, "top_p": p.top_p, "typical_p": p.typical_p}
    drawn = {name: value for name, value in given.items() if value is not None}
    return {"temperature": 1.0, **drawn, **_penalties(p)}


def _parse_parameters(payload: Any) -> Parameters:
    fields = Fields(payload, "struct GenerateParameters", "parameters")
    return Parameters(
        best_of=fields.get("best_of", usize, null=True),
        temperature=fields.get("temperature", f32, null=True),
        repetition_penalty=fields.get("repetition_penalty", f32, null=True),
        frequency_penalty=fields.get("frequency_penalty", f32, null=True),
        top_k=fields.get("top_k", i32, null=True),
        top_p=fields.get("top_p", f32, null=True),
        typical_p=fields.get("typical_p", f32, null=True),
        do_sample=fields.get("do_sample", boolean, default=False),
        max_new_tokens=fields.get("max_new_tokens", u32, null=True),
        return_full_text=fields.get("return_full_text", boolean, null=True),
        stop=fields.get("stop", strings, default=()),
        truncate=fields.get("truncate", usize, null=True),
        watermark=fields.get("watermark", boolean, default=False),
        details=fields.get("details", boolean, default=False),
        decoder_input_details=fields.get("decoder_input_details", boolean, default=False),
        seed=fields.get("seed", u64, null=True),
        top_n_tokens=fields.get("top_n_tokens", u32, null=True),
        grammar=fields.get("grammar", grammar, null=True),
        adapter_id=fields.get("adapter_id", string, null=True),
    )
