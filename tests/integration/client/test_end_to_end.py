"""The main job: submit, run on a Hugging Face client, read live, keep the result.

A real worker, a real Redis, the stand-in over TCP (issue 2, "What a user types" and "It must also do").
"""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from celery.result import AsyncResult

from genqueue.wire.events import Chunk, Finished, Started
from genqueue_ops.standin.prose import EOS, expected_tokens


def texts(chunks):
    return "".join(chunk.text for chunk in chunks)


def tokens_of(chunks):
    return [token for chunk in chunks for token in chunk.tokens]


def test_a_streamed_generation_gives_every_token_and_the_same_text_as_its_result(client, ask):
    prompt = ask(tokens=12, itl_s=0.1)
    generation = client.submit(prompt)
    chunks = list(generation.stream())
    result = generation.result(timeout_s=10)
    assert result.replies == [texts(chunks)] == [prompt.answer]
    made = [*expected_tokens(prompt, 12), EOS]
    assert [tuple(token) for token in tokens_of(chunks)] == [tuple(token) for token in made]
    assert {chunk.attempt for chunk in chunks} == {1}
    assert [chunk.seq for chunk in chunks] == list(range(chunks[0].seq, chunks[0].seq + len(chunks)))
    assert len(chunks) > 3, "tokens 100 ms apart came in one piece: that is no streaming"


def test_chunks_arrive_while_the_server_still_generates(client, ask, standin):
    prompt = ask(tokens=200, itl_s=0.05)
    generation = client.submit(prompt)
    chunks = generation.stream()
    first = next(chunks)
    assert first.text
    assert standin.only(prompt)["state"] == "running"
    generation.cancel()
    chunks.close()


