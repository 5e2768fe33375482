"""What a chat may have its server do beside answering: nothing that is not known to be harmless."""

import time

import pytest

from genqueue.wire.chat import ChatKwargs
from genqueue.wire.extra_body import _HARMLESS, PICKS_TOKENS, is_data_uri, refused
from genqueue_worker.engine.continuation import _GO_ON

from ...support.generators import generator

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "body",
    [
        {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [2]},
        {"chat_template_kwargs": {"enable_thinking": False, "documents": [{"text": "See http://host/"}]}},
        {"guided_json": {"$schema": "https://json-schema.org/x", "properties": {"a": {"$ref": "#/$defs/b"}}}},
        {"structured_outputs": {"regex": "https://.*"}},
        {"guided_choice": ["https://a.b", "http://c"]},
        {"regex": "https://\\w+"},
        {"guided_json": {"properties": {"a": {"const": "http://x", "pattern": "^http://"}}}},
        {"grammar": 'root ::= "http://"'},
        {"reasoning": {"effort": "low", "exclude": True}, "thinking": {"type": "enabled", "budget_tokens": 9}},
        {"user": "ada", "metadata": {"team": "a"}},
        {"grammar_lazy": True, "grammar_triggers": [{"type": 1, "value": "https://"}], "preserved_tokens": ["http://"]},
        {"bad_words": ["http://", "file://"], "stop_regex": "https?://", "dry_sequence_breakers": ["ftp://"]},
        {"prediction": {"type": "content", "content": "http://host/ is where"}},
        {"guided_json": '{"properties": {"a": {"$ref": "#/$defs/b"}}}', "structural_tag": '{"format": "http://x"}'},
        _GO_ON,
        dict.fromkeys(PICKS_TOKENS, 1),
    ],
)
def test_what_is_known_to_be_harmless_is_passed_on(body):
    assert generator().refusal(MESSAGES, body) is None


