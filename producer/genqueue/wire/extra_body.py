"""Which of an engine's own parameters a chat may name in ``extra_body``.

Pure.  An engine takes more than parameters: where to fetch from, whose cache to read, code to run.  Such names come
with every version, so a list of them would run behind.  Names are passed on that pick tokens, shape the answer or tell
a template, as each engine's own request has them (:data:`_ENGINES`); a generator's setting ``allowed_extra_body`` adds
others.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from genqueue.wire.json_schemas import remote_references

ANY = "*"
"""In ``allowed_extra_body``: every name."""


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


PICKS_TOKENS = _words(
    "top_k top_a top_n_sigma min_p typical_p typ_p tfs_z repetition_penalty repeat_penalty repeat_last_n",
    "dynatemp_range dynatemp_exponent xtc_probability xtc_threshold",
    "dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers",
    "mirostat mirostat_tau mirostat_eta samplers ignore_eos stop_token_ids cache_prompt",
)
"""Ways to pick a token, which leave a text that another attempt can go on with."""

_ENGINES: dict[str, frozenset[str]] = {
    # vllm/entrypoints/openai/{protocol,chat_completion/protocol}.py and sampling_params.py, 0.6 to main of 2026-11.
    "vllm": _words(
        "length_penalty allowed_token_ids bad_words bad_words_token_ids watermarking repetition_detection",
        "include_stop_str_in_output skip_special_tokens spaces_between_special_tokens stream_interval",
        "truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids logprobs_mode",
        "return_token_ids return_tokens_as_token_ids return_token_offsets return_prompt_text return_mm_kwargs",
        "routed_experts_prompt_start add_generation_prompt continue_final_message add_special_tokens",
        "documents chat_template_kwargs structured_outputs structural_tag guided_json guided_regex guided_choice",
        "guided_grammar guided_decoding_backend guided_whitespace_pattern parallel_tool_calls",
        "include_reasoning reasoning_effort thinking_token_budget cache_salt user",
    ),
    # sglang/srt/entrypoints/openai/protocol.py and sampling/sampling_params.py, 0.5.10.
    "sglang": _words(
        "json_schema regex ebnf structural_tag stop_regex no_stop_trim skip_special_tokens continue_final_message",
        "spaces_between_special_tokens stream_interval sampling_seed parallel_tool_calls chat_template_kwargs",
        "reasoning_effort separate_reasoning stream_reasoning logprob_start_len return_hidden_states",
        "return_routed_experts return_cached_tokens_details max_dynamic_patch min_dynamic_patch",
        "extra_key cache_salt user",
    ),
    # llama.cpp, tools/server: README.md and server-task.cpp, 2026-01 to 2026-11.
    "llama.cpp": _words(
        "min_keep penalize_nl adaptive_target adaptive_decay backend_sampling n_indent n_keep n_discard",
        "n_cache_reuse t_max_prompt_ms t_max_predict_ms sse_ping_interval grammar grammar_lazy grammar_triggers",
        "preserved_tokens json_schema chat_format parse_tool_calls parallel_tool_calls chat_template_kwargs",
        "add_generation_prompt reasoning_format reasoning_in_content reasoning_budget reasoning_budget_tokens",
        "reasoning_budget_start_tag reasoning_budget_end_tag reasoning_budget_message",
        "reasoning_budget_arm_immediately thinking_budget_tokens thinking_forced_open enable_thinking",
        "n_probs post_sampling_probs timings_per_token return_progress return_tokens",
        "speculative.n_max speculative.n_min speculative.p_min speculative.type speculative.ngram_size_n",
        "speculative.ngram_size_m speculative.ngram_m_hits",
    ),
    # text-generation-inference, router/src/lib.rs (ChatRequest, GenerateParameters), 3.3.
    "tgi": _words(
        "do_sample watermark truncate top_n_tokens details decoder_input_details guideline grammar",
        "add_special_tokens user",
    ),
    # lmdeploy/serve/openai/protocol.py, 0.18.
    "lmdeploy": _words(
        "bad_words no_repeat_ngram_size repetition_ngram_size repetition_ngram_threshold random_seed",
        "skip_special_tokens spaces_between_special_tokens include_stop_str_in_output return_token_ids",
        "return_logprob return_routed_experts parallel_tool_calls chat_template_kwargs enable_thinking",
        "reasoning_effort user",
    ),
    # tensorrt_llm/serve/openai_protocol.py, main of 2026-11.
    "tensorrt-llm": _words(
        "top_p_min top_p_decay top_p_reset_ids length_penalty early_stopping prompt_ignore_length",
        "include_stop_str_in_output skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens",
        "return_context_logits add_generation_prompt add_special_tokens documents chat_template_kwargs",
        "parallel_tool_calls reasoning_effort thinking thinking_token_budget cache_salt user",
    ),
    # The models of Python clients, 2026-11: openai 3.57, mistralai 3.7, together 3.1, fireworks-ai 1.2, groq 1.7.
    "openai": _words(
        "metadata modalities parallel_tool_calls prediction prompt_cache_key prompt_cache_options",
        "prompt_cache_retention reasoning_effort safety_identifier service_tier user verbosity",
    ),
    "mistral": _words(
        "random_seed metadata prompt_logprobs top_prompt_logprobs prediction parallel_tool_calls reasoning_effort",
        "prompt_mode prompt_cache_key service_tier safe_prompt document_image_limit document_page_limit",
    ),
    "together": _words("chat_template_kwargs compliance context_length_exceeded_behavior reasoning reasoning_effort"),
    "fireworks": _words(
        "context_length_exceeded_behavior metadata mirostat_lr mirostat_target parallel_tool_calls",
        "perf_metrics_in_response prediction prompt_cache_isolation_key prompt_cache_key prompt_cache_max_len",
        "prompt_truncate_len raw_output reasoning_effort reasoning_history return_token_ids safe_tokenization",
        "service_tier speculation thinking user",
    ),
    "groq": _words(
        "citation_options disable_tool_validation documents include_reasoning metadata parallel_tool_calls",
        "reasoning_effort reasoning_format service_tier user",
    ),
    # By their pages: DeepSeek, Moonshot, MiniMax, Qwen (DashScope), GLM, OpenRouter.
    "others": _words(
        "thinking thinking_budget enable_thinking preserve_thinking reasoning reasoning_split mask_sensitive_info",
        "prompt_cache_key safety_identifier vl_high_resolution_images translation_options tool_stream",
        "transforms usage verbosity",
    ),
    # Older names of several.
    "older": _words("bad_words_ids deterministic temperature_last"),
}
"""Names that fetch nothing and connect to nothing, of each engine's and provider's request beside PICKS_TOKENS.

