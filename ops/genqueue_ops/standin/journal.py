"""What came over the wire, for ``GET /standin/requests``."""

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["running", "completed", "dropped", "failed"]


@dataclass(slots=True)
class Entry:
    """One request.

    ``completed`` means that the answer went out whole, ``dropped`` that the client left before,
    ``failed`` that the answer was an error or a fault.
    """

    id: int
    """Counts from 1, also across ``DELETE``."""
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    started_at_s: float
    """Epoch seconds."""
    body: Any = None
    """As received; a string where it was no JSON."""
    state: State = "running"
    fault: str | None = None
    """Kind of the fault that was played."""
    tokens_sent: int = 0
    first_token_at_s: float | None = None
    closed_at_s: float | None = None


@dataclass(slots=True)
class Journal:
    """The last ``size`` requests, oldest first."""

    size: int = 5000
    _entries: deque[Entry] = field(default_factory=deque)
    _last_id: int = 0

    def open(self, path: str, headers: dict[str, str], now_s: float) -> Entry:
        """Note a request; the caller keeps its entry up to date."""
        self._last_id += 1
        entry = Entry(self._last_id, path, headers, now_s)
        self._entries.append(entry)
        if len(self._entries) > self.size:
            self._entries.popleft()
        return entry

    def clear(self) -> None:
        """Forget all requests; those running are no longer listed either."""
        self._entries.clear()

    def entries(self) -> list[dict[str, Any]]:
        """As JSON values."""
        return [asdict(entry) for entry in self._entries]
