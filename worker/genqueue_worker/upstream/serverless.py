"""What the Hub says of a serverless model: whether it is there, whether we may use it, and for what.

huggingface_hub asks the Hub with blocking calls that have no limit of time: so are these, for
:func:`ask_hub`.  What they find is an :class:`~genqueue_worker.upstream.faults.UpstreamError` in words that name the
model.
"""

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.inference._providers import PROVIDERS, get_provider_helper

from genqueue.errors import ConfigError
from genqueue.settings import ApiParams
from genqueue_worker.upstream.faults import UpstreamError, UpstreamFacts

logger = logging.getLogger(__name__)

PROMPTS, CHATS = "text-generation", "conversational"
"""The Hub's words for what a generator can be asked."""

_PATIENCE_S = 60.0

_NAMES = frozenset(PROVIDERS).union(*PROVIDERS.values())
"""Of providers and tasks, as huggingface_hub knows them."""

_REFUSALS = [
    re.compile(words, re.DOTALL)
    for words in (
        r"Model \S+ is not supported for task \S+ and provider \S+\. Supported task: (?P<hubs>.*)\.",
        r"Model \S+ is not supported by provider \S+\.",
        r"Model '\S+' doesn't support task '\S+'\.",
        r"Model '\S+' doesn't support task '\S+'\. Supported tasks: '(?P<hubs>.*)', got: '\S+'",
        r"Non-conversational image-text-to-text task is not supported\.",
        r"No provider mapping found for model \S+",
        r"Provider '(?P<hubs>.*)' not supported\. Available values: .*",
        r"Task '\S+' not supported for provider '\S+'\. Available tasks: .*",
        r"You must provide an api_key to work with \S+ API or .*",
        r"Cannot select auto-router when using non-Hugging Face API key\.",
    )
]
"""How huggingface_hub refuses a model; ``hubs`` is a word of the Hub's, which may be any."""

T = TypeVar("T")


async def ask_hub(question: Callable[[], T], model: str | None) -> T:
    """The answer to a question about ``model``, asked in a thread that keeps no worker from ending.

    Raises:
        UpstreamError: as the question does, or there is no answer within 60 s.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        answer.set_running_or_notify_cancel()
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    # Not to_thread: before a process ends it waits for the threads of its executors.
    threading.Thread(target=ask, name="genqueue-hub", daemon=True).start()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await asyncio.wrap_future(answer)
    except TimeoutError:
        words = f"Model {model}: the Hub does not answer within {_PATIENCE_S:g} s"
        raise UpstreamError(UpstreamFacts(words, error_type="transport")) from None


def check_provider(name: str, params: ApiParams) -> None:
    """Raise ConfigError for a provider that huggingface_hub does not know; the Hub need not be asked for that."""
    known = ("auto", *PROVIDERS)
    if params.provider is not None and params.provider not in known:
        raise ConfigError(
            f"generators.{name}.api_params.provider: {params.provider!r} is none; known: {', '.join(known)}"
        )


def find_provider(params: ApiParams, token: str | None, task: str) -> str:
    """Let huggingface_hub look up who serves the model for ``task``; once found, it remembers.

    Returns:
        The provider's name.

    Raises:
        UpstreamError: nobody does, or the Hub cannot be asked.
    """
    with _hub_errors(params.model):
        helper = get_provider_helper(params.provider, task=task, model=params.model)  # type: ignore[arg-type]  # a str
        helper.prepare_request(
            inputs="" if task == PROMPTS else [], parameters={}, headers={}, model=params.model, api_key=token
        )
    return str(helper.provider)


async def examine(name: str, params: ApiParams, token: str | None) -> str:
    """Ask the Hub about one generator's model and say in the log what its callers would else find out.

    Returns:
        What is wrong; "" if it can be used, or if the Hub cannot be asked.
    """
    try:
        refused = await ask_hub(lambda: _refusals(params, token), params.model)
    except UpstreamError as error:
        logger.info("generator %r is not checked: %s", name, error.facts.message)
        return ""
    if len(refused) == 2:
        problem = " ".join(dict.fromkeys(refused.values()))
        logger.error("generator %r: %s", name, problem)
        return problem
    if PROMPTS in refused:
        logger.warning("generator %r serves chats only, as most serverless models do: %s", name, refused[PROMPTS])
    return ""


def _refusals(params: ApiParams, token: str | None) -> dict[str, str]:
    """Which of PROMPTS and CHATS the model cannot be asked, and why not."""
    assert params.model is not None
    refused: dict[str, str] = {}
    try:
        with _hub_errors(params.model):
            HfApi().auth_check(params.model, token=token)
    except UpstreamError as error:
        if error.facts.error_type != "validation":
            raise
        return dict.fromkeys((PROMPTS, CHATS), error.facts.message)
    for task in (PROMPTS, CHATS):
        try:
            find_provider(params, token, task)
        except UpstreamError as error:
            if error.facts.error_type != "validation":
                raise
            refused[task] = error.facts.message
    return refused


@contextmanager
def _hub_errors(model: str | None) -> Iterator[None]:
    """What huggingface_hub raises about a model, as UpstreamError."""
    try:
        yield
    except GatedRepoError as error:
        words = f"Model {model} is gated, and the token has no access: ask for it at the model's page on the Hub"
        raise _refused(words) from error
    except RepositoryNotFoundError as error:
        raise _refused(f"Model {model} is not on the Hub, or it is private and the token does not see it") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        words = f"Model {model}: the Hub cannot be asked who serves it: {type(error).__name__}"
        raise UpstreamError(UpstreamFacts(words, error_type="transport")) from error
    except HFValidationError as error:  # our own name of it, which is none
        raise _refused(str(error)) from error
    except Exception as error:
        if isinstance(error, ValueError) and (refusal := _refusal(str(error))):
            raise _refused(refusal) from error
        # Whatever huggingface_hub stumbles over in an answer that is none of the Hub's.
        words = f"Model {model}: what answers in the Hub's place is not the Hub: {type(error).__name__}"
        raise UpstreamError(UpstreamFacts(words, error_type="transport")) from error


def _refusal(words: str) -> str:
    """huggingface_hub's refusal of a model, with no word of the Hub's but a known name; "" of other words."""
    refusal = next((match for shape in _REFUSALS if (match := shape.fullmatch(words))), None)
    if refusal is None:
        return ""
    name = refusal.groupdict().get("hubs")
    if name is None or name in _NAMES:
        return words
    start, end = refusal.span("hubs")
    return f"{words[:start]}an unknown one{words[end:]}"


def _refused(words: str) -> UpstreamError:
    return UpstreamError(UpstreamFacts(words, error_type="validation"))
