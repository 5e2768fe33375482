"""The Haystack components on a worker and a stand-in, each a process: what the queue adds to them.

That their outputs are the original's is test_haystack_original.py's.
"""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import redis
from haystack import Pipeline
from haystack.components.builders import PromptBuilder
from haystack.components.generators.utils import print_streaming_chunk
from haystack.core.errors import DeserializationError
from haystack.dataclasses import ChatMessage, ToolCall
from haystack.tools.tool import Tool
from haystack.utils import Secret

from genqueue import (
    ConfigError,
    GenerationExpiredError,
    GenerationRejectedError,
    GenqueueError,
    InvalidRequestError,
    RedisUnavailableError,
    UnknownGeneratorError,
)
from genqueue.haystack import HFGenerationAPIType, HuggingFaceAPIChatGenerator, HuggingFaceAPIGenerator

TGI, ENDPOINT, FREE = HFGenerationAPIType
OTHER_TOKEN = "hf_canaryComponentToken"


@pytest.fixture(scope="module")
def fleet(fleet_of, standin):
    generators = {
        "here": {"api_type": TGI, "api_params": {"url": standin.url}},
        "tuned": {
            "api_type": ENDPOINT,
            "api_params": {"url": standin.url, "model": "our/model"},
            "generation_kwargs": {"max_new_tokens": 3, "stop": ["§"]},
        },
        "twin-1": {"api_type": TGI, "api_params": {"url": f"{standin.url}/generate"}},
        "twin-2": {"api_type": TGI, "api_params": {"url": f"{standin.url}/generate"}},
    }
    with fleet_of(generators) as fleet:
        fleet.staff(1)
        yield fleet


@pytest.fixture(autouse=True)
def producer(monkeypatch, fleet):
    """What a producer's environment says."""
    monkeypatch.setenv("GENQUEUE_REDIS_URL", fleet.producer_url)


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
# Haystack reads functions of its own modules only.
TOOL = Tool("weather", "The weather of a city", PARAMETERS, print_streaming_chunk)


class WarmTool(Tool):
    warmed = 0

    def warm_up(self):
        self.warmed += 1


@pytest.fixture
def made():
    """Make a component; its connections are closed at the end."""
    components = []

    def make(*args, kind=HuggingFaceAPIGenerator, **kwargs):
        components.append(kind(*args, **kwargs))
        return components[-1]

    yield make
    for component in components:
        component.close()


@pytest.fixture
def here(made, standin):
    return made(TGI, {"url": standin.url})


def test_a_generator_is_found_by_its_type_and_address(made, ask, standin):
    prompt = ask(tokens=8)
    found = made(ENDPOINT, {"url": f"{standin.url}/"}, generation_kwargs={"seed": 1}).run(prompt)
    assert found["replies"] == [prompt.answer]
    assert found["meta"][0]["model"] == f"{standin.url}/"
    assert standin.only(prompt)["body"]["parameters"]["max_new_tokens"] == 512  # the component's, not the worker's


def test_a_generator_is_found_by_its_name_and_has_its_own_defaults(made, ask, standin):
    prompt = ask(tokens=8)
    found = made(generator="tuned").run(prompt)
    assert found["replies"] == [prompt.beginning(3)]
    assert found["meta"] == [{"model": "our/model", "finish_reason": "length", "usage": {"completion_tokens": 3}}]
    assert standin.only(prompt)["body"]["parameters"]["stop"] == ["§"]


def test_a_name_that_no_worker_has_is_an_error(made):
    with pytest.raises(UnknownGeneratorError, match="unknown generator 'gone'; known: here, tuned, twin-1, twin-2"):
        made(generator="gone").run("x")


@pytest.mark.parametrize("awaited", [False, True], ids=["run", "run_async"])
def test_a_place_that_no_worker_calls_is_an_error_that_shows_what_to_add(made, awaited):
    component = made(TGI, {"url": "http://me:hidden@elsewhere:8080"})
    with pytest.raises(ConfigError, match="no worker has a generator for text_generation_inference") as refused:
        asyncio.run(component.run_async("x")) if awaited else component.run("x")
    assert '[generators.default]\napi_type = "text_generation_inference"\n' in str(refused.value)
    assert 'api_params = { url = "http://elsewhere:8080" }' in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_place_that_several_generators_call_is_an_error_that_names_them(made, standin):
    with pytest.raises(ConfigError, match="twin-1, twin-2"):
        made(TGI, {"url": f"{standin.url}/generate"}).run("x")


