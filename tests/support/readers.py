"""A reader that keeps when each event came."""

import threading
import time
from typing import Any


class Reading:
    """One generation read live in the background."""

    def __init__(self, generation: Any) -> None:
        self.generation = generation
        self.events: list[tuple[float, Any]] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self.generation.events():
                self.events.append((time.time(), event))
        except BaseException as error:
            self.error = error

    def came(self, kind: str, attempt: int) -> float | None:
        """When (epoch seconds) an event came; None if it has not."""
        return next((at_s for at_s, event in list(self.events) if (event.type, event.attempt) == (kind, attempt)), None)

    def kinds(self) -> list[str]:
        """``attempt.type`` of all events, chunks left out."""
        return [f"{event.attempt}.{event.type}" for _, event in self.events if event.type != "chunk"]

    def text(self, within_s: float = 30.0) -> str:
        """What a reader has at the end, who follows the events' rules."""
        self._thread.join(within_s)
        assert not self._thread.is_alive(), f"no end; so far: {self.kinds()}"
        if self.error is not None:
            raise self.error
        assert [event.seq for _, event in self.events] == list(range(1, len(self.events) + 1))
        parts: list[str] = []
        for _, event in self.events:
            if event.type == "reset":
                parts = []
            parts.append(getattr(event, "text", ""))
        return "".join(parts)
