"""What a model server does wrong is borne, counted and said; what the caller wants of it is done."""

import time

import pytest

from genqueue import (
    GenerationClient,
    GenerationExpiredError,
    GenerationFailedError,
    GenerationRejectedError,
    Settings,
)

TGI = "text_generation_inference"
OVERLOADED = {"kind": "error", "error": "Model is overloaded", "error_type": "overloaded"}


@pytest.fixture(scope="module")
def fleet(fleet_of, standin):
    generators = {
        "default": {"api_type": TGI, "api_params": {"url": standin.url, "timeout": 2.0}, "max_attempts": 3},
        "once": {"api_type": TGI, "api_params": {"url": standin.url}, "max_attempts": 1},
    }
    with fleet_of(generators, GENQUEUE_LEASE_S="1") as opened:
        opened.staff(2)
        yield opened


@pytest.fixture(scope="module")
def client(fleet):
    return fleet.client


PAGE = {
    "kind": "status",
    "status": 200,
    "headers": {"content-type": "text/html"},
    "body": "<html><title>Back soon</title></html>",
}
FAULTS = [
    pytest.param({"kind": "cut", "after_tokens": 5}, 2, id="cut-without-an-end-marker"),
    pytest.param({"kind": "close", "after_tokens": 5}, 2, id="closed"),
    pytest.param({"kind": "reset", "after_tokens": 5}, 2, id="reset"),
    pytest.param({"kind": "error", "after_tokens": 5}, 2, id="generation-error"),
    pytest.param({"kind": "stall", "after_tokens": 5}, 1, id="silence-between-tokens"),
    pytest.param({"kind": "stall"}, 1, id="silence-before-the-first"),
    pytest.param({"kind": "slow_headers", "delay_s": 5}, 1, id="silence-before-the-headers"),
    pytest.param({"kind": "refuse"}, 2, id="refused"),
    pytest.param({"kind": "status", "status": 502, "body": "bad gateway"}, 2, id="502"),
    pytest.param(PAGE, 1, id="a-web-page"),
]


@pytest.mark.parametrize(("fault", "times"), FAULTS)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "not-streamed"])
def test_a_failure_is_followed_by_another_attempt_behind_the_text_so_far(
    client, ask, read, standin, fleet, fault, times, stream
):
    prompt = ask(tokens=24, faults=[{**fault, "times": times}])
    reading = read(client.submit(prompt, stream=stream))
    result = reading.generation.result(timeout_s=20)
    assert result.replies == [prompt.answer]
    meta = result.meta[0]
    # A used connection that is closed on a call costs no attempt: the call goes out again on a new one.
    again = 1 if fault["kind"] == "refuse" else 0
    assert times + 1 - again <= meta["attempts"] <= times + 1
    assert meta["usage"]["completion_tokens"] == 25
    if stream:
        assert reading.text() == prompt.answer
        assert "resumed" in reading.kinds()[-2] or "after_tokens" not in fault
    calls = standin.attempts(prompt)
    made = fault.get("after_tokens", 0)
    assert [call["body"]["inputs"] for call in calls] == [
        (prompt + prompt.beginning(made * number)).rstrip() for number in range(times + 1)
    ]
    assert fleet.record(reading.generation)["failures"] == str(meta["attempts"] - 1)


def test_after_max_attempts_it_fails_with_the_text_and_every_error(client, ask, read):
    prompt = ask(tokens=24, faults=[{"kind": "error", "after_tokens": 3, "error": "CUDA error"}])
    reading = read(client.submit(prompt))
    with pytest.raises(GenerationFailedError, match=r"gave up after 3 attempts: .*CUDA error") as failed:
        reading.generation.result(timeout_s=20)
    assert failed.value.partial_text == prompt.beginning(9)
    assert failed.value.attempts == 3
    assert failed.value.usage["completion_tokens"] == 9
    assert [error["attempt"] for error in failed.value.detail["errors"]] == [1, 2, 3]
    assert all("CUDA error" in error["message"] for error in failed.value.detail["errors"])
    assert reading.text() == prompt.beginning(9)
    assert reading.kinds()[-1] == "3.failed"


def test_a_web_page_at_every_attempt_is_a_dead_letter_that_says_what_was_seen(client, ask, standin):
    prompt = ask(faults=[PAGE])
    seen = r"the server answers with a web page \(text/html\): Back soon"
    failed = client.submit(prompt)
    with pytest.raises(GenerationFailedError, match=rf"^gave up after 3 attempts: {seen}") as raised:
        failed.result(timeout_s=30)
    assert [error["attempt"] for error in raised.value.detail["errors"]] == [1, 2, 3]
    assert (len(standin.attempts(prompt)), raised.value.detail["error_type"]) == (3, "web_page")
    assert failed.id in [letter.id for letter in client.dead_letters("default")]
    for generator, options in (("once", {}), ("default", {"on_failure": "fail"})):
        with pytest.raises(GenerationFailedError, match=f"^{seen}"):
            client.submit(ask(faults=[PAGE]), generator=generator, **options).result(timeout_s=10)


