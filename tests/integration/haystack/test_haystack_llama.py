"""The chat component and a real model: SmolLM2 on llama.cpp's own server, with a real worker between."""

import re
from pathlib import Path

import pytest
from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.dataclasses import ChatMessage, ToolCall
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.tools.tool import Tool
from huggingface_hub import InferenceClient

from genqueue.haystack import HuggingFaceAPIChatGenerator

from ...support.programs import printed_by

PAGE = (Path(__file__).parents[3] / "docs/haystack.md").read_text(encoding="utf-8")
QUESTION = "What's Natural Language Processing?"
GREEDY = {"temperature": 0.0, "max_tokens": 24}
WEATHER = Tool("weather", "Now", {"type": "object", "properties": {"city": {"type": "string"}}}, lambda city: "rain")


@pytest.fixture(scope="module")
def fleet(fleet_of, llama):
    with fleet_of({"own": {"api_type": "text_generation_inference", "api_params": {"url": llama}}}) as fleet:
        fleet.staff(1)
        yield fleet


@pytest.fixture
def chat(fleet, llama, monkeypatch):
    monkeypatch.setenv("GENQUEUE_REDIS_URL", fleet.producer_url)
    made = HuggingFaceAPIChatGenerator("text_generation_inference", {"url": llama}, generation_kwargs=GREEDY)
    yield made
    made.close()


def test_the_answer_is_the_models_piece_by_piece(chat, llama):
    shown = []
    reply = chat.run(QUESTION, streaming_callback=shown.append)["replies"][0]
    with InferenceClient(base_url=llama) as hub:
        pieces = [
            event.choices[0].delta.content
            for event in hub.chat_completion(
                [{"role": "user", "content": QUESTION}], model="tgi", stream=True, **GREEDY
            )
        ]
    assert [one.content for one in shown[:-2]] == [piece for piece in pieces if piece]
    assert [one.finish_reason for one in shown] == [None] * (len(shown) - 2) + ["length", None]
    assert reply.text == "".join(one.content for one in shown) == chat.run(QUESTION)["replies"][0].text
    assert "language" in reply.text.lower()
    assert (reply.meta["model"], reply.meta["finish_reason"]) == (llama, "length")
    assert reply.meta["usage"]["completion_tokens"] == 24


def test_a_pipeline_answers_from_what_it_retrieved(chat):
    store = InMemoryDocumentStore()
    store.write_documents(
        [Document(content="Rome is the capital of Italy"), Document(content="Paris is the capital of France")]
    )
    template = "{% for document in documents %}{{ document.content }}. {% endfor %}{{ query }}"
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(document_store=store, top_k=1))
    pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user(template)], required_variables="*"))
    pipeline.add_component("llm", chat)
    pipeline.connect("retriever", "prompt.documents")
    pipeline.connect("prompt", "llm.messages")
    query = "What is the capital of France?"
    found = pipeline.run({"retriever": {"query": query}, "prompt": {"query": query}})
    assert "Paris" in found["llm"]["replies"][0].text


def test_the_pages_examples_of_chats_run(fleet, llama):
    """Those of docs/haystack.md; the last one uses documents of an example before."""
    before, _, chats = PAGE.partition("\n## Chat\n")
    documents = before.partition("from haystack import Pipeline\n")[2].partition("generator = ")[0]
    code = "\n".join(
        [
            "from haystack import Pipeline",
            documents,
            *re.findall(r"^```python\n(.*?)^```$", chats, re.DOTALL | re.MULTILINE),
        ]
    ).replace("http://localhost:8080", llama)
    printed = printed_by(code, fleet.producer_url)
    # The model draws lots, so what it says is its own; but each of the three said something.
    assert re.fullmatch(r"\S.*'completion_tokens': [1-9]\d*}}\n\[ASSISTANT\]\n\S.*\n\S.*", printed, re.DOTALL)
    assert not printed.endswith("\nNone\n")


def test_tools_that_are_not_used_leave_a_text(chat):
    """This server's template knows no tools."""
    shown = []
    reply = chat.run(QUESTION, tools=[WEATHER], streaming_callback=shown.append)["replies"][0]
    assert reply.tool_calls == []
    assert reply.text == "".join(one.content for one in shown)
    assert "language" in reply.text.lower()


def test_a_tools_answer_is_taken(chat):
    call = ToolCall("weather", {"city": "Paris"})
    messages = [
        ChatMessage.from_user("What is the weather in Paris?"),
        ChatMessage.from_assistant(tool_calls=[call]),
        ChatMessage.from_tool("It rains.", call),
    ]
    assert chat.run(messages, tools=[WEATHER])["replies"][0].meta["usage"]["completion_tokens"] > 0


def test_who_leaves_frees_the_slot(chat, busy_slots, eventually):
    seen = []

    def callback(chunk):
        seen.append(busy_slots())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.run("Tell me a long story.", {"max_tokens": 400}, streaming_callback=callback)
    assert seen == [1]
    eventually(lambda: busy_slots() == 0)
