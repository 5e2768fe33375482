"""Call a Haystack component, the original or ours, in many ways, and print what came back.

    python calls.py original|ours URL

prints one JSON object: for each case its outcome.  The original's environment has no genqueue
(it needs another huggingface_hub), so nothing is imported here but the components.
"""

import asyncio
import importlib
import json
import sys
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

from haystack.components.generators.utils import print_streaming_chunk
from haystack.dataclasses import ChatMessage, ImageContent
from haystack.tools.tool import Tool
from haystack.utils import Secret

TEXT_MODULES = {"original": "haystack.components.generators", "ours": "genqueue.haystack"}
CHAT_MODULES = {"original": "haystack.components.generators.chat", "ours": "genqueue.haystack"}
TIMES = ("completion_start_time", "received_at")


def prompt(words: str, **script: Any) -> str:
    """A prompt that tells the stand-in what to do."""
    return f"{words} {{{{standin {json.dumps(script)}}}}}"


SHORT = prompt("The capital of France is", tokens=6)
ENDS_IN_A_WORD = prompt("The sky is blue because", tokens=6, special=False)
LONG = prompt("Once upon a time", tokens=1000)
EMPTY = prompt("Say nothing", tokens=0)
SPLIT = prompt("Stars", tokens=12, split_characters=True)
CALLING = prompt("What is the weather", tokens=6, calls_tools=True)
SLOW = prompt("Slowly now", tokens=4, itl_s=0.05, special=False)
THINKING = prompt("How many legs has a cat?", tokens=8, special=False, reasoning=3, reasoning_name="reasoning")
SAMPLED: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7, "do_sample": True}
BARE: dict[str, Any] = {"return_full_text": False}


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        init, run: arguments of the constructor and of ``run``; a token and tools are only named in them.
        streams: "" for a call without callback, else who is given one: "init" or "run".
        awaited: whether it is ``run_async``.
    """

    init: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    streams: str = ""
    awaited: bool = False


def _text(text: str, streams: str = "", init: dict[str, Any] | None = None, **kwargs: Any) -> Case:
    return Case(init or {}, {"prompt": text, **({"generation_kwargs": kwargs} if kwargs else {})}, streams)


ENDPOINT = {"api_type": "inference_endpoints", "token": "hf_canaryOfTheCalls"}

TEXT = {
    "ends by itself": _text(SHORT, **BARE),
    "ends in a word": _text(ENDS_IN_A_WORD, **BARE),
    "with the prompt": _text(SHORT, return_full_text=True),
    "max_new_tokens of the constructor": _text(LONG, init={"generation_kwargs": {"max_new_tokens": 4}}, **BARE),
    "max_new_tokens of the run": _text(
        LONG, init={"generation_kwargs": {"max_new_tokens": 4}}, max_new_tokens=7, **BARE
    ),
    "512 tokens if nobody says otherwise": _text(LONG, **BARE),
    "stop words": _text(LONG, init={"stop_words": [" its", "never there"]}, **BARE),
    "stop words beside stop_sequences": _text(
        LONG, init={"stop_words": [" its"], "generation_kwargs": {"stop_sequences": [" café"]}}, **BARE
    ),
    "stop_sequences of the run": _text(LONG, init={"stop_words": [" its"]}, stop_sequences=[" café"], **BARE),
    "sampling": _text(SHORT, **SAMPLED, **BARE),
    "the best of two": _text(LONG, best_of=2, do_sample=True, max_new_tokens=5, **BARE),
    "nothing": _text(EMPTY, **BARE),
    "refused": _text(SHORT, top_p=1.0),
    "out of range": _text(SHORT, temperature=-1.0),
    "no prompt": _text(""),
    "with the prompt, unasked": _text(SHORT),
    "an Inference Endpoint": _text(SHORT, init=ENDPOINT, **BARE),
    "stream, an Inference Endpoint": _text(ENDS_IN_A_WORD, "init", ENDPOINT),
    "stream, to the length": _text(LONG, "init", max_new_tokens=5),
    "stream, callback of the run": _text(LONG, "run", max_new_tokens=5),
    "stream, ends in a word": _text(ENDS_IN_A_WORD, "init"),
    "stream, slow": _text(SLOW, "init"),
    "stream, characters of several tokens": _text(SPLIT, "init", max_new_tokens=9),
    "stream, stop words": _text(LONG, "init", {"stop_words": [" its"]}),
    "stream, sampling": _text(LONG, "init", **SAMPLED, max_new_tokens=5),
    "stream, refused": _text(SHORT, "init", top_p=1.0),
    "stream, with the prompt": _text(LONG, "init", max_new_tokens=5, return_full_text=True),
    "stream, ends with a special token": _text(SHORT, "init"),
    "stream, nothing": _text(EMPTY, "init"),
}
"""Of ``HuggingFaceAPIGenerator``."""

SYSTEM = ["system", "You are brief."]
PICTURE = ["user", SHORT, ImageContent("iVBORw0KGgo=", "image/png", validation=False)]
SO_FAR = [SYSTEM, ["user", "Hello"], ["assistant", "Hi, how can I help?"], ["user", SHORT]]


def _chat(
    messages: Any, streams: str = "", init: dict[str, Any] | None = None, *, awaited: bool = False, **kwargs: Any
) -> Case:
    run = {"messages": messages, **({"generation_kwargs": kwargs} if kwargs else {})}
    return Case(init or {}, run, streams, awaited)


CHAT = {
    "a string": _chat(SHORT),
    "messages": _chat(SO_FAR),
    "to the length": _chat(LONG, init={"generation_kwargs": {"max_tokens": 5}}),
    "512 tokens if nobody says otherwise": _chat(LONG),
    "stop words": _chat(LONG, init={"stop_words": [" hat", " now", " of", "0008"]}),
    "stop of the run": _chat(LONG, init={"stop_words": [" hat"]}, stop=["0004"]),
    "sampling": _chat(SHORT, temperature=0.5, top_p=0.9, seed=7),
    "nothing": _chat(EMPTY),
    "tools that are not used": _chat(SHORT, init={"tools": True}),
    "tools that are called": _chat(CALLING, init={"tools": True}),
    "awaited": _chat(SO_FAR, awaited=True),
    "a picture": _chat([SYSTEM, PICTURE]),
    "thoughts": _chat(THINKING),
    "an Inference Endpoint": _chat(SHORT, init=ENDPOINT),
    "refused": _chat(SHORT, top_p=1.0),
    "out of range": _chat(SHORT, temperature=-1.0),
    "stream, ends with a special token": _chat(SHORT, "init"),
    "stream, ends in a word": _chat(ENDS_IN_A_WORD, "init"),
    "stream, to the length": _chat(LONG, "run", max_tokens=5),
    "stream, slow": _chat(SLOW, "init"),
    "stream, 200 tokens": _chat(LONG, "init", max_tokens=200),
    "stream, stop words": _chat(LONG, "init", {"stop_words": ["0004"]}),
    "stream, nothing": _chat(EMPTY, "init"),
    "stream, a picture": _chat([SYSTEM, PICTURE], "init"),
    "stream, thoughts": _chat(THINKING, "init"),
    "stream, an Inference Endpoint": _chat(ENDS_IN_A_WORD, "init", ENDPOINT),
    "stream, awaited": _chat(SO_FAR, "init", awaited=True),
    "stream, refused": _chat(SHORT, "init", top_p=1.0),
}
"""Of ``HuggingFaceAPIChatGenerator``; a message is its role and its parts."""

WRITTEN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "with arguments": {
        "generation_kwargs": {"temperature": 0.5},
        "stop_words": ["one", "two"],
        "streaming_callback": print_streaming_chunk,
    },
    "an Inference Endpoint": {
        "api_type": "inference_endpoints",
        "api_params": {"url": "https://endpoint", "timeout": 60, "headers": {"x-team": "blue"}},
        "token": Secret.from_env_var("A_TOKEN", strict=False),
    },
}
"""Arguments of components that are written down."""

CONSTRUCTORS: dict[str, dict[str, Any]] = {
    "api_type unknown": {"api_type": "carrier_pigeon", "api_params": {}},
    "no url": {"api_type": "inference_endpoints", "api_params": {"model": "a/model"}},
    "no address": {"api_type": "text_generation_inference", "api_params": {"url": "localhost"}},
    "no model": {"api_type": "serverless_inference_api", "api_params": {"url": "http://localhost"}},
}
"""Arguments that both components refuse."""


def main(which: str, url: str) -> dict[str, Any]:
    """The outcome of every case."""
    text = importlib.import_module(TEXT_MODULES[which]).HuggingFaceAPIGenerator
    chat = importlib.import_module(CHAT_MODULES[which]).HuggingFaceAPIChatGenerator
    outcomes = {}
    for name, case in TEXT.items():
        outcomes[f"text: {name}"] = outcome(text, case, url)
    for name, case in CHAT.items():
        outcomes[f"chat: {name}"] = outcome(chat, case, url)
    for name, arguments in WRITTEN.items():
        outcomes[f"text written: {name}"] = written(text, arguments)
        outcomes[f"chat written: {name}"] = written(chat, arguments)
    outcomes["text written: a token"] = written(text, {"token": Secret.from_token("hf_canaryOfTheCalls")})
    for name, arguments in CONSTRUCTORS.items():
        outcomes[f"text constructor: {name}"] = refusal(text, arguments)
        outcomes[f"chat constructor: {name}"] = refusal(chat, arguments)
    outcomes["chat constructor: tools of one name"] = refusal(chat, {**WHERE, "tools": [tool(), tool()]})
    outcomes["chat constructor: tools and streaming"] = refusal(
        chat, {**WHERE, "tools": [tool()], "streaming_callback": print}
    )
    return outcomes


WHERE = {"api_type": "text_generation_inference", "api_params": {"url": "http://localhost"}}


def tool() -> Any:
    """Something that a model may call."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return Tool("weather", "The weather of a city, now", parameters, str)


