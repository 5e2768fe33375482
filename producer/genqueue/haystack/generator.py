"""``HuggingFaceAPIGenerator``: a prompt in, a text out, by way of the queue."""

from collections.abc import Mapping
from typing import Any

from haystack import component, logging
from haystack.dataclasses import ComponentInfo, StreamingCallbackT, select_streaming_callback
from haystack.utils import Secret

from genqueue.haystack.base import HuggingFaceAPI, with_stop_words
from genqueue.haystack.queued import Shown
from genqueue.haystack.target import HFGenerationAPIType
from genqueue.haystack.text_chunks import TextChunks
from genqueue.wire.result import GenerationResult

logger = logging.getLogger(__name__)


@component
class HuggingFaceAPIGenerator(HuggingFaceAPI):
    """Generates text with a model that a worker of the queue calls.

    Where the queue is, ``GENQUEUE_REDIS_URL`` says (:func:`genqueue.settings.load_settings`).

    Args:
        api_type: ``text_generation_inference``, ``inference_endpoints`` or ``serverless_inference_api``.
        api_params: where the model is: ``url``, or ``model`` and ``provider``.  They choose the worker's
            generator that has the same ones; ``headers`` and ``timeout`` are the worker's own.
        token: kept for ``to_dict``, never sent: the worker has its own (``token_env``).
        generation_kwargs: parameters of ``text_generation``; ``max_new_tokens`` is 512 if nobody says otherwise.
        stop_words: added to ``generation_kwargs["stop_sequences"]``.
        streaming_callback: called with a :class:`haystack.dataclasses.StreamingChunk` for each token.
        generator: the name of a worker's generator, instead of ``api_type`` and ``api_params``; its own
            defaults then stand.
        deadline_s: seconds within which a run must end, waiting in the queue included; None is no limit.

    Raises:
        InvalidRequestError: stop words are one string instead of a list.
        ValueError: the arguments name no place, or a place and a generator.
    """

    def __init__(
        self,
        api_type: HFGenerationAPIType | str | None = None,
        api_params: Mapping[str, Any] | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        generation_kwargs: dict[str, Any] | None = None,
        stop_words: list[str] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        *,
        generator: str | None = None,
        deadline_s: float | None = None,
    ) -> None:
        own = with_stop_words(generation_kwargs, "stop_sequences", stop_words)
        if generator is None:
            own.setdefault("max_new_tokens", 512)
        elif not own["stop_sequences"]:
            del own["stop_sequences"]
        self._keep(api_type, api_params, token, own, streaming_callback, generator, deadline_s)
        if self.api_type is HFGenerationAPIType.SERVERLESS_INFERENCE_API:
            logger.warning(
                "Most models of the Serverless Inference API are for chat only; if this one is, use "
                "HuggingFaceAPIChatGenerator."
            )

    @component.output_types(replies=list[str], meta=list[dict[str, Any]])
    def run(
        self,
        prompt: str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Queue ``prompt`` and wait for the reply.

        Args:
            prompt: what the model continues; not empty.
            streaming_callback: instead of the constructor's.
            generation_kwargs: win over the constructor's, one by one.

        Returns:
            ``replies``, one text, and ``meta``, one dictionary: ``model``, ``finish_reason`` (the server's word),
            ``usage`` (``completion_tokens``) and, of a stream, ``completion_start_time``.

        Raises:
            ConfigError: no worker has a generator for this place; says what to add.
            InvalidRequestError: the request cannot run as it is; nothing was queued.
            GenerationExpiredError: ``deadline_s`` passed; carries the partial text.
            GenerationError: how it ended, if not with a reply; carries the partial text.
            StreamRestartedError: what the callback was given is void, another attempt began anew; it goes on, and the
                error leads to its result.
            RedisUnavailableError: within ``redis_timeout_s``.
        """
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        shown = self._shown(callback)
        parameters = {**self.generation_kwargs, **(generation_kwargs or {})}
        result = self._queue.run("submit", self._request(prompt, parameters), shown)
        return self._output(result, shown, prompt, parameters)

    @component.output_types(replies=list[str], meta=list[dict[str, Any]])
    async def run_async(
        self,
        prompt: str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """As :meth:`run`, awaited."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        shown = self._shown(callback)
        parameters = {**self.generation_kwargs, **(generation_kwargs or {})}
        result = await self._queue.run_async("submit", self._request(prompt, parameters), shown)
        return self._output(result, shown, prompt, parameters)

    def _request(self, prompt: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What is submitted; the prompt need not come back to be put before the reply."""
        sent = {name: value for name, value in parameters.items() if name != "return_full_text"}
        return {"prompt": prompt, "generation_kwargs": sent, "deadline_s": self.deadline_s}

    def _output(
        self, result: GenerationResult, shown: Shown | None, prompt: str, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        own_meta = result.meta[0]
        meta = {
            "model": self._model or own_meta["model"],
            "finish_reason": own_meta["finish_reason"],
            "usage": {"completion_tokens": own_meta["usage"]["completion_tokens"]},
        }
        if shown is not None:
            return {"replies": result.replies, "meta": [{**meta, "completion_start_time": shown.chunks.first_at}]}
        prefix = prompt if parameters.get("return_full_text") else ""
        return {"replies": [prefix + text for text in result.replies], "meta": [meta]}

    def _chunks(self) -> TextChunks:
        return TextChunks(ComponentInfo.from_component(self))
