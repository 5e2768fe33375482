"""A real model behind TGI's protocol."""

import asyncio

import aiohttp
import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import ValidationError

from genqueue_ops.standin.llama import LlamaEngine
from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.server import serve

pytestmark = pytest.mark.usefixtures("real_model")

PROMPT = "<|im_start|>user\nWhat's Natural Language Processing?<|im_end|>\n<|im_start|>assistant\n"
MESSAGES = [{"role": "user", "content": "What's Natural Language Processing?"}]


@pytest.fixture
def engine():
    return LlamaEngine(slots=2, context_tokens=512)


@pytest.fixture
async def served(engine):
    limits = Limits(max_input_tokens=511, max_total_tokens=512)
    async with serve(engine=engine, limits=limits, max_batch=2) as served:
        yield served


async def stream(hub, prompt=PROMPT, **parameters):
    outputs = await hub.text_generation(prompt, stream=True, details=True, return_full_text=False, **parameters)
    return [output async for output in outputs]


async def test_it_answers_token_by_token_and_deterministically(served):
    async with AsyncInferenceClient(model=served.url) as hub:
        outputs = await stream(hub, max_new_tokens=24)
        again = await stream(hub, max_new_tokens=24)
    last = outputs[-1]
    assert last.generated_text == "".join(output.token.text for output in outputs) == again[-1].generated_text
    assert "language" in last.generated_text.lower()
    assert (last.details.finish_reason, last.details.generated_tokens, len(outputs)) == ("length", 24, 24)
    assert last.details.input_length == 15
    assert all(output.token.logprob <= 0 and output.token.id >= 0 for output in outputs)


async def test_the_end_token_is_special_and_no_text(served):
    async with AsyncInferenceClient(model=served.url) as hub:
        prompt = "<|im_start|>user\nSay only: yes<|im_end|>\n<|im_start|>assistant\n"
        outputs = await stream(hub, prompt, max_new_tokens=200)
    last = outputs[-1]
    assert last.details.finish_reason == "eos_token"
    assert last.token.special
    assert last.token.text == "<|im_end|>"
    assert last.generated_text == "".join(output.token.text for output in outputs[:-1])


async def test_stop_strings_and_top_tokens(served):
    async with AsyncInferenceClient(model=served.url) as hub:
        output = await hub.text_generation(
            PROMPT, stop=[" is"], max_new_tokens=50, details=True, top_n_tokens=3, return_full_text=False
        )
    assert output.details.finish_reason == "stop_sequence"
    assert output.generated_text.endswith(" is")
    assert [len(step) for step in output.details.top_tokens] == [3] * output.details.generated_tokens


async def test_characters_of_several_tokens_arrive_whole(served):
    async with AsyncInferenceClient(model=served.url) as hub:
        outputs = await stream(hub, "Stars: 🌟🌟🌟🌟🌟🌟", max_new_tokens=12)
    assert outputs[-1].details.generated_tokens == len(outputs) == 12
    assert "�" not in outputs[-1].generated_text


async def test_chat_uses_the_models_template_and_continues(served):
    async with AsyncInferenceClient(base_url=served.url) as hub:
        whole = await hub.chat_completion(MESSAGES, model="tgi", max_tokens=20, temperature=0)
        text = whole.choices[0].message.content
        begun = text[: text.rindex(" ", 0, 60)]
        rest = await hub.chat_completion(
            [*MESSAGES, {"role": "assistant", "content": begun}], model="tgi", max_tokens=12, temperature=0
        )
    assert whole.model == LlamaEngine.model_id
    assert whole.usage.prompt_tokens == 36
    continued = begun + rest.choices[0].message.content
    assert continued.startswith(text) or text.startswith(continued)


async def test_too_long_prompts_are_a_validation_error(served):
    async with AsyncInferenceClient(model=served.url) as hub:
        with pytest.raises(ValidationError, match="must be <= 512"):
            await hub.text_generation("word " * 511, max_new_tokens=1)


async def test_without_a_length_the_text_fills_the_context(engine, served):
    counting = " ".join(str(number) for number in range(1, 140))
    async with AsyncInferenceClient(model=served.url) as hub:
        output = await hub.text_generation(counting, details=True, return_full_text=False)
    assert output.details.finish_reason == "length"
    assert output.details.generated_tokens == 512 - len(await engine.tokenize(counting))


async def test_a_client_that_leaves_frees_the_slot(engine, served):
    async with aiohttp.ClientSession() as http, asyncio.timeout(30):
        body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 400}}
        async with http.post(f"{served.url}/generate_stream", json=body) as response:
            await response.content.readline()
            assert await engine.busy_slots() == 1
        while served.requests()[0]["state"] != "dropped":
            await asyncio.sleep(0.01)
        while await engine.busy_slots():
            await asyncio.sleep(0.01)