def outcome(component: Any, case: Case, url: str) -> dict[str, Any]:
    """What one call gave: ``result`` and ``chunks``, or the ``error``."""
    chunks: list[Any] = []

    async def callback(chunk: Any) -> None:
        chunks.append(chunk)

    run = dict(case.run)
    if isinstance(run.get("messages"), list):
        run["messages"] = [message(*one) for one in run["messages"]]
    given = {"streaming_callback": callback if case.awaited else chunks.append}
    init = {"api_type": "text_generation_inference", "api_params": {"url": url}, **case.init}
    if "tools" in init:
        init["tools"] = [tool()]
    if "token" in init:
        init["token"] = Secret.from_token(init["token"])
    try:
        made = component(**init, **(given if case.streams == "init" else {}))
        arguments = {**run, **(given if case.streams == "run" else {})}
        result = asyncio.run(made.run_async(**arguments)) if case.awaited else made.run(**arguments)
    except Exception as error:
        return {"error": str(error)}
    found = {"result": result}
    if case.streams:
        found["chunks"] = joined([chunk_of(chunk) for chunk in chunks])
    return {name: shown(part, url) for name, part in found.items()}


def message(role: str, *parts: Any) -> ChatMessage:
    """A message of texts and images."""
    if role == "user":
        return ChatMessage.from_user(content_parts=list(parts))
    return ChatMessage.from_dict({"role": role, "content": [{"text": text} for text in parts]})


