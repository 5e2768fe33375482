"""What a chat request asks of the model."""

import pytest

from genqueue_ops.standin.chat import continue_last, parse_chat, render
from genqueue_ops.standin.protocol import TgiError, is_sampling
from genqueue_ops.standin.serde import Rejection

USER = {"role": "user", "content": "Hi"}


def chat(**fields):
    return parse_chat({"messages": [USER], **fields})


def test_a_chat_samples_unless_its_temperature_is_zero():
    assert is_sampling(chat().parameters)
    assert is_sampling(chat(temperature=1.0).parameters)
    assert not is_sampling(chat(temperature=0.0).parameters)
    assert chat(temperature=0.0).parameters.temperature is None


def test_parameters_get_tgis_names():
    p = chat(
        max_tokens=5, stop=["a"], seed=1, top_logprobs=2, presence_penalty=-0.5, frequency_penalty=0.5, top_p=0.9
    ).parameters
    assert (p.max_new_tokens, p.stop, p.seed, p.top_n_tokens) == (5, ("a",), 1, 2)
    assert (p.repetition_penalty, p.frequency_penalty, p.top_p) == (1.5, 0.5, 0.9)


def test_either_name_of_the_length_is_taken():
    assert chat(max_completion_tokens=7).parameters.max_new_tokens == 7


def test_the_model_is_echoed_unless_it_is_tgi():
    assert chat(model="mine").model == "mine"
    assert chat(model="tgi").model is None


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "Hi"},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": [{"type": "sound"}]}]},
        {"stop": "END"},
        {"stream_options": None},
        {"logit_bias": {"1": 2}},
        {"max_tokens": -1},
    ],
    ids=str,
)
def test_wrong_types_are_rejected(fields):
    with pytest.raises(Rejection) as rejected:
        chat(**fields)
    assert rejected.value.status == 422


def test_grammar_and_tools_exclude_each_other():
    grammar = {"type": "json", "value": {"properties": {}}}
    with pytest.raises(TgiError, match="Tool error: Grammar and tools are mutually exclusive"):
        chat(response_format=grammar, tools=[{"type": "function"}])


def test_content_parts_are_joined_and_images_inlined():
    parts = [{"type": "text", "text": "See "}, {"type": "image_url", "image_url": {"url": "http://h/i.png"}}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages == (
        {"role": "user", "content": "See ![](http://h/i.png)"},
    )


def test_the_template_ends_in_the_assistants_turn():
    assert render([USER]) == "<|user|>\nHi</s>\n<|assistant|>\n"


def test_an_unfinished_assistant_message_is_continued():
    messages = [USER, {"role": "assistant", "content": "Once upon  "}]
    assert render(messages) == "<|user|>\nHi</s>\n<|assistant|>\nOnce upon"
    assert continue_last("rendered otherwise", messages) == "rendered otherwise"
