"""An event stream as the WHATWG HTML standard reads it (section 9.2.6), from bytes cut anywhere.

Pure: it takes what was read and returns the data of the events that are whole; what they say is for others.
``id`` and ``retry`` are read over, since no call is resumed by its event stream.

It goes beyond the standard in six places, each of which would otherwise lose what an engine said:

- A data line that is a whole JSON object ends its event where another data line follows: the two together
  are no JSON, and some servers send no empty lines.
- ``[DONE]`` is an event as soon as its line ends, for the same servers.
- A field ``error`` is the data of an event of that name: llama.cpp sent its errors so.
- A byte order mark is read over before each line, not before the first one alone: a proxy that joins texts may
  put it anywhere, and no field begins with one.
- A field that is ``data`` but for its case, or for blanks around it, is an error: the standard has it read over.
- :meth:`EventStream.end` returns the event whose empty line is missing, which the standard discards.  The
  caller decides whether it is whole.
"""

import re
from collections.abc import Callable

from pydantic_core import from_json

from genqueue_worker.upstream.fields import DONE

_MARK = b"\xef\xbb\xbf"
_ALMOST_DATA = re.compile(r"[\s\0\u200b\u2060\ufeff]*data[\s\0\u200b\u2060\ufeff]*", re.IGNORECASE)
_MOST_NAME_BYTES = 64
"""Of what may be a name: what is longer is none."""
_SPACE, _LINE_FEED = ord(" "), ord("\n")
_MOST_REST_BYTES = 4096
"""What is longer is not copied anew with each read."""


class StreamTooLongError(Exception):
    """A stream goes beyond its bounds; its words say which."""


class FieldError(Exception):
    """A line has the text of an event in a field that the standard does not know.

    Attributes:
        line: the line.
    """

    def __init__(self, line: bytes) -> None:
        self.line = line
        super().__init__("a field is 'data' but for its case or blanks")


def _same(name: bytes, data: bytes) -> bytes:
    return data


