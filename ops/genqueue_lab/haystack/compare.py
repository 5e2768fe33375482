"""Whether a user of Haystack sees a difference: ``make compare-haystack``.

Makes the calls of :mod:`genqueue_lab.haystack.calls` with the original components, in a throw-away
environment with the last versions under which they run, and with ours, against the same
stand-in, and holds the outcomes side by side.  Needs a package index.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Annotated, Any

import typer

from genqueue.cli import output
from genqueue_lab.haystack.calls import SHORT
from genqueue_ops.local_redis import local_redis
from genqueue_ops.processes import started

ORIGINAL = ("haystack-ai==2.31.0", "huggingface_hub==1.0.1")
_CALLS = Path(__file__).with_name("calls.py")

Outcome = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """One case.

    Attributes:
        why: where ours is not meant to be the same, what the original gets wrong.
        expected: the original's outcome, put right.
        ours: our outcome.
    """

    case: str
    why: str
    expected: Outcome
    ours: Outcome

    @property
    def is_right(self) -> bool:
        """Whether ours is what it should be."""
        return self.ours == self.expected


def compare(original: Mapping[str, Outcome], ours: Mapping[str, Outcome]) -> list[Compared]:
    """Every case of either side; a case that one side lacks is an empty outcome there."""
    compared = []
    for case in {**original, **ours}:
        expected, why = deepcopy(original.get(case, {})), ""
        kind = "chat: stream" if case.startswith("chat: stream") and "error" not in expected else case
        if kind in _PUT_RIGHT:
            why, put_right = _PUT_RIGHT[kind]
            expected = put_right(expected)
        compared.append(Compared(case, why, expected, ours.get(case, {})))
    return compared


def _without_prompt(outcome: Outcome) -> Outcome:
    (reply,) = outcome["result"]["replies"]
    assert reply.startswith(SHORT), reply
    outcome["result"]["replies"] = [reply.removeprefix(SHORT)]
    return outcome


def _in_our_words(words: str) -> Callable[[Outcome], Outcome]:
    def put_right(outcome: Outcome) -> Outcome:
        assert "error" in outcome, outcome
        return {"error": words}

    return put_right


def _with_special_end(tokens: int, prompt_tokens: int, chunks: list[Any], reply: str) -> Outcome:
    """A stream whose last token is special: one more chunk, without text, says how it ended."""
    ending = {"finish_reason": "eos_token", "generated_tokens": tokens, "input_length": prompt_tokens, "seed": None}
    last = {
        "content": "",
        "meta": {"id": 2, "logprob": -0.0078125, "special": True, "text": "</s>", **ending},
        "component_info": "HuggingFaceAPIGenerator",
        "index": 0,
        "tool_calls": None,
        "tool_call_result": None,
        "start": not chunks,
        "finish_reason": "stop",
        "reasoning": None,
    }
    meta = {
        "model": "<url>",
        "finish_reason": "eos_token",
        "usage": {"completion_tokens": tokens},
        "completion_start_time": "<time>",
    }
    return {"result": {"replies": [reply], "meta": [meta]}, "chunks": [*chunks, last]}


def _with_model(outcome: Outcome) -> Outcome:
    """A chat's stream that names the model, as a call without streaming does."""
    for meta in [outcome["result"]["replies"][0]["meta"], *(chunk["meta"] for chunk in outcome["chunks"])]:
        assert meta["model"] == "dummy", meta
        meta["model"] = "<url>"
    return outcome


def _refused(outcome: Outcome) -> Outcome:
    words = "Input validation error: `top_p` must be > 0.0 and < 1.0"
    assert words in outcome["error"], outcome
    return {"error": words}


_OUT_OF_RANGE = "generation_kwargs.temperature: Input should be greater than or equal to 0"

_PUT_RIGHT: dict[str, tuple[str, Callable[[Outcome], Outcome]]] = {
    "text: with the prompt, unasked": (
        "whether a reply begins with the prompt depends on the server, and on whether it streams",
        _without_prompt,
    ),
    "text: no prompt": (
        "said in our words, before anything is queued",
        _in_our_words("prompt: String should have at least 1 character"),
    ),
    "text: out of range": ("said in our words, before anything is queued", _in_our_words(_OUT_OF_RANGE)),
    "chat: out of range": ("said in our words, before anything is queued", _in_our_words(_OUT_OF_RANGE)),
    "text: stream, ends with a special token": (
        "finish_reason and completion_tokens are lost with a special last token",
        lambda outcome: _with_special_end(7, 17, outcome["chunks"], outcome["result"]["replies"][0]),
    ),
    "text: stream, nothing": (
        "an empty stream raises IndexError",
        lambda outcome: _with_special_end(1, 14, [], ""),
    ),
    "chat: stream": ("a stream's model is 'dummy', a call's is the url", _with_model),
    "chat: refused": ("the server's words are buried in huggingface_hub's", _refused),
    "chat: stream, refused": ("the server's words are buried in huggingface_hub's", _refused),
    "chat constructor: tools and streaming": ("tools are refused in streams, or silently left out", lambda outcome: {}),
}


def calls(python: str, which: str, url: str, **environ: str) -> dict[str, Outcome]:
    """The outcomes of all cases, in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed; its stderr is there.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GENQUEUE_", "HF_", "PYTHON"))}
    done = subprocess.run(
        [python, str(_CALLS), which, url],
        env={**kept, "HAYSTACK_TELEMETRY_ENABLED": "False", **environ},
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    )
    outcomes: dict[str, Outcome] = json.loads(done.stdout)
    return outcomes


def main(
    record: Annotated[Path | None, typer.Option(help="Write the original's outcomes to this file too.")] = None,
) -> None:
    """Compare, and print a line for each case; exit code 1 if one differs that should not."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="genqueue-compare-")))
        output.line(f"installing {' and '.join(ORIGINAL)}")
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *ORIGINAL], check=True)
        redis_url = opened.enter_context(local_redis()).url
        standin = started(opened, folder, ["tgi-standin"], "listening on ")
        url = standin.logged().partition("listening on ")[2].split()[0]
        (folder / "genqueue.toml").write_text(
            f'redis_url = "{redis_url}"\n'
            f'[generators.own]\napi_type = "text_generation_inference"\napi_params = {{ url = "{url}" }}\n'
            f'[generators.paid]\napi_type = "inference_endpoints"\napi_params = {{ url = "{url}" }}\n'
        )
        started(opened, folder, ["worker"], " ready.")
        original = calls(python, "original", url)
        ours = calls(sys.executable, "ours", url, GENQUEUE_REDIS_URL=redis_url)
    if record is not None:
        record.write_text(json.dumps(original, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    wrong = 0
    for one in compare(original, ours):
        wrong += not one.is_right
        verdict = ("right: " + one.why if one.why else "same") if one.is_right else "DIFFERS"
        output.line(f"{one.case:50} {verdict}", fg=None if one.is_right else "red")
        if not one.is_right:
            before, after = (
                json.dumps(side, indent=1, sort_keys=True).splitlines() for side in (one.expected, one.ours)
            )
            for changed in unified_diff(before, after, "expected", "ours", lineterm="", n=2):
                output.line(changed)
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
