"""Errors in the shapes that engines, gateways and providers have: their words and whose fault they are."""

import json

import pytest

from genqueue_worker.upstream.errors.answers import error_in, events_of
from genqueue_worker.upstream.errors.responses import error_facts
from genqueue_worker.upstream.errors.words import read_error
from genqueue_worker.upstream.faults import Fault, fault_of
from genqueue_worker.upstream.fields import read_json

REQUEST, ENDPOINT, CAPACITY, SERVER = Fault.REQUEST, Fault.ENDPOINT, Fault.CAPACITY, Fault.SERVER
WORDLESS = "the server reports an error without words; it says "

SHAPES = [
    pytest.param({"detail": "gone"}, "gone", None, SERVER, id="fastapi"),
    pytest.param({"detail": {"message": "slow down", "code": 429}}, "slow down", 429, CAPACITY, id="detail-object"),
    pytest.param({"detail": {"error": {"message": "no key", "code": 401}}}, "no key", 401, ENDPOINT, id="detail-error"),
    pytest.param({"detail": {"error": "no room"}, "status": 503}, "no room", 503, CAPACITY, id="detail-error-text"),
    pytest.param({"detail": [{"msg": "Field required"}]}, "Field required", None, SERVER, id="detail-list"),
    pytest.param(
        {
            "detail": [
                {"type": "missing", "loc": ["body", "n"], "msg": "Field required"},
                {"loc": ["m"], "msg": "too big"},
            ]
        },
        "Field required; too big",
        422,
        REQUEST,
        id="fastapis-validation",
    ),
    pytest.param(
        {"errors": {"prompt": ["is too long", "is odd"]}}, "prompt: is too long; is odd", None, SERVER, id="rails"
    ),
    pytest.param({"errors": {"message": "m", "status": "400"}}, "m", 400, REQUEST, id="errors-object"),
    pytest.param({"errors": ["a", "b"]}, "a; b", None, SERVER, id="errors-texts"),
    pytest.param({"errors": [{"title": "T", "detail": "d", "status": "401"}]}, "d", 401, ENDPOINT, id="json-api"),
    pytest.param(
        {
            "success": False,
            "errors": [{"code": 10000, "message": "Authentication error"}],
            "messages": [],
            "result": None,
        },
        "Authentication error",
        None,
        SERVER,
        id="cloudflare",
    ),
    pytest.param(
        {"fault": {"faultstring": "Invalid ApiKey", "detail": {"errorcode": "oauth.v2.InvalidApiKey"}}},
        "Invalid ApiKey",
        None,
        SERVER,
        id="apigee",
    ),
    pytest.param(
        {"fault": {"code": 900901, "message": "Invalid Credentials"}}, "Invalid Credentials", None, SERVER, id="wso2"
    ),
    pytest.param({"Message": "User is not authorized"}, "User is not authorized", None, SERVER, id="aws"),
    pytest.param(
        {"__type": "ThrottlingException", "message": "Rate exceeded"}, "Rate exceeded", 429, CAPACITY, id="aws-type"
    ),
    pytest.param({"errorMessage": "boom", "errorType": "Runtime"}, "boom", None, SERVER, id="lambda"),
    pytest.param({"message": "no Route matched", "code": 404}, "no Route matched", 404, ENDPOINT, id="message-code"),
    pytest.param({"statusCode": 401, "message": "Access denied"}, "Access denied", 401, ENDPOINT, id="azure-apim"),
    pytest.param(
        {"statusCode": 503, "error": "Service Unavailable", "message": "busy"},
        "Service Unavailable: busy",
        503,
        CAPACITY,
        id="nodes",
    ),
    pytest.param(
        {"timestamp": "t", "status": 404, "error": "Not Found", "path": "/v1"}, "Not Found", 404, ENDPOINT, id="spring"
    ),
    pytest.param(
        {"type": "about:blank", "title": "Unauthorized", "status": 401}, "Unauthorized", 401, ENDPOINT, id="rfc-9457"
    ),
    pytest.param(
        {"type": "https://e.x/c", "title": "No credit", "detail": "30 left", "status": 403, "instance": "/a"},
        "30 left",
        403,
        ENDPOINT,
        id="rfc-9457-detail",
    ),
    pytest.param({"title": "Bad Request", "errors": {"n": ["odd"]}}, "n: odd", 400, REQUEST, id="asp-net"),
    pytest.param({"error_description": "The token expired"}, "The token expired", None, SERVER, id="a-description"),
    pytest.param(
        {"error": "invalid_token", "error_description": "It expired"},
        "invalid_token: It expired",
        401,
        ENDPOINT,
        id="oauth",
    ),
    pytest.param({"success": False, "message": "m"}, "m", None, SERVER, id="no-success"),
    pytest.param(
        {"success": False, "code": 429}, WORDLESS + '{"success":false,"code":429}', 429, CAPACITY, id="wordless"
    ),
    pytest.param({"ok": False}, WORDLESS + '{"ok":false}', None, SERVER, id="not-ok"),
    pytest.param({"status": "error", "msg": "m"}, "m", None, SERVER, id="a-status-of-words"),
    pytest.param({"status": 500}, WORDLESS + '{"status":500}', 500, SERVER, id="a-status-alone"),
    pytest.param({"httpCode": "401", "httpMessage": "U", "moreInformation": "I"}, "U", 401, ENDPOINT, id="api-connect"),
    pytest.param({"error_code": 17, "error_msg": "daily limit"}, "daily limit", None, SERVER, id="baidu"),
    pytest.param({"code": "InvalidApiKey", "message": "bad key"}, "bad key", 401, ENDPOINT, id="dashscope"),
    pytest.param({"code": "Throttling", "message": "slow"}, "slow", 429, CAPACITY, id="dashscope-throttles"),
    pytest.param({"Response": {"Error": {"Code": "X", "Message": "m"}}}, "m", None, SERVER, id="tencent"),
    pytest.param(
        {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        "insufficient balance",
        None,
        SERVER,
        id="minimax",
    ),
    pytest.param({"choices": [], "error": {"message": "m", "code": 400}}, "m", 400, REQUEST, id="beside-no-choices"),
    pytest.param({"choices": [], "success": False, "message": "m"}, "m", None, SERVER, id="no-choices-no-success"),
    pytest.param({"error": True, "message": "m"}, "m", None, SERVER, id="a-flag"),
    pytest.param({"error": 429, "message": "m"}, "m", None, SERVER, id="a-flag-that-is-a-number"),
    pytest.param({"error": {"error": {"message": "m"}}}, "m", None, SERVER, id="in-two"),
    pytest.param(
        {"error": {"errors": [{"message": "m", "reason": "r"}], "code": 403}}, "m", 403, ENDPOINT, id="google"
    ),
    pytest.param(
        {"error": {"message": "m", "type": "invalid_request_error", "code": "invalid_api_key"}},
        "m",
        401,
        ENDPOINT,
        id="openai",
    ),
    pytest.param({"error": {"message": "m", "status": "RESOURCE_EXHAUSTED"}}, "m", 429, CAPACITY, id="grpc"),
    pytest.param(
        {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, "m", 503, CAPACITY, id="anthropic"
    ),
    pytest.param(
        {"error": {"message": "m", "code": "429 Too Many Requests"}}, "m", 429, CAPACITY, id="number-and-phrase"
    ),
    pytest.param(
        {"error": "Model is overloaded", "error_type": "overloaded"}, "Model is overloaded", 503, CAPACITY, id="tgi"
    ),
    pytest.param(
        {"error": "Input validation error", "error_type": "validation"},
        "Input validation error",
        None,
        REQUEST,
        id="tgis",
    ),
    pytest.param({"err": {"code": 7, "msg": "m"}}, "m", None, SERVER, id="err"),
    pytest.param({"exception": "KeyError: x"}, "KeyError: x", None, SERVER, id="exception"),
    pytest.param(
        {"object": "error", "code": 200}, WORDLESS + '{"object":"error","code":200}', None, SERVER, id="vllms-wordless"
    ),
]


@pytest.mark.parametrize(("said", "words", "status", "fault"), SHAPES)
def test_an_error_with_a_status_of_success_has_its_words_and_its_fault(said, words, status, fault):
    """As an event of a stream, as a whole answer, in a list and beside what adds nothing."""
    body = json.dumps(said).encode()
    for event in (read_json(body), *events_of(body), *events_of(b"[" + body + b"]")):
        facts = error_in(event)
        assert facts is not None
        assert (facts.message, facts.status, fault_of(facts)) == (words, status, fault)


@pytest.mark.parametrize("http", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize(("said", "words", "status", "fault"), SHAPES)
def test_an_error_with_a_status_of_one_has_its_words_and_that_status(said, words, status, fault, http):
    for body in (json.dumps(said), json.dumps([said]), json.dumps(said, indent=2)):
        facts = error_facts(http, "Reason", {}, body.encode())
        assert facts.status == http
        assert facts.message == (body if words.startswith(WORDLESS) else words)


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"delta": {"content": "a"}}], "detail": "x", "success": False},
        {"choices": [], "usage": {"prompt_tokens": 1}, "message": "fine"},
        {"choices": [], "usage": {}, "base_resp": {"status_code": 0, "status_msg": ""}},
        {"choices": [{"message": {"content": "a"}}], "base_resp": {"status_code": 0}, "error": None},
        {"token": {"text": "a"}, "details": None, "status": 500},
        {"generated_text": "", "details": {"finish_reason": "length"}, "error": ""},
        {"generated_text": "a", "code": 500},
        {"type": "ping"},
        {"usage": {"prompt_tokens": 3}},
        {"message": {"role": "assistant", "content": "a"}},
        {"status": "ok", "code": 0, "title": "A chat"},
        {"detail": None, "errors": [], "fault": {}, "success": True, "message": ""},
        {},
    ],
)
def test_what_adds_to_an_answer_or_says_nothing_is_no_error(event):
    assert error_in(event) is None


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": 5}},
        {"error": {"message": ["\ud83d", None, 7]}},
        {"errors": [[[[[[[[[["deep"]]]]]]]]]]},
        {"errors": {"a": {"b": {"c": {"d": {"e": {"f": {"g": "deep"}}}}}}}},
        {"error": {"message": "x" * 5_000_000, "type": "y" * 100_000, "code": "4" * 100_000}},
        {"errors": [{"message": "x" * 3000}] * 1_000},
        {"detail": {str(number): "x" for number in range(100_000)}},
        {"error": {"code": 1e300, "status": True, "type": 5}},
        {"error": float("nan")},
    ],
)
def test_whatever_an_error_holds_its_facts_are_short_and_of_their_types(said):
    facts = error_in(said)
    assert facts is not None
    assert 0 < len(facts.message.encode()) <= 8000
    assert facts.status is None and len(facts.error_type or "") <= 200
    assert isinstance(error_facts(500, "", {}, json.dumps(said).encode()).message, str)


def test_of_what_it_does_not_say_an_error_has_nothing():
    assert read_error({}) == (None, None, None)


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"code": "insufficient_quota", "message": "m"}},
        {"error": {"code": "insufficient_quota", "type": "requests", "message": "m"}},
        {"error": {"code": "Insufficient_Quota", "type": None, "message": "m"}},
        {"code": "insufficient_balance", "message": "m"},
        {"detail": {"error": {"code": "insufficient_quota", "message": "m"}}},
        {"error": "insufficient_quota", "message": "m"},
        {"error": {"type": "exceeded_current_quota_error", "message": "m"}},
    ],
    ids=str,
)
def test_a_quota_that_no_waiting_mends_is_one_wherever_its_name_stands(said):
    assert fault_of(error_facts(429, "Too Many Requests", {}, json.dumps(said).encode())) is ENDPOINT