def warm_up(component, awaited):
    asyncio.run(component.warm_up_async()) if awaited else component.warm_up()


@pytest.mark.parametrize("awaited", [False, True], ids=["warm_up", "warm_up_async"])
def test_warming_up_says_at_the_start_what_a_run_would_say(made, here, awaited):
    warm_up(here, awaited)
    warm_up(made(generator="here"), awaited)
    with pytest.raises(ConfigError):
        warm_up(made(TGI, {"url": "http://elsewhere"}), awaited)
    with pytest.raises(UnknownGeneratorError, match="unknown generator 'gone'; known: here, tuned, twin-1, twin-2"):
        warm_up(made(generator="gone"), awaited)


@pytest.mark.parametrize("awaited", [False, True], ids=["warm_up", "warm_up_async"])
@pytest.mark.parametrize("where", [{"generator": "here"}, {"api_type": TGI, "api_params": {"url": "http://here"}}])
def test_warming_up_says_that_redis_is_away(made, monkeypatch, closed_port, where, awaited):
    monkeypatch.setenv("GENQUEUE_REDIS_URL", f"redis://127.0.0.1:{closed_port}/0")
    with pytest.raises(RedisUnavailableError):
        warm_up(made(**where), awaited)


def test_what_cannot_run_is_refused(here, ask):
    with pytest.raises(InvalidRequestError, match=r"generation_kwargs\.max_new_token: unknown"):
        here.run("x", generation_kwargs={"max_new_token": 5})
    with pytest.raises(GenerationRejectedError, match="`temperature` must be strictly positive"):
        here.run(ask(), generation_kwargs={"temperature": 0.0})


def test_neither_the_address_nor_the_token_of_a_component_reaches_redis(made, ask, standin, fleet):
    url = standin.url.replace("://", "://someone:canaryPassword@")
    prompt, heard = ask(), ""
    component = made(TGI, {"url": url, "headers": {"x-key": "canaryHeader"}}, Secret.from_token(OTHER_TOKEN))
    with redis.Redis.from_url(fleet.redis.url) as db, db.monitor() as monitor:
        assert component.run(prompt, generation_kwargs={"seed": 424242})["replies"] == [prompt.answer]
        db.echo("that is all")
        while "that is all" not in heard:
            heard += monitor.next_command()["command"]
    assert "424242" in heard  # so this is where a secret would be
    assert not [canary for canary in (OTHER_TOKEN, "canaryPassword", "canaryHeader") if canary in heard]
    assert "authorization" not in standin.only(prompt)["headers"]


def test_what_workers_announce_holds_no_address(fleet, standin):
    with redis.Redis.from_url(fleet.redis.url) as db:
        announced = db.hgetall("genqueue:generators")
    assert set(announced) == {b"here", b"tuned", b"twin-1", b"twin-2"}
    assert not [fact for fact in announced.values() if standin.url.partition("://")[2].encode() in fact]


def test_tokens_are_shown_while_the_model_goes_on(here, ask, standin):
    prompt, states = ask(tokens=5, itl_s=0.2, special=False), []
    found = here.run(prompt, streaming_callback=lambda chunk: states.append(standin.only(prompt)["state"]))
    assert states[0] == "running"
    assert len(states) == 5
    assert found["replies"] == [prompt.answer]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_awaited_it_gives_the_same(here, ask, kind):
    shown = []

    async def callback(chunk):
        shown.append(chunk.content)

    prompt = ask(tokens=6)
    found = await here.run_async(prompt, callback if kind == "async" else lambda chunk: shown.append(chunk.content))
    assert found["replies"] == ["".join(shown)] == [prompt.answer]
    assert found["meta"][0].pop("completion_start_time")
    assert found["meta"] == (await here.run_async(prompt))["meta"]