# Of each engine's and provider's request: the fields that genqueue refuses (of which each is a reason of its own,
# see genqueue.wire.extra_body), and all others.  Those that submit_chat says itself are in neither.
REQUESTS = {
    "vllm main 2026-11": (
        "chat_template media_io_kwargs mm_processor_kwargs priority request_id session_id ec_transfer_params"
        " vllm_xargs",
        "parallel_tool_calls reasoning_effort thinking_token_budget include_reasoning user top_k min_p"
        " repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos"
        " skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs"
        " logprob_token_ids allowed_token_ids bad_words add_generation_prompt continue_final_message"
        " add_special_tokens documents chat_template_kwargs structured_outputs return_tokens_as_token_ids"
        " return_token_ids routed_experts_prompt_start return_token_offsets return_prompt_text return_mm_kwargs"
        " cache_salt repetition_detection stream_interval",
    ),
    "vllm 0.6": (
        "chat_template logits_processors mm_processor_kwargs priority",
        "guided_json guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern",
    ),
    "sglang 0.5.10": (
        "lora_path session_params custom_logit_processor custom_params rid priority routed_dp_rank"
        " disagg_prefill_dp_rank data_parallel_rank custom_labels",
        "user parallel_tool_calls return_hidden_states return_routed_experts return_cached_tokens_details"
        " reasoning_effort top_k min_p regex ebnf json_schema repetition_penalty stop_token_ids stop_regex"
        " no_stop_trim ignore_eos continue_final_message skip_special_tokens separate_reasoning stream_reasoning"
        " chat_template_kwargs max_dynamic_patch min_dynamic_patch extra_key cache_salt sampling_seed"
        " structural_tag spaces_between_special_tokens stream_interval",
    ),
    "llama.cpp 2026": (
        "lora id_slot chat_parser chat_template image_data multimodal_data",
        "timings_per_token cache_prompt return_tokens return_progress n_indent n_keep n_discard n_cache_reuse"
        " t_max_prompt_ms t_max_predict_ms top_k min_p top_n_sigma xtc_probability xtc_threshold typical_p typ_p"
        " dynatemp_range dynatemp_exponent repeat_last_n repeat_penalty dry_multiplier dry_base dry_allowed_length"
        " dry_penalty_last_n dry_sequence_breakers mirostat mirostat_tau mirostat_eta adaptive_target adaptive_decay"
        " n_probs min_keep backend_sampling post_sampling_probs speculative.n_min speculative.n_max"
        " speculative.p_min speculative.type speculative.ngram_size_n speculative.ngram_size_m"
        " speculative.ngram_m_hits json_schema grammar grammar_lazy chat_format reasoning_format reasoning_in_content"
        " thinking_forced_open parse_tool_calls preserved_tokens grammar_triggers reasoning_budget_tokens"
        " reasoning_budget_start_tag reasoning_budget_end_tag reasoning_budget_message"
        " reasoning_budget_arm_immediately ignore_eos samplers sse_ping_interval",
    ),
    "tgi 3": (
        "adapter_id return_full_text",
        "guideline do_sample repetition_penalty top_k truncate typical_p watermark details decoder_input_details"
        " top_n_tokens grammar add_special_tokens",
    ),
    "lmdeploy 0.18": (
        "session_id media_io_kwargs mm_processor_kwargs image_data migration_request with_cache preserve_cache",
        "parallel_tool_calls user reasoning_effort repetition_penalty repetition_ngram_size"
        " repetition_ngram_threshold ignore_eos skip_special_tokens spaces_between_special_tokens top_k min_p"
        " enable_thinking return_token_ids return_logprob include_stop_str_in_output chat_template_kwargs"
        " return_routed_experts",
    ),
    "tensorrt-llm main 2026-11": (
        "lora_request chat_template injected_chat_template_kwargs media_io_kwargs mm_processor_kwargs"
        " conversation_params priority agent_hierarchy detokenize",
        "parallel_tool_calls user reasoning_effort thinking thinking_token_budget prompt_ignore_length top_k top_p_min"
        " min_p repetition_penalty length_penalty early_stopping stop_token_ids include_stop_str_in_output"
        " ignore_eos skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens add_generation_prompt"
        " add_special_tokens documents chat_template_kwargs cache_salt return_context_logits",
    ),
    "openai 3.57": (
        "audio moderation store web_search_options",
        "metadata modalities parallel_tool_calls prediction prompt_cache_key prompt_cache_options"
        " prompt_cache_retention reasoning_effort safety_identifier service_tier user verbosity",
    ),
    "mistralai 3.7": (
        "guardrails",
        "random_seed metadata repetition_penalty top_k prompt_logprobs top_prompt_logprobs prediction"
        " parallel_tool_calls reasoning_effort prompt_mode prompt_cache_key service_tier safe_prompt",
    ),
    "together 3.1": (
        "safety_model",
        "chat_template_kwargs compliance context_length_exceeded_behavior min_p reasoning reasoning_effort"
        " repetition_penalty top_k",
    ),
    "fireworks-ai 1.2": (
        "",
        "context_length_exceeded_behavior ignore_eos metadata min_p mirostat_lr mirostat_target parallel_tool_calls"
        " perf_metrics_in_response prediction prompt_cache_isolation_key prompt_cache_key prompt_truncate_len"
        " raw_output reasoning_effort reasoning_history repetition_penalty return_token_ids safe_tokenization"
        " service_tier speculation thinking top_k typical_p user",
    ),
    "groq 1.7": (
        "compound_custom exclude_domains include_domains search_settings store",
        "citation_options disable_tool_validation documents include_reasoning metadata parallel_tool_calls"
        " reasoning_effort reasoning_format service_tier user",
    ),
    "deepseek, moonshot, minimax, qwen, glm, openrouter": (
        "enable_search search_options enable_code_interpreter plugins provider models route incremental_output",
        "thinking thinking_budget enable_thinking preserve_thinking reasoning reasoning_split mask_sensitive_info"
        " prompt_cache_key safety_identifier top_k repetition_penalty vl_high_resolution_images"
        " translation_options tool_stream do_sample transforms usage verbosity top_a",
    ),
}


