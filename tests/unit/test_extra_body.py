"""What a chat may have its server do beside answering: nothing that is not known to be harmless."""

import time

import pytest

from genqueue.extra_body import PICKS_TOKENS, is_data_uri, refused
from genqueue.settings import GeneratorSettings
from genqueue_worker.continuation import _GO_ON

MESSAGES = [{"role": "user", "content": "Hi"}]


def generator(url="http://h", **fields):
    place = {"api_type": "text_generation_inference", "api_params": {"url": url}}
    if url is None:
        place = {"api_type": "serverless_inference_api", "api_params": {"model": "m"}}
    return GeneratorSettings.model_validate({**place, **fields})


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
        _GO_ON,
        dict.fromkeys(PICKS_TOKENS, 1),
    ],
)
def test_what_is_known_to_be_harmless_is_passed_on(body):
    assert generator().refusal(MESSAGES, body) is None


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