async def test_many_at_once_share_the_connections_of_their_loop(here, ask, fleet):
    prompts = [ask(tokens=4, itl_s=0.05) for _ in range(80)]
    with redis.Redis.from_url(fleet.redis.url) as db:
        before = db.info("clients")["connected_clients"]
        runs = asyncio.gather(*(here.run_async(prompt) for prompt in prompts))
        most = 0
        while not runs.done():
            most = max(most, db.info("clients")["connected_clients"] - before)
            await asyncio.sleep(0.02)
    assert [found["replies"][0] for found in await runs] == [prompt.answer for prompt in prompts]
    assert most < 60  # of which some are the worker's


def test_one_component_serves_one_loop_after_another(here, ask):
    for prompt in (ask(), ask()):
        assert asyncio.run(here.run_async(prompt))["replies"] == [prompt.answer]


@pytest.fixture
def connected(fleet, eventually):
    """Which connections producers have to Redis; none when the test starts."""
    with redis.Redis.from_url(fleet.redis.url) as db:
        user = urlsplit(fleet.producer_url).username

        def ids():
            return {client["id"] for client in db.client_list() if client["user"] == user}

        eventually(lambda: not ids())
        yield ids


async def test_a_loops_runs_connect_once_whichever_component_runs(made, here, ask, connected, eventually):
    async def show(chunk):
        pass

    await here.warm_up_async()
    await here.run_async(ask(), show)
    first = connected()
    assert len(first) == 2  # for calls, and for what is published
    for component in (here, here, made(generator="here"), copy.deepcopy(here)):
        await component.warm_up_async()
        await component.run_async(ask(), show)
        await component.run_async(ask())
        assert connected() == first
    await here.close_async()
    await asyncio.to_thread(eventually, lambda: not connected())  # Redis has seen it
    prompt = ask()
    assert (await here.run_async(prompt))["replies"] == [prompt.answer]
    assert len(connected()) == 2


async def test_close_async_leaves_alone_what_a_run_uses(here, ask):
    prompt, first = ask(tokens=20, itl_s=0.02), asyncio.Event()
    run = asyncio.create_task(here.run_async(prompt, lambda chunk: first.set()))
    await asyncio.wait_for(first.wait(), 15)
    await here.close_async()
    assert (await run)["replies"] == [prompt.answer]


async def test_connections_that_were_lost_between_two_runs_are_made_anew(here, ask, connected, fleet):
    for _ in range(3):
        prompt, shown = ask(), []
        assert (await here.run_async(prompt, shown.append))["replies"] == [prompt.answer]
        with redis.Redis.from_url(fleet.redis.url) as db:
            for lost in connected():
                db.client_kill_filter(_id=lost)


ON_LOOPS = """
import asyncio, gc, threading
from genqueue.haystack import HuggingFaceAPIGenerator

component = HuggingFaceAPIGenerator(generator="here")


async def show(chunk):
    pass


async def runs():
    for _ in range(2):
        found = await component.run_async("Hello", show)
        print(f"{len(found['replies'])}\\n", end="")


def in_threads():
    threads = [threading.Thread(target=asyncio.run, args=[runs()]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def on_a_loop_that_is_only_closed():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(runs())
    loop.close()


def dropped_while_its_loop_stands_still():
    global component
    with asyncio.Runner() as runner:
        runner.run(runs())
        component = HuggingFaceAPIGenerator(generator="here")
"""


@pytest.mark.parametrize(
    ("use", "options"),
    [
        pytest.param("asyncio.run(runs())", ["-W", "error"], id="asyncio-run"),
        pytest.param("in_threads()", ["-W", "error"], id="threads"),
        pytest.param("dropped_while_its_loop_stands_still()", ["-W", "error"], id="dropped"),
        # Its sockets are closed by the garbage collector, which says so where ResourceWarning is shown.
        pytest.param("on_a_loop_that_is_only_closed()", [], id="loop-close"),
    ],
)
def test_loops_end_one_after_another_in_silence_and_leave_no_connection(connected, eventually, use, options):
    code = f"{ON_LOOPS}\n{use}\n{use}\nasyncio.run(runs())\ngc.collect()\ninput()"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, *options, "-c", code], text=True, stdin=pipe, stdout=pipe, stderr=pipe
    ) as of:
        expected = 10 if use == "in_threads()" else 6
        said = [of.stdout.readline() for _ in range(expected)]  # of which nothing comes before input()
        eventually(lambda: not connected())
        rest, errors = of.communicate("\n", timeout=60)
    assert (of.returncode, said, rest, errors) == (0, ["1\n"] * expected, "", "")


