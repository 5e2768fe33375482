"""One generator's servers: how they are called, how long they may be silent, and which are down.

Every error of the client or of a server leaves here as
:class:`~genqueue_worker.upstream.faults.UpstreamError`.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from typing import Any, TypeVar

import httpx2
from huggingface_hub import AsyncInferenceClient, get_async_session

from genqueue.connection.address import without_secrets
from genqueue.settings import GeneratorSettings
from genqueue_worker.observe.metrics import CallMeter
from genqueue_worker.upstream.admission import Admission
from genqueue_worker.upstream.credentials import secrets_among, token_of, without
from genqueue_worker.upstream.endpoint import Endpoint, any_up, choose
from genqueue_worker.upstream.errors.exceptions import facts_of
from genqueue_worker.upstream.errors.unreachable import no_server, words_of
from genqueue_worker.upstream.faults import (
    LACK,
    OF_THE_ADDRESS,
    OUTGROWN,
    Fault,
    UpstreamError,
    UpstreamFacts,
    error_class,
    fault_of,
    shown,
)
from genqueue_worker.upstream.serverless import check_provider, examine
from genqueue_worker.upstream.sink import Sink

logger = logging.getLogger(__name__)
T = TypeVar("T")
_LOOK_EVERY_S = 5.0
"""At servers that nothing is asked of."""
_ROUTE = re.compile(r"/*(/generate(_stream)?|/v1(/chat/completions|/completions)?)?/*$")
"""What an address may end with beside where its server is, which has ``/health``."""
_UNANSWERED = 2
"""So many questions in a row, and a server that runs calls is gone, or frozen."""
_PROBE_EVERY_S = 1.0
_PROBE_TIMEOUT_S = 2.0
NOT_ASKED = 0
"""In place of a status: this host lacks what a question needs, which says nothing of the server."""
_SCALE_UP_S = 600
"""How long a proxy of Inference Endpoints is asked to hold a request while its endpoint wakes."""


class EndpointPool:
    """The servers of one generator, on the engine's loop.

    Raises ConfigError for a token that no request could carry, and a provider that nobody knows.

    Args:
        name: the generator's name.
        settings: its configuration.
        environ: where its token is looked up, under ``settings.token_names``.
        on_change: told when a server goes down, falls asleep or comes back, and when one more call waits for one.
        on_room: told when all servers are full, and when they are no longer.
        backlog: how many generations wait for this generator, those that wait here for room among them.
        may_park: whether one more call may wait for a server that wakes up.

    Attributes:
        parked: calls that wait for that.
        admission: who may make a call.
    """

    def __init__(
        self,
        name: str,
        settings: GeneratorSettings,
        environ: Mapping[str, str],
        on_change: Callable[[], None],
        on_room: Callable[[], None] = lambda: None,
        backlog: Callable[[], int] = lambda: 0,
        may_park: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name = name
        self.settings = settings
        params = settings.api_params
        self.endpoints = [Endpoint(url, without_secrets(url)) for url in params.addresses] or [
            Endpoint(None, params.provider or "auto")
        ]
        token = self.token = token_of(name, settings, environ)
        if not params.addresses:
            check_provider(name, params)
        headers: dict[str, Any] = {key: value.get_secret_value() for key, value in params.headers.items()}
        if token is None and params.addresses and not any(key.lower() == "authorization" for key in headers):
            # huggingface_hub sends HF_TOKEN, if set, to any address; only this keeps it back.
            headers["authorization"] = None
        self.client_options: dict[str, Any] = {
            "provider": params.provider,
            "token": token,
            "headers": headers,
            "bill_to": params.bill_to,
            "timeout": httpx2.Timeout(None, connect=settings.timeouts.connect_s),
        }
        bearer = {} if token is None else {"authorization": f"Bearer {token}"}
        self._secrets = secrets_among([token or "", *(value or "" for value in headers.values())], params.addresses)
        self._probe_headers = bearer | {key: value for key, value in headers.items() if value is not None}
        self.parked = 0
        self.admission = Admission(self.endpoints, backlog, on_room)
        self._on_change = on_change
        self._may_park = may_park
        self._probes: dict[Endpoint, asyncio.Task[int | None]] = {}
        self._wakings: dict[Endpoint, asyncio.Task[None]] = {}
        self._went_down = asyncio.Event()

    @property
    def is_available(self) -> bool:
        """Whether a call could be made now."""
        return not all(endpoint.is_down for endpoint in self.endpoints)

    @property
    def unreached(self) -> str:
        """Why none of them can be reached."""
        return no_server(self.name, ((endpoint.address, endpoint.trouble) for endpoint in self.endpoints))

    @property
    def is_asleep(self) -> bool:
        """Whether a call would have to wait until a server has woken up."""
        return self.is_available and all(endpoint.is_down or endpoint.is_waking for endpoint in self.endpoints)

    def model(self, endpoint: Endpoint) -> str:
        """What results call the model of ``endpoint``."""
        return self.settings.api_params.model or endpoint.address

    def client(self) -> AsyncInferenceClient:
        """A client for one call; closing it leaves the worker's transport open."""
        return AsyncInferenceClient(**self.client_options)

    def masked(self, words: str) -> str:
        """A server's words, ``***`` for what it was sent to let us in."""
        return without(self._secrets, UpstreamFacts(words)).message

    @property
    def can_go_on(self) -> bool:
        """Whether another call could be made at once: somebody is up and need not rest."""
        return any_up(self.endpoints, asyncio.get_running_loop().time())

    @property
    def refuses_not_everywhere(self) -> bool:
        """Whether a server may take what another one refuses from all."""
        return any(not endpoint.refusals for endpoint in self.endpoints)

    async def call(
        self, make: Callable[[AsyncInferenceClient, Endpoint], Awaitable[T]], sink: Sink, meter: CallMeter
    ) -> T:
        """Make one call on the least busy server; on the next one where nothing listens, once it is awake.

        Args:
            make: makes the call.
            sink: told when the server has to wake up.
            meter: told how each call ended.

        Raises:
            UpstreamError: the server refused, failed, fell silent or broke off, or none can be reached.
        """
        loop = asyncio.get_running_loop()
        may_wake = self.settings.api_type == "inference_endpoints"
        while (endpoint := choose(self.endpoints, loop.time())) is not None:
            if endpoint.is_waking:
                sink.waking()
                if not self._may_park():  # back into the queue, which this worker leaves meanwhile
                    raise UpstreamError(UpstreamFacts(f"{endpoint.address} wakes up", status=503, is_down=True))
                await self._until_one_is_awake()
                sink.awake()
                may_wake = False  # awake and still 503 is full
                continue
            began_s, ended_with = loop.time(), "cancelled"
            if not endpoint.room(began_s):  # there was some when the attempt was let in
                raise UpstreamError(UpstreamFacts(f"{endpoint.address} has no room", status=503, is_down=True))
            endpoint.began(began_s)
            try:
                async with self.client() as client:
                    answer = await make(client, endpoint)
                endpoint.took(began_s, loop.time())
                endpoint.succeeded(began_s)
                ended_with = ""
                return answer
            except Exception as error:
                ended_with = type(error).__name__
                facts = error.facts if isinstance(error, UpstreamError) else facts_of(error)
                if facts is None:
                    raise
                facts = await self._told_apart(endpoint, without(self._secrets, facts))
                ended_with = error_class(facts)
                meter.failed(endpoint.address, fault_of(facts), error_class(facts))
                if may_wake and facts.status == 503 and facts.error_type is None:
                    self._wake_up(endpoint)
                    continue
                if facts.was_unreached:
                    endpoint.cause = words_of(error)
                judged = await self._judge(endpoint, facts, began_s)
                if not (judged.was_unreached and judged.is_down and self.is_available):
                    raise UpstreamError(judged) from error
            finally:
                endpoint.running -= 1
                meter.ended(loop.time() - began_s, ended_with)
        raise UpstreamError(UpstreamFacts(self.unreached, error_type="unreached", was_unreached=True, is_down=True))

    async def watch(self) -> None:
        """See what is there, then probe what is down until it is back, for as long as the engine lives."""
        await self._look_after_all()
        if self.settings.api_type == "serverless_inference_api":
            endpoint, params = self.endpoints[0], self.settings.api_params
            endpoint.trouble = await examine(self.name, params, self.token)
            self._on_change()
        loop = asyncio.get_running_loop()
        next_look_s = loop.time() + _LOOK_EVERY_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_look_s):
                    await self._went_down.wait()
            if self._went_down.is_set():
                await asyncio.sleep(_PROBE_EVERY_S)
                await self._probe_the_down()
            if loop.time() >= next_look_s:
                await self._look_after_all()
                next_look_s = loop.time() + _LOOK_EVERY_S

    async def _probe_the_down(self) -> None:
        down = {endpoint: endpoint.cause for endpoint in self.endpoints if endpoint.is_down}
        is_changed = False
        for endpoint, status in zip(down, await asyncio.gather(*map(self._health, down)), strict=True):
            if is_answer(status):
                logger.info("%s: %s is back", self.name, endpoint.address)
                endpoint.came_back()
                is_changed = True
            elif endpoint.cause not in {"", down[endpoint]}:
                endpoint.trouble = _unanswered(endpoint)
                is_changed = True
        if is_changed:
            self._on_change()
        if not any(endpoint.is_down for endpoint in self.endpoints):
            self._went_down.clear()

    async def _told_apart(self, endpoint: Endpoint, facts: UpstreamFacts) -> UpstreamFacts:
        """The facts, and whether a refusal that might be the address's is what was asked's."""
        if facts.status not in OF_THE_ADDRESS:
            return facts
        is_right = endpoint.url is None or (await self._probe(endpoint) or 0) in range(200, 300)
        return replace(facts, is_address_right=is_right)

    async def _judge(self, endpoint: Endpoint, facts: UpstreamFacts, began_s: float) -> UpstreamFacts:
        """Draw the consequences of a failed call for its server; whether it is down is added to the facts."""
        now_s = asyncio.get_running_loop().time()
        trouble = facts.message if facts.was_unreached or facts.error_type in {LACK, OUTGROWN} else shown(facts)
        is_down = False
        if facts.was_unreached and endpoint.url is not None:
            self._down(endpoint, trouble)
        match fault_of(facts):
            case Fault.CAPACITY:
                endpoint.was_full(now_s, facts.retry_after_s, trouble)
            case Fault.SERVER:
                endpoint.failed(now_s, trouble)
                await self._look_after(endpoint)
            case Fault.ENDPOINT:
                since_s = endpoint.refuses_since_s
                is_down = since_s is not None and began_s < since_s
                if not is_down:
                    self._refused(endpoint, now_s, trouble)
            case Fault.REQUEST:
                endpoint.succeeded(began_s)
        model, message = self.settings.api_params.model, facts.message
        if endpoint.url is None and model and model not in message:  # the router does not say which
            message = f"{message} (model {model!r}, provider {endpoint.address!r})"
        return replace(facts, message=message, is_down=is_down or endpoint.is_down)

    def _refused(self, endpoint: Endpoint, now_s: float, trouble: str) -> None:
        refused_before = endpoint.refuses_since_s is not None
        endpoint.refused(now_s, trouble)
        if endpoint.refuses_since_s is not None and not refused_before:
            logger.warning("%s: %s refuses whatever it is asked", self.name, endpoint.address)
            self._on_change()

    async def _look_after_all(self) -> None:
        """Find out which servers are down that no call tells of; what is not self-hosted may cost money to ask."""
        if self.settings.api_type == "text_generation_inference":
            looks = [self._look_after_busy if endpoint.running else self._look_after for endpoint in self.endpoints]
            await asyncio.gather(*(look(endpoint) for look, endpoint in zip(looks, self.endpoints, strict=True)))

    async def _look_after_busy(self, endpoint: Endpoint) -> None:
        """Find out whether a server that runs calls is gone, whose kernel may never say so.

        One that computes may be slow to answer: a token counts as much, and one silence is none.
        """
        if endpoint.url is None or endpoint.is_down or endpoint.is_waking:
            return
        asked_s = asyncio.get_running_loop().time()
        status = await self._probe(endpoint)
        if status == NOT_ASKED:
            return
        if is_answer(status) or endpoint.heard_s >= asked_s:
            endpoint.unanswered = 0
            return
        endpoint.unanswered += 1
        if endpoint.unanswered >= _UNANSWERED:
            self._down(endpoint, endpoint.trouble or f"no token while it runs calls, and {_unanswered(endpoint)}")

    async def _look_after(self, endpoint: Endpoint) -> None:
        """Find out whether a server is down; however many calls it failed, it is asked once."""
        if endpoint.url is None or endpoint.is_down or endpoint.is_waking:
            return
        status = await self._probe(endpoint)
        if status == NOT_ASKED:
            return
        if is_answer(status):
            endpoint.unanswered = 0
        else:
            self._down(endpoint, "; ".join(filter(None, (endpoint.trouble, _unanswered(endpoint)))))

    def _down(self, endpoint: Endpoint, trouble: str) -> None:
        """A server is down; ``trouble`` is not in its words, which may quote a prompt."""
        if endpoint.is_down:
            return
        endpoint.went_down(trouble)
        logger.warning("%s: %s is down: %s", self.name, endpoint.address, trouble)
        self._went_down.set()
        if not self.is_available:
            self.admission.dismiss()
        self._on_change()

    async def _probe(self, endpoint: Endpoint) -> int | None:
        """As :meth:`_health`; who comes while it is asked, or gives up, shares the answer with the others."""
        probe = self._probes.get(endpoint)
        if probe is None:
            # In no call's context: whoever fails first asks for all.
            probe = self._probes[endpoint] = asyncio.create_task(self._health(endpoint), context=Context())
            probe.add_done_callback(lambda _: self._probes.pop(endpoint))
        return await asyncio.shield(probe)

    def _wake_up(self, endpoint: Endpoint) -> None:
        """Have a server that has scaled to zero come back; one question wakes it for all that wait."""
        if endpoint.is_waking:
            return
        endpoint.is_waking = True
        self._wakings[endpoint] = asyncio.create_task(self._wake(endpoint), context=Context())
        self._on_change()

    async def _wake(self, endpoint: Endpoint) -> None:
        logger.info("%s: %s wakes up", self.name, endpoint.address)
        try:
            while not is_answer(await self._health(endpoint, held_s=_SCALE_UP_S)):
                await asyncio.sleep(_PROBE_EVERY_S)
        finally:
            endpoint.is_waking = False
            del self._wakings[endpoint]
        logger.info("%s: %s is awake", self.name, endpoint.address)
        self._on_change()

    async def _until_one_is_awake(self) -> None:
        """Wait until one of the servers has woken up."""
        self.parked += 1
        self._on_change()
        try:
            await asyncio.wait(self._wakings.values(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.parked -= 1
            self._on_change()

    async def _health(self, endpoint: Endpoint, held_s: int = 0) -> int | None:
        """The status that ``/health`` is answered with; None without an answer, NOT_ASKED for want of our own.

        The endpoint's ``cause`` says why it is no answer.

        Args:
            endpoint: whose.
            held_s: how long a proxy may hold the question while the server wakes up.
        """
        assert endpoint.url is not None
        headers = self._probe_headers | ({"x-scale-up-timeout": str(held_s)} if held_s else {})
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S + held_s), get_async_session() as session:
                answer = await session.get(_ROUTE.sub("/health", endpoint.url, count=1), headers=headers)
        except UpstreamError as error:  # any status from 300 on
            if error.facts.error_type == LACK:
                return NOT_ASKED
            status = error.facts.status
            endpoint.cause = "" if is_answer(status) else shown(error.facts) if status is None else f"HTTP {status}"
            return status
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError, ValueError) as error:
            endpoint.cause = words_of(error)
            return None  # the last two: of an address that cannot be asked, which a call will say
        endpoint.cause = ""
        return int(answer.status_code)


def _unanswered(endpoint: Endpoint) -> str:
    """Why a server that was asked for its ``/health`` is down."""
    cause = endpoint.cause
    return f"/health answers with {cause}" if cause.startswith("HTTP ") else f"no answer to /health: {cause}"


def is_answer(status: int | None) -> bool:
    """Whether a server that answered ``/health`` so can be called; one that has no such route can."""
    return status is not None and status != NOT_ASKED and status < 500
