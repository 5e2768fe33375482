"""A generator's configuration turned into calls of ``huggingface_hub``.

What goes on the wire is in the pure functions; :class:`ModelClient` makes the call, on the servers of
:mod:`genqueue_worker.upstream.pool`.  What comes back is read by :mod:`genqueue_worker.upstream.engines.native`,
:mod:`genqueue_worker.upstream.engines.chats` and :mod:`genqueue_worker.upstream.engines.completions`.
"""

import asyncio
import re
from collections.abc import AsyncIterable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from huggingface_hub import AsyncInferenceClient

from genqueue.settings import GeneratorSettings
from genqueue.wire.request import GenerationRequest, Given
from genqueue_worker.observe.metrics import CHAT, TEXT_COMPLETION, CallMeter, GeneratorMeter
from genqueue_worker.resources import lack_of
from genqueue_worker.upstream.endpoint import Endpoint
from genqueue_worker.upstream.engines.chats import ChatReader, chat_parameters
from genqueue_worker.upstream.engines.completions import CompletionAnswer, completion_parameters, more_fields
from genqueue_worker.upstream.engines.native import NativeAnswer
from genqueue_worker.upstream.errors.answers import damage, unreadable
from genqueue_worker.upstream.errors.exceptions import facts_of
from genqueue_worker.upstream.faults import OUTGROWN, UpstreamError, UpstreamFacts, error_class
from genqueue_worker.upstream.fields import GIVEN_UP, integer
from genqueue_worker.upstream.http.exchange import Answered, Exchange, current_exchange, exchanging
from genqueue_worker.upstream.pool import EndpointPool
from genqueue_worker.upstream.serverless import CHATS, PROMPTS, ask_hub, find_provider
from genqueue_worker.upstream.silence import Silence
from genqueue_worker.upstream.sink import Sink, Stopped
from genqueue_worker.upstream.spans import ended, open_call

Answer = NativeAnswer | ChatReader | CompletionAnswer
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
        extra: what else was asked for (``seed``, ``prefill``, ``best_of_sequences``), and ``lost_characters``.
        endpoint: which server it was; None if none was asked.
        stops: the stop sequences that the server was told.
        specials: the texts of special tokens that it streamed.
        lost: how many characters its bytes did not spell.
    """

    generated_text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    endpoint: Endpoint | None = None
    stops: Sequence[str] = ()
    specials: Collection[str] = ()
    lost: int = 0


def call_parameters(generator: GeneratorSettings, request: GenerationRequest) -> dict[str, Any]:
    """The keyword arguments of ``text_generation`` for one request.

    The request's ``generation_kwargs`` win over the generator's; the ``stop_words`` of both
    are added to whichever ``stop`` stands.  ``details`` and ``return_full_text=False`` always
    go out: without them neither usage nor a reply free of the prompt is certain.
    """
    own = generator.generation_kwargs.model_dump(exclude_none=True)
    requested = request.generation_kwargs.model_dump(exclude_none=True)
    if {"stop", "stop_sequences"} & requested.keys():
        own.pop("stop", None)
        own.pop("stop_sequences", None)
    parameters = {"max_new_tokens": _DEFAULT_MAX_NEW_TOKENS, **own, **requested}
    stop = [*parameters.pop("stop", ()), *parameters.pop("stop_sequences", ())]
    stop = list(dict.fromkeys([*stop, *generator.stop_words, *request.stop_words]))
    if stop:
        parameters["stop"] = stop
    return {**parameters, "details": True, "return_full_text": False}


def goes_one_shot(parameters: Mapping[str, Any]) -> bool:
    """Whether the server refuses to stream this (TGI: ``best_of`` above 1, ``decoder_input_details``)."""
    return parameters.get("best_of", 1) > 1 or bool(parameters.get("decoder_input_details"))


def forms_in(generator: GeneratorSettings, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What of a call's parameters holds JSON schemas, by its place; the generator's own grammar stands as it is."""
    forms = {name: parameters[name] for name in ("tools", "response_format") if name in parameters}
    own, grammar = generator.generation_kwargs.grammar, parameters.get("grammar")
    if grammar is None or (own is not None and grammar == own.model_dump()):
        return forms
    return {"generation_kwargs": {"grammar": grammar}, **forms}