@pytest.mark.parametrize("awaited", [False, True], ids=["run", "run_async"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, GenqueueError("of another queue")], ids=["interrupt", "ours"])
def test_a_callback_that_raises_ends_the_generation(here, ask, standin, eventually, error, awaited):
    prompt = ask(tokens=1000, itl_s=0.02)

    def callback(chunk):
        raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        asyncio.run(here.run_async(prompt, callback)) if awaited else here.run(prompt, callback)
    eventually(lambda: standin.only(prompt)["state"] == "dropped")


async def test_a_run_that_is_cancelled_ends_the_generation(here, ask, standin):
    prompt = ask(tokens=1000, itl_s=0.02)
    first = asyncio.Event()
    run = asyncio.create_task(here.run_async(prompt, lambda chunk: first.set()))
    await asyncio.wait_for(first.wait(), 15)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    async with asyncio.timeout(15):
        while standin.only(prompt)["state"] != "dropped":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("awaited", [False, True], ids=["run", "run_async"])
@pytest.mark.parametrize("kind", [HuggingFaceAPIGenerator, HuggingFaceAPIChatGenerator])
def test_a_run_ends_at_its_deadline_with_what_there_is(made, standin, ask, eventually, kind, awaited):
    where = {"api_type": TGI, "api_params": {"url": standin.url, "timeout": 60}}  # the worker has a timeout of its own
    component, prompt = made(**where, deadline_s=3.0, kind=kind), ask(tokens=1000, itl_s=0.02)
    standin.clear()
    with pytest.raises(GenerationExpiredError) as expired:
        asyncio.run(component.run_async(prompt)) if awaited else component.run(prompt)
    assert expired.value.partial_text
    eventually(lambda: [entry["state"] for entry in standin.requests()] == ["dropped"])


@pytest.mark.parametrize("awaited", [False, True], ids=["run", "run_async"])
@pytest.mark.parametrize("callback", [None, print], ids=["whole", "stream"])
def test_a_run_ends_at_its_deadline_where_no_worker_ends_it(fleet_of, made, monkeypatch, callback, awaited):
    own = {"here": {"api_type": TGI, "api_params": {"url": "http://here"}}}
    monkeypatch.setenv("GENQUEUE_GENERATORS", json.dumps(own))
    monkeypatch.setattr("genqueue.haystack.queued._GRACE_S", 0.1)
    with fleet_of(own) as nobody:
        monkeypatch.setenv("GENQUEUE_REDIS_URL", nobody.producer_url)
        component = made(generator="here", deadline_s=0.2)
        with pytest.raises(GenerationExpiredError, match="no worker was there to end it"):
            asyncio.run(component.run_async("x", callback)) if awaited else component.run("x", callback)
        with redis.Redis.from_url(nobody.redis.url) as db:
            (key,) = [key for key in db.keys("genqueue:generation:*") if key.count(b":") == 2]
            assert db.hget(key, "state") == b"cancelled"
        component.close()


def test_a_worker_that_is_killed_leaves_no_seam(fleet_of, made, monkeypatch, ask, standin):
    prompt, shown = ask(tokens=60, itl_s=0.03), []
    with fleet_of({"here": {"api_type": TGI, "api_params": {"url": standin.url}}}, GENQUEUE_LEASE_S="1") as fleet:
        monkeypatch.setenv("GENQUEUE_REDIS_URL", fleet.producer_url)
        fleet.staff(2)
        component = made(TGI, {"url": standin.url})

        def callback(chunk):
            shown.append(chunk)
            if len(shown) == 10:
                (running,) = [one for one in fleet.workers if prompt_of(one, fleet)]
                running.process.kill()

        def prompt_of(worker, fleet):
            with redis.Redis.from_url(fleet.redis.url) as db:
                (key,) = [key for key in db.keys("genqueue:generation:*") if key.count(b":") == 2]
                return f":{worker.process.pid}:".encode() in db.hget(key, "owner")

        found = component.run(prompt, callback)
        component.close()
    assert found["replies"] == ["".join(chunk.content for chunk in shown)] == [prompt.answer]
    assert found["meta"][0]["usage"] == {"completion_tokens": 61}
    assert [chunk.start for chunk in shown].count(True) == 1
    assert shown[-1].meta["generated_tokens"] == 61
    assert len(standin.attempts(prompt)) == 2