Left out of their requests, and so refused: where to fetch from and whose cache to read (``*_transfer_params``,
``session_*``, ``request_id``, ``media_io_kwargs`` …), code (``chat_template``, ``chat_parser``,
``custom_logit_processor``, ``vllm_xargs`` …), other weights and models (``lora*``, ``safety_model``, ``moderation``,
``guardrails``), a place in an engine's queue (``priority``, ``id_slot``, ``*_rank``), searching
(``web_search_options``, ``enable_search``, ``search_settings`` …), and what keeps prompts elsewhere (``store``).
"""
_HARMLESS = frozenset().union(*_ENGINES.values())
_TEXTS = _words(
    "bad_words dry_sequence_breakers grammar_triggers preserved_tokens stop_regex prediction guided_whitespace_pattern",
    "reasoning_budget_start_tag reasoning_budget_end_tag reasoning_budget_message",
)
"""Whose values are texts, which nobody fetches even if they are addresses."""

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
    places: list[str] = []
    for name, value in extra_body.items():
        if name in allowed or (name in own and own[name] == value):
            continue
        if name not in PICKS_TOKENS and name not in _HARMLESS:
            places.append(name)
        elif name == "chat_template_kwargs" and isinstance(value, Mapping):
            places += [f"{name}.{key}" for key in value if key in _NO_TEMPLATE_KWARGS]
        if (name in PICKS_TOKENS or name in _HARMLESS) and name not in _TEXTS:
            places += _addresses({name: value})
            places += remote_references({name: value})
    return places


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