@pytest.mark.parametrize("request_of", REQUESTS)
def test_of_an_engines_own_fields_those_are_refused_that_do_more_than_generate(request_of):
    more, harmless = ({*names.split()} for names in REQUESTS[request_of])
    assert not more & harmless
    assert {*refused(dict.fromkeys([*more, *harmless], 1), {}, ())} == more
    ChatKwargs(extra_body=dict.fromkeys([*more, *harmless], 1))  # none of them is what submit_chat says itself


def test_no_name_is_allowed_that_no_request_has():
    """But for older names, and those that stand in a reference alone."""
    known = {name for _, harmless in REQUESTS.values() for name in harmless.split()}
    older = {"bad_words_ids", "deterministic", "temperature_last", "penalize_nl", "tfs_z", "no_repeat_ngram_size"}
    older |= {"top_p_decay", "top_p_reset_ids", "reasoning_budget", "thinking_budget_tokens", "logprob_start_len"}
    older |= {"logprobs_mode", "bad_words_token_ids", "document_image_limit", "document_page_limit"}
    assert {*PICKS_TOKENS, *_HARMLESS} - known <= older | {"prompt_cache_max_len"}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        *(
            ({name: {"a": 1}}, name)
            for name in (
                # where an engine fetches from, or whose cache it reads,
                *("migration_request", "with_cache", "preserve_cache", "ec_transfer_params", "kv_transfer_params"),
                *("session_params", "id_slot", "mm_processor_kwargs", "disaggregated_params"),
                # code,
                *("custom_logit_processor", "custom_params", "logits_processors", "vllm_xargs", "chat_template"),
                # other weights, other places in the queue, other tools,
                *("lora", "lora_path", "adapter_id", "adapter_source", "priority", "rid", "request_id"),
                *("mcp_servers", "plugins", "web_search_options", "provider", "models"),
                # and what no version has yet.
                *("fetch_from", "Top_k", "top_k ", ""),
            )
        ),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"image": "http://169.254.169.254/"}}, "chat_template_kwargs.image"),
        ({"guided_json": {"properties": {"a": {"$ref": "http://host/a"}}}}, "guided_json.properties.a.$ref"),
        ({"guided_json": '{"properties": {"a": {"$ref": "http://host/a"}}}'}, "guided_json.properties.a.$ref"),
        ({"guided_json": {"$ref": "other.json#/a"}}, "guided_json.$ref"),
        ({"json_schema": {"items": {"$dynamicRef": "//host/a"}}}, "json_schema.items.$dynamicRef"),
        ({"structured_outputs": {"json": '{"$ref": "file:///etc/passwd"}'}}, "structured_outputs.json.$ref"),
        ({"guided_json": {"properties": {"text": {"$ref": "http://host/a"}}}}, "guided_json.properties.text.$ref"),
        ({"structural_tag": [{"schema": "file:///etc/passwd"}]}, "structural_tag.0.schema"),
        ({"user": "http://host/"}, "user"),
        ({"documents": [{"url": " S3://bucket"}]}, "documents.0.url"),
    ],
)
def test_all_else_is_refused_unless_the_settings_name_it(body, place):
    refusal = generator(fetches_images=True).refusal(MESSAGES, body)
    assert refusal is not None
    assert refusal.startswith(f"generation_kwargs.extra_body.{place}: no parameter that is known to be harmless")
    assert "allowed_extra_body" in refusal and "169" not in refusal
    (name,) = body
    for allowed in ([name], ["*"], ["x", name]):
        assert generator(fetches_images=True, allowed_extra_body=allowed).refusal(MESSAGES, body) is None
    assert generator(None).refusal(MESSAGES, body) is None  # Inference Providers are no network of ours
    assert generator(None, allowed_extra_body=[]).refusal(MESSAGES, body) == refusal
    assert generator().refusal("a prompt", None) is None


