"""A chat on the wire: what ``chat_completion`` is called with, and what its events say.

Pure but for the sink.  The route is TGI's and that of OpenAI-compatible engines (vLLM, SGLang,
llama.cpp), whose events differ: who names the role when, where thoughts are (``reasoning`` or
``reasoning_content``), whether a tool call has an index, whether the end has a finish_reason
(TGI's has none after a whole tool call).  How the call is made is :mod:`genqueue_worker.generators`'.
"""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ChatCompletionStreamOutput
from pydantic_core import from_json, to_json

from genqueue.messages import GenerationRequest, ToolCallDelta, join_tool_calls
from genqueue.settings import GeneratorSettings
from genqueue_worker.answers import GIVEN_UP, encodable, first_choice, integer, number, text, word
from genqueue_worker.policy import UpstreamFacts
from genqueue_worker.sink import Sink
from genqueue_worker.transport import UpstreamError

_DEFAULT_MAX_TOKENS = 512
_MOST_CALLS = 10_000
_MOST_ERROR_CHARACTERS = 2000


class _AsItIs(dict[str, Any]):
    """An object whose ``type`` huggingface_hub does not see.

    It rewrites OpenAI's ``json_schema`` into a form of TGI's which every other engine takes for
    "any JSON object", and drops the schema's name.
    """

    def get(self, key: str, default: Any = None) -> Any:
        return default if key == "type" else super().get(key, default)


def chat_parameters(generator: GeneratorSettings, request: GenerationRequest) -> dict[str, Any]:
    """The keyword arguments of ``chat_completion`` for one request, its messages aside.

    The request's ``generation_kwargs`` win over the generator's ``chat_kwargs``, of which
    ``extra_body`` is merged; the ``stop_words`` of both are added to whichever ``stop`` stands.
    """
    own = generator.chat_kwargs.model_dump(exclude_none=True)
    asked = request.generation_kwargs.model_dump(exclude_none=True)
    parameters = {"max_tokens": _DEFAULT_MAX_TOKENS, **own, **asked}
    if extra_body := {**own.get("extra_body", {}), **asked.get("extra_body", {})}:
        parameters["extra_body"] = extra_body
    stop = list(dict.fromkeys([*parameters.pop("stop", ()), *generator.stop_words, *request.stop_words]))
    if stop:
        parameters["stop"] = stop
    form = request.model_dump(mode="json", include={"tools", "tool_choice", "response_format"}, exclude_none=True)
    if generator.api_params.addresses and (schema := form.get("response_format", {}).get("json_schema")):
        # Each engine finds its own: TGI the ``value``, the others the ``json_schema``.
        form["response_format"] = _AsItIs(form["response_format"], value=schema)
    return {**parameters, **form}