class EventStream:
    """The reader of one event stream.

    Args:
        most_bytes: of one line, of whatever kind, and of one event's data.
        most_events: of the stream.
        most_lines: of the stream, of those without data: comments, other fields, empty lines.
        on_named: makes the data of an event of its name and its data; not asked where the name is "" or ``message``.

    Attributes:
        events: how many were returned.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_data_lines",
        "_idle_lines",
        "_line",
        "_most_bytes",
        "_most_events",
        "_most_lines",
        "_name",
        "_on_named",
        "_rest",
        "events",
    )

    def __init__(
        self,
        *,
        most_bytes: int,
        most_events: int,
        most_lines: int,
        on_named: Callable[[bytes, bytes], bytes] = _same,
    ) -> None:
        self.events = 0
        self._most_bytes = most_bytes
        self._most_events = most_events
        self._most_lines = most_lines
        self._on_named = on_named
        self._rest: bytes | None = None  # between two events: what came of the first line of the next one
        self._line = bytearray()  # the line whose end has not come
        self._after_cr = False  # a line feed that comes next belongs to the line end before it
        self._data = bytearray()  # the event whose end has not come: its data lines, each with a line feed
        self._data_lines = 0
        self._name = b""
        self._idle_lines = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that end in ``data``, which are the next bytes of the stream.

        Raises:
            StreamTooLongError: the stream goes beyond its bounds.
            FieldError: a line is almost one of data.
        """
        if self._rest is not None:  # between two events: as nearly all are one line of data, the short way comes first
            if self._rest:
                data = self._rest + data
            size = len(data)
            if size <= self._most_bytes and data.startswith(b"data:") and b"\r" not in data:
                end = data.find(b"\n")
                if end == size - 2 and data[-1] == _LINE_FEED and self.events < self._most_events:
                    self._rest = b""
                    self.events += 1
                    return [data[6:end] if data[5] == _SPACE else data[5:end]]
                if end < 0 and size <= _MOST_REST_BYTES:
                    self._rest = data
                    return []
                events = self._plain(data)
                if events is not None:
                    return self._counted(events)
            self._rest = None
        events = self._read(data)
        if not (self._line or self._data or self._name or self._after_cr):
            self._rest = b""
        return self._counted(events)

    def _plain(self, data: bytes) -> list[bytes] | None:
        """The events, if each is one line of data, all with a space before it or all without."""
        end = data.rfind(b"\n\n")
        if end < 0 or len(data) - end > _MOST_REST_BYTES:
            return None
        if data[5] == _SPACE:
            events = data[6:end].split(b"\n\ndata: ")
        elif b"\n\ndata: " not in data:
            events = data[5:end].split(b"\n\ndata:")
        else:
            return None
        if data.count(b"\n") != 2 * len(events):
            return None
        self._rest = data[end + 2 :]
        return events

    def _counted(self, events: list[bytes]) -> list[bytes]:
        self.events += len(events)
        if self.events > self._most_events:
            raise StreamTooLongError(f"answer has more than {self._most_events} events")
        return events

    def end(self) -> list[bytes]:
        """The data of the events that the end of the body cut off: the last one may not be whole.

        Raises:
            StreamTooLongError: the stream goes beyond its bounds.
            FieldError: a line is almost one of data.
        """
        # Whatever line was begun ends, and then its event.
        return self.feed(b"\n\n") if self._rest or self._line or self._data else []

    def _read(self, data: bytes) -> list[bytes]:
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        rest = lines.pop()
        if self._line and lines:
            lines[0] = bytes(self._line + lines[0])
            self._line.clear()
        self._line += rest
        events: list[bytes] = []
        only: bytes | None = None  # the data of an event of which one line came
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                if only is None and not self._data and value != DONE:
                    only = value
                    continue
                if only is not None:
                    self._add(only, events)
                    only = None
                self._add(value, events)
            elif not line and only is not None and not self._name:
                if len(only) > self._most_bytes:
                    raise self._too_long()
                events.append(only)
                only = None
            else:
                if only is not None:
                    self._add(only, events)
                    only = None
                self._take(line, events)
        if only is not None:
            self._add(only, events)
        if len(self._line) > self._most_bytes:
            raise self._too_long()
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        """Read a line that does not begin with ``data:``; an event that it ends is added to ``events``."""
        if len(line) > self._most_bytes:
            raise self._too_long()
        if not line and self._data:
            self._dispatch(events)
            return
        if line[:1] == _MARK[:1]:
            line = line.lstrip(_MARK)  # or of several, or of a part: none of its bytes begins a field
            if not line:
                self._take(line, events)
                return
        field, colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._add(value, events)
        elif field == b"error":
            self._name = field
            self._add(value, events)
        else:
            if field == b"event" or not line:
                self._name = value
            elif colon and _is_almost_data(field):
                raise FieldError(line)
            self._idle_lines += 1
            if self._idle_lines > self._most_lines:
                raise StreamTooLongError(f"answer has more than {self._most_lines} lines without data")

    def _add(self, data: bytes, events: list[bytes]) -> None:
        if self._data_lines == 1 and _is_object(self._data):
            self._dispatch(events)
        if not self._data and data == DONE:
            events.append(data)
            return
        self._data += data
        self._data += b"\n"
        self._data_lines += 1
        if len(self._data) > self._most_bytes:
            raise self._too_long()

    def _dispatch(self, events: list[bytes]) -> None:
        data, name = bytes(self._data[:-1]), self._name
        self._data.clear()
        self._data_lines, self._name = 0, b""
        events.append(data if name in {b"", b"message"} else self._on_named(name, data))

    def _too_long(self) -> StreamTooLongError:
        return StreamTooLongError(f"event has more than {self._most_bytes} bytes")


def _is_almost_data(field: bytes) -> bool:
    field = field.strip()
    return len(field) <= _MOST_NAME_BYTES and _ALMOST_DATA.fullmatch(field.decode("utf-8", "replace")) is not None


def _is_object(data: bytearray) -> bool:
    if not data.rstrip().endswith(b"}"):
        return False
    try:
        return isinstance(from_json(data), dict)
    except ValueError:
        return False
