"""HTTP error responses as facts: TGI's, axum's, an OpenAI dialect's, a proxy's, and none at all."""

import json

import pytest

from genqueue_worker.upstream.errors.responses import error_facts, redirect_facts
from genqueue_worker.upstream.faults import Fault, fault_of

HTML = b"<!DOCTYPE html>\n<html><head><title>503</title></head><body>nginx</body></html>"


@pytest.mark.parametrize(
    ("status", "body", "message", "error_type"),
    [
        pytest.param(
            422,
            b'{"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}',
            "Input validation error: `inputs` cannot be empty",
            "validation",
            id="tgi",
        ),
        pytest.param(400, b'{"error":"bad"}', "bad", None, id="no-type"),
        pytest.param(400, b'{"message":"bad"}', "bad", None, id="message"),
        pytest.param(
            422, b'{"error":{"message":"nested","type":"invalid","code":1}}', "nested", "invalid", id="openai-nested"
        ),
        pytest.param(422, b'{"error":{"message":"n"},"error_type":"t"}', "n", "t", id="nested-with-tgi-type"),
        pytest.param(
            429, b'{"error":{"message":"n","type":"t"},"error_type":null}', "n", "t", id="openai-nested-with-null-type"
        ),
        pytest.param(400, b'{"error":["one","two"]}', "one; two", None, id="list"),
        pytest.param(400, b'{"error":"bad","error_type":5}', "bad", None, id="type-is-no-word"),
        pytest.param(
            422, b"Failed to deserialize the JSON body", "Failed to deserialize the JSON body", None, id="axum"
        ),
        pytest.param(404, b"", "HTTP 404 Reason", None, id="empty"),
        pytest.param(404, b" \n", "HTTP 404 Reason", None, id="blank"),
        pytest.param(503, HTML, "HTTP 503 Reason", None, id="html"),
        pytest.param(500, b"\xff\xfe oops", "�� oops", None, id="not-utf-8"),
        pytest.param(500, b"[1, 2]", "[1, 2]", None, id="json-array"),
        pytest.param(500, b"null", "null", None, id="json-null"),
        pytest.param(500, b"{}", "{}", None, id="json-empty"),
        pytest.param(500, b'{"error":null}', '{"error":null}', None, id="json-null-error"),
        pytest.param(500, b"[" * 100_000, "[" * 2000, None, id="deep-and-long"),
    ],
)
def test_the_servers_words_are_found(status, body, message, error_type):
    facts = error_facts(status, "Reason", {}, body)
    assert (facts.status, facts.message, facts.error_type) == (status, message, error_type)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_read(header, expected):
    headers = {} if header is None else {"retry-after": header}
    assert error_facts(429, "", headers, b"").retry_after_s == expected


def test_a_retry_after_of_odd_digits_is_none():
    assert error_facts(429, "", {"retry-after": "²"}, b"").retry_after_s is None


def test_a_huge_message_is_cut():
    body = json.dumps({"error": "x" * 1_000_000}).encode()
    assert len(error_facts(500, "", {}, body).message) <= 2000


SENT = "HTTP 307: the server sends us to {}; if it moved there, mend its address"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        pytest.param("", "HTTP 307: a redirect without an address", id="none"),
        pytest.param(" \t", "HTTP 307: a redirect without an address", id="blank"),
        pytest.param("http://[::1", "HTTP 307: a redirect whose address cannot be read", id="unreadable"),
        pytest.param("/login", SENT.format("http://a:1/login"), id="path"),
        pytest.param("//b/x?token=abc", SENT.format("http://b/x"), id="without-its-query"),
        pytest.param("https://u:p@b/x", SENT.format("https://b/x"), id="without-its-password"),
        pytest.param("http://a:1/generate", SENT.format("http://a:1/generate"), id="to-itself"),
    ],
)
def test_a_redirect_says_where_to_if_the_server_does(location, message):
    facts = redirect_facts(307, "http://a:1/generate", location)
    assert (facts.message, fault_of(facts)) == (message, Fault.ENDPOINT)
