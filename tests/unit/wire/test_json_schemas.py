"""Which references lead out of a schema, wherever a request holds one."""

import pytest

from genqueue.wire.json_schemas import remote_references
from genqueue.wire.request import read_request
from genqueue_worker.upstream.client import call_parameters, chat_parameters, forms_in

from ...support.generators import generator

USER = {"role": "user", "content": "Hi"}
LOCAL = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://host/a",
    "$defs": {"b": {"type": "string", "pattern": "^http://", "description": "see http://host/, and $ref"}},
    "properties": {
        "a": {"$ref": "#/$defs/b"},
        "$ref": {"$ref": "#"},
        "c": {"$dynamicRef": "#anchor"},
        "d": {"$ref": ""},
    },
    "enum": ["http://host/", "file:///etc/passwd"],
}


@pytest.mark.parametrize(
    "form",
    [
        LOCAL,
        {"anyOf": [LOCAL, {"items": LOCAL}]},
        {"type": "json", "value": '{"$ref": "#/$defs/a", "$defs": {"a": {}}}'},
        {"type": "regex", "value": "[http://]{$ref"},
        {"type": "regex", "value": '{"$ref": "http://'},
        {"description": '{"$ref": "http://host/"}'},
        {"properties": {"$ref": True}, "required": ["$ref"]},
        {},
    ],
)
def test_what_stays_in_its_schema_is_passed_on(form):
    assert remote_references(form) == []


@pytest.mark.parametrize("name", ["$ref", "$dynamicRef", "$recursiveRef"])
@pytest.mark.parametrize(
    "reference",
    [
        *(
            "http://169.254.169.254/",
            "https://host/a#/b",
            "HTTP://host",
            "file:///etc/passwd",
            "//host/a",
            "/etc/passwd",
        ),
        *("other.json", "other.json#/a", "../a", "?x", " #/a", "s3://a", "urn:a:b", "data:application/json,{}", "\t#"),
    ],
)
def test_a_reference_that_leads_out_is_found(name, reference):
    assert remote_references({"a": [{"items": {name: reference}}, {"const": {name: reference}}]}) == [
        f"a.0.items.{name}",
        f"a.1.const.{name}",
    ]
    text = '{"\\u0024' + name[1:] + '": "{}", "a": 1}}'.format(reference.replace("\t", "\\t"))
    assert remote_references({"value": f" {text}"}) == [f"value.{name}"]


def test_of_a_name_that_stands_twice_both_count():
    text = '{"$ref": "http://host/", "$ref": "#/a"}'
    assert remote_references({"schema": text}) == ["schema.0.$ref"]


def test_a_deep_schema_is_read_and_one_too_deep_in_a_text_is_none_to_be_sent():
    deep = {"$ref": "http://host/"}
    for _ in range(50_000):
        deep = {"a": deep}
    (place,) = remote_references(deep)
    assert place.endswith("a.$ref")
    assert remote_references({"value": "[" * 200_000}) == ["value"]


REMOTE = {"properties": {"a": {"$ref": "http://169.254.169.254/"}}}
PLACES = [
    pytest.param(
        {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "parameters": REMOTE}}]},
        "tools.0.function.parameters.properties.a.$ref",
        id="tools",
    ),
    pytest.param(
        {
            "messages": [USER],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": REMOTE}},
        },
        "response_format.json_schema.schema.properties.a.$ref",
        id="json-schema",
    ),
    pytest.param(
        {"messages": [USER], "response_format": {"type": "json", "value": REMOTE}},
        "response_format.value.properties.a.$ref",
        id="tgis-json",
    ),
    pytest.param(
        {"messages": [USER], "response_format": {"type": "json", "value": '{"$ref": "http://host/"}'}},
        "response_format.value.$ref",
        id="as-text",
    ),
    pytest.param(
        {"prompt": "Hi", "generation_kwargs": {"grammar": {"type": "json", "value": REMOTE}}},
        "generation_kwargs.grammar.value.properties.a.$ref",
        id="grammar",
    ),
]


@pytest.mark.parametrize(("fields", "place"), PLACES)
def test_wherever_a_schema_travels_such_a_reference_is_refused(fields, place):
    """By the producer, which knows the place, and by the worker before it asks a server."""
    request = read_request(fields)
    own = generator()
    parameters = (chat_parameters if request.messages else call_parameters)(own, request)
    for forms in (request.forms, forms_in(own, parameters)):
        refusal = own.refusal(request.given, None, forms)
        assert refusal is not None
        assert refusal.startswith(f"{place}: a model server would fetch this reference") and "169" not in refusal
        for allowed in (["$ref"], ["*"]):
            assert generator(allowed_extra_body=allowed).refusal(request.given, None, forms) is None
        assert generator(fetches_images=True).refusal(request.given, None, forms) == refusal
        assert generator(None).refusal(request.given, None, forms) is None  # Inference Providers are no network of ours
        assert generator(None, allowed_extra_body=[]).refusal(request.given, None, forms) == refusal


def test_a_generators_own_grammar_stands_as_its_settings_say_it():
    own = generator(generation_kwargs={"grammar": {"type": "json", "value": REMOTE}})
    request = read_request({"prompt": "Hi"})
    assert own.refusal(request.given, None, forms_in(own, call_parameters(own, request))) is None


def test_what_has_no_schema_has_no_forms():
    assert read_request({"prompt": "Hi"}).forms == {} == read_request({"messages": [USER]}).forms
