"""A generator's configuration turned into calls of ``huggingface_hub``.

What goes on the wire and what may come back is in the pure functions; :class:`TextGeneration`
makes the call, on the servers of :mod:`genqueue_worker.upstream`.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from json import JSONDecodeError
from typing import Any

from huggingface_hub import AsyncInferenceClient
from pydantic_core import from_json, to_json

from genqueue.chat import U64
from genqueue.messages import GenerationRequest, Given
from genqueue.settings import GeneratorSettings
from genqueue_worker.answers import GIVEN_UP, encodable, integer, number, text, token, word
from genqueue_worker.chats import ChatAnswer, chat_parameters
from genqueue_worker.completions import CompletionAnswer, completion_parameters, more_fields
from genqueue_worker.endpoints import Endpoint
from genqueue_worker.metrics import CHAT, TEXT_COMPLETION, CallMeter, GeneratorMeter
from genqueue_worker.policy import UpstreamFacts, error_class
from genqueue_worker.serverless import CHATS, PROMPTS, asked, find_provider
from genqueue_worker.sink import Sink, Stopped
from genqueue_worker.tracing import ended, open_call
from genqueue_worker.transport import Exchange, UpstreamError, exchange
from genqueue_worker.upstream import Silence, Upstream, facts_of, no_answer

_DEFAULT_MAX_NEW_TOKENS = 512
_MORE_BYTES = 1_000_000
"""What one event, or one answer, may have beside a reply of ``max_reply_bytes``."""
_EVENTS_PER_TOKEN = 2
_MORE_EVENTS = 1000
"""An answer has an event for each token that was asked for, rarely two, and a few more."""
_LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict")
"""What engines call it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What the server said at the end.

    Attributes:
        generated_text: the whole text in the server's words; None if it did not say.
        finish_reason: the server's word.
        prompt_tokens, completion_tokens: as the server counts them; None if it did not say.
        extra: what else was asked for: ``seed``, ``prefill``, ``best_of_sequences``.
        endpoint: which server it was; None if none was asked.
    """

    generated_text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    extra: dict[str, Any]
    endpoint: Endpoint | None = None


def call_parameters(generator: GeneratorSettings, request: GenerationRequest) -> dict[str, Any]:
    """The keyword arguments of ``text_generation`` for one request.

    The request's ``generation_kwargs`` win over the generator's; the ``stop_words`` of both
    are added to whichever ``stop`` stands.  ``details`` and ``return_full_text=False`` always
    go out: without them neither usage nor a reply free of the prompt is certain.
    """
    own = generator.generation_kwargs.model_dump(exclude_none=True)
    asked = request.generation_kwargs.model_dump(exclude_none=True)
    if {"stop", "stop_sequences"} & asked.keys():
        own.pop("stop", None)
        own.pop("stop_sequences", None)
    parameters = {"max_new_tokens": _DEFAULT_MAX_NEW_TOKENS, **own, **asked}
    stop = [*parameters.pop("stop", ()), *parameters.pop("stop_sequences", ())]
    stop = list(dict.fromkeys([*stop, *generator.stop_words, *request.stop_words]))
    if stop:
        parameters["stop"] = stop
    return {**parameters, "details": True, "return_full_text": False}


def goes_one_shot(parameters: Mapping[str, Any]) -> bool:
    """Whether the server refuses to stream this (TGI: ``best_of`` above 1, ``decoder_input_details``)."""
    return parameters.get("best_of", 1) > 1 or bool(parameters.get("decoder_input_details"))


def asked_tokens(parameters: Mapping[str, Any]) -> int:
    """How many tokens a call asks for."""
    said = {**parameters, **parameters.get("extra_body", {})}
    return max(integer(said.get(name)) or 0 for name in _LIMITS)


def take_token(data: bytes, sink: Sink) -> bool:
    """Push the token of one native stream event, if that is all the event says.

    Returns:
        False for an error, for the last event and for whatever is no event of TGI's native
        routes: those are huggingface_hub's to judge.
    """
    try:
        event = from_json(data)
        if not isinstance(event, dict) or "error" in event or event.get("generated_text") is not None:
            return False
        said = event["token"]
        read = token(said["id"], said["text"], said.get("logprob"), said["special"])
        top = event.get("top_tokens")
        sink.push(
            read,
            "" if read.special else read.text,
            [token(other["id"], other["text"], other.get("logprob"), other["special"]) for other in top]
            if top
            else None,
        )
    except (ValueError, TypeError, KeyError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Ask:
    """One call, as whoever makes it needs it."""

    client: AsyncInferenceClient
    endpoint: Endpoint
    prompt: Any
    parameters: dict[str, Any]
    sink: Sink
    told: Exchange


class TextGeneration:
    """One generator's ``text_generation`` and ``chat_completion`` calls.

    Args:
        upstream: its servers.
        meter: told what calls take.
        max_reply_bytes: what a reply may have; one event of a server may have a little more.
    """

    def __init__(self, upstream: Upstream, meter: GeneratorMeter, max_reply_bytes: int) -> None:
        self.upstream = upstream
        self._most_bytes = max_reply_bytes + _MORE_BYTES
        self._meter = meter
        self.settings = upstream.settings
        self._providers: dict[str, asyncio.Task[str]] = {}

    async def warm_up(self) -> None:
        """Pay for huggingface_hub's lazy imports before a caller has to; makes no call."""
        async with self.upstream.client() as client:
            await client._get_async_client()

    def parameters(self, request: GenerationRequest) -> dict[str, Any]:
        """What :meth:`run` is called with for ``request``, if nothing was generated yet."""
        if request.messages is not None:
            return chat_parameters(self.settings, request)
        return call_parameters(self.settings, request)

    async def run(self, prompt: Given, parameters: dict[str, Any], sink: Sink) -> Ending:
        """Generate, pushing every token into ``sink`` as it comes; ``prompt`` may be a chat's messages.

        Raises:
            UpstreamError: the settings or the server refused, or it failed, fell silent, gave its answer up, or
                broke off without its end marker.
        """
        refusal = self.settings.refusal(prompt, parameters.get("extra_body"))
        if refusal is not None:
            raise UpstreamError(UpstreamFacts(refusal, error_type="validation"))
        meter = self._meter.call(TEXT_COMPLETION if isinstance(prompt, str) else CHAT)

        async def make(client: AsyncInferenceClient, endpoint: Endpoint) -> Ending:
            return await self._make(client, endpoint, prompt, parameters, sink, meter)

        return await self.upstream.call(make, sink, meter)

    async def _make(
        self,
        client: AsyncInferenceClient,
        endpoint: Endpoint,
        prompt: Given,
        parameters: dict[str, Any],
        sink: Sink,
        meter: CallMeter,
    ) -> Ending:
        """One call, within the limits of its silence, as a span of its own."""
        settings = self.settings
        operation, route = CHAT, self._chat
        first_s, between_s = settings.first_token_s, settings.between_tokens_s
        if isinstance(prompt, str):
            operation, route = TEXT_COMPLETION, self._streamed
            if endpoint.url is None and await self._provider(PROMPTS) != "hf-inference":
                route = self._completed
            elif goes_one_shot(parameters):
                route = self._one_shot
                first_s += parameters["max_new_tokens"] * between_s
        elif endpoint.url is None:
            await self._provider(CHATS)
        silence = Silence(first_s, between_s, meter)

        streams = route != self._one_shot
        heard_tokens = sink.completion_tokens

        def listen() -> None:
            nonlocal heard_tokens
            if sink.completion_tokens != heard_tokens:
                heard_tokens = sink.completion_tokens
                silence.heard()

        async def after_read() -> None:
            listen()
            if sink.is_congested:
                async with silence.paused():
                    await sink.relief()

        call = open_call(operation, endpoint.url, self.upstream.name, settings, parameters, streams=streams)
        with ended(call, _error_type):
            into = call.listen(prompt, sink)
            told = Exchange(
                lambda data: take_token(data, into),
                after_read,
                self._most_bytes,
                _EVENTS_PER_TOKEN * asked_tokens(parameters) + _MORE_EVENTS,
                traceparent=call.traceparent,
            )
            exchange.set(told)
            async with silence.limited():
                try:
                    ending = await route(_Ask(client, endpoint, prompt, parameters, into, told))
                except Stopped:
                    ending = Ending(None, "stop_sequence", None, None, {})
                except (ArithmeticError, RecursionError, ValueError) as error:
                    if isinstance(error, JSONDecodeError) or not told.is_answered:
                        raise
                    raise UpstreamError(no_answer()) from error  # deeper, or a longer number, than Python reads
                finally:
                    if streams:
                        listen()
            if ending.finish_reason in GIVEN_UP:
                message = f"the server ended its answer with {ending.finish_reason!r}"
                raise UpstreamError(UpstreamFacts(message, error_type="generation"))
            call.answered(ending.finish_reason, ending.prompt_tokens, ending.completion_tokens, silence.first_s)
        meter.used(ending.prompt_tokens, ending.completion_tokens)
        return replace(ending, endpoint=endpoint)

    async def _provider(self, task: str) -> str:
        """Who serves a serverless model for ``task``; who asks meanwhile shares the question."""
        asking = self._providers.get(task)
        if asking is None or (asking.done() and (asking.cancelled() or asking.exception() is not None)):
            params, token = self.settings.api_params, self.upstream.token
            asking = asyncio.create_task(asked(lambda: find_provider(params, token, task), params.model))
            self._providers[task] = asking
        return await asyncio.shield(asking)

    async def _streamed(self, ask: _Ask) -> Ending:
        # model= per call, not per client: huggingface_hub remembers trouble by this argument.
        where = ask.endpoint.url or self.settings.api_params.model
        async for output in await ask.client.text_generation(ask.prompt, model=where, stream=True, **ask.parameters):
            # What take_token left over: events of another dialect, and the last one.
            if output.token is not None:
                _push(ask.sink, output.token, output.top_tokens)
            if output.generated_text is not None:  # the native route's only end marker
                ask.sink.close()
                details = output.details
                return Ending(
                    generated_text=text(output.generated_text),
                    finish_reason=word(details.finish_reason) if details else None,
                    prompt_tokens=integer(details.input_length) if details else None,
                    completion_tokens=integer(details.generated_tokens) if details else None,
                    extra=_seed(details),
                )
        raise _broke_off()

    async def _chat(self, ask: _Ask) -> Ending:
        answer = ChatAnswer(ask.sink, ask.parameters["max_tokens"])
        ask.told.on_data = answer.take
        # The client's model is where it is, the call's is what the body names; else huggingface_hub names it "dummy",
        # which TGI takes for an adapter.
        params = self.settings.api_params
        ask.client.model = ask.endpoint.url or params.model
        named = params.named_model or "tgi"
        complete: Any = ask.client.chat_completion  # its types leave out what JSON allows
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async for output in await complete(ask.prompt, model=named, **options, **ask.parameters):
            answer.read(output)
        return _ending(answer, answer.extra)

    async def _completed(self, ask: _Ask) -> Ending:
        answer = CompletionAnswer(ask.sink)
        ask.told.on_data, ask.told.more_fields = answer.take, more_fields(ask.parameters)
        where = self.settings.api_params.model
        async for _ in await ask.client.text_generation(
            ask.prompt, model=where, stream=True, **completion_parameters(ask.parameters)
        ):
            raise UpstreamError(UpstreamFacts("an event is none of OpenAI's completions", error_type="generation"))
        return _ending(answer, {})

    async def _one_shot(self, ask: _Ask) -> Ending:
        where = ask.endpoint.url or self.settings.api_params.model
        output = await ask.client.text_generation(ask.prompt, model=where, **ask.parameters)
        details = output.details
        extra: dict[str, Any] = {}
        if details is not None:
            for each in details.tokens:
                _push(ask.sink, each)
            extra |= _seed(details)
            if details.prefill:
                extra["prefill"] = [
                    [integer(part.id), encodable(text(part.text)), number(part.logprob)] for part in details.prefill
                ]
            if details.best_of_sequences:
                extra["best_of_sequences"] = [
                    {"text": encodable(text(other.generated_text)), "finish_reason": word(other.finish_reason)}
                    for other in details.best_of_sequences
                ]
            ask.sink.keep(len(to_json(extra)))
        prompt_tokens = ask.told.headers.get("x-prompt-tokens", "")
        return Ending(
            generated_text=text(output.generated_text),
            finish_reason=word(details.finish_reason) if details else None,
            prompt_tokens=int(prompt_tokens) if re.fullmatch("[0-9]{1,15}", prompt_tokens) else None,
            completion_tokens=integer(details.generated_tokens) if details else None,
            extra=extra,
        )


