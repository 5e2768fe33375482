"""What both components have in common: where their prompts go, and how they are written down."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Self

from haystack import default_from_dict, default_to_dict
from haystack.dataclasses import StreamingCallbackT
from haystack.tools import deserialize_tools_or_toolset_inplace
from haystack.utils import Secret, deserialize_callable, serialize_callable

from genqueue.errors import InvalidRequestError
from genqueue.haystack.chunks import Chunks
from genqueue.haystack.queued import Queue, Shown
from genqueue.haystack.target import HFGenerationAPIType, Placed, target_of


class HuggingFaceAPI:
    """A component's arguments, kept under their names, and its queue.

    Nothing here is overridden with ``super()``: Haystack's decorator makes another class of a
    component, of which the name in its methods is not one.
    """

    def _keep(
        self,
        api_type: HFGenerationAPIType | str | None,
        api_params: Mapping[str, Any] | None,
        token: Secret | None,
        generation_kwargs: dict[str, Any],
        streaming_callback: StreamingCallbackT | None,
        generator: str | None,
        deadline_s: float | None,
    ) -> None:
        target = target_of(generator, api_type, api_params, token)
        self.api_type = target.api_type if isinstance(target, Placed) else None
        self.api_params = api_params
        self.token = token
        self.generation_kwargs = generation_kwargs
        self.streaming_callback = streaming_callback
        self.generator = generator
        self.deadline_s = deadline_s
        self._model = target.model
        self._queue = Queue(target)

    def to_dict(self) -> dict[str, Any]:
        """Describe the component; its token only as the name of a variable.

        Raises:
            ValueError: the token was given as it is (``Secret.from_token``).
        """
        where: dict[str, Any] = {"generator": self.generator}
        if self.generator is None:
            where = {"api_type": str(self.api_type), "api_params": self.api_params}
        bound = {} if self.deadline_s is None else {"deadline_s": self.deadline_s}
        return default_to_dict(
            self,
            **where,
            **bound,
            **self._more(),
            token=self.token.to_dict() if self.token else None,
            generation_kwargs=self.generation_kwargs,
            streaming_callback=serialize_callable(self.streaming_callback) if self.streaming_callback else None,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that :meth:`to_dict` described."""
        parameters = deepcopy(data.get("init_parameters", {}))  # Haystack reads tools in place
        if parameters.get("streaming_callback"):
            parameters["streaming_callback"] = deserialize_callable(parameters["streaming_callback"])
        if parameters.get("tools"):
            deserialize_tools_or_toolset_inplace(parameters, key="tools")
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def warm_up(self) -> None:
        """Connect, find the worker's generator, and warm up the tools if there are any.

        Raises:
            ConfigError: no worker has one for this place; says what to add.
            UnknownGeneratorError: no worker has one of this name; says which there are.
            RedisUnavailableError: within ``redis_timeout_s``.
        """
        self._warm_up_tools()
        self._queue.warm_up()

    async def warm_up_async(self) -> None:
        """As :meth:`warm_up`; pipelines that are awaited call it on their loop."""
        self._warm_up_tools()
        await self._queue.warm_up_async()

    def close(self) -> None:
        """Close the synchronous connections; they come back with the next run."""
        self._queue.close()

    async def close_async(self) -> None:
        """As :meth:`close`, and close the running loop's that no run uses; its end would close them too."""
        await self._queue.close_async()

    def _shown(self, callback: StreamingCallbackT | None) -> Shown | None:
        """How a run's chunks are shown; None if nobody wants them."""
        return None if callback is None else Shown(self._chunks(), callback)

    def _chunks(self) -> Chunks[Any]:
        """The streaming chunks of one run."""
        raise NotImplementedError

    def _more(self) -> dict[str, Any]:
        """What else :meth:`to_dict` says."""
        return {}

    def _warm_up_tools(self) -> None:
        pass


def with_stop_words(
    generation_kwargs: dict[str, Any] | None, name: str, stop_words: Sequence[str] | None
) -> dict[str, Any]:
    """``generation_kwargs`` with ``stop_words`` behind what they list under ``name``.

    Raises:
        InvalidRequestError: either is one string, of which every letter would be a stop word.
    """
    given = generation_kwargs or {}
    for place, words in ((f"generation_kwargs.{name}", given.get(name)), ("stop_words", stop_words)):
        if not isinstance(words, list | tuple | None):
            raise InvalidRequestError(f"{place}: Input should be a valid list")
    return {**given, name: [*(given.get(name) or ()), *(stop_words or ())]}
