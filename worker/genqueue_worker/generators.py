"""A generator's configuration turned into calls of ``huggingface_hub``.

What goes on the wire and what may come back is in the pure functions; :class:`TextGeneration`
makes the call.  Every error of the client or the server leaves here as
:class:`~genqueue_worker.transport.UpstreamError`.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import (
    GenerationError,
    HfHubHTTPError,
    IncompleteGenerationError,
    InferenceTimeoutError,
    OverloadedError,
    TextGenerationError,
    ValidationError,
)
from pydantic_core import from_json

from genqueue.messages import GenerationRequest, Given, Token
from genqueue.settings import GeneratorSettings
from genqueue_worker.chats import ChatAnswer, chat_parameters, in_stream_error
from genqueue_worker.policy import UpstreamFacts
from genqueue_worker.sink import Sink, Stopped
from genqueue_worker.transport import Exchange, UpstreamError, exchange

_DEFAULT_MAX_NEW_TOKENS = 512
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """What the server said at the end.

    Attributes:
        generated_text: the whole text in the server's words; None if it did not say.
        finish_reason: the server's word.
        prompt_tokens, completion_tokens: as the server counts them; None if it did not say.
        extra: what else was asked for: ``seed``, ``prefill``, ``best_of_sequences``.
    """

    generated_text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    extra: dict[str, Any]


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


def public_address(generator: GeneratorSettings) -> str:
    """Where the generator's model is, fit for results and logs: no credentials, no query."""
    params = generator.api_params
    if params.url is None:
        return params.provider or "auto"
    parts = urlsplit(params.url)
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))


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
    """One generator's ``text_generation`` and ``chat_completion`` calls over the worker's transport.

    Args:
        name: the generator's name.
        settings: its configuration.
        environ: where its token is looked up, under ``settings.token_names``.
    """

    def __init__(self, name: str, settings: GeneratorSettings, environ: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self.settings = settings
        self.address = public_address(settings)
        self.model = settings.api_params.model or self.address
        params = settings.api_params
        token = next((environ[variable] for variable in settings.token_names if environ.get(variable)), None)
        self._token = token
        headers: dict[str, Any] = {key: value.get_secret_value() for key, value in params.headers.items()}
        if token is None and params.url and not any(key.lower() == "authorization" for key in headers):
            # huggingface_hub sends HF_TOKEN, if set, to any address; only this keeps it back.
            headers["authorization"] = None
        self._client_options: dict[str, Any] = {
            "provider": params.provider,
            "token": token,
            "headers": headers,
            "bill_to": params.bill_to,
            "timeout": httpx2.Timeout(params.timeout, connect=_CONNECT_TIMEOUT_S, pool=None),
        }
        self._known_tasks = set() if params.url is None else {"text-generation", "conversational"}

    async def warm_up(self) -> None:
        """Pay for huggingface_hub's lazy imports before a caller has to; makes no call."""
        async with AsyncInferenceClient(**self._client_options) as client:
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

        answer = ChatAnswer(sink)

        def on_data(data: bytes) -> bool:
            return take_token(data, sink)

        async def pause() -> None:
            if sink.is_congested:
                await sink.relief()

        told = Exchange(on_data if isinstance(prompt, str) else answer.take, pause)
        exchange.set(told)
        try:
            task = "text-generation" if isinstance(prompt, str) else "conversational"
            if task not in self._known_tasks:
                await asyncio.to_thread(self._find_provider, task)
                self._known_tasks.add(task)
            async with AsyncInferenceClient(**self._client_options) as client:
                if not isinstance(prompt, str):
                    return await self._chat(client, prompt, parameters, answer)
                if goes_one_shot(parameters):
                    return await self._one_shot(client, prompt, parameters, sink, told)
                return await self._streamed(client, prompt, parameters, sink)
        except Stopped:
            return Ending(None, "stop_sequence", None, None, {})
        except UpstreamError:
            raise
        except (
            TextGenerationError,
            HfHubHTTPError,
            httpx2.HTTPError,
            httpx2.StreamError,
            OSError,
            ValueError,
        ) as error:
            raise UpstreamError(_facts(error)) from error
        except (AttributeError, KeyError, TypeError) as error:  # huggingface_hub takes any JSON for an event
            raise UpstreamError(
                UpstreamFacts("the server's answer is none of TGI's", error_type="generation")
            ) from error

    async def _streamed(
        self, client: AsyncInferenceClient, prompt: str, parameters: dict[str, Any], sink: Sink
    ) -> Ending:
        # model= per call, not per client: huggingface_hub remembers trouble by this argument.
        where = self.settings.api_params.url or self.settings.api_params.model
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
        raise UpstreamError(
            UpstreamFacts("the stream ended without its end marker", error_type="incomplete_generation_stream")
        )

    async def _chat(
        self,
        client: AsyncInferenceClient,
        messages: list[dict[str, Any]],
        parameters: dict[str, Any],
        answer: ChatAnswer,
    ) -> Ending:
        params = self.settings.api_params
        # The client's model is where it is, the call's is what the body names; else huggingface_hub names it "dummy",
        # which TGI takes for an adapter.
        client.model = params.url or params.model
        named = params.model if params.model and "://" not in params.model else "tgi"
        complete: Any = client.chat_completion  # its types leave out what JSON allows
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async for output in await complete(messages, model=named, **options, **parameters):
            answer.read(output)
        if not answer.is_complete:
            raise UpstreamError(
                UpstreamFacts("the stream ended without its end marker", error_type="incomplete_generation_stream")
            )
        return Ending(
            generated_text=None,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.usage.get("prompt_tokens"),
            completion_tokens=answer.usage.get("completion_tokens"),
            extra=answer.extra,
        )

    async def _one_shot(
        self, client: AsyncInferenceClient, prompt: str, parameters: dict[str, Any], sink: Sink, told: Exchange
    ) -> Ending:
        where = self.settings.api_params.url or self.settings.api_params.model
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

    def _find_provider(self, task: str) -> None:
        """Let huggingface_hub look up who serves the model; it asks the Hub with a blocking call and remembers."""
        from huggingface_hub.inference._providers import get_provider_helper

        params = self.settings.api_params
        try:
            helper = get_provider_helper(
                params.provider,  # type: ignore[arg-type]  # a plain string: settings.py has checked it
                task=task,
                model=params.model,
            )
            if task == "conversational":  # any provider will do; whether it has the model is found out here
                helper.prepare_request(inputs=[], parameters={}, headers={}, model=params.model, api_key=self._token)
                return
        except ValueError as error:  # unknown there, or of another kind: no attempt will fix it
            raise UpstreamError(UpstreamFacts(str(error), error_type="validation")) from error
        if helper.provider != "hf-inference":
            facts = UpstreamFacts(
                f"model {params.model!r} is served for text generation by {helper.provider!r} only, "
                "in a dialect that huggingface_hub cannot stream",
                error_type="validation",
            )
            raise UpstreamError(facts)


_TYPE_OF = {
    ValidationError: "validation",
    OverloadedError: "overloaded",
    GenerationError: "generation",
    IncompleteGenerationError: "incomplete_generation",
}


def _facts(error: BaseException) -> UpstreamFacts:
    """The facts of an exception of huggingface_hub or its transport."""
    if isinstance(error, TextGenerationError) and isinstance(error.args[0], dict):  # in the stream of a chat
        return in_stream_error(error.args[0])
    if isinstance(error, TextGenerationError):  # in the stream: HTTP says 200
        return UpstreamFacts(str(error), error_type=_TYPE_OF.get(type(error), "generation"))
    if isinstance(error, InferenceTimeoutError | httpx2.TimeoutException):
        return UpstreamFacts(f"the server fell silent: {type(error).__name__}", error_type="timeout")
    if isinstance(error, json.JSONDecodeError):
        return UpstreamFacts("the stream is no JSON", error_type="generation")
    if isinstance(error, httpx2.HTTPError | OSError):
        return UpstreamFacts(f"the way to the server failed: {error or type(error).__name__}", error_type="transport")
    if isinstance(error, UnicodeError):  # a header of the settings, a byte of the answer: not the caller's
        return UpstreamFacts(f"the call could not be encoded: {type(error).__name__}", error_type="generation")
    return UpstreamFacts(str(error), error_type="validation")  # huggingface_hub refuses to make the call
