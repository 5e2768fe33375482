"""TGI's routes: HTTP requests in, an engine's tokens out.

What is refused and how is ``protocol.py``'s decision, the bytes are ``wire.py``'s, the
model is the engine's.  This module holds connections, permits, the batch and the clock.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from genqueue_ops.standin import journal, prose, wire
from genqueue_ops.standin.answers import Answer, ChatAnswer, NativeAnswer, Run, Timings
from genqueue_ops.standin.chat import parse_chat
from genqueue_ops.standin.decoding import Decoded
from genqueue_ops.standin.engine import Engine, EngineError, Job, Step
from genqueue_ops.standin.http import (
    COMPUTE_TYPE,
    allow_any_origin,
    body_of,
    empty_errors,
    json_response,
    timing_headers,
)
from genqueue_ops.standin.lines import Cut, Line, abort, break_off, fail_before_headers, play
from genqueue_ops.standin.metrics import Metrics
from genqueue_ops.standin.protocol import (
    GenerateRequest,
    Limits,
    TgiError,
    check_best_of,
    check_streamable,
    generation_failed,
    overloaded,
    parse_body,
    parse_generate,
    validate,
)
from genqueue_ops.standin.script import DirectiveError, Fault, Script, changed, choose_fault, directed, quoting
from genqueue_ops.standin.serde import Rejection

VERSION = "3.3.6-dev0"
CHAT_PATH = "/v1/chat/completions"

_SSE_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
    "x-compute-type": COMPUTE_TYPE,
}
_METRIC_OF = {"incomplete_generation": "incomplete", "template_error": "template"}


class Standin:
    """The server's state and its routes.

    Args:
        engine: the model, started.
        script: pace and faults to begin with.
        limits: the router's.
        max_batch: sequences that run at once; others that have a permit wait their turn.
        api_key: if given, POST routes want ``Authorization: Bearer <key>``.
        keep_alive_s: silence after which a stream gets a comment.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        script: Script,
        limits: Limits,
        max_batch: int,
        api_key: str | None = None,
        keep_alive_s: float = 15.0,
    ) -> None:
        self.script = script
        self.journal = journal.Journal()
        self.metrics = Metrics()
        self._engine = engine
        self._limits = limits
        self._max_batch = max_batch
        self._batch = asyncio.Semaphore(max_batch)
        self._batch_size = 0
        self._permits = 0
        self._api_key = api_key
        self._keep_alive_s = keep_alive_s
        self._fired: Counter[str] = Counter()
        self._awake_at_s: float | None = None

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=self._limits.payload_limit_bytes, middlewares=[empty_errors])
        app.on_response_prepare.append(allow_any_origin)
        app.router.add_post("/", self._post)
        app.router.add_post("/generate", self._post)
        app.router.add_post("/generate_stream", self._post)
        app.router.add_post(CHAT_PATH, self._post)
        for path in ("/", "/health", "/ping"):
            app.router.add_get(path, self._health)
        app.router.add_get("/info", self._info)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/standin/script", self._get_script)
        app.router.add_put("/standin/script", self._put_script)
        app.router.add_get("/standin/requests", self._get_requests)
        app.router.add_delete("/standin/requests", self._delete_requests)
        return app

    # -- generation -------------------------------------------------------------------------

    async def _post(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        entry = self.journal.open(request.path, headers, time.time())
        try:
            return await self._answer(request, entry)
        except Rejection as rejection:
            entry.state = "failed"
            return web.Response(status=rejection.status, text=rejection.text)
        except (TgiError, EngineError) as failure:
            error = generation_failed(str(failure)) if isinstance(failure, EngineError) else failure
            self._count_failure(error, entry)
            body = wire.error_body(error.message, error.error_type)
            return web.Response(status=error.status, body=body, content_type="application/json")
        except Cut as cut:
            entry.state = "failed"
            await abort(request, reset=cut.fault.kind == "reset")
            return web.Response()
        except asyncio.CancelledError:
            if entry.state == "running":
                entry.state = "dropped"
                self.metrics.failures["dropped"] += 1
            raise
        finally:
            if entry.state == "running":  # a fault of the stand-in's own
                entry.state = "failed"
            entry.closed_at_s = time.time()

    async def _answer(self, request: web.Request, entry: journal.Entry) -> web.StreamResponse:
        received_s = asyncio.get_running_loop().time()
        if self._api_key is not None:
            given = request.headers.get("authorization", "")
            if given.lower() != f"bearer {self._api_key}".lower():
                entry.state = "failed"
                return web.Response(status=401)
        if await self._is_asleep(request):
            entry.state, entry.fault = "failed", "asleep"
            return web.Response(status=503)
        payload = parse_body(await body_of(request, entry), request.headers.get("content-type", ""))
        entry.body = payload
        try:
            generate, answer, script = await self._understand(request.path, payload)
        except DirectiveError as error:
            raise Rejection(400, str(error)) from error
        streams = generate.stream if request.path in ("/", CHAT_PATH) else request.path == "/generate_stream"
        fault = self._fault_for(script, generate.inputs)
        if fault is not None:
            entry.fault = fault.kind
            if fault.quotes:
                fault = quoting(fault, payload, entry.headers)
            early = await fail_before_headers(request, entry, fault)
            if early is not None:
                return early
        if script.by_header is not None:
            generate = replace(generate, inputs=prose.variant(generate.inputs, entry.headers.get(script.by_header, "")))
        work = Work(generate, answer, script, fault, Timings(received_s), entry)
        return await (self._stream(request, work) if streams else self._complete(work))

    async def _understand(self, path: str, payload: Any) -> tuple[GenerateRequest, Answer, Script]:
        if path != CHAT_PATH:
            generate = parse_generate(payload)
            return generate, NativeAnswer(generate, compat=path == "/"), directed(self.script, generate.inputs)
        chat = parse_chat(payload)
        if not chat.messages:
            raise TgiError(422, "Template error: invalid operation: no messages", "template_error")
        generate = chat.generate_request(await self._engine.render_chat(chat.messages))
        script = directed(self.script, generate.inputs)
        model = chat.model or self._engine.model_id
        return generate, ChatAnswer(chat, model, f"{VERSION}-native", int(time.time()), script), script

    def _fault_for(self, script: Script, prompt: str) -> Fault | None:
        chosen = choose_fault(script, self._fired, prose.tag_of(prompt)) if script.faults else None
        if chosen is None:
            return None
        fault, key = chosen
        self._fired[key] += 1
        return fault

    @asynccontextmanager
    async def _running(self, work: "Work", candidate: int = 0) -> AsyncIterator[tuple[Run, AsyncIterator[Step]]]:
        """Permit, validation, a place in the batch; gives all back however the block ends."""
        clock = asyncio.get_running_loop().time
        timings, request = work.timings, work.generate
        self.metrics.requests += 1
        if self._permits >= self._limits.max_concurrent_requests:
            raise overloaded()
        self._permits += 1
        try:
            pieces = await self._engine.tokenize(request.inputs)
            texts = [piece.text for piece in pieces]
            valid = validate(request, texts, limits=self._limits, drawn_seed=random.getrandbits(64))
            timings.validated_s = clock()
            p = request.parameters
            shown = p.decoder_input_details and self._limits.prefill_logprobs
            run = Run(
                valid, pieces[-valid.input_tokens :] if shown else [], timings, Decoded(valid.max_new_tokens, p.stop)
            )
            job = Job(
                prompt=valid.prompt,
                max_new_tokens=valid.max_new_tokens,
                script=work.script,
                sampling=valid.sampling,
                seed=valid.seed,
                top_n_tokens=p.top_n_tokens or 0,
                candidate=candidate,
            )
            async with self._batch:
                self._batch_size += 1
                try:
                    timings.started_s = clock()
                    async with aclosing(self._engine.generate(job)) as steps:
                        yield run, steps
                except EngineError as error:
                    raise generation_failed(str(error)) from error
                finally:
                    self._batch_size -= 1
                    timings.ended_s = clock()
        finally:
            self._permits -= 1

    async def _stream(self, request: web.Request, work: "Work") -> web.StreamResponse:
        response = web.StreamResponse(headers={**_SSE_HEADERS, "x-compute-characters": str(len(work.generate.inputs))})
        response.enable_chunked_encoding()
        await response.prepare(request)
        line, entry, answer = Line(request, self._keep_alive_s), work.entry, work.answer
        try:
            check_streamable(work.generate.parameters)
            async with self._running(work) as (run, steps):
                await self._send_steps(run, steps, line, work)
            line.send(answer.end())
            entry.state = "completed"
            self._count_success(run)
        except TgiError as error:
            self._count_failure(error, entry)
            line.send(answer.error_event(error))
            line.send(answer.end())
        except Cut as cut:
            entry.state = "failed"
            if cut.fault.kind in ("close", "reset"):
                await abort(request, reset=cut.fault.kind == "reset")
        finally:
            line.close()
        await response.write_eof()
        return response

    async def _send_steps(self, run: Run, steps: AsyncIterator[Step], line: Line, work: "Work") -> None:
        decoded, entry, fault, event = run.decoded, work.entry, work.fault, work.answer.event
        fault_at = -1 if fault is None else fault.after_tokens
        if fault is not None and fault_at == 0:
            await play(fault, line)
        async for step in steps:
            finished = decoded.push(step)
            if fault is not None and fault_at == entry.tokens_sent and fault.kind in ("garbage", "half"):
                break_off(fault, line, event(run, step))
            elif line.drips:
                await line.drip(event(run, step))
            else:
                line.send(event(run, step))
            entry.tokens_sent += 1
            if entry.first_token_at_s is None:
                entry.first_token_at_s = time.time()
            if finished:
                return
            if fault is not None and entry.tokens_sent == fault_at:
                await play(fault, line)
        raise TgiError(500, "Incomplete generation stream", "incomplete_generation_stream")

    async def _complete(self, work: "Work") -> web.Response:
        entry = work.entry
        best_of = work.generate.parameters.best_of or 1
        check_best_of(best_of, self._limits)
        if best_of == 1:
            runs = [await self._decode(work, 0)]
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._decode(work, place)) for place in range(best_of)]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            runs = [task.result() for task in tasks]
        runs.sort(key=lambda run: -run.decoded.logprob)
        best, *others = runs
        for run in runs:
            self._count_success(run)
        entry.tokens_sent = len(best.decoded.tokens)
        entry.state = "completed"
        return web.Response(
            body=work.answer.body(best, others),
            content_type="application/json",
            headers=timing_headers(best, len(work.generate.inputs)),
        )

    async def _decode(self, work: "Work", candidate: int) -> Run:
        fault = work.fault
        async with self._running(work, candidate) as (run, steps):
            decoded = run.decoded
            if fault is not None and fault.after_tokens == 0:
                await play(fault, None)
            async for step in steps:
                if decoded.push(step):
                    return run
                if fault is not None and len(decoded.tokens) == fault.after_tokens:
                    await play(fault, None)
        raise TgiError(500, "Incomplete generation", "incomplete_generation")

    def _count_failure(self, error: TgiError, entry: journal.Entry) -> None:
        entry.state = "failed"
        self.metrics.failures[_METRIC_OF.get(error.error_type, error.error_type)] += 1

    def _count_success(self, run: Run) -> None:
        timings, tokens = run.timings, len(run.decoded.tokens)
        metrics = self.metrics
        metrics.successes += 1
        durations_s = metrics.durations_s
        durations_s["tgi_request_duration"].observe(timings.ended_s - timings.received_s)
        durations_s["tgi_request_validation_duration"].observe(timings.validated_s - timings.received_s)
        durations_s["tgi_request_queue_duration"].observe(timings.started_s - timings.validated_s)
        inference_s = timings.ended_s - timings.started_s
        durations_s["tgi_request_inference_duration"].observe(inference_s)
        durations_s["tgi_request_mean_time_per_token_duration"].observe(inference_s / tokens)
        metrics.counts["tgi_request_generated_tokens"].observe(tokens)
        metrics.counts["tgi_request_input_length"].observe(run.valid.input_tokens)
        metrics.counts["tgi_request_max_new_tokens"].observe(run.valid.max_new_tokens)

    # -- what a client or a load balancer asks ----------------------------------------------

    async def _is_asleep(self, request: web.Request) -> bool:
        """Begin to wake up, if told to be asleep; held for as long as the caller wants."""
        if self.script.asleep_s is None:
            return False
        now_s = asyncio.get_running_loop().time()
        if self._awake_at_s is None:
            self._awake_at_s = now_s + self.script.asleep_s
        left_s, held_s = self._awake_at_s - now_s, float(request.headers.get("x-scale-up-timeout", 0))
        await asyncio.sleep(max(0.0, min(left_s, held_s)))
        return left_s > held_s

    async def _health(self, request: web.Request) -> web.Response:
        if await self._is_asleep(request):
            return web.Response(status=503)
        if self.script.healthy:
            return web.Response()
        body = wire.error_body("unhealthy", "healthcheck")
        return web.Response(status=503, body=body, content_type="application/json")

    async def _info(self, _: web.Request) -> web.Response:
        limits = self._limits
        return json_response(
            {
                "model_id": self._engine.model_id,
                "model_sha": None,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": limits.max_concurrent_requests,
                "max_best_of": limits.max_best_of,
                "max_stop_sequences": limits.max_stop_sequences,
                "max_input_tokens": limits.max_input_tokens,
                "max_total_tokens": limits.max_total_tokens,
                "validation_workers": 2,
                "max_client_batch_size": 4,
                "router": "text-generation-router",
                "version": VERSION,
                "sha": None,
                "docker_label": None,
            }
        )

    async def _models(self, _: web.Request) -> web.Response:
        model_id = self._engine.model_id
        model = {"id": model_id, "object": "model", "created": 0, "owned_by": model_id}
        return json_response({"object": "list", "data": [model]})

    async def _metrics(self, _: web.Request) -> web.Response:
        gauges = {
            "tgi_queue_size": self._permits - self._batch_size,
            "tgi_batch_current_size": self._batch_size,
            "tgi_batch_current_max_tokens": self._batch_size * self._limits.max_total_tokens,
            "tgi_batch_max_total_tokens": self._max_batch * self._limits.max_total_tokens,
        }
        return web.Response(text=self.metrics.render(gauges))

    # -- the stand-in's own routes ----------------------------------------------------------

    async def _get_script(self, _: web.Request) -> web.Response:
        return json_response(self.script.model_dump(mode="json"))

    async def _put_script(self, request: web.Request) -> web.Response:
        try:
            update = await request.json()
            if not isinstance(update, dict):
                raise DirectiveError("expected a JSON object")
            self.script = changed(self.script, update)
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        if "faults" in update and any(fault.times is not None for fault in self.script.faults):
            self._fired.clear()  # what is counted begins anew; of faults that are not, prompts keep their own counts
        if "asleep_s" in update:
            self._awake_at_s = None
        return json_response(self.script.model_dump(mode="json"))

    async def _get_requests(self, _: web.Request) -> web.Response:
        return json_response(self.journal.entries())

    async def _delete_requests(self, _: web.Request) -> web.Response:
        self.journal.clear()
        return web.Response(status=204)


@dataclass(frozen=True, slots=True)
class Work:
    """A request that has been understood, and how to answer it."""

    generate: GenerateRequest
    answer: Answer
    script: Script
    fault: Fault | None
    timings: Timings
    entry: journal.Entry