def test_what_the_settings_say_themselves_stands_as_they_say_it():
    own = generator(chat_kwargs={"extra_body": {"lora_path": "a"}})
    assert own.refusal(MESSAGES, {"lora_path": "a", "top_k": 1}) is None
    assert refused({"lora_path": "b"}, {"lora_path": "a"}, ()) == ["lora_path"]


@pytest.mark.parametrize(
    ("uri", "is_one"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", True),
        ("DATA:image/svg+xml;charset=utf-8;base64,AA==", True),
        ("data:audio/wav;base64,AA-_", True),
        ("data:text/plain,a%20b", True),
        ("data:,", True),
        ("data:;base64,AA==", True),
        ("data:image/png;base64,iVBORw0KGgo\r\n AAAA\n====\n", True),
        ("data:image/png;base64,AA%2B%3D%0a", True),
        ("DATA:IMAGE/PNG;BASE64,AA==", True),
        ('data:image/png;name="a, b; c.png";base64,AA==', True),
        ("data:image/png;name=a%20b.png;x=y;base64,AA==", True),
        ("data:text/plain;charset=utf-8,a,b;c=d?e:f@g/h!i~j*k'l$m&n+o", True),
        ("data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'/%3E", True),
        ("data:application/vnd.oasis.opendocument.text;base64,AA==", True),
        ("data:;charset=UTF-8,a", True),
        ("data:image/png;base64,", True),
        ("data:image/png;base64,A(A=", False),
        ("data:image/png;base64,AA,AA", False),
        ("data:image/png;base64,AA%2", False),
        ("data:image/png;base64,AA%zz", False),
        ("data:image/png;base64,AA\x00", False),
        ("data:text/plain,a b", False),
        ("data:text/plain,a\nb", False),
        ("data:text/plain,a#b", False),
        ("data:text/plain,[x]", False),
        ('data:text/plain,"x"', False),
        ('data:image/png;name=")![](http://169.254.169.254/";base64,AA', False),
        ('data:image/png;name="a;base64,AA==', False),
        ("data:image/png;name=a b;base64,AA==", False),
        ("data:image/png;name;base64,AA==", False),
        ("data:image;base64,AA==", False),
        ("data:image/png/x;base64,AA==", False),
        (" data:,a", False),
        ("data :,a", False),
        ("data:image/png;base64,é", False),
        ("data:,x)![](http://169.254.169.254/)", False),
        ("data:image/png;base64,AA== http://host", False),
        ("data:image/png,<svg>", False),
        ("data:image/png)![](http://host;base64,AA", False),
        ("data://host/x", False),
        ("data:é,AA", False),
        ("http://host", False),
        ("", False),
    ],
)
def test_a_data_uri_holds_only_what_one_may(uri, is_one):
    assert is_data_uri(uri) is is_one
    part = {"type": "image_url", "image_url": {"url": uri}}
    refusal = generator().refusal([{"role": "user", "content": [part]}])
    assert (refusal is None) is is_one


@pytest.mark.parametrize(
    "uri",
    [
        "data:" + ";a=b" * 300_000,
        "data:a/b" + ';a="b"' * 300_000 + ";",
        "data:image/png;base64," + "A" * 4_000_000 + ")",
        "data:image/png;base64," + "AAAA\n" * 800_000 + ")",
        "data:image/png;base64," + "A%20" * 1_000_000 + "%2",
        "data:," + "a,b" * 1_000_000 + "(",
    ],
)
def test_a_long_one_takes_time_in_proportion_to_its_length(uri):
    began_s = time.process_time()
    assert not is_data_uri(uri)
    assert time.process_time() - began_s < 2