def test_events_run_from_started_to_finished_without_a_gap(client, ask):
    prompt = ask(tokens=4)
    generation = client.submit(prompt)
    events = list(generation.events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert isinstance(events[0], Started)
    assert all(isinstance(event, Chunk) for event in events[1:-1])
    assert events[-1] == Finished(seq=len(events), attempt=1, finish_reason="eos_token", completion_tokens=5)


def test_meta_says_model_usage_times_and_where(client, ask, standin):
    before = datetime.now(UTC)
    prompt = ask(tokens=6, ttft_s=0.1, itl_s=0.05)
    result = client.submit(prompt).result(timeout_s=10)
    (meta,) = result.meta
    assert set(meta) == {
        "model",
        "finish_reason",
        "usage",
        "completion_start_time",
        "generator",
        "endpoint",
        "attempts",
        "timings",
    }
    assert meta["model"] == meta["endpoint"] == standin.url
    assert meta["finish_reason"] == "eos_token"
    assert meta["usage"]["completion_tokens"] == 7
    assert meta["usage"]["prompt_tokens"] > 3
    assert meta["generator"] == "default"
    assert meta["attempts"] == 1
    started = datetime.fromisoformat(meta["completion_start_time"])
    assert started.utcoffset() == timedelta(0)
    assert before + timedelta(seconds=0.1) <= started <= datetime.now(UTC)
    timings = meta["timings"]
    assert set(timings) == {"queue_wait_s", "waking_s", "first_text_s", "decode_s", "total_s"}
    assert 0.1 <= timings["first_text_s"] < 10
    assert 0.1 <= timings["decode_s"] < 10
    phases = timings["queue_wait_s"] + timings["first_text_s"] + timings["decode_s"]
    assert timings["total_s"] == pytest.approx(phases, abs=1e-3)


def test_the_celery_way_gives_the_same_dictionary(client, ask, celery_app):
    prompt = ask()
    generation = client.submit(prompt)
    found = AsyncResult(generation.id, app=celery_app).get(timeout=10)
    result = generation.result(timeout_s=10)
    assert found == {"replies": result.replies, "meta": result.meta}
    assert found["replies"] == [prompt.answer]


def test_status_follows_the_generation(client, ask, eventually):
    prompt = ask(tokens=400, itl_s=0.02)
    generation = client.submit(prompt, priority=3)
    running = eventually(lambda: (now := generation.status()).completion_tokens > 2 and now)
    assert (running.state, running.attempt, running.priority, running.position) == ("running", 1, 3, None)
    assert running.timings["queue_wait_s"] is not None
    assert running.timings["first_text_s"] is not None
    assert running.timings["total_s"] is None
    generation.cancel()
    ended = generation.status()
    assert (ended.state, ended.error) == ("cancelled", "cancelled")
    assert ended.timings["total_s"] > 0


def test_a_finished_status_counts_the_tokens(client, ask):
    generation = client.submit(ask(tokens=3))
    generation.result(timeout_s=10)
    status = generation.status()
    assert (status.state, status.completion_tokens, status.error) == ("finished", 4, None)


async def test_the_async_client_has_the_same_verbs(async_client, ask):
    prompt = ask(tokens=10, itl_s=0.01)
    generation = await async_client.submit(prompt)
    chunks = [chunk async for chunk in generation.stream()]
    result = await generation.result(timeout_s=10)
    assert result.replies == [texts(chunks)] == [prompt.answer]
    assert (await generation.status()).state == "finished"
    assert await generation.cancel() is False
    again = async_client.generation(generation.id)
    assert (await again.result(timeout_s=10)) == result
    events = [event async for event in again.events()]
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("generator", ["default", "endpoint", "serverless"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
def test_every_api_type_gives_the_text(client, ask, standin, generator, stream):
    prompt = ask(tokens=9)
    generation = client.submit(prompt, generator=generator, stream=stream)
    assert generation.result(timeout_s=10).replies == [prompt.answer]
    assert texts(generation.stream()) == prompt.answer
    assert standin.only(prompt)["body"]["stream"] is True


def test_without_streaming_nothing_is_published_but_the_end_is_the_same(client, ask):
    prompt = ask(tokens=9, itl_s=0.03)
    quiet = client.submit(prompt, stream=False)
    events = list(quiet.events())
    assert [event.type for event in events] == ["started", "finished"]
    (chunk,) = quiet.stream()
    assert chunk.text == prompt.answer
    meta = quiet.result(timeout_s=10).meta[0]
    loud = client.submit(prompt).result(timeout_s=10)
    assert loud.replies == [prompt.answer]
    assert (loud.meta[0]["usage"], loud.meta[0]["finish_reason"]) == (meta["usage"], meta["finish_reason"])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
@pytest.mark.parametrize(
    "generation_kwargs",
    [
        pytest.param({"best_of": 2, "do_sample": True, "max_new_tokens": 5}, id="best_of"),
        pytest.param({"decoder_input_details": True, "max_new_tokens": 5}, id="decoder_input_details"),
    ],
)
def test_what_the_server_refuses_to_stream_is_called_in_one_shot(client, ask, standin, generation_kwargs, stream):
    prompt = ask(tokens=50)
    generation = client.submit(prompt, generation_kwargs=generation_kwargs, stream=stream)
    result = generation.result(timeout_s=10)
    call = standin.only(prompt)
    assert not call["body"].get("stream")
    assert {key: call["body"]["parameters"][key] for key in generation_kwargs} == generation_kwargs
    (reply,) = result.replies
    assert texts(generation.stream()) == reply
    if "best_of" in generation_kwargs:
        (other,) = result.meta[0]["best_of_sequences"]
        assert prompt.beginning(5) in {reply, other["text"]}
        assert reply != other["text"]
        assert other["finish_reason"] == "length"
    else:
        assert reply == prompt.beginning(5)
    assert result.meta[0]["finish_reason"] == "length"
    assert result.meta[0]["usage"]["completion_tokens"] == 5
    assert result.meta[0]["usage"]["prompt_tokens"] > 3
    assert result.meta[0]["completion_start_time"] is not None


def test_one_shot_calls_stream_their_tokens_too(client, ask):
    prompt = ask(tokens=3)
    generation = client.submit(prompt, generation_kwargs={"decoder_input_details": True})
    assert [token.text for token in tokens_of(generation.stream())] == [
        token.text for token in [*expected_tokens(prompt, 3), EOS]
    ]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
@pytest.mark.parametrize(
    ("tokens", "special", "max_new_tokens", "finish_reason", "completion_tokens", "text_tokens"),
    [
        pytest.param(5, True, 50, "eos_token", 6, 5, id="ends-with-a-special-token"),
        pytest.param(5, False, 50, "eos_token", 5, 5, id="ends-with-a-word"),
        pytest.param(50, True, 5, "length", 5, 5, id="cut-by-length"),
        pytest.param(5, True, 6, "length", 6, 5, id="special-token-at-the-limit"),
        pytest.param(0, True, 50, "eos_token", 1, 0, id="empty"),
    ],
)
def test_finish_reason_and_usage_are_the_servers(
    client, ask, stream, tokens, special, max_new_tokens, finish_reason, completion_tokens, text_tokens
):
    prompt = ask(tokens=tokens, special=special)
    generation = client.submit(prompt, generation_kwargs={"max_new_tokens": max_new_tokens}, stream=stream)
    result = generation.result(timeout_s=10)
    assert result.replies == [prompt.beginning(text_tokens)]
    assert result.meta[0]["finish_reason"] == finish_reason
    assert result.meta[0]["usage"]["completion_tokens"] == completion_tokens
    assert "</s>" not in result.replies[0]
    assert texts(generation.stream()) == result.replies[0]


def test_an_empty_generation_is_an_empty_reply(client, ask, celery_app):
    generation = client.submit(ask(tokens=0))
    result = generation.result(timeout_s=10)
    assert result.replies == [""]
    assert result.meta[0]["completion_start_time"] is None
    assert AsyncResult(generation.id, app=celery_app).get(timeout=30)["replies"] == [""]
    (chunk,) = generation.stream()
    assert (chunk.text, [token.special for token in chunk.tokens]) == ("", [True])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
def test_characters_that_take_two_tokens_arrive_whole(client, ask, stream):
    prompt = ask(tokens=60, split_characters=True)
    generation = client.submit(prompt, stream=stream)
    chunks = list(generation.stream())
    made = expected_tokens(prompt, 60, split_characters=True)
    assert any(token.text == "" for token in made), "this prompt's text has no split character"
    expected = "".join(token.text for token in made)
    assert texts(chunks) == expected
    assert generation.result(timeout_s=5).replies == [expected]
    if stream:
        assert [token.text for token in tokens_of(chunks)][:-1] == [token.text for token in made]


def test_stop_words_end_the_text(client, ask, standin):
    prompt = ask(tokens=50)
    word = expected_tokens(prompt, 50)[8].text  # a counter word, so it stands in the text once
    result = client.submit(prompt, stop_words=[word, "§"]).result(timeout_s=10)
    assert result.replies == [prompt.beginning(9)]
    assert result.meta[0]["finish_reason"] == "stop_sequence"
    assert standin.only(prompt)["body"]["parameters"]["stop"] == [word, "§"]


def test_the_reply_never_begins_with_the_prompt(client, ask, standin):
    # POST / of a text-generation model adds the prompt unless it is told not to.
    prompt = ask(tokens=5)
    assert client.submit(prompt).result(timeout_s=10).replies == [prompt.answer]
    assert standin.only(prompt)["path"] == "/"


def test_top_tokens_come_with_their_chunk(client, ask):
    generation = client.submit(ask(tokens=3), generation_kwargs={"top_n_tokens": 2})
    chunks = list(generation.stream())
    top = [alternatives for chunk in chunks for alternatives in chunk.top_tokens or ()]
    assert len(top) == 4
    assert all(len(alternatives) == 2 for alternatives in top)


def test_long_and_odd_texts_travel_unharmed(client, ask):
    words = 'ünïcödé 東京 😀 "quotes" \\ back \x00 nul \r\n \u2028 ' + "lorem ipsum " * 500
    prompt = ask(words, tokens=7)
    assert client.submit(prompt).result(timeout_s=10).replies == [prompt.answer]


def test_another_process_reads_streams_and_results_by_id(client, ask, settings):
    prompt = ask(tokens=40, itl_s=0.02)
    generation = client.submit(prompt)
    program = (
        "import sys; from genqueue import GenerationClient\n"
        "with GenerationClient() as client:\n"
        "    generation = client.generation(sys.argv[1])\n"
        "    text = ''.join(chunk.text for chunk in generation.stream())\n"
        "    assert generation.result(timeout_s=5).replies == [text]\n"
        "    print(text, end='')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, generation.id],
        env={"GENQUEUE_REDIS_URL": settings.redis_url, "PATH": "/usr/bin", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stderr.decode()) == (0, "")
    assert ran.stdout.decode() == prompt.answer
