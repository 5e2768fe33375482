"""Which of an engine's own parameters a chat may name in ``extra_body``.

Pure.  An engine takes more than parameters: where to fetch from, whose cache to read, code to run.  Such names come
with every version, so a list of them would run behind.  Names are passed on that pick tokens, shape the answer or tell
a template; a generator's setting ``allowed_extra_body`` adds others.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

ANY = "*"
"""In ``allowed_extra_body``: every name."""


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


PICKS_TOKENS = _words(
    "top_k top_a top_n_sigma min_p typical_p tfs_z repetition_penalty repeat_penalty repeat_last_n",
    "dynatemp_range dynatemp_exponent xtc_probability xtc_threshold",
    "dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers",
    "mirostat mirostat_tau mirostat_eta samplers ignore_eos stop_token_ids cache_prompt",
)
"""Ways to pick a token, which leave a text that another attempt can go on with."""

_HARMLESS = _words(
    # more of those, of vLLM, SGLang, llama.cpp, TensorRT-LLM, LMDeploy and TGI,
    "do_sample allowed_token_ids bad_words bad_words_ids stop_regex length_penalty min_keep penalize_nl",
    "no_repeat_ngram_size early_stopping top_p_min top_p_decay top_p_reset_ids adaptive_target adaptive_decay",
    "watermark repetition_detection deterministic temperature_last random_seed",
    # the form of the answer,
    "grammar json_schema regex ebnf structural_tag structured_outputs guided_json guided_regex guided_choice",
    "guided_grammar guided_decoding_backend guided_whitespace_pattern include_stop_str_in_output no_stop_trim",
    "skip_special_tokens spaces_between_special_tokens parallel_tool_calls parse_tool_calls",
    # what comes beside it,
    "prompt_logprobs return_token_ids return_tokens_as_token_ids return_tokens n_probs post_sampling_probs",
    "timings_per_token return_progress include_reasoning separate_reasoning stream_reasoning reasoning_format",
    "logprob_start_len",
    # thoughts,
    "reasoning reasoning_effort reasoning_budget reasoning_budget_tokens thinking thinking_budget",
    "thinking_token_budget thinking_budget_tokens thinking_forced_open enable_thinking verbosity prompt_mode",
    # what the model is told,
    "chat_template_kwargs add_generation_prompt continue_final_message add_special_tokens documents guideline",
    "truncate_prompt_tokens n_keep",
    # and who asks.
    "user metadata cache_salt prompt_cache_key safety_identifier safe_prompt service_tier",
)

_NO_TEMPLATE_KWARGS = frozenset({"chat_template", "tokenize", "tools", "messages", "conversation"})
"""Of ``chat_template_kwargs``: what would replace the template, which is a program, or what it is given."""
_IS_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FORMS = frozenset(
    {"$id", "$schema", "id", "regex", "guided_regex", "choice", "guided_choice", "grammar", "guided_grammar", "ebnf"}
    | {"pattern", "const", "enum", "default", "examples", "description", "title", "text"}
)
"""Of a form that the answer shall have, and of a document: texts, which nobody fetches even if they are addresses."""
_TOKEN = r"[\w!#$%&'*+.^`{|}~-]++"  # RFC 2045, section 5.1
_QUOTED = r'"[\w !#$%&\'*+,./:;=?@^{|}~-]*+"'
_ESCAPED = "%[0-9a-f]{2}"
_IS_DATA_URI = re.compile(
    rf"data:(?:{_TOKEN}/{_TOKEN})?(?:;(?!base64,){_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*+"
    rf"(?:;base64,[\w+/=\s-]*+(?:{_ESCAPED}[\w+/=\s-]*+)*+"
    rf"|,[\w.~!$&'*+,;=:@/?-]*+(?:{_ESCAPED}[\w.~!$&'*+,;=:@/?-]*+)*+)",
    re.ASCII | re.IGNORECASE,
)
"""RFC 2397, with line breaks between the lines of base64, as MIME writes it; no brackets, see :func:`is_data_uri`."""


def is_data_uri(value: str) -> bool:
    """Whether ``value`` is a ``data:`` URI, and nothing else stands in it.

    Round and square brackets, which RFC 2397 lets a data part have bare, must be escaped (``%29``): TGI writes the
    URI into ``![](…)``.
    """
    return _IS_DATA_URI.fullmatch(value) is not None


def refused(extra_body: Mapping[str, Any], own: Mapping[str, Any], allowed: Collection[str]) -> list[str]:
    """The places in an ``extra_body`` that no server is given.

    Args:
        extra_body: what would be sent.
        own: what the generator's ``chat_kwargs`` say themselves, which stands.
        allowed: names that its ``allowed_extra_body`` adds; ``*`` is every name.
    """
    if ANY in allowed:
        return []
    found: list[str] = []
    for name, value in extra_body.items():
        if name in allowed or (name in own and own[name] == value):
            continue
        if name not in PICKS_TOKENS and name not in _HARMLESS:
            found.append(name)
        elif name == "chat_template_kwargs" and isinstance(value, Mapping):
            found += [f"{name}.{key}" for key in value if key in _NO_TEMPLATE_KWARGS]
        if name in PICKS_TOKENS or name in _HARMLESS:
            found += _addresses({name: value})
    return found


def _addresses(value: Any, place: str = "") -> Iterator[str]:
    """Where a value holds an address: a text that is one by itself, and no part of a form."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _FORMS or isinstance(inner, Mapping):  # or it names a property
                yield from _addresses(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _addresses(inner, f"{place}.{number}")
    elif isinstance(value, str) and _IS_ADDRESS.match(value):
        yield place