def _push(sink: Sink, said: Any, top_tokens: Iterable[Any] | None = None) -> None:
    """Push a token that huggingface_hub has read, of either of its classes."""
    read, *top = [token(each.id, each.text, each.logprob, each.special) for each in (said, *(top_tokens or ()))]
    sink.push(read, "" if read.special else read.text, top or None)


def _seed(details: Any) -> dict[str, Any]:
    seed = integer(details.seed, U64) if details else None
    return {} if seed is None else {"seed": seed}


def _ending(answer: ChatAnswer | CompletionAnswer, extra: dict[str, Any]) -> Ending:
    """The end of a stream whose answer was read here."""
    if not answer.is_complete:
        raise _broke_off()
    return Ending(
        generated_text=None,
        finish_reason=answer.finish_reason,
        prompt_tokens=integer(answer.usage.get("prompt_tokens")),
        completion_tokens=integer(answer.usage.get("completion_tokens")),
        extra=extra,
    )


def _broke_off() -> UpstreamError:
    return UpstreamError(
        UpstreamFacts("the stream ended without its end marker", error_type="incomplete_generation_stream")
    )


def _error_type(error: BaseException) -> str:
    """The class of whatever ended a call; who waits no longer cancels it."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    facts = error.facts if isinstance(error, UpstreamError) else facts_of(error)
    return type(error).__name__ if facts is None else error_class(facts)