def test_a_dead_letter_is_tried_again_once_its_server_is_well(client, ask, read, standin, fleet):
    prompt = ask(tokens=24, faults=[{"kind": "error", "after_tokens": 3, "error": "CUDA error", "times": 3}])
    failed = client.submit(prompt)
    with pytest.raises(GenerationFailedError):
        failed.result(timeout_s=20)
    assert failed.id in [letter.id for letter in client.dead_letters("default")]
    found = client.dead_letter(failed.id)
    assert (found.partial_text, found.usage["completion_tokens"]) == (prompt.beginning(9), 9)
    assert [(error["attempt"], "CUDA error" in error["message"]) for error in found.errors] == [
        (1, True),
        (2, True),
        (3, True),
    ]
    again = client.retry(failed.id)
    assert client.retry(failed.id).id == again.id
    reading = read(again)
    result = again.result(timeout_s=20)
    assert result.replies == [prompt.answer] == [reading.text()]
    assert (result.meta[0]["attempts"], reading.kinds()) == (1, ["1.started", "1.finished"])
    assert standin.attempts(prompt)[-1]["body"]["inputs"] == prompt
    assert len(standin.attempts(prompt)) == 4
    assert failed.id not in [letter.id for letter in client.dead_letters()]
    assert prompt not in str(fleet.record(failed))
    with pytest.raises(GenerationFailedError):
        failed.result(timeout_s=10)


def test_what_the_request_got_wrong_is_no_dead_letter_and_its_prompt_is_forgotten(client, ask, fleet):
    prompt = ask(faults=[{"kind": "status", "status": 422, "body": "no such thing"}])
    rejected = client.submit(prompt)
    with pytest.raises(GenerationRejectedError):
        rejected.result(timeout_s=20)
    assert rejected.id not in [letter.id for letter in client.dead_letters()]
    assert prompt not in str(fleet.record(rejected))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"on_failure": "restart"}, id="asked-for"),
        pytest.param({"generation_kwargs": {"grammar": {"type": "regex", "value": ".*"}}}, id="grammar"),
    ],
)
def test_where_a_text_is_not_to_be_continued_it_begins_anew(client, ask, read, standin, options):
    prompt = ask(tokens=24, faults=[{"kind": "cut", "after_tokens": 5, "times": 1}])
    reading = read(client.submit(prompt, **options))
    result = reading.generation.result(timeout_s=20)
    if "grammar" not in str(options):
        assert result.replies == [prompt.answer]
    assert reading.text() == result.replies[0]
    assert reading.kinds() == ["1.started", "2.started", "2.reset", "2.finished"]
    assert [call["body"]["inputs"] for call in standin.attempts(prompt)] == [prompt, prompt]
    assert result.meta[0]["usage"]["completion_tokens"] == standin.attempts(prompt)[1]["tokens_sent"]


def test_who_wants_no_second_attempt_has_the_partial_text(client, ask, standin):
    prompt = ask(tokens=24, faults=[{"kind": "cut", "after_tokens": 5, "times": 1}])
    with pytest.raises(GenerationFailedError, match="end marker") as failed:
        client.submit(prompt, on_failure="fail").result(timeout_s=10)
    assert (failed.value.partial_text, failed.value.attempts) == (prompt.beginning(5), 1)
    assert len(standin.attempts(prompt)) == 1


def test_who_wants_no_second_attempt_gets_none_when_a_worker_dies(client, ask, read, standin, fleet, eventually):
    fleet.staff(2)
    prompt = ask(tokens=400, itl_s=0.05)
    reading = read(client.submit(prompt, on_failure="fail"))
    eventually(lambda: len(reading.events) > 5)
    fleet.holder(reading.generation).process.kill()
    with pytest.raises(GenerationFailedError, match=r"gave up after 1 attempts: the lease of .* ran out") as failed:
        reading.generation.result(timeout_s=10)
    assert failed.value.partial_text
    assert failed.value.partial_text == prompt.beginning(failed.value.usage["completion_tokens"])
    assert len(standin.attempts(prompt)) == 1
    fleet.staff(2)


@pytest.mark.parametrize(
    ("fault", "times", "least_s"),
    [
        pytest.param({"kind": "status", "status": 503, "headers": {"Retry-After": "1"}}, 2, 2.0, id="retry-after"),
        pytest.param({"kind": "status", "status": 429}, 2, 0.0, id="429"),
        pytest.param(OVERLOADED, 3, 0.0, id="overloaded"),
        pytest.param({**OVERLOADED, "after_tokens": 4}, 2, 0.0, id="overloaded-in-mid-stream"),
    ],
)
def test_a_full_server_is_waited_for_and_costs_no_attempt(client, ask, fleet, fault, times, least_s):
    prompt = ask(tokens=12, faults=[{**fault, "times": times}])
    began_s = time.monotonic()
    generation = client.submit(prompt, generator="once", on_failure="fail")  # one attempt, no retry wanted
    assert generation.result(timeout_s=20).replies == [prompt.answer]
    assert time.monotonic() - began_s >= least_s
    record = fleet.record(generation)
    assert (record["attempt"], record.get("failures", "0")) == (str(times + 1), "0")


def test_a_deadline_that_passes_while_it_backs_off_ends_it(client, ask, standin):
    prompt = ask(faults=[{"kind": "status", "status": 503, "headers": {"Retry-After": "60"}}])
    began_s = time.monotonic()
    with pytest.raises(GenerationExpiredError, match="in the queue"):
        client.submit(prompt, deadline_s=3.0).result(timeout_s=15)
    assert 3.0 <= time.monotonic() - began_s < 10
    assert len(standin.attempts(prompt)) == 1


def test_a_deadline_that_passes_with_nobody_serving_it_ends_it(fleet, ask):
    """Any worker sees to it: here those of other generators."""
    nobodys = {"api_type": TGI, "api_params": {"url": "http://127.0.0.1:1"}}
    with GenerationClient(Settings(redis_url=fleet.producer_url, generators={"nobodys": nobodys})) as client:
        began_s = time.monotonic()
        with pytest.raises(GenerationExpiredError) as expired:
            client.submit(ask(), generator="nobodys", deadline_s=0.5).result(timeout_s=15)
        assert 0.5 <= time.monotonic() - began_s < 10
        assert expired.value.attempts == 0