def joined(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chunks with thoughts that follow each other in one: a queue may have joined them."""
    found: list[dict[str, Any]] = []
    for chunk in chunks:
        if chunk["reasoning"] and found and found[-1]["reasoning"]:
            found[-1]["reasoning"]["reasoning_text"] += chunk["reasoning"]["reasoning_text"]
        else:
            found.append(chunk)
    return found


def written(component: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """A component's ``to_dict``, its type without the module; or why there is none."""
    try:
        data = component(**{**WHERE, **arguments}).to_dict()
    except ValueError as error:
        return {"error": str(error)}
    return {"written": shown({**data, "type": data["type"].rpartition(".")[2]}, "")}


def refusal(component: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a constructor says that does not take its arguments."""
    try:
        component(**arguments)
    except ValueError as error:
        return {"error": str(error)}
    return {}


def chunk_of(chunk: Any) -> dict[str, Any]:
    """A streaming chunk; of its ``component_info`` only the name of the class, which both have."""
    assert chunk.component_info is not None
    return {**asdict(chunk), "component_info": chunk.component_info.type.rpartition(".")[2]}


def shown(value: Any, url: str) -> Any:
    """``value`` as JSON, the same on every day and every port."""
    if isinstance(value, dict):
        return {key: "<time>" if key in TIMES and part else shown(part, url) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [shown(part, url) for part in value]
    if hasattr(value, "to_dict"):
        return shown(value.to_dict(), url)
    return value.replace(url, "<url>") if url and isinstance(value, str) else value


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the original says that it will go
    json.dump(main(*sys.argv[1:]), sys.stdout, ensure_ascii=False)