def requested_tokens(parameters: Mapping[str, Any]) -> int:
    """How many tokens a call asks for."""
    merged = {**parameters, **parameters.get("extra_body", {})}
    return max(integer(merged.get(name)) or 0 for name in _LIMITS)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One call, as whoever makes it needs it."""

    client: AsyncInferenceClient
    endpoint: Endpoint
    prompt: Any
    parameters: dict[str, Any]
    sink: Sink
    listen: Callable[..., Exchange]


class ModelClient:
    """One generator's ``text_generation`` and ``chat_completion`` calls.

    Args:
        upstream: its servers.
        meter: told what calls take.
        max_reply_bytes: what a reply may have; one event of a server may have a little more.
    """

    def __init__(self, upstream: EndpointPool, meter: GeneratorMeter, max_reply_bytes: int) -> None:
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
        refusal = self.settings.refusal(prompt, parameters.get("extra_body"), forms_in(self.settings, parameters))
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
            operation, route = TEXT_COMPLETION, self._native
            if endpoint.url is None and await self._provider(PROMPTS) != "hf-inference":
                route = self._completion
            elif goes_one_shot(parameters):
                route = self._one_shot
                first_s += parameters["max_new_tokens"] * between_s
        elif endpoint.url is None:
            await self._provider(CHATS)
        silence = Silence(first_s, between_s, meter, endpoint)

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
        with ended(call, _error_type), exchanging():
            into = call.listen(prompt, sink)

            def listened(answer: Answer, **more: Any) -> Exchange:
                exchange = Exchange(
                    answer.take,
                    answer.take_whole,
                    after_read=after_read,
                    most_bytes=self._most_bytes,
                    most_events=_EVENTS_PER_TOKEN * requested_tokens(parameters) + _MORE_EVENTS,
                    traceparent=call.traceparent,
                    **more,
                )
                current_exchange.set(exchange)
                return exchange

            async with silence.limited():
                try:
                    ending = await route(_Ask(client, endpoint, prompt, parameters, into, listened))
                except Stopped:
                    ending = Ending(finish_reason="stop_sequence")
                except MemoryError as error:
                    exchange = current_exchange.get()
                    if exchange is None or not exchange.is_answered:
                        raise
                    raise UpstreamError(UpstreamFacts(lack_of(error), error_type=OUTGROWN)) from error
                except ValueError as error:
                    exchange = current_exchange.get()
                    if exchange is None or not exchange.is_answered:
                        raise  # huggingface_hub refuses to make the call
                    raise RuntimeError("a defect of ours, in what reads an answer") from error
                finally:
                    if streams:
                        listen()
            if ending.finish_reason in GIVEN_UP:
                message = f"the server ended its answer with {ending.finish_reason!r}"
                raise UpstreamError(UpstreamFacts(message, error_type="generation"))
            if (exchange := current_exchange.get()) is not None:
                ending = replace(ending, extra={**ending.extra, **damage(ending.lost, exchange.charset)})
            call.answered(ending.finish_reason, ending.prompt_tokens, ending.completion_tokens, silence.first_s)
        meter.used(ending.prompt_tokens, ending.completion_tokens)
        reason = ending.finish_reason and self.upstream.masked(ending.finish_reason)
        for other in ending.extra.get("best_of_sequences", ()):
            other["finish_reason"] = other["finish_reason"] and self.upstream.masked(other["finish_reason"])
        return replace(ending, endpoint=endpoint, finish_reason=reason)

    async def _provider(self, task: str) -> str:
        """Who serves a serverless model for ``task``; who asks meanwhile shares the question."""
        asking = self._providers.get(task)
        if asking is None or (asking.done() and (asking.cancelled() or asking.exception() is not None)):
            params, token = self.settings.api_params, self.upstream.token
            asking = asyncio.create_task(ask_hub(lambda: find_provider(params, token, task), params.model))
            self._providers[task] = asking
        return await asyncio.shield(asking)

    async def _native(self, ask: _Ask) -> Ending:
        answer = NativeAnswer(ask.sink)
        ask.listen(answer)
        # model= per call, not per client: huggingface_hub remembers trouble by this argument.
        where = ask.endpoint.url or self.settings.api_params.model
        await _through(await ask.client.text_generation(ask.prompt, model=where, stream=True, **ask.parameters))
        return _native_ending(answer, ask.parameters)

    async def _one_shot(self, ask: _Ask) -> Ending:
        answer = NativeAnswer(ask.sink)
        exchange = ask.listen(answer, is_whole=True)
        where = ask.endpoint.url or self.settings.api_params.model
        with suppress(Answered):
            await ask.client.text_generation(ask.prompt, model=where, **ask.parameters)
        prompt_tokens = exchange.headers.get("x-prompt-tokens", "")
        if re.fullmatch("[0-9]{1,15}", prompt_tokens):
            answer.prompt_tokens = int(prompt_tokens)
        return _native_ending(answer, ask.parameters)

    async def _chat(self, ask: _Ask) -> Ending:
        tools = ask.parameters.get("tools", ())
        answer = ChatReader(ask.sink, ask.parameters["max_tokens"], [tool[tool["type"]]["name"] for tool in tools])
        ask.listen(answer)
        # The client's model is where it is, the call's is what the body names; else huggingface_hub names it "dummy",
        # which TGI takes for an adapter.
        params = self.settings.api_params
        ask.client.model = ask.endpoint.url or params.model
        named = params.named_model or "tgi"
        complete: Any = ask.client.chat_completion  # its types leave out what JSON allows
        options = {"stream": True, "stream_options": {"include_usage": True}}
        await _through(await complete(ask.prompt, model=named, **options, **ask.parameters))
        answer.finish()
        ending = _ending(answer, answer.extra)
        if ending.finish_reason not in GIVEN_UP and (lack := answer.lack) is not None:
            raise UpstreamError(lack)
        return ending

    async def _completion(self, ask: _Ask) -> Ending:
        answer = CompletionAnswer(ask.sink)
        ask.listen(answer, more_fields=more_fields(ask.parameters))
        where = self.settings.api_params.model
        parameters = completion_parameters(ask.parameters)
        await _through(await ask.client.text_generation(ask.prompt, model=where, stream=True, **parameters))
        return _ending(answer, {})


async def _through(outputs: AsyncIterable[Any]) -> None:
    """Have a stream read; each event goes to whoever listens, and none comes out here."""
    async for _ in outputs:
        raise AssertionError("an event came through")


def _native_ending(answer: NativeAnswer, parameters: Mapping[str, Any]) -> Ending:
    if not answer.is_complete:
        raise _broke_off(answer.strange)
    return Ending(
        generated_text=answer.generated_text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        extra=answer.extra,
        stops=parameters.get("stop", ()),
        specials=answer.specials,
        lost=answer.lost,
    )


def _ending(answer: ChatReader | CompletionAnswer, extra: dict[str, Any]) -> Ending:
    """The end of a stream whose answer was read here."""
    if not answer.is_complete:
        raise _broke_off(answer.strange)
    return Ending(
        generated_text=None,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.usage.get("prompt_tokens"),
        completion_tokens=answer.usage.get("completion_tokens"),
        extra=extra,
        lost=answer.lost,
    )


def _broke_off(strange: bytes | None) -> UpstreamError:
    """Of an answer without its end; ``strange`` is the event by which it is another dialect's, if one is."""
    if strange is not None:
        return UpstreamError(unreadable("it has no end that we know", strange))
    return UpstreamError(
        UpstreamFacts("the stream ended without its end marker", error_type="incomplete_generation_stream")
    )


def _error_type(error: BaseException) -> str:
    """The class of whatever ended a call; who waits no longer cancels it."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    facts = error.facts if isinstance(error, UpstreamError) else facts_of(error)
    return type(error).__name__ if facts is None else error_class(facts)
