"""A chat on the wire: what ``chat_completion`` is called with, and what becomes of its answer.

Pure but for the sink.  What one event says is :mod:`genqueue_worker.upstream.engines.chat_events`', which call a piece
of one belongs to :mod:`genqueue_worker.upstream.engines.tool_calls`'.  How the call is made is
:mod:`genqueue_worker.upstream.client`'.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from pydantic_core import to_json

from genqueue.settings import GeneratorSettings
from genqueue.wire.chat import REASONING_FIELD
from genqueue.wire.events import ToolCallDelta
from genqueue.wire.request import GenerationRequest
from genqueue_worker.upstream.engines.chat_events import ChatEvent, plain_text, read_event
from genqueue_worker.upstream.engines.openai_answers import OpenAIAnswer
from genqueue_worker.upstream.engines.tool_calls import ToolCalls, made_up_id
from genqueue_worker.upstream.errors.answers import UNREADABLE, error_in, trouble, unreadable
from genqueue_worker.upstream.faults import UpstreamError, UpstreamFacts
from genqueue_worker.upstream.fields import GIVEN_UP, Halves, counts, encodable, lost
from genqueue_worker.upstream.sink import Sink

_DEFAULT_MAX_TOKENS = 512


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
    requested = request.generation_kwargs.model_dump(exclude_none=True)
    parameters = {"max_tokens": _DEFAULT_MAX_TOKENS, **own, **requested}
    if extra_body := {**own.get("extra_body", {}), **requested.get("extra_body", {})}:
        parameters["extra_body"] = extra_body
    stop = list(dict.fromkeys([*parameters.pop("stop", ()), *generator.stop_words, *request.stop_words]))
    if stop:
        parameters["stop"] = stop
    form = request.model_dump(mode="json", include={"tools", "tool_choice", "response_format"}, exclude_none=True)
    if generator.api_params.addresses and (schema := form.get("response_format", {}).get("json_schema")):
        # Each engine finds its own: TGI the ``value``, the others the ``json_schema``.
        form["response_format"] = _AsItIs(form["response_format"], value=schema)
    return {**parameters, **form}


class ChatReader(OpenAIAnswer):
    """The answer to one chat as its events come, or as a whole; what each adds goes to ``sink``.

    Args:
        sink: takes it.
        max_tokens: how many were asked for.
        offered: names of the tools that the model was told of.
        make_id: makes an id for a tool call.

    Attributes:
        finish_reason: the server's word; where it says none, ``tool_calls`` if it calls tools, and ``length`` if
            the limit cut that off.
        usage: as the server counts, the last of each number; {} if it did not say.
        lost: how many characters of text and thoughts are U+FFFD for readers, since their bytes or halves are none.
        strange: the first event that says something without ``choices``, of an answer that has none at all.
        extra: ``tool_calls`` as OpenAI has them, ``unreadable_tool_calls`` (the places of those whose arguments are
            no JSON object), ``reasoning``, ``reasoning_field`` (the server's word for it, if it is not
            :data:`~genqueue.wire.chat.REASONING_FIELD`), ``refusal``, which is text too, and ``logprobs``: each only if
            there is any.
    """

    def __init__(
        self, sink: Sink, max_tokens: int, offered: Collection[str] = (), make_id: Callable[[], str] = made_up_id
    ) -> None:
        super().__init__(sink, plain_text)
        self._max_tokens = max_tokens
        self.usage: dict[str, int] = {}
        self._finish_reason: str | None = None
        self._is_done = self._is_finished = False
        self._reasoning: list[str] = []
        self._reasoning_field: str | None = None
        self._refusal: list[str] = []
        self._calls = ToolCalls(offered, make_id)
        self._logprobs: list[dict[str, Any]] = []
        self._halves_of_thoughts = Halves()
        self._unread: set[str] = set()
        self._has_choices = False
        self.lost = 0
        self._strange: bytes | None = None

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
    def lack(self) -> UpstreamFacts | None:
        """Why a complete answer is none; None if it is one.

        An end without a text is one, for a model may end at once; not where text may stand where nobody looked.
        """
        if (arguments := self._calls.nameless) is not None and self.finish_reason != "length":
            return unreadable("a tool call has no name", arguments.encode("utf-8", "replace"))
        if self._unread and not self._came and (self.usage.get("completion_tokens") or 2) > 1:
            return unreadable("it has no text that we know", ", ".join(sorted(self._unread)).encode("utf-8", "replace"))
        return None

    @property
    def strange(self) -> bytes | None:
        """See the class."""
        return None if self._came or self._has_choices else self._strange

    @property
    def extra(self) -> dict[str, Any]:
        """See the class."""
        reasoning, refusal = (encodable("".join(parts)) for parts in (self._reasoning, self._refusal))
        values = {
            "tool_calls": self._calls.joined(),
            "unreadable_tool_calls": self._calls.unreadable,
            "reasoning": reasoning,
            "reasoning_field": self._reasoning_field if self._reasoning_field != REASONING_FIELD else None,
            "refusal": refusal,
            "logprobs": self._logprobs,
        }
        return {name: value for name, value in values.items() if value}

    @property
    def _is_cut(self) -> bool:
        """Whether all tokens were used up with no word of the end, and no text or whole call came of them."""
        if self.usage.get("completion_tokens", 0) < self._max_tokens:
            return False
        return self._calls.is_cut if self._calls else not self._came

    def _take(self, event: Any, data: bytes) -> None:
        # Read first, then push: what our own code raises is no fault of the server's.
        try:
            chat_event = error_in(event) or read_event(event)
        except UNREADABLE as wrong:
            raise UpstreamError(unreadable(trouble(wrong), data)) from None
        if isinstance(chat_event, UpstreamFacts):
            raise UpstreamError(chat_event)
        if chat_event.error is not None:
            raise UpstreamError(chat_event.error)
        if chat_event.usage:
            self.usage.update(counts(chat_event.usage))
        if chat_event.unread and not self._came:
            self._unread |= chat_event.unread
            if not (chat_event.is_of_this_answer or self._strange):
                self._strange = data
        self._has_choices = self._has_choices or chat_event.is_of_this_answer
        if chat_event.is_copy and self._came:
            chat_event = ChatEvent(
                chat_event.usage, chat_event.is_of_this_answer, finish_reason=chat_event.finish_reason
            )
        if chat_event.is_of_this_answer:
            self._push(chat_event)

    def _push(self, chat_event: ChatEvent) -> None:
        of_text, of_thoughts = self._halves, self._halves_of_thoughts
        content, reasoning = of_text.take(chat_event.content), of_thoughts.take(chat_event.reasoning)
        pieces = [self._calls.take(piece) for piece in chat_event.pieces]
        reason = chat_event.finish_reason
        ends = reason is not None and reason not in GIVEN_UP and self._finish_reason is None
        if ends or self._finish_reason is not None:
            content, reasoning = content + of_text.rest(), reasoning + of_thoughts.rest()
        if chat_event.reasoning:
            self._reasoning_field = chat_event.reasoning_field
        if chat_event.refusal:
            self._refusal.append(chat_event.refusal)
        if chat_event.logprobs:
            self._logprobs += chat_event.logprobs
            self._sink.keep(len(to_json(chat_event.logprobs)))
        if content or reasoning or pieces:
            self._push_text(content, reasoning, pieces)
        elif ends:
            self._sink.push_delta("")
        if reason is not None:
            self._finish_reason = reason
            self._sink.close()

    def _push_text(self, content: str, reasoning: str, pieces: Sequence[ToolCallDelta]) -> None:
        self._came = True
        if reasoning:
            self._reasoning.append(reasoning)
        if self.is_odd:
            self.lost += lost(content) + lost(reasoning)
        self._sink.push_delta(content, reasoning, pieces)

    def _end(self) -> None:
        # Some servers say no other last word.
        self._is_done = True
        self.finish()

    def finish(self) -> None:
        """Push what waited for the rest of it, now that the stream is at its end: pieces come behind its last word too.

        Of an answer that broke off, or that its server gave up, nothing is; nor is it twice.
        """
        if self._is_finished or not (self._is_done or self.is_complete) or self._finish_reason in GIVEN_UP:
            return
        self._is_finished = True
        content, reasoning = self._halves.rest(), self._halves_of_thoughts.rest()
        last = self._calls.close(is_cut=self.finish_reason == "length")
        if content or reasoning or last:
            self._push_text(content, reasoning, last)