class ChatAnswer:
    """The answer to one chat as its events come; what each adds goes to ``sink``.

    Attributes:
        finish_reason: the server's word; where it says none, ``tool_calls`` if it calls tools, and ``length`` if
            the limit cut that off.
        usage: as the server counts; {} if it did not say.
        extra: ``tool_calls`` as OpenAI has them, ``reasoning``, ``refusal``, which is text too, and ``logprobs``:
            each only if there is any.
    """

    def __init__(self, sink: Sink, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.usage: Mapping[str, Any] = {}
        self._sink = sink
        self._finish_reason: str | None = None
        self._is_done = False
        self._came = False
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._told: dict[int, tuple[str | None, str | None]] = {}
        self._places: dict[int, int] = {}
        self._logprobs: list[dict[str, Any]] = []

    def take(self, data: bytes) -> bool:
        """Push what one event of the stream adds, if that is all it says.

        Returns:
            False for an error, an end and whatever is no event of a chat: those are huggingface_hub's to judge.
        """
        try:
            event = from_json(data)
        except ValueError:
            self._is_done = self._is_done or data.strip() == b"[DONE]"
            return False
        try:
            choice = first_choice(event["choices"])
            if choice is None or choice.get("finish_reason") or event.get("error") is not None:
                return False
            self._push(choice["delta"], choice.get("logprobs"))
            self.usage = event.get("usage") or self.usage
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        return True

    def read(self, output: ChatCompletionStreamOutput) -> None:
        """Take what :meth:`take` left over and huggingface_hub has parsed."""
        if output.choices is None and output.get("message"):  # an error as vLLM once put it: at the top
            raise UpstreamError(in_stream_error(output))
        self.usage = output.usage or self.usage
        choice = first_choice(output.choices or ())
        if choice is None:
            return
        finish_reason = word(choice.finish_reason)
        is_end = finish_reason is not None
        self._push(choice.delta or {}, choice.logprobs, is_end=is_end and finish_reason not in GIVEN_UP)
        if is_end:
            self._finish_reason = finish_reason
            self._sink.close()

    @property
    def is_complete(self) -> bool:
        """Whether the server said that this is all; a stream that breaks off does not."""
        return self._finish_reason is not None or (self._is_done and (self._came or self._is_cut))

    @property
    def finish_reason(self) -> str | None:
        """See the class."""
        unsaid = "length" if self._is_cut else "tool_calls" if self._calls else None
        return self._finish_reason or unsaid

    @property
    def _is_cut(self) -> bool:
        """Whether all tokens were used up with no word of the end, and no text or whole call came of them."""
        if (integer(self.usage.get("completion_tokens")) or 0) < self._max_tokens:
            return False
        if not self._calls:
            return not self._came
        try:
            from_json(join_tool_calls(self._calls)[-1]["function"]["arguments"])
        except ValueError:
            return True
        return False

    @property
    def extra(self) -> dict[str, Any]:
        """See the class."""
        calls = join_tool_calls(self._calls)
        said = {"reasoning": self._reasoning, "refusal": self._refusal}
        texts = {name: encodable("".join(parts)) for name, parts in said.items()}
        found = {"tool_calls": calls, **texts, "logprobs": self._logprobs}
        return {name: value for name, value in found.items() if value}

    def _push(self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None, *, is_end: bool = False) -> None:
        content = text(delta.get("content"))
        if refusal := text(delta.get("refusal")):  # what OpenAI's models say in place of the content
            self._refusal.append(refusal)
            content += refusal
        reasoning = text(delta.get("reasoning_content") or delta.get("reasoning"))
        calls = delta.get("tool_calls") or ()
        if calls:
            calls = [self._piece(call) for call in ([calls] if isinstance(calls, dict) else calls)]
        if logprobs:
            told = [_logprob(token) for token in logprobs.get("content") or ()]
            self._logprobs += told
            self._sink.keep(len(to_json(told)))
        if content or reasoning or calls:
            self._came = True
            if reasoning:
                self._reasoning.append(reasoning)
            self._sink.push_delta(content, reasoning, calls)
        elif is_end:
            self._sink.push_delta("")

    def _piece(self, call: Mapping[str, Any]) -> ToolCallDelta:
        function = call.get("function") or {}
        index, call_id, name = call.get("index"), word(call.get("id")), word(function.get("name"))
        if index is None:  # one with an id is another call
            index = len(self._told) if call_id or not self._told else max(self._told)
        elif integer(index, _MOST_CALLS) is None:
            raise TypeError("no index of a call")
        else:
            told = self._places.get(index, index)
            if name and call_id and self._told.get(told, (None, None))[0] not in {None, call_id}:
                told = max(self._told) + 1  # some engines give every call the same index
            self._places[index] = told
            index = told
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = to_json(arguments).decode()
        # Some engines name both in every piece: readers are told once.
        known_id, known_name = self._told.get(index, (None, None))
        self._told[index] = known_id or call_id, known_name or name
        piece = ToolCallDelta(index, None if known_id else call_id, None if known_name else name, encodable(arguments))
        self._calls.append(piece)
        return piece


def in_stream_error(error: Mapping[str, Any]) -> UpstreamFacts:
    """The facts of an error object in a stream that HTTP calls a success."""
    return UpstreamFacts(
        message=error_words(error.get("message")),
        status=integer(error.get("code", error.get("http_status_code")), 999),
        error_type=word(error.get("type")),
    )


def error_words(said: object) -> str:
    """A server's own words on what went wrong."""
    return word(said, _MOST_ERROR_CHARACTERS) or "the server reports an error without words"


def _logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    """What every engine says of a token, whatever else one adds."""
    top = [_one_logprob(other) for other in token.get("top_logprobs") or ()]
    return {**_one_logprob(token), "top_logprobs": top}


def _one_logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": encodable(text(token["token"])), "logprob": number(token["logprob"])}
