"""``HuggingFaceAPIChatGenerator``: messages in, a message out, by way of the queue."""

from collections.abc import Mapping
from typing import Any

from haystack import component
from haystack.dataclasses import ChatMessage, ComponentInfo, StreamingCallbackT, select_streaming_callback
from haystack.tools import ToolsType, flatten_tools_or_toolsets, serialize_tools_or_toolset, warm_up_tools
from haystack.utils import Secret

from genqueue.haystack.base import HuggingFaceAPI, with_stop_words
from genqueue.haystack.chat_chunks import ChatChunks
from genqueue.haystack.chat_format import message_from, messages_for, tools_for
from genqueue.haystack.queued import Shown
from genqueue.haystack.target import HFGenerationAPIType
from genqueue.wire.result import GenerationResult


@component
class HuggingFaceAPIChatGenerator(HuggingFaceAPI):
    """Answers chats with a model that a worker of the queue calls.

    Where the queue is, ``GENQUEUE_REDIS_URL`` says (:func:`genqueue.settings.load_settings`).

    Args:
        api_type: ``text_generation_inference``, ``inference_endpoints`` or ``serverless_inference_api``.
        api_params: where the model is: ``url``, or ``model`` and ``provider``.  They choose the worker's
            generator that has the same ones; ``headers`` and ``timeout`` are the worker's own.
        token: kept for ``to_dict``, never sent: the worker has its own (``token_env``).
        generation_kwargs: parameters of ``chat_completion``; ``max_tokens`` is 512 if nobody says otherwise.
        stop_words: added to ``generation_kwargs["stop"]``.
        streaming_callback: called with a :class:`haystack.dataclasses.StreamingChunk` for each piece of the answer.
        tools: what the model may call; with streaming too.
        generator: the name of a worker's generator, instead of ``api_type`` and ``api_params``; its own
            defaults then stand.
        deadline_s: seconds within which a run must end, waiting in the queue included; None is no limit.

    Raises:
        InvalidRequestError: stop words are one string instead of a list.
        ValueError: the arguments name no place, or a place and a generator, or two tools alike.
    """

    def __init__(
        self,
        api_type: HFGenerationAPIType | str | None = None,
        api_params: Mapping[str, Any] | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        generation_kwargs: dict[str, Any] | None = None,
        stop_words: list[str] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        tools: ToolsType | None = None,
        *,
        generator: str | None = None,
        deadline_s: float | None = None,
    ) -> None:
        tools_for(flatten_tools_or_toolsets(tools))
        own = with_stop_words(generation_kwargs, "stop", stop_words)
        if generator is None:
            own.setdefault("max_tokens", 512)
        elif not own["stop"]:
            del own["stop"]
        self._keep(api_type, api_params, token, own, streaming_callback, generator, deadline_s)
        self.tools = tools
        self._tools_are_warm = False

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        generation_kwargs: dict[str, Any] | None = None,
        tools: ToolsType | None = None,
        streaming_callback: StreamingCallbackT | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Queue the messages and wait for the answer.

        Args:
            messages: the chat so far; a string is a user's only message.
            generation_kwargs: win over the constructor's, one by one.
            tools: instead of the constructor's.
            streaming_callback: instead of the constructor's.

        Returns:
            ``replies``, one message, with ``model``, ``index``, ``finish_reason`` (in Haystack's words), ``usage``
            (``prompt_tokens``, ``completion_tokens``) and, of a stream, ``completion_start_time`` in its ``meta``.

        Raises:
            ConfigError: no worker has a generator for this place; says what to add.
            InvalidRequestError: the request cannot run as it is; nothing was queued.
            GenerationExpiredError: ``deadline_s`` passed; carries the partial text.
            GenerationError: how it ended, if not with an answer; carries the partial text.
            StreamRestartedError: what the callback was given is void, another attempt began anew; it goes on, and the
                error leads to its result.
            RedisUnavailableError: within ``redis_timeout_s``.
        """
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        shown = self._shown(callback)
        request = self._request(messages, generation_kwargs, tools)
        result = self._queue.run("submit_chat", request, shown)
        return self._output(result, shown)

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        generation_kwargs: dict[str, Any] | None = None,
        tools: ToolsType | None = None,
        streaming_callback: StreamingCallbackT | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """As :meth:`run`, awaited."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        shown = self._shown(callback)
        request = self._request(messages, generation_kwargs, tools)
        result = await self._queue.run_async("submit_chat", request, shown)
        return self._output(result, shown)

    def _request(
        self, messages: list[ChatMessage] | str, generation_kwargs: dict[str, Any] | None, tools: ToolsType | None
    ) -> dict[str, Any]:
        self._warm_up_tools()
        parameters = {**self.generation_kwargs, **(generation_kwargs or {})}
        return {
            "messages": messages_for(messages),
            "tools": tools_for(flatten_tools_or_toolsets(tools or self.tools)),
            "tool_choice": parameters.pop("tool_choice", None),
            "response_format": parameters.pop("response_format", None),
            "generation_kwargs": parameters,
            "deadline_s": self.deadline_s,
        }

    def _output(self, result: GenerationResult, shown: Shown | None) -> dict[str, list[ChatMessage]]:
        return {"replies": [message_from(result, self._model, None if shown is None else shown.chunks.first_at)]}

    def _chunks(self) -> ChatChunks:
        return ChatChunks(ComponentInfo.from_component(self), self._model)

    def _more(self) -> dict[str, Any]:
        return {"tools": serialize_tools_or_toolset(self.tools)}

    def _warm_up_tools(self) -> None:
        if not self._tools_are_warm:
            warm_up_tools(self.tools)
            self._tools_are_warm = True
