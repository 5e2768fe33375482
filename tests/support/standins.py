"""The TGI stand-in in a process of its own, and prompts that make it behave."""

import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genqueue_ops.standin.prose import expected_text


class Prompt(str):
    """A prompt of its own, with a stand-in directive, and the text that answers it."""

    tokens: int

    @property
    def answer(self) -> str:
        """The stand-in's whole text."""
        return expected_text(self, 100_000, tokens=self.tokens)

    def beginning(self, tokens: int) -> str:
        """The first ``tokens`` tokens of that text."""
        return expected_text(self, tokens, tokens=self.tokens)


@dataclass
class StandinProcess:
    """A stand-in in a process of its own, and its control routes."""

    url: str
    process: "subprocess.Popen[str]"

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/standin/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            raw = response.read()
        return json.loads(raw) if raw else None

    def script(self, **update: Any) -> None:
        """Change what every request without a directive meets."""
        self._control("PUT", "script", update)

    def requests(self, prompt: str | None = None) -> list[dict[str, Any]]:
        """What came over the wire, oldest first; only the calls for ``prompt`` if it is given."""
        entries: list[dict[str, Any]] = self._control("GET", "requests")
        if prompt is None:
            return entries
        return [entry for entry in entries if isinstance(entry["body"], dict) and entry["body"].get("inputs") == prompt]

    def attempts(self, prompt: str) -> list[dict[str, Any]]:
        """The calls for ``prompt`` and those that continue its text, oldest first."""
        return [entry for entry in self.requests() if str(entry["body"].get("inputs")).startswith(prompt)]

    def chats(self, prompt: str) -> list[dict[str, Any]]:
        """The chats whose first message is ``prompt``, oldest first."""
        entries = [entry for entry in self.requests() if "messages" in entry["body"]]
        return [entry for entry in entries if entry["body"]["messages"][0]["content"] == prompt]

    def only(self, prompt: str) -> dict[str, Any]:
        """The one call for ``prompt``."""
        (entry,) = self.requests(prompt)
        return entry

    def clear(self) -> None:
        """Forget all requests."""
        self._control("DELETE", "requests")


@contextlib.contextmanager
def running_standin(*arguments: str) -> Iterator[StandinProcess]:
    process = subprocess.Popen(
        [sys.executable, "-m", "genqueue_ops.standin", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"listening on (\S+)\n", line)
        assert found, f"the stand-in said {line!r}"
        yield StandinProcess(found[1], process)
    finally:
        process.terminate()
        process.communicate(timeout=30)