def test_a_component_is_written_down_and_read_again(made, standin):
    component = made(
        TGI,
        {"url": standin.url},
        Secret.from_env_var("A_TOKEN"),
        {"temperature": 0.5},
        ["stop"],
        print_streaming_chunk,
    )
    data = component.to_dict()
    assert data == {
        "type": "genqueue.haystack.generator.HuggingFaceAPIGenerator",
        "init_parameters": {
            "api_type": "text_generation_inference",
            "api_params": {"url": standin.url},
            "token": {"type": "env_var", "env_vars": ["A_TOKEN"], "strict": True},
            "generation_kwargs": {"temperature": 0.5, "max_new_tokens": 512, "stop_sequences": ["stop"]},
            "streaming_callback": "haystack.components.generators.utils.print_streaming_chunk",
        },
    }
    again = HuggingFaceAPIGenerator.from_dict(data)
    assert again.to_dict() == data
    assert again.streaming_callback is print_streaming_chunk


def test_a_name_is_written_down_instead_of_a_place(made):
    data = made(generator="tuned", deadline_s=30.0).to_dict()
    assert {"api_type", "api_params"}.isdisjoint(data["init_parameters"])
    assert data["init_parameters"]["deadline_s"] == 30.0
    assert HuggingFaceAPIGenerator.from_dict(data).to_dict() == data


def test_a_token_is_not_written_down(made, standin):
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        made(TGI, {"url": standin.url}, Secret.from_token(OTHER_TOKEN)).to_dict()


def test_what_the_caller_passed_is_left_as_it_was(made, standin):
    kwargs = {"stop_sequences": ["one"]}
    made(TGI, {"url": standin.url}, generation_kwargs=kwargs, stop_words=["two"])
    assert kwargs == {"stop_sequences": ["one"]}


@pytest.mark.parametrize(
    ("kind", "name"), [(HuggingFaceAPIGenerator, "stop_sequences"), (HuggingFaceAPIChatGenerator, "stop")]
)
def test_stop_words_are_a_list_or_a_tuple_and_no_string(made, kind, name):
    component = made(generator="here", generation_kwargs={name: ("one",)}, stop_words=("two",), kind=kind)
    assert component.generation_kwargs == {name: ["one", "two"]}
    with pytest.raises(InvalidRequestError, match=f"generation_kwargs.{name}: Input should be a valid list"):
        made(generator="here", generation_kwargs={name: "###"}, kind=kind)
    with pytest.raises(InvalidRequestError, match="stop_words: Input should be a valid list"):
        made(generator="here", stop_words="###", kind=kind)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_component_can_be_copied_before_and_after_it_ran(made, ask, copied):
    component = made(generator="here", generation_kwargs={"max_new_tokens": 20})
    for _ in range(2):
        again, prompt = copied(component), ask(tokens=4)
        assert again.run(prompt)["replies"] == component.run(prompt)["replies"] == [prompt.answer]
        assert again.to_dict() == component.to_dict()
        again.close()


def test_serverless_models_come_with_a_warning(made, caplog):
    made(FREE, {"model": "HuggingFaceH4/zephyr-7b-beta"})
    assert "chat only" in caplog.text


