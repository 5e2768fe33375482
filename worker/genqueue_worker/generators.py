"""A generator's configuration turned into calls of ``huggingface_hub``.

What goes on the wire and what may come back is in the pure functions; :class:`TextGeneration`
makes the call, on the servers of :mod:`genqueue_worker.upstream`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import AsyncInferenceClient
from pydantic_core import from_json

from genqueue.messages import GenerationRequest, Given, Token
from genqueue.settings import GeneratorSettings
from genqueue_worker.chats import ChatAnswer, chat_parameters
from genqueue_worker.completions import CompletionAnswer, completion_parameters, more_fields
from genqueue_worker.endpoints import Endpoint
from genqueue_worker.metrics import CHAT, TEXT_COMPLETION, GeneratorMeter
from genqueue_worker.policy import UpstreamFacts, error_class
from genqueue_worker.serverless import CHATS, PROMPTS, asked, find_provider
from genqueue_worker.sink import Sink, Stopped
from genqueue_worker.tracing import ended, open_call
from genqueue_worker.transport import Exchange, UpstreamError, exchange
from genqueue_worker.upstream import Silence, Upstream, facts_of

_DEFAULT_MAX_NEW_TOKENS = 512


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
        token = event["token"]
        token_id, text, special = token["id"], token["text"], token["special"]
        top = event.get("top_tokens")
        sink.push(
            Token(token_id, text, token.get("logprob"), special),
            "" if special else text,
            [Token(other["id"], other["text"], other.get("logprob"), other["special"]) for other in top]
            if top
            else None,
        )
    except (ValueError, TypeError, KeyError):
        return False
    return True


class TextGeneration:
    """One generator's ``text_generation`` and ``chat_completion`` calls.

    Args:
        upstream: its servers.
        meter: told what calls take.
    """

    def __init__(self, upstream: Upstream, meter: GeneratorMeter) -> None:
        self.upstream = upstream
        self._meter = meter
        self.settings = upstream.settings
        self._providers: dict[str, str] = {}

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
            UpstreamError: the server refused, failed, fell silent, or broke off without its end marker.
        """
        operation = TEXT_COMPLETION if isinstance(prompt, str) else CHAT
        meter = self._meter.call(operation)

        async def make(client: AsyncInferenceClient, endpoint: Endpoint) -> Ending:
            speaks_tgi = endpoint.url is not None or await self._provider(prompt) == "hf-inference"
            between_s = self.settings.between_tokens_s
            is_one_shot = isinstance(prompt, str) and speaks_tgi and goes_one_shot(parameters)
            first_s = self.settings.first_token_s
            if is_one_shot:
                first_s += parameters["max_new_tokens"] * between_s
            silence = Silence(first_s, between_s, meter)

            async def pause() -> None:
                if sink.is_congested:
                    async with silence.paused():
                        await sink.relief()

            model = self.settings.api_params.model
            named = model if model and "://" not in model else None
            call = open_call(operation, named, endpoint.url, self.upstream.name, parameters, streams=not is_one_shot)
            with ended(call, _error_type):
                into = call.listen(prompt, sink)
                told = Exchange(lambda data: take_token(data, into), pause, silence.heard, traceparent=call.traceparent)
                exchange.set(told)
                async with silence.limited():
                    try:
                        if not isinstance(prompt, str):
                            ending = await self._chat(client, endpoint, prompt, parameters, into, told)
                        elif not speaks_tgi:
                            ending = await self._completed(client, prompt, parameters, into, told)
                        elif is_one_shot:
                            ending = await self._one_shot(client, endpoint, prompt, parameters, into, told)
                        else:
                            ending = await self._streamed(client, endpoint, prompt, parameters, into)
                    except Stopped:
                        ending = Ending(None, "stop_sequence", None, None, {})
                call.answered(ending.finish_reason, ending.prompt_tokens, ending.completion_tokens, silence.first_s)
            meter.used(ending.prompt_tokens, ending.completion_tokens)
            return replace(ending, endpoint=endpoint)

        return await self.upstream.call(make, sink, meter)

    async def _provider(self, prompt: Given) -> str:
        """Who serves the model for what is asked of it."""
        task = PROMPTS if isinstance(prompt, str) else CHATS
        if task not in self._providers:
            params, token = self.settings.api_params, self.upstream.token
            self._providers[task] = await asked(lambda: find_provider(params, token, task), params.model)
        return self._providers[task]

    async def _streamed(
        self, client: AsyncInferenceClient, endpoint: Endpoint, prompt: str, parameters: dict[str, Any], sink: Sink
    ) -> Ending:
        # model= per call, not per client: huggingface_hub remembers trouble by this argument.
        where = endpoint.url or self.settings.api_params.model
        async for output in await client.text_generation(prompt, model=where, stream=True, **parameters):
            # What take_token left over: events of another dialect, and the last one.
            token, top = output.token, output.top_tokens
            if token is not None:
                sink.push(
                    Token(token.id, token.text, token.logprob, token.special),
                    "" if token.special else token.text,
                    [Token(other.id, other.text, other.logprob, other.special) for other in top] if top else None,
                )
            if output.generated_text is not None:  # the native route's only end marker
                sink.close()
                details = output.details
                return Ending(
                    generated_text=output.generated_text,
                    finish_reason=details.finish_reason if details else None,
                    prompt_tokens=details.input_length if details else None,
                    completion_tokens=details.generated_tokens if details else None,
                    extra={"seed": details.seed} if details and details.seed is not None else {},
                )
        raise _broke_off()

    async def _chat(
        self,
        client: AsyncInferenceClient,
        endpoint: Endpoint,
        messages: list[dict[str, Any]],
        parameters: dict[str, Any],
        sink: Sink,
        told: Exchange,
    ) -> Ending:
        answer = ChatAnswer(sink)
        told.on_data = answer.take
        # The client's model is where it is, the call's is what the body names; else huggingface_hub names it "dummy",
        # which TGI takes for an adapter.
        model = self.settings.api_params.model
        client.model = endpoint.url or model
        named = model if model and "://" not in model else "tgi"
        complete: Any = client.chat_completion  # its types leave out what JSON allows
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async for output in await complete(messages, model=named, **options, **parameters):
            answer.read(output)
        return _ending(answer, answer.extra)

    async def _completed(
        self, client: AsyncInferenceClient, prompt: str, parameters: dict[str, Any], sink: Sink, told: Exchange
    ) -> Ending:
        answer = CompletionAnswer(sink)
        told.on_data, told.more_fields = answer.take, more_fields(parameters)
        where = self.settings.api_params.model
        async for _ in await client.text_generation(
            prompt, model=where, stream=True, **completion_parameters(parameters)
        ):
            raise UpstreamError(UpstreamFacts("an event is none of OpenAI's completions", error_type="generation"))
        return _ending(answer, {})

    async def _one_shot(
        self,
        client: AsyncInferenceClient,
        endpoint: Endpoint,
        prompt: str,
        parameters: dict[str, Any],
        sink: Sink,
        told: Exchange,
    ) -> Ending:
        where = endpoint.url or self.settings.api_params.model
        output = await client.text_generation(prompt, model=where, **parameters)
        details = output.details
        extra: dict[str, Any] = {}
        if details is not None:
            for token in details.tokens:
                sink.push(
                    Token(token.id, token.text, token.logprob, token.special), "" if token.special else token.text
                )
            if details.seed is not None:
                extra["seed"] = details.seed
            if details.prefill:
                extra["prefill"] = [[part.id, part.text, part.logprob] for part in details.prefill]
            if details.best_of_sequences:
                extra["best_of_sequences"] = [
                    {"text": other.generated_text, "finish_reason": other.finish_reason}
                    for other in details.best_of_sequences
                ]
        prompt_tokens = told.headers.get("x-prompt-tokens", "")
        return Ending(
            generated_text=output.generated_text,
            finish_reason=details.finish_reason if details else None,
            prompt_tokens=int(prompt_tokens) if prompt_tokens.isdecimal() else None,
            completion_tokens=details.generated_tokens if details else None,
            extra=extra,
        )


def _ending(answer: ChatAnswer | CompletionAnswer, extra: dict[str, Any]) -> Ending:
    """The end of a stream whose answer was read here."""
    if not answer.is_complete:
        raise _broke_off()
    return Ending(
        generated_text=None,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.usage.get("prompt_tokens"),
        completion_tokens=answer.usage.get("completion_tokens"),
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