def test_a_pipeline_is_written_down_and_read_again_and_runs(standin, ask):
    pipe = Pipeline()
    pipe.add_component("prompt", PromptBuilder("{{ words }}", required_variables="*"))
    pipe.add_component("llm", HuggingFaceAPIGenerator(TGI, {"url": standin.url}))
    pipe.connect("prompt", "llm")
    again = Pipeline.loads(pipe.dumps())
    prompt, shown = ask(), []
    found = again.run({"prompt": {"words": prompt}, "llm": {"streaming_callback": shown.append}})
    assert found["llm"]["replies"] == [prompt.answer]
    assert {chunk.component_info.name for chunk in shown} == {"llm"}
    again.get_component("llm").close()


def test_only_our_components_are_allowed_into_pipelines():
    with pytest.raises(DeserializationError, match="genqueue"):
        Pipeline.loads("components: {x: {type: genqueue.client.sync.GenerationClient, init_parameters: {}}}")


def test_a_chat_reaches_the_server_as_it_was_meant(made, ask, standin):
    prompt = ask(tokens=4)
    chat = made(TGI, {"url": standin.url}, tools=[TOOL], kind=HuggingFaceAPIChatGenerator)
    call = ToolCall("weather", {"city": "Rome"}, "a")
    messages = [
        ChatMessage.from_user(prompt),
        ChatMessage.from_assistant(tool_calls=[call]),
        ChatMessage.from_tool("rain", call),
    ]
    standin.clear()
    chat.run(messages, {"tool_choice": "auto", "top_p": 0.5}, streaming_callback=lambda chunk: None)
    (entry,) = standin.requests()
    body = entry["body"]
    assert body["messages"][0] == {"role": "user", "content": prompt}
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert body["messages"][2] == {"role": "tool", "content": "rain", "tool_call_id": "a"}
    assert body["tools"] == [{"type": "function", "function": {**TOOL.tool_spec}}]
    assert (body["tool_choice"], body["top_p"], body["max_tokens"]) == ("auto", 0.5, 512)


def test_a_tool_is_called_while_it_streams(made, ask):
    prompt, shown = ask(tokens=12, itl_s=0.02, calls_tools=True), []
    chat = made(generator="here", tools=[TOOL], streaming_callback=shown.append, kind=HuggingFaceAPIChatGenerator)
    reply = chat.run(prompt)["replies"][0]
    (call,) = reply.tool_calls
    assert (call.tool_name, reply.text, reply.meta["finish_reason"]) == ("weather", None, "tool_calls")
    pieces = [piece for one in shown for piece in one.tool_calls or ()]
    assert len(pieces) > 3
    assert [piece.tool_name for piece in pieces] == ["weather"] + [None] * (len(pieces) - 1)
    assert json.loads("".join(piece.arguments for piece in pieces)) == call.arguments
    assert [one.finish_reason for one in shown if one.finish_reason] == ["tool_calls"]


def test_a_chats_callback_that_raises_ends_it(made, ask, standin, eventually):
    prompt = ask(tokens=1000, itl_s=0.02)

    def callback(chunk):
        raise KeyboardInterrupt

    standin.clear()
    with pytest.raises(KeyboardInterrupt):
        made(generator="here", kind=HuggingFaceAPIChatGenerator).run(prompt, streaming_callback=callback)
    eventually(lambda: [entry["state"] for entry in standin.requests()] == ["dropped"])


def test_a_chat_component_is_written_down_with_its_tools_and_read_again(made):
    chat = made(generator="here", deadline_s=9.0, tools=[TOOL], stop_words=["stop"], kind=HuggingFaceAPIChatGenerator)
    data = chat.to_dict()
    assert data["type"] == "genqueue.haystack.chat_generator.HuggingFaceAPIChatGenerator"
    assert data["init_parameters"]["generation_kwargs"] == {"stop": ["stop"]}
    again = HuggingFaceAPIChatGenerator.from_dict(data)
    assert again.deadline_s == 9.0
    assert [tool.name for tool in again.tools] == ["weather"]
    assert again.to_dict() == data


def test_a_chat_warms_up_its_tools_once(made, ask):
    tool = WarmTool("weather", "The weather of a city", PARAMETERS, str)
    chat = made(generator="here", tools=[tool], kind=HuggingFaceAPIChatGenerator)
    chat.warm_up()
    chat.run(ask(tokens=2))
    assert tool.warmed == 1
